"""Measures a fusion model on examples: overall, by language, by subset of the modalities, and as they go
missing."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from services.fusion.model import FusionNetwork
from services.training import metrics
from services.training.examples import Examples
from services.training.fit import answers, logits

MISSING_RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Judge(Protocol):
    """Whatever can be measured: a fusion network, or a context model."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def slots(self) -> Mapping[str, int]: ...
    def probabilities(
        self, examples: Examples, present: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.float64]:
        """(N, classes), with what `present` (N, slots) leaves of the rows."""
        ...


class NetworkJudge:
    """A fusion network as a Judge."""

    def __init__(self, network: FusionNetwork) -> None:
        self._network = network
        self.classes = network.config.classes
        self.slots = network.config.slots

    def probabilities(
        self, examples: Examples, present: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.float64]:
        return probabilities(self._network, examples, present)


def probabilities(
    network: FusionNetwork, examples: Examples, present: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float64]:
    """(N, classes), calibrated, with what `present` (N, slots of the network) leaves of the rows."""
    mask = examples.aligned(network.config.slots).present if present is None else present
    device = next(network.parameters()).device
    scores = logits(network, examples, mask, str(device))
    with torch.inference_mode():
        found = network.calibrated(scores.to(device), torch.from_numpy(mask).to(device)).double()
    return np.asarray((found / found.sum(1, keepdim=True)).cpu().numpy())


def emotions(network: FusionNetwork, examples: Examples) -> dict[str, Any] | None:
    """The same measures of the emotions, over the rows that have one and a modality; None where there is no
    such row, or the model knows no emotions."""
    examples = examples.aligned(network.config.slots)
    examples = examples.take((examples.emotions >= 0) & examples.present.any(1))
    if not len(examples) or not network.config.emotions:
        return None
    device = next(network.parameters()).device
    _, felt = answers(network, examples, device=str(device))
    with torch.inference_mode():
        p = network.calibrated_emotions(felt.to(device), torch.from_numpy(examples.present).to(device))
    return metrics.describe(examples.emotions, p.double().cpu().numpy(), network.config.emotions)


def evaluate(judge: Judge, examples: Examples, *, seed: int = 0) -> dict[str, Any]:
    """Everything `crowdtone evaluate` reports, ready for JSON. Rows without a label or without any slot are
    left out.

    Raises ValueError when no row is left.
    """
    examples = examples.aligned(judge.slots)
    usable = (examples.labels >= 0) & examples.present.any(1)
    left_out = int((~usable).sum())
    examples = examples.take(usable)
    if not len(examples):
        raise ValueError("no row has both a label and a modality that the model knows")
    classes = judge.classes
    p = judge.probabilities(examples)
    result = metrics.describe(examples.labels, p, classes)
    intervals = metrics.bootstrap(examples.labels, p.argmax(1), len(classes), seed=seed)
    return {
        **result,
        "rows_left_out": left_out,
        "classes": list(classes),
        "intervals_95": {name: list(interval) for name, interval in intervals.items()},
        "per_language": {
            str(language): metrics.describe(examples.labels[rows], p[rows], classes)
            for language in np.unique(examples.languages)
            if (rows := examples.languages == language).any()
        },
        "per_subset": per_subset(judge, examples),
        "paired": paired(judge, examples, p),
        "reliability": metrics.reliability(examples.labels, p),
        "missing_rate": missing_rate(judge, examples, seed=seed),
    }


def per_subset(judge: Judge, examples: Examples) -> dict[str, Any]:
    """For every combination of slots that some row has in full: those rows, judged by these slots alone."""
    slots = list(judge.slots)
    found: dict[str, Any] = {}
    for size in range(1, len(slots) + 1):
        for chosen in combinations(range(len(slots)), size):
            mask = np.zeros(len(slots), bool)
            mask[list(chosen)] = True
            rows = np.flatnonzero((examples.present | ~mask).all(1))
            if not len(rows):
                continue
            part = examples.take(rows)
            p = judge.probabilities(part, np.repeat(mask[None], len(rows), 0))
            name = "+".join(slots[i] for i in chosen)
            found[name] = metrics.describe(part.labels, p, judge.classes)
    return found


def paired(judge: Judge, examples: Examples, p: npt.NDArray[np.float64]) -> dict[str, Any]:
    """For every combination of slots, over the rows that have it and more: judged by all that they have (p)
    against judged by these slots alone.

    all_only_right, subset_only_right: rows that only one of the two judges rightly. p: McNemar's, exact.
    """
    slots = list(judge.slots)
    found: dict[str, Any] = {}
    for size in range(1, len(slots)):
        for chosen in combinations(range(len(slots)), size):
            mask = np.zeros(len(slots), bool)
            mask[list(chosen)] = True
            rows = np.flatnonzero((examples.present | ~mask).all(1) & (examples.present & ~mask).any(1))
            if not len(rows):
                continue
            part = examples.take(rows)
            alone = judge.probabilities(part, np.repeat(mask[None], len(rows), 0)).argmax(1) == part.labels
            whole = p[rows].argmax(1) == part.labels
            gained, lost = int((whole & ~alone).sum()), int((alone & ~whole).sum())
            found["+".join(slots[i] for i in chosen)] = {
                "rows": len(rows),
                "all_accuracy": float(whole.mean()),
                "subset_accuracy": float(alone.mean()),
                "all_only_right": gained,
                "subset_only_right": lost,
                "p": metrics.mcnemar(gained, lost),
            }
    return found


def missing_rate(judge: Judge, examples: Examples, *, seed: int = 0) -> list[dict[str, float]]:
    """Accuracy and macro F1 as slots are withheld at a growing rate; a row keeps at least one."""
    rng = np.random.default_rng(seed)
    draws = rng.random(examples.present.shape)
    curve = []
    for rate in MISSING_RATES:
        kept = examples.present & (draws >= rate)
        lost = ~kept.any(1)
        # The slot with the highest draw is the last to go.
        last = np.where(examples.present, draws, -1.0).argmax(1)
        kept[lost, last[lost]] = True
        p = judge.probabilities(examples, kept)
        table = metrics.confusion(examples.labels, p.argmax(1), p.shape[1])
        measured = metrics.summary(table)
        curve.append({"rate": rate, "accuracy": measured["accuracy"], "macro_f1": measured["macro_f1"]})
    return curve
