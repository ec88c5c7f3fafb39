"""Runs of characters as counted features, beside what the text model makes of a text.

A linear model over them knows spellings, emoji, hashtags and slang that the text model's vocabulary splits
into pieces it never learned, and costs nearly nothing. Source: Cheng et al. 2016 ("Wide & Deep Learning"),
section 3; hashing: Weinberger et al. 2009. Arrays only: no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

BUCKETS = 2**18
LENGTHS = (1, 2, 3, 4, 5)
_MAX_CHARACTERS = 1000
_TEXTS = 512  # at once: their arrays stay in a core's cache, and text and bucket together in 32 bits

_LINK_OR_NAME = re.compile(r"(https?)\S*|(@)\w+")


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
    # The columns of `weights`, each in one piece.
    _columns: tuple[npt.NDArray[np.float32], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_columns", tuple(map(np.ascontiguousarray, self.weights.T)))

    @property
    def classes(self) -> int:
        return len(self.bias)

    def logits(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(N, C); the bias for an empty text."""
        said = np.empty((len(texts), self.classes), np.float32)
        for start in range(0, len(texts), _TEXTS):
            found = _counts(texts[start : start + _TEXTS])
            values = found.values * self.rarity.take(found.buckets)
            norms = np.sqrt(_sums(values * values, found.offsets)).clip(1e-9)
            for column, weights in enumerate(self._columns):
                votes = _sums(values * weights.take(found.buckets), found.offsets)
                said[start : start + _TEXTS, column] = votes / norms
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
    """Runs of 1 to 5 characters, spaces included, of each text, hashed. An empty text has none."""
    parts = [_counts(texts[start : start + _TEXTS]) for start in range(0, len(texts), _TEXTS)]
    if len(parts) == 1:
        return parts[0]
    begins = np.cumsum([0, *(part.offsets[-1] for part in parts)])
    shifted = [part.offsets[:-1] + begin for part, begin in zip(parts, begins[:-1], strict=True)]
    return Counts(
        np.concatenate([*shifted, begins[-1:]]),
        np.concatenate([np.empty(0, np.int64), *(part.buckets for part in parts)]),
        np.concatenate([np.empty(0, np.float32), *(part.values for part in parts)]),
    )


def _counts(texts: Sequence[str]) -> Counts:
    """As `counts`, of at most _TEXTS texts, all at once."""
    plain = [_plain(text) for text in texts]
    lengths = np.array([len(text) for text in plain], np.int64)
    codes = np.frombuffer("".join(plain).encode("utf-32-le"), np.uint32).astype(np.uint64)
    first_key = np.repeat(np.arange(len(plain), dtype=np.uint32) * np.uint32(BUCKETS), lengths)
    keys = [np.empty(0, np.uint32)]
    hashed = np.zeros(len(codes), np.uint64)
    for n in LENGTHS:
        # The hash of a run from that of the run without its last character; runs that reach into the next
        # text are left out.
        size = len(codes) - n + 1
        if size <= 0:
            break
        hashed = hashed[:size]
        hashed *= np.uint64(0x9E3779B97F4A7C15)
        hashed += codes[n - 1 :]
        hashed += np.uint64(n)
        mixed = hashed >> np.uint64(29)
        mixed ^= hashed
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed >>= np.uint64(64 - 18)
        key = mixed.astype(np.uint32) + first_key[:size]
        keys.append(key[first_key[:size] == first_key[n - 1 :]])
    # As np.unique with its counts, which takes twice as long over 32 bits as a sort and the places of change.
    ordered = np.concatenate(keys)
    ordered.sort()
    first = np.concatenate([np.arange(min(1, len(ordered))), np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    found, number = ordered[first], np.diff(first, append=len(ordered))
    offsets = np.searchsorted(found, np.arange(len(plain) + 1) * BUCKETS)
    buckets = (found % np.uint32(BUCKETS)).astype(np.int64)
    return Counts(offsets, buckets, (1 + np.log(number)).astype(np.float32))


def _sums(values: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(N,) of the values of each text."""
    sums = np.zeros(len(offsets) - 1)
    some = np.diff(offsets) > 0
    if some.any():
        sums[some] = np.add.reduceat(values, offsets[:-1][some], dtype=np.float64)
    return sums


def _plain(text: str) -> str:
    short = text[:_MAX_CHARACTERS].casefold()
    if "http" in short or "@" in short:
        short = _LINK_OR_NAME.sub(r"\1\2", short)
    words = short.split()
    return f" {' '.join(words)} ".encode("utf-8", "replace").decode() if words else ""
