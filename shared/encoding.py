"""What the three encoder services share: the Encoder protocol and the step that turns posts into embeddings.

Pure but for the media store it reads: no Kafka, no model.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
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
    Vector,
)

log = logging.getLogger(__name__)
# A batch repeats its posts, and a record has a size limit: the other half is for vectors and transcripts.
MAX_POSTS_BYTES: Final = topics.MAX_MESSAGE_BYTES // 2

TURNS: Final = 2
"""Of an encoder's loop at once: while one is computed, the next is read and the one before is written."""

MEDIA_BYTES: Final = 64 * 1024 * 1024
"""Media in memory at once, but for one post more: what a step holds does not grow with what a poll gives."""

MEDIA_RETRY_S: Final = 30.0
"""How long a media store that fails is asked again before the process ends with the batch unanswered."""

CANARY_S: Final = 60.0
"""How often a model without work is asked whether it still works."""

NO_SPEECH: Final = "no speech heard"

Answers = Mapping[Modality, Answer]
"""What an encoder says of one post: an answer for each of its slots."""

Item = TypeVar("Item")
Encoded = TypeVar("Encoded")


@dataclass(frozen=True, slots=True)
class Input:
    """What a model sees of one post: its words, and the bytes of its pictures or sounds (never a path)."""

    text: str = ""
    language: str = "und"
    media: tuple[bytes, ...] = ()


class Encoder(Protocol):
    """A model behind a service; as many as TURNS threads may be in it.

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


class Cache(Protocol):
    """What was answered before, by content; `shared.embedding_cache.EmbeddingCache` knows. Never raises, and
    any threads may be in it."""

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, Answers]: ...
    def put(self, answers: Mapping[bytes, Answers]) -> None: ...


class Checks(Protocol):
    """Whether the model works; `shared.canary.Canary` knows."""

    def check(self) -> None: ...


def encode_step(
    service: str,
    encoder: Encoder,
    media: MediaStore,
    *,
    canary: Checks,
    cache: Cache | None = None,
    canary_s: float = CANARY_S,
    media_bytes: int = MEDIA_BYTES,
) -> Step:
    """An encoder service's step: records of `posts` -> one `embeddings` record per partition and slot. TURNS
    threads may be in it.

    What is no post is a dead letter. A post that the model fails on is answered absent, so that nobody waits
    for it, and is a dead letter too, to be sent back once the model can read it.

    canary: asked when idle for `canary_s`, and when nothing of a batch could be encoded. What it raises ends
    the process with that batch unanswered; when it raises nothing the inputs were bad, and each is absent.
    cache: asked before the model and the media store are; the canary goes past it. With one, what a turn is
    answering is not asked again by another.
    media_bytes: of media held at once; the posts of a step are encoded in as many goes as that takes.
    """
    checked_s = 0.0
    under_way: dict[bytes, Future[Answers]] = {}

    def encode(posts: Sequence[Post]) -> list[Answers]:
        return _encoded(encoder, media, posts, canary, media_bytes)

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
        answers = iter(
            encode(flat)
            if cache is None
            else _once(service, encoder.slots[0], flat, encode, cache, under_way)
        )
        for partition, batch in batches.items():
            for part in _parts(batch):
                rows = [(post, next(answers), record.value) for record, post in part]
                outputs += [
                    codec.dead_letter(record, service=service, reason=reason, time=time)
                    for (record, _), (_, answer, _) in zip(part, rows, strict=True)
                    if (reason := _poison(answer))
                ]
                first, last = part[0][0], part[-1][0]
                for slot in encoder.slots:
                    entries = tuple(EmbeddingEntry(post, answer[slot], wire) for post, answer, wire in rows)
                    metrics.ABSENT.labels(service).inc(sum(entry.answer.vector is None for entry in entries))
                    outputs.append(
                        codec.encode_embeddings(
                            EmbeddingBatch.of(slot, encoder.model_version, encoder.dimensions[slot], entries),
                            partition=partition,
                            service=service,
                            id=f"{first.topic}/{partition}/{first.offset}-{last.offset}/{slot.name.lower()}",
                            time=time,
                        )
                    )
        return Result(outputs, finished, posts=len(flat))

    return step


def _poison(answers: Answers) -> str:
    """What the model failed on, by slot; empty where it did not."""
    return "; ".join(
        f"{slot.name.lower()}: {answer.absent_reason}" for slot, answer in answers.items() if answer.poison
    )


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


def _once(
    service: str,
    slot: Modality,
    posts: Sequence[Post],
    encode: Callable[[Sequence[Post]], list[Answers]],
    cache: Cache,
    under_way: dict[bytes, Future[Answers]],
) -> list[Answers]:
    """One answer per post, in order; content that was answered before, or is being answered by another turn
    (`under_way`), is not encoded again.

    Raises what `encode` raises, in this turn or in the one waited for.
    """
    keys = [content_key(slot, post) for post in posts]
    # Nobody waits before his own are answered, so no two can wait for one another.
    own: dict[bytes, Future[Answers]] = {}
    others: dict[bytes, Future[Answers]] = {}
    for key in {key for key in keys if key is not None}:
        future: Future[Answers] = Future()
        first = under_way.setdefault(key, future)
        (own if first is future else others)[key] = first
    try:
        known = dict(cache.get(list(own)))
        metrics.CACHED.labels(service).inc(sum(key in known or key in others for key in keys))
        indices = {key: index for index, key in reversed([*enumerate(keys)]) if key in own}
        asked = [
            index
            for index, key in enumerate(keys)
            if key is None or (indices.get(key) == index and key not in known)
        ]
        by_index = dict(zip(asked, encode([posts[index] for index in asked]), strict=True))
        fresh = {key: by_index[index] for key, index in indices.items() if key not in known}
        cache.put(fresh)
        known |= fresh
        for key, future in own.items():
            future.set_result(known[key])
    except BaseException as error:
        for future in own.values():
            future.set_exception(error)
        raise
    finally:
        for key in own:
            del under_way[key]
    known |= {key: future.result() for key, future in others.items()}
    return [by_index[index] if key is None else known[key] for index, key in enumerate(keys)]


def content_key(slot: Modality, post: Post) -> bytes | None:
    """32 bytes that name all that the encoder of this slot sees of a post; None where nothing may be kept.

    Of several pictures one may be left out because a machine was busy, so only a single one is named.
    """
    if post.deleted:
        return None
    if slot is Modality.TEXT:
        return hashlib.sha256(post.text.encode("utf-8", "surrogatepass")).digest()
    hashes = [item.sha256 for item in post.media if item.kind is slot]
    if len(hashes) != 1 or not hashes[0]:
        return None
    # A hint for the words that are heard, and nothing to a picture.
    language = post.language if slot is Modality.AUDIO else ""
    return hashlib.sha256(f"{hashes[0]} {language}".encode("utf-8", "surrogatepass")).digest()


def _encoded(
    encoder: Encoder, media: MediaStore, posts: Sequence[Post], canary: Checks, media_bytes: int
) -> list[Answers]:
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


def ahead(
    start: Callable[[Sequence[Item]], Callable[[], Sequence[Encoded]]],
    items: Sequence[Item | Exception],
    batches: Iterable[Sequence[int]],
) -> list[Encoded | Exception]:
    """The items through a device that works while we go on, batch by batch of their indices: every batch is
    started before the first is waited for, and halved around a culprit.

    start: hands a batch over, and returns what waits for its results; either may raise.
    Returns one result per item, in their order. An item that is already an exception stays one and must be
    in no batch; every other must be in exactly one.
    """

    def forward(good: Sequence[Item]) -> Sequence[Encoded]:
        return start(good)()

    started: list[tuple[Sequence[int], list[Item], Callable[[], Sequence[Encoded]] | None]] = []
    for batch in batches:
        good = [item for i in batch if not isinstance(item := items[i], Exception)]
        try:
            started.append((batch, good, start(good)))
        except Exception:
            started.append((batch, good, None))  # started again below, where the culprit is looked for
    results: list[Encoded | Exception | None] = [
        item if isinstance(item, Exception) else None for item in items
    ]
    for batch, good, wait in started:
        try:
            found: Sequence[Encoded | Exception] = wait() if wait is not None else halving(forward, good)
        except Exception:
            found = halving(forward, good)
        for i, result in zip(batch, found, strict=True):
            results[i] = result
    return [result for result in results if result is not None]


def answers(vectors: Sequence[npt.NDArray[np.floating] | Exception]) -> list[Answer]:
    """A model's vectors, all of one length, as answers; absent where there is an exception instead, or a
    number that is none."""
    rows = [vector for vector in vectors if not isinstance(vector, Exception)]
    with np.errstate(over="ignore"):  # what float16 cannot hold is answered below
        halves = np.array(rows, ndmin=2).astype(np.float16)
    told = zip(halves, np.all(np.isfinite(halves), axis=1).tolist(), strict=True)
    return [_absent(vector) if isinstance(vector, Exception) else _present(*next(told)) for vector in vectors]


def _absent(error: Exception) -> Answer:
    if isinstance(error, InvalidMessage):
        return Answer(None, str(error))
    return Answer(None, f"the model failed on it: {type(error).__name__}", poison=True)


def _present(vector: Vector, finite: bool) -> Answer:
    return Answer(vector) if finite else Answer(None, "the model gave no finite vector", poison=True)
