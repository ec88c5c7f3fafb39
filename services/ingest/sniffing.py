"""Whether some bytes are a picture or a sound. Pure.

By their first bytes, because those are what a decoder will look at; by the declared type or the file's name
only when the bytes say nothing, so that a broken file is still answered for by the encoder its author meant
it for.
"""

from __future__ import annotations

import mimetypes
from typing import Final

from shared.messages import Modality

HEAD_BYTES: Final = 64
"""How many first bytes are looked at."""

_IMAGE, _AUDIO = Modality.IMAGE, Modality.AUDIO

# (offset, bytes, type). Sources: RFC 2083 (PNG), GIF89a, ITU T.81 (JPEG), RFC 9649 (WebP), RFC 3533 (Ogg),
# RFC 9639 (FLAC), RFC 8794 (EBML, so WebM and Matroska), ISO 14496-12 (MP4), RFC 4867 (AMR).
_MAGIC: Final = (
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (0, b"OggS", "audio/ogg"),
    (0, b"fLaC", "audio/flac"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"#!AMR", "audio/amr"),
    (0, b"caff", "audio/x-caf"),
    (0, b"\x1a\x45\xdf\xa3", "video/webm"),
    (0, b"FLV\x01", "video/x-flv"),
)
_RIFF: Final = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_FORM: Final = {b"AIFF": "audio/aiff", b"AIFC": "audio/aiff"}
_STILL_BRANDS: Final = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"mif1": "image/heif",
}
_SOUND_BRANDS: Final = {b"M4A ": "audio/mp4", b"M4B ": "audio/mp4", b"qt  ": "video/quicktime"}

# The standard library's table depends on the machine's /etc/mime.types; this one does not.
_TYPES: Final = mimetypes.MimeTypes()
for _extension, _type in (
    (".webp", "image/webp"),
    (".avif", "image/avif"),
    (".heic", "image/heic"),
    (".flac", "audio/flac"),
    (".opus", "audio/ogg"),
    (".ogg", "audio/ogg"),
    (".oga", "audio/ogg"),
    (".m4a", "audio/mp4"),
    (".amr", "audio/amr"),
    (".mkv", "video/x-matroska"),
    (".ogv", "video/ogg"),
):
    _TYPES.add_type(_type, _extension)


def mime_type(head: bytes) -> str:
    """The type the first bytes tell, "" when they tell none."""
    for offset, magic, found in _MAGIC:
        if head.startswith(magic, offset):
            return found
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12], "")
    if head[:4] == b"FORM":
        return _FORM.get(head[8:12], "")
    if head[4:8] == b"ftyp":
        return _STILL_BRANDS.get(head[8:12]) or _SOUND_BRANDS.get(head[8:12], "video/mp4")
    # An MPEG audio frame (ISO 11172-3 section 2.4.2.3): 11 set bits, a version, layer II or III, and no
    # reserved
    # bitrate or sample rate. Layer I is not heard any more and looks like the mark of UTF-16. ADTS: layer 0.
    if len(head) >= 4 and head[0] == 0xFF:
        if head[1] in (0xF0, 0xF1, 0xF8, 0xF9):
            return "audio/aac"
        reserved = (head[1] >> 3) & 3 == 1 or head[2] >> 4 == 15 or (head[2] >> 2) & 3 == 3
        if head[1] & 0xE0 == 0xE0 and (head[1] >> 1) & 3 in (1, 2) and not reserved:
            return "audio/mpeg"
    return ""


def kind(head: bytes, name: str = "", declared: str = "") -> tuple[Modality, str] | None:
    """(IMAGE or AUDIO, MIME type), or None for what is neither, such as a PDF. A video counts for its sound.

    name: a file name or address; declared: a MIME type. Both are asked only when `head` tells nothing.
    """
    guessed = _TYPES.guess_type(name.split("?")[0].split("#")[0])[0] or ""
    for candidate in (mime_type(head), declared.lower(), guessed):
        if candidate.startswith("image/"):
            return _IMAGE, candidate
        if candidate.startswith(("audio/", "video/")):
            return _AUDIO, candidate
    return None
