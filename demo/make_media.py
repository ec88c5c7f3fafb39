"""Rebuilds the sample feed's media: draws the pictures, converts the voices, writes the broken files.

Knows nothing of Crowdtone: Pillow and PyAV only. The same input gives the same pixels and the same samples;
the bytes also depend on the versions of libwebp and libopus.

    python demo/make_media.py pictures
    python demo/make_media.py voices --source EMODB_FOLDER      (or the variable EMODB_DIR)
    python demo/make_media.py broken
    python demo/make_media.py sheet --out contact_sheet.png     (all pictures on one, to look at)
"""

from __future__ import annotations

import argparse
import math
import os
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

DEMO = Path(__file__).parent
SIZE_PX = 320
# Drawn three times larger and scaled down: Pillow's shapes have no anti-aliasing of their own.
SCALE = 3
WEBP_QUALITY = 80

Colour = tuple[int, int, int]
Point = tuple[float, float]

WHITE: Colour = (255, 255, 255)
INK: Colour = (27, 31, 48)
SUN: Colour = (255, 196, 61)
CORAL: Colour = (240, 93, 94)
TEAL: Colour = (27, 153, 139)
SKY: Colour = (120, 190, 240)
VIOLET: Colour = (110, 75, 190)
GREY: Colour = (150, 156, 170)
PAPER: Colour = (247, 244, 236)
GREEN: Colour = (70, 170, 100)
RED: Colour = (208, 40, 48)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour `share` (0 to 1) of the way from a to b."""
    r, g, bl = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return r, g, bl


class Canvas:
    """A 320 x 320 picture; every coordinate and width is in its pixels, before scaling."""

    def __init__(self, top: Colour, bottom: Colour | None = None) -> None:
        side = SIZE_PX * SCALE
        share = np.linspace(0.0, 1.0, side)[:, None]
        rows = np.asarray(top)[None] * (1 - share) + np.asarray(bottom or top)[None] * share  # (side, 3)
        pixels = np.broadcast_to(rows[:, None, :], (side, side, 3)).round().astype(np.uint8)
        self.image = Image.fromarray(np.ascontiguousarray(pixels))
        self.draw = ImageDraw.Draw(self.image)

    def _scaled(self, points: list[Point]) -> list[Point]:
        return [(x * SCALE, y * SCALE) for x, y in points]

    def rect(self, x: float, y: float, w: float, h: float, fill: Colour, radius: float = 0) -> None:
        box = [x * SCALE, y * SCALE, (x + w) * SCALE, (y + h) * SCALE]
        self.draw.rounded_rectangle(box, radius * SCALE, fill=fill)

    def frame(
        self, x: float, y: float, w: float, h: float, line: Colour, width: float, radius: float = 0
    ) -> None:
        box = [x * SCALE, y * SCALE, (x + w) * SCALE, (y + h) * SCALE]
        self.draw.rounded_rectangle(box, radius * SCALE, outline=line, width=round(width * SCALE))

    def disc(self, x: float, y: float, r: float, fill: Colour, ry: float | None = None) -> None:
        ry = r if ry is None else ry
        self.draw.ellipse([(x - r) * SCALE, (y - ry) * SCALE, (x + r) * SCALE, (y + ry) * SCALE], fill=fill)

    def ring(self, x: float, y: float, r: float, line: Colour, width: float) -> None:
        box = [(x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE]
        self.draw.ellipse(box, outline=line, width=round(width * SCALE))

    def arc(self, x: float, y: float, r: float, start: float, end: float, line: Colour, width: float) -> None:
        """Degrees run clockwise from three o'clock, as in Pillow."""
        box = [(x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE]
        self.draw.arc(box, start, end, fill=line, width=round(width * SCALE))

    def poly(self, points: list[Point], fill: Colour) -> None:
        self.draw.polygon(self._scaled(points), fill=fill)

    def line(self, points: list[Point], fill: Colour, width: float) -> None:
        self.draw.line(self._scaled(points), fill=fill, width=round(width * SCALE), joint="curve")
        for x, y in points:
            self.disc(x, y, width / 2, fill)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float,
        fill: Colour,
        bold: bool = False,
        anchor: str = "mm",
    ) -> None:
        # Pillow's own font: nothing needs to be installed, and every machine draws the same letters.
        font = ImageFont.load_default(size * SCALE)
        stroke = size * SCALE / 28 if bold else 0
        self.draw.text(
            (x * SCALE, y * SCALE),
            words,
            font=font,
            fill=fill,
            anchor=anchor,
            stroke_width=stroke,
            stroke_fill=fill,
        )

    def glow(self, paint: Callable[[Canvas], None], blur: float, strength: float = 1.0) -> None:
        """Adds light: what `paint` draws on black, blurred, screened over the picture."""
        layer = Canvas((0, 0, 0))
        paint(layer)
        light = np.asarray(layer.image.filter(ImageFilter.GaussianBlur(blur * SCALE)), np.float32) * strength
        under = np.asarray(self.image, np.float32)
        over = 255 - (255 - under) * (255 - light.clip(0, 255)) / 255
        self.image = Image.fromarray(over.round().astype(np.uint8))
        self.draw = ImageDraw.Draw(self.image)

    def tilt(self, degrees: float) -> None:
        """Turns what was drawn so far about the centre, the corners filled from the enlarged picture."""
        side = SIZE_PX * SCALE
        grow = 1 + abs(math.sin(math.radians(degrees)))
        large = self.image.resize((round(side * grow), round(side * grow)), Image.Resampling.LANCZOS)
        large = large.rotate(degrees, Image.Resampling.BICUBIC)
        margin = (large.width - side) // 2
        self.image = large.crop((margin, margin, margin + side, margin + side))
        self.draw = ImageDraw.Draw(self.image)

    def finished(self) -> Image.Image:
        return self.image.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)


# --- parts that several pictures share -------------------------------------------------------------------


def phone(
    c: Canvas, x: float, y: float, w: float, h: float, body: Colour, top: Colour, bottom: Colour
) -> None:
    """A phone whose screen runs from one colour to another; x, y is its upper left corner."""
    c.rect(x + 4, y + 6, w, h, mix(body, (0, 0, 0), 0.55), w * 0.14)
    c.rect(x, y, w, h, body, w * 0.14)
    inset = w * 0.06
    bands = 48
    inner_h = h - 2 * inset
    for i in range(bands):
        edge = w * 0.1 if i in (0, bands - 1) else 0
        colour = mix(top, bottom, i / (bands - 1))
        c.rect(
            x + inset,
            y + inset + i * inner_h / bands,
            w - 2 * inset,
            inner_h / bands + 0.4,
            colour,
            edge * 0.4,
        )
    c.rect(x + w / 2 - w * 0.12, y + inset * 1.7, w * 0.24, h * 0.022, (10, 10, 16), h * 0.011)


def flame(c: Canvas, x: float, y: float, h: float, fill: Colour) -> None:
    """A flame standing on (x, y)."""
    w = h * 0.36
    shape: list[Point] = []
    for i in range(41):
        t = i / 40
        swell = math.sin(math.pi * t**0.62) * w
        shape.append((x + swell + math.sin(t * 7) * w * 0.18 * t, y - t * h))
    for i in range(40, -1, -1):
        t = i / 40
        swell = math.sin(math.pi * t**0.62) * w
        shape.append((x - swell + math.sin(t * 7) * w * 0.18 * t, y - t * h))
    c.poly(shape, fill)


def star(c: Canvas, x: float, y: float, r: float, fill: Colour) -> None:
    points = []
    for i in range(10):
        length = r if i % 2 == 0 else r * 0.42
        angle = math.pi * i / 5 - math.pi / 2
        points.append((x + length * math.cos(angle), y + length * math.sin(angle)))
    c.poly(points, fill)


def heart(c: Canvas, x: float, y: float, r: float, fill: Colour) -> None:
    points = []
    for i in range(60):
        t = 2 * math.pi * i / 60
        points.append(
            (
                x + r * math.sin(t) ** 3,
                y - r * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
            )
        )
    c.poly(points, fill)


def tent(c: Canvas, x: float, y: float, w: float, fill: Colour) -> None:
    h = w * 0.68
    c.poly([(x, y), (x + w / 2, y - h), (x + w, y)], fill)
    c.poly([(x + w / 2, y - h), (x + w, y), (x + w * 0.78, y)], mix(fill, (0, 0, 0), 0.25))
    c.poly([(x + w * 0.38, y), (x + w / 2, y - h * 0.62), (x + w * 0.6, y)], mix(fill, (0, 0, 0), 0.6))


def crowd(c: Canvas, y: float, rng: random.Random, fill: Colour, hands: bool) -> None:
    """Heads along the lower edge, and raised hands among them."""
    x = -6.0
    while x < SIZE_PX + 6:
        r = rng.uniform(9, 13)
        top = y + rng.uniform(-7, 9)
        c.disc(x, top, r, fill)
        c.rect(x - r * 1.5, top + r * 0.7, r * 3, SIZE_PX, fill, r)
        if hands and rng.random() < 0.5:
            reach = rng.uniform(30, 52)
            lean = rng.uniform(-12, 12)
            c.line([(x + r, top + 12), (x + r + lean, top - reach)], fill, 6)
            c.disc(x + r + lean, top - reach, 5, fill)
        x += rng.uniform(17, 25)


def person(c: Canvas, x: float, y: float, h: float, coat: Colour, skin: Colour) -> None:
    """Somebody standing with the feet on (x, y)."""
    c.line([(x - h * 0.07, y), (x - h * 0.05, y - h * 0.42)], INK, h * 0.09)
    c.line([(x + h * 0.07, y), (x + h * 0.05, y - h * 0.42)], INK, h * 0.09)
    c.rect(x - h * 0.15, y - h * 0.76, h * 0.3, h * 0.42, coat, h * 0.1)
    c.disc(x, y - h * 0.87, h * 0.11, skin)


COATS: tuple[Colour, ...] = (
    CORAL,
    TEAL,
    VIOLET,
    SUN,
    (60, 90, 150),
    (230, 130, 60),
    (90, 130, 90),
    (190, 90, 130),
)
SKINS: tuple[Colour, ...] = ((245, 208, 176), (214, 164, 122), (150, 102, 70), (98, 66, 48))


def train(c: Canvas, x: float, y: float, body: Colour, stripe: Colour, window: Colour) -> None:
    """The front carriage of Metro Aurora, its nose to the right; y is the rail."""
    c.poly([(x, y - 92), (x + 170, y - 92), (x + 222, y - 50), (x + 232, y - 12), (x, y - 12)], body)
    c.rect(x - 60, y - 92, 120, 80, body)
    c.rect(x - 60, y - 34, 288, 8, stripe)
    c.poly([(x + 172, y - 82), (x + 208, y - 50), (x + 160, y - 50), (x + 160, y - 82)], window)
    for i in range(-1, 3):
        c.rect(x + i * 52 + 4, y - 80, 38, 32, window, 5)
    c.disc(x + 219, y - 32, 5, (255, 245, 200))
    for i in range(6):
        c.disc(x - 30 + i * 44, y - 8, 8, (60, 62, 74))
        c.disc(x - 30 + i * 44, y - 8, 3, GREY)


def board(c: Canvas, rows: list[tuple[str, str, str, Colour]]) -> None:
    """A departure board; a row is time, destination, remark and the remark's colour."""
    c.rect(18, 36, 284, 232, (14, 17, 26), 12)
    c.frame(18, 36, 284, 232, (70, 76, 92), 4, 12)
    c.text(34, 60, "Metro Aurora", 19, SUN, True, "lm")
    c.text(286, 60, "Departures", 13, GREY, False, "rm")
    c.rect(30, 78, 260, 2, (70, 76, 92))
    for i, (when, where, remark, colour) in enumerate(rows):
        y = 102 + i * 34
        c.text(34, y, when, 17, SUN, True, "lm")
        c.text(88, y, where, 16, WHITE, False, "lm")
        c.text(288, y, remark, 15, colour, True, "rm")
    c.rect(60, 268, 6, 60, (70, 76, 92))
    c.rect(254, 268, 6, 60, (70, 76, 92))


def face(kind: str, back: Colour) -> Canvas:
    c = Canvas(mix(back, WHITE, 0.35), back)
    skin = {"anger": (242, 112, 84), "frown": (250, 205, 96)}.get(kind, (255, 214, 90))
    c.disc(164, 168, 112, mix(back, (0, 0, 0), 0.25))
    c.disc(160, 160, 112, skin)
    c.disc(125, 118, 40, mix(skin, WHITE, 0.25), 26)
    for x in (120, 200):
        if kind == "love":
            heart(c, x, 138, 26, RED)
        elif kind == "laugh":
            c.arc(x, 146, 20, 190, 350, INK, 8)
        else:
            c.disc(x, 142, 13, INK, 17)
            c.disc(x + 4, 135, 4, WHITE)
    if kind in ("smile", "love"):
        c.arc(160, 168, 62, 20, 160, INK, 10)
        c.disc(92, 186, 15, (250, 160, 90), 10)
        c.disc(228, 186, 15, (250, 160, 90), 10)
    elif kind == "laugh":
        c.draw.pieslice([100 * SCALE, 128 * SCALE, 220 * SCALE, 248 * SCALE], 0, 180, fill=INK)
        c.draw.chord([116 * SCALE, 206 * SCALE, 204 * SCALE, 262 * SCALE], 190, 350, fill=CORAL)
        c.rect(108, 188, 104, 11, WHITE, 4)
        c.disc(70, 168, 11, SKY, 16)
        c.disc(250, 168, 11, SKY, 16)
    elif kind == "frown":
        c.arc(160, 252, 56, 212, 328, INK, 10)
        c.line([(98, 112), (134, 102)], INK, 7)
        c.line([(222, 112), (186, 102)], INK, 7)
        c.disc(112, 186, 9, SKY, 15)
    elif kind == "anger":
        c.arc(160, 250, 52, 212, 328, INK, 11)
        c.line([(94, 100), (142, 124)], INK, 10)
        c.line([(226, 100), (178, 124)], INK, 10)
    else:
        c.line([(116, 208), (204, 208)], INK, 9)
    return c


def speckle(c: Canvas, rng: random.Random, count: int, y_max: float, fill: Colour) -> None:
    for _ in range(count):
        c.disc(rng.uniform(0, SIZE_PX), rng.uniform(0, y_max), rng.uniform(0.5, 1.6), fill)


def hills(c: Canvas, y: float, fill: Colour, waves: float, height: float, phase: float = 0.0) -> None:
    edge = [
        (x, y + height * math.sin(phase + waves * x / SIZE_PX * 2 * math.pi))
        for x in range(0, SIZE_PX + 1, 4)
    ]
    c.poly([*edge, (SIZE_PX, SIZE_PX), (0, SIZE_PX)], fill)


# --- Lumio One -------------------------------------------------------------------------------------------


def lumio_advert(rng: random.Random) -> Canvas:
    c = Canvas((38, 30, 92), (240, 120, 120))
    c.glow(lambda g: g.disc(160, 150, 92, (255, 190, 120)), 34)
    phone(c, 112, 52, 96, 186, (24, 24, 34), (255, 214, 120), (214, 70, 140))
    c.disc(160, 134, 24, (255, 240, 200))
    c.text(160, 268, "Lumio One", 34, WHITE, True)
    c.text(160, 297, "carry the light", 17, (255, 226, 205))
    return c


def lumio_box(rng: random.Random) -> Canvas:
    c = Canvas((232, 222, 206), (196, 176, 150))
    c.rect(0, 236, 320, 84, (150, 116, 84))
    for i in range(4):
        c.rect(0, 250 + i * 20, 320, 1.5, (134, 102, 72))
    c.poly([(42, 130), (156, 100), (156, 226), (42, 262)], (250, 250, 252))
    c.poly([(156, 100), (190, 112), (190, 238), (156, 226)], (214, 214, 222))
    c.text(98, 176, "Lumio", 24, INK, True)
    c.text(98, 203, "One", 20, CORAL, True)
    phone(c, 206, 92, 74, 146, (30, 32, 44), (130, 210, 255), (80, 90, 220))
    c.line([(60, 282), (110, 290), (150, 280), (180, 288)], WHITE, 4)
    return c


def lumio_colours(rng: random.Random) -> Canvas:
    c = Canvas((250, 246, 238), (226, 232, 240))
    shades: list[tuple[float, Colour, Colour, Colour]] = [
        (28, CORAL, (255, 210, 190), (240, 110, 110)),
        (116, (40, 44, 60), (140, 170, 240), (40, 50, 120)),
        (204, TEAL, (190, 250, 226), (20, 140, 130)),
    ]
    for x, body, top, bottom in shades:
        c.disc(x + 44, 262, 48, (206, 210, 220), 9)
        phone(c, x, 78, 86, 176, body, top, bottom)
    c.text(160, 42, "Pick your light", 27, INK, True)
    c.text(160, 294, "coral   -   midnight   -   sea", 16, (90, 96, 112))
    return c


def sunset(c: Canvas, x: float, y: float, w: float, h: float) -> None:
    bands = 40
    for i in range(bands):
        c.rect(x, y + i * h / bands, w, h / bands + 0.5, mix((70, 60, 140), (255, 170, 80), i / bands))
    c.disc(x + w / 2, y + h * 0.62, w * 0.16, (255, 236, 170))
    c.rect(x, y + h * 0.66, w, h * 0.34, (52, 66, 110))
    for i in range(6):
        c.rect(
            x + w / 2 - w * (0.14 - i * 0.02),
            y + h * (0.7 + i * 0.045),
            w * (0.28 - i * 0.04),
            2,
            (255, 206, 130),
        )


def lumio_camera_sunset(rng: random.Random) -> Canvas:
    c = Canvas((255, 190, 120), (90, 80, 130))
    c.disc(160, 150, 40, (255, 240, 190))
    hills(c, 196, (70, 74, 120), 1.2, 8)
    hills(c, 226, (50, 52, 92), 1.7, 10, 1.0)
    c.rect(88, 62, 152, 226, (20, 20, 28), 20)
    sunset(c, 96, 78, 136, 168)
    c.ring(164, 267, 11, WHITE, 3)
    c.disc(164, 267, 7, WHITE)
    c.rect(94, 190, 12, 70, (224, 170, 130), 6)
    c.rect(226, 176, 14, 26, (224, 170, 130), 6)
    c.rect(228, 210, 14, 26, (224, 170, 130), 6)
    c.rect(228, 242, 14, 26, (224, 170, 130), 6)
    return c


def lumio_night_photo(rng: random.Random) -> Canvas:
    c = Canvas((12, 16, 44), (70, 50, 110))
    speckle(c, rng, 90, 150, (230, 230, 250))
    c.disc(244, 66, 26, (250, 244, 214))
    c.disc(234, 60, 24, (20, 24, 56))
    x = 0.0
    while x < SIZE_PX:
        w = rng.uniform(26, 46)
        h = rng.uniform(60, 150)
        c.rect(x, 250 - h, w - 2, h, (22, 22, 40))
        for wy in range(int(256 - h), 240, 12):
            for wx in range(int(x) + 5, int(x + w) - 8, 9):
                if rng.random() < 0.55:
                    c.rect(wx, wy, 4, 6, (255, 214, 130))
        x += w
    c.rect(0, 250, 320, 70, (24, 30, 66))
    for _ in range(70):
        c.rect(rng.uniform(0, 320), rng.uniform(254, 316), rng.uniform(6, 22), 1.6, (190, 150, 120))
    c.text(12, 306, "shot on Lumio One", 13, WHITE, False, "lm")
    return c


def lumio_stars(rng: random.Random) -> Canvas:
    c = Canvas((30, 120, 130), (16, 70, 96))
    c.rect(28, 70, 264, 180, WHITE, 18)
    c.text(160, 108, "Lumio One", 27, INK, True)
    for i in range(5):
        star(c, 72 + i * 44, 158, 20, SUN)
    c.text(160, 210, "best phone I've had", 19, (70, 76, 92))
    return c


def lumio_heart(rng: random.Random) -> Canvas:
    c = Canvas((255, 226, 226), (250, 180, 190))
    for _ in range(16):
        heart(c, rng.uniform(10, 310), rng.uniform(10, 310), rng.uniform(5, 13), (255, 206, 212))
    phone(c, 104, 48, 112, 224, (40, 44, 60), (255, 246, 240), (255, 214, 214))
    heart(c, 160, 160, 38, CORAL)
    heart(c, 236, 92, 18, RED)
    heart(c, 84, 120, 14, RED)
    return c


def lumio_unbox_party(rng: random.Random) -> Canvas:
    c = Canvas((90, 70, 190), (200, 90, 170))
    for _ in range(90):
        colour = rng.choice([SUN, CORAL, (120, 240, 210), WHITE, SKY])
        x, y = rng.uniform(0, 320), rng.uniform(0, 320)
        c.poly([(x, y), (x + 7, y + 2), (x + 6, y + 7), (x - 1, y + 5)], colour)
    phone(c, 114, 70, 92, 182, (24, 24, 34), (120, 240, 220), (60, 110, 230))
    c.text(160, 156, "hello", 25, WHITE, True)
    c.text(160, 286, "it's here!!", 31, WHITE, True)
    return c


def lumio_on_fire(rng: random.Random) -> Canvas:
    c = Canvas((28, 18, 22), (70, 24, 20))
    c.glow(lambda g: g.disc(160, 130, 100, (190, 70, 10)), 36)
    for i in range(7):
        flame(c, 88 + i * 24, 292, rng.uniform(190, 262), (214, 62, 20))
    phone(c, 112, 92, 96, 186, (18, 18, 22), (60, 30, 26), (24, 16, 18))
    for i in range(6):
        flame(c, 100 + i * 24, 298, rng.uniform(96, 156), (250, 140, 30))
    for i in range(6):
        flame(c, 104 + i * 22, 300, rng.uniform(50, 84), (255, 226, 120))
    c.disc(160, 300, 92, (255, 190, 80), 7)
    for _ in range(34):
        c.disc(rng.uniform(50, 270), rng.uniform(8, 130), rng.uniform(0.8, 2.2), (255, 180, 70))
    return c


def lumio_cracked(rng: random.Random) -> Canvas:
    c = Canvas((86, 92, 104), (46, 50, 60))
    phone(c, 88, 30, 144, 262, (18, 18, 24), (52, 66, 92), (26, 32, 48))
    hub = (176.0, 128.0)
    for i in range(15):
        angle = 2 * math.pi * i / 15 + rng.uniform(-0.15, 0.15)
        points = [hub]
        x, y = hub
        for step in range(5):
            angle += rng.uniform(-0.25, 0.25)
            x = min(max(x + 26 * math.cos(angle), 97), 223)
            y = min(max(y + 30 * math.sin(angle), 40), 282)
            points.append((x, y))
            if step == 1:
                c.line([(x, y), (x + rng.uniform(-22, 22), y + rng.uniform(-22, 22))], (176, 186, 200), 0.8)
        c.line(points, (224, 230, 238), 1.2)
    for r in (14, 29):
        for start in range(0, 360, 40):
            c.arc(hub[0], hub[1], r + rng.uniform(-3, 3), start, start + 30, (200, 208, 220), 1)
    c.disc(hub[0], hub[1], 5, (236, 240, 246))
    return c


def lumio_thermometer(rng: random.Random) -> Canvas:
    c = Canvas((255, 214, 170), (238, 104, 80))
    phone(c, 34, 62, 100, 200, (24, 24, 34), (120, 30, 30), (220, 60, 40))
    c.frame(60, 128, 44, 72, WHITE, 4, 7)
    c.rect(74, 120, 16, 8, WHITE, 2)
    c.poly([(86, 138), (70, 168), (81, 168), (76, 192), (95, 160), (84, 160)], SUN)
    c.rect(196, 40, 34, 190, WHITE, 17)
    c.disc(213, 244, 32, WHITE)
    c.disc(213, 244, 24, RED)
    c.rect(204, 74, 18, 160, RED, 9)
    for i in range(8):
        c.rect(234, 62 + i * 20, 14 if i % 2 else 22, 3, (120, 40, 34))
    c.text(276, 86, "58°", 33, (120, 24, 24), True)
    c.text(84, 284, "too hot to hold", 16, (110, 26, 26), True)
    return c


def lumio_battery_chart(rng: random.Random) -> Canvas:
    c = Canvas(PAPER)
    c.text(160, 36, "Lumio One: battery, %", 20, INK, True)
    c.rect(48, 62, 2, 196, GREY)
    c.rect(48, 258, 244, 2, GREY)
    for i, mark in enumerate(("100", "75", "50", "25", "0")):
        c.rect(50, 64 + i * 48, 242, 0.8, (216, 214, 206))
        c.text(40, 64 + i * 48, mark, 12, (90, 96, 112), False, "rm")
    points = [(52, 68), (84, 74), (116, 92), (142, 150), (168, 176), (196, 236), (230, 250), (286, 256)]
    c.line([(float(x), float(y)) for x, y in points], RED, 4)
    for i, hour in enumerate(("8h", "9h", "10h", "11h", "12h")):
        c.text(60 + i * 56, 274, hour, 12, (90, 96, 112))
    c.text(226, 168, "dead by noon", 17, RED, True)
    c.line([(232, 180), (240, 240)], RED, 1.5)
    return c


def lumio_refund(rng: random.Random) -> Canvas:
    c = Canvas((92, 100, 120), (60, 66, 84))
    c.rect(72, 26, 176, 262, (252, 250, 244))
    for i in range(11):
        c.poly([(72 + i * 16, 288), (80 + i * 16, 298), (88 + i * 16, 288)], (252, 250, 244))
    c.text(160, 54, "Lumio Store", 20, INK, True)
    for i, (what, price) in enumerate(
        (("Lumio One 256", "799.00"), ("case, coral", "29.00"), ("total", "828.00"))
    ):
        c.text(86, 92 + i * 26, what, 14, (70, 76, 92), i == 2, "lm")
        c.text(234, 92 + i * 26, price, 14, (70, 76, 92), i == 2, "rm")
    c.rect(86, 170, 148, 1.5, GREY)
    for i in range(26):
        c.rect(92 + i * 5.4, 248, rng.choice([1.2, 2.4, 3.4]), 26, INK)
    c.tilt(7)
    c.frame(70, 178, 180, 52, RED, 4, 8)
    c.text(160, 204, "REFUND NOW", 25, RED, True)
    c.tilt(4)
    return c


def lumio_swollen(rng: random.Random) -> Canvas:
    c = Canvas((212, 206, 196), (168, 158, 146))
    c.rect(0, 214, 320, 106, (120, 92, 68))
    c.disc(160, 226, 116, (92, 70, 52), 12)
    c.poly([(52, 208), (268, 208), (264, 222), (56, 222)], (28, 28, 36))
    lid = [(52 + i * 5.4, 206 - 62 * math.sin(math.pi * i / 40) ** 1.3) for i in range(41)]
    c.poly([*lid, (268, 208), (52, 208)], (52, 56, 70))
    c.line(lid, (92, 98, 118), 4)
    c.poly([(120, 207), (200, 207), (188, 180), (132, 180)], (236, 180, 66))
    c.text(160, 195, "!", 24, INK, True)
    for i in range(3):
        x = 116 + i * 44
        wave = [(x + 7 * math.sin(t / 3.2), 128.0 - t * 3.2) for t in range(20)]
        c.line(wave, (236, 232, 226), 4)
    c.text(160, 284, "it opened by itself", 19, (250, 236, 214), True)
    return c


def lumio_warning(rng: random.Random) -> Canvas:
    c = Canvas((250, 206, 60), (244, 170, 40))
    for i in range(-2, 12):
        c.poly([(i * 40, 292), (i * 40 + 20, 292), (i * 40 + 48, 320), (i * 40 + 28, 320)], INK)
    c.poly([(160, 34), (286, 246), (34, 246)], INK)
    c.poly([(160, 60), (264, 234), (56, 234)], (255, 226, 96))
    c.rect(118, 138, 84, 46, INK, 7)
    c.rect(202, 152, 8, 18, INK, 2)
    flame(c, 160, 182, 62, RED)
    flame(c, 160, 182, 34, SUN)
    c.text(160, 212, "DO NOT CHARGE", 15, INK, True)
    c.text(160, 272, "battery fault", 21, INK, True)
    return c


def lumio_statement(rng: random.Random) -> Canvas:
    c = Canvas((226, 232, 242), (196, 206, 222))
    c.rect(40, 28, 240, 266, WHITE, 6)
    c.disc(70, 62, 14, CORAL)
    c.text(92, 62, "Lumio", 21, INK, True, "lm")
    c.text(56, 104, "We are sorry.", 25, INK, True, "lm")
    lines = (
        "Stop charging model LX-1.",
        "Every phone is replaced",
        "or refunded, no questions.",
        "Free return from Monday.",
    )
    for i, words in enumerate(lines):
        c.text(56, 142 + i * 24, words, 15.5, (70, 76, 92), False, "lm")
    wave = [(60 + t * 2.4, 258 + 8 * math.sin(t / 2.0) * math.exp(-t / 30)) for t in range(40)]
    c.line(wave, (50, 70, 150), 2)
    return c


def lumio_specs(rng: random.Random) -> Canvas:
    c = Canvas((238, 242, 248))
    c.rect(0, 0, 320, 58, (44, 50, 74))
    c.text(18, 30, "Lumio One: the figures", 20, WHITE, True, "lm")
    rows = (
        ("screen", "6.1 in OLED"),
        ("weight", "171 g"),
        ("battery", "4,600 mAh"),
        ("camera", "50 MP, f/1.7"),
        ("storage", "256 GB"),
        ("price", "799"),
    )
    for i, (name, value) in enumerate(rows):
        if i % 2 == 0:
            c.rect(0, 66 + i * 40, 320, 40, (224, 230, 240))
        c.text(20, 86 + i * 40, name, 17, (90, 96, 112), False, "lm")
        c.text(300, 86 + i * 40, value, 17, INK, True, "rm")
    return c


def lumio_queue(rng: random.Random) -> Canvas:
    c = Canvas((176, 210, 236), (228, 232, 236))
    c.rect(150, 56, 170, 206, (90, 96, 116))
    c.rect(160, 70, 160, 34, CORAL)
    c.text(238, 88, "LUMIO STORE", 20, WHITE, True)
    c.rect(172, 118, 60, 144, (206, 232, 244))
    c.rect(246, 118, 74, 144, (206, 232, 244))
    phone(c, 262, 142, 40, 80, (24, 24, 34), (255, 214, 120), (214, 70, 140))
    c.rect(0, 262, 320, 58, (168, 166, 164))
    for i in range(8):
        person(c, 20 + i * 27, 290 + (i % 2) * 7, rng.uniform(74, 92), rng.choice(COATS), rng.choice(SKINS))
    return c


# --- Metro Aurora ----------------------------------------------------------------------------------------


def metro_train(rng: random.Random) -> Canvas:
    c = Canvas((116, 190, 246), (216, 238, 252))
    for x, y in ((60, 60), (226, 44), (290, 92)):
        for dx, r in ((-20, 13), (0, 19), (22, 13)):
            c.disc(x + dx, y, r, WHITE)
    hills(c, 190, (140, 200, 140), 1.1, 14)
    c.rect(0, 244, 320, 14, (186, 190, 200))
    for i in range(5):
        c.rect(10 + i * 76, 258, 20, 62, (170, 174, 186))
    train(c, 40, 244, (246, 248, 252), TEAL, (60, 80, 110))
    c.poly([(0, 160), (200, 160), (206, 165), (0, 165)], WHITE)
    return c


def metro_sunrise(rng: random.Random) -> Canvas:
    c = Canvas((90, 80, 150), (255, 200, 130))
    c.glow(lambda g: g.disc(236, 178, 60, (255, 160, 60)), 30)
    c.disc(236, 178, 34, (255, 236, 180))
    x = 0.0
    while x < SIZE_PX:
        w = rng.uniform(22, 44)
        h = rng.uniform(24, 90)
        c.rect(x, 214 - h, w, h + 30, (96, 74, 124))
        x += w
    c.rect(0, 244, 320, 76, (54, 46, 84))
    c.rect(0, 244, 320, 4, (150, 120, 150))
    train(c, 10, 244, (70, 66, 110), SUN, (255, 220, 150))
    return c


def metro_map(rng: random.Random) -> Canvas:
    c = Canvas((250, 250, 248))
    lines: list[tuple[Colour, list[Point]]] = [
        (TEAL, [(20, 250), (90, 250), (160, 180), (160, 110), (230, 60), (304, 60)]),
        (CORAL, [(20, 90), (100, 90), (160, 150), (230, 220), (304, 220)]),
        (VIOLET, [(70, 20), (70, 150), (130, 210), (230, 290), (304, 290)]),
    ]
    for colour, points in lines:
        c.line(points, colour, 8)
    stops: list[Point] = [
        (90, 250),
        (160, 180),
        (160, 110),
        (230, 60),
        (100, 90),
        (230, 220),
        (70, 150),
        (160, 148),
    ]
    for x, y in [*stops, (270.0, 60.0), (40.0, 250.0), (270.0, 220.0), (130.0, 210.0)]:
        c.disc(x, y, 8, INK)
        c.disc(x, y, 5, WHITE)
    c.text(244, 84, "Harbour", 14, INK)
    c.text(208, 124, "Old Town", 14, INK)
    c.text(88, 272, "University", 14, INK)
    c.text(262, 244, "Airport", 14, INK)
    c.text(236, 30, "Metro Aurora", 18, TEAL, True)
    return c


def metro_board_delayed(rng: random.Random) -> Canvas:
    c = Canvas((74, 80, 96), (44, 48, 60))
    board(
        c,
        [
            ("7:42", "Harbour", "+25 min", CORAL),
            ("7:48", "Airport", "cancelled", RED),
            ("7:54", "Old Town", "+31 min", CORAL),
            ("8:00", "University", "delayed", CORAL),
            ("8:06", "Harbour", "cancelled", RED),
        ],
    )
    return c


def metro_board_on_time(rng: random.Random) -> Canvas:
    c = Canvas((130, 170, 180), (84, 120, 134))
    good = (110, 220, 140)
    board(
        c,
        [
            ("8:30", "Harbour", "on time", good),
            ("8:33", "Airport", "on time", good),
            ("8:36", "Old Town", "on time", good),
            ("8:39", "University", "on time", good),
            ("8:42", "Harbour", "on time", good),
        ],
    )
    return c


def metro_crowded(rng: random.Random) -> Canvas:
    c = Canvas((120, 116, 110), (82, 78, 76))
    c.rect(0, 30, 320, 26, (60, 60, 66))
    c.text(160, 43, "please do not push", 15, SUN, True)
    c.rect(0, 84, 320, 90, (146, 142, 136))
    for i in range(4):
        c.rect(i * 84 + 8, 94, 66, 44, (60, 66, 80), 6)
    for row in range(4):
        for i in range(12):
            x = i * 28 + (row % 2) * 13 + rng.uniform(-4, 4)
            h = 100 + row * 18
            coat = mix(rng.choice(COATS), (90, 88, 90), 0.5)
            person(c, x, 214 + row * 36, h, coat, rng.choice(SKINS))
    return c


def metro_platform_empty(rng: random.Random) -> Canvas:
    c = Canvas((236, 240, 240), (210, 222, 222))
    c.poly([(0, 0), (320, 0), (206, 110), (114, 110)], (250, 252, 252))
    c.poly([(0, 0), (114, 110), (114, 176), (0, 250)], (176, 214, 208))
    c.poly([(320, 0), (206, 110), (206, 176), (320, 250)], (196, 206, 210))
    c.poly([(0, 250), (114, 176), (160, 176), (150, 320), (0, 320)], (226, 220, 208))
    c.poly([(160, 176), (206, 176), (320, 250), (320, 320), (150, 320)], (92, 96, 104))
    c.poly([(158, 176), (162, 176), (160, 320), (142, 320)], SUN)
    for i in range(4):
        c.poly(
            [
                (60 + i * 14, 18 + i * 24),
                (260 - i * 14, 18 + i * 24),
                (258 - i * 14, 22 + i * 24),
                (62 + i * 14, 22 + i * 24),
            ],
            SUN,
        )
    c.rect(18, 120, 62, 26, TEAL, 4)
    c.text(49, 133, "Harbour", 13, WHITE, True)
    c.rect(56, 240, 52, 8, (150, 110, 80), 3)
    c.rect(60, 246, 4, 16, INK)
    c.rect(98, 246, 4, 16, INK)
    return c


def metro_app(rng: random.Random) -> Canvas:
    c = Canvas((206, 232, 228), (150, 204, 198))
    phone(c, 84, 18, 152, 288, (34, 38, 52), (250, 252, 252), (232, 242, 240))
    c.text(160, 58, "Aurora app", 20, TEAL, True)
    c.rect(104, 78, 112, 26, (222, 232, 232), 8)
    c.text(114, 91, "to: Harbour", 13, (90, 96, 112), False, "lm")
    for i, (when, walk) in enumerate(
        (("3 min", "platform 2"), ("7 min", "platform 2"), ("11 min", "platform 4"))
    ):
        c.rect(104, 116 + i * 44, 112, 36, WHITE, 8)
        c.text(110, 134 + i * 44, when, 14, INK, True, "lm")
        c.text(211, 134 + i * 44, walk, 10, (90, 96, 112), False, "rm")
    c.rect(104, 254, 112, 28, TEAL, 12)
    c.text(160, 268, "buy ticket", 15, WHITE, True)
    return c


def metro_app_error(rng: random.Random) -> Canvas:
    c = Canvas((196, 190, 196), (140, 132, 144))
    phone(c, 84, 18, 152, 288, (34, 38, 52), (250, 250, 252), (236, 232, 236))
    c.text(160, 62, "Aurora app", 20, TEAL, True)
    c.disc(160, 132, 34, RED)
    c.line([(147, 119), (173, 145)], WHITE, 8)
    c.line([(173, 119), (147, 145)], WHITE, 8)
    c.text(160, 192, "Payment failed", 19, INK, True)
    c.text(160, 216, "error 503, try again", 13, (90, 96, 112))
    c.rect(112, 244, 96, 28, (206, 206, 214), 12)
    c.text(160, 258, "retry (7)", 14, (90, 96, 112), True)
    return c


def metro_ticket(rng: random.Random) -> Canvas:
    c = Canvas((250, 214, 140), (240, 180, 100))
    c.rect(38, 96, 244, 132, WHITE, 12)
    c.disc(38, 162, 13, (245, 197, 120))
    c.disc(282, 162, 13, (245, 197, 120))
    c.rect(38, 96, 244, 34, TEAL, 10)
    c.text(160, 113, "Metro Aurora", 19, WHITE, True)
    c.text(66, 156, "Day ticket, zones A B", 16, INK, True, "lm")
    c.text(66, 180, "valid 13.06.2026", 14, (90, 96, 112), False, "lm")
    c.text(66, 206, "4.80", 20, INK, True, "lm")
    for i in range(7):
        for j in range(7):
            if rng.random() < 0.55:
                c.rect(214 + i * 6, 176 + j * 6, 6, 6, INK)
    c.tilt(-6)
    return c


def metro_works(rng: random.Random) -> Canvas:
    c = Canvas((190, 200, 206), (160, 168, 174))
    c.rect(0, 250, 320, 70, (120, 112, 104))
    for y in (150, 196):
        c.rect(30, y, 260, 28, WHITE, 4)
        for i in range(7):
            c.poly([(34 + i * 38, y + 28), (50 + i * 38, y), (68 + i * 38, y), (52 + i * 38, y + 28)], RED)
    c.rect(52, 140, 10, 124, (90, 92, 100))
    c.rect(258, 140, 10, 124, (90, 92, 100))
    c.rect(76, 38, 168, 92, SUN, 10)
    c.frame(82, 44, 156, 80, INK, 3, 7)
    c.text(160, 68, "Line A closed", 21, INK, True)
    c.text(160, 98, "night works, bus instead", 13, INK)
    return c


def metro_timetable(rng: random.Random) -> Canvas:
    c = Canvas((60, 110, 130), (40, 80, 104))
    c.rect(44, 24, 232, 272, PAPER, 4)
    c.text(160, 52, "Line A, Saturday", 21, INK, True)
    for i in range(8):
        hour = 5 + i * 2
        c.rect(58, 74 + i * 26, 204, 22, (232, 228, 216) if i % 2 else (222, 236, 232))
        c.text(80, 85 + i * 26, f"{hour:02d}", 15, TEAL, True)
        c.text(180, 85 + i * 26, "04  12  20  28  36  44  52", 12, INK)
    return c


def metro_escalator(rng: random.Random) -> Canvas:
    c = Canvas((158, 158, 162), (112, 112, 118))
    c.poly([(40, 320), (250, 70), (320, 70), (320, 140), (170, 320)], (80, 82, 90))
    for i in range(14):
        x, y = 66 + i * 15, 312 - i * 18
        c.poly([(x, y), (x + 84, y), (x + 84, y + 6), (x, y + 6)], (140, 144, 154))
    c.line([(30, 300), (240, 48), (320, 48)], (40, 42, 48), 9)
    c.rect(60, 96, 150, 76, WHITE, 6)
    c.frame(60, 96, 150, 76, RED, 5, 6)
    c.text(135, 122, "OUT OF", 24, RED, True)
    c.text(135, 150, "ORDER", 24, RED, True)
    return c


def metro_riders_chart(rng: random.Random) -> Canvas:
    c = Canvas((250, 250, 252))
    c.text(160, 34, "Metro Aurora riders a day, thousands", 15.5, INK, True)
    c.rect(36, 258, 260, 2, GREY)
    for i, value in enumerate((62, 71, 70, 84, 93, 118)):
        h = value * 1.55
        c.rect(48 + i * 42, 258 - h, 28, h, mix(SKY, TEAL, i / 5), 4)
        c.text(62 + i * 42, 248 - h, str(value), 13, INK, True)
        c.text(62 + i * 42, 274, ("Jan", "Feb", "Mar", "Apr", "May", "Jun")[i], 13, (90, 96, 112))
    return c


# --- Solfest ---------------------------------------------------------------------------------------------


def solfest_poster(rng: random.Random) -> Canvas:
    c = Canvas((250, 110, 90), (255, 200, 100))
    for i in range(24):
        a, b = 2 * math.pi * i / 24, 2 * math.pi * (i + 0.5) / 24
        c.poly(
            [
                (160, 150),
                (160 + 300 * math.cos(a), 150 + 300 * math.sin(a)),
                (160 + 300 * math.cos(b), 150 + 300 * math.sin(b)),
            ],
            (255, 176, 92),
        )
    c.disc(160, 150, 74, (255, 236, 150))
    c.text(160, 138, "SOLFEST", 33, (170, 40, 70), True)
    c.text(160, 172, "2026", 25, (170, 40, 70), True)
    hills(c, 246, (130, 40, 90), 1.5, 10)
    c.text(160, 284, "13 + 14 June, by the lake", 18, (255, 226, 190), True)
    return c


def stage(c: Canvas, rng: random.Random, beams: tuple[Colour, ...]) -> None:
    def light(g: Canvas) -> None:
        for i, colour in enumerate(beams):
            x = 50 + i * 220 / (len(beams) - 1)
            lean = rng.uniform(-70, 70)
            g.poly([(x - 3, 60), (x + 3, 60), (x + lean + 38, 270), (x + lean - 38, 270)], colour)

    c.rect(30, 52, 260, 8, (40, 40, 56))
    c.rect(30, 52, 8, 180, (40, 40, 56))
    c.rect(282, 52, 8, 180, (40, 40, 56))
    c.rect(38, 210, 244, 26, (30, 28, 44))
    for x, h in ((120, 46), (160, 56), (206, 44)):
        person(c, x, 212, h, (20, 20, 30), (20, 20, 30))
    c.glow(light, 5, 0.7)


def solfest_stage(rng: random.Random) -> Canvas:
    c = Canvas((18, 12, 46), (54, 20, 80))
    speckle(c, rng, 60, 60, (200, 200, 230))
    stage(c, rng, ((220, 60, 150), (60, 160, 255), (255, 190, 60), (110, 230, 180), (180, 90, 255)))
    crowd(c, 256, rng, (10, 8, 24), True)
    return c


def solfest_stage_gold(rng: random.Random) -> Canvas:
    c = Canvas((50, 18, 20), (120, 50, 30))
    stage(c, rng, ((255, 180, 60), (255, 140, 50), (255, 220, 140), (255, 150, 60)))
    for _ in range(90):
        x, y = rng.uniform(0, 320), rng.uniform(60, 250)
        c.rect(x, y, 3, 5, rng.choice([SUN, (255, 230, 170), CORAL]))
    crowd(c, 262, rng, (30, 10, 14), True)
    return c


def solfest_fireworks(rng: random.Random) -> Canvas:
    c = Canvas((10, 14, 50), (50, 34, 90))
    speckle(c, rng, 60, 200, (200, 200, 230))
    bursts: list[tuple[float, float, float, Colour]] = [
        (92, 92, 70, (255, 120, 120)),
        (220, 70, 54, (120, 220, 255)),
        (196, 164, 62, (255, 214, 110)),
    ]

    def burst(g: Canvas) -> None:
        for x, y, r, colour in bursts:
            for i in range(26):
                a = 2 * math.pi * i / 26
                g.line(
                    [
                        (x + r * 0.25 * math.cos(a), y + r * 0.25 * math.sin(a)),
                        (x + r * math.cos(a), y + r * math.sin(a) + r * 0.08),
                    ],
                    colour,
                    1.6,
                )
                g.disc(x + r * math.cos(a), y + r * math.sin(a) + r * 0.08, 2.4, WHITE)

    c.glow(burst, 4)
    c.glow(burst, 0.4, 0.9)
    hills(c, 262, (20, 18, 44), 0.8, 8)
    crowd(c, 276, rng, (8, 8, 20), True)
    return c


def solfest_tents(rng: random.Random) -> Canvas:
    c = Canvas((110, 190, 246), (226, 242, 250))
    c.glow(lambda g: g.disc(254, 62, 40, (120, 100, 30)), 24)
    c.disc(254, 62, 30, (255, 224, 100))
    hills(c, 168, (136, 196, 120), 1.0, 12)
    hills(c, 200, (112, 180, 96), 1.4, 8, 2.0)
    for x, y, w, colour in (
        (26, 214, 70, CORAL),
        (204, 208, 66, VIOLET),
        (110, 226, 84, SUN),
        (30, 278, 104, TEAL),
        (184, 284, 116, (240, 130, 60)),
    ):
        tent(c, x, y, w, colour)
    for i in range(9):
        flag_x = 10 + i * 38
        flag_y = 128 + 10 * math.sin(i * 1.1)
        c.line([(flag_x, flag_y), (flag_x + 38, 128 + 10 * math.sin((i + 1) * 1.1))], (120, 110, 100), 1.2)
        c.poly(
            [(flag_x + 8, flag_y), (flag_x + 26, flag_y), (flag_x + 17, flag_y + 18)],
            (CORAL, SUN, TEAL, VIOLET)[i % 4],
        )
    return c


def solfest_mud(rng: random.Random) -> Canvas:
    c = Canvas((104, 112, 124), (146, 150, 156))
    for x, y, r in ((60, 34, 40), (130, 24, 50), (210, 36, 46), (282, 26, 42)):
        c.disc(x, y, r, (84, 90, 104), r * 0.6)
    hills(c, 180, (112, 106, 84), 1.1, 6)
    hills(c, 204, (100, 78, 56), 1.6, 5, 1.0)
    tent(c, 34, 206, 92, (120, 104, 112))
    tent(c, 204, 198, 66, (96, 108, 112))
    for x, y, w in ((80, 250, 64), (214, 236, 52), (250, 286, 70), (130, 300, 54)):
        c.disc(x, y, w, (78, 60, 44), w * 0.17)
        c.disc(x, y - 1, w * 0.86, (134, 128, 124), w * 0.12)
    for x in (146, 176):
        c.rect(x, 222, 18, 48, SUN, 4)
        c.rect(x, 258, 32, 15, SUN, 7)
        c.rect(x, 270, 33, 4, (92, 72, 40), 2)
    for _ in range(150):
        drop_x, drop_y = rng.uniform(-10, 320), rng.uniform(0, 320)
        c.line([(drop_x, drop_y), (drop_x - 4, drop_y + 14)], (186, 194, 206), 0.9)
    return c


def solfest_wristband(rng: random.Random) -> Canvas:
    c = Canvas((150, 210, 236), (214, 236, 240))
    c.poly([(0, 150), (230, 118), (236, 206), (0, 262)], (224, 172, 134))
    c.disc(246, 162, 46, (224, 172, 134), 44)
    for i in range(4):
        c.line([(262, 134 + i * 18), (306, 122 + i * 24)], (224, 172, 134), 17)
    c.poly([(96, 132), (152, 124), (160, 226), (104, 238)], CORAL)
    for i in range(5):
        star(c, 127 + (i % 2) * 8, 142 + i * 20, 6, (255, 226, 150))
    c.text(160, 290, "Solfest 2026: weekend pass", 18, (40, 80, 110), True)
    return c


def solfest_crowd(rng: random.Random) -> Canvas:
    c = Canvas((255, 170, 110), (250, 110, 120))
    c.disc(160, 140, 72, (255, 226, 150))
    crowd(c, 214, rng, (190, 60, 96), True)
    crowd(c, 246, rng, (130, 36, 84), True)
    crowd(c, 282, rng, (70, 20, 60), True)
    return c


def solfest_wheel(rng: random.Random) -> Canvas:
    c = Canvas((74, 60, 130), (255, 160, 110))
    c.line([(160, 150), (112, 290)], (60, 40, 84), 8)
    c.line([(160, 150), (208, 290)], (60, 40, 84), 8)
    c.ring(160, 150, 104, (250, 236, 220), 4)
    c.ring(160, 150, 92, (250, 236, 220), 2)
    for i in range(12):
        a = 2 * math.pi * i / 12
        x, y = 160 + 98 * math.cos(a), 150 + 98 * math.sin(a)
        c.line([(160, 150), (x, y)], (250, 236, 220), 1.6)
        c.disc(x, y + 8, 11, COATS[i % len(COATS)])
    c.disc(160, 150, 11, SUN)
    c.rect(0, 286, 320, 34, (50, 34, 70))
    return c


def solfest_ice_cream(rng: random.Random) -> Canvas:
    c = Canvas((190, 236, 240), (252, 240, 214))
    c.disc(260, 60, 32, SUN)
    c.poly([(112, 170), (208, 170), (160, 296)], (222, 164, 92))
    for i in range(5):
        c.line([(118 + i * 18, 174), (146 + i * 7, 260 - abs(i - 2) * 16)], (190, 130, 66), 1.8)
    c.disc(160, 152, 52, (255, 180, 196), 44)
    c.disc(160, 98, 42, (250, 240, 214), 38)
    c.disc(160, 58, 13, RED)
    for _ in range(26):
        x, y = rng.uniform(124, 196), rng.uniform(76, 170)
        c.line([(x, y), (x + 5, y + rng.uniform(-4, 4))], rng.choice([VIOLET, TEAL, SUN, CORAL]), 2.2)
    return c


def solfest_lineup(rng: random.Random) -> Canvas:
    c = Canvas((46, 30, 90), (90, 40, 110))
    c.text(160, 36, "SOLFEST 2026", 26, SUN, True)
    c.text(160, 60, "main stage", 15, (226, 206, 240))
    rows = (
        ("15:00", "Paper Otters"),
        ("16:30", "Die Nachtlichter"),
        ("18:00", "Sal y Verbena"),
        ("19:30", "Mare Mosso"),
        ("21:00", "Slow Weather"),
        ("23:00", "Nova Corrente"),
    )
    for i, (when, who) in enumerate(rows):
        c.rect(26, 80 + i * 37, 268, 30, (74, 54, 124), 8)
        c.text(40, 95 + i * 37, when, 16, SUN, True, "lm")
        c.text(282, 95 + i * 37, who, 17, WHITE, False, "rm")
    return c


def solfest_campfire(rng: random.Random) -> Canvas:
    c = Canvas((16, 22, 56), (44, 40, 80))
    speckle(c, rng, 110, 190, (226, 226, 244))
    hills(c, 226, (28, 34, 52), 1.0, 6)
    c.glow(lambda g: g.disc(160, 232, 84, (170, 84, 20)), 34)
    for x, h in ((56, 84), (96, 70), (230, 76), (270, 86)):
        person(c, x, 276, h, (30, 24, 40), (70, 46, 44))
    c.line([(122, 274), (198, 256)], (92, 58, 36), 10)
    c.line([(122, 256), (198, 274)], (74, 46, 30), 10)
    for x, h, colour in (
        (146, 70, (230, 84, 30)),
        (174, 76, (230, 84, 30)),
        (160, 88, (250, 140, 40)),
        (160, 48, (255, 226, 130)),
    ):
        flame(c, x, 262, h, colour)
    return c


# --- faces, and pictures of nothing in particular --------------------------------------------------------


def cat(rng: random.Random) -> Canvas:
    c = Canvas((210, 224, 240), (238, 226, 210))
    fur = (236, 160, 84)
    c.poly([(84, 120), (92, 40), (146, 88)], fur)
    c.poly([(236, 120), (228, 40), (174, 88)], fur)
    c.disc(160, 152, 90, fur, 78)
    c.disc(160, 186, 40, (252, 236, 214), 30)
    for x in (124, 196):
        c.disc(x, 140, 15, (120, 180, 90), 17)
        c.disc(x, 140, 5, INK, 14)
    c.poly([(152, 170), (168, 170), (160, 180)], CORAL)
    for dy in (-8, 2, 12):
        c.line([(116, 184 + dy * 0.4), (60, 178 + dy)], WHITE, 1.6)
        c.line([(204, 184 + dy * 0.4), (260, 178 + dy)], WHITE, 1.6)
    for i in (-1, 0, 1):
        c.line([(160 + i * 18, 80), (160 + i * 14, 104)], (200, 120, 56), 6)
    c.rect(60, 236, 200, 90, fur, 60)
    return c


def coffee(rng: random.Random) -> Canvas:
    c = Canvas((226, 206, 186), (190, 158, 128))
    c.disc(160, 250, 116, (250, 248, 244), 22)
    c.disc(160, 246, 84, (226, 222, 216), 14)
    c.ring(232, 184, 32, WHITE, 12)
    c.poly([(86, 140), (234, 140), (216, 240), (104, 240)], WHITE)
    c.disc(160, 140, 74, WHITE, 18)
    c.disc(160, 141, 66, (110, 70, 44), 14)
    heart(c, 160, 141, 12, (236, 212, 178))
    for i in range(3):
        c.line([(126 + i * 34 + 6 * math.sin(t / 3), 108.0 - t * 3.4) for t in range(18)], (250, 242, 232), 4)
    return c


# fmt: off
DRAWINGS: tuple[Callable[[random.Random], Canvas], ...] = (
    lumio_advert, lumio_box, lumio_colours, lumio_camera_sunset, lumio_night_photo, lumio_stars,
    lumio_heart, lumio_unbox_party, lumio_on_fire, lumio_cracked, lumio_thermometer, lumio_battery_chart,
    lumio_refund, lumio_swollen, lumio_warning, lumio_statement, lumio_specs, lumio_queue,
    metro_train, metro_sunrise, metro_map, metro_board_delayed, metro_board_on_time, metro_crowded,
    metro_platform_empty, metro_app, metro_app_error, metro_ticket, metro_works, metro_timetable,
    metro_escalator, metro_riders_chart,
    solfest_poster, solfest_stage, solfest_stage_gold, solfest_fireworks, solfest_tents, solfest_mud,
    solfest_wristband, solfest_crowd, solfest_wheel, solfest_ice_cream, solfest_lineup, solfest_campfire,
    cat, coffee,
)
# fmt: on
FACES: dict[str, Colour] = {
    "smile": SKY,
    "love": (250, 170, 180),
    "laugh": (150, 214, 180),
    "neutral": (200, 206, 214),
    "frown": (130, 150, 190),
    "anger": (90, 70, 84),
}


def pictures() -> Iterator[tuple[str, Image.Image]]:
    """Every picture with its name; the same on every call."""
    for paint in DRAWINGS:
        yield paint.__name__, paint(random.Random(paint.__name__)).finished()
    for kind, back in FACES.items():
        yield f"face_{kind}", face(kind, back).finished()


def draw_pictures(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures():
        picture.save(out / f"{name}.webp", quality=WEBP_QUALITY, method=6)


def contact_sheet(out: Path, columns: int = 8, side_px: int = 200) -> None:
    drawn = [picture for _, picture in pictures()]
    sheet = Image.new("RGB", (columns * side_px, -(-len(drawn) // columns) * side_px), WHITE)
    for i, picture in enumerate(drawn):
        small = picture.resize((side_px - 4, side_px - 4), Image.Resampling.LANCZOS)
        sheet.paste(small, (i % columns * side_px + 2, i // columns * side_px + 2))
    sheet.save(out)


# --- voices ----------------------------------------------------------------------------------------------

# EMO-DB names its clips speaker (2 digits), sentence (3 characters), emotion, take (a letter).
# fmt: off
VOICES = (
    # anger (W)
    "03a01Wa", "03b01Wc", "03b09Wa", "08a02Wc", "08b03Wd", "09a05Wc", "10a04Wb", "11b10Wa", "12a07Wa",
    "13a04Wc", "14b02Wd", "14a02Wc",
    # happiness (F)
    "03a07Fa", "03b01Fa", "08a04Ff", "08b09Fd", "09b03Fa", "10a02Fa", "11b02Fd", "12a01Fb", "13a07Fd",
    "13b09Fb", "14b01Fc", "14a05Fa",
    # sadness (T)
    "03b03Tc", "08a04Tb", "10a07Ta", "11a02Tc", "13a04Ta", "14b10Tc",
    # neutral (N)
    "03a07Nc", "08b10Nc", "09b09Nd", "10a02Na", "13b03Na", "14b02Na",
)
# fmt: on
OPUS_BITRATE = 24_000


def convert_voice(source: Path, target: Path) -> None:
    """One clip of any format to Ogg/Opus, mono, 24 kbit/s; no metadata and a fixed stream serial number."""
    exact = {"fflags": "+bitexact"}
    with av.open(str(source)) as clip, av.open(str(target), "w", format="ogg", options=exact) as ogg:
        stream = ogg.add_stream("libopus", rate=48_000, layout="mono", options={"application": "audio"})
        stream.bit_rate = OPUS_BITRATE
        resampler = av.AudioResampler(format="s16", layout="mono", rate=48_000, frame_size=960)
        for frame in clip.decode(audio=0):
            for piece in resampler.resample(frame):
                ogg.mux(stream.encode(piece))
        for piece in resampler.resample(None):
            ogg.mux(stream.encode(piece))
        ogg.mux(stream.encode(None))


def convert_voices(source: Path, out: Path) -> None:
    """EMO-DB's folder holds the clips by name, as WAV or FLAC, at any depth."""
    out.mkdir(parents=True, exist_ok=True)
    found = {path.stem: path for path in source.rglob("*") if path.suffix.lower() in {".wav", ".flac"}}
    missing = [name for name in VOICES if name not in found]
    if missing:
        raise SystemExit(f"{source} lacks {len(missing)} of EMO-DB's clips: {' '.join(missing)}")
    for name in VOICES:
        convert_voice(found[name], out / f"{name}.opus")


# --- what broken.jsonl points at -------------------------------------------------------------------------

SILENCE_S = 10 * 3600
SILENCE_RATE_HZ = 8_000
FLAC_BLOCK_SAMPLES = 65_535  # the format's largest: silence then costs about 14 bytes a block


def write_silence(target: Path) -> None:
    with av.open(str(target), "w", format="flac", options={"fflags": "+bitexact"}) as out:
        options = {"frame_size": str(FLAC_BLOCK_SAMPLES)}
        stream = out.add_stream("flac", rate=SILENCE_RATE_HZ, layout="mono", options=options)
        zeros = np.zeros((1, FLAC_BLOCK_SAMPLES), np.int16)
        for start in range(0, SILENCE_S * SILENCE_RATE_HZ, FLAC_BLOCK_SAMPLES):
            length = min(FLAC_BLOCK_SAMPLES, SILENCE_S * SILENCE_RATE_HZ - start)
            frame = av.AudioFrame.from_ndarray(zeros[:, :length], format="s16", layout="mono")
            frame.sample_rate = SILENCE_RATE_HZ
            frame.pts = start
            frame.time_base = Fraction(1, SILENCE_RATE_HZ)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def write_broken(media: Path, out: Path) -> None:
    """Reads two good files of the feed's media; so run it after the pictures and the voices."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "voices").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (1, 1), CORAL).save(out / "images" / "one_pixel.png")
    whole = out / "images" / "truncated.jpg"
    with Image.open(media / "images" / "solfest_tents.webp") as picture:
        picture.convert("RGB").save(whole, quality=85)
    jpeg = whole.read_bytes()
    whole.write_bytes(jpeg[: len(jpeg) // 3])
    (out / "images" / "empty.png").write_bytes(b"")
    (out / "voices" / "empty.opus").write_bytes(b"")
    (out / "images" / "text_inside.jpg").write_text("This is not a picture. It only says it is one.\n")
    (out / "voices" / "text_inside.opus").write_text("This is not a voice. It only says it is one.\n")
    voice = (media / "voices" / f"{VOICES[0]}.opus").read_bytes()
    (out / "voices" / "truncated.opus").write_bytes(voice[: len(voice) // 3])
    (out / "voices" / "good.opus").write_bytes(voice)
    (out / "images" / "good.webp").write_bytes((media / "images" / "metro_train.webp").read_bytes())
    write_silence(out / "voices" / "silence_10_hours.flac")


def main() -> None:
    parser = argparse.ArgumentParser(description="Rebuild the sample feed's media.")
    parser.add_argument("what", choices=("pictures", "voices", "broken", "sheet"))
    parser.add_argument(
        "--source", type=Path, default=os.environ.get("EMODB_DIR"), help="folder of EMO-DB clips"
    )
    parser.add_argument("--out", type=Path, default=None, help="instead of the folder beside this script")
    args = parser.parse_args()
    if args.what == "pictures":
        draw_pictures(args.out or DEMO / "media" / "images")
    elif args.what == "voices":
        if args.source is None:
            parser.error("voices needs --source, or the variable EMODB_DIR: the folder that holds EMO-DB")
        convert_voices(Path(args.source), args.out or DEMO / "media" / "voices")
    elif args.what == "broken":
        write_broken(DEMO / "media", args.out or DEMO / "broken_media")
    else:
        contact_sheet(args.out or Path("contact_sheet.png"))


if __name__ == "__main__":
    main()
