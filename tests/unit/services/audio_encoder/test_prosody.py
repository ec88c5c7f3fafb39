"""The statistics of a voice move with what they are named after, and with nothing else."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch

from services.audio_encoder.prosody import DIMENSION, NAMES, prosody


def hum(pitch_hz: float, loudness: float = 0.3, seconds: float = 1.0) -> npt.NDArray[np.float32]:
    """A voiced sound: the pitch and its first overtones."""
    time = np.arange(int(16_000 * seconds)) / 16_000
    overtones = np.arange(1, 6)[:, None]
    waves = (np.sin(2 * np.pi * pitch_hz * overtones * time) / overtones).sum(0)
    scaled: npt.NDArray[np.float64] = loudness * waves / np.abs(waves).max()
    return scaled.astype(np.float32)


def named(waveform: npt.NDArray[np.float32]) -> dict[str, float]:
    return dict(zip(NAMES, alone(waveform), strict=True))


def alone(waveform: npt.NDArray[np.float32]) -> list[float]:
    (told,) = prosody(torch.from_numpy(waveform)[None], [waveform.size]).tolist()
    return cast(list[float], told)


def test_an_octave_up_is_an_octave_up_and_as_loud() -> None:
    low, high = named(hum(110)), named(hum(220))
    assert 0.5 * (high["pitch_p50"] - low["pitch_p50"]) == pytest.approx(1.0, abs=0.05)
    assert high["loudness_p50"] == pytest.approx(low["loudness_p50"], abs=0.1)


def test_ten_times_as_loud_is_as_high() -> None:
    quiet, loud = named(hum(150, 0.05)), named(hum(150, 0.5))
    assert loud["loudness_mean"] - quiet["loudness_mean"] == pytest.approx(np.log(10), abs=0.05)
    assert loud["pitch_mean"] == pytest.approx(quiet["pitch_mean"], abs=0.02)


def test_noise_is_less_voiced_than_a_hum() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    assert named(hum(150))["voiced_share"] > named(noise)["voiced_share"] + 1


def test_tempo_and_the_shortest_sound() -> None:
    assert named(hum(150, seconds=2))["log_duration"] - named(hum(150))["log_duration"] == pytest.approx(
        np.log(2)
    )
    for samples in (1, 100, 1_600):
        vector = alone(hum(150)[:samples])
        assert len(vector) == DIMENSION
        assert np.isfinite(vector).all()
