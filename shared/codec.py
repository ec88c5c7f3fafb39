"""Messages <-> bytes; the only file that imports events_pb2.

Decoding checks once, nothing downstream checks again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations
from types import MappingProxyType
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from protos.crowdtone.v1 import events_pb2 as pb
from shared import cloudevents, topics
from shared.errors import InvalidMessage
from shared.messages import (
    Alert,
    EmbeddingBatch,
    Media,
    Modality,
    Output,
    Post,
    PostSentiment,
    Record,
)

MAX_DIMENSION = 16_384

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# The times protobuf knows: the years 1 to 9999. Source: google/protobuf/timestamp.proto.
_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_799
_MODALITIES: Final = {int(modality): modality for modality in Modality}
# Whatever a post may expect, as post_to_proto writes it: one object for all posts that expect the same.
_EXPECTED: Final = {
    some: frozenset(map(Modality, some))
    for size in range(len(Modality) + 1)
    for some in combinations(sorted(_MODALITIES), size)
}
_TEXT: Final = Modality.TEXT
_FLOAT16_EXPONENT: Final = 0x7C00  # all its bits are set in infinity and NaN, and in nothing else


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    _set(stamp, time)
    return stamp


def _set(stamp: Timestamp, time: datetime) -> None:
    since = time - _EPOCH
    stamp.seconds = since.days * 86_400 + since.seconds
    stamp.nanos = since.microseconds * 1_000


def _datetime(stamp: Timestamp, what: str) -> datetime:
    seconds, nanos = stamp.seconds, stamp.nanos
    if not (_FIRST_S <= seconds <= _LAST_S and 0 <= nanos < 1_000_000_000):
        raise InvalidMessage(f"{what} is not a time: {seconds} s and {nanos} ns")
    if not seconds and not nanos:
        return _EPOCH
    return _EPOCH + timedelta(0, seconds, nanos // 1_000)


def _modality(number: int) -> Modality:
    modality = _MODALITIES.get(number)
    if modality is None:
        raise InvalidMessage(f"unknown modality {number}")
    return modality


def post_to_proto(post: Post) -> pb.Post:
    return pb.Post(
        post_id=post.post_id,
        platform=post.platform,
        event_time=_timestamp(post.event_time),
        ingest_time=_timestamp(post.ingest_time),
        language=post.language,
        text=post.text,
        media=[
            pb.Media(
                kind=pb.Modality.ValueType(media.kind),
                sha256=media.sha256,
                mime_type=media.mime_type,
                size_bytes=media.size_bytes,
                source_url=media.source_url,
                absent_reason=media.absent_reason,
            )
            for media in post.media
        ],
        topics=post.topics,
        expected=[pb.Modality.ValueType(modality) for modality in sorted(post.expected)],
        author_hash=post.author_hash,
        url=post.url,
        traceparent=post.traceparent,
        deleted=post.deleted,
        version=post.version,
    )


def post_from_proto(message: pb.Post) -> Post:
    """Raises InvalidMessage where a field the rest relies on is missing or not what it should be."""
    post_id, platform, language = message.post_id, message.platform, message.language
    matched = message.topics[:]  # a slice is a list at once: half the time
    if not post_id or not platform:
        raise InvalidMessage("post without post_id or platform")
    if "\0" in f"{post_id}{platform}{language}{''.join(matched)}":
        raise InvalidMessage("post with NUL in its post_id, platform, language or topics")
    event_time = _datetime(message.event_time, "event_time")
    if event_time is _EPOCH and not message.HasField("event_time"):
        raise InvalidMessage("post without event_time")
    version = message.version
    if version < 0:
        raise InvalidMessage(f"post of version {version}")
    numbers = tuple(message.expected[:])
    expected = _EXPECTED.get(numbers)
    if expected is None:
        expected = frozenset(map(_modality, numbers))
    if _TEXT not in expected:
        raise InvalidMessage("post does not expect TEXT, so it might never be answered")
    media = message.media
    return Post(
        post_id,
        platform,
        event_time,
        _datetime(message.ingest_time, "ingest_time"),
        language or "und",
        message.text,
        tuple(map(_media, media)) if media else (),
        tuple(matched),
        expected,
        message.author_hash,
        message.url,
        message.traceparent,
        message.deleted,
        version,
    )


def _media(message: pb.Media) -> Media:
    return Media(
        _modality(message.kind),
        message.sha256,
        message.mime_type,
        message.size_bytes,
        message.source_url,
        message.absent_reason,
    )


def encode_post(post: Post) -> Output:
    """The record of topic `posts`."""
    return Output(
        topic=topics.POSTS.name,
        key=post.post_id.encode(),
        value=post_to_proto(post).SerializeToString(),
        headers=cloudevents.headers(
            id=f"{post.post_id}{_form(post)}",
            type="crowdtone.v1.Post",
            source="ingest",
            time=post.ingest_time,
            traceparent=post.traceparent,
        ),
    )


def _form(post: Post) -> str:
    """What tells the forms of one post apart; "" for the first."""
    return "/deleted" if post.deleted else f"/{post.version}" if post.version else ""


def decode_post(value: bytes, scratch: pb.Post | None = None) -> Post:
    """Raises InvalidMessage.

    scratch: a message to read into instead of a new one: see `sentiment_to_proto`.
    """
    message = pb.Post() if scratch is None else scratch
    try:
        message.ParseFromString(value)
    except DecodeError as error:
        raise InvalidMessage(f"not a Post: {error}") from error
    return post_from_proto(message)


def encode_embeddings(
    batch: EmbeddingBatch, *, partition: int, service: str, id: str, time: datetime
) -> Output:
    """The record of topic `embeddings`, in the partition its posts came from.

    id: the same for the same input records, so that a replayed batch can be recognised.
    """
    message = pb.EmbeddingBatch(
        modality=pb.Modality.ValueType(batch.modality),
        model_version=batch.model_version,
        dimension=batch.dimension,
        entries=[
            pb.EmbeddingEntry(
                post=wire or post_to_proto(post).SerializeToString(),
                absent_reason=absent_reason,
                transcript=transcript,
            )
            for post, absent_reason, transcript, wire in zip(
                batch.posts, batch.absent_reasons, batch.transcripts, batch.wires, strict=True
            )
        ],
        vectors=batch.vectors.astype("<f2", copy=False).tobytes(),
    )
    first_trace = batch.posts[0].traceparent if batch.posts else ""
    return Output(
        topic=topics.EMBEDDINGS.name,
        key=None,
        value=message.SerializeToString(),
        partition=partition,
        headers=cloudevents.headers(
            id=id,
            type="crowdtone.v1.EmbeddingBatch",
            source=service,
            time=time,
            traceparent=cloudevents.child_span(first_trace),
        ),
    )


def decode_embeddings(value: bytes, known: Mapping[bytes, Post] = MappingProxyType({})) -> EmbeddingBatch:
    """Raises InvalidMessage when the matrix does not fit the entries or holds a number that is not finite.

    known: posts decoded before, by their bytes: each comes with every modality, and is parsed and checked
    once.
    """
    try:
        message = pb.EmbeddingBatch.FromString(value)
    except DecodeError as error:
        raise InvalidMessage(f"not an EmbeddingBatch: {error}") from error
    modality, dimension = _modality(message.modality), message.dimension
    if not 0 < dimension <= MAX_DIMENSION:
        raise InvalidMessage(f"dimension {dimension} is not in 1..{MAX_DIMENSION}")
    answered = list(message.entries)
    absent_reasons = [entry.absent_reason for entry in answered]
    rows = absent_reasons.count("")
    vectors = message.vectors
    if len(vectors) != rows * dimension * 2:
        raise InvalidMessage(f"{len(vectors)} bytes of vectors for {rows} rows of {dimension} float16 values")
    bits = np.frombuffer(vectors, "<u2")
    if bits.size and (bits & _FLOAT16_EXPONENT).max() == _FLOAT16_EXPONENT:
        raise InvalidMessage("vectors hold NaN or infinity")
    scratch = pb.Post()
    wires = [entry.post for entry in answered]
    return EmbeddingBatch(
        modality,
        message.model_version,
        dimension,
        [known.get(wire) or decode_post(wire, scratch) for wire in wires],
        absent_reasons,
        [entry.transcript for entry in answered],
        bits.view("<f2").reshape(rows, dimension),
        wires,
    )


def encode_sentiments(sentiments: Iterable[PostSentiment]) -> list[Output]:
    """The records of topic `sentiments`."""
    scratch = pb.PostSentiment()
    return [
        Output(
            topic=topics.SENTIMENTS.name,
            key=sentiment.post.post_id.encode(),
            value=sentiment_to_proto(sentiment, scratch).SerializeToString(),
            headers=cloudevents.headers(
                id=f"{sentiment.post.post_id}/{sentiment.revision}",
                type="crowdtone.v1.PostSentiment",
                source="fusion",
                time=sentiment.classified_time,
                traceparent=cloudevents.child_span(sentiment.post.traceparent),
            ),
        )
        for sentiment in sentiments
    ]


def sentiment_to_proto(sentiment: PostSentiment, scratch: pb.PostSentiment | None = None) -> pb.PostSentiment:
    """scratch: a message to write over instead of a new one.

    Each message's memory is a block or more of its own, and protobuf returns all free memory of the process
    to the system with every 10,000th block it frees: a step of a thousand posts then asked for it all again.
    """
    post, verdict = sentiment.post, sentiment.verdict
    message = pb.PostSentiment() if scratch is None else scratch
    message.Clear()
    message.post_id = post.post_id
    message.revision = sentiment.revision
    message.platform = post.platform
    message.language = post.language
    message.topics.extend(post.topics)
    message.label = pb.Label.ValueType(verdict.label)
    message.negative, message.neutral, message.positive = verdict.probabilities
    message.score = verdict.score
    message.model_version = verdict.model_version
    message.complete = sentiment.complete
    message.transcript = sentiment.transcript
    message.deleted = post.deleted
    _set(message.event_time, post.event_time)
    _set(message.classified_time, sentiment.classified_time)
    # Set one by one: by keyword it takes twice as long.
    add_weight, add_emotion = message.modalities.add, message.emotions.add
    for weight in verdict.modalities:
        one = add_weight()
        one.modality = pb.Modality.ValueType(weight.modality)
        one.contribution = weight.contribution
        one.absent_reason = weight.absent_reason
    for name, probability in verdict.emotions.items():
        emotion = add_emotion()
        emotion.name = name
        emotion.probability = probability
    return message


def decode_sentiment(value: bytes) -> pb.PostSentiment:
    """The message itself: its readers show or count it and change nothing. Raises InvalidMessage."""
    try:
        message = pb.PostSentiment.FromString(value)
    except DecodeError as error:
        raise InvalidMessage(f"not a PostSentiment: {error}") from error
    if not message.post_id or not message.HasField("event_time"):
        raise InvalidMessage("sentiment without post_id or event_time")
    _datetime(message.event_time, "event_time")
    if message.label not in pb.Label.values() or message.label == pb.LABEL_UNSPECIFIED:
        raise InvalidMessage(f"unknown label {message.label}")
    return message


def encode_alert(alert: Alert) -> Output:
    """The record of topic `alerts`. The same revision has the same event id, however often it is sent."""
    message = pb.Alert(
        alert_id=alert.alert_id,
        topic=alert.topic,
        window_start=_timestamp(alert.window_start),
        window_s=alert.window_s,
        kind=alert.kind,
        value=alert.value,
        baseline=alert.baseline,
        state=pb.AlertState.ValueType(alert.state),
        revision=alert.revision,
        deviation=alert.deviation,
        posts=alert.posts,
        baseline_posts=alert.baseline_posts,
        update_time=_timestamp(alert.update_time),
    )
    return Output(
        topic=topics.ALERTS.name,
        key=alert.topic.encode(),
        value=message.SerializeToString(),
        headers=cloudevents.headers(
            id=f"{alert.alert_id}/{alert.revision}",
            type="crowdtone.v1.Alert",
            source="alerts",
            time=alert.update_time,
            traceparent=cloudevents.new_trace(),
        ),
    )


def dead_letter(record: Record, *, service: str, reason: str, time: datetime) -> Output:
    """The original bytes, untouched, with where they were and why they could not be used.

    The headers they came with stay; bytes without CloudEvents headers, as the lines of a feed, get them.
    """
    place: Mapping[str, str] = {
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "service": service,
        "reason": reason,
    }
    kept: Sequence[tuple[str, bytes]] = [header for header in record.headers if header[0] not in place]
    if not any(name == "ce_id" for name, _ in kept):
        content = hashlib.sha256(record.value).hexdigest()[:16]
        kept = (
            *kept,
            *cloudevents.headers(
                id=f"{record.topic}/{record.partition}/{record.offset}/{content}",
                type="crowdtone.v1.DeadLetter",
                source=service,
                time=time,
                traceparent=cloudevents.new_trace(),
                content_type="application/octet-stream",
            ),
        )
    return Output(
        topic=topics.dead_letters(record.topic),
        key=record.key,
        value=record.value,
        # A reason may quote what it complains of, broken characters included.
        headers=(*kept, *((name, value.encode(errors="backslashreplace")) for name, value in place.items())),
    )
