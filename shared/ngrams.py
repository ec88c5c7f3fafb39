"""Runs of characters as counted features, beside what the text model makes of a text.

A linear model over them knows spellings, emoji, hashtags and slang that the text model's vocabulary splits
into pieces it never learned, and costs nearly nothing. Source: Cheng et al. 2016 ("Wide & Deep Learning"),
section 3; hashing: Weinberger et al. 2009. Arrays only: no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BUCKETS = 2**18
LENGTHS = (1, 2, 3, 4, 5)
_MAX_CHARACTERS = 1000

_LINK_OR_NAME = re.compile(r"(https?)\S*|(@)\w+")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Counts:
    """Sparse rows: those of text i are `[offsets[i]:offsets[i + 1]]`.

    buckets: (K,) ascending within a text. values: (K,) float32, 1 + log of how often.
    """

    offsets: npt.NDArray[np.int64]
    buckets: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Lexicon:
    """A linear model over the counts: what each run of characters says of each class.

    rarity: (BUCKETS,) by which counts are weighed before they are scaled to length 1. weights: (BUCKETS, C).
    bias: (C,).
    """

    rarity: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    @property
    def classes(self) -> int:
        return len(self.bias)

    def logits(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(N, C); the bias for an empty text."""
        found = counts(texts)
        values = found.values * self.rarity[found.buckets]
        owner = np.repeat(np.arange(len(texts)), np.diff(found.offsets))
        norms = np.sqrt(np.bincount(owner, values * values, len(texts))).clip(1e-9)
        said = np.empty((len(texts), self.classes), np.float32)
        for column in range(self.classes):
            votes = values * self.weights[found.buckets, column]
            said[:, column] = np.bincount(owner, votes, len(texts)) / norms
        return said + self.bias

    def tensors(self) -> dict[str, npt.NDArray[np.float16]]:
        """For a file; `from_tensors` reads them."""
        return {name: getattr(self, name).astype(np.float16) for name in ("rarity", "weights", "bias")}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[np.float16]]) -> Lexicon:
        """Raises KeyError for a name that is missing and ValueError for another number of buckets."""
        own = {name: tensors[name].astype(np.float32) for name in ("rarity", "weights", "bias")}
        if len(own["rarity"]) != BUCKETS or own["weights"].shape != (BUCKETS, len(own["bias"])):
            raise ValueError(f"a lexicon has {BUCKETS} buckets, not {own['weights'].shape}")
        return cls(**own)


def counts(texts: Sequence[str]) -> Counts:
    """Runs of 1 to 5 characters, spaces included, of each text, hashed; all texts at once. An empty text has
    none."""
    plain = [_plain(text) for text in texts]
    lengths = np.array([len(text) for text in plain], np.int64)
    codes = np.frombuffer("".join(plain).encode("utf-32-le"), np.uint32).astype(np.uint64)
    owner = np.repeat(np.arange(len(plain)), lengths)
    keys = []
    hashed = np.zeros(len(codes), np.uint64)
    for n in LENGTHS:
        # The hash of a run from that of the run without its last character; runs that reach into the next
        # text are left out.
        size = len(codes) - n + 1
        if size <= 0:
            break
        hashed = hashed[:size] * np.uint64(0x9E3779B97F4A7C15) + codes[n - 1 :] + np.uint64(n)
        inside = owner[:size] == owner[n - 1 :]
        mixed = hashed[inside] ^ (hashed[inside] >> np.uint64(29))
        buckets = (mixed * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(64 - 18)
        keys.append(owner[:size][inside] * BUCKETS + buckets.astype(np.int64))
    found, number = np.unique(np.concatenate(keys) if keys else np.empty(0, np.int64), return_counts=True)
    offsets = np.searchsorted(found, np.arange(len(plain) + 1) * BUCKETS)
    return Counts(offsets, found % BUCKETS, (1 + np.log(number)).astype(np.float32))


def _plain(text: str) -> str:
    if not text.strip():
        return ""
    short = _LINK_OR_NAME.sub(r"\1\2", text[:_MAX_CHARACTERS].casefold())
    return f" {_SPACES.sub(' ', short.strip())} ".encode("utf-8", "replace").decode()
