"""Verdicts as the text that Postgres copies in. Pure.

A column at a time: pydantic_core writes a number in 0.06 us where `repr` takes 2, and most text columns need
no escaping, which one search through all of it tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import chain, islice
from typing import Any, Final

from pydantic_core import to_json

from services.fusion.join import expected_mask
from services.fusion.revision import Scored, Written, score_micro
from services.fusion.trends import Counts, Key
from shared import tables
from shared.db import copy_array, copy_texts
from shared.messages import Label, Media, Modality, ModalityWeight

POST_COLUMNS: Final = tuple(column.name for column in tables.posts.columns)
TREND_COLUMNS: Final = (*Key._fields, *Counts._fields)

_LABELS: Final = {label: str(int(label)) for label in Label}


def posts_text(items: Sequence[Written]) -> str:
    """The rows of `posts`, values of POST_COLUMNS."""
    if not items:
        return ""
    scored = [item.scored for item in items]
    joined = [one.joined for one in scored]
    posts = [one.post for one in joined]
    negative, neutral, positive = zip(*[one.verdicts.probabilities[one.row] for one in scored], strict=True)
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
        "label": [_LABELS[one.verdicts.labels[one.row]] for one in scored],
        "negative": _numbers(negative),
        "neutral": _numbers(neutral),
        "positive": _numbers(positive),
        "score_micro": [str(score_micro(one.verdicts.scores[one.row])) for one in scored],
        "expected": [str(expected_mask(post.expected)) for post in posts],
        "answered": [str(one.answered) for one in joined],
        "used": [str(one.used) for one in joined],
        "modalities": copy_texts(_modalities(scored)),
        "emotions": copy_texts(_emotions(scored)),
        "transcript": copy_texts([one.transcript for one in joined]),
        "model_version": copy_texts([one.verdicts.model_version for one in scored]),
        "classified_time": [classified[item.time] for item in items],
        "version": [str(post.version) for post in posts],
    }
    return _lines([columns[name] for name in POST_COLUMNS])


def trends_text(changes: Mapping[Key, Counts]) -> str:
    """The rows of `trends`, or what to add to them, values of TREND_COLUMNS."""
    if not changes:
        return ""
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


def _lines(columns: Sequence[Iterable[str]]) -> str:
    return "\n".join(map("\t".join, zip(*columns, strict=True))) + "\n"


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


def _modalities(scored: Sequence[Scored]) -> list[str]:
    """{"TEXT": {"contribution": 0.4, "absent_reason": ""}, ..} of each: one entry per modality expected."""
    found: list[str] = []
    shares = iter(_numbers([share for one in scored for share in one.verdicts.contributions[one.row]]))
    for one in scored:
        given = one.verdicts.given[one.row]
        numbers = tuple(islice(shares, len(given)))
        if len(given) == len(one.joined.post.expected):  # nothing is missing
            found.append(_contributions(given) % numbers)
        else:
            found.append(_json({weight.modality.name: _weight(weight) for weight in one.verdict.modalities}))
    return found


def _weight(weight: ModalityWeight) -> dict[str, float | str]:
    return {"contribution": weight.contribution, "absent_reason": _text(weight.absent_reason)}


@cache
def _contributions(given: tuple[Modality, ...]) -> str:
    """What `_modalities` writes of a post that has a vector of all it expects, but for the numbers."""
    each = (f'"{modality.name}":{{"contribution":%s,"absent_reason":""}}' for modality in given)
    return "{" + ",".join(each) + "}"


def _emotions(scored: Sequence[Scored]) -> list[str]:
    """{"joy": 0.7, ..} of each post."""
    emotions = [one.verdicts.emotions[one.row] for one in scored]
    numbers = iter(_numbers(list(chain.from_iterable(emotions))))
    return [
        _probabilities(one.verdicts.emotion_names) % tuple(islice(numbers, len(some))) if some else "{}"
        for one, some in zip(scored, emotions, strict=True)
    ]


@cache
def _probabilities(names: tuple[str, ...]) -> str:
    """What `_emotions` writes of a post, but for the numbers."""
    return "{" + ",".join(_json(name).replace("%", "%%") + ":%s" for name in names) + "}"


def _text(value: str) -> str:
    """Postgres JSON cannot hold NUL."""
    return value.replace("\0", "\ufffd")
