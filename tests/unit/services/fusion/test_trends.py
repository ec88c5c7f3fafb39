from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.fusion.trends import ZERO, Counted, Counts, Key, deltas, truncate
from shared.messages import Label
from shared.tables import Grain

TIME = datetime(2026, 6, 13, 23, 59, 59, 999_999, UTC)


def counted(label: Label = Label.POSITIVE, score_micro: int = 500_000, **changes: object) -> Counted:
    values = {"event_time": TIME, "topics": ("lumio",), "platform": "p", "language": "en"} | changes
    return Counted(label=label, score_micro=score_micro, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("time", "grain", "bucket"),
    [
        (TIME, Grain.MINUTE, datetime(2026, 6, 13, 23, 59, tzinfo=UTC)),
        (TIME, Grain.HOUR, datetime(2026, 6, 13, 23, tzinfo=UTC)),
        (TIME, Grain.DAY, datetime(2026, 6, 13, tzinfo=UTC)),
        (TIME + timedelta(microseconds=1), Grain.DAY, datetime(2026, 6, 14, tzinfo=UTC)),
        # 00:30 in Kathmandu is 18:45 of the day before in UTC.
        (
            datetime(2026, 6, 14, 0, 30, tzinfo=timezone(timedelta(hours=5, minutes=45))),
            Grain.HOUR,
            datetime(2026, 6, 13, 18, tzinfo=UTC),
        ),
    ],
)
def test_buckets_are_utc(time: datetime, grain: Grain, bucket: datetime) -> None:
    assert truncate(time, grain) == bucket
    assert truncate(time, grain).tzinfo is UTC


def test_one_post_counts_in_every_grain_for_its_topics_and_for_all() -> None:
    changes = deltas([counted(topics=("lumio", "metro", "lumio"))])
    assert {(key.topic, key.grain) for key in changes} == {
        (topic, grain) for topic in ("*", "lumio", "metro") for grain in Grain
    }
    assert set(changes.values()) == {Counts(1, 0, 0, 1, 0, 500_000)}
    assert list(changes) == sorted(changes)


@pytest.mark.parametrize(
    ("label", "counts"),
    [
        (Label.NEGATIVE, Counts(1, 1, 0, 0, 0, -7)),
        (Label.NEUTRAL, Counts(1, 0, 1, 0, 0, -7)),
        (Label.POSITIVE, Counts(1, 0, 0, 1, 0, -7)),
        (Label.UNSCORED, Counts(1, 0, 0, 0, 1, 0)),
    ],
)
def test_each_label_has_its_column_and_unscored_posts_no_score(label: Label, counts: Counts) -> None:
    assert set(deltas([counted(label, -7)]).values()) == {counts}


def test_a_new_verdict_moves_a_post_between_labels() -> None:
    changes = deltas([counted(Label.NEGATIVE, -200_000)], [counted(Label.POSITIVE, 500_000)])
    assert set(changes.values()) == {Counts(0, 1, 0, -1, 0, -700_000)}


def test_what_does_not_change_is_left_out() -> None:
    assert deltas([counted()], [counted()]) == {}
    assert deltas([]) == {}


posts = st.builds(
    Counted,
    event_time=st.datetimes(
        datetime(2026, 6, 13, 23, 58), datetime(2026, 6, 14, 0, 2), timezones=st.just(UTC)
    ),
    topics=st.lists(st.sampled_from(["lumio", "metro", "*"]), max_size=3).map(tuple),
    platform=st.sampled_from(["a", "b"]),
    language=st.sampled_from(["en", "de"]),
    label=st.sampled_from(Label),
    score_micro=st.integers(-1_000_000, 1_000_000),
)


@given(st.lists(st.tuples(posts, posts), max_size=8), st.lists(posts, max_size=8), st.randoms())
def test_the_sum_of_deltas_is_the_recount(
    revised: list[tuple[Counted, Counted]], fresh: list[Counted], random: object
) -> None:
    """Counting first verdicts and then what changed, batch by batch, is counting the last verdicts."""
    table: dict[Key, Counts] = {}
    steps = [deltas([old]) for old, _ in revised]
    steps += [deltas([new], [old]) for old, new in revised]
    steps.append(deltas(fresh))
    for step in steps:
        for key, change in step.items():
            table[key] = Counts(*(a + b for a, b in zip(table.get(key, ZERO), change, strict=True)))
    assert {key: counts for key, counts in table.items() if any(counts)} == deltas(
        [*fresh, *(new for _, new in revised)]
    )


@given(st.lists(posts, max_size=8))
def test_hours_and_days_are_the_sums_of_their_minutes(some: list[Counted]) -> None:
    rows = deltas(some)
    for grain in (Grain.HOUR, Grain.DAY):
        wide: dict[Key, Counts] = {}
        for key, counts in rows.items():
            if key.grain is Grain.MINUTE:
                wider = key._replace(grain=grain, bucket=truncate(key.bucket, grain))
                wide[wider] = Counts(*(a + b for a, b in zip(wide.get(wider, ZERO), counts, strict=True)))
        assert wide == {key: counts for key, counts in rows.items() if key.grain is grain}
