"""A known post goes through the fusion model, at the start and when idle: is it judged as before?

Pure: no Kafka, no database, no clock, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from services.fusion.fusion import Classifier
from shared.errors import ModelBroken
from shared.messages import Modality, Record, Result, Step, Vector

CANARY_S: Final = 60.0
MOST_APART: Final = 0.001
"""Between a probability or score now and at the start. On one device they are equal but for rounding."""


class Canary:
    """Judges the known post, whole and by each of its modalities alone, and compares with the first time."""

    def __init__(self, classifier: Classifier) -> None:
        """Raises ModelBroken when not even the first attempt gives verdicts."""
        self._classifier = classifier
        whole = {modality: _wave(modality, length) for modality, length in classifier.dimensions.items()}
        self._posts: list[Mapping[Modality, Vector]] = [whole, *({one: whole[one]} for one in whole)]
        self._first = self._judged()

    def check(self) -> None:
        """Raises ModelBroken when the model fails on the post, or judges it otherwise than at the start."""
        apart = float(np.abs(self._judged() - self._first).max())
        if apart > MOST_APART:
            raise ModelBroken(f"canary: verdicts on a known post have moved by {apart:.4f} since the start")

    def _judged(self) -> npt.NDArray[np.float64]:
        """Probabilities and score of each form of the post: (1 + modalities, 4)."""
        try:
            verdicts = self._classifier.classify(self._posts)
        except Exception as error:
            raise ModelBroken(f"canary: the model fails on a known post: {error!r}") from error
        numbers = np.column_stack((np.array(verdicts.probabilities, np.float64), verdicts.scores))
        if not np.isfinite(numbers).all():
            raise ModelBroken("canary: the model gives no numbers for a known post")
        return numbers


class Checks(Protocol):
    """Whether the model works; `Canary` knows."""

    def check(self) -> None: ...


def watched(step: Step, canary: Checks, *, canary_s: float = CANARY_S) -> Step:
    """`step`, and the canary whenever nothing came for `canary_s`; what that raises ends the process."""
    busy_s: float | None = None

    def watched_step(records: Sequence[Record], now: float) -> Result:
        nonlocal busy_s
        if records or busy_s is None:
            busy_s = now
        elif abs(now - busy_s) >= canary_s:  # also where the clock was set back
            canary.check()
            busy_s = now
        return step(records, now)

    return watched_step


def _wave(modality: Modality, length: int) -> Vector:
    """A vector of unit length that no other modality's canary has."""
    wave: npt.NDArray[np.float64] = np.sin(np.arange(length) * (0.1 + 0.07 * modality) + modality)
    return np.asarray(wave / np.linalg.norm(wave), np.float16)
