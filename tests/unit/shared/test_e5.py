"""The text model's own arithmetic, on a tiny network with random weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.e5 import (
    E5,
    SHIPPED,
    Bert,
    BertConfig,
    LoraConfig,
    add_lexicon,
    add_lora,
    from_hugging_face,
    load_adapter,
    load_lexicon,
    over_shipped,
    padded_width,
    save_adapter,
    save_lexicon,
    token_batches,
)
from shared.ngrams import BUCKETS, Lexicon

CONFIG = BertConfig(
    vocab_size=300,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=64,
    type_vocab_size=2,
)
TEXTS = ["good", "a rather longer text", "b", "", "no", "the very longest text that is in this list"]


def tokenize(texts: list[str], max_tokens: int = 64) -> list[list[int]]:
    """A token per character, between 1 and 2."""
    return [[1, *[min(299, ord(letter)) for letter in text][: max_tokens - 2], 2] for text in texts]


def tiny(seed: int = 0, max_tokens: int = 64) -> E5:
    torch.manual_seed(seed)
    network = Bert(CONFIG, torch.randn(CONFIG.vocab_size, CONFIG.hidden_size))
    return E5(
        network,
        partial(tokenize, max_tokens=max_tokens),
        dimension=16,
        pad_id=0,
        prefix="",
        max_tokens=max_tokens,
        model_version="tiny@0",
    ).eval()


@given(st.integers(1, 600), st.sampled_from([64, 100, 128, 512]))
def test_widths_are_few_and_never_cut_a_text(longest: int, max_tokens: int) -> None:
    longest = min(longest, max_tokens)
    width = padded_width(longest, max_tokens)
    assert longest <= width <= max_tokens
    assert width % 16 == 0 or width == max_tokens
    assert width < longest + 16


def test_a_batch_that_was_started_has_the_vectors_of_one_that_was_waited_for() -> None:
    e5 = tiny()
    readings = [reading for reading in e5.read(TEXTS) if reading.ids]
    waits = [e5.start(readings[:2]), e5.start(readings[2:])]
    np.testing.assert_array_equal(waits[0](), e5.vectors(readings[:2]))
    np.testing.assert_array_equal(waits[1](), e5.vectors(readings[2:]))


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 100))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = token_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == [i for i, length in enumerate(lengths) if length]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_a_batch_equals_its_rows_one_by_one(budget: int) -> None:
    e5 = tiny()
    together, present = e5.embed(TEXTS, budget)
    alone = np.concatenate([e5.embed([text])[0] for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert present.tolist() == [True, True, True, False, True, True]
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), present.astype(float), atol=1e-6)


def test_rows_without_padding_have_the_vectors_of_padded_ones() -> None:
    e5 = tiny()
    rows = [row for row in e5.tokenize([*TEXTS, "evil", "a", "c"]) if row]  # groups of 1, and of 2 at the end
    with torch.inference_mode():
        padded, packed = e5(*e5.pad(rows)), e5.ready(rows)()
    assert e5.packs
    np.testing.assert_allclose(packed.numpy(), padded.numpy(), atol=1e-6)
    assert e5.taken([6, 4, 4]) == 14


def test_another_network_is_given_padded_rows() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = tiny().network

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.inside(input_ids, attention_mask)
            return states

    e5 = E5(Wrapped(), tokenize, dimension=16, pad_id=0, prefix="", max_tokens=64, model_version="w@0").eval()
    rows = [row for row in e5.tokenize(TEXTS) if row]
    with torch.inference_mode():
        np.testing.assert_allclose(e5.ready(rows)().numpy(), tiny().ready(rows)().numpy(), atol=1e-6)
    assert not e5.packs
    assert e5.taken([6, 4, 4]) == 18


def test_what_a_post_cannot_say_is_cut_before_it_is_tokenised() -> None:
    seen: list[int] = []

    def watched(texts: list[str]) -> list[list[int]]:
        seen.extend(map(len, texts))
        return tokenize(texts)

    e5 = E5(tiny().network, watched, dimension=16, pad_id=0, prefix="", max_tokens=64, model_version="tiny@0")
    assert len(e5.tokenize(["x" * 1_000_000])[0]) == 64
    assert max(seen) <= 64 * 32


def test_a_lone_surrogate_is_a_question_mark_and_not_an_error() -> None:
    assert tiny().tokenize(["a\ud800b"]) == tiny().tokenize(["a?b"])


def test_gradients_reach_the_weights() -> None:
    e5 = tiny()
    e5(*e5.pad(e5.tokenize(["good", "bad one"]))).sum().backward()
    assert all(parameter.grad is not None for parameter in e5.network.parameters())


def test_lora_starts_at_zero_and_merges_into_the_same_vectors(tmp_path: Path) -> None:
    before, _ = tiny().embed(TEXTS)
    tuned = tiny()
    config = LoraConfig(rank=2, alpha=4.0, targets=("qkv", "outer"))
    added = add_lora(tuned.network, config)
    np.testing.assert_allclose(tuned.embed(TEXTS)[0], before, atol=1e-6)
    with torch.no_grad():
        for parameter in added:
            parameter.copy_(torch.randn(parameter.shape).half())
    assert sorted(p.shape for p in added) == sorted(p.shape for p in tuned.parameters() if p.requires_grad)
    save_adapter(tuned.network, tmp_path, config)

    merged = tiny()
    load_adapter(merged.network, tmp_path)
    expected = tuned.embed(TEXTS)[0]
    assert np.abs(expected - before).max() > 0.01
    np.testing.assert_allclose(merged.embed(TEXTS)[0], expected, atol=1e-4)


def test_an_adapter_over_the_shipped_one_wants_that_very_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.e5.SHIPPED_ADAPTER", tmp_path / "shipped")
    save_adapter(tiny().network, tmp_path / "shipped", None, also=["norm.weight"])
    save_adapter(tiny().network, tmp_path / "mine", None, also=["norm.bias"], over="shipped")
    assert over_shipped(tmp_path / "mine")
    assert not over_shipped(tmp_path / "shipped")
    save_adapter(tiny().network, tmp_path / "shipped", None, also=["norm.bias"])
    with pytest.raises(ValueError, match="another version"):
        over_shipped(tmp_path / "mine")


def test_an_adapter_of_another_network_is_refused(tmp_path: Path) -> None:
    save_adapter(tiny().network, tmp_path, None, also=["norm.weight"])
    with pytest.raises(ValueError, match="does not fit"):
        load_adapter(torch.nn.Linear(3, 3), tmp_path)
    with pytest.raises(ValueError, match="no linear layer named nothing"):
        add_lora(tiny().network, LoraConfig(targets=("nothing",)))


def test_query_key_and_value_are_joined_in_that_order() -> None:
    parts = {name: torch.full((16, 16), float(i)) for i, name in enumerate(("query", "key", "value"))}
    tensors = {f"encoder.layer.0.attention.self.{name}.weight": part for name, part in parts.items()}
    tensors |= {f"encoder.layer.0.attention.self.{name}.bias": torch.zeros(16) for name in parts}
    joined = from_hugging_face(tensors, 1)["layers.0.qkv.weight"]
    assert joined[:, 0].reshape(3, 16).mean(1).tolist() == [0.0, 1.0, 2.0]


def test_a_lexicon_adds_its_logits_to_the_vector(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(BUCKETS, 3)).astype(np.float32)
    lexicon = Lexicon(np.ones(BUCKETS, np.float32), weights, np.zeros(3, np.float32))
    save_adapter(tiny().network, tmp_path, None, also=["norm.weight"])
    assert load_lexicon(tmp_path) is None
    add_lexicon(tmp_path, lexicon)
    e5 = tiny()
    plain, _ = e5.embed(TEXTS)
    load_adapter(e5.network, tmp_path)
    own = load_lexicon(tmp_path)
    assert own is not None
    e5.lexicons = (own,)
    assert e5.dimension == 19
    vectors, present = e5.embed(TEXTS)
    np.testing.assert_allclose(vectors[:, :16], plain, atol=1e-6)
    np.testing.assert_allclose(vectors[present, 16:], lexicon.logits(TEXTS)[present], atol=0.02)
    assert not vectors[~present].any()


def test_a_lexicon_alone_is_an_adapter_that_leaves_the_network_as_it_is(tmp_path: Path) -> None:
    first, second = (
        Lexicon(
            np.ones(BUCKETS, np.float32), np.full((BUCKETS, c), c, np.float32), np.arange(c, dtype=np.float32)
        )
        for c in (2, 3)
    )
    save_lexicon(tmp_path, first)
    e5, plain = tiny(), tiny().embed(TEXTS)[0]
    load_adapter(e5.network, tmp_path)
    own = load_lexicon(tmp_path)
    assert own is not None
    e5.lexicons = (own, second)
    vectors, present = e5.embed(TEXTS)
    assert np.array_equal(vectors[:, :16], plain)
    told = np.concatenate([first.logits(TEXTS), second.logits(TEXTS)], axis=1)
    np.testing.assert_allclose(vectors[present, 16:], told[present], atol=0.02)
    assert not over_shipped(tmp_path)
    save_lexicon(tmp_path, first, over=SHIPPED)
    assert over_shipped(tmp_path)
