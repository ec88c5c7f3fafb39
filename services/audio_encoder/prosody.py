"""How something is said, in numbers: loudness, pitch, their movement, tempo. Many clips at once, in torch.

Whisper was made to hear words, on a spectrogram scaled to the clip's loudest moment, so level and melody are
faint in its states. Fifteen plain statistics bring them back: on 133 clips of EMO-DB, a logistic regression
that has not heard the speaker tells 4 emotions with a mean recall of 0.835 instead of 0.794.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from services.audio_encoder.sounds import SAMPLE_RATE_HZ
from shared.device import sent

NAMES = (
    "loudness_mean", "loudness_deviation", "loudness_p10", "loudness_p50", "loudness_p90", "loudness_step",
    "pitch_mean", "pitch_deviation", "pitch_p10", "pitch_p50", "pitch_p90",
    "voiced_share", "crossings_mean", "crossings_deviation", "log_duration",
)  # fmt: skip
DIMENSION = len(NAMES)

_FRAME_SAMPLES = 640  # 40 ms: two periods of the lowest voice
_HOP_SAMPLES = 160
_SHORTEST_LAG = SAMPLE_RATE_HZ // 400  # 400 Hz
_LONGEST_LAG = SAMPLE_RATE_HZ // 60
_VOICED_CORRELATION = 0.5
_QUIETEST = 1e-5
# Units: natural log of RMS, octaves over 64 Hz, shares, ln of seconds. All is brought to a width of about 1,
# so that no model has to learn it.
_CENTRE = (-4, 0, -6, -4, -3, 0, 1.5, 0, 1, 1.5, 2, 0.5, 0.1, 0, 1)
_SCALE = (1, 1, 1, 1, 1, 0.3, 0.5, 0.4, 0.5, 0.5, 0.5, 0.2, 0.1, 0.1, 1)
# Long enough that no lag looked at wraps round.
_FFT_SAMPLES = 1024
# Frames at once: so many as fit a CPU's cache (clip by clip 16 clips of 5 s take half as long as together),
# and for a GPU so many as take 0.3 GB.
_FRAMES_AT_ONCE = {"cpu": 512, "cuda": 16_384}


@torch.inference_mode()
def prosody(waveforms: Tensor, samples: Sequence[int]) -> Tensor:
    """(B, DIMENSION) float32 in the order of NAMES, centred and scaled by fixed constants, on the waveforms'
    device.

    waveforms: (B, longest) float32, 0 behind a clip's own `samples`.
    Pitch by the peak of each frame's autocorrelation between 60 and 400 Hz; 0 where nothing is voiced.
    Source: Eyben et al. 2016 (GeMAPS), section 3: loudness, pitch and temporal parameters.
    """
    device = waveforms.device
    padded = functional.pad(waveforms, (0, max(0, _FRAME_SAMPLES - waveforms.shape[1])))
    frames = padded.unfold(1, _FRAME_SAMPLES, _HOP_SAMPLES)  # (B, T, 640)
    at_once = max(1, _FRAMES_AT_ONCE[device.type] // frames.shape[1])
    parts = [_of_frames(frames[at : at + at_once]) for at in range(0, len(frames), at_once)]
    loudness, crossings, peaks, octaves = (torch.cat(part) for part in zip(*parts, strict=True))

    own = sent(torch.tensor([1 + max(0, size - _FRAME_SAMPLES) // _HOP_SAMPLES for size in samples]), device)
    seconds = sent((torch.tensor(samples, dtype=torch.float64) / SAMPLE_RATE_HZ).log().float(), device)
    centre, scale = (sent(torch.tensor(values), device) for values in (_CENTRE, _SCALE))
    there = torch.arange(frames.shape[1], device=device) < own[:, None]  # (B, T)
    quiet = _quantiles(loudness, there, (0.3,))
    voiced = there & (peaks > _VOICED_CORRELATION) & (loudness >= quiet)
    statistics = torch.cat(
        [
            _spread(loudness, there),
            _mean((loudness[:, 1:] - loudness[:, :-1]).abs(), there[:, 1:]),
            torch.where(voiced.any(1, keepdim=True), _spread(octaves, voiced), centre[6:11]),
            _mean(voiced.float(), there),
            _mean(crossings, there),
            _deviation(crossings, there),
            seconds[:, None],
        ],
        1,
    )
    return (statistics - centre) / scale


def _of_frames(frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, T) each, of (B, T, 640): log RMS, share of zero crossings, height of the peak of the
    autocorrelation, and the octaves that its lag stands for."""
    loudness = (frames.square().mean(2).sqrt() + _QUIETEST).log()
    below = frames.signbit()
    crossings = (below[..., 1:] ^ below[..., :-1]).float().mean(2)
    spectrum = torch.fft.rfft(frames - frames.mean(2, keepdim=True), _FFT_SAMPLES)
    power = spectrum.real.square() + spectrum.imag.square()
    correlation = torch.fft.irfft(power)[..., :_LONGEST_LAG]
    correlation = correlation / (correlation[..., :1] + _QUIETEST**2)
    peaks, lags = correlation[..., _SHORTEST_LAG:].max(2)
    return loudness, crossings, peaks, (SAMPLE_RATE_HZ / 64 / (_SHORTEST_LAG + lags)).log2()


def _mean(values: Tensor, there: Tensor) -> Tensor:
    """(B, 1) mean of the values (B, T) that are there; 0 where none is."""
    return (values * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)


def _deviation(values: Tensor, there: Tensor) -> Tensor:
    return _mean((values - _mean(values, there)).square(), there).sqrt()


def _spread(values: Tensor, there: Tensor) -> Tensor:
    """(B, 5): mean, deviation, and three quantiles."""
    quantiles = _quantiles(values, there, (0.1, 0.5, 0.9))
    return torch.cat([_mean(values, there), _deviation(values, there), quantiles], 1)


def _quantiles(values: Tensor, there: Tensor, shares: Sequence[float]) -> Tensor:
    """(B, len(shares)) of the values that are there, between neighbours in proportion."""
    ordered = values.masked_fill(~there, torch.inf).sort(1).values
    last = (there.sum(1, keepdim=True) - 1).clamp(min=0)
    place = last * sent(torch.tensor(shares, dtype=torch.float64), values.device)  # (B, Q)
    below = place.floor().long()
    low = ordered.gather(1, below)
    high = ordered.gather(1, torch.minimum(below + 1, last))
    return torch.lerp(low, high, (place - below).float())
