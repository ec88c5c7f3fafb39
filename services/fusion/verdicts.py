"""Verdicts of many posts, column by column: most go into their rows without ever being objects. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from shared.messages import Label, Modality, ModalityWeight, Verdict, value


@value
class Verdicts(Sequence[Verdict]):
    """One verdict per post; each is made when it is asked for.

    given: what each rests on, in order of modality. contributions: to its score, one for each of `given`.
    emotions: a probability for each of `emotion_names`, or none at all.
    """

    labels: Sequence[Label]
    probabilities: Sequence[tuple[float, float, float]]
    scores: Sequence[float]
    given: Sequence[tuple[Modality, ...]]
    contributions: Sequence[Sequence[float]]
    emotion_names: tuple[str, ...]
    emotions: Sequence[Sequence[float]]
    model_version: str

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, row: int) -> Verdict: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Verdict]: ...
    def __getitem__(self, row: int | slice) -> Verdict | Sequence[Verdict]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        return Verdict(
            self.labels[row],
            self.probabilities[row],
            self.scores[row],
            tuple(map(ModalityWeight, self.given[row], self.contributions[row])),
            dict(zip(self.emotion_names, self.emotions[row], strict=False)),
            self.model_version,
        )
