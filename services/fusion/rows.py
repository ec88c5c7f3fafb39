"""Verdicts as the lines that Postgres copies in. Pure.

A column at a time: pydantic_core writes a number in 0.06 us where `repr` takes 2, and most text columns need
no escaping, which one search through all of it tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import chain, islice
from typing import Any, Final, NamedTuple

from pydantic_core import to_json

from services.fusion.revision import Scored, Written, score_micro
from services.fusion.trends import Counts, Key
from services.fusion.verdicts import Verdicts
from shared import tables
from shared.db import copy_array, copy_texts
from shared.messages import Label, Media, Modality, ModalityWeight

POST_COLUMNS: Final = tuple(column.name for column in tables.posts.columns)
TREND_COLUMNS: Final = (*Key._fields, *Counts._fields)

_MASKS: Final = [str(bits) for bits in range(2 << max(Modality))]
_LABELS: Final = {label: str(int(label)) for label in Label}


def posts_lines(items: Sequence[Written]) -> list[str]:
    """A row of `posts` for each, values of POST_COLUMNS."""
    if not items:
        return []
    scored = [item.scored for item in items]
    joined = [one.joined for one in scored]
    posts = [one.post for one in joined]
    judged = _judged(scored)
    arrays = {topics: copy_array(topics) for topics in {post.topics for post in posts}}
    times = {item.time for item in items}  # mostly one
    classified = dict(zip(times, _times(list(times)), strict=True))
    columns: dict[str, Iterable[str]] = {
        "post_id": copy_texts([post.post_id for post in posts]),
        "event_time": _times([post.event_time for post in posts]),
        "platform": copy_texts([post.platform for post in posts]),
        "language": copy_texts([post.language for post in posts]),
        "topics": copy_texts([arrays[post.topics] for post in posts]),
        "text": copy_texts([post.text for post in posts]),
        "media": copy_texts([_media(post.media) if post.media else "[]" for post in posts]),
        "author_hash": copy_texts([post.author_hash for post in posts]),
        "url": copy_texts([post.url for post in posts]),
        "ingest_time": _times([post.ingest_time for post in posts]),
        "traceparent": copy_texts([post.traceparent for post in posts]),
        "revision": [str(item.revision) for item in items],
        "label": judged.label,
        "negative": judged.negative,
        "neutral": judged.neutral,
        "positive": judged.positive,
        "score_micro": judged.score_micro,
        "expected": [_MASKS[one.expected] for one in joined],
        "answered": [_MASKS[one.answered] for one in joined],
        "used": [_MASKS[one.used] for one in joined],
        "modalities": copy_texts(judged.modalities),
        "emotions": copy_texts(judged.emotions),
        "transcript": copy_texts([one.transcript for one in joined]),
        "model_version": copy_texts([one.verdicts.model_version for one in scored]),
        "classified_time": [classified[item.time] for item in items],
        "version": [str(post.version) for post in posts],
    }
    return _lines([columns[name] for name in POST_COLUMNS])


def trends_lines(changes: Mapping[Key, Counts]) -> list[str]:
    """The rows of `trends`, or what to add to them, values of TREND_COLUMNS."""
    if not changes:
        return []
    keys = list(changes)
    return _lines(
        [
            copy_texts([key.topic for key in keys]),
            [str(int(key.grain)) for key in keys],
            _times([key.bucket for key in keys]),
            copy_texts([key.platform for key in keys]),
            copy_texts([key.language for key in keys]),
            *([str(count) for count in column] for column in zip(*changes.values(), strict=True)),
        ]
    )


def _lines(columns: Sequence[Iterable[str]]) -> list[str]:
    return list(map("\t".join, zip(*columns, strict=True)))


def _json(value: Any) -> str:
    return to_json(value, inf_nan_mode="constants").decode()


def _numbers(values: Sequence[float]) -> list[str]:
    """Each the shortest that reads back as the same number."""
    return _json(values)[1:-1].split(",")


def _times(values: Sequence[datetime]) -> list[str]:
    return _json(values)[2:-2].split('","')


def _media(media: Iterable[Media]) -> str:
    return _json(
        [
            {
                "kind": int(one.kind),
                "sha256": _text(one.sha256),
                "mime_type": _text(one.mime_type),
                "size_bytes": one.size_bytes,
                "source_url": _text(one.source_url),
            }
            for one in media
        ]
    )


class _Judged(NamedTuple):
    """The columns that say what the model made of the posts."""

    label: list[str]
    negative: list[str]
    neutral: list[str]
    positive: list[str]
    score_micro: list[str]
    modalities: list[str]
    emotions: list[str]


def _judged(scored: Sequence[Scored]) -> _Judged:
    """All verdicts of a turn are written as text together, then those of `scored` are taken, in its order."""
    starts: dict[int, int] = {}
    every = _Judged([], [], [], [], [], [], [])
    for key, verdicts in {id(one.verdicts): one.verdicts for one in scored}.items():
        starts[key] = len(every.label)
        for column, more in zip(every, _texts(verdicts), strict=True):
            column.extend(more)
    rows = [starts[id(one.verdicts)] + one.row for one in scored]
    judged = _Judged(*([column[row] for row in rows] for column in every))
    whole = [len(one.verdicts.given[one.row]) == len(one.joined.post.expected) for one in scored]
    if all(whole):
        return judged
    return judged._replace(
        modalities=[
            text
            if nothing_missing
            else _json({weight.modality.name: _weight(weight) for weight in one.verdict.modalities})
            for one, nothing_missing, text in zip(scored, whole, judged.modalities, strict=True)
        ]
    )


def _texts(verdicts: Verdicts) -> _Judged:
    """modalities: as of posts that have a vector of all they expect."""
    probabilities = _numbers(list(chain.from_iterable(verdicts.probabilities)))
    shares = iter(_numbers(list(chain.from_iterable(verdicts.contributions))))
    names = len(verdicts.emotion_names)
    chances = zip(*[iter(_numbers(list(chain.from_iterable(verdicts.emotions))))] * names, strict=False)
    emotions = map(_probabilities(verdicts.emotion_names).__mod__, chances)
    return _Judged(
        list(map(_LABELS.__getitem__, verdicts.labels)),
        probabilities[0::3],
        probabilities[1::3],
        probabilities[2::3],
        [str(score_micro(score)) for score in verdicts.scores],
        [_contributions(given) % tuple(islice(shares, len(given))) for given in verdicts.given],
        [next(emotions) if some else "{}" for some in verdicts.emotions],
    )


def _weight(weight: ModalityWeight) -> dict[str, float | str]:
    return {"contribution": weight.contribution, "absent_reason": _text(weight.absent_reason)}


@cache
def _contributions(given: tuple[Modality, ...]) -> str:
    """{"TEXT": {"contribution": %s, "absent_reason": ""}, ..}"""
    each = (f'"{modality.name}":{{"contribution":%s,"absent_reason":""}}' for modality in given)
    return "{" + ",".join(each) + "}"


@cache
def _probabilities(names: tuple[str, ...]) -> str:
    """{"joy": %s, ..}"""
    return "{" + ",".join(_json(name).replace("%", "%%") + ":%s" for name in names) + "}"


def _text(value: str) -> str:
    """Postgres JSON cannot hold NUL."""
    return value.replace("\0", "\ufffd")
