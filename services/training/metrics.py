"""Measures of a classifier, in numpy. Pure.

Everywhere: labels (N,) int, the true class; probabilities (N, C), rows summing to 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


def confusion(labels: Ints, predicted: Ints, count: int) -> Ints:
    """(C, C): row the true class, column the predicted one."""
    return (
        np.bincount(labels * count + predicted, minlength=count * count)
        .reshape(count, count)
        .astype(np.int64)
    )


def recalls(table: Ints) -> Doubles:
    """Per class; NaN for a class that does not occur."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.diag(table) / table.sum(1), np.float64)


def f1_scores(table: Ints) -> Doubles:
    """Per class; NaN for a class that neither occurs nor is predicted, 0 for one that is never right."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(2 * np.diag(table) / (table.sum(1) + table.sum(0)), np.float64)


def summary(table: Ints) -> dict[str, float]:
    """accuracy, macro_recall, macro_f1, weighted_f1 of a confusion matrix; macro over classes that occur."""
    support = table.sum(1)
    occurs = support > 0
    f1 = np.nan_to_num(f1_scores(table))
    return {
        "accuracy": float(np.diag(table).sum() / table.sum()),
        "macro_recall": float(recalls(table)[occurs].mean()),
        "macro_f1": float(f1[occurs].mean()),
        "weighted_f1": float((f1 * support).sum() / support.sum()),
    }


def calibration_error(labels: Ints, probabilities: Doubles, bins: int = 15) -> float:
    """Expected calibration error of the predicted class. Source: Guo et al. 2017, section 2; equal-width
    bins."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(place, confidence - correct, bins)
    return float(np.abs(gap).sum() / len(labels))


def reliability(labels: Ints, probabilities: Doubles, bins: int = 15) -> list[dict[str, float]]:
    """Per confidence bin that is not empty: mean confidence, accuracy, rows."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "confidence": float(confidence[place == i].mean()),
            "accuracy": float(correct[place == i].mean()),
            "rows": int((place == i).sum()),
        }
        for i in range(bins)
        if (place == i).any()
    ]


def bootstrap(
    labels: Ints, predicted: Ints, count: int, *, samples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of what `summary` gives. Source: Efron and Tibshirani 1993, chapter 13.

    The resamples are drawn from the cells of the confusion matrix, which is the same as drawing rows.
    """
    table = confusion(labels, predicted, count)
    cells = table.ravel() / table.sum()
    draws = (
        np.random.default_rng(seed).multinomial(len(labels), cells, samples).reshape(samples, count, count)
    )
    values: dict[str, list[float]] = {}
    for draw in draws:
        for name, value in summary(draw).items():
            values.setdefault(name, []).append(value)
    return {
        name: (float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5)))
        for name, found in values.items()
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of the exact McNemar test: rows that only the one, and only the other classifier got right.

    Source: McNemar 1947; the binomial form, as scipy.stats.binomtest(only_first, n, 0.5).
    """
    total = only_first + only_second
    ways, term, all_ways = 0, 1, 1 << total
    for i in range(min(only_first, only_second) + 1):
        ways += term
        term = term * (total - i) // (i + 1)
    return min(1.0, float(2 * ways / all_ways))


def describe(labels: Ints, probabilities: Doubles, classes: tuple[str, ...]) -> dict[str, Any]:
    """Everything measured of one set of rows, ready for JSON."""
    predicted = probabilities.argmax(1)
    table = confusion(labels, predicted, len(classes))
    recall, f1 = recalls(table), f1_scores(table)
    return {
        "rows": len(labels),
        **summary(table),
        "ece": calibration_error(labels, probabilities),
        "per_class": {
            name: {
                "rows": int(table[i].sum()),
                "recall": None if np.isnan(recall[i]) else float(recall[i]),
                "precision": float(table[i, i] / table[:, i].sum()) if table[:, i].sum() else None,
                "f1": None if np.isnan(f1[i]) else float(f1[i]),
            }
            for i, name in enumerate(classes)
        },
        "confusion": table.tolist(),
    }
