"""Every place where a stranger's bytes come in: what it may raise on them, and examples to start from.

A target takes any bytes and returns; whatever it raises is a bug. `make fuzz` runs them under atheris, the
property tests in tests/unit/test_hostile_bytes.py with hypothesis.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image
from sentencepiece import SentencePieceProcessor

from protos.crowdtone.v1 import api_pb2 as api
from services.api import pages, requests
from services.api.errors import ApiError
from services.audio_encoder import sounds
from services.image_encoder import pictures
from services.ingest import addresses, intake, jetstream, jsonl, sniffing
from services.ingest.attachments import Attachments
from services.ingest.draft import Parse
from services.ingest.feeds import record
from services.ingest.matching import Matcher
from services.ingest.settings import IngestSettings
from shared import codec, decoding
from shared.e5 import by_pieces
from shared.e5_weights import pieces_model
from shared.errors import InvalidMessage
from shared.media import MediaStore
from shared.messages import (
    Answer,
    EmbeddingBatch,
    EmbeddingEntry,
    Label,
    Media,
    Modality,
    ModalityWeight,
    PostSentiment,
    Verdict,
)
from shared.settings import MediaSettings
from shared.tables import Grain
from shared.testing import NOON, post

Target = Callable[[bytes], None]
DEMO = Path(__file__).parents[2] / "demo"


class _NothingSeen:
    def which(self, post_ids: Sequence[str]) -> list[bool]:
        return [False] * len(post_ids)

    def mark(self, post_ids: Sequence[str]) -> None:
        pass


def posts(content: bytes) -> None:
    """What is a post stays the same one."""
    try:
        found = codec.decode_post(content)
    except InvalidMessage:
        return
    assert codec.decode_post(codec.encode_post(found).value) == found


def embeddings(content: bytes) -> None:
    try:
        found = codec.decode_embeddings(content)
    except InvalidMessage:
        return
    output = codec.encode_embeddings(found, partition=0, service="fuzz", id="1", time=NOON)
    again = codec.decode_embeddings(output.value)
    assert [entry.post for entry in again.entries] == [entry.post for entry in found.entries]
    for one, other in zip(again.entries, found.entries, strict=True):
        assert one.answer.absent_reason == other.answer.absent_reason
        if one.answer.vector is not None and other.answer.vector is not None:
            np.testing.assert_array_equal(one.answer.vector, other.answer.vector)


def sentiments(content: bytes) -> None:
    with contextlib.suppress(InvalidMessage):
        codec.decode_sentiment(content)


def _lines(parse: Parse) -> Target:
    matcher = Matcher({"lumio": ["lumio one", "#lumioone"], "metro": ["地铁", "aurora line"]})
    step = intake.Intake(
        parse,
        lambda now: matcher,
        # No folder, so nothing is stored.
        Attachments(None, MediaStore(MediaSettings(url="memory://fuzz")), max_bytes=1, retry_s=1),
        _NothingSeen(),
        author_key=b"sixteen letters!",
        settings=IngestSettings(max_text_chars=1000),
    ).step

    def lines(content: bytes) -> None:
        """Each line ends as a post that every later service can read, a dead letter, or is skipped."""
        records = [record(line, number, "fuzz") for number, line in enumerate(content.split(b"\n"), 1)]
        for output in step(records, NOON.timestamp()).outputs:
            if output.topic == "posts":
                codec.decode_post(output.value)
            else:
                assert output.topic == "feed.dlq"

    return lines


_event_lines = _lines(jetstream.parse)


def events(content: bytes) -> None:
    """Lines of a stream, which also say where to resume."""
    _event_lines(content)
    for line in content.split(b"\n"):
        at_us = jetstream.cursor_us(line)
        assert at_us is None or at_us > 0


def picture(content: bytes) -> None:
    try:
        image = pictures.decode(content, 16, 1_000_000)
    except InvalidMessage:
        return
    assert image.size == (16, 16)
    assert image.mode == "RGB"


def sound(content: bytes) -> None:
    try:
        waveform = sounds.decode(content, 2.0)
    except InvalidMessage:
        return
    assert sounds.MIN_SOUND_S * 16_000 <= waveform.size <= 32_000
    assert np.abs(waveform).max() <= 1
    assert waveform.dtype == np.float32


def reply(content: bytes) -> None:
    """What a decoder sends that was taken over is an answer, or the end of its process."""
    file = os.memfd_create("reply")
    try:
        os.pwrite(file, content, 0)
        with contextlib.suppress(EOFError):
            answer = decoding._reply(file, 1000)
            assert isinstance(answer, str) or (answer.dtype.str in decoding.DTYPES and answer.nbytes <= 1000)
    finally:
        os.close(file)


def _replied(head: bytes, array: bytes) -> bytes:
    return decoding._REPLY.pack(len(head), len(array)) + head + array


@cache
def _pieces() -> SentencePieceProcessor:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = ["\u2581", "\u2581lu", "mio", "li", "u", "m", "i", "o", "a", "aa", "é", "地", "铁", "地铁", " "]
    return SentencePieceProcessor(
        model_proto=pieces_model(
            [(piece, 0.0) for piece in special] + [(word, -1.0 - i / 7) for i, word in enumerate(words)],
            {piece: i for i, piece in enumerate(special)},
            {"\t": " ", "\n": " ", "\u200d": " ", "\x01": "", "ﬁ": "fi"},
        )
    )


def words(content: bytes) -> None:
    """Any text is tokens of the vocabulary in a frame, as many as are wanted at most."""
    (ids,) = by_pieces(_pieces(), 16, [content.decode(errors="replace")])
    assert 2 <= len(ids) <= 16
    assert (ids[0], ids[-1]) == (0, 2)
    assert all(3 <= token < _pieces().get_piece_size() for token in ids[1:-1])


def kind(content: bytes) -> None:
    found = sniffing.kind(content)
    assert found is None or found[0] in (Modality.IMAGE, Modality.AUDIO)


def keywords(content: bytes) -> None:
    """The first line's words, comma separated, are looked for in the rest; each is found in itself."""
    first, _, text = content.decode(errors="replace").partition("\n")
    words = first.split(",")
    matcher = Matcher({str(number): [word] for number, word in enumerate(words)})
    assert set(matcher.match(text)) <= {str(number) for number in range(len(words))}
    for number, word in enumerate(words):
        if word.isascii() and word.isalnum():
            assert str(number) in matcher.match(f"{text} {word} {text}")


def request(content: bytes) -> None:
    """Any request of the API is a query or names its faults."""
    for make in (
        lambda: requests.trend_query(api.QueryTrendsRequest.FromString(content), default=Grain.DAY),
        lambda: requests.post_query(api.ListPostsRequest.FromString(content)),
        lambda: requests.alert_query(api.ListAlertsRequest.FromString(content)),
        lambda: requests.post_id(api.GetPostRequest.FromString(content)),
        lambda: requests.sha256(api.GetMediaRequest.FromString(content)),
        lambda: requests.topic_name(api.DeleteTopicRequest.FromString(content)),
        lambda: requests.new_topic(api.CreateTopicRequest.FromString(content)),
    ):
        # What is no message at all gRPC refuses before it comes here.
        with contextlib.suppress(ApiError, DecodeError):
            make()


def page_token(content: bytes) -> None:
    token = content.decode(errors="replace")
    with contextlib.suppress(ValueError):
        found = pages.decode(token, "a request")
        assert pages.encode(found, "a request") == token


def address(content: bytes) -> None:
    text = content.decode(errors="replace")
    addresses.refusal(text)
    try:
        found = addresses.target(text)
    except InvalidMessage:
        return
    assert addresses.target(f"{found.scheme}://{found.host_port}{found.path}"[:2048]).host == found.host
    assert found.path.isascii()
    assert found.path.isprintable()
    assert " " not in found.path


def _encoded(kind: str, mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((24, 16), 50).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def _wav() -> bytes:
    samples = (np.sin(np.arange(4000) / 5) * 9000).astype("<i2").tobytes()
    form = struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16, b"data", len(samples))
    return b"RIFF" + struct.pack("<I", 4 + len(form) + len(samples)) + b"WAVE" + form + samples


_POST = post(
    "test:1",
    text="Lumio One",
    media=(Media(Modality.IMAGE, "a" * 64, "image/png", 7, "https://x/"),),
    expected=frozenset({Modality.TEXT, Modality.IMAGE}),
)
_ENTRIES = (
    EmbeddingEntry(_POST, Answer(np.ones(3, np.float16))),
    EmbeddingEntry(post("test:2"), Answer(None, "an absent reason")),
)
_SENTIMENT = PostSentiment(
    _POST,
    3,
    Verdict(
        Label.POSITIVE,
        (0.125, 0.25, 0.625),
        0.5,
        (ModalityWeight(Modality.TEXT, 0.25), ModalityWeight(Modality.IMAGE, 0.0, "broken")),
        {"joy": 0.75},
        "model@1",
    ),
    False,
    NOON,
    "heard",
)
_JETSTREAM = (
    b'{"did":"did:plc:x","time_us":1783175888000000,"kind":"commit","commit":{"operation":"create","collection":'
    b'"app.bsky.feed.post","rkey":"3m","record":{"createdAt":"2026-06-13T09:00:00Z","text":"lumio","langs":["en"],'
    b'"embed":{"$type":"app.bsky.embed.images","images":[{"alt":"a","image":{"ref":{"$link":"bafy"},"mimeType":'
    b'"image/jpeg","size":9}}]}}}}'
)
_TOPIC = api.CreateTopicRequest(topic=api.TrackedTopic(name="lumio", keywords=["lumio one", "地铁"]))
_FILTER = api.TrendFilter(topic="lumio", language="en")
_FILTER.start_time.FromDatetime(datetime(2026, 6, 13, tzinfo=UTC))

TARGETS: dict[str, tuple[Target, list[bytes]]] = {
    "posts": (posts, [codec.encode_post(_POST).value]),
    "embeddings": (
        embeddings,
        [
            codec.encode_embeddings(
                EmbeddingBatch.of(Modality.IMAGE, "model@1", 3, _ENTRIES),
                partition=0,
                service="fuzz",
                id="1",
                time=NOON,
            ).value
        ],
    ),
    "sentiments": (sentiments, [b"", codec.encode_sentiments([_SENTIMENT])[0].value]),
    "jsonl": (
        _lines(jsonl.parse),
        [b"\n".join((DEMO / name).read_bytes().splitlines()[:4]) for name in ("feed.jsonl", "broken.jsonl")],
    ),
    "jetstream": (events, [_JETSTREAM, _JETSTREAM.replace(b"create", b"delete")]),
    "picture": (
        picture,
        [
            _encoded(kind, mode)
            for kind, mode in (("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"), ("WEBP", "RGBA"), ("GIF", "P"))
        ],
    ),
    "sound": (
        sound,
        [_wav(), *(path.read_bytes()[:6000] for path in sorted((DEMO / "media" / "voices").iterdir())[:2])],
    ),
    "reply": (
        reply,
        [
            _replied(b'{"dtype":"|u1","shape":[2,2]}', b"1234"),
            _replied(b'{"dtype":"<f4","shape":[1]}', b"1234"),
            _replied(b'{"reason":"broken"}', b""),
            _replied(b"[" * 5000, b""),
        ],
    ),
    "words": (words, ["lumio\u0301 ﬁ 地铁 </s> aaaa".encode(), b"\x00\x01\t"]),
    "kind": (kind, [_wav()[:64], b"\x00\x00\x00\x18ftypM4A "]),
    "keywords": (keywords, [b"lumio one,#lumio,abc\nthe Lumio One is #lumio", "地铁,é\n地铁".encode()]),
    "request": (
        request,
        [
            _TOPIC.SerializeToString(),
            api.QueryTrendsRequest(filter=_FILTER, grain=api.GRAIN_HOUR).SerializeToString(),
            api.ListPostsRequest(filter=_FILTER, page_size=3, page_token="a").SerializeToString(),
        ],
    ),
    "page_token": (
        page_token,
        [pages.encode(pages.Position(NOON, "test:1"), "a request").encode()],
    ),
    "address": (
        address,
        [b"https://user@example.org:8443/a%20b?c#d", b"http://[2606:4700::1111]/", b"0x7f.1"],
    ),
}
