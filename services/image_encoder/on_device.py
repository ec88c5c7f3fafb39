"""JPEGs to pixels on a GPU (nvJPEG through torchvision), where the decoders' cores cannot feed it.

Without the limits of `shared.decoding` on strangers' bytes, so off unless asked for (docs/SECURITY.md).
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Final

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg

from services.image_encoder.pictures import MIN_SIDE, ORIENTATION_TAG

log = logging.getLogger(__name__)

PIXELS_AT_ONCE: Final = 128_000_000
"""Decoded in memory at once: 400 MB, and one picture more."""

_one_at_a_time = threading.Lock()

# EXIF orientation -> (quarter turns to the left, whether to mirror left and right first).
_UPRIGHT: Final = {
    1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True),
    5: (1, True), 6: (3, False), 7: (3, True), 8: (1, False),
}  # fmt: skip


def decode(contents: Sequence[bytes], side: int, max_pixels: int, device: str) -> list[Tensor | None]:
    """(3, side, side) uint8 on the device of every plain JPEG, upright and squeezed; None for all else.

    None is for the decoder processes to look at: another format, CMYK, too large, or broken.
    """
    found: list[Tensor | None] = [None] * len(contents)
    groups: list[list[tuple[int, int]]] = []  # index, orientation
    held = 0
    for i, content in enumerate(contents):
        plain = _header(content, max_pixels)
        if plain is None:
            continue
        pixels, orientation = plain
        if not groups or held + pixels > PIXELS_AT_ONCE:
            groups.append([])
            held = 0
        groups[-1].append((i, orientation))
        held += pixels
    with _aside(device) as settled:
        for group in groups:
            _decode(contents, group, found, side, device, settled)
    for picture in found:
        if picture is not None and picture.is_cuda:
            picture.record_stream(torch.cuda.current_stream())  # made aside, read here
    return found


@contextmanager
def _aside(device: str) -> Iterator[Callable[[], None]]:
    """A stream, and so memory, that nothing else has; yields what waits until nobody uses that memory.

    nvJPEG writes into what torch gives it at once, and that may be memory which kernels started before are
    still reading: it waits for no other stream (github.com/pytorch/vision/pull/9606).
    """
    if device == "cpu":
        yield lambda: None
        return
    with _one_at_a_time:
        stream = _stream()
        with torch.cuda.stream(stream):
            yield stream.synchronize
        torch.cuda.current_stream().wait_stream(stream)


@cache
def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _header(content: bytes, max_pixels: int) -> tuple[int, int] | None:
    """(pixels, orientation) of a JPEG in colour or grey; only its header is read."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as picture:
            width, height = picture.size
            if picture.mode not in ("RGB", "L") or min(width, height) < MIN_SIDE:
                return None
            if width * height > max_pixels:
                return None
            return width * height, picture.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # Pillow raises many kinds; the decoder processes will say what is wrong
        return None


def _decode(
    contents: Sequence[bytes],
    group: Sequence[tuple[int, int]],
    found: list[Tensor | None],
    side: int,
    device: str,
    settled: Callable[[], None],
) -> None:
    try:
        streams = [torch.frombuffer(bytearray(contents[i]), dtype=torch.uint8) for i, _ in group]
        settled()
        pictures = decode_jpeg(streams, mode=ImageReadMode.RGB, device=device)
        squeeze = partial(functional.interpolate, size=(side, side), mode="bicubic", antialias=True)
        squeezed = [
            _upright(squeeze(picture[None].float())[0], orientation)
            for (_, orientation), picture in zip(group, pictures, strict=True)
        ]
    except RuntimeError as error:
        if len(group) == 1:
            log.info("left to the decoder processes: %s", error)
            return
        middle = len(group) // 2
        _decode(contents, group[:middle], found, side, device, settled)
        _decode(contents, group[middle:], found, side, device, settled)
        return
    # All together: each thing a GPU is told to do costs some microseconds.
    together = torch.stack(squeezed).round_().clamp_(0, 255).to(torch.uint8)
    for (i, _), picture in zip(group, together, strict=True):
        found[i] = picture


def _upright(picture: Tensor, orientation: int) -> Tensor:
    turns, mirrored = _UPRIGHT.get(orientation, (0, False))
    if mirrored:
        picture = picture.flip(2)
    return torch.rot90(picture, turns, (1, 2)) if turns else picture
