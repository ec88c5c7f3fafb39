"""What makes a live stream look again: one reader of `sentiments` for the whole process, one mark per stream.

Kafka only says when and where to look; what is sent comes from Postgres. So a record that is missed delays a
stream by its refresh interval and costs nothing else, and the streams go on while Kafka is away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Protocol, Self

from services.api.queries import Point
from services.api.requests import END, WIDTH, TrendQuery, floor
from shared import codec, metrics
from shared.errors import InvalidMessage, Unavailable
from shared.messages import Record
from shared.tables import ALL_POSTS

log = logging.getLogger(__name__)

RETRY_S: Final = 2.0


class Tail(Protocol):
    """What is read here; `shared.kafka.Tail` is one."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...
    def poll(self) -> list[Record]: ...


@dataclass(frozen=True, slots=True)
class Span:
    """Event times, both inclusive, between which something changed."""

    first: datetime
    last: datetime

    def __or__(self, other: Span) -> Span:
        return Span(min(self.first, other.first), max(self.last, other.last))

    def within(self, query: TrendQuery) -> TrendQuery | None:
        """The part of `query` whose buckets may have changed; None where none can have."""
        start = max(query.filter.start_time, floor(self.first, query.grain))
        width = WIDTH[query.grain]
        end = query.filter.end_time
        if self.last < END - width:  # beyond that there is no later time to name
            end = min(end, floor(self.last, query.grain) + width)
        if start >= end:
            return None
        return replace(query, filter=replace(query.filter, start_time=start, end_time=end))


class Mark:
    """What changed for one stream since it last looked. Two times, however much that was."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._condition = threading.Condition()
        self._span: Span | None = None
        self._ended = False

    def note(self, changed: Span) -> None:
        with self._condition:
            self._span = changed if self._span is None else self._span | changed
            self._condition.notify()

    def end(self) -> None:
        """Its caller hung up, or the server stops."""
        with self._condition:
            self._ended = True
            self._condition.notify()

    def ended(self) -> bool:
        return self._ended

    def wait(self, timeout_s: float) -> None:
        """Until something changed, it ended, or `timeout_s` passed."""
        with self._condition:
            self._condition.wait_for(lambda: self._span is not None or self._ended, timeout_s)

    def rest(self, seconds: float) -> None:
        """So long, or until it ended."""
        with self._condition:
            self._condition.wait_for(lambda: self._ended, seconds)

    def take(self) -> Span | None:
        """What changed since the last time; None for nothing."""
        with self._condition:
            span, self._span = self._span, None
            return span


class Live:
    """The marks of all streams, and the thread that reads for them. It reads only while somebody looks."""

    def __init__(self, open_tail: Callable[[], Tail], *, max_streams: int) -> None:
        """open_tail: raises Unavailable when there is no broker."""
        self._open_tail = open_tail
        self._max_streams = max_streams
        self._marks: set[Mark] = set()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._follow, name="sentiments", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        """False where the reader died of a bug: the process should follow it."""
        return self._stopped or self._thread.is_alive()

    def stop(self) -> None:
        """End every stream and the reader."""
        with self._changed:
            self._stopped = True
            for mark in self._marks:
                mark.end()
            self._changed.notify_all()
        self._thread.join(timeout=RETRY_S)

    def stopped(self) -> bool:
        return self._stopped

    @contextmanager
    def watch(self, topic: str) -> Iterator[Mark | None]:
        """A mark for one stream; None where there are as many streams as there may be."""
        mark = Mark(topic)
        with self._changed:
            if len(self._marks) >= self._max_streams:
                mark_or_none = None
            else:
                mark_or_none = mark
                self._marks.add(mark)
                metrics.API_STREAMS.set(len(self._marks))
                if self._stopped:
                    mark.end()
                self._changed.notify_all()
        try:
            yield mark_or_none
        finally:
            with self._changed:
                self._marks.discard(mark)
                metrics.API_STREAMS.set(len(self._marks))

    def _watched(self) -> list[Mark]:
        with self._changed:
            return [] if self._stopped else list(self._marks)

    def _follow(self) -> None:
        away = False
        while not self.stopped():
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._marks)
            if self.stopped():
                return
            try:
                with self._open_tail() as tail:
                    if away:
                        log.info("Kafka is back")
                    away = False
                    while marks := self._watched():
                        self._note(tail.poll(), marks)
            except Unavailable as error:
                if not away:
                    log.warning("live streams look at intervals only: %s", error)
                away = True
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, RETRY_S)

    @staticmethod
    def _note(records: Sequence[Record], marks: Sequence[Mark]) -> None:
        spans: dict[str, Span] = {}
        for record in records:
            try:
                sentiment = codec.decode_sentiment(record.value)
                event_time = sentiment.event_time.ToDatetime(tzinfo=UTC)
            except (InvalidMessage, ValueError, OverflowError) as error:
                log.warning("%s %d/%d: %s", record.topic, record.partition, record.offset, error)
                continue
            changed = Span(event_time, event_time)
            for topic in (ALL_POSTS, *sentiment.topics):
                spans[topic] = spans[topic] | changed if topic in spans else changed
        for mark in marks:
            if mark.topic in spans:
                mark.note(spans[mark.topic])


def changes(
    query: TrendQuery,
    look: Callable[[TrendQuery], list[Point]],
    mark: Mark,
    *,
    interval_s: float,
    refresh_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[list[Point]]:
    """The whole interval first, then only points that differ from what was sent, until the mark has ended.

    A bucket whose last post was taken back is sent with zero posts. Looks at most every `interval_s`, at what
    changed; every `refresh_s` at everything.
    """
    mark.take()
    points = look(query)
    sent = {point.bucket_s: point for point in points}
    yield points
    refreshed = clock()
    while not mark.ended():
        mark.rest(interval_s)
        mark.wait(max(0.0, refreshed + refresh_s - clock()))
        if mark.ended():
            return
        span = mark.take()
        if clock() >= refreshed + refresh_s:
            refreshed, part = clock(), query
        elif span is not None and (changed_part := span.within(query)) is not None:
            part = changed_part
        else:
            continue
        points = look(part)
        start_s, end_s = (int(time.timestamp()) for time in (part.filter.start_time, part.filter.end_time))
        gone = {bucket_s for bucket_s in sent if start_s <= bucket_s < end_s} - {p.bucket_s for p in points}
        changed = [point for point in points if sent.get(point.bucket_s) != point]
        changed += [Point(bucket_s, 0, 0, 0, 0, 0, 0) for bucket_s in gone]
        sent.update((point.bucket_s, point) for point in points)
        for bucket_s in gone:
            del sent[bucket_s]
        if changed:
            yield sorted(changed)
