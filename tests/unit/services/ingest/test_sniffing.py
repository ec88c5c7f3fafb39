"""Pictures and sounds by their first bytes; by what was declared only when those say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.ingest.sniffing import HEAD_BYTES, kind, mime_type
from shared.messages import Modality

DEMO = Path(__file__).parents[4] / "demo"
IMAGE, AUDIO = Modality.IMAGE, Modality.AUDIO


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "image/png"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "audio/wav"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "video/x-msvideo"),
        (b"RIFF\x00\x00\x00\x00????", ""),
        (b"FORM\x00\x00\x00\x00AIFF", "audio/aiff"),
        (b"OggS\x00\x02", "audio/ogg"),
        (b"fLaC\x00\x00", "audio/flac"),
        (b"ID3\x03\x00", "audio/mpeg"),
        (b"\xff\xfb\x90\x64", "audio/mpeg"),
        (b"\xff\xf1\x50\x80", "audio/aac"),
        (b"\x1a\x45\xdf\xa3\x01", "video/webm"),
        (b"\x00\x00\x00\x20ftypisom", "video/mp4"),
        (b"\x00\x00\x00\x20ftypM4A ", "audio/mp4"),
        (b"\x00\x00\x00\x20ftypavif", "image/avif"),
        (b"\x00\x00\x00\x20ftypqt  ", "video/quicktime"),
        (b"\xff\xff\xff\xff", ""),
        (b"\xff\xfe<\x00", ""),  # UTF-16 text
        (b"\xff", ""),
        (b"%PDF-1.7", ""),
        (b"plain words", ""),
        (b"", ""),
    ],
)
def test_first_bytes(head: bytes, found: str) -> None:
    assert mime_type(head) == found


@pytest.mark.parametrize(
    ("head", "name", "declared", "found"),
    [
        (b"\x89PNG\r\n\x1a\n", "song.mp3", "audio/mpeg", (IMAGE, "image/png")),  # the bytes win
        (b"OggS", "photo.jpg", "", (AUDIO, "audio/ogg")),
        (b"words", "photo.JPG", "", (IMAGE, "image/jpeg")),
        (b"words", "x", "Image/WebP", (IMAGE, "image/webp")),
        (b"", "voice.opus", "", (AUDIO, "audio/ogg")),
        (b"", "clip.mp4", "", (AUDIO, "video/mp4")),
        (b"", "https://example.org/a.webp?size=2#x", "", (IMAGE, "image/webp")),
        (b"%PDF-1.7", "paper.pdf", "application/pdf", None),
        (b"words", "notes.txt", "", None),
        (b"", "", "", None),
    ],
)
def test_kind(head: bytes, name: str, declared: str, found: tuple[Modality, str] | None) -> None:
    assert kind(head, name, declared) == found


def test_every_file_of_the_sample_feed_is_known_by_its_bytes() -> None:
    files = [path for path in (DEMO / "media").rglob("*") if path.is_file()]
    assert len(files) > 50
    for path in files:
        found = kind(path.read_bytes()[:HEAD_BYTES])
        assert found is not None, path
        assert found[0] is (IMAGE if path.parent.name == "images" else AUDIO)
