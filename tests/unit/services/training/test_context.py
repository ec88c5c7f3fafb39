"""The context model: order matters to it, any modality may be withheld, its files give it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from services.training import context, evaluation
from services.training.context import ContextConfig, ContextModel, Videos
from services.training.examples import Examples
from services.training.fit import FitOptions

torch.set_num_threads(1)
CONFIG = ContextConfig({"text": 4, "audio": 3}, ("no", "yes"), width=16, dropout=0.1, members=2)


def examples(videos: int, seed: int) -> Examples:
    """What an utterance says is told by the text of the one before it: without context it cannot be known."""
    rng = np.random.default_rng(seed)
    count = videos * 8
    told = rng.integers(0, 2, count)
    labels = np.where(np.arange(count) % 8 == 0, told, np.roll(told, 1))
    text = rng.normal(size=(count, 4)).astype(np.float16) * 0.3
    text[:, 0] = told * 4 - 2
    order = rng.permutation(count)
    return Examples(
        vectors={"text": text, "audio": rng.normal(size=(count, 3)).astype(np.float16)},
        index=np.repeat(order[:, None], 2, 1),
        labels=labels[order],
        emotions=np.full(count, -1),
        ids=np.array([f"clip_of_{i // 8}_{i % 8}" for i in order]),
        languages=np.full(count, "und"),
        groups=np.full(count, ""),
        parts=np.full(count, ""),
    )


@pytest.fixture(scope="module")
def model() -> ContextModel:
    options = FitOptions(epochs=30, patience=30, learning_rate=1e-2, drop_slot=0.1, measure="accuracy")
    return context.fit(CONFIG, examples(40, 0), examples(10, 1), options)


def test_it_reads_what_was_said_before(model: ContextModel) -> None:
    result = evaluation.evaluate(model, examples(20, 2))
    assert result["accuracy"] > 0.85
    assert result["per_subset"]["text"]["accuracy"] > 0.8
    assert result["per_subset"]["audio"]["accuracy"] < 0.7


def test_videos_are_laid_out_in_their_order() -> None:
    rows = examples(3, 0)
    laid = Videos.of(rows).rows
    assert laid.shape == (3, 8)
    for video in laid:
        assert [name.rpartition("_")[2] for name in rows.ids[video]] == [str(i) for i in range(8)]


def test_ids_without_a_number_are_refused() -> None:
    rows = examples(1, 0)
    rows.ids[0] = "no number"
    with pytest.raises(ValueError, match="VIDEO_N"):
        Videos.of(rows)


def test_save_and_load_give_the_same_answers(model: ContextModel, tmp_path: Path) -> None:
    model.save(tmp_path, {})
    assert context.is_context(tmp_path)
    rows = examples(3, 4)
    assert np.array_equal(ContextModel.load(tmp_path).probabilities(rows), model.probabilities(rows))
