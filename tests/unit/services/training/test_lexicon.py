"""A lexicon learns its texts; what is trained on top must not see what it says of those."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from services.training import lexicon
from services.training.examples import Examples

WORDS = ("kalt", "warm", "sonne", "regen", "strasse", "haus", "baum", "wasser")


def texts(count: int, seed: int, classes: int = 2) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Noise, and one word that says the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return [f"{' '.join(rng.choice(WORDS, 4))} zeichen{label}x" for label in labels], labels


@pytest.mark.parametrize("classes", [2, 3])
def test_it_learns_what_words_say(classes: int) -> None:
    fitted = lexicon.fit(*texts(200, 0, classes), classes)
    unseen, labels = texts(50, 1, classes)
    assert fitted.logits(unseen).argmax(1).tolist() == labels.tolist()


def test_texts_without_a_label_are_left_out_and_a_class_without_texts_is_never_said() -> None:
    some, labels = texts(100, 0)
    labels[:20] = -1
    fitted = lexicon.fit(some, labels, classes=3)
    assert not (fitted.logits(some).argmax(1) == 2).any()


def test_texts_of_one_class_leave_nothing_to_learn() -> None:
    some, _ = texts(20, 0)
    fitted = lexicon.fit(some, np.ones(20, np.int64), classes=3)
    assert (fitted.logits(some).argmax(1) == 1).all()


def test_out_of_fold_says_nothing_of_labels_that_mean_nothing() -> None:
    rng = np.random.default_rng(1)
    some = [rng.bytes(30).hex() for _ in range(400)]
    drawn = rng.integers(0, 2, 400)
    by_heart = lexicon.fit(some, drawn, 2).logits(some).argmax(1)
    unseen = lexicon.out_of_fold(some, drawn, 2).argmax(1)
    assert (by_heart == drawn).mean() > 0.8
    assert (unseen == drawn).mean() < 0.65


def test_equal_texts_are_in_one_fold() -> None:
    rng = np.random.default_rng(1)
    some = [rng.bytes(30).hex() for _ in range(60)]
    drawn = rng.integers(0, 2, 60)
    said = lexicon.out_of_fold(some * 4, np.tile(drawn, 4), 2)
    np.testing.assert_allclose(said[:60], said[60:120])
    assert (said.argmax(1) == np.tile(drawn, 4)).mean() < 0.8, "a copy gave the label away"


def test_only_the_lexicons_part_of_the_text_vectors_changes() -> None:
    some, labels = texts(40, 0)
    vectors = np.arange(39 * 5, dtype=np.float16).reshape(39, 5)
    index = np.stack([np.arange(40) % 40 - (np.arange(40) == 39) * 40, np.zeros(40, np.int64)], 1)
    blank = np.full(40, "")
    examples = Examples(
        vectors={"text": vectors, "image": np.ones((1, 2), np.float16)},
        index=index,
        labels=labels,
        emotions=np.full(40, -1),
        ids=blank,
        languages=blank,
        groups=blank,
        parts=blank,
    )
    changed = lexicon.as_if_unseen(examples, some, 2)
    np.testing.assert_array_equal(changed.vectors["text"][:, :3], vectors[:, :3])
    said = lexicon.out_of_fold(some[:39], labels[:39], 2)
    np.testing.assert_allclose(changed.vectors["text"][:, 3:], said, atol=0.01)
    assert changed.vectors["image"] is examples.vectors["image"]
