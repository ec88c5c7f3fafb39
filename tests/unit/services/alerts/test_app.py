"""The parts of the Faust application that need no broker."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaClient  # type: ignore[import-untyped]
from aiokafka.errors import IllegalStateError, KafkaConnectionError  # type: ignore[import-untyped]

from protos.crowdtone.v1 import events_pb2
from services.alerts.app import Handled, Oldest, build, event_time_s, in_our_words, restored, row_key, row_of
from services.alerts.pending import Pending
from services.alerts.settings import AlertsSettings
from shared.errors import InvalidMessage, Unavailable
from shared.messages import Record
from shared.settings import KafkaSettings


def sentiment(seconds: int, nanos: int = 0) -> bytes:
    message = events_pb2.PostSentiment(post_id="x:1", topics=["a", "b/c"], label=events_pb2.LABEL_NEUTRAL)
    message.event_time.seconds, message.event_time.nanos = seconds, nanos
    return message.SerializeToString()


def _application(datadir: Path) -> Any:
    def unexpected(error: BaseException) -> None:
        raise error

    def no_letters(record: Record, reason: str) -> None:
        raise AssertionError(reason)

    return build(
        KafkaSettings(),
        Pending(AlertsSettings(), window_s=3600, baseline_windows=24),
        partitions=2,
        keep_windows=10,
        datadir=datadir,
        dead_letter=no_letters,
        failed=unexpected,
        handled=Handled(),
    )


def test_topics_and_event_time_are_read() -> None:
    at = datetime(2026, 6, 14, 10, tzinfo=UTC).timestamp()
    assert event_time_s(sentiment(int(at), 500_000_000)) == (("a", "b/c"), at + 0.5)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\xff",
        events_pb2.PostSentiment(post_id="x").SerializeToString(),
        sentiment(2**62),
        sentiment(-(2**62)),
    ],
)
def test_what_has_no_window_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidMessage):
        event_time_s(value)


def test_a_row_knows_where_it_belongs() -> None:
    assert row_of(row_key(3, -3600, "a/b")) == (3, -3600, "a/b")


def test_the_oldest_row_of_the_partition_leaves_first() -> None:
    oldest = Oldest(keep=2)
    keys = [row_key(0, start, "a") for start in (7200, 0, 3600, -3600)]
    assert [oldest.added(key) for key in keys] == [None, None, keys[1], keys[3]]
    assert oldest.added(row_key(1, 0, "a")) is None


def test_rows_recovered_are_rows() -> None:
    oldest = Oldest(keep=2)
    oldest.reset([row_key(0, 0, "a"), row_key(0, 3600, "a")])
    assert oldest.added(row_key(0, 7200, "a")) == row_key(0, 0, "a")


def test_a_broker_that_is_away_while_faust_starts_is_no_bug_of_ours() -> None:
    away = in_our_words(KafkaConnectionError("Unable to bootstrap"))
    assert isinstance(away, Unavailable)
    assert "Unable to bootstrap" in str(away)
    for bug in (Exception("something else"), IllegalStateError("used after close"), KeyError("topics")):
        assert in_our_words(bug) is bug


def test_a_broker_that_knows_no_controller_yet_is_no_bug_of_ours(tmp_path: Path) -> None:
    async def ask() -> None:
        client = AIOKafkaClient(bootstrap_servers="127.0.0.1:1")  # as one that was told of no broker
        await _application(tmp_path).transport._get_controller_node(None, client)

    # In a thread of its own: the browser's tests leave an event loop running in this one.
    with (
        ThreadPoolExecutor(1) as thread,
        pytest.raises(Exception, match="Controller node not found") as raised,
    ):
        thread.submit(lambda: asyncio.run(ask())).result()
    assert isinstance(in_our_words(raised.value), Unavailable)


def test_how_far_the_table_was_read_back_is_told_while_it_is(tmp_path: Path) -> None:
    app = _application(tmp_path)
    recovery = app.tables.recovery
    assert restored(app) is None
    recovery._set_recovery_started()
    recovery.active_offsets.update({"changelog 0": 40, "changelog 1": 2})
    recovery.active_offsets["changelog 2"] = None
    assert restored(app) == 42
    recovery._set_recovery_ended()
    assert restored(app) is None
