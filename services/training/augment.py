"""Altered copies of raw inputs: noise in texts, crops and JPEG of pictures, noise, room, codec of sounds.

Everything drawn comes from the generator that is passed in, so the same seed gives the same bytes, and the
embedding cache knows an augmented copy again like any other input. What cannot be decoded is handed on as it
is: the encoder says why it cannot be used.
"""

from __future__ import annotations

import hashlib
import io
import re
import wave
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchaudio import functional as audio_functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as image_functional

from services.audio_encoder import sounds
from services.audio_encoder.sounds import SAMPLE_RATE_HZ
from services.image_encoder import pictures
from shared.encoding import Input
from shared.errors import InvalidMessage
from shared.messages import Modality

Rng = np.random.Generator
Pixels = Tensor  # (3, side, side) uint8

# The size that the default image model looks at: a copy that is not changed gives the same vector.
SIDE: Final = 224
_MAX_PIXELS: Final = 40_000_000
_MAX_AUDIO_S: Final = 30.0
_CONTAINERS: Final = {"libopus": "ogg", "libmp3lame": "mp3"}
_GREY: Final = (127, 127, 127)

# An emoji with what modifies it: skin, sex, variation, the joiner. Source: Unicode UTS #51, table of ranges.
_EMOJI: Final = re.compile(
    "[\U0001f000-\U0001faff\u2600-\u27bf\u2b00-\u2bff\u231a\u231b\u23e9-\u23fa]"
    "[\ufe0f\u200d\U0001f3fb-\U0001f3ff\u2640\u2642]*"
)
# They show things and no feeling.
NEUTRAL_EMOJI: Final = ("📷", "📍", "🕐", "📱", "🚌", "📎", "📅", "🎥")
# Left as they are: links, names and tags hold no words that somebody mistypes in a hurry.
_KEPT: Final = re.compile(r"https?:\S+|@\S+|#\S+")
# Without one of these a sentence says the opposite, and its label would be wrong.
_NEGATION_WORDS = """
not no never nor none nothing cannot without hardly nicht nie kein keine keinen nichts ohne pas ne jamais rien
sans nunca nada sin ni não nem sem non mai niente senza لا ليس لم لن नहीं मत
"""
_NEGATIONS: Final = frozenset(_NEGATION_WORDS.split())
_KEYBOARD: Final = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def typos(text: str, rate: float, rng: Rng) -> str:
    """About `rate` of the letters swapped with the next, left out, doubled or hit beside; never in links,
    names and tags."""
    kept = {i for found in _KEPT.finditer(text) for i in range(*found.span())}
    letters = list(text)
    i = 0
    while i < len(letters):
        if i in kept or not text[i].isalpha() or rng.random() >= rate:
            i += 1
            continue
        kind = int(rng.integers(4))
        if kind == 0 and i + 1 < len(letters) and i + 1 not in kept and text[i + 1].isalpha():
            letters[i], letters[i + 1] = letters[i + 1], letters[i]
            i += 1
        elif kind == 1:
            letters[i] = ""
        elif kind == 2:
            letters[i] += text[i]
        else:
            letters[i] = _beside(text[i], rng)
        i += 1
    return "".join(letters)


def _beside(letter: str, rng: Rng) -> str:
    """A neighbouring key's letter; the letter twice where no key is known."""
    for row in _KEYBOARD:
        place = row.find(letter.lower())
        if place >= 0:
            near = row[max(0, place - 1) : place] + row[place + 1 : place + 2]
            found = near[int(rng.integers(len(near)))]
            return found.upper() if letter.isupper() else found
    return letter * 2


def without_emoji(text: str) -> str:
    return _EMOJI.sub("", text).strip()


def with_neutral_emoji(text: str, rng: Rng) -> str:
    return f"{text} {NEUTRAL_EMOJI[int(rng.integers(len(NEUTRAL_EMOJI)))]}"


def dropped_words(text: str, rate: float, rng: Rng) -> str:
    """About `rate` of the words left out: never a negation, never the last word that is left."""
    words = text.split()
    kept = [
        word
        for word in words
        if rng.random() >= rate or word.lower().strip(".,!?") in _NEGATIONS or word.lower().endswith("n't")
    ]
    return " ".join(kept or words[:1])


def noisy_text(text: str, rng: Rng) -> str:
    """The text as somebody else might have typed it, still saying the same: emoji are added, never taken."""
    text = dropped_words(text, float(rng.uniform(0, 0.15)), rng)
    text = typos(text, float(rng.uniform(0, 0.08)), rng)
    case = rng.random()
    if case < 0.25:
        text = text.lower()
    elif case < 0.3:
        text = text.upper()
    return with_neutral_emoji(text, rng) if rng.random() < 0.2 else text


def blurred(pixels: Pixels, deviation: float) -> Pixels:
    """Gaussian blur; deviation: in pixels of the `SIDE`."""
    size = 2 * int(np.ceil(2 * deviation)) + 1
    return _tensor(image_functional.gaussian_blur(pixels, [size, size], [deviation, deviation]))


def rotated(pixels: Pixels, degrees: float) -> Pixels:
    """Turned about its middle; grey where nothing is left."""
    return _tensor(
        image_functional.rotate(pixels, degrees, interpolation=InterpolationMode.BILINEAR, fill=list(_GREY))
    )


def compressed(pixels: Pixels, quality: int) -> Pixels:
    """Through JPEG and back. quality: 1 to 100."""
    return _tensor(image_functional.jpeg(pixels, quality))


def cropped(pixels: Pixels, share: float, rng: Rng) -> Pixels:
    """A square piece with `share` of the sides, from anywhere, at the full size again."""
    side = pixels.shape[1]
    kept = max(1, round(side * share))
    top, left = (int(rng.integers(side - kept + 1)) for _ in range(2))
    return _tensor(
        image_functional.resized_crop(
            pixels, top, left, kept, kept, [side, side], interpolation=InterpolationMode.BICUBIC
        )
    )


def noisy_pixels(pixels: Pixels, rng: Rng) -> Pixels:
    """Another cut of the picture, half of them mirrored, through JPEG: what reposting does to it."""
    pixels = cropped(pixels, float(rng.uniform(0.75, 1.0)), rng)
    if rng.random() < 0.5:
        pixels = _tensor(image_functional.horizontal_flip(pixels))
    return compressed(pixels, int(rng.integers(30, 91)))


def with_noise(waveform: Tensor, snr_db: float, rng: Rng) -> Tensor:
    """Pink noise under the sound, of which the sound's mean power is `snr_db` above it.

    Pink, not white: the noise of rooms and streets falls with the frequency (Voss and Clarke 1975).
    """
    count = waveform.shape[-1]
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = torch.from_numpy(np.fft.irfft(spectrum, count).astype(np.float32))
    return _tensor(audio_functional.add_noise(waveform, noise, torch.tensor(snr_db)))


def in_a_room(waveform: Tensor, reverberation_s: float, rng: Rng) -> Tensor:
    """As heard some metres away in a room. reverberation_s: until the echo is 60 dB down.

    The response of the room is decaying noise with the direct sound at its head, 3 dB under all of the echo
    (Moorer 1979).
    """
    count = max(2, round(reverberation_s * SAMPLE_RATE_HZ))
    decay = 10 ** (-3 * np.arange(count) / count)
    response = rng.standard_normal(count) * decay
    response[0] = 0
    response /= np.sqrt((response**2).sum())
    response[0] = 10 ** (-3 / 20)
    heard = audio_functional.fftconvolve(waveform, torch.from_numpy(response.astype(np.float32)))
    return _tensor(heard[: waveform.shape[-1]])


def encoded(waveform: Tensor, codec: str, bits_per_s: int) -> bytes:
    """A file by a lossy codec, "libopus" or "libmp3lame"; the encoder that reads it is the way back."""
    buffer = io.BytesIO()
    # bitexact: without it Ogg draws a serial number, and no two files would have the same hash.
    options = {"fflags": "+bitexact"}
    with av.open(buffer, "w", format=_CONTAINERS[codec], options=options) as container:
        stream: Any = container.add_stream(codec, rate=SAMPLE_RATE_HZ)
        stream.bit_rate = bits_per_s
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(_sixteen_bits(waveform)[None], "s16", "mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        resampler = av.AudioResampler(stream.format, "mono", SAMPLE_RATE_HZ, stream.frame_size or None)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def noisy_sound(content: bytes, rng: Rng) -> bytes:
    """Noise, a room or a codec, each of them as likely; noise may come on top of a room."""
    kind = int(rng.integers(4))
    if kind == 0:
        return changed_sound(content, lambda w: encoded(w, "libopus", int(rng.integers(6, 25)) * 1000))

    def change(waveform: Tensor) -> Tensor:
        if kind >= 2:
            waveform = in_a_room(waveform, float(rng.uniform(0.2, 0.8)), rng)
        if kind <= 2:
            waveform = with_noise(waveform, float(rng.uniform(5, 30)), rng)
        return waveform

    return changed_sound(content, change)


def changed_picture(content: bytes, change: Callable[[Pixels], Pixels]) -> bytes:
    """The picture squeezed to `SIDE`, changed, as PNG, which loses nothing more."""
    try:
        picture = pictures.decode(content, SIDE, _MAX_PIXELS)
    except InvalidMessage:
        return content
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    buffer = io.BytesIO()
    Image.fromarray(change(pixels).permute(1, 2, 0).numpy()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def changed_sound(content: bytes, change: Callable[[Tensor], Tensor | bytes]) -> bytes:
    """The first 30 s of the sound, changed: a file as it is, a waveform as WAV, quieter if it would clip."""
    try:
        waveform = sounds.decode(content, _MAX_AUDIO_S)
    except InvalidMessage:
        return content
    changed = change(torch.from_numpy(waveform))
    if isinstance(changed, bytes):
        return changed
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(_sixteen_bits(changed).tobytes())
    return buffer.getvalue()


def copier(seed: int, copy: int) -> Callable[[Modality, Input], Input]:
    """What makes the copy of that number of any input: a function of seed, number and content alone, not of
    the order of the rows."""

    def change(modality: Modality, item: Input) -> Input:
        rng = rng_of(item, seed, copy)
        if modality is Modality.TEXT:
            return replace(item, text=noisy_text(item.text, rng))
        if modality is Modality.IMAGE:
            media = tuple(changed_picture(each, lambda p: noisy_pixels(p, rng)) for each in item.media)
        else:
            media = tuple(noisy_sound(each, rng) for each in item.media)
        return replace(item, media=media)

    return change


def rng_of(item: Input, *numbers: int) -> Rng:
    """A generator of its own for every content: the same again for the same content and numbers."""
    contents = item.media or (item.text.encode("utf-8", "replace"),)
    digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).digest()
    return np.random.default_rng([*numbers, int.from_bytes(digest[:8], "big")])


def _sixteen_bits(waveform: Tensor) -> Any:
    """(samples,) int16."""
    values = waveform.numpy()
    values = values / max(1.0, float(np.abs(values).max()))
    return np.round(values * 32767).astype(np.int16)


def _tensor(value: Any) -> Tensor:
    """torchvision and torchaudio carry no types."""
    found: Tensor = value
    return found
