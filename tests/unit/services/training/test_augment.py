"""Altered inputs: the same seed gives the same bytes, and each alteration does what its name says."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from services.audio_encoder import sounds
from services.image_encoder import pictures
from services.training import augment
from shared.encoding import Input
from shared.messages import Modality

torch.set_num_threads(1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def a_picture() -> bytes:
    pixels = rng().integers(0, 256, (30, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((200, 150), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def a_sound(seconds: float = 1.0) -> bytes:
    """A tone that swells and fades: speech is no steady noise either."""
    t = np.arange(int(seconds * 16_000)) / 16_000
    samples = np.sin(2 * np.pi * 220 * t) * np.sin(np.pi * t / seconds) * 12_000
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.astype(np.int16).tobytes())
    return buffer.getvalue()


def heard(content: bytes) -> sounds.Waveform:
    return sounds.decode(content, 30.0)


@given(st.text(max_size=60), st.integers(0, 2**32 - 1))
def test_a_text_is_altered_the_same_way_for_the_same_seed(text: str, seed: int) -> None:
    assert augment.noisy_text(text, rng(seed)) == augment.noisy_text(text, rng(seed))


@pytest.mark.parametrize("rate", [0.05, 0.10])
def test_typos_hit_about_as_many_letters_as_asked(rate: float) -> None:
    text = "abcdefghij" * 500
    typed = augment.typos(text, rate, rng())
    pieces = typed.split("abcdefghij")
    assert typed != text
    hit = 500 - typed.count("abcdefghij")
    assert hit == pytest.approx(500 * (1 - (1 - rate) ** 10), rel=0.15), len(pieces)


def test_no_typos_at_rate_zero_and_none_in_links_names_and_tags() -> None:
    assert augment.typos("nothing happens", 0.0, rng()) == "nothing happens"
    kept = "@somebody https://example.org/a #hashtag"
    assert augment.typos(kept, 1.0, rng()) == kept


def test_words_are_dropped_but_never_a_negation() -> None:
    text = "this is not a thing that I would never do and don't ask why"
    left = augment.dropped_words(text, 0.9, rng()).split()
    assert {"not", "never", "don't"} <= set(left)
    assert len(left) < len(text.split())
    assert augment.dropped_words("alone", 1.0, rng()) == "alone"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("good 😀👍🏽", "good"),
        ("love ❤️ it", "love  it"),
        ("👨‍👩‍👧 family", "family"),
        ("5 stars, 100 %, #1 © ünïcode क्‍ष", "5 stars, 100 %, #1 © ünïcode क्‍ष"),
    ],
)
def test_emoji_go_with_all_that_modifies_them_and_nothing_else_does(text: str, left: str) -> None:
    assert augment.without_emoji(text) == left


def test_what_is_added_counts_as_emoji() -> None:
    assert augment.without_emoji(augment.with_neutral_emoji("so so", rng())) == "so so"


def test_a_picture_that_is_not_changed_is_the_one_the_encoder_sees_anyway() -> None:
    content = a_picture()
    same = augment.changed_picture(content, lambda pixels: pixels)
    np.testing.assert_array_equal(
        np.asarray(pictures.decode(same, augment.SIDE, 10**6)),
        np.asarray(pictures.decode(content, augment.SIDE, 10**6)),
    )


def sharpness(pixels: torch.Tensor) -> float:
    return float(pixels.float().diff(dim=2).abs().mean())


def test_blur_rotation_and_jpeg() -> None:
    pixels = torch.from_numpy(np.array(pictures.decode(a_picture(), augment.SIDE, 10**6))).permute(2, 0, 1)
    assert (
        sharpness(augment.blurred(pixels, 3.0)) < sharpness(augment.blurred(pixels, 1.0)) < sharpness(pixels)
    )
    turned = augment.rotated(pixels, 90.0)
    torch.testing.assert_close(turned[:, 5:-5, 5:-5], pixels.rot90(1, (1, 2))[:, 5:-5, 5:-5], atol=2, rtol=0)
    coarse, fine = (
        float((augment.compressed(pixels, quality).float() - pixels.float()).abs().mean())
        for quality in (5, 95)
    )
    assert coarse > 2 * fine > 0


def test_a_crop_is_a_piece_of_the_picture_at_full_size() -> None:
    pixels = torch.zeros(3, 100, 100, dtype=torch.uint8)
    pixels[:, :, 50:] = 200
    cut = augment.cropped(pixels, 0.5, rng(1))
    assert cut.shape == pixels.shape
    torch.testing.assert_close(augment.cropped(pixels, 1.0, rng()), pixels)


@pytest.mark.parametrize("snr_db", [20.0, 10.0, 0.0])
def test_noise_is_as_strong_as_asked(snr_db: float) -> None:
    clean = torch.from_numpy(heard(a_sound()))
    noise = augment.with_noise(clean, snr_db, rng()) - clean
    ratio = 10 * torch.log10(clean.square().mean() / noise.square().mean())
    assert float(ratio) == pytest.approx(snr_db, abs=0.1)
    low, high = np.split(np.abs(np.fft.rfft(noise.numpy()))[1:] ** 2, [1000])
    assert low.mean() > 5 * high.mean(), "pink: more power in the low frequencies"


def test_a_room_rings_on_after_a_click() -> None:
    click = torch.zeros(16_000)
    click[100] = 1.0
    ringing = augment.in_a_room(click, 0.6, rng())
    assert ringing.shape == click.shape
    assert float(ringing[:100].abs().max()) < 1e-5
    early, late = (float(ringing[start : start + 800].square().sum()) for start in (110, 6_000))
    assert early > 100 * late > 0


@pytest.mark.parametrize(("codec", "head"), [("libopus", b"OggS"), ("libmp3lame", b"ID3")])
def test_a_codec_makes_a_small_file_that_sounds_alike_and_is_the_same_every_time(
    codec: str, head: bytes
) -> None:
    clean = torch.from_numpy(heard(a_sound()))
    content = augment.encoded(clean, codec, 16_000)
    assert content[: len(head)] == head
    assert content == augment.encoded(clean, codec, 16_000)
    assert len(content) < 5_000 < len(a_sound())
    decoded = heard(content)
    assert decoded.size == pytest.approx(clean.numel(), abs=3_000)
    spectra = [np.abs(np.fft.rfft(wave_, 16_000))[150:300].argmax() for wave_ in (decoded, clean.numpy())]
    assert abs(int(spectra[0]) - int(spectra[1])) <= 1, "the tone is still the tone"


def test_a_loud_sound_is_made_quieter_instead_of_clipped() -> None:
    louder = augment.changed_sound(a_sound(), lambda waveform: waveform * 50)
    peaks = np.abs(heard(louder))
    assert peaks.max() == pytest.approx(1.0, abs=1e-3)
    assert (peaks > 0.999).mean() < 0.01


@pytest.mark.parametrize("content", [b"", b"no picture and no sound", struct.pack("<I", 7) * 9])
def test_what_cannot_be_read_is_handed_on(content: bytes) -> None:
    assert augment.changed_picture(content, lambda pixels: pixels) == content
    assert augment.changed_sound(content, lambda waveform: waveform) == content


def test_a_copy_depends_on_content_seed_and_number_only() -> None:
    inputs = {
        Modality.TEXT: Input("The concert was not bad at all, I would go again and again"),
        Modality.IMAGE: Input(media=(a_picture(),)),
        Modality.AUDIO: Input(media=(a_sound(),)),
    }
    for modality, item in inputs.items():
        copies = [augment.copier(seed, number)(modality, item) for seed, number in ((0, 0), (0, 1), (1, 0))]
        assert len({(copy.text, copy.media) for copy in [item, *copies]}) == 4, modality
        assert augment.copier(0, 1)(modality, item) == copies[1]
