"""Postgres by TLS, where its URL asks for it: its certificate is checked, and nothing goes in plain text."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy as sa

from shared import db
from shared.errors import Unavailable
from shared.settings import PostgresSettings
from tests.stack import open_folder


@pytest.fixture(scope="module")
def certificate() -> Iterator[Path]:
    """A certificate of localhost, signed by itself, that the user Postgres runs as may read."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    with open_folder() as folder:
        for name in ("server", "other"):
            files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
            subprocess.run(
                [*command.split(), "subjectAltName=DNS:localhost", *files],
                cwd=folder,
                check=True,
                capture_output=True,
            )
        if os.geteuid() == 0:
            shutil.chown(folder / "server.key", "postgres", "postgres")
        (folder / "server.pem").chmod(0o644)
        yield folder / "server.pem"


def plain_url(postgres: PostgresSettings) -> sa.URL:
    return sa.make_url(postgres.url.get_secret_value())


def tell(url: sa.URL, *statements: str) -> None:
    connection = psycopg2.connect(
        host="127.0.0.1", port=url.port, user=url.username, password=url.password, dbname=url.database
    )
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()


@pytest.fixture
def with_tls(postgres: PostgresSettings, certificate: Path) -> Iterator[sa.URL]:
    """The address of a database whose server has just been given a certificate, and loses it afterwards."""
    url = plain_url(postgres)
    tell(
        url,
        f"ALTER SYSTEM SET ssl_cert_file = '{certificate}'",
        f"ALTER SYSTEM SET ssl_key_file = '{certificate.with_suffix('.key')}'",
        "ALTER SYSTEM SET ssl = on",
        "SELECT pg_reload_conf()",
    )
    yield url.set(host="localhost")
    tell(url, "ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()")


def encrypted(url: sa.URL, **query: str) -> bool:
    """Whether the connection made by our own settings is by TLS. Raises Unavailable where there is none."""
    settings = PostgresSettings(url=url.update_query_dict(query).render_as_string(hide_password=False))
    engine = db.engine(settings)

    def ask() -> bool:
        with engine.connect() as connection:
            statement = sa.text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            return bool(connection.execute(statement).scalar_one())

    try:
        return db.retried(ask, retry_s=0.5, what="asking for TLS")
    finally:
        engine.dispose()


def test_the_certificate_is_checked_and_a_stranger_refused(with_tls: sa.URL, certificate: Path) -> None:
    deadline = time.monotonic() + 30
    while not encrypted(with_tls, sslmode="prefer"):  # the server rereads its settings when it can
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert encrypted(with_tls, sslmode="verify-full", sslrootcert=str(certificate))
    for mode, root in (("verify-full", "other.pem"), ("verify-ca", "other.pem")):
        with pytest.raises(Unavailable, match="certificate verify failed") as raised:
            encrypted(with_tls, sslmode=mode, sslrootcert=str(certificate.with_name(root)))
        assert str(with_tls.password) not in str(raised.value)


def test_a_server_without_tls_is_refused_where_it_is_asked_for(
    postgres: PostgresSettings, certificate: Path
) -> None:
    url = plain_url(postgres)
    assert not encrypted(url)
    with pytest.raises(Unavailable, match="does not support SSL"):
        encrypted(url, sslmode="verify-full", sslrootcert=str(certificate))
