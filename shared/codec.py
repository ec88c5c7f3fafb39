"""Messages <-> bytes; the only file that imports events_pb2.

Decoding checks once, nothing downstream checks again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from protos.crowdtone.v1 import events_pb2 as pb
from shared import cloudevents, topics
from shared.errors import InvalidMessage
from shared.messages import (
    Alert,
    Answer,
    EmbeddingBatch,
    EmbeddingEntry,
    Media,
    Modality,
    Output,
    Post,
    PostSentiment,
    Record,
)

MAX_DIMENSION = 16_384


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time.astimezone(UTC))
    return stamp


def _datetime(stamp: Timestamp, what: str) -> datetime:
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except ValueError as error:
        raise InvalidMessage(f"{what} is not a time: {error}") from error


def _modality(number: int) -> Modality:
    try:
        return Modality(number)
    except ValueError as error:
        raise InvalidMessage(f"unknown modality {number}") from error


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
    if not message.post_id or not message.platform:
        raise InvalidMessage("post without post_id or platform")
    if "\0" in message.post_id + message.platform + message.language + "".join(message.topics):
        raise InvalidMessage("post with NUL in its post_id, platform, language or topics")
    if not message.HasField("event_time"):
        raise InvalidMessage("post without event_time")
    if message.version < 0:
        raise InvalidMessage(f"post of version {message.version}")
    expected = frozenset(_modality(number) for number in message.expected)
    if Modality.TEXT not in expected:
        raise InvalidMessage("post does not expect TEXT, so it might never be answered")
    return Post(
        post_id=message.post_id,
        platform=message.platform,
        event_time=_datetime(message.event_time, "event_time"),
        ingest_time=_datetime(message.ingest_time, "ingest_time"),
        language=message.language or "und",
        text=message.text,
        media=tuple(
            Media(
                _modality(media.kind),
                media.sha256,
                media.mime_type,
                media.size_bytes,
                media.source_url,
                media.absent_reason,
            )
            for media in message.media
        ),
        topics=tuple(message.topics),
        expected=expected,
        author_hash=message.author_hash,
        url=message.url,
        traceparent=message.traceparent,
        deleted=message.deleted,
        version=message.version,
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


def decode_post(value: bytes) -> Post:
    """Raises InvalidMessage."""
    try:
        return post_from_proto(pb.Post.FromString(value))
    except DecodeError as error:
        raise InvalidMessage(f"not a Post: {error}") from error


def encode_embeddings(
    batch: EmbeddingBatch, *, partition: int, service: str, id: str, time: datetime
) -> Output:
    """The record of topic `embeddings`, in the partition its posts came from.

    id: the same for the same input records, so that a replayed batch can be recognised.
    """
    rows = [entry.answer.vector for entry in batch.entries if entry.answer.vector is not None]
    matrix = np.stack(rows).astype("<f2") if rows else np.empty((0, batch.dimension), "<f2")
    if matrix.shape != (len(rows), batch.dimension):
        raise ValueError(f"vectors of shape {matrix.shape}, not ({len(rows)}, {batch.dimension})")
    message = pb.EmbeddingBatch(
        modality=pb.Modality.ValueType(batch.modality),
        model_version=batch.model_version,
        dimension=batch.dimension,
        entries=[
            pb.EmbeddingEntry(
                post=post_to_proto(entry.post),
                absent_reason=entry.answer.absent_reason,
                transcript=entry.answer.transcript,
            )
            for entry in batch.entries
        ],
        vectors=matrix.tobytes(),
    )
    first_trace = batch.entries[0].post.traceparent if batch.entries else ""
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


def decode_embeddings(value: bytes) -> EmbeddingBatch:
    """Raises InvalidMessage when the matrix does not fit the entries or holds a number that is not finite."""
    try:
        message = pb.EmbeddingBatch.FromString(value)
    except DecodeError as error:
        raise InvalidMessage(f"not an EmbeddingBatch: {error}") from error
    if not 0 < message.dimension <= MAX_DIMENSION:
        raise InvalidMessage(f"dimension {message.dimension} is not in 1..{MAX_DIMENSION}")
    rows = sum(1 for entry in message.entries if not entry.absent_reason)
    if len(message.vectors) != rows * message.dimension * 2:
        raise InvalidMessage(
            f"{len(message.vectors)} bytes of vectors for {rows} rows of {message.dimension} float16 values"
        )
    matrix = np.frombuffer(message.vectors, "<f2").reshape(rows, message.dimension)
    if not np.isfinite(matrix).all():
        raise InvalidMessage("vectors hold NaN or infinity")
    entries = []
    row = 0
    for entry in message.entries:
        vector = None
        if not entry.absent_reason:
            vector = matrix[row]
            row += 1
        answer = Answer(vector, entry.absent_reason, entry.transcript)
        entries.append(EmbeddingEntry(post_from_proto(entry.post), answer))
    return EmbeddingBatch(
        _modality(message.modality), message.model_version, message.dimension, tuple(entries)
    )


def sentiment_to_proto(sentiment: PostSentiment) -> pb.PostSentiment:
    post, verdict = sentiment.post, sentiment.verdict
    negative, neutral, positive = verdict.probabilities
    return pb.PostSentiment(
        post_id=post.post_id,
        revision=sentiment.revision,
        event_time=_timestamp(post.event_time),
        platform=post.platform,
        language=post.language,
        topics=post.topics,
        label=pb.Label.ValueType(verdict.label),
        negative=negative,
        neutral=neutral,
        positive=positive,
        score=verdict.score,
        modalities=[
            pb.ModalityWeight(
                modality=pb.Modality.ValueType(weight.modality),
                contribution=weight.contribution,
                absent_reason=weight.absent_reason,
            )
            for weight in verdict.modalities
        ],
        emotions=[pb.Emotion(name=name, probability=p) for name, p in verdict.emotions.items()],
        model_version=verdict.model_version,
        complete=sentiment.complete,
        classified_time=_timestamp(sentiment.classified_time),
        transcript=sentiment.transcript,
        deleted=post.deleted,
    )


def encode_sentiment(sentiment: PostSentiment) -> Output:
    """The record of topic `sentiments`."""
    return Output(
        topic=topics.SENTIMENTS.name,
        key=sentiment.post.post_id.encode(),
        value=sentiment_to_proto(sentiment).SerializeToString(),
        headers=cloudevents.headers(
            id=f"{sentiment.post.post_id}/{sentiment.revision}",
            type="crowdtone.v1.PostSentiment",
            source="fusion",
            time=sentiment.classified_time,
            traceparent=cloudevents.child_span(sentiment.post.traceparent),
        ),
    )


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
