"""What the three encoder services share: the Encoder protocol and the step that turns posts into embeddings.

Pure but for the media store it reads: no Kafka, no model.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from shared import codec, metrics, topics
from shared.errors import InvalidMessage
from shared.media import MediaStore
from shared.messages import (
    Answer,
    EmbeddingBatch,
    EmbeddingEntry,
    Modality,
    Output,
    Post,
    Record,
    Result,
    Step,
    TopicPartition,
)

log = logging.getLogger(__name__)
# A batch repeats its posts, and a record has a size limit: the other half is for vectors and transcripts.
MAX_POSTS_BYTES: Final = topics.MAX_MESSAGE_BYTES // 2

MEDIA_BYTES: Final = 64 * 1024 * 1024
"""Media in memory at once, but for one post more: what a step holds does not grow with what a poll gives."""

MEDIA_RETRY_S: Final = 30.0
"""How long a media store that fails is asked again before the process ends with the batch unanswered."""

CANARY_S: Final = 60.0
"""How often a model without work is asked whether it still works."""

Item = TypeVar("Item")
Encoded = TypeVar("Encoded")


@dataclass(frozen=True, slots=True)
class Input:
    """What a model sees of one post: its words, and the bytes of its pictures or sounds (never a path)."""

    text: str = ""
    language: str = "und"
    media: tuple[bytes, ...] = ()


class Encoder(Protocol):
    """A model behind a service.

    slots: the modalities it answers for, the first being the one a post must expect to be sent here.
    model_version: changes whenever the vectors do.
    dimensions: length of the vector of each slot.
    """

    slots: tuple[Modality, ...]
    model_version: str
    dimensions: Mapping[Modality, int]

    def encode(self, inputs: Sequence[Input]) -> list[Mapping[Modality, Answer]]:
        """One mapping per input, an answer for every slot. Bad input is an absent answer, never an error."""
        ...


class Checks(Protocol):
    """Whether the model works; `shared.canary.Canary` knows."""

    def check(self) -> None: ...


def encode_step(
    service: str,
    encoder: Encoder,
    media: MediaStore,
    *,
    canary: Checks,
    canary_s: float = CANARY_S,
    media_bytes: int = MEDIA_BYTES,
) -> Step:
    """An encoder service's step: records of `posts` -> one `embeddings` record per partition and slot.

    canary: asked when idle for `canary_s`, and when nothing of a batch could be encoded. What it raises ends
    the process with that batch unanswered; when it raises nothing the inputs were bad, and each is absent.
    media_bytes: of media held at once; the posts of a step are encoded in as many goes as that takes.
    """
    checked_s = 0.0

    def step(records: Sequence[Record], now: float) -> Result:
        nonlocal checked_s
        time = datetime.fromtimestamp(now, UTC)
        if not checked_s:
            checked_s = now  # it was asked when it was made
        if not records and abs(now - checked_s) >= canary_s:
            canary.check()
            checked_s = now
        outputs: list[Output] = []
        batches: dict[int, list[tuple[Record, Post]]] = defaultdict(list)
        finished: dict[TopicPartition, int] = {}
        for record in records:
            finished[TopicPartition(record.topic, record.partition)] = record.offset + 1
            try:
                post = codec.decode_post(record.value)
            except InvalidMessage as error:
                outputs.append(codec.dead_letter(record, service=service, reason=str(error), time=time))
                continue
            if encoder.slots[0] in post.expected:
                batches[record.partition].append((record, post))
        # All partitions together: the device sees the largest batches there are.
        flat = [post for batch in batches.values() for _, post in batch]
        answers = iter(_answers(encoder, media, flat, canary, media_bytes))
        for partition, batch in batches.items():
            for part in _parts(batch):
                rows = [(post, next(answers), record.value) for record, post in part]
                first, last = part[0][0], part[-1][0]
                for slot in encoder.slots:
                    entries = tuple(EmbeddingEntry(post, answer[slot], wire) for post, answer, wire in rows)
                    metrics.ABSENT.labels(service).inc(sum(entry.answer.vector is None for entry in entries))
                    outputs.append(
                        codec.encode_embeddings(
                            EmbeddingBatch(slot, encoder.model_version, encoder.dimensions[slot], entries),
                            partition=partition,
                            service=service,
                            id=f"{first.topic}/{partition}/{first.offset}-{last.offset}/{slot.name.lower()}",
                            time=time,
                        )
                    )
        return Result(outputs, finished, posts=len(flat))

    return step


def _parts(batch: Sequence[tuple[Record, Post]]) -> Iterator[list[tuple[Record, Post]]]:
    """The batch cut so that the posts of each part, as they came, have at most `MAX_POSTS_BYTES`."""
    part: list[tuple[Record, Post]] = []
    size = 0
    for record, post in batch:
        if part and size + len(record.value) > MAX_POSTS_BYTES:
            yield part
            part, size = [], 0
        part.append((record, post))
        size += len(record.value)
    yield part


def _answers(
    encoder: Encoder, media: MediaStore, posts: Sequence[Post], canary: Checks, media_bytes: int
) -> list[Mapping[Modality, Answer]]:
    """One answer per post, in order; where its media cannot be read the model is not asked.

    As many posts at a time as have `media_bytes` of media. Raises what the canary raises.
    """
    answers: list[Mapping[Modality, Answer] | None] = [None] * len(posts)
    inputs: list[tuple[int, Input]] = []

    def encode() -> None:
        encoded = encoder.encode([item for _, item in inputs]) if inputs else []
        if encoded and all(answer[encoder.slots[0]].vector is None for answer in encoded):
            canary.check()
        for (index, _), answer in zip(inputs, encoded, strict=True):
            answers[index] = answer
        inputs.clear()

    held = 0
    for index, post in enumerate(posts):
        if post.deleted:
            answers[index] = {slot: Answer(None, "deleted at the source") for slot in encoder.slots}
            continue
        try:
            item = _input(encoder.slots[0], media, post, media_bytes)
        except InvalidMessage as error:
            answers[index] = {slot: Answer(None, str(error)) for slot in encoder.slots}
            continue
        size = sum(map(len, item.media))
        if held and held + size > media_bytes:
            encode()
            held = 0
        inputs.append((index, item))
        held += size
    encode()
    return [answer for answer in answers if answer is not None]


def _input(slot: Modality, media: MediaStore, post: Post, media_bytes: int) -> Input:
    """Raises InvalidMessage when the post has media of this slot and none of it can be read, Unavailable when
    the store stays away.

    What comes after the first `media_bytes` of a post's media is left out.
    """
    if slot is Modality.TEXT:
        return Input(post.text, post.language)
    contents: list[bytes] = []
    reasons: list[str] = []
    for item in post.media:
        if item.kind is not slot:
            continue
        if sum(map(len, contents)) >= media_bytes:
            break
        try:
            if not item.sha256:
                raise InvalidMessage(item.absent_reason or "media was not fetched")
            contents.append(media.get_with_retries(item.sha256, MEDIA_RETRY_S))
        except InvalidMessage as error:
            reasons.append(str(error))
    if not contents:
        raise InvalidMessage("; ".join(reasons) or f"no {slot.name.lower()} in the post")
    return Input(post.text, post.language, tuple(contents))


def halving(
    forward: Callable[[Sequence[Item]], Sequence[Encoded]], items: Sequence[Item]
) -> list[Encoded | Exception]:
    """`forward(items)`, halved on failure until each culprit is alone.

    Returns one result or exception per item, in order. A device out of memory is met the same way. Whether it
    is the items or the model that fails is not known here: the canary tells.
    """
    if not items:
        return []
    try:
        return list(forward(items))
    except Exception as error:
        # Whatever a model raises on one input, its neighbours must be scored.
        if len(items) == 1:
            log.warning("one input cannot be encoded: %s", error)
            return [error]
        middle = len(items) // 2
        return halving(forward, items[:middle]) + halving(forward, items[middle:])


def in_batches(
    forward: Callable[[Sequence[Item]], Sequence[Encoded]],
    items: Sequence[Item | Exception],
    batches: Iterable[Sequence[int]],
) -> list[Encoded | Exception]:
    """`forward` over the items, batch by batch of their indices, halved around a culprit.

    Returns one result per item, in their order. An item that is already an exception stays one and must be
    in no batch; every other must be in exactly one.
    """
    results: list[Encoded | Exception | None] = [
        item if isinstance(item, Exception) else None for item in items
    ]
    for batch in batches:
        good = [item for i in batch if not isinstance(item := items[i], Exception)]
        for i, result in zip(batch, halving(forward, good), strict=True):
            results[i] = result
    return [result for result in results if result is not None]


def answer(vector: npt.NDArray[np.floating] | Exception) -> Answer:
    """A model's vector as an answer; absent where there is an exception instead, or a number that is none."""
    if isinstance(vector, InvalidMessage):
        return Answer(None, str(vector))
    if isinstance(vector, Exception):
        return Answer(None, f"the model failed on it: {type(vector).__name__}")
    with np.errstate(over="ignore"):  # what float16 cannot hold is answered below
        half = vector.astype(np.float16)
    if not np.isfinite(half).all():
        return Answer(None, "the model gave no finite vector")
    return Answer(half)
