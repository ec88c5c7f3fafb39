"""Deterministic loads: the same posts for the same seed, of the lengths that real ones have."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np

from shared import codec
from shared.messages import Answer, EmbeddingBatch, EmbeddingEntry, Modality, Post, Record

START = datetime(2026, 6, 13, tzinfo=UTC)
MEAN_TOKENS = 29
IMAGE_SHARE, AUDIO_SHARE = 0.4, 0.1
_WORDS = [
    *[
        "the",
        "phone",
        "line",
        "concert",
        "today",
        "great",
        "late",
        "why",
        "again",
        "battery",
        "crowd",
        "light",
    ],
    *["rain", "love", "never", "ticket", "stage", "really", "el", "tren", "llega", "tarde", "otra", "vez"],
    *["die", "Musik", "war", "wunderbar", "heute", "aber", "kalt", "une", "belle", "soirée", "malgré"],
]


def posts(count: int, seed: int = 0) -> Iterator[Post]:
    """Posts with log-normal text lengths of MEAN_TOKENS tokens on average (about 1.3 tokens a word)."""
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(np.log(MEAN_TOKENS / 1.3) - 0.125, 0.5, count).clip(1, 120).astype(int)
    for number, length in enumerate(lengths):
        expected = {Modality.TEXT}
        if rng.random() < IMAGE_SHARE:
            expected.add(Modality.IMAGE)
        if rng.random() < AUDIO_SHARE:
            expected |= {Modality.AUDIO, Modality.SPEECH}
        time = START + timedelta(seconds=number)
        yield Post(
            post_id=f"bench:{number}",
            platform="bench",
            event_time=time,
            ingest_time=time,
            language="en",
            text=" ".join(rng.choice(_WORDS, length)),
            topics=("lumio-one",),
            expected=frozenset(expected),
        )


def post_records(count: int) -> list[Record]:
    """Records of topic `posts` on one partition, as bytes from Kafka."""
    return [
        Record("posts", 0, offset, post.post_id.encode(), codec.encode_post(post).value)
        for offset, post in enumerate(posts(count))
    ]


def embedding_records(
    count: int, dimensions: dict[Modality, int], encoders: dict[Modality, str], *, batch: int = 500
) -> list[Record]:
    """Records of topic `embeddings` on one partition: every expected answer of `count` posts."""
    rng = np.random.default_rng(1)
    every = list(posts(count))
    records: list[Record] = []
    for start in range(0, count, batch):
        for modality, dimension in dimensions.items():
            some = [post for post in every[start : start + batch] if modality in post.expected]
            vectors = rng.normal(size=(len(some), dimension)).astype(np.float16)
            entries = tuple(
                EmbeddingEntry(post, Answer(vector)) for post, vector in zip(some, vectors, strict=True)
            )
            output = codec.encode_embeddings(
                EmbeddingBatch(modality, encoders.get(modality, ""), dimension, entries),
                partition=0,
                service="bench",
                id=f"{start}/{modality}",
                time=START,
            )
            records.append(Record("embeddings", 0, len(records), None, output.value))
    return records
