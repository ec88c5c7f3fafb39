"""The fusion model on tiny random weights: every subset answered, contributions that sum, files that
round-trip."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.fusion.model import (
    EMOTIONS,
    HEADS,
    STRATEGIES,
    FusionModel,
    FusionNetwork,
    Group,
    ModelConfig,
    load_network,
    save,
    subset_codes,
)
from services.fusion.settings import SHIPPED_WEIGHTS
from shared.messages import Label, Modality, Vector

WIDTHS = {"text": 6, "image": 8, "audio": 5, "speech": 6}
ALL = tuple(Modality)
SUBSETS = [subset for size in range(5) for subset in combinations(ALL, size)]


def network(strategy: str = "attention", head: str = "mlp", seed: int = 0, wide: str = "") -> FusionNetwork:
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"strategy": strategy, "head": head, "width": 16, "layers": 2, "rank": 3}
    made = FusionNetwork(ModelConfig(WIDTHS, emotions=EMOTIONS, wide=wide, **shape))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        made.temperatures.copy_(torch.rand(16) + 0.5)
    return made.eval()


def model(strategy: str = "attention", head: str = "mlp") -> FusionModel:
    return FusionModel(network(strategy, head), "test@0")


def post(subset: tuple[Modality, ...], seed: int = 1) -> Mapping[Modality, Vector]:
    rng = np.random.default_rng(seed)
    drawn = {slot: rng.normal(size=WIDTHS[slot.name.lower()]).astype(np.float16) for slot in ALL}
    return {slot: drawn[slot] for slot in subset}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_subset_is_answered_and_its_contributions_sum_to_the_score(strategy: str, head: str) -> None:
    tested = model(strategy, head)
    verdicts = tested.classify([post(subset) for subset in SUBSETS])
    priors = tested.judge([{slot.name.lower(): v for slot, v in post(s).items()} for s in SUBSETS]).prior
    for subset, verdict, prior in zip(SUBSETS, verdicts, priors, strict=True):
        if not subset:
            assert verdict.label is Label.UNSCORED
            continue
        assert sum(verdict.probabilities) == pytest.approx(1, abs=1e-9)
        assert verdict.score == pytest.approx(verdict.probabilities[2] - verdict.probabilities[0], abs=1e-12)
        assert [weight.modality for weight in verdict.modalities] == list(subset)
        assert prior + sum(weight.contribution for weight in verdict.modalities) == pytest.approx(
            verdict.score, abs=1e-9
        )
        assert set(verdict.emotions) == set(EMOTIONS)
        assert sum(verdict.emotions.values()) == pytest.approx(1, abs=1e-6)


def test_a_post_with_nothing_is_unscored() -> None:
    (verdict,) = model().classify([{}])
    assert (verdict.label, verdict.probabilities, verdict.score) == (Label.UNSCORED, (0, 0, 0), 0)
    assert verdict.modalities == ()
    assert verdict.emotions == {}


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SUBSETS), st.integers(0, 99)), max_size=12))
def test_a_batch_equals_its_rows_one_by_one(
    strategy: str, wanted: list[tuple[tuple[Modality, ...], int]]
) -> None:
    tested = model(strategy)
    posts = [post(subset, seed) for subset, seed in wanted]
    together = tested.classify(posts)
    for one, other in zip(together, (tested.classify([p])[0] for p in posts), strict=True):
        assert one.label is other.label
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert [w.contribution for w in one.modalities] == pytest.approx(
            [w.contribution for w in other.modalities], abs=1e-5
        )


def test_contributions_are_shapley_values_of_the_score() -> None:
    """Against the definition: the mean over all orders of arrival of what a modality's arrival changed."""
    tested = model()
    full = post((Modality.TEXT, Modality.IMAGE, Modality.SPEECH))

    def score(subset: tuple[Modality, ...]) -> float:
        if not subset:
            return float(tested.judge([{}]).explained[0])
        return tested.classify([{slot: full[slot] for slot in subset}])[0].score

    from itertools import permutations

    orders = list(permutations(full))
    (verdict,) = tested.classify([full])
    for weight in verdict.modalities:
        changes = [
            score((*order[: order.index(weight.modality)], weight.modality))
            - score(order[: order.index(weight.modality)])
            for order in orders
        ]
        assert weight.contribution == pytest.approx(np.mean(changes), abs=1e-6)


@pytest.mark.parametrize("wide", ["", "text"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_subsets_taken_together_are_answered_as_each_alone(strategy: str, head: str, wide: str) -> None:
    made = network(strategy, head, wide=wide)
    columns = [0, 2, 3]
    vectors = {slot: torch.randn(5, width) for slot, width in WIDTHS.items()}
    whole = made.project(vectors, torch.tensor([[True, False, True, True]] * 5)).detach()
    tokens = whole[:, columns]
    subsets = torch.tensor([[bool(code & 1 << place) for place in range(3)] for code in range(1, 8)])
    with torch.inference_mode():
        first, second = [(tokens[:2], columns, subsets), (tokens, columns, subsets)]
        _, (logits, feelings) = made.of_subsets([Group(*first), Group(*second)])
        for subset, found in zip(subsets, logits, strict=True):
            present = torch.zeros(5, 4, dtype=torch.bool)
            present[:, columns] = subset
            alone, emotions = made(whole, present)
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
    assert feelings is not None
    assert emotions is not None
    torch.testing.assert_close(feelings, emotions, atol=1e-5, rtol=1e-5)  # of the last: the whole


@pytest.mark.parametrize("wide", ["", "image"])
def test_an_absent_slot_has_no_say(wide: str) -> None:
    """What lies in the place of a slot that is masked must not reach the answer."""
    tokens = torch.randn(3, 4, 19 if wide else 16)
    present = torch.tensor([[True, False, True, False]] * 3)
    other = tokens.clone()
    other[:, 1] = 99.0
    for strategy in STRATEGIES:
        made = network(strategy, wide=wide)
        assert torch.equal(made(tokens, present)[0], made(other, present)[0])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_network_begins_with_its_wide_part_and_nothing_else(strategy: str, head: str) -> None:
    made = network(strategy, head, wide="speech")
    weights, bias = torch.randn(3, WIDTHS["speech"]), torch.randn(3)
    made.start_from(weights, bias)
    vectors = {slot: torch.randn(4, width) for slot, width in WIDTHS.items()}
    present = torch.tensor([[True, True, True, True]] * 2 + [[True, True, True, False]] * 2)
    logits, _ = made(made.project(vectors, present), present)
    torch.testing.assert_close(logits[:2], vectors["speech"][:2] @ weights.T + bias)
    assert not logits[2:].any(), "it says something where the slot is absent"
    logits.sum().backward()
    assert made.wide is not None
    assert made.wide.weight.grad is None
    assert made.project(vectors, present).requires_grad


def test_temperature_is_that_of_the_subset() -> None:
    made = network()
    present = torch.tensor([[True, False, False, False], [True, True, False, False]])
    assert subset_codes(present).tolist() == [1, 3]
    with torch.no_grad():
        made.temperatures.fill_(1.0)
        made.temperatures[3] = 1000.0
    p = made.calibrated(torch.tensor([[4.0, 0, 0], [4.0, 0, 0]]), present)
    assert p[0].max() > 0.9
    assert p[1].max() < 0.34


def test_emotions_have_a_temperature_of_their_own() -> None:
    made = network()
    text = (Modality.TEXT,)
    with torch.no_grad():
        made.emotion_temperatures.fill_(1.0)
        (plain,) = FusionModel(made, "test@0").classify([post(text)])
        made.emotion_temperatures[1] = 1000.0  # of text alone
        (flat,) = FusionModel(made, "test@0").classify([post(text)])
        (both,) = FusionModel(made, "test@0").classify([post((Modality.TEXT, Modality.IMAGE))])
    assert max(plain.emotions.values()) > 0.2
    assert max(flat.emotions.values()) < 0.15
    assert max(both.emotions.values()) > 0.2
    assert (flat.probabilities, flat.score) == (plain.probabilities, plain.score)
    present = torch.tensor([[True, False, False, False], [True, True, False, False]])
    p = made.calibrated_emotions(torch.eye(2, 7) * 4, present)
    assert p[0].max() < 0.15
    assert p[1].max() > 0.8


def test_save_and_load_give_the_same_verdicts(tmp_path: Path) -> None:
    made = network(wide="text")
    save(made, tmp_path, {"why": "a test"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = FusionModel.load(tmp_path, "cpu")
    posts = [post(subset) for subset in SUBSETS]
    before = FusionModel(made, loaded.model_version).classify(posts)
    assert loaded.classify(posts) == before
    name, _, digest = loaded.model_version.partition("@")
    assert name == "crowdtone-fusion"
    assert len(digest) == 12
    assert loaded.dimensions == {slot: WIDTHS[slot.name.lower()] for slot in ALL}


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save(network(), tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"width": 16', '"width": 32'))
    with pytest.raises(ValueError, match="not one of this version"):
        load_network(tmp_path)


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="text vectors of shape"):
        model().classify([{Modality.TEXT: np.zeros(7, np.float16)}])


def test_a_model_of_other_classes_gives_no_verdicts_but_probabilities() -> None:
    made = FusionModel(FusionNetwork(ModelConfig({"text": 6}, classes=("happy", "sad"), width=16)), "test@0")
    with pytest.raises(ValueError, match="happy, sad"):
        made.classify([{}])
    opinion = made.judge([{"text": np.ones(6, np.float16)}, {}])
    assert opinion.probabilities.shape == (2, 2)
    assert opinion.prior + opinion.contributions.sum(1) == pytest.approx(opinion.explained)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the slots text"):
        ModelConfig({"text": 4}, wide="image")
    every: list[dict[str, Any]] = [
        {"strategy": "vote"},
        {"head": "tree"},
        {"classes": ("one",)},
        {"slots": {}},
    ]
    for changes in every:
        with pytest.raises(ValueError):
            ModelConfig(**({"slots": {"text": 4}} | changes))


def test_the_encoders_it_was_trained_on_travel_with_the_model(tmp_path: Path) -> None:
    save(network(), tmp_path, {"encoders": {"text": "encoder@1", "gesture": "other@1"}})
    assert FusionModel.load(tmp_path, "cpu").encoders == {Modality.TEXT: "encoder@1"}


def test_a_model_is_loaded_for_so_many_threads_or_leaves_them_alone() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        FusionModel.load(SHIPPED_WEIGHTS, "cpu")
        assert torch.get_num_threads() == 2
        FusionModel.load(SHIPPED_WEIGHTS, "cpu", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
