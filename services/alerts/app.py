"""The Faust application: counts what arrives in a table of tumbling windows and tells which windows that
touches.

Faust is not trusted with more: it may count a verdict twice or not at all (README.md), so nothing here
decides anything. A row of the table is one window of one topic in one partition of `sentiments`; the
partition is part of its key, so no record has to be moved to where another counts. Windows are of event time
and rows leave the table when it is full, oldest window first: Faust's own windowed tables expire by the wall
clock, forget to after a recovery, and leave their rows in the changelog (0.15.3, tables/base.py).
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from services.alerts.pending import Pending
from services.alerts.settings import GROUP
from shared import codec, topics
from shared.errors import InvalidMessage, Unavailable
from shared.messages import Record
from shared.settings import KafkaSettings

with warnings.catch_warnings():
    # Faust and what it brings still call what Python 3.11 deprecates, some of it on import.
    warnings.simplefilter("ignore")
    import faust

log = logging.getLogger(__name__)

TABLE: Final = "arrivals"
COMPACTED_SOON: Final = {
    "segment.bytes": str(1024 * 1024),
    "segment.ms": "60000",
    "max.compaction.lag.ms": "60000",
    "min.cleanable.dirty.ratio": "0.1",
    "delete.retention.ms": "60000",
}
"""Of the changelog. A start reads all of it, some thousand entries a second, and every verdict adds one; by
Kafka's defaults they are compacted after a week or a gigabyte."""
FETCH_BYTES: Final = 256 * 1024
"""Of a partition at once; a larger record comes alone. aiokafka hands out all it has of one partition before
it turns to the next: with 8 MiB some stood still for 30 s while the others were read, and looked hung."""
COMMIT_S: Final = 1.0
TURN_S: Final = 0.2
# Windows on either side of an event time must be times too.
EARLIEST_S: Final = datetime(1900, 1, 1, tzinfo=UTC).timestamp()
LATEST_S: Final = datetime(9000, 1, 1, tzinfo=UTC).timestamp()


@dataclass(slots=True)
class Handled:
    """Since the process started."""

    posts: int = 0
    dead_letters: int = 0
    dead_letters_in_a_row: int = 0


def event_time_s(value: bytes) -> tuple[tuple[str, ...], float]:
    """Topics and event time of a record of `sentiments`. Raises InvalidMessage."""
    sentiment = codec.decode_sentiment(value)
    seconds = sentiment.event_time.seconds + sentiment.event_time.nanos / 1e9
    if not EARLIEST_S <= seconds < LATEST_S:
        raise InvalidMessage(f"event time {seconds:.0f} s is not between the years 1900 and 9000")
    return tuple(sentiment.topics), seconds


def row_key(partition: int, start_s: int, topic: str) -> str:
    return f"{partition}/{start_s}/{topic}"


def row_of(key: str) -> tuple[int, int, str]:
    """(partition, start_s, topic) of a row."""
    partition, start_s, topic = key.split("/", 2)
    return int(partition), int(start_s), topic


class Oldest:
    """The rows of each partition by age, so that the oldest leaves when there are too many."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._rows: dict[int, list[tuple[int, str]]] = defaultdict(list)

    def reset(self, keys: list[str]) -> None:
        self._rows.clear()
        for key in keys:
            partition, start_s, _ = row_of(key)
            self._rows[partition].append((start_s, key))
        for rows in self._rows.values():
            heapq.heapify(rows)

    def added(self, key: str) -> str | None:
        """A new row's key -> the key of the row that has to leave for it, if one has to; it may be the new
        one."""
        partition, start_s, _ = row_of(key)
        rows = self._rows[partition]
        if len(rows) < self._keep:
            heapq.heappush(rows, (start_s, key))
            return None
        return heapq.heappushpop(rows, (start_s, key))[1]


def build(
    settings: KafkaSettings,
    pending: Pending,
    *,
    partitions: int,
    keep_windows: int,
    datadir: Path,
    dead_letter: Callable[[Record, str], None],
    failed: Callable[[BaseException], None],
    handled: Handled,
) -> Any:
    """The application, not started.

    partitions: of `sentiments`, and so of the table's changelog.
    dead_letter: returns when the record is in the dead-letter topic; called on another thread.
    failed: called with what a record made us raise; must not return to Faust, which would go on with the
    next.
    """
    prefix = settings.topic_prefix
    app = faust.App(
        f"{prefix}{GROUP}",
        broker=[f"aiokafka://{server}" for server in settings.bootstrap_servers.split(",")],
        store="memory://",
        datadir=str(datadir),
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_partitions=partitions,
        topic_replication_factor=settings.replication_factor,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=FETCH_BYTES,
        broker_commit_interval=COMMIT_S,
        broker_max_poll_records=settings.max_poll_records,
        broker_session_timeout=settings.session_timeout_ms / 1000,
        broker_heartbeat_interval=settings.session_timeout_ms / 4000,
        broker_max_poll_interval=settings.max_poll_interval_ms / 1000,
        producer_max_request_size=topics.MAX_MESSAGE_BYTES,
        stream_wait_empty=True,
        worker_redirect_stdouts=False,
    )
    sentiments = app.topic(
        f"{prefix}{topics.SENTIMENTS.name}", key_serializer="raw", value_serializer="raw", allow_empty=True
    )
    arrivals = app.Table(
        TABLE,
        key_type=str,
        value_type=int,
        default=int,
        partitions=partitions,
        extra_topic_configs=COMPACTED_SOON,
    )
    oldest = Oldest(keep_windows)

    @arrivals.on_recover
    async def recovered() -> None:
        keys = list(arrivals.keys())
        oldest.reset(keys)
        for key in keys:
            _, start_s, topic = row_of(key)
            # Whether it was judged before the end is not known; judging again changes nothing.
            pending.touch([topic], start_s, time.time())
        log.info("%d windows recovered from the changelog", len(keys))

    async def count(stream: Any) -> None:
        async for event in stream.events():
            try:
                message = event.message
                try:
                    named, at_s = event_time_s(event.value or b"")
                except InvalidMessage as error:
                    record = Record(
                        topic=topics.SENTIMENTS.name,
                        partition=message.partition,
                        offset=message.offset,
                        key=message.key,
                        value=message.value or b"",
                        headers=tuple((message.headers or {}).items()),
                        timestamp_ms=int(message.timestamp * 1000),
                    )
                    handled.dead_letters += 1
                    handled.dead_letters_in_a_row += 1
                    await asyncio.to_thread(dead_letter, record, str(error))
                    continue
                for topic in named:
                    key = row_key(message.partition, pending.start_of(at_s), topic)
                    new = key not in arrivals
                    arrivals[key] += 1
                    if new and (leaving := oldest.added(key)) is not None:
                        del arrivals[leaving]
                pending.touch(named, at_s, time.time())
                handled.posts += 1
                handled.dead_letters_in_a_row = 0
            except Exception as error:
                failed(error)
                raise

    app.agent(sentiments, name=f"{GROUP}.count")(count)
    return app


def restored(app: Any) -> int | None:
    """How far the table's changelog was read back; None when it is not being read."""
    recovery = app.tables.recovery
    return sum(offset or 0 for offset in recovery.active_offsets.values()) if recovery.in_recovery else None


def in_our_words(error: BaseException) -> BaseException:
    """What ended Faust, as ours: what Kafka's client calls retriable is a broker that is away.

    So is one that knows of no broker in charge yet, as while it starts; Faust says that by a bare Exception.
    """
    no_controller = type(error) is Exception and str(error).startswith("Controller node")
    if no_controller or getattr(error, "retriable", False):
        return Unavailable(f"Kafka left Faust alone: {error}")
    return error


async def serve(
    app: Any, stopped: Callable[[], bool], beat: Callable[[], None], failed: Callable[[BaseException], None]
) -> None:
    """Run the application until `stopped()`, then let it finish and commit what it holds.

    beat: called several times a second for as long as the event loop turns.
    failed: called when Faust fails. It must end the process: a loop with a failed Faust in it does not end.
    """

    async def beating() -> None:
        while True:
            beat()
            await asyncio.sleep(TURN_S)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            heart = asyncio.create_task(beating())
            # It returns when the tables are recovered, which other members of the group can delay.
            starting = asyncio.create_task(app.start())
            while not stopped():
                if app.crashed:
                    failed(in_our_words(app.crash_reason))
                if starting.done():
                    starting.result()
                await asyncio.sleep(TURN_S)
            await app.stop()
            heart.cancel()
        except Exception as error:
            failed(in_our_words(error))
            raise
