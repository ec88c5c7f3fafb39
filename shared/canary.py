"""A known input that goes through the model, so that "it works" is said of the model and not of its socket.

And that tells bad inputs from a broken model: when nothing of a batch could be encoded but this still can,
the inputs were bad. Pure.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from typing import Final

import numpy as np

from shared.encoding import Encoder, Input
from shared.errors import ModelBroken
from shared.messages import Answer, Modality

LEAST_COSINE: Final = 0.999
"""Between the canary's first vector and every later one. On one device they are equal but for float16."""

SIDE: Final = 64
SAMPLE_RATE_HZ: Final = 16_000


def words() -> Input:
    return Input("The canary sings: the quick brown fox is happy today.", "en")


def picture() -> Input:
    """A PNG of a disc on a gradient."""
    rows = []
    for y in range(SIDE):
        row = bytearray(b"\0")  # no filter
        for x in range(SIDE):
            inside = (x - SIDE // 2) ** 2 + (y - SIDE // 2) ** 2 < (SIDE // 3) ** 2
            row += bytes((220, 180, 20)) if inside else bytes((4 * x % 256, 4 * y % 256, 128))
        rows.append(bytes(row))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)  # eight bits, RGB
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return Input("", "und", (png,))


def sound() -> Input:
    """A WAV of one second: a chirp, 8,000 Hz at most."""
    samples = []
    for n in range(SAMPLE_RATE_HZ):
        t = n / SAMPLE_RATE_HZ
        samples.append(int(12_000 * math.sin(math.pi * t) * math.sin(2 * math.pi * (300 + 600 * t) * t)))
    content = struct.pack(f"<{len(samples)}h", *samples)
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, SAMPLE_RATE_HZ, 2 * SAMPLE_RATE_HZ, 2, 16)
    body = b"WAVE" + fmt + struct.pack("<4sI", b"data", len(content)) + content
    return Input("", "und", (struct.pack("<4sI", b"RIFF", len(body)) + body,))


KNOWN: Final = {Modality.TEXT: words, Modality.IMAGE: picture, Modality.AUDIO: sound}


class Canary:
    """Encodes the known input of an encoder's first slot and compares it with the first time."""

    def __init__(self, encoder: Encoder) -> None:
        """Raises ModelBroken when not even the first attempt gives a vector, with the reason."""
        self._encoder = encoder
        self._input = KNOWN[encoder.slots[0]]()
        self._first = self._encoded()

    def check(self) -> None:
        """Raises ModelBroken when the model fails on it, or says something else than it did first."""
        for slot, now in self._encoded().items():
            then = self._first[slot]
            if (then.vector is None) != (now.vector is None):
                raise ModelBroken(
                    f"canary: {slot.name.lower()} was {_told(then)} at the start and is {_told(now)} now"
                )
            if then.vector is not None and now.vector is not None:
                one, other = then.vector.astype(np.float64), now.vector.astype(np.float64)
                norms = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
                cosine = float(one @ other) / max(1e-12, norms)
                if cosine < LEAST_COSINE:
                    raise ModelBroken(
                        f"canary: the {slot.name.lower()} vector has turned, cosine {cosine:.4f} to the first"
                    )

    def _encoded(self) -> Mapping[Modality, Answer]:
        try:
            (answers,) = self._encoder.encode([self._input])
        except Exception as error:
            raise ModelBroken(f"canary: the model fails on a good input: {error!r}") from error
        first = answers[self._encoder.slots[0]]
        if first.vector is None:
            raise ModelBroken(f"canary: the model fails on a good input: {first.absent_reason}")
        return answers


def _told(answer: Answer) -> str:
    return "a vector" if answer.vector is not None else f"absent ({answer.absent_reason})"
