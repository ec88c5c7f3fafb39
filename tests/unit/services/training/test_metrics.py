"""Measures, against numbers worked out by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from services.training import metrics


def drawn(seed: int) -> tuple[metrics.Ints, metrics.Doubles]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 200)
    p = rng.dirichlet(np.ones(3), 200)
    p[np.arange(200), labels] += 0.4
    return labels, p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_summary_is_that_of_scikit_learn(seed: int) -> None:
    labels, p = drawn(seed)
    predicted = p.argmax(1)
    assert metrics.summary(metrics.confusion(labels, predicted, 3)) == pytest.approx(
        {
            "accuracy": accuracy_score(labels, predicted),
            "macro_recall": recall_score(labels, predicted, average="macro"),
            "macro_f1": f1_score(labels, predicted, average="macro"),
            "weighted_f1": f1_score(labels, predicted, average="weighted"),
        }
    )


def test_calibration_error_by_hand() -> None:
    # Four answers at 0.9 of which three are right: the gap is 0.15. Two at 0.6, both right: 0.4.
    labels = np.array([0, 0, 0, 1, 1, 1])
    p = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2)
    assert metrics.calibration_error(labels, p) == pytest.approx((4 * 0.15 + 2 * 0.4) / 6)


def test_a_certain_and_right_classifier_has_no_calibration_error() -> None:
    labels = np.array([0, 1, 2])
    assert metrics.calibration_error(labels, np.eye(3)) == 0


def test_a_class_that_does_not_occur_does_not_count() -> None:
    table = metrics.confusion(np.array([0, 0, 1]), np.array([0, 0, 1]), 3)
    assert metrics.summary(table)["macro_recall"] == 1
    described = metrics.describe(np.array([0, 1]), np.eye(3)[[0, 1]], ("a", "b", "c"))
    assert described["per_class"]["c"]["f1"] is None


def test_bootstrap_holds_the_measure_and_narrows_with_more_rows() -> None:
    labels, p = drawn(0)
    predicted = p.argmax(1)
    low, high = metrics.bootstrap(labels, predicted, 3)["accuracy"]
    assert low < accuracy_score(labels, predicted) < high
    more = metrics.bootstrap(np.tile(labels, 20), np.tile(predicted, 20), 3)["accuracy"]
    assert more[1] - more[0] < (high - low) / 3


@pytest.mark.parametrize(
    ("one", "other"), [(0, 0), (1, 0), (5, 5), (12, 3), (3, 12), (700, 600), (2000, 3000)]
)
def test_mcnemar_is_the_exact_binomial_test(one: int, other: int) -> None:
    expected = binomtest(one, one + other, 0.5).pvalue if one + other else 1.0
    assert metrics.mcnemar(one, other) == pytest.approx(expected, rel=1e-9)
