"""Deterministic loads: the same posts for the same seed, of the lengths that real ones have."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from shared import codec
from shared.media import MediaStore
from shared.messages import Answer, EmbeddingBatch, EmbeddingEntry, Media, Modality, Output, Post, Record

VOICES: Final = Path(__file__).parents[1] / "demo" / "media" / "voices"
PICTURE_SIZE: Final = (1080, 810)
CLIP_S: Final = 5
DRAWN: Final = 24
"""Pictures drawn, and clips cut; more of them are the same ones with another comment, and so another hash."""

CHUNK_POSTS: Final = 500

START = datetime(2026, 6, 13, tzinfo=UTC)
MEAN_TOKENS = 29
FRAME_TOKENS = 5  # "query: ", start and end
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
    """Posts with log-normal text lengths of MEAN_TOKENS tokens on average, the model's frame included."""
    rng = np.random.default_rng(seed)
    # Each of the words is one token of the default model; half a word is lost by cutting to whole ones.
    mean_words = MEAN_TOKENS - FRAME_TOKENS + 0.5
    lengths = rng.lognormal(np.log(mean_words) - 0.125, 0.5, count).clip(1, 120).astype(int)
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


def records(every: Sequence[Post]) -> list[Record]:
    """Records of topic `posts` on one partition, as bytes from Kafka."""
    return [
        Record("posts", 0, offset, post.post_id.encode(), codec.encode_post(post).value)
        for offset, post in enumerate(every)
    ]


def with_media(every: Sequence[Post], store: MediaStore, kinds: Sequence[Modality]) -> list[Post]:
    """The posts with a picture or sound of their own in `store` for each of `kinds` that they expect."""
    drawn = {kind: (pictures if kind is Modality.IMAGE else clips)(DRAWN) for kind in kinds}
    found = []
    for number, post in enumerate(every):
        media = []
        for kind in kinds:
            if kind in post.expected:
                content = numbered(drawn[kind][number % DRAWN], number)
                media.append(Media(kind, store.put(content), size_bytes=len(content)))
        found.append(replace(post, media=tuple(media)))
    return found


def reposted(every: Sequence[Post], share: float, seed: int = 2) -> list[Post]:
    """The posts, but that `share` of them repeat the words and media of an earlier one, drawn evenly."""
    rng = np.random.default_rng(seed)
    found: list[Post] = []
    for number, post in enumerate(every):
        if found and rng.random() < share:
            first = found[int(rng.integers(number))]
            post = replace(post, text=first.text, media=first.media, expected=first.expected)
        found.append(post)
    return found


def pictures(count: int) -> list[bytes]:
    """JPEGs of PICTURE_SIZE, about 150 KB each: a scene of coloured shapes under the noise of a camera."""
    rng = np.random.default_rng(3)
    width, height = PICTURE_SIZE
    found = []
    for _ in range(count):
        low = rng.integers(0, 256, (9, 12, 3), np.uint8)
        image = Image.fromarray(low).resize(PICTURE_SIZE, Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        for _ in range(60):
            x, y, size = rng.integers(0, width), rng.integers(0, height), rng.integers(10, 200)
            colour = tuple(int(value) for value in rng.integers(0, 256, 3))
            draw.ellipse((int(x), int(y), int(x + size), int(y + size // 2)), fill=colour)
        noisy = np.asarray(image).astype(np.int16) + rng.normal(0, 6, (height, width, 3)).astype(np.int16)
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80)
        found.append(buffer.getvalue())
    return found


def clips(count: int) -> list[bytes]:
    """WAVs of CLIP_S, 16 kHz mono: the demo's voices one after another."""
    from services.audio_encoder import sounds  # PyAV, for those who want sounds

    voices = [sounds.decode(path.read_bytes(), 30.0) for path in sorted(VOICES.glob("*.opus"))]
    samples = CLIP_S * sounds.SAMPLE_RATE_HZ
    speech = np.concatenate(voices)
    speech = np.tile(speech, -(-count * samples // speech.size))[: count * samples]
    found = []
    for start, end in pairwise(range(0, (count + 1) * samples, samples)):
        found.append(wav((speech[start:end] * 32_767).astype("<i2")))
    return found


def wav(samples: npt.NDArray[np.int16]) -> bytes:
    """16 kHz, mono."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def numbered(content: bytes, number: int) -> bytes:
    """The same JPEG or WAV under another hash: with a comment, which no decoder looks at."""
    comment = struct.pack(">Q", number)
    if content[:2] == b"\xff\xd8":
        return content[:2] + struct.pack(">2sH", b"\xff\xfe", 2 + len(comment)) + comment + content[2:]
    whole = content[8:] + struct.pack("<4sI", b"note", len(comment)) + comment
    return struct.pack("<4sI", b"RIFF", len(whole)) + whole


def embeddings(
    chunks: Iterable[Sequence[Post]],
    dimensions: Mapping[Modality, int],
    encoders: Mapping[Modality, str],
    partitions: int = 1,
) -> Iterator[list[Output]]:
    """Records of topic `embeddings`: of each chunk every expected answer, text before the rest as in life.

    The chunks, of CHUNK_POSTS at most, go to one partition after the other. The vectors are random.
    """
    rng = np.random.default_rng(1)
    drawn = {
        modality: rng.normal(size=(CHUNK_POSTS, dimension)).astype(np.float16)
        for modality, dimension in dimensions.items()
    }
    for number, chunk in enumerate(chunks):
        found = []
        for modality, dimension in dimensions.items():
            some = [post for post in chunk if modality in post.expected]
            entries = tuple(
                EmbeddingEntry(post, Answer(vector))
                for post, vector in zip(some, drawn[modality], strict=False)
            )
            batch = EmbeddingBatch.of(modality, encoders.get(modality, ""), dimension, entries)
            found.append(
                codec.encode_embeddings(
                    batch,
                    partition=number % partitions,
                    service="bench",
                    id=f"{number}/{modality}",
                    time=START,
                )
            )
        yield found


def in_chunks(every: Iterable[Post]) -> Iterator[list[Post]]:
    """CHUNK_POSTS at a time, as many as an encoder answers in one record."""
    left = iter(every)
    while chunk := list(islice(left, CHUNK_POSTS)):
        yield chunk
