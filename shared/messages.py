"""What flows between the services, as values. Pure: no protobuf, no Kafka, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Final, NamedTuple, Self, TypeVar, dataclass_transform

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float16]
Matrix = npt.NDArray[np.float16]
T = TypeVar("T")

INT8: Final = "+int8"
"""Ends the model version of an encoder that computes texts in 8 bits."""


def same_model(version: str, other: str) -> bool:
    """Whether vectors of these model versions can stand for one another: they differ in precision at most."""
    return version.removesuffix(INT8) == other.removesuffix(INT8)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """A dataclass that nobody changes: mypy refuses it.

    At run time nothing does: `frozen=True` sets every field through a call, 2.4 instead of 0.7 us a Post.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


class Modality(IntEnum):
    """One slot of the fusion model; the values are those of the proto."""

    __hash__ = int.__hash__  # Enum's is a function in Python, called for every look-up of a modality

    TEXT = 1
    IMAGE = 2
    AUDIO = 3
    SPEECH = 4


class Label(IntEnum):
    """A verdict's class; the values are those of the proto."""

    NEGATIVE = 1
    NEUTRAL = 2
    POSITIVE = 3
    UNSCORED = 4


@value
class Media:
    """A picture (`IMAGE`) or a sound (`AUDIO`) of a post; `sha256` is empty when it was never fetched.

    absent_reason: why that failed, where it was tried.
    """

    kind: Modality
    sha256: str
    mime_type: str = ""
    size_bytes: int = 0
    source_url: str = ""
    absent_reason: str = ""


@value
class Post:
    """One post as ingest accepted it. Times are aware and UTC; `expected` always holds TEXT.

    deleted: deleted at the source: a tombstone, without text, media, author or url.
    version: when this form of it was written, in microseconds since the epoch; 0 for the first.
    """

    post_id: str
    platform: str
    event_time: datetime
    ingest_time: datetime
    language: str = "und"
    text: str = ""
    media: tuple[Media, ...] = ()
    topics: tuple[str, ...] = ()
    expected: frozenset[Modality] = frozenset({Modality.TEXT})
    author_hash: str = ""
    url: str = ""
    traceparent: str = ""
    deleted: bool = False
    version: int = 0

    @property
    def rank(self) -> tuple[bool, int]:
        """Of two forms of one post the higher ranked stands: a deletion for good, else the latest edit."""
        return self.deleted, 0 if self.deleted else self.version


@value
class Answer:
    """What an encoder says of one modality of one post: a vector, or why there is none.

    vector: (D,) float16, or None with `absent_reason` set.
    transcript: the words heard, SPEECH only.
    poison: absent because the model failed on it, not because the input is bad. Never leaves the encoder.
    """

    vector: Vector | None
    absent_reason: str = ""
    transcript: str = ""
    poison: bool = False


@value
class EmbeddingEntry:
    """One post's answer inside a batch; `vector` is a view of the batch's matrix.

    wire: the post as it came, to be passed on as it is; empty where it did not come by wire.
    """

    post: Post
    answer: Answer
    wire: bytes = b""


@value
class EmbeddingBatch:
    """Answers for many posts of one partition, one modality, one model version, column by column.

    absent_reasons: of each post, empty where it has a vector. transcripts: of each post.
    vectors: (rows, D) float16, one for each post without an absent_reason, in order.
    wires: each post as it came; empty bytes where it did not come by wire.
    """

    modality: Modality
    model_version: str
    dimension: int
    posts: Sequence[Post]
    absent_reasons: Sequence[str]
    transcripts: Sequence[str]
    vectors: Matrix
    wires: Sequence[bytes]

    @classmethod
    def of(
        cls, modality: Modality, model_version: str, dimension: int, entries: Sequence[EmbeddingEntry]
    ) -> Self:
        """Raises ValueError where a vector has not `dimension` values."""
        answers = [entry.answer for entry in entries]
        rows = [answer.vector for answer in answers if answer.vector is not None]
        vectors = np.stack(rows) if rows else np.empty((0, dimension), np.float16)
        if vectors.shape != (len(rows), dimension):
            raise ValueError(f"vectors of shape {vectors.shape}, not ({len(rows)}, {dimension})")
        return cls(
            modality,
            model_version,
            dimension,
            [entry.post for entry in entries],
            [answer.absent_reason for answer in answers],
            [answer.transcript for answer in answers],
            vectors,
            [entry.wire for entry in entries],
        )

    @property
    def entries(self) -> tuple[EmbeddingEntry, ...]:
        rows = iter(self.vectors)
        return tuple(
            EmbeddingEntry(post, Answer(None if reason else next(rows), reason, transcript), wire)
            for post, reason, transcript, wire in zip(
                self.posts, self.absent_reasons, self.transcripts, self.wires, strict=True
            )
        )


@value
class ModalityWeight:
    """Signed contribution of one modality to a score; contributions and prior sum to the score."""

    modality: Modality
    contribution: float
    absent_reason: str = ""


@value
class Verdict:
    """What the model says of one post, before it has a place in the tables.

    probabilities: (negative, neutral, positive), summing to 1; all zero for UNSCORED.
    score: in [-1, 1], positive less negative.
    """

    label: Label
    probabilities: tuple[float, float, float]
    score: float
    modalities: tuple[ModalityWeight, ...]
    emotions: Mapping[str, float]
    model_version: str


@value
class PostSentiment:
    """A verdict as published: one post, one revision."""

    post: Post
    revision: int
    verdict: Verdict
    complete: bool
    classified_time: datetime
    transcript: str = ""


class AlertState(IntEnum):
    """Values are those of the proto."""

    ACTIVE = 1
    WITHDRAWN = 2


@value
class Alert:
    """A window of a topic in which something turned. The same window and kind is always the same alert.

    kind: "mood_drop", "mood_rise" or "volume_spike".
    value, baseline: mean label of scored posts in [-1, 1], or posts in the window.
    deviation: of value from baseline, in standard deviations of chance, signed.
    posts, baseline_posts: how many each rests on.
    """

    topic: str
    window_start: datetime
    window_s: int
    kind: str
    value: float
    baseline: float
    deviation: float
    posts: int
    baseline_posts: int
    state: AlertState
    revision: int
    update_time: datetime

    @property
    def alert_id(self) -> str:
        return f"{self.topic}/{self.window_start:%Y-%m-%dT%H:%M:%SZ}/{self.kind}"


class TopicPartition(NamedTuple):
    topic: str
    partition: int


@value
class Record:
    """One record as read from Kafka. `topic` is the logical name, without the deployment's prefix."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int = 0


@value
class Output:
    """One record to write. Without `partition` Kafka's default partitioner places it by key."""

    topic: str
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None


@value
class Result:
    """What a step made of its records.

    outputs: written and acknowledged before anything is committed.
    finished: per partition, the offset of the next record to read after a restart.
    posts: how many posts were handled, for the throughput shown to operators.
    """

    outputs: Sequence[Output] = ()
    finished: Mapping[TopicPartition, int] = field(default_factory=dict)
    posts: int = 0


Step = Callable[[Sequence[Record], float], Result]
"""(records, now in seconds since the epoch) -> Result."""
