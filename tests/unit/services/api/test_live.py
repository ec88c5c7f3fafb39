"""What a stream looks at, and what it sends: a table of a small trend that changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from services.api.live import Mark, Span, changes
from services.api.queries import Point
from services.api.requests import BEGINNING, END, Filter, TrendQuery
from shared.tables import Grain
from shared.testing import NOON

NOON_S = int(NOON.timestamp())
HOUR = timedelta(hours=1)


def query(grain: Grain = Grain.HOUR, start: datetime = BEGINNING, end: datetime = END) -> TrendQuery:
    return TrendQuery(Filter("tea", start, end), grain)


@pytest.mark.parametrize(
    ("span", "asked", "looked"),
    [
        (Span(NOON, NOON), query(), (NOON, NOON + HOUR)),
        (Span(NOON + HOUR / 2, NOON + 2 * HOUR), query(), (NOON, NOON + 3 * HOUR)),
        (Span(NOON, NOON), query(Grain.DAY), (NOON - 12 * HOUR, NOON + 12 * HOUR)),
        (Span(NOON, NOON), query(start=NOON - HOUR, end=NOON + HOUR / 2), (NOON, NOON + HOUR / 2)),
        (Span(NOON, NOON), query(start=NOON + HOUR), None),
        (Span(NOON, NOON), query(end=NOON), None),
        (Span(END, END), query(Grain.DAY), (datetime(9999, 12, 31, tzinfo=UTC), END)),
    ],
)
def test_only_buckets_that_may_have_changed_are_looked_at(
    span: Span, asked: TrendQuery, looked: tuple[datetime, datetime] | None
) -> None:
    part = span.within(asked)
    assert (part and (part.filter.start_time, part.filter.end_time)) == looked


def point(hour: int, posts: int) -> Point:
    return Point(NOON_S + hour * 3600, posts, 0, 0, posts, 0, posts * 500_000)


class Trend:
    """A trend in memory that counts who looked, and where."""

    def __init__(self, *points: Point) -> None:
        self.points = {one.bucket_s: one for one in points}
        self.looks: list[TrendQuery] = []

    def look(self, asked: TrendQuery) -> list[Point]:
        self.looks.append(asked)
        start, end = asked.filter.start_time, asked.filter.end_time
        return [p for s, p in sorted(self.points.items()) if start <= datetime.fromtimestamp(s, UTC) < end]


def test_a_stream_sends_what_differs_and_looks_where_it_was_told() -> None:
    trend, mark, now = Trend(point(0, 1), point(1, 1)), Mark("tea"), [0.0]
    stream = changes(query(), trend.look, mark, interval_s=0, refresh_s=60, clock=lambda: now[0])
    assert next(stream) == [point(0, 1), point(1, 1)]

    trend.points[NOON_S] = point(0, 2)
    trend.points[NOON_S + 7200] = point(2, 1)
    mark.note(Span(NOON, NOON))  # two changed, one was told
    assert next(stream) == [point(0, 2)]
    assert trend.looks[-1].filter.end_time == NOON + HOUR

    now[0] = 60.0  # the refresh finds what was never told
    assert next(stream) == [point(2, 1)]
    assert trend.looks[-1] == query()

    del trend.points[NOON_S + 3600]
    mark.note(Span(NOON + HOUR, NOON + HOUR))
    assert next(stream) == [Point(NOON_S + 3600, 0, 0, 0, 0, 0, 0)]

    mark.end()
    assert list(stream) == []


def test_what_changes_during_a_look_is_looked_at_again() -> None:
    trend, mark = Trend(), Mark("tea")

    def look(asked: TrendQuery) -> list[Point]:
        found = trend.look(asked)
        if len(trend.looks) == 1:  # committed and told after this look, before its answer is sent
            trend.points[NOON_S] = point(0, 1)
            mark.note(Span(NOON, NOON))
        return found

    stream = changes(query(), look, mark, interval_s=0, refresh_s=60)
    assert next(stream) == []
    assert next(stream) == [point(0, 1)]
    mark.end()
