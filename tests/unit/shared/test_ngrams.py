"""What is counted of a text, and what a lexicon makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.ngrams import BUCKETS, Lexicon, counts


def buckets(text: str) -> set[int]:
    return set(counts([text]).buckets.tolist())


def test_runs_of_one_to_five_characters_are_counted() -> None:
    # " ab ": 4 + 3 + 2 + 1 runs, the space twice.
    found = counts(["ab"])
    assert len(found.buckets) == 9
    assert sorted(found.values.tolist()) == pytest.approx([1.0] * 8 + [1 + np.log(2)])


def test_case_space_links_and_names_do_not_matter() -> None:
    assert buckets("Good  DAY\n@someone http://a.example/1") == buckets("good day @other http://b.example")
    assert buckets("hi @bob") == buckets("hi @eve_2")
    assert buckets("see https://a.example/1") == buckets("see https://b.example")
    assert buckets("good") != buckets("god")


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_text_has_none(text: str) -> None:
    assert buckets(text) == set()


@example([f"text {number}" for number in range(1_100)])  # counted in parts
@given(st.lists(st.text(max_size=30), max_size=6))
def test_a_text_counts_the_same_alone_and_among_others(texts: list[str]) -> None:
    together = counts(texts)
    assert len(together.offsets) == len(texts) + 1
    for i, text in enumerate(texts):
        alone = counts([text])
        own = slice(together.offsets[i], together.offsets[i + 1])
        np.testing.assert_array_equal(together.buckets[own], alone.buckets)
        np.testing.assert_array_equal(together.values[own], alone.values)


def test_a_long_text_is_cut_and_a_lone_surrogate_is_a_question_mark() -> None:
    assert len(counts(["xyz" * 100_000]).buckets) < 100
    assert buckets("a\ud800b") == buckets("a?b")


def test_a_lexicon_says_the_same_of_a_text_whatever_others_there_are() -> None:
    rng = np.random.default_rng(0)
    lexicon = Lexicon(
        rarity=rng.random(BUCKETS, np.float32),
        weights=rng.normal(size=(BUCKETS, 3)).astype(np.float32),
        bias=np.zeros(3, np.float32),
    )
    texts = [f"text {number}" if number % 3 else "" for number in range(1_100)]
    together = lexicon.logits(texts)
    assert together.shape == (1_100, 3)
    alone = np.concatenate([lexicon.logits([text]) for text in texts])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    assert lexicon.logits([]).shape == (0, 3)


def test_a_lexicon_weighs_what_it_knows_and_goes_through_a_file_unchanged() -> None:
    rng = np.random.default_rng(0)
    lexicon = Lexicon(
        rarity=np.ones(BUCKETS, np.float32),
        weights=rng.normal(size=(BUCKETS, 2)).astype(np.float16).astype(np.float32),
        bias=np.array([0.5, -0.5], np.float32),
    )
    texts = ["good day", "", "bad"]
    said = lexicon.logits(texts)
    assert said[1].tolist() == [0.5, -0.5]
    found = counts(["bad"])
    values = found.values / np.linalg.norm(found.values)
    np.testing.assert_allclose(said[2], values @ lexicon.weights[found.buckets] + lexicon.bias, rtol=1e-5)
    again = Lexicon.from_tensors(lexicon.tensors())
    np.testing.assert_array_equal(again.logits(texts), said)
    with pytest.raises(ValueError, match="buckets"):
        Lexicon.from_tensors({n: t[:5] for n, t in lexicon.tensors().items()})
