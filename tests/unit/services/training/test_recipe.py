"""What the shipped weights were trained on: no text of any dev file, whatever its case, links or names."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from services.fusion.settings import SHIPPED_WEIGHTS
from services.training import recipe
from services.training.cli import TRAINED_ON
from shared.e5 import SHIPPED_ADAPTER

DATA = Path(__file__).parents[5] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets lie beside the checkout, not in it")

DEV_FILES = ("tweeteval/sentiment/val.csv", "tweeteval/emotion/val.csv", "umsab_multilingual/val.csv")


def texts(name: str) -> list[str]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def test_two_forms_of_one_tweet_are_the_same() -> None:
    one = recipe.normalised("RT @user: So HAPPY!! https://t.co/abc #win")
    assert one == recipe.normalised("rt @Someone so happy... #win http://x.y")
    assert one != recipe.normalised("so sad #win")


def test_codes_find_what_was_trained_on() -> None:
    codes = recipe.text_codes(["Good morning!", "good MORNING", "bad night"])
    assert len(codes) == 2
    assert np.isin(recipe.text_codes(["@a good morning http://b"]), codes).all()
    assert not np.isin(recipe.text_codes(["good evening"]), codes).any()


@needs_data
@pytest.mark.parametrize("weights", [SHIPPED_ADAPTER, SHIPPED_WEIGHTS], ids=["text", "fusion"])
@pytest.mark.parametrize("name", DEV_FILES)
def test_no_dev_text_trained_the_shipped_weights(name: str, weights: Path) -> None:
    """The list of hashes is written beside the weights by the training that made them."""
    trained = np.load(weights / TRAINED_ON, allow_pickle=False)
    assert len(trained) > 10_000
    dev = recipe.text_codes([text for text in texts(name) if recipe.normalised(text)])
    assert not np.isin(dev, trained).any()


@needs_data
@pytest.mark.parametrize("weights", [SHIPPED_ADAPTER, SHIPPED_WEIGHTS], ids=["text", "fusion"])
def test_nothing_else_than_the_recipe_trained_the_shipped_weights(weights: Path) -> None:
    trained = np.load(weights / TRAINED_ON, allow_pickle=False)
    rows, dev = recipe.text_rows(DATA)
    assert np.isin(trained, recipe.text_codes([row.text for row in rows])).all()
    assert not {row.id for row in rows} & {row.id for row in dev}


@needs_data
def test_emotions_are_measured_by_what_people_said_and_not_by_words_that_were_found() -> None:
    rows, dev = recipe.text_rows(DATA)
    assert {row.part for row in dev if row.emotion} == {"tweeteval_emotion"}
    assert {row.emotion for row in dev if row.part == "tweeteval_emotion"} == {"anger", "joy", "sadness"}
    assert {row.part for row in rows if row.emotion == "fear"} >= {"tweeteval", "umsab"}


@needs_data
def test_no_face_and_no_voice_is_on_both_sides() -> None:
    train, dev = recipe.media_rows(DATA)
    for part in ("faces", "emodb"):
        sides = [{row.group for row in side if row.part == part} for side in (train, dev)]
        assert all(sides)
        assert not sides[0] & sides[1]
