"""Bytes of a sound to a waveform, safely: decoded as a stream, and no further than is wanted.

Pure: no model, no file. A sound of ten hours costs what the first seconds of it cost.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from functools import partial

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.audio.resampler import AudioResampler

from shared.errors import InvalidMessage

SAMPLE_RATE_HZ = 16_000
MIN_SOUND_S = 0.1
# -80 dB of full scale, under the hiss of any microphone: nobody can be heard in it.
SILENCE_PEAK = 1e-4

Waveform = npt.NDArray[np.float32]

# FFmpeg is told which demuxer to use and guesses nothing: left to guess, it reads playlists too, and those
# open files and addresses of their author's choice.
_NO_PROTOCOL = {"protocol_whitelist": "none", "format_whitelist": "wav,flac,ogg,mp3,aac,mov,matroska"}
# A WAV says in its head what it is: looking for more in its first 5 s, as FFmpeg would, took 4 ms of 8, and
# its packets of 4 KB another 2. Larger ones take longer to open than they save.
_OF_KIND = {"wav": {"probesize": "2048", "max_size": "16384"}}


def sniff(content: bytes) -> str:
    """FFmpeg's name for what the bytes are, whatever their name or MIME type says.

    Raises InvalidMessage when they are no sound or video that is read here.
    """
    head = content[:12]
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"OggS":
        return "ogg"
    if head[4:8] == b"ftyp":
        return "mp4"  # and M4A, MOV, 3GP
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"  # and WebM
    if head[:3] == b"ID3":
        return "mp3"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac"  # ADTS: the layer bits are 00, which no MP3 has
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return "mp3"
    raise InvalidMessage("not a WAV, FLAC, Ogg, MP3, AAC, MP4 or WebM sound")


def decoder(max_s: float) -> Callable[[bytes], Waveform]:
    """`decode`, for `shared.decoding`: it will open no file any more.

    PyAV imports some of itself only when it hears something: a sound and a broken one are decoded now.
    """
    for kind in ("wav", "flac"):
        with contextlib.suppress(InvalidMessage):
            decode(_click(kind)[: None if kind == "wav" else 60], max_s)
    return partial(decode, max_s=max_s)


def _click(kind: str) -> bytes:
    """0.2 s that are no silence."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as output:
        codec = {"wav": "pcm_s16le", "flac": "flac"}[kind]
        stream = output.add_stream(codec, rate=SAMPLE_RATE_HZ, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.eye(1, SAMPLE_RATE_HZ // 5, dtype=np.float32), "flt", "mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    return buffer.getvalue()


def decode(content: bytes, max_s: float) -> Waveform:
    """The first `max_s` seconds as (samples,) float32, mono, 16 kHz, in [-1, 1].

    Of a video the sound. A file that breaks off is heard as far as it goes.
    Raises InvalidMessage with the reason when there is no sound to hear.
    """
    if not content:
        raise InvalidMessage("empty file")
    waveform = _stream(content, sniff(content), int(max_s * SAMPLE_RATE_HZ))
    if waveform.size < MIN_SOUND_S * SAMPLE_RATE_HZ:
        raise InvalidMessage(f"sound of {waveform.size / SAMPLE_RATE_HZ:.2f} s is too short")
    if not np.isfinite(waveform).all():
        raise InvalidMessage("sound holds samples that are not numbers")
    waveform = np.clip(waveform, -1.0, 1.0)
    if np.abs(waveform).max() < SILENCE_PEAK:
        raise InvalidMessage("silence")
    return waveform


def _stream(content: bytes, kind: str, samples: int) -> Waveform:
    options = _NO_PROTOCOL | _OF_KIND.get(kind, {})
    chunks: list[Waveform] = []
    heard = 0
    broken: Exception | None = None
    try:
        with av.open(io.BytesIO(content), "r", format=kind, options=options) as container:
            if not container.streams.audio:
                raise InvalidMessage("no sound in the file")
            resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
            for frame in container.decode(container.streams.audio[0]):
                for part in resampler.resample(frame):
                    chunks.append(part.to_ndarray()[0])
                    heard += part.samples
                if heard >= samples:
                    break
            else:
                chunks += [part.to_ndarray()[0] for part in resampler.resample(None)]
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        broken = error
    if broken is not None and not chunks:
        raise InvalidMessage(f"broken sound: {broken}") from broken
    waveform = np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
    return waveform[:samples].astype(np.float32, copy=False)
