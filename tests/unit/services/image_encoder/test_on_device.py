"""Decoding for a GPU, on the CPU: what it does with pictures, not how fast."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from torchvision.io import decode_jpeg

from benchmarks import load
from services.image_encoder import on_device, pictures
from services.image_encoder.encoder import ImageEncoder
from services.image_encoder.settings import ImageEncoderSettings
from shared.settings import ModelSettings

SIDE = 64
MAX_PIXELS = 4_000_000


def stored(image: Image.Image, kind: str = "JPEG", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[pictures.ORIENTATION_TAG] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"exif": exif, "quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    with Image.open(io.BytesIO(load.pictures(1)[0])) as opened:
        return opened.resize((270, 200))


def difference(content: bytes) -> float:
    """Mean difference in grey levels to what the decoder processes make of it."""
    (mine,) = on_device.decode([content], SIDE, MAX_PIXELS, "cpu")
    assert mine is not None
    theirs = np.asarray(pictures.decode(content, SIDE, MAX_PIXELS)).astype(float)
    return float(np.abs(mine.permute(1, 2, 0).numpy().astype(float) - theirs).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright_and_squeezed_like_any_other(scene: Image.Image, orientation: int) -> None:
    assert difference(stored(scene, orientation=orientation)) < 4


def test_what_is_no_plain_jpeg_is_left_to_the_decoders(scene: Image.Image) -> None:
    whole = stored(scene)
    contents = [
        whole,
        stored(scene, "PNG"),
        stored(scene.convert("CMYK")),
        whole[:50],
        b"",
        stored(scene.resize((4, 4))),
        whole[: len(whole) // 2],
        stored(scene.convert("L")),
    ]
    found = on_device.decode(contents, SIDE, MAX_PIXELS, "cpu")
    assert [one is None for one in found[:6]] == [False, True, True, True, True, True]
    assert found[7] is not None
    assert found[7].shape == (3, SIDE, SIDE)
    assert on_device.decode([whole], SIDE, 100, "cpu") == [None]


def test_pictures_are_decoded_a_few_at_a_time(scene: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counting(streams: list[object], **options: object) -> object:
        sizes.append(len(streams))
        return decode_jpeg(streams, **options)

    monkeypatch.setattr(on_device, "decode_jpeg", counting)
    monkeypatch.setattr(on_device, "PIXELS_AT_ONCE", 3 * scene.width * scene.height)
    found = on_device.decode([stored(scene)] * 7, SIDE, MAX_PIXELS, "cpu")
    assert sizes == [3, 3, 1]
    assert all(one is not None for one in found)


def test_it_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="on a GPU only"):
        ImageEncoder.load(ModelSettings(device="cpu"), ImageEncoderSettings(decode_on_device=True))
