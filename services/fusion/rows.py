"""Verdicts as the text that Postgres copies in. Pure.

A column at a time: pydantic_core writes a number in 0.06 us where `repr` takes 2, and most text columns need
no escaping, which one search through all of it tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from pydantic_core import to_json

from services.fusion.revision import Written, expected_mask, score_micro
from services.fusion.trends import Counts, Key
from shared import tables
from shared.db import copy_array, copy_texts
from shared.messages import Media, Modality, ModalityWeight

POST_COLUMNS: Final = tuple(column.name for column in tables.posts.columns)
TREND_COLUMNS: Final = (*Key._fields, *Counts._fields)

_CONTRIBUTION: Final = {modality: f'"{modality.name}":{{"contribution":' for modality in Modality}


def posts_text(items: Sequence[Written]) -> str:
    """The rows of `posts`, values of POST_COLUMNS."""
    if not items:
        return ""
    scored = [item.scored for item in items]
    posts = [one.post for one in scored]
    verdicts = [one.verdict for one in scored]
    negative, neutral, positive = zip(*[verdict.probabilities for verdict in verdicts], strict=True)
    arrays = {topics: copy_array(topics) for topics in {post.topics for post in posts}}
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
        "revision": [str(item.sentiment.revision) for item in items],
        "label": [str(int(verdict.label)) for verdict in verdicts],
        "negative": _numbers(negative),
        "neutral": _numbers(neutral),
        "positive": _numbers(positive),
        "score_micro": [str(score_micro(verdict.score)) for verdict in verdicts],
        "expected": [str(expected_mask(post.expected)) for post in posts],
        "answered": [str(one.answered) for one in scored],
        "used": [str(one.used) for one in scored],
        "modalities": copy_texts(_modalities([verdict.modalities for verdict in verdicts])),
        "emotions": copy_texts([_json(verdict.emotions) for verdict in verdicts]),
        "transcript": copy_texts([one.transcript for one in scored]),
        "model_version": copy_texts([verdict.model_version for verdict in verdicts]),
        "classified_time": _times([item.sentiment.classified_time for item in items]),
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


def _modalities(column: Sequence[Sequence[ModalityWeight]]) -> list[str]:
    """{"TEXT": {"contribution": 0.4, "absent_reason": ""}, ..} of each post."""
    numbers = iter(_numbers([weight.contribution for weights in column for weight in weights]))
    return [
        "{" + ",".join([_weight(weight, next(numbers)) for weight in weights]) + "}" for weights in column
    ]


def _weight(weight: ModalityWeight, contribution: str) -> str:
    reason = _json(_text(weight.absent_reason)) if weight.absent_reason else '""'
    return f'{_CONTRIBUTION[weight.modality]}{contribution},"absent_reason":{reason}}}'


def _text(value: str) -> str:
    """Postgres JSON cannot hold NUL."""
    return value.replace("\0", "\ufffd")
