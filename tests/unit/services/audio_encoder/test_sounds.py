"""Every kind of sound comes out as 16 kHz mono, no longer than asked, and rubbish as a reason."""

from __future__ import annotations

import io
import struct
import tracemalloc

import av
import numpy as np
import numpy.typing as npt
import pytest

from services.audio_encoder import sounds
from services.audio_encoder.sounds import decode, sniff
from shared.errors import InvalidMessage


def tone(seconds: float, rate: int = 16_000) -> npt.NDArray[np.float32]:
    time = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)


def wav(samples: npt.NDArray[np.generic], rate: int = 16_000) -> bytes:
    """A WAV of (samples,) or (samples, channels): float32, int16 or uint8."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    width = samples.dtype.itemsize
    kind = 3 if samples.dtype.kind == "f" else 1
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * width, channels * width, 8 * width)
    body = samples.tobytes()
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(body))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", len(body))
        + body
    )


def encoded(container: str, codec: str, rate: int, samples: npt.NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = 16_000
        resampler = av.AudioResampler(format=stream.format, layout="stereo", rate=rate)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("container", "codec", "rate", "kind"),
    [
        ("wav", "pcm_s16le", 44_100, "wav"),
        ("flac", "flac", 48_000, "flac"),
        ("mp3", "libmp3lame", 44_100, "mp3"),
        ("ogg", "libopus", 48_000, "ogg"),
        ("mp4", "aac", 44_100, "mp4"),
        ("adts", "aac", 44_100, "aac"),
        ("webm", "libopus", 48_000, "matroska"),
    ],
)
def test_formats(container: str, codec: str, rate: int, kind: str) -> None:
    content = encoded(container, codec, rate, tone(1.0))
    assert sniff(content) == kind
    waveform = decode(content, 30)
    assert waveform.dtype == np.float32
    assert waveform.size == pytest.approx(16_000, rel=0.06)  # lossy codecs add a frame at either end
    middle = waveform[4_000:12_000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert np.argmax(spectrum) * 16_000 / middle.size == pytest.approx(440, abs=3)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize(("kind", "scale", "centre"), [("f4", 1, 0), ("i2", 32_767, 0), ("u1", 127, 128)])
def test_a_wav_that_is_opened_quickly_is_what_it_was(
    rate: int, kind: str, scale: int, centre: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though much stands between its head and its sound."""
    both = np.stack([tone(2.0, rate), -0.3 * tone(2.0, rate)], axis=1)
    content = wav((both * scale + centre).astype(kind), rate)
    note = b"LIST" + struct.pack("<I", 100_000) + bytes(100_000)
    content = content[:12] + note + content[12:]
    quick = decode(content, 30)
    monkeypatch.setattr(sounds, "_OF_KIND", {})
    np.testing.assert_array_equal(quick, decode(content, 30))


def test_no_more_is_decoded_than_is_wanted() -> None:
    assert decode(wav(tone(3.0)), 2.0).size == 32_000


def test_ten_hours_of_silence_cost_their_first_seconds() -> None:
    content = wav(np.full(36_000_000, 128, np.uint8), rate=1_000)
    tracemalloc.start()
    with pytest.raises(InvalidMessage, match="silence"):
        decode(content, 30)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 20_000_000  # the whole would be 2.3 GB


def test_a_file_that_breaks_off_is_heard_as_far_as_it_goes() -> None:
    content = encoded("mp3", "libmp3lame", 44_100, tone(2.0))
    assert 8_000 < decode(content[: len(content) // 2], 30).size < 24_000


def test_samples_are_kept_within_full_scale() -> None:
    loud = decode(wav(4 * tone(1.0)), 30)
    assert np.abs(loud).max() == 1.0


NAN = tone(1.0)
NAN[100] = np.nan
INFINITE = tone(1.0)
INFINITE[100] = np.inf


@pytest.mark.parametrize(
    ("rubbish", "reason"),
    [
        (b"", "empty file"),
        (b"\x00" * 1000, "not a WAV"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a WAV"),
        (b"RIFF\x00\x00\x00\x00WAVEjunk" * 20, "broken sound|too short|no sound"),
        (b"ID3" + b"\x00" * 2000, "broken sound"),
        (b"\x1a\x45\xdf\xa3" + b"\x00" * 1000, "broken sound"),
        (wav(tone(0.01)), "sound of 0.01 s is too short"),
        (wav(np.zeros(16_000, np.int16)), "silence"),
        (wav(NAN), "samples that are not numbers"),
        (wav(INFINITE), "samples that are not numbers"),
    ],
)
def test_rubbish_is_refused_with_the_reason(rubbish: bytes, reason: str) -> None:
    with pytest.raises(InvalidMessage, match=reason):
        decode(rubbish, 30)


def test_a_video_without_sound() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(InvalidMessage, match="no sound in the file"):
        decode(buffer.getvalue(), 30)
