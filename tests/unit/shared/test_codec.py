"""Messages survive the wire exactly, and whatever else is on the wire is refused with one kind of error."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from protos.crowdtone.v1 import events_pb2 as pb
from shared import codec
from shared.errors import InvalidMessage
from shared.messages import (
    Answer,
    EmbeddingBatch,
    EmbeddingEntry,
    Label,
    Media,
    Modality,
    ModalityWeight,
    Output,
    Post,
    PostSentiment,
    Record,
    Verdict,
)
from shared.testing import NOON, post

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))
media = st.builds(
    Media,
    st.sampled_from(Modality),
    words,
    mime_type=words,
    size_bytes=st.integers(0, 2**62),
    source_url=words,
    absent_reason=words,
)
posts = st.builds(
    Post,
    post_id=ids,
    platform=ids,
    event_time=times,
    ingest_time=times,
    language=ids,
    text=words,
    media=st.lists(media, max_size=3).map(tuple),
    topics=st.lists(ids, max_size=3).map(tuple),
    expected=st.frozensets(st.sampled_from(Modality)).map(lambda some: some | {Modality.TEXT}),
    author_hash=words,
    url=words,
    traceparent=words,
)


@st.composite
def batches(draw: Callable[[Any], Any]) -> EmbeddingBatch:
    dimension = draw(st.integers(1, 9))
    numbers = st.floats(width=16, allow_nan=False, allow_infinity=False)
    vector = stnp.arrays(np.float16, dimension, elements=numbers).map(lambda v: Answer(v, "", ""))
    heard = st.tuples(vector, words).map(lambda pair: Answer(pair[0].vector, "", pair[1]))
    absent = words.filter(bool).map(lambda reason: Answer(None, reason))
    entries = draw(st.lists(st.builds(EmbeddingEntry, posts, vector | heard | absent), max_size=6))
    return EmbeddingBatch.of(draw(st.sampled_from(Modality)), draw(words), dimension, tuple(entries))


def sentiment(one: Post) -> PostSentiment:
    weights = (ModalityWeight(Modality.TEXT, 0.25), ModalityWeight(Modality.IMAGE, 0.0, "broken"))
    verdict = Verdict(Label.POSITIVE, (0.125, 0.25, 0.625), 0.5, weights, {"joy": 0.75}, "m@1")
    return PostSentiment(one, 3, verdict, False, NOON, "heard")


def embedded(batch: EmbeddingBatch) -> Output:
    return codec.encode_embeddings(
        batch, partition=3, service="text_encoder", id="posts/3/1-2/text", time=NOON
    )


@given(posts)
def test_a_post_comes_back_as_it_was(one: Post) -> None:
    assert codec.decode_post(codec.encode_post(one).value) == one


@given(batches())
def test_a_batch_comes_back_as_it_was(batch: EmbeddingBatch) -> None:
    output = embedded(batch)
    assert output.partition == 3, "a batch stays in the partition of its posts"
    back = codec.decode_embeddings(output.value)
    assert (back.modality, back.model_version, back.dimension) == (
        batch.modality,
        batch.model_version,
        batch.dimension,
    )
    assert [entry.post for entry in back.entries] == [entry.post for entry in batch.entries]
    for ours, theirs in zip(back.entries, batch.entries, strict=True):
        assert (ours.answer.absent_reason, ours.answer.transcript) == (
            theirs.answer.absent_reason,
            theirs.answer.transcript,
        )
        if theirs.answer.vector is None:
            assert ours.answer.vector is None
        else:
            assert ours.answer.vector is not None
            assert ours.answer.vector.tobytes() == theirs.answer.vector.tobytes()


def test_a_sentiment_says_what_the_verdict_says() -> None:
    (output,) = codec.encode_sentiments([sentiment(post("x:1", topics=("a",)))])
    message = codec.decode_sentiment(output.value)
    assert output.key == b"x:1"
    assert (message.post_id, message.revision, message.label) == ("x:1", 3, pb.LABEL_POSITIVE)
    assert (message.negative, message.neutral, message.positive, message.score) == (0.125, 0.25, 0.625, 0.5)
    assert [(w.modality, w.contribution, w.absent_reason) for w in message.modalities] == [
        (pb.MODALITY_TEXT, 0.25, ""),
        (pb.MODALITY_IMAGE, 0.0, "broken"),
    ]
    assert not message.complete
    assert message.transcript == "heard"
    assert dict(output.headers)["ce_id"] == b"x:1/3"


@given(st.lists(st.tuples(posts, st.booleans()), max_size=5))
def test_sentiments_written_together_say_what_each_says_alone(some: list[tuple[Post, bool]]) -> None:
    bare = Verdict(Label.UNSCORED, (0.0, 0.0, 0.0), 0.0, (), {}, "")
    every = [sentiment(one) if scored else PostSentiment(one, 1, bare, True, NOON) for one, scored in some]
    together = [output.value for output in codec.encode_sentiments(every)]
    assert together == [codec.sentiment_to_proto(one).SerializeToString() for one in every]


def test_the_first_second_of_1970_is_a_time_like_any_other() -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    (output,) = codec.encode_sentiments([sentiment(post("x:1", event_time=epoch))])
    assert codec.decode_sentiment(output.value).event_time.ToDatetime(UTC) == epoch
    assert codec.decode_post(codec.encode_post(post("x:1", event_time=epoch)).value).event_time == epoch


DECODERS: list[Callable[[bytes], object]] = [
    codec.decode_post,
    codec.decode_embeddings,
    codec.decode_sentiment,
]


@pytest.mark.parametrize("decode", DECODERS)
@given(junk=st.binary(max_size=200))
def test_junk_is_refused(decode: Callable[[bytes], object], junk: bytes) -> None:
    try:
        decode(junk)
    except InvalidMessage:
        return


@pytest.mark.parametrize("decode", DECODERS)
@given(data=st.data())
def test_a_damaged_message_is_refused_or_whole(
    decode: Callable[[bytes], object], data: st.DataObject
) -> None:
    """A byte changed, cut or put in: InvalidMessage, or a message that can be written again."""
    one = post("x:1", topics=("a",), media=(Media(Modality.IMAGE, "ab"),))
    answers = (Answer(np.ones(3, np.float16), "", "words"), Answer(None, "broken"))
    batch = EmbeddingBatch.of(Modality.TEXT, "m", 3, tuple(EmbeddingEntry(one, answer) for answer in answers))
    outputs = (codec.encode_post(one), embedded(batch), *codec.encode_sentiments([sentiment(one)]))
    whole = outputs[DECODERS.index(decode)].value
    at = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(at, min(len(whole), at + 3)))
    damaged = whole[:at] + data.draw(st.binary(max_size=3)) + whole[end:]
    try:
        found = decode(damaged)
    except InvalidMessage:
        return
    if isinstance(found, Post):
        codec.encode_post(found)
    if isinstance(found, EmbeddingBatch):
        embedded(found)


def valid() -> pb.Post:
    return codec.post_to_proto(post("x:1"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.ClearField("post_id"), "without post_id"),
        (lambda m: m.ClearField("platform"), "without post_id or platform"),
        (lambda m: m.ClearField("event_time"), "without event_time"),
        (lambda m: m.ClearField("expected"), "TEXT"),
        (lambda m: m.expected.append(99), "unknown modality 99"),
        (lambda m: m.expected.append(0), "unknown modality 0"),
        (lambda m: m.media.add(kind=77), "unknown modality 77"),
        (lambda m: setattr(m.event_time, "seconds", 2**62), "event_time is not a time"),
        (lambda m: setattr(m.event_time, "seconds", -(2**62)), "event_time is not a time"),
        (lambda m: setattr(m.event_time, "nanos", -5), "event_time is not a time"),
        (lambda m: setattr(m.ingest_time, "nanos", 2_000_000_000), "ingest_time is not a time"),
        (lambda m: setattr(m, "post_id", "a\0b"), "NUL"),
    ],
)
def test_a_post_without_what_others_need(change: Callable[[pb.Post], object], reason: str) -> None:
    message = valid()
    change(message)
    with pytest.raises(InvalidMessage, match=reason):
        codec.decode_post(message.SerializeToString())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.ClearField("post_id"), "without post_id"),
        (lambda m: m.ClearField("event_time"), "without post_id or event_time"),
        (lambda m: setattr(m.event_time, "seconds", 2**62), "event_time is not a time"),
        (lambda m: m.ClearField("label"), "unknown label 0"),
        (lambda m: setattr(m, "label", 9), "unknown label 9"),
    ],
)
def test_a_sentiment_nobody_can_place(change: Callable[[pb.PostSentiment], object], reason: str) -> None:
    message = codec.sentiment_to_proto(sentiment(post("x:1")))
    change(message)
    with pytest.raises(InvalidMessage, match=reason):
        codec.decode_sentiment(message.SerializeToString())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dimension": 0}, "dimension 0"),
        ({"dimension": 20_000}, "dimension 20000"),
        ({"vectors": b"12345"}, "5 bytes of vectors for 1 rows"),
        ({"vectors": np.array([1, math.nan], "<f2").tobytes()}, "NaN or infinity"),
        ({"vectors": np.array([1, math.inf], "<f2").tobytes()}, "NaN or infinity"),
        ({"modality": 0}, "unknown modality"),
        ({"entries": [pb.EmbeddingEntry()]}, "without post_id"),
        ({"entries": [pb.EmbeddingEntry(post=b"junk")]}, "not a Post"),
    ],
)
def test_a_batch_that_does_not_fit_itself(changes: dict[str, Any], reason: str) -> None:
    values: dict[str, Any] = {
        "modality": pb.MODALITY_TEXT,
        "dimension": 2,
        "entries": [pb.EmbeddingEntry(post=valid().SerializeToString())],
        "vectors": np.array([1, 2], "<f2").tobytes(),
    }
    with pytest.raises(InvalidMessage, match=reason):
        codec.decode_embeddings(pb.EmbeddingBatch(**(values | changes)).SerializeToString())


def test_a_post_known_by_its_bytes_is_not_parsed_again() -> None:
    entries = (
        EmbeddingEntry(post("x:1"), Answer(None, "broken")),
        EmbeddingEntry(post("x:2"), Answer(None, "too")),
    )
    value = embedded(EmbeddingBatch.of(Modality.TEXT, "m", 3, entries)).value
    first, second = codec.decode_embeddings(value).entries
    again = codec.decode_embeddings(value, {first.wire: first.post}).entries
    assert again[0].post is first.post
    assert again[1].post is not second.post
    assert [entry.post for entry in again] == [entry.post for entry in entries]


def test_a_post_is_passed_on_in_the_bytes_it_came_in() -> None:
    message = codec.post_to_proto(post("x:1"))
    newer = (
        message.SerializeToString() + b"\xfa\x07\x03new"
    )  # field 127: of a version of this message we do not know
    entry = EmbeddingEntry(codec.decode_post(newer), Answer(None, "broken"), newer)
    (found,) = codec.decode_embeddings(
        embedded(EmbeddingBatch.of(Modality.TEXT, "m", 3, (entry,))).value
    ).entries
    assert found.wire == newer
    assert found.post == post("x:1")


def test_a_vector_of_another_length_is_our_own_fault() -> None:
    entry = EmbeddingEntry(post("x:1"), Answer(np.ones(3, np.float16)))
    with pytest.raises(ValueError, match="shape"):
        embedded(EmbeddingBatch.of(Modality.TEXT, "m", 4, (entry,)))


@given(st.binary(max_size=50), st.none() | st.binary(max_size=5), st.text(max_size=30))
def test_a_dead_letter_has_the_original_bytes(value: bytes, key: bytes | None, reason: str) -> None:
    """Also for a reason that quotes half a surrogate pair."""
    record = Record("posts", 2, 7, key, value, (("ce_id", b"1"), ("reason", b"old")))
    output = codec.dead_letter(record, service="fusion", reason=reason, time=NOON)
    assert (output.topic, output.key, output.value) == ("posts.dlq", key, value)
    headers = dict(output.headers)
    assert len(headers) == len(output.headers), "no header twice"
    assert headers["ce_id"] == b"1"
    assert (headers["topic"], headers["partition"], headers["offset"]) == (b"posts", b"2", b"7")
    assert headers["service"] == b"fusion"
    assert headers["reason"].decode() == reason.encode(errors="backslashreplace").decode()


def test_bytes_that_never_were_an_event_become_one_as_a_dead_letter() -> None:
    record = Record("feed", 0, 3, None, b"{broken")
    headers = dict(codec.dead_letter(record, service="ingest", reason="no JSON", time=NOON).headers)
    assert headers["ce_id"].startswith(b"feed/0/3/")
    assert headers["ce_type"] == b"crowdtone.v1.DeadLetter"
    assert headers["ce_source"] == b"/crowdtone/ingest"
    assert headers["content-type"] == b"application/octet-stream"
    assert headers["ce_time"] == b"2026-06-13T12:00:00Z"
    assert headers["traceparent"].startswith(b"00-")
