"""Pictures and sounds that say nothing about a mood: what keeps a model that has only seen faces and acted
voices from having an opinion on everything else. Drawn and synthesised here, the same for the same seed.
"""

from __future__ import annotations

import io
import wave

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Samples = npt.NDArray[np.float64]

_SIDE = 224
_RATE_HZ = 16_000


def pictures(count: int, seed: int = 0) -> list[bytes]:
    """PNG files: gradients, noise, shapes, lines, blurred spots and pages of strokes, in turn."""
    rng = np.random.default_rng(seed)
    kinds = (_gradient, _noise, _shapes, _lines, _spots, _page)
    files = []
    for i in range(count):
        buffer = io.BytesIO()
        kinds[i % len(kinds)](rng).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def sounds(count: int, seed: int = 0) -> list[bytes]:
    """WAV files of 2 to 4 s: silence, coloured noise, hums, beeps and clicks, in turn."""
    rng = np.random.default_rng(seed)
    kinds = (_silence, _coloured_noise, _hum, _beeps, _clicks)
    files = []
    for i in range(count):
        samples = kinds[i % len(kinds)](rng, int(rng.uniform(2, 4) * _RATE_HZ))
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(_RATE_HZ)
            file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
        files.append(buffer.getvalue())
    return files


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _gradient(rng: np.random.Generator) -> Image.Image:
    start, end = np.array(_colour(rng)), np.array(_colour(rng))
    ramp = np.linspace(0, 1, _SIDE)[:, None, None]
    block = np.broadcast_to(start * (1 - ramp) + end * ramp, (_SIDE, _SIDE, 3)).astype(np.uint8)
    return Image.fromarray(block).rotate(int(rng.integers(0, 4)) * 90)


def _noise(rng: np.random.Generator) -> Image.Image:
    side = int(rng.choice([8, 32, 224]))
    block = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
    return Image.fromarray(block).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _shapes(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (_SIDE, _SIDE), _colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 12))):
        x, y, w, h = rng.integers(0, _SIDE, 4).tolist()
        shape = draw.rectangle if rng.random() < 0.5 else draw.ellipse
        shape((x, y, x + w // 2 + 4, y + h // 2 + 4), fill=_colour(rng))
    return image


def _lines(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (_SIDE, _SIDE), _colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(5, 30))):
        draw.line(rng.integers(0, _SIDE, 4).tolist(), fill=_colour(rng), width=int(rng.integers(1, 12)))
    return image


def _spots(rng: np.random.Generator) -> Image.Image:
    return _shapes(rng).filter(ImageFilter.GaussianBlur(float(rng.uniform(5, 25))))


def _page(rng: np.random.Generator) -> Image.Image:
    paper, ink = ((250, 250, 245), (30, 30, 35)) if rng.random() < 0.7 else ((25, 28, 40), (230, 230, 230))
    image = Image.new("RGB", (_SIDE, _SIDE), paper)
    draw = ImageDraw.Draw(image)
    for y in range(16, _SIDE - 10, int(rng.integers(9, 22))):
        x = 12
        while x < _SIDE - 20:
            length = int(rng.integers(4, 34))
            draw.line((x, y, min(x + length, _SIDE - 10), y), fill=ink, width=int(rng.integers(2, 6)))
            x += length + 6
    return image


def _silence(rng: np.random.Generator, count: int) -> Samples:
    return rng.normal(0, 10 ** rng.uniform(-5, -3), count)


def _coloured_noise(rng: np.random.Generator, count: int) -> Samples:
    spectrum = np.fft.rfft(rng.normal(size=count))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** rng.uniform(0, 1)
    samples = np.fft.irfft(spectrum, count)
    loudest = float(np.abs(samples).max())
    return np.asarray(samples / loudest, np.float64) * rng.uniform(0.05, 0.8)


def _hum(rng: np.random.Generator, count: int) -> Samples:
    time_s = np.arange(count) / _RATE_HZ
    base_hz = rng.uniform(50, 400)
    samples = sum(np.sin(2 * np.pi * base_hz * k * time_s) / k for k in range(1, int(rng.integers(2, 8))))
    return np.asarray(samples) * rng.uniform(0.05, 0.4) + rng.normal(0, 0.005, count)


def _beeps(rng: np.random.Generator, count: int) -> Samples:
    time_s = np.arange(count) / _RATE_HZ
    gate = (time_s * rng.uniform(1, 6)) % 1 < rng.uniform(0.1, 0.6)
    tone = np.sin(2 * np.pi * rng.uniform(300, 3000) * time_s) * gate
    return np.asarray(tone, np.float64) * rng.uniform(0.1, 0.6)


def _clicks(rng: np.random.Generator, count: int) -> Samples:
    samples = rng.normal(0, 0.002, count)
    for place in rng.integers(0, count - 400, int(rng.integers(3, 40))):
        samples[place : place + 400] += rng.normal(0, 0.4, 400) * np.exp(-np.arange(400) / 60)
    return samples
