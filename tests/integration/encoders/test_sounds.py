"""The audio encoder with its real weights, on real voices of the demo (EMO-DB, CC0)."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_whisper.feature_extractor import FeatureExtractor

from services.audio_encoder.encoder import AudioEncoder
from services.audio_encoder.settings import AudioEncoderSettings
from services.audio_encoder.sounds import decode
from services.audio_encoder.whisper import Whisper, log_mel
from shared.encoding import Input
from shared.messages import Answer, Modality
from shared.settings import ModelSettings, TextModelSettings

VOICES = Path(__file__).parents[3] / "demo" / "media" / "voices"
WEDNESDAY = "08a02Wc.opus"  # "Das will sie am Mittwoch abgeben."
HOURS = "13a07Fd.opus"  # "In sieben Stunden wird es soweit sein."


def voice(name: str) -> bytes:
    return (VOICES / name).read_bytes()


def noise_wav(seconds: float) -> bytes:
    body = np.random.default_rng(0).normal(0, 3_000, int(16_000 * seconds)).astype(np.int16).tobytes()
    form = struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    head = b"RIFF" + struct.pack("<I", 36 + len(body)) + b"WAVEfmt " + form
    return head + b"data" + struct.pack("<I", len(body)) + body


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    return AudioEncoder.load(
        ModelSettings(device="cpu", threads=1), AudioEncoderSettings(), TextModelSettings()
    )


def test_torch_keeps_the_threads_that_batches_are_computed_by() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Whisper.load(ModelSettings().cache_dir, device="cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_spectrogram_is_whispers() -> None:
    waveform = decode(voice(WEDNESDAY), 30)
    waveform = waveform[: waveform.size // 160 * 160]
    ours = log_mel(torch.from_numpy(waveform)[None], waveform.size // 160)[0].numpy()
    np.testing.assert_allclose(ours, FeatureExtractor()(waveform, padding=0), atol=1e-4)


def test_voices_are_heard_and_bad_sounds_leave_their_neighbours_as_they_were(encoder: AudioEncoder) -> None:
    posts = [
        (voice(WEDNESDAY),),
        (b"garbage",),
        (voice(HOURS),),
        (b"",),
        (noise_wav(2.0),),
        (),
        (b"\x00", voice(WEDNESDAY)),
    ]
    together = encoder.encode([Input(media=media) for media in posts])
    for slot, width in encoder.dimensions.items():
        for answer in (post[slot] for post in together):
            assert answer.vector is None or answer.vector.shape == (width,)

    assert "Mittwoch" in together[0][Modality.SPEECH].transcript
    assert "Stunden" in together[2][Modality.SPEECH].transcript
    for i, reason in ((1, "not a WAV"), (3, "empty file"), (5, "no sound in the post")):
        assert all(answer.absent_reason.startswith(reason) for answer in together[i].values())
    # Noise is a sound, but nobody speaks: Whisper alone would write words.
    assert together[4][Modality.AUDIO].vector is not None
    assert together[4][Modality.SPEECH] == Answer(None, "no speech heard")

    for i, name in ((0, WEDNESDAY), (2, HOURS), (6, WEDNESDAY)):
        (alone,) = encoder.encode([Input(media=(voice(name),))])
        for slot, answer in alone.items():
            assert answer.transcript == together[i][slot].transcript
            vector, expected = together[i][slot].vector, answer.vector
            assert vector is not None
            assert expected is not None
            np.testing.assert_allclose(vector.astype(float), expected.astype(float), atol=2e-2)


def test_ten_hours_of_silence_are_absent() -> None:
    content = (VOICES.parents[1] / "broken_media" / "voices" / "silence_10_hours.flac").read_bytes()
    with pytest.raises(ValueError, match="silence"):
        decode(content, 30)
