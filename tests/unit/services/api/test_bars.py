"""What the tables draw."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.crowdtone.v1 import api_pb2 as pb
from services.api.cli import parse_time, share_bar, volume_bar

COUNTS = st.integers(0, 10**9)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_the_shares_fill_the_bar_and_lie_within_a_cell_of_the_truth(a: int, b: int, c: int, d: int) -> None:
    total = a + b + c + d
    bar = share_bar(pb.TrendPoint(posts=total, negative=a, neutral=b, positive=c, unscored=d), cells=20).plain
    assert len(bar) == (20 if total else 0)
    if total:
        for count, glyph in ((a, "▒"), (b, "─"), (c, "█"), (d, "·")):
            assert abs(bar.count(glyph) - 20 * count / total) < 1


@pytest.mark.parametrize(
    ("posts", "bar"), [(0, ""), (1, "▏"), (500, "████"), (563, "████▌"), (1000, "████████")]
)
def test_the_volume_is_a_bar_in_eighths(posts: int, bar: str) -> None:
    assert volume_bar(posts, 1000) == bar


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("90s", datetime(2026, 6, 13, 11, 58, 30, tzinfo=UTC)),
        ("30m", datetime(2026, 6, 13, 11, 30, tzinfo=UTC)),
        ("12h", datetime(2026, 6, 13, tzinfo=UTC)),
        ("2d", datetime(2026, 6, 11, 12, tzinfo=UTC)),
        ("1w", datetime(2026, 6, 6, 12, tzinfo=UTC)),
        ("2026-06-01", datetime(2026, 6, 1, tzinfo=UTC)),
        (" 2026-06-01T10:00 ", datetime(2026, 6, 1, 10, tzinfo=UTC)),
        ("2026-06-01T10:00+02:00", datetime(2026, 6, 1, 8, tzinfo=UTC)),
        ("2026-06-01T10:00:00Z", datetime(2026, 6, 1, 10, tzinfo=UTC)),
    ],
)
def test_a_time_is_a_span_ago_or_iso_8601(text: str, time: datetime) -> None:
    assert parse_time(text, datetime(2026, 6, 13, 12, tzinfo=UTC)) == time


@pytest.mark.parametrize("text", ["", "2", "d", "-2d", "2y", "tomorrow", "2026-13-01"])
def test_anything_else_is_no_time(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text, datetime(2026, 6, 13, 12, tzinfo=UTC))
