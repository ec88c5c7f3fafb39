"""The pictures that ship are those that the script draws, on any machine."""

from __future__ import annotations

import random
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

DEMO = Path(__file__).parents[3] / "demo"


@pytest.fixture(scope="module")
def make_media() -> dict[str, Any]:
    return runpy.run_path(str(DEMO / "make_media.py"))


@pytest.mark.parametrize("name", ["lumio_refund", "metro_board_delayed", "solfest_mud"])
def test_a_picture_is_drawn_again_as_it_ships(make_media: dict[str, Any], name: str) -> None:
    paint = make_media[name]
    drawn, again = (np.asarray(paint(random.Random(name)).finished(), np.int16) for _ in range(2))
    assert np.array_equal(drawn, again)
    with Image.open(DEMO / "media" / "images" / f"{name}.webp") as shipped:
        difference = np.abs(np.asarray(shipped.convert("RGB"), np.int16) - drawn)
    # Measured over all of them: WebP at quality 80 costs 0.9 to 2.9 grey levels; two pictures differ by 26.
    assert difference.mean() < 8


def test_every_name_the_script_knows_ships(make_media: dict[str, Any]) -> None:
    faces = {f"face_{kind}" for kind in make_media["FACES"]}
    drawn = {paint.__name__ for paint in make_media["DRAWINGS"]} | faces
    assert drawn == {path.stem for path in (DEMO / "media" / "images").iterdir()}
    assert set(make_media["VOICES"]) == {path.stem for path in (DEMO / "media" / "voices").iterdir()}
