"""Bytes that a browser may be given, and bytes that it may not."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import pytest
from PIL import Image

from services.dashboard.media_type import media_type

MEDIA = Path(__file__).parents[4] / "demo" / "media"


@pytest.mark.parametrize(
    ("format", "expected"),
    [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("GIF", "image/gif"), ("WEBP", "image/webp")],
)
def test_pictures_as_a_real_encoder_writes_them(format: str, expected: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, format)
    assert media_type(file.getvalue()) == expected


def test_sounds_as_real_encoders_write_them() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(bytes(64))
    assert media_type(file.getvalue()) == "audio/wav"
    voice = next((MEDIA / "voices").glob("*.opus"))
    assert media_type(voice.read_bytes()) == "audio/ogg"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"ID3\x04", "audio/mpeg"),
        (b"\xff\xfb\x90\x64", "audio/mpeg"),
        (b"\xff\xf1\x50\x80", "audio/aac"),
        (b"fLaC\x00", "audio/flac"),
        (b"\x00\x00\x00\x20ftypM4A \x00", "audio/mp4"),
        (b"\x00\x00\x00\x20ftypisom\x00", "video/mp4"),
        (b"\x00\x00\x00\x20ftypavif\x00", "image/avif"),
        (b"\x1aE\xdf\xa3\x9f", "video/webm"),
    ],
)
def test_containers_by_their_first_bytes(content: bytes, expected: str) -> None:
    assert media_type(content) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"<!doctype html><script>alert(1)</script>",
        b"  <svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        b"<?xml version='1.0'?><svg/>",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"RIFF\x00\x00\x00\x00AVI ",
        b"alert(1)//",
        "\ufeff<html>".encode("utf-16"),
    ],
)
def test_nothing_that_could_run_has_a_type(content: bytes) -> None:
    assert media_type(content) is None
