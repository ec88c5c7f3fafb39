"""The commands on feature files, which need no encoder: what they write, print and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from services.training import cli

torch.set_num_threads(1)


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    made.command("train")(cli.train)
    made.command("evaluate")(cli.evaluate)
    made.command("predict")(cli.predict)
    return made


def write_features(path: Path, seed: int, **changes: Any) -> Path:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 120)
    arrays = {
        "text": rng.normal(size=(120, 5)) + 3 * y[:, None],
        "video": rng.normal(size=(120, 3)),
        "y": y,
        "ids": np.array([f"v{i // 10}_{i % 10}" for i in range(120)]),
    }
    np.savez(path, **(arrays | changes))
    return path


def run(app: typer.Typer, *words: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    printed: dict[str, Any] = json.loads(result.stdout)
    return printed


@pytest.mark.parametrize(
    "extra", [[], ["--strategy", "tensor", "--head", "svm"], ["--context"], ["--trials", 2]]
)
def test_train_and_evaluate_on_features(app: typer.Typer, tmp_path: Path, extra: list[object]) -> None:
    train_file, test_file = (write_features(tmp_path / f"{i}.npz", i) for i in range(2))
    out = tmp_path / "model"
    trained = run(app, "train", "--features", train_file, "--out", out, "--epochs", 3, "--json", *extra)
    assert trained["classes"] == ["0", "1"]
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    measured = run(
        app, "evaluate", "--model", out, "--features", test_file, "--report", tmp_path / "report", "--json"
    )
    assert measured["rows"] == 120
    assert set(measured) >= {
        "accuracy", "macro_recall", "macro_f1", "weighted_f1",
        "ece", "per_class", "per_language", "per_subset",
    }  # fmt: skip
    assert set(measured["per_subset"]) == {"text", "video", "text+video"}
    assert measured["per_subset"]["text"]["accuracy"] > 0.7
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000


def test_whole_videos_are_held_out(app: typer.Typer, tmp_path: Path) -> None:
    file = write_features(tmp_path / "f.npz", 0)
    trained = run(app, "train", "--features", file, "--out", tmp_path / "m", "--epochs", 1, "--json")
    assert trained["dev_rows"] == 10, "one of the twelve videos, with its ten utterances"
    assert trained["refitted_epochs"] == 1, "and then all of them teach"
    other = run(app, "train", "--features", file, "--dev-features", file, "--out", tmp_path / "n", "--json")
    assert "refitted_epochs" not in other


def test_a_model_of_some_of_the_slots(app: typer.Typer, tmp_path: Path) -> None:
    file = write_features(tmp_path / "f.npz", 0)
    words = ("train", "--features", file, "--out", tmp_path / "m", "--epochs", 1, "--json", "--slots")
    run(app, *words, "video")
    measured = run(app, "evaluate", "--model", tmp_path / "m", "--features", file, "--json")
    assert set(measured["per_subset"]) == {"video"}
    refused = CliRunner().invoke(app, [str(word) for word in (*words, "text,smell")])
    assert (refused.exit_code, "no smell among text, video" in " ".join(refused.output.split())) == (
        cli.USAGE_EXIT, True,
    )  # fmt: skip


def test_tensorboard_logs_are_written(app: typer.Typer, tmp_path: Path) -> None:
    file = write_features(tmp_path / "f.npz", 0)
    logs = tmp_path / "logs"
    run(
        app,
        "train",
        "--features",
        file,
        "--out",
        tmp_path / "m",
        "--epochs",
        2,
        "--tensorboard",
        logs,
        "--json",
    )
    assert [path.name.split(".")[0] for path in logs.iterdir()] == ["events"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["train", "--out", "m"], "give one of"),
        (["train", "--out", "m", "--manifest", "none.csv"], "there is no manifest"),
        (["train", "--out", "m", "--features", "none.npz"], "not an .npz"),
        (["train", "--out", "m", "--recipe", "secret"], "no recipe"),
        (["train", "--out", "m", "--manifest", "none.csv", "--measure", "luck"], "none of accuracy"),
        (["evaluate"], "nothing to evaluate on"),
        (["evaluate", "--model", "none", "--features", "f.npz"], "No such file"),
        (["predict"], "give --text, --image or --audio"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == cli.USAGE_EXIT
    assert reason in " ".join(result.output.split())


def test_features_that_hold_nan_or_objects_are_refused(app: typer.Typer, tmp_path: Path) -> None:
    bad = np.full((120, 5), np.nan)
    file = write_features(tmp_path / "nan.npz", 0, text=bad)
    result = CliRunner().invoke(app, ["train", "--features", str(file), "--out", str(tmp_path / "m")])
    assert (result.exit_code, "NaN" in result.output) == (cli.USAGE_EXIT, True)
    file = write_features(tmp_path / "pickle.npz", 0, y=np.array([{}] * 120, dtype=object))
    result = CliRunner().invoke(app, ["train", "--features", str(file), "--out", str(tmp_path / "m")])
    assert (result.exit_code, "plain arrays" in result.output) == (cli.USAGE_EXIT, True)
