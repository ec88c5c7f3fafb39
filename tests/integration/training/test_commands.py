"""`crowdtone train --manifest`, `evaluate` and `predict` through the real encoders, on the demo's media.

A dozen rows teach nothing: what is tested is that every modality gets through, alone and together, that no
input is encoded twice, and that what is missing or broken never ends a command.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from services.training import cli
from shared.settings import ModelSettings

torch.set_num_threads(1)

MEDIA = Path(__file__).parents[3] / "demo" / "media"
SMILE, FROWN, CAT = (str(MEDIA / "images" / f"{name}.webp") for name in ("face_smile", "face_frown", "cat"))
HAPPY, ANGRY = (str(MEDIA / "voices" / f"{name}.opus") for name in ("11b02Fd", "14a02Wc"))

# text, image, audio, label, lang
Line = tuple[str, str, str, str, str]
TRAIN: tuple[Line, ...] = (
    ("I love this so much", SMILE, "", "positive", "en"),
    ("Best day of my life", "", "", "positive", "en"),
    ("Wunderbar, vielen Dank!", "", HAPPY, "positive", "de"),
    ("", SMILE, "", "positive", "en"),
    ("This is awful", FROWN, "", "negative", "en"),
    ("Worst service ever", "", "", "negative", "en"),
    ("So ein Mist", "", ANGRY, "negative", "de"),
    ("", FROWN, ANGRY, "negative", "de"),
    ("The train leaves at nine", CAT, "", "neutral", "en"),
    ("It is a cat", CAT, "", "neutral", "en"),
    ("Der Zug fährt um neun", "", "", "neutral", "de"),
    ("The meeting is on Monday", "", "", "neutral", "en"),
)  # fmt: skip
DEV: tuple[Line, ...] = (
    ("I love this so much", SMILE, HAPPY, "positive", "en"),
    ("This is awful", FROWN, ANGRY, "negative", "en"),
    ("It is a cat", CAT, "", "neutral", "en"),
    ("", SMILE, "", "positive", "und"),
    ("", "", ANGRY, "negative", "de"),
    ("Der Zug fährt um neun", "", "", "neutral", "de"),
)


def write(path: Path, lines: Sequence[Line], columns: str = "text image audio label lang") -> Path:
    wanted = columns.split()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, wanted, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(
            dict(zip(("text", "image", "audio", "label", "lang"), line, strict=True)) for line in lines
        )
    return path


def run(*words: object) -> dict[str, Any]:
    app = typer.Typer()
    for command in (cli.train, cli.evaluate, cli.predict):
        app.command(command.__name__)(command)
    result = CliRunner().invoke(app, [str(word) for word in (*words, "--json")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache with the weights that this machine has converted, and with no embedding in it."""
    folder = tmp_path_factory.mktemp("cache")
    machine = ModelSettings().cache_dir.expanduser()
    for weights in machine.iterdir() if machine.is_dir() else ():
        if weights.is_dir() and weights.name != "embeddings":
            (folder / weights.name).symlink_to(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROWDTONE_CACHE_DIR", str(folder))
        yield folder


def encodings(cache: Path) -> Mapping[str, int]:
    """Every batch that an encoder was asked for: each is written as one file, again if asked again."""
    return {str(path): path.stat().st_mtime_ns for path in (cache / "embeddings").glob("*/*.npz")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("training")
    write(found / "train.csv", TRAIN)
    write(found / "dev.csv", DEV)
    return found


def train(folder: Path, out: str, *options: object) -> dict[str, Any]:
    files = ("--manifest", folder / "train.csv", "--dev", folder / "dev.csv", "--out", folder / out)
    return run("train", *files, "--epochs", 4, *options)


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Any]:
    return train(folder, "model")


def test_a_training_takes_every_modality_through_its_encoder(trained: dict[str, Any], cache: Path) -> None:
    assert trained["classes"] == ["negative", "neutral", "positive"]
    assert set(trained["encoders"]) == {"text", "image", "audio", "speech"}
    assert (trained["training_rows"], trained["dev_rows"]) == (12, 6)
    assert len(encodings(cache)) == 3, "each encoder asked once for what the training needs; dev adds nothing"


def test_a_second_training_asks_no_encoder_and_gives_the_same_model(
    trained: dict[str, Any], folder: Path, cache: Path
) -> None:
    before = encodings(cache)
    again = train(folder, "again")
    assert encodings(cache) == before
    assert again["model_version"].split("@")[1] == trained["model_version"].split("@")[1]


@pytest.mark.usefixtures("trained")
def test_evaluate_measures_every_modality_alone_and_with_the_others(folder: Path) -> None:
    found = run("evaluate", "--model", folder / "model", "--manifest", folder / "dev.csv", "--report", folder)
    assert (found["rows"], found["rows_left_out"]) == (6, 0)
    assert {"text", "image", "audio", "speech", "text+image", "text+image+audio+speech"} <= set(
        found["per_subset"]
    )
    assert found["per_subset"]["image"]["rows"] == 4
    assert found["per_subset"]["audio"]["rows"] == 3
    assert set(found["per_language"]) == {"en", "de", "und"}
    assert found["paired"]["text"]["rows"] == 3, "the rows with words and more"
    assert "McNemar" in (folder / "report.html").read_text()


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("columns", ["text label", "image label", "audio label", "text audio label lang"])
def test_a_modality_that_no_row_has_is_no_error(folder: Path, tmp_path: Path, columns: str) -> None:
    manifest = write(tmp_path / "some.csv", DEV, columns)
    found = run("evaluate", "--model", folder / "model", "--manifest", manifest)
    has = [any(line[("text", "image", "audio").index(name)] for name in columns.split() if name in
               ("text", "image", "audio")) for line in DEV]  # fmt: skip
    assert (found["rows"], found["rows_left_out"]) == (sum(has), len(DEV) - sum(has))


@pytest.mark.usefixtures("trained")
def test_broken_media_are_absent_and_leave_the_rest_of_the_row(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no picture after all")
    manifest = write(
        tmp_path / "broken.csv",
        [
            ("I love this so much", str(broken), str(broken), "positive", "en"),
            ("", str(broken), "", "negative", "en"),
        ],
    )
    found = run("evaluate", "--model", folder / "model", "--manifest", manifest)
    assert (found["rows"], found["rows_left_out"], set(found["per_subset"])) == (1, 1, {"text"})
    judged = run("predict", "--model", folder / "model", "--text", "hello", "--image", broken)
    assert set(judged["contributions"]) == {"text"}
    assert "broken" in judged["absent"]["image"]
    unscored = run("predict", "--model", folder / "model", "--image", broken)
    assert (unscored["label"], unscored["probabilities"]) == ("unscored", {})


@pytest.mark.usefixtures("trained")
def test_predict_says_what_each_modality_contributed(folder: Path) -> None:
    found = run(
        "predict", "--model", folder / "model", "--text", "Wunderbar", "--image", SMILE, "--audio", HAPPY,
        "--language", "de",
    )  # fmt: skip
    assert set(found["contributions"]) == {"text", "image", "audio", "speech"}
    assert found["prior"] + sum(found["contributions"].values()) == pytest.approx(found["score"], abs=1e-9)
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    assert found["transcript"], "the voice was heard"


def test_augmented_copies_are_trained_on_and_encoded_once(folder: Path, cache: Path, tmp_path: Path) -> None:
    manifest = write(tmp_path / "few.csv", [TRAIN[0], TRAIN[2], TRAIN[4], TRAIN[9]])
    words = ("train", "--manifest", manifest, "--dev", folder / "dev.csv", "--epochs", 2, "--augment", 2)
    found = run(*words, "--out", tmp_path / "model")
    assert (found["training_rows"], found["augmented_copies"]) == (12, 2)
    before = encodings(cache)
    again = run(*words, "--out", tmp_path / "model")
    assert encodings(cache) == before
    assert again["model_version"] == found["model_version"]


@pytest.mark.usefixtures("trained")
def test_robustness_alters_every_modality_of_the_rows(folder: Path, tmp_path: Path) -> None:
    manifest = write(
        tmp_path / "few.csv",
        [
            ("Best day of my life 😀", SMILE, "", "positive", "en"),
            ("Such a mess", "", ANGRY, "negative", "en"),
        ],
    )
    labelled = write(tmp_path / "irony.csv", [("Great, rain again", "", "", "1", "en")], "text label")
    found = run(
        "evaluate", "--model", folder / "model", "--manifest", manifest, "--robustness", "--sarcasm", labelled
    )["robustness"]  # fmt: skip
    alterations = found["alterations"]
    assert {row["modality"] for row in alterations.values()} == {"text", "image", "audio"}
    assert {"upper case", "emoji removed", "blur", "noise at 0 dB SNR", "Opus 6 kbit/s"} <= set(alterations)
    assert alterations["upper case"]["rows"] == 2
    assert alterations["emoji removed"]["rows"] == 1, "only rows that it changes"
    for row in alterations.values():
        assert row["accuracy_drop"] == pytest.approx(row["clean_accuracy"] - row["accuracy"])
    assert found["negation"]["pairs"] == 150
    assert found["sarcasm"]["lines"] == 24
    assert found["sarcasm_file"]["1"]["rows"] == 1
    assert sum(found["sarcasm_file"]["1"][name] for name in ("negative", "neutral", "positive")) == 1


def test_emotions_are_learned_measured_and_reported_where_rows_have_them(tmp_path: Path) -> None:
    lines = [(text, label) for text, _, _, label, _ in TRAIN if text]
    emotions = {"positive": "joy", "negative": "anger", "neutral": ""}
    manifest = tmp_path / "felt.csv"
    manifest.write_text(
        "text,label,emotion\n" + "".join(f'"{text}",{label},{emotions[label]}\n' for text, label in lines)
    )
    model, report = tmp_path / "model", tmp_path / "report"
    trained = run("train", "--manifest", manifest, "--dev", manifest, "--epochs", 2, "--out", model)
    assert trained["dev_emotions"][""]["rows"] == 6
    found = run("evaluate", "--model", model, "--manifest", manifest, "--report", report)
    assert found["emotions"] == trained["dev_emotions"][""]
    assert (found["rows"], found["emotions"]["rows"]) == (10, 6)
    assert "By emotion" in (report / "report.html").read_text()
    felt = run("predict", "--model", model, "--text", "I love this so much")["emotions"]
    assert sum(felt.values()) == pytest.approx(1)


@pytest.mark.parametrize("tuned", [False, True])
def test_a_lexicon_of_the_labels_comes_to_the_text_model(
    tuned: bool, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "LEXICON_ROWS", 8)
    manifest = write(tmp_path / "words.csv", TRAIN, "text label lang")
    words = ["train", "--manifest", manifest, "--dev", manifest, "--epochs", 2, "--out", tmp_path / "model"]
    if tuned:
        words += ["--fine-tune", "full", "--layers", 1, "--tune-epochs", 1]
    found = run(*words)
    before = encodings(cache)
    assert run(*words)["model_version"] == found["model_version"]
    assert encodings(cache) == before, "the second training asked an encoder"
    remembered = run("evaluate", "--model", tmp_path / "model", "--manifest", manifest)
    with pytest.MonkeyPatch.context() as patch:
        for weights in cache.iterdir():
            if weights.name != "embeddings":
                (tmp_path / weights.name).symlink_to(weights.resolve())
        patch.setenv("CROWDTONE_CACHE_DIR", str(tmp_path))
        encoded = run("evaluate", "--model", tmp_path / "model", "--manifest", manifest)
    assert encoded["ece"] == pytest.approx(remembered["ece"], abs=1e-3), (
        "what was remembered is what it encodes"
    )
    assert encoded["confusion"] == remembered["confusion"]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["network"]["wide"] == ("text" if tuned else "")
    if tuned:
        return
    plain = run(*words, "--no-lexicon")
    assert not (tmp_path / "model" / "adapter").exists()
    assert plain["encoders"] != found["encoders"]
