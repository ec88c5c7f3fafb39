"""Fine-tuning on a tiny text model: it learns, and its adapter gives the encoder what was learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.training.finetune import (
    States,
    Task,
    TuneOptions,
    dev_measures,
    lower_states,
    tune,
    vectors,
    wide,
)
from shared.e5 import E5, Bert, BertConfig, load_adapter

torch.set_num_threads(1)
SHAPE = BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=24,
    type_vocab_size=1,
)


def tiny() -> E5:
    """A text model whose words are single digits; it reads them as their number."""

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [[1, *(int(word) + 5 for word in text.split()), 2][:20] for text in texts]

    torch.manual_seed(0)
    return E5(
        Bert(SHAPE, torch.randn(40, 16)),
        tokenize,
        dimension=16,
        pad_id=0,
        prefix="",
        max_tokens=20,
        model_version="tiny@0",
    ).eval()


def task(count: int, seed: int) -> Task:
    """Which of 1 and 2 is among the words; the rest is noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    texts = []
    for label in labels:
        words = rng.integers(3, 10, rng.integers(3, 9)).tolist()
        words[int(rng.integers(len(words)))] = int(label) + 1
        texts.append(" ".join(map(str, words)))
    return Task(texts, labels, np.full(count, -1), np.ones(count), np.full(count, ""))


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_it_learns_and_the_adapter_gives_the_encoder_what_was_learned(mode: str, tmp_path: Path) -> None:
    e5 = tiny()
    options = TuneOptions(
        mode=mode,
        layers=2,
        rank=4,
        epochs=8,
        learning_rate=5e-3,
        head_learning_rate=1e-2,
        batch_tokens=256,
        measure="accuracy",
    )
    dev = task(100, 1)
    model = tune(e5, task(600, 0), dev, 2, options, tmp_path)
    dev_states = lower_states(tiny(), dev.texts, 2)
    (accuracy,) = dev_measures(model, dev, dev_states, 2, "accuracy", e5.device).values()
    assert accuracy > 0.9
    assert vectors(model, dev_states, e5.device) == pytest.approx(e5.embed(dev.texts)[0], abs=5e-3)
    served = tiny()
    before = served.embed(["3 4 1", "3 4 2"])[0]
    load_adapter(served.network, tmp_path)
    after = served.embed(["3 4 1", "3 4 2"])[0]
    tuned = e5.embed(["3 4 1", "3 4 2"])[0]
    assert after == pytest.approx(tuned, abs=5e-3), "float16 in the adapter"
    assert before[0] @ before[1] > after[0] @ after[1], "the two classes have moved apart"


def test_it_learns_what_the_model_beside_it_does_not_say(tmp_path: Path) -> None:
    """The other model knows which of the first two classes it is; the words tell those from the third."""
    e5 = tiny()

    def beside(count: int, seed: int) -> Task:
        words = task(count, seed)
        kind = np.random.default_rng(seed + 100).integers(0, 2, count)
        said = np.zeros((count, 3), np.float32)
        said[np.arange(count), kind] = 4
        return replace(words, labels=np.where(words.labels == 1, kind, 2), said=said)

    options = TuneOptions(
        layers=2, epochs=8, learning_rate=5e-3, head_learning_rate=1e-2, batch_tokens=256, measure="accuracy"
    )
    train, dev = beside(600, 0), beside(100, 1)
    model = tune(e5, train, dev, 3, options, tmp_path)
    states = lower_states(tiny(), dev.texts, 2)
    (accuracy,) = dev_measures(model, dev, states, 3, "accuracy", e5.device).values()
    assert accuracy > 0.9
    (alone,) = dev_measures(model, replace(dev, said=None), states, 3, "accuracy", e5.device).values()
    assert alone < 0.8
    found = wide(model, dimension=16 + 2)
    assert found is not None
    own = vectors(model, states, e5.device).astype(np.float32)
    assert dev.said is not None
    rows = torch.from_numpy(np.concatenate([own, np.ones((100, 2), np.float32), dev.said], 1))
    both = rows @ found.weights.T + found.bias
    assert np.mean(both.numpy().argmax(1) == dev.labels) == accuracy
    assert wide(tune(tiny(), task(60, 0), task(30, 1), 2, options, tmp_path), 16) is None


def test_an_interrupted_tuning_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    options = TuneOptions(layers=2, epochs=3, learning_rate=5e-3, batch_tokens=256, measure="accuracy")

    def interrupt(place: str, measured: dict[str, float]) -> None:
        if "dev accuracy" in measured and float(place) > 1:
            raise KeyboardInterrupt

    train, dev = task(200, 0), task(50, 1)
    whole = tune(tiny(), train, dev, 2, options, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tune(tiny(), train, dev, 2, options, tmp_path / "cut", report=interrupt)
    told: list[str] = []
    resumed = tune(
        tiny(), train, dev, 2, options, tmp_path / "cut", report=lambda place, _: told.append(place)
    )
    assert min(map(float, told)) > 1, "it began again"
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_what_another_tuning_left_is_not_gone_on_with(tmp_path: Path) -> None:
    options = TuneOptions(layers=2, epochs=1, learning_rate=5e-3, batch_tokens=256, measure="accuracy")
    tune(tiny(), task(60, 0), task(30, 1), 2, options, tmp_path)
    told: list[str] = []
    tune(tiny(), task(60, 2), task(30, 1), 2, options, tmp_path, report=lambda place, _: told.append(place))
    assert told, "nothing was trained"


def test_states_of_the_lower_layers_go_on_to_the_same_vectors() -> None:
    e5 = tiny()
    texts = ["1 2 3", "4", "5 6 7 8"]
    states = lower_states(e5, texts, layers=2)
    assert states.lengths.tolist() == [5, 3, 6]
    block, mask = states.padded([2, 0, 1], torch.device("cpu"))
    assert isinstance(e5.network, Bert)
    with torch.inference_mode():
        for layer in e5.network.layers[1:]:
            block = layer(block, mask[:, None, None, :])
        pooled = (block * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    expected = e5.embed([texts[2], texts[0], texts[1]])[0]
    assert torch.nn.functional.normalize(pooled, dim=1).numpy() == pytest.approx(expected, abs=2e-3)


def test_padding_has_no_say() -> None:
    states = States(np.ones((7, 4), np.float16), np.array([0, 2, 7]))
    block, mask = states.padded([0, 1], torch.device("cpu"))
    assert mask.sum(1).tolist() == [2, 5]
    assert block[0, 2:].abs().sum() == 0
