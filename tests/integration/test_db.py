"""Connections to a real PostgreSQL."""

from __future__ import annotations

import socket

import pytest

from shared import db
from shared.settings import PostgresSettings


@pytest.mark.parametrize("statement_timeout_s", [None, 5.0])
def test_a_server_that_vanishes_is_noticed_within_half_a_minute(
    postgres: PostgresSettings, statement_timeout_s: float | None
) -> None:
    """The kernel does it; here, that it was told to."""
    engine = db.engine(postgres, statement_timeout_s=statement_timeout_s)
    with engine.connect() as connection:
        descriptor = connection.connection.driver_connection.fileno()  # type: ignore[union-attr]
        with socket.socket(fileno=descriptor) as wire:
            idle = wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            interval = wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
            count = wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
            unanswered_ms = wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            wire.detach()  # the descriptor stays psycopg2's
    engine.dispose()
    assert idle + interval * count <= 30
    assert unanswered_ms == 30_000
