"""The robustness suite on judges whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from services.training import robustness

CLASSES = ("negative", "neutral", "positive")
Doubles = npt.NDArray[np.float64]


def judged(texts: Sequence[str], score_of: dict[str, int]) -> Doubles:
    return np.eye(3)[[score_of[text] for text in texts]]


def meanings() -> dict[str, int]:
    """Every sentence of the negation set with the class it should get."""
    return {
        text: meant
        for each in robustness.NEGATIONS.values()
        for plain, negated, good in each.pairs()
        for text, meant in ((plain, 2 if good else 0), (negated, 0 if good else 2))
    }


def test_a_reader_of_every_not_flips_everything() -> None:
    known = meanings()
    found = robustness.negation(CLASSES, lambda texts, _: judged(texts, known))
    for part in (found, found["not_good"], found["not_bad"], *found["per_language"].values()):
        assert (part["plain_accuracy"], part["expected_flip_rate"], part["moved"]) == (1, 1, 1)
    assert found["pairs"] == found["not_good"]["pairs"] + found["not_bad"]["pairs"] == 150


def test_a_reader_who_misses_every_not_flips_nothing() -> None:
    deaf = meanings()
    for each in robustness.NEGATIONS.values():
        for plain, negated, _ in each.pairs():
            deaf[negated] = deaf[plain]
    found = robustness.negation(CLASSES, lambda texts, _: judged(texts, deaf))
    assert (found["plain_accuracy"], found["expected_flip_rate"], found["moved"]) == (1, 0, 0)


def test_a_gloomy_reader_understands_half_and_its_flips_are_not_counted_as_understanding() -> None:
    found = robustness.negation(CLASSES, lambda texts, _: np.tile([1.0, 0.0, 0.0], (len(texts), 1)))
    assert found["plain_accuracy"] == 0.5
    assert found["not_good"]["expected_flip_rate"] is None, "no plain sentence was understood"
    assert found["not_bad"]["expected_flip_rate"] == 0


def test_pairs_differ_and_no_sentence_occurs_twice() -> None:
    for language, each in robustness.NEGATIONS.items():
        sentences = [text for pair in each.pairs() for text in pair[:2]]
        assert len(set(sentences)) == len(sentences), language


def test_sarcasm_needs_both_of_a_pair() -> None:
    def cheerful(texts: Sequence[str], languages: Sequence[str]) -> Doubles:
        assert len(texts) == len(languages)
        return np.tile([0.0, 0.0, 1.0], (len(texts), 1))

    assert robustness.sarcasm(CLASSES, cheerful) == {
        "lines": len(robustness.SARCASM),
        "sarcastic_judged_negative": 0.0,
        "sincere_judged_positive": 1.0,
        "both_of_a_pair": 0.0,
    }


def test_no_line_is_both_sarcastic_and_sincere() -> None:
    lines = [line for _, *both in robustness.SARCASM for line in both]
    assert len(set(lines)) == len(lines)


def test_before_and_after_by_hand() -> None:
    labels = np.array([0, 0, 1, 1])
    found = robustness.compared(labels, np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 3)
    assert found == {
        "rows": 4,
        "otherwise": 0.25,
        "clean_accuracy": 1.0,
        "accuracy": 0.75,
        "accuracy_drop": 0.25,
        "clean_macro_f1": 1.0,
        "macro_f1": pytest.approx((2 / 3 + 4 / 5) / 2),
        "macro_f1_drop": pytest.approx(1 - (2 / 3 + 4 / 5) / 2),
    }


def test_names_of_alterations_are_unique() -> None:
    names = [alteration.name for alteration in robustness.ALTERATIONS]
    assert len(set(names)) == len(names)
