"""What a verdict adds to the trends, and takes back. Pure arithmetic on integers: no database."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from shared.messages import Label
from shared.tables import ALL_POSTS, Grain


class Key(NamedTuple):
    """The primary key of `trends`, in its order."""

    topic: str
    grain: Grain
    bucket: datetime
    platform: str
    language: str


class Counts(NamedTuple):
    """The values of one row of `trends`, or what to add to them. `score_micro` leaves unscored posts out."""

    posts: int
    negative: int
    neutral: int
    positive: int
    unscored: int
    score_micro: int


ZERO = Counts(0, 0, 0, 0, 0, 0)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE: Final = timedelta(minutes=1)


class Counted(NamedTuple):
    """What the trends count of one post."""

    event_time: datetime
    topics: tuple[str, ...]
    platform: str
    language: str
    label: Label
    score_micro: int


def truncate(time: datetime, grain: Grain) -> datetime:
    """Start of the bucket `time` falls in. `time` is aware; buckets are UTC."""
    minute = time.astimezone(UTC).replace(second=0, microsecond=0)
    if grain is Grain.MINUTE:
        return minute
    return minute.replace(minute=0) if grain is Grain.HOUR else minute.replace(minute=0, hour=0)


def deltas(added: Iterable[Counted], retracted: Iterable[Counted] = ()) -> dict[Key, Counts]:
    """What to add to which rows when posts come and old verdicts go: rows that change, in key order."""
    # Posts that are counted in the same rows first: there are far fewer rows than posts.
    unscored = Label.UNSCORED
    alike: dict[tuple[int, tuple[str, ...], str, str], list[int]] = {}
    for sign, posts in ((1, added), (-1, retracted)):
        for event_time, topics, platform, language, label, score_micro in posts:
            together = ((event_time - _EPOCH) // _MINUTE, topics, platform, language)
            counts = alike.get(together)
            if counts is None:
                counts = alike[together] = [0] * len(ZERO)
            counts[0] += sign
            counts[label] += sign  # Counts has the labels' columns at the labels' values
            if label is not unscored:
                counts[5] += sign * score_micro
    sums: dict[Key, list[int]] = {}
    for (minute, topics, platform, language), counts in alike.items():
        start = _EPOCH + minute * _MINUTE
        for grain in Grain:
            bucket = truncate(start, grain)
            for topic in {ALL_POSTS, *topics}:
                key = Key(topic, grain, bucket, platform, language)
                row = sums.setdefault(key, [0] * len(ZERO))
                for index, count in enumerate(counts):
                    row[index] += count
    changed = {key: Counts(*counts) for key, counts in sums.items() if any(counts)}
    return dict(sorted(changed.items()))
