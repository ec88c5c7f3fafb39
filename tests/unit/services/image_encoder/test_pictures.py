"""Every kind of picture comes out as upright RGB, and every kind of rubbish as a reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from services.image_encoder.pictures import decode
from shared.errors import InvalidMessage

MAX_PIXELS = 40_000_000


def picture(mode: str = "RGB", size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0] // 2, size[1]))
    return image.convert(mode)


def content(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing: a decompression bomb."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, body)
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_formats_and_modes(kind: str, mode: str) -> None:
    if kind == "JPEG" and mode in ("P", "1"):
        mode = "CMYK"
    pixels = np.asarray(decode(content(picture(mode), kind), 32, MAX_PIXELS)).astype(int)
    assert pixels.shape == (32, 32, 3)
    left, right = pixels[16, 4], pixels[16, 28]
    if mode in ("RGB", "P", "CMYK"):
        assert left[0] > 180 > 80 > left[2]
        assert right[2] > 180 > 80 > right[0]
    else:
        assert left[0] == left[1] == left[2]


def test_what_shines_through_is_white() -> None:
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    assert np.asarray(decode(content(clear), 8, MAX_PIXELS)).min() == 255
    palette = Image.new("P", (20, 20), 0)
    assert np.asarray(decode(content(palette, transparency=0), 8, MAX_PIXELS)).min() == 255


def test_sixteen_bits_of_grey_stay_grey() -> None:
    grey = Image.fromarray(np.full((20, 20), 32768, np.uint16))
    assert np.asarray(decode(content(grey), 8, MAX_PIXELS)).mean() == pytest.approx(128, abs=1)


def test_of_an_animation_the_first_frame() -> None:
    first, second = Image.new("RGB", (20, 20), "lime"), Image.new("RGB", (20, 20), "black")
    animation = content(first, "GIF", save_all=True, append_images=[second])
    assert np.asarray(decode(animation, 8, MAX_PIXELS))[0, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_a_turned_camera_is_turned_back(orientation: int, turned: Image.Transpose) -> None:
    upright = picture(size=(48, 48))
    upright.paste("lime", (0, 0, 48, 12))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = content(upright.transpose(turned), "PNG", exif=exif)
    difference = np.asarray(decode(stored, 48, MAX_PIXELS)).astype(int) - np.asarray(upright)
    assert np.abs(difference).max() == 0


@pytest.mark.parametrize(
    ("rubbish", "reason"),
    [
        (b"", "empty file"),
        (b"\x00" * 100, "not a JPEG, PNG, WebP or GIF picture"),
        (b"<html>404 Not Found</html>", "not a JPEG, PNG, WebP or GIF picture"),
        (content(picture(), "BMP"), "not a JPEG, PNG, WebP or GIF picture"),
        (content(picture(), "JPEG")[:300], "not a JPEG|broken picture"),
        (content(picture(size=(400, 300)), "JPEG", quality=95)[:-900], "broken picture"),
        (content(picture(), "PNG")[:60], "broken picture"),
        (content(picture(), "WEBP")[:50], "not a JPEG|broken picture"),
        (content(picture(size=(1, 1))), "picture of 1x1 pixels says nothing"),
        (content(picture(size=(600, 2))), "picture of 600x2 pixels says nothing"),
        (png_header(9_000, 9_000), "picture of 9000x9000 pixels; the limit is 40000000"),
        (png_header(60_000, 60_000), "broken picture: Image size|the limit is"),
    ],
)
def test_rubbish_is_refused_with_the_reason(rubbish: bytes, reason: str) -> None:
    with pytest.raises(InvalidMessage, match=reason):
        decode(rubbish, 32, MAX_PIXELS)
