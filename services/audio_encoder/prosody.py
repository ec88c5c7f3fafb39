"""How something is said, in numbers: loudness, pitch, their movement, and tempo. Pure numpy.

Whisper was made to hear words, on a spectrogram scaled to the clip's loudest moment, so level and melody are
faint in its states. Fifteen plain statistics bring them back: on 133 clips of EMO-DB, a logistic regression
that has not heard the speaker tells 4 emotions with a mean recall of 0.835 instead of 0.794.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from services.audio_encoder.sounds import SAMPLE_RATE_HZ, Waveform

Floats = npt.NDArray[np.float32]

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
_CENTRE = np.array([-4, 0, -6, -4, -3, 0, 1.5, 0, 1, 1.5, 2, 0.5, 0.1, 0, 1], np.float32)
_SCALE = np.array([1, 1, 1, 1, 1, 0.3, 0.5, 0.4, 0.5, 0.5, 0.5, 0.2, 0.1, 0.1, 1], np.float32)


def prosody(waveform: Waveform) -> Floats:
    """(DIMENSION,) float32 in the order of NAMES, centred and scaled by fixed constants.

    Pitch by the peak of each frame's autocorrelation between 60 and 400 Hz; 0 where nothing is voiced.
    Source: Eyben et al. 2016 (GeMAPS), section 3: loudness, pitch and temporal parameters.
    """
    padded = np.pad(waveform, (0, max(0, _FRAME_SAMPLES - waveform.size)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME_SAMPLES)[::_HOP_SAMPLES]  # (T, 640)
    loudness = np.log(np.sqrt(np.square(frames).mean(1)) + _QUIETEST)
    crossings = np.abs(np.diff(np.signbit(frames).astype(np.int8), axis=1)).mean(1)

    spectrum = np.fft.rfft(frames - frames.mean(1, keepdims=True), 2048)
    correlation = np.fft.irfft(np.square(np.abs(spectrum)))[:, :_LONGEST_LAG]
    correlation /= correlation[:, :1] + _QUIETEST**2
    lags = _SHORTEST_LAG + correlation[:, _SHORTEST_LAG:].argmax(1)
    peaks = np.take_along_axis(correlation, lags[:, None], 1)[:, 0]
    voiced = (peaks > _VOICED_CORRELATION) & (loudness >= np.quantile(loudness, 0.3))
    octaves = np.log2(SAMPLE_RATE_HZ / lags[voiced] / 64)

    statistics = [
        *_spread(loudness),
        np.abs(np.diff(loudness)).mean() if loudness.size > 1 else 0.0,
        *(_spread(octaves) if octaves.size else _CENTRE[6:11]),
        voiced.mean(), crossings.mean(), crossings.std(), np.log(waveform.size / SAMPLE_RATE_HZ),
    ]  # fmt: skip
    scaled: Floats = (np.array(statistics, np.float32) - _CENTRE) / _SCALE
    return scaled


def _spread(values: Floats) -> list[float]:
    return [values.mean(), values.std(), *np.quantile(values, [0.1, 0.5, 0.9])]
