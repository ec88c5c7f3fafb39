"""What a verdict adds to the trends, and takes back. Pure arithmetic on integers: no database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

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


@dataclass(frozen=True, slots=True)
class Counted:
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
    minutes: dict[Key, list[int]] = {}
    for sign, posts in ((1, added), (-1, retracted)):
        for post in posts:
            bucket = truncate(post.event_time, Grain.MINUTE)
            for topic in {ALL_POSTS, *post.topics}:
                _add(minutes, Key(topic, Grain.MINUTE, bucket, post.platform, post.language), sign, post)
    sums: dict[Key, list[int]] = dict(minutes)
    for key, counts in minutes.items():
        for grain in (Grain.HOUR, Grain.DAY):
            wider = key._replace(grain=grain, bucket=truncate(key.bucket, grain))
            row = sums.setdefault(wider, [0] * len(ZERO))
            for index, value in enumerate(counts):
                row[index] += value
    changed = {key: Counts(*counts) for key, counts in sums.items() if any(counts)}
    return dict(sorted(changed.items()))


def _add(rows: dict[Key, list[int]], key: Key, sign: int, post: Counted) -> None:
    row = rows.get(key)
    if row is None:
        row = rows[key] = [0] * len(ZERO)
    row[0] += sign
    row[post.label] += sign  # Counts has the labels' columns at the labels' values
    if post.label is not Label.UNSCORED:
        row[5] += sign * post.score_micro
