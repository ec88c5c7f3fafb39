"""Training on made-up vectors: it learns, repeats itself by seed, and is measured with slots withheld."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.fusion.model import HEADS, STRATEGIES, FusionModel, ModelConfig, load_network, save
from services.training import evaluation, report
from services.training.examples import Examples, joined
from services.training.fit import (
    FitOptions,
    Wide,
    calibrate,
    class_weights,
    fit,
    fit_counting,
    refit,
    withheld,
)

torch.set_num_threads(1)
SLOTS = {"text": 6, "image": 4}
CONFIG = ModelConfig(SLOTS, width=16, layers=1, attention_heads=2, rank=2)
OPTIONS = FitOptions(epochs=6, batch_rows=64, learning_rate=5e-3)


def examples(count: int, seed: int, present: float = 0.8) -> Examples:
    """The label is in both slots, in the text more clearly."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    centres = {"text": np.eye(6)[:3] * 3, "image": np.eye(4)[:3]}
    vectors = {
        slot: (centres[slot][labels] + rng.normal(size=(count, width))).astype(np.float16)
        for slot, width in SLOTS.items()
    }
    index = np.repeat(np.arange(count)[:, None], 2, 1)
    index[rng.random(count) > present, 1] = -1
    return Examples(
        vectors=vectors,
        index=index,
        labels=labels,
        emotions=np.full(count, -1),
        ids=np.array([str(i) for i in range(count)]),
        languages=np.where(labels == 0, "de", "en"),
        groups=np.full(count, ""),
        parts=np.full(count, ""),
    )


@pytest.mark.parametrize(
    ("strategy", "head"), [*((s, "mlp") for s in STRATEGIES), *(("attention", h) for h in HEADS[1:])]
)
def test_every_strategy_and_head_learns_what_is_there(strategy: str, head: str) -> None:
    network = fit(replace(CONFIG, strategy=strategy, head=head), examples(600, 0), examples(200, 1), OPTIONS)
    result = evaluation.evaluate(evaluation.NetworkJudge(network), examples(400, 2))
    assert result["accuracy"] > 0.8
    assert result["per_subset"]["text"]["accuracy"] > 0.75
    assert result["per_subset"]["image"]["accuracy"] > 0.45
    assert result["ece"] < 0.12


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    def weights(seed: int) -> torch.Tensor:
        network = fit(CONFIG, examples(200, 0), examples(100, 1), replace(OPTIONS, epochs=2, seed=seed))
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_refitting_learns_from_the_rows_that_told_when_to_stop() -> None:
    """Only those show the third class."""
    rows, stop = examples(400, 0, present=1), examples(200, 1, present=1)
    rows = rows.take(rows.labels < 2)
    network, epochs = fit_counting(CONFIG, rows, stop, OPTIONS)
    again = refit(network, joined([rows, stop]), OPTIONS, epochs)
    assert 1 <= epochs <= OPTIONS.epochs
    assert torch.equal(again.temperatures, network.temperatures)
    test = examples(200, 2, present=1)
    recall = [
        evaluation.evaluate(evaluation.NetworkJudge(each), test)["per_class"]["positive"]["recall"]
        for each in (network, again)
    ]
    assert recall[0] == 0
    assert recall[1] > 0.2


def test_a_wide_part_stands_where_learning_only_makes_it_worse() -> None:
    """The rows to learn from are mislabelled, as those are of which a model on its own texts is too sure."""
    rows, stop = examples(400, 0, present=1), examples(200, 1, present=1)
    wide = Wide(torch.eye(3, 6) * 3, torch.zeros(3))
    options = replace(OPTIONS, wide=wide)
    misled = replace(rows, labels=(rows.labels + 1) % 3)
    network, epochs = fit_counting(replace(CONFIG, wide="text"), misled, stop, options)
    assert epochs == 0
    test = examples(200, 2, present=1)
    accuracy = evaluation.evaluate(evaluation.NetworkJudge(network), test)["accuracy"]
    said = test.vectors["text"].astype(np.float32) @ wide.weights.numpy().T
    assert accuracy == np.mean(said.argmax(1) == test.labels) > 0.9
    none = replace(options, wide=Wide(torch.zeros(3, 6), torch.zeros(3)))
    network, epochs = fit_counting(replace(CONFIG, wide="text"), rows, stop, none)
    assert epochs > 0
    assert evaluation.evaluate(evaluation.NetworkJudge(network), test)["accuracy"] > 0.9


def test_a_trained_model_survives_its_files(tmp_path: Path) -> None:
    network = fit(CONFIG, examples(200, 0), examples(100, 1), replace(OPTIONS, epochs=2))
    save(network, tmp_path)
    rows = examples(50, 3)
    assert np.array_equal(
        evaluation.probabilities(load_network(tmp_path), rows), evaluation.probabilities(network, rows)
    )


def test_what_is_evaluated_is_what_is_served() -> None:
    """The same probabilities by `evaluate`'s batches with masks and by the service's groups without."""
    network = fit(CONFIG, examples(200, 0), examples(100, 1), replace(OPTIONS, epochs=2))
    rows = examples(60, 4, present=0.5)
    served = FusionModel(network, "test@0").judge(list(rows.posts()))
    assert served.probabilities == pytest.approx(evaluation.probabilities(network, rows), abs=1e-5)


def test_evaluation_counts_every_row_once_per_language_and_leaves_out_what_has_no_label() -> None:
    network = fit(CONFIG, examples(200, 0), examples(100, 1), replace(OPTIONS, epochs=1))
    rows = examples(100, 5)
    rows.labels[:7] = -1
    result = evaluation.evaluate(evaluation.NetworkJudge(network), rows)
    assert (result["rows"], result["rows_left_out"]) == (93, 7)
    assert sum(part["rows"] for part in result["per_language"].values()) == 93
    assert result["per_subset"]["text"]["rows"] == 93
    assert result["per_subset"]["text+image"]["rows"] == int(rows.present[7:, 1].sum())
    assert [point["rate"] for point in result["missing_rate"]][:2] == [0.0, 0.1]


def test_emotions_are_measured_on_the_rows_that_have_one() -> None:
    def feeling(count: int, seed: int) -> Examples:
        rows = examples(count, seed)
        return replace(rows, emotions=np.where(rows.labels == 0, 1, 0))

    config = replace(CONFIG, emotions=("joy", "anger"))
    network = fit(config, feeling(300, 0), feeling(100, 1), replace(OPTIONS, epochs=3))
    rows = feeling(200, 2)
    rows.labels[:50] = -1  # that there is no label is nothing to emotions
    rows.emotions[150:] = -1
    found = evaluation.emotions(network, rows)
    assert found is not None
    assert found["rows"] == 150
    assert found["accuracy"] > 0.8
    assert list(found["per_class"]) == ["joy", "anger"]
    temperatures = network.emotion_temperatures.clone()
    with torch.no_grad():
        assert network.feel is not None
        for parameter in network.feel.layers[-1].parameters():
            parameter.mul_(10)  # sure of everything
    calibrate(network, feeling(100, 1), balance=False)
    assert (network.emotion_temperatures[1:] > 2 * temperatures[1:]).all()
    assert evaluation.emotions(network, examples(10, 2)) is None
    assert evaluation.emotions(fit(CONFIG, rows, rows, replace(OPTIONS, epochs=1)), feeling(10, 2)) is None


def test_a_report_is_one_page_with_its_plots(tmp_path: Path) -> None:
    network = fit(CONFIG, examples(200, 0), examples(100, 1), replace(OPTIONS, epochs=1))
    result = evaluation.evaluate(evaluation.NetworkJudge(network), examples(100, 5))
    page = report.write(result, tmp_path, "a <title>").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "Emotions" not in page
    felt = report.write(result | {"emotions": result}, tmp_path, "a title").read_text()
    assert felt.count("data:image/png;base64,") == 4
    assert "By emotion" in felt
    assert "a &lt;title&gt;" in page
    assert "http" not in page


def test_withholding_never_takes_the_last_slot_but_in_the_rows_that_lose_all() -> None:
    rng = np.random.default_rng(0)
    present = np.ones((4000, 3), bool)
    kept = withheld(present, replace(OPTIONS, drop_slot=0.9, drop_all=0.0), rng)
    assert kept.any(1).all()
    kept = withheld(present, replace(OPTIONS, drop_slot=0.0, drop_all=0.1), rng)
    assert 0.07 < (~kept.any(1)).mean() < 0.13
    assert not withheld(~present, OPTIONS, rng).any()


def test_class_weights_give_every_class_the_same_share() -> None:
    labels = np.array([0, 0, 0, 1, -1])
    weights = class_weights(labels)
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum())
    assert weights[-1] == 1


def test_joined_sets_keep_their_own_vectors() -> None:
    first, second = examples(5, 0, present=1), examples(4, 1, present=1).aligned({"image": 4, "sound": 2})
    both = joined([first, second])
    assert both.slots == ("text", "image", "sound")
    posts = list(both.posts())
    assert posts[6]["image"].tolist() == second.vectors["image"][1].tolist()
    assert set(posts[6]) == {"image"}
    assert set(posts[0]) == {"text", "image"}
    again = joined([first, first])
    assert len(again.vectors["text"]) == 5, "sets over one array go on sharing it"


def test_vectors_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="the model takes 7"):
        examples(3, 0).aligned({"text": 7})
