"""A decoder that goes wrong costs its content, and neither the service nor the next content."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from services.audio_encoder import sounds
from services.image_encoder import pictures
from shared.decoding import DTYPES, SLOW_MANY, SLOW_S, Array, Decoders, _reply
from shared.errors import InvalidMessage

HOSTILE = "tests.integration.decoding.hostile:decoder"
DEMO = Path(__file__).parents[3] / "demo"


def hostile(processes: int = 1, cpu_s: float = 30, max_bytes: int = 1000) -> Decoders:
    return Decoders(
        HOSTILE,
        1,
        2.5,
        processes=processes,
        memory_bytes=64 * 1024 * 1024,
        cpu_s=cpu_s,
        max_bytes=max_bytes,
    )


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    opened = hostile()
    yield opened
    opened.close()


def refused(decoders: Decoders, content: bytes) -> str:
    with pytest.raises(InvalidMessage) as raised:
        decoders.decode(content)
    return str(raised.value)


def pid(decoders: Decoders) -> int:
    return int.from_bytes(decoders.decode(b"pid").tobytes(), "little")


def test_an_array_comes_as_it_was_made(decoders: Decoders) -> None:
    for content in (b"", b"a", b"b" * 1_000_000):
        np.testing.assert_array_equal(decoders.decode(content), np.array([len(content), 1, 2.5], np.float32))
    assert decoders.decode(b"empty").shape == (0, 3)
    expected = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(decoders.decode(b"strided"), expected)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"reason", "as it was told: é"),
        (b"long-reason", "a" * 300),
        (b"bug", "the decoder failed on it: ZeroDivisionError"),
        (b"bomb", "needs more than 64 MiB to decode"),
        (b"segv", "the decoder ended by SIGSEGV on it"),
        (b"abort", "the decoder ended by SIGABRT on it"),
        (b"exit", "the decoder ended by exit status 3 on it"),
        (b"kill", "the decoder ended by SIGKILL on it"),
        (b"open", "the decoder failed on it: OSError"),
        (b"write", "the decoder failed on it: OSError"),
        (b"connect", "the decoder failed on it: OSError"),
        (b"fork", "the decoder failed on it: OSError"),
        (b"float64", "the decoder ended by exit status 0 on it"),
        (b"large", "the decoder ended by exit status 0 on it"),
    ],
)
def test_what_goes_wrong_is_a_reason_and_the_next_content_is_decoded(
    decoders: Decoders, content: bytes, why: str
) -> None:
    assert refused(decoders, content) == why
    assert decoders.decode(b"abc")[0] == 3


@pytest.mark.parametrize("content", [b"sleep", b"busy"])
def test_what_takes_too_long_is_ended_wherever_it_is(content: bytes) -> None:
    decoders = hostile(cpu_s=0.1)
    assert decoders.decode(b"abc")[0] == 3
    began = time.monotonic()
    assert refused(decoders, content) == "took more than 0.1 s to decode"
    assert time.monotonic() - began < 10
    assert decoders.decode(b"abc")[0] == 3
    decoders.close()


def test_many_that_take_too_long_get_less_time_until_it_is_over() -> None:
    now = [1000.0]
    decoders = Decoders(
        HOSTILE,
        1,
        2.5,
        processes=1,
        memory_bytes=64 * 1024 * 1024,
        cpu_s=0.05,
        max_bytes=1000,
        clock=lambda: now[0],
    )
    for _ in range(SLOW_MANY):
        assert refused(decoders, b"busy") == "took more than 0.05 s to decode"
    assert refused(decoders, b"busy") == "took more than 0.005 s to decode"
    assert decoders.decode(b"abc")[0] == 3
    now[0] += SLOW_S
    assert refused(decoders, b"busy") == "took more than 0.05 s to decode"
    decoders.close()


def test_a_process_that_somebody_else_ended_is_asked_again(decoders: Decoders) -> None:
    for _ in range(3):
        os.kill(pid(decoders), signal.SIGKILL)
        assert decoders.decode(b"abc")[0] == 3


def test_signals_and_prints_are_no_answers(decoders: Decoders) -> None:
    before = pid(decoders)
    assert decoders.decode(b"deaf")[0] == 4
    assert decoders.decode(b"chatter")[0] == 7
    assert pid(decoders) == before


def test_it_has_no_secret_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROWDTONE_POSTGRES_URL", "postgresql://a:secret@b/c")
    decoders = hostile()
    names = set(decoders.decode(b"environment").tobytes().decode().split())
    decoders.close()
    assert "PATH" in names
    assert "CROWDTONE_POSTGRES_URL" not in names
    assert len(names) < 10


def test_several_decode_at_once() -> None:
    decoders = hostile(processes=2)
    contents = [b"x" * number for number in range(40)] + [b"segv", b"pid"]
    with ThreadPoolExecutor(4) as threads:

        def one(content: bytes) -> Array | None:
            with contextlib.suppress(InvalidMessage):
                return decoders.decode(content)
            return None

        answers = list(threads.map(one, contents))
    assert [None if answer is None else answer.flat[0] for answer in answers[:41]] == [*range(40), None]
    decoders.close()


def test_an_installation_that_is_broken_is_no_reason_of_a_content() -> None:
    for factory in ("tests.integration.decoding.hostile:broken", "no.such.module:decoder"):
        decoders = Decoders(factory, processes=1, memory_bytes=1, cpu_s=1, max_bytes=1)
        with pytest.raises(RuntimeError, match="did not start"):
            decoders.decode(b"")
        decoders.close()


def test_nothing_is_left_when_the_service_is_killed() -> None:
    program = (
        "import sys, time; from shared.decoding import Decoders\n"
        "limits = dict(processes=1, memory_bytes=10**8, cpu_s=60, max_bytes=9)\n"
        f"decoders = Decoders({HOSTILE!r}, 1, 2, **limits)\n"
        "print(int.from_bytes(decoders.decode(b'pid'), 'little'), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        child = int(service.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        service.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}/exe").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}/exe").exists()


@given(st.binary(max_size=200), st.binary(max_size=50), st.integers(0, 300), st.integers(0, 300))
def test_whatever_a_process_sends_is_an_answer_or_its_end(
    head: bytes, content: bytes, head_bytes: int, content_bytes: int
) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, struct.pack("<IQ", head_bytes, content_bytes) + head + content)
        os.close(writing)
        with contextlib.suppress(EOFError):
            answer = _reply(reading, 250)
            assert isinstance(answer, str) or answer.nbytes <= 250
    finally:
        os.close(reading)


def test_an_answer_nested_too_deep_is_its_end() -> None:
    reading, writing = os.pipe()
    try:
        head = b"[" * 50_000
        os.write(writing, struct.pack("<IQ", len(head), 0) + head)
        os.close(writing)
        with pytest.raises(EOFError):
            _reply(reading, 12)
    finally:
        os.close(reading)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from([*DTYPES, "O", "|O", "<f8", 1, None]),
            "shape": st.lists(st.integers(-2, 10), max_size=3) | st.integers() | st.none(),
            "reason": st.text() | st.integers() | st.none(),
        },
    )
    | st.integers()
    | st.lists(st.text())
)
def test_whatever_a_process_says_of_an_array_is_checked(head: object) -> None:
    import json

    text = json.dumps(head).encode()
    reading, writing = os.pipe()
    try:
        os.write(writing, struct.pack("<IQ", len(text), 12) + text + bytes(12))
        os.close(writing)
        with contextlib.suppress(EOFError):
            answer = _reply(reading, 12)
            assert isinstance(answer, str) or (answer.dtype.str in DTYPES and answer.nbytes == 12)
    finally:
        os.close(reading)


def picture(mode: str, size: tuple[int, int], kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((size[0], size[1]), 50).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def test_every_picture_decodes_there_as_it_does_here() -> None:
    """Also what Pillow imports late, for there no file can be opened any more."""
    here = pictures.decoder(32, 4_000_000)
    there = Decoders(
        "services.image_encoder.pictures:decoder",
        32,
        4_000_000,
        processes=1,
        memory_bytes=256 * 1024 * 1024,
        cpu_s=30,
        max_bytes=3 * 32 * 32,
    )
    modes = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK")}
    modes |= {"WEBP": ("L", "RGB", "RGBA"), "GIF": ("1", "L", "P", "RGB", "RGBA")}
    contents = [picture(mode, (60, 40), kind) for kind in modes for mode in modes[kind]]
    contents += [content[:cut] for content in contents for cut in (10, 100, len(content) // 2)]
    contents += [path.read_bytes() for path in sorted((DEMO / "broken_media" / "images").iterdir())]
    contents += [path.read_bytes() for path in sorted((DEMO / "media" / "images").iterdir())[:5]]
    try:
        assert same(here, there, contents) > 20
    finally:
        there.close()


def test_every_sound_decodes_there_as_it_does_here() -> None:
    here = sounds.decoder(5)
    there = Decoders(
        "services.audio_encoder.sounds:decoder",
        5,
        processes=1,
        memory_bytes=256 * 1024 * 1024,
        cpu_s=30,
        max_bytes=4 * 5 * 16_000,
    )
    contents = []
    for container, codec in (
        ("wav", "pcm_s16le"),
        ("flac", "flac"),
        ("ogg", "libopus"),
        ("mp3", "libmp3lame"),
        ("adts", "aac"),
        ("mp4", "aac"),
        ("webm", "libopus"),
    ):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=container) as output:
            stream = output.add_stream(codec, rate=48_000)
            assert isinstance(stream, av.AudioStream)
            noise = np.random.default_rng(0).normal(0, 0.1, (1, 48_000)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(noise, "flt", "mono")
            frame.sample_rate = 48_000
            resampler = av.AudioResampler(format=stream.format, layout=stream.layout, rate=48_000)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                output.mux(stream.encode(part))
            output.mux(stream.encode(None))
        contents.append(buffer.getvalue())
    contents += [content[:cut] for content in contents for cut in (60, 1000, len(content) // 2)]
    contents += [path.read_bytes() for path in sorted((DEMO / "broken_media" / "voices").iterdir())]
    try:
        assert same(here, there, contents) >= 8
    finally:
        there.close()


def same(here: object, there: Decoders, contents: list[bytes]) -> int:
    """How many were decoded; fails where the two differ."""
    decoded = 0
    for content in contents:
        answers: list[Array | str] = []
        for decode in (here, there.decode):
            try:
                answers.append(decode(content))  # type: ignore[operator]
            except InvalidMessage as error:
                answers.append(str(error))
        if isinstance(answers[0], str):
            assert answers[0] == answers[1]
        else:
            np.testing.assert_array_equal(answers[0], answers[1])
            decoded += 1
    return decoded


def test_a_decompression_bomb_ends_in_a_reason() -> None:
    """36 million pixels in 0.1 MB: within the limit of pixels, over that of memory."""
    buffer = io.BytesIO()
    Image.new("RGB", (6000, 6000)).save(buffer, "PNG")
    decoders = Decoders(
        "services.image_encoder.pictures:decoder",
        32,
        40_000_000,
        processes=1,
        memory_bytes=128 * 1024 * 1024,
        cpu_s=60,
        max_bytes=3 * 32 * 32,
    )
    try:
        assert "MiB to decode" in refused(decoders, buffer.getvalue())
        assert decoders.decode(picture("RGB", (60, 40), "PNG")).shape == (32, 32, 3)
    finally:
        decoders.close()
