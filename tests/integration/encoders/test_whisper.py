"""Whisper, VAD and prosody in torch, held to CTranslate2, faster-whisper and numpy on the demo's voices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from faster_whisper.vad import VadOptions, get_speech_timestamps
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from services.audio_encoder import whisper as whisper_module
from services.audio_encoder.ctranslate import CTranslated
from services.audio_encoder.network import WhisperNetwork, Written, _Text
from services.audio_encoder.silero import Silero
from services.audio_encoder.sounds import SAMPLE_RATE_HZ, Waveform, decode
from services.audio_encoder.whisper import Whisper, log_mel, padded_frames, tokens_of
from shared.settings import ModelSettings

VOICES = Path(__file__).parents[3] / "demo" / "media" / "voices"
FRAMES = 500


@pytest.fixture(scope="module")
def voices() -> list[Waveform]:
    """Those of the short window, then noise of three kinds, a hum, and nearly nothing."""
    found = [decode(path.read_bytes(), 30) for path in sorted(VOICES.glob("*.opus"))]
    rng = np.random.default_rng(0)
    found += [rng.normal(0, loud, 16_000).astype(np.float32).clip(-1, 1) for loud in (1e-3, 0.1, 0.3)]
    found += [rng.normal(0, 0.3, 1_600).astype(np.float32).clip(-1, 1)]
    found += [0.3 * np.sin(np.arange(32_000) * 0.05, dtype=np.float32), found[0][:1_600]]
    return [voice for voice in found if padded_frames(voice.size) == FRAMES]


@pytest.fixture(scope="module")
def folder() -> Path:
    Whisper.load(ModelSettings().cache_dir, device="cpu")  # joined the first time
    (found,) = ModelSettings().cache_dir.expanduser().glob(f"{whisper_module.NAME}-*-{whisper_module.RECIPE}")
    return found


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def network(folder: Path, tokenizer: Tokenizer) -> WhisperNetwork:
    return WhisperNetwork(folder, tokens_of(folder, tokenizer), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def translated(folder: Path, tokenizer: Tokenizer) -> CTranslated:
    return CTranslated(folder, tokens_of(folder, tokenizer), compute_type="float32")


@pytest.fixture(scope="module")
def states(translated: CTranslated, voices: list[Waveform]) -> Tensor:
    return translated.encode(log_mel(together(voices), FRAMES))


def together(waveforms: list[Waveform]) -> Tensor:
    return pad_sequence([torch.from_numpy(waveform) for waveform in waveforms], batch_first=True)


def likeliest(best: Tensor, probability: Tensor) -> Tensor:
    return best


def assert_same(ours: list[Written], theirs: list[Written]) -> None:
    assert [item.ids for item in ours] == [item.ids for item in theirs]
    assert [item.language for item in ours] == [item.language for item in theirs]
    for name in ("score", "no_speech_probability"):
        here, there = ([getattr(item, name) for item in items] for items in (ours, theirs))
        np.testing.assert_allclose(here, there, atol=1e-3)


def test_states_are_ctranslates(network: WhisperNetwork, states: Tensor, voices: list[Waveform]) -> None:
    ours = network.encode(log_mel(together(voices), FRAMES))
    assert float(torch.cosine_similarity(ours, states, dim=2).min()) > 0.9999


@pytest.mark.parametrize("max_tokens", [50, 5])
def test_words_scores_and_languages_are_ctranslates(
    network: WhisperNetwork, translated: CTranslated, states: Tensor, max_tokens: int
) -> None:
    wanted = torch.ones(len(states), dtype=torch.bool)
    ours = network.write(states, wanted, likeliest, max_tokens)()
    assert_same(ours, translated.write(states, wanted, likeliest, max_tokens)())
    # Noise sends the decoder round in circles, up to the end.
    assert max(len(item.ids) for item in ours) == max_tokens
    assert {item.language for item in ours[:5]} == {50261}  # German


def test_a_batch_is_its_clips_one_by_one_and_nothing_is_written_of_who_is_not_wanted(
    network: WhisperNetwork, states: Tensor
) -> None:
    wanted = torch.tensor([True, False, True, False])
    some = network.write(states[:4], wanted, likeliest, 50)()
    assert [(item.ids, item.language) for item in (some[1], some[3])] == [([], 0)] * 2
    for i in (0, 2):
        assert_same(network.write(states[i : i + 1], wanted[:1], likeliest, 50)(), [some[i]])


def test_the_language_asked_for_is_written_in(
    network: WhisperNetwork, translated: CTranslated, states: Tensor
) -> None:
    wanted = torch.ones(2, dtype=torch.bool)

    def italian(best: Tensor, probability: Tensor) -> Tensor:
        assert bool((probability > 0.5).all())
        return torch.full_like(best, 50274)

    ours = network.write(states[:2], wanted, italian, 50)()
    assert_same(ours, translated.write(states[:2], wanted, italian, 50)())
    assert [item.language for item in ours] == [50274] * 2


def test_memory_kept_for_larger_batches_changes_nothing(
    network: WhisperNetwork, states: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, but that there the launches are recorded."""
    monkeypatch.setattr(_Text, "record", lambda text, pool, aside: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    wanted = torch.ones(3, dtype=torch.bool)
    before = network.write(states[:3], wanted, likeliest, 50)()
    network.record([(16, states.shape[1], 50), (3, 1_500, 112)])
    try:
        taken = [network._recorded(rows, 250, 50) for rows in (1, 2, 4, 5, 16, 17)]
        assert [text and text.rows for text in taken] == [1, 4, 4, 16, 16, None]
        assert network._recorded(1, 250, 49) is None
        network.write(states[3:10], torch.ones(7, dtype=torch.bool), likeliest, 50)()
        network.write(states[-4:], torch.ones(4, dtype=torch.bool), likeliest, 50)()
        assert_same(network.write(states[:3], wanted, likeliest, 50)(), before)
    finally:
        network._texts.clear()


@pytest.mark.parametrize("backend", ["network", "translated"])
def test_who_goes_round_in_circles_is_heard_again_in_the_long_window(
    backend: str,
    request: pytest.FixtureRequest,
    tokenizer: Tokenizer,
    voices: list[Waveform],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = request.getfixturevalue(backend)
    windows: list[tuple[int, ...]] = []
    write: Callable[..., Callable[[], list[Written]]] = model.write

    def circular(
        states: Tensor, wanted: Tensor, language: Callable[[Tensor, Tensor], Tensor], most: int
    ) -> Callable[[], list[Written]]:
        windows.append((*states.shape[:2], most))
        told = write(states, wanted, language, most)()
        if len(windows) == 1:
            told[1] = dataclasses.replace(told[1], ids=told[1].ids * 20)
        return lambda: told

    monkeypatch.setattr(model, "write", circular)
    clips = voices[:3]
    samples = [clip.size for clip in clips]
    wait = Whisper(model, tokenizer, version="test@1").start(
        together(clips), samples, torch.ones(3, dtype=torch.bool), ["de"] * 3
    )
    heard = wait()
    assert windows == [(3, 250, 50), (1, 1_500, 112)]
    assert all(len(item.words) > 10 for item in heard)


def test_both_hear_the_same(
    network: WhisperNetwork, translated: CTranslated, tokenizer: Tokenizer, voices: list[Waveform]
) -> None:
    samples = [voice.size for voice in voices]
    spoken = torch.tensor([i % 7 != 3 for i in range(len(voices))])
    ours, theirs = (
        Whisper(model, tokenizer, version="test@1").start(
            together(voices), samples, spoken, ["und"] * len(voices)
        )()
        for model in (network, translated)
    )
    assert [(a.words, a.language) for a in ours] == [(b.words, b.language) for b in theirs]
    assert not ours[3].words
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.voice, b.voice, atol=1e-3)


def test_the_pool_of_a_gpu_is_that_of_the_cpu(states: Tensor) -> None:
    own = [1 + 13 * i % states.shape[1] for i in range(len(states))]
    masked = whisper_module._pooled_by_mask(states, own)
    np.testing.assert_allclose(masked.numpy(), whisper_module._pooled(states, own).numpy(), atol=2e-5)


def test_who_speaks_is_faster_whispers_verdict(voices: list[Waveform]) -> None:
    rng = np.random.default_rng(1)
    cut = [voice[: int(rng.integers(1_500, voice.size))] for voice in voices]
    whole_pieces = [voice[: voice.size // 512 * 512] for voice in voices[:6]]
    quiet = [voice * np.float32(0.003) for voice in voices]
    mixed = [(voice + rng.normal(0, 0.1, voice.size).astype(np.float32)).clip(-1, 1) for voice in voices]
    # A voice that begins within the last 64 samples, which are not listened to.
    late = [np.concatenate([np.zeros(5_000, np.float32), voices[0][:300]])]
    clips = [*voices, *cut, *whole_pieces, *quiet, *mixed, *late]
    expected = [bool(get_speech_timestamps(clip.copy(), VadOptions())) for clip in clips]
    silero = Silero.load("cpu")
    assert silero.spoken(together(clips), [clip.size for clip in clips]).tolist() == expected
    alone = [bool(silero.spoken(torch.from_numpy(clip)[None], [clip.size])) for clip in clips]
    assert alone == expected
    assert 20 < sum(expected) < len(clips) - 20


def test_hours_are_not_needed_for_the_last_piece() -> None:
    silero = Silero.load("cpu")
    for samples in (1, 511, 512, 513, 1_023, 1_024, SAMPLE_RATE_HZ):
        likely = silero.probabilities(torch.zeros(1, samples), [samples])
        assert likely.shape == (1, samples // 512 + 1)
        assert math.isfinite(float(likely.max()))


def reference_prosody(waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """As it was computed by numpy when the shipped model was trained."""
    spread: Callable[[npt.NDArray[np.float32]], list[float]] = lambda values: [  # noqa: E731
        values.mean(), values.std(), *np.quantile(values, [0.1, 0.5, 0.9])
    ]  # fmt: skip
    centre = np.array([-4, 0, -6, -4, -3, 0, 1.5, 0, 1, 1.5, 2, 0.5, 0.1, 0, 1], np.float32)
    scale = np.array([1, 1, 1, 1, 1, 0.3, 0.5, 0.4, 0.5, 0.5, 0.5, 0.2, 0.1, 0.1, 1], np.float32)
    padded = np.pad(waveform, (0, max(0, 640 - waveform.size)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, 640)[::160]
    loudness = np.log(np.sqrt(np.square(frames).mean(1)) + 1e-5)
    crossings = np.abs(np.diff(np.signbit(frames).astype(np.int8), axis=1)).mean(1)
    spectrum = np.fft.rfft(frames - frames.mean(1, keepdims=True), 2048)
    correlation = np.fft.irfft(np.square(np.abs(spectrum)))[:, : 16_000 // 60]
    correlation /= correlation[:, :1] + 1e-10
    lags = 40 + correlation[:, 40:].argmax(1)
    peaks = np.take_along_axis(correlation, lags[:, None], 1)[:, 0]
    voiced = (peaks > 0.5) & (loudness >= np.quantile(loudness, 0.3))
    octaves = np.log2(16_000 / lags[voiced] / 64)
    steps = np.abs(np.diff(loudness)).mean() if loudness.size > 1 else 0.0
    pitch = spread(octaves) if octaves.size else centre[6:11]
    told = [*spread(loudness), steps, *pitch, voiced.mean(), crossings.mean(), crossings.std()]
    scaled: npt.NDArray[np.float32] = (
        np.array([*told, np.log(waveform.size / 16_000)], np.float32) - centre
    ) / scale
    return scaled


def test_prosody_is_what_numpy_said(voices: list[Waveform]) -> None:
    from services.audio_encoder.prosody import prosody

    clips = [*voices, voices[0][:1], voices[0][:700], voices[0][:801], np.zeros(9_000, np.float32)]
    found = prosody(together(clips), [clip.size for clip in clips]).numpy()
    for clip, told in zip(clips, found, strict=True):
        np.testing.assert_allclose(told, reference_prosody(clip), atol=1e-5)
        alone = prosody(torch.from_numpy(clip)[None], [clip.size])[0]
        np.testing.assert_allclose(alone.numpy(), told, atol=1e-5)
