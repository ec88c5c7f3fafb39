"""What a browser may be told that bytes are, judged by the bytes alone. Pure.

Only pictures and sounds that no browser runs as a document: HTML and SVG are never named, whatever a source
declared.
"""

from __future__ import annotations

from typing import Final

_STARTS: Final = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
    (b"\x1aE\xdf\xa3", "video/webm"),
)


def media_type(content: bytes) -> str | None:
    """MIME type of a picture or sound; None where it is neither or not one that browsers show safely.

    Source: WHATWG MIME Sniffing, sections 6.1 and 6.2, less what it takes for text.
    """
    for start, found in _STARTS:
        if content.startswith(start):
            return found
    if content[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(content[8:12])
    if content[4:8] == b"ftyp":
        if content[8:12] in {b"avif", b"avis"}:
            return "image/avif"
        return "audio/mp4" if content[8:11] == b"M4A" else "video/mp4"
    return _mpeg_audio(content)


def _mpeg_audio(content: bytes) -> str | None:
    """Frames without a container: eleven bits of sync, version, layer; then bit rate and sample rate."""
    if len(content) < 3 or content[0] != 0xFF or content[1] & 0xE0 != 0xE0:
        return None
    if content[1] & 0xF6 == 0xF0:
        return "audio/aac"  # ADTS
    # Layer II or III. Layer I is left out: nobody has it, and FF FE is how UTF-16 text begins.
    layer, bit_rate, sample_rate = content[1] >> 1 & 3, content[2] >> 4, content[2] >> 2 & 3
    return "audio/mpeg" if layer in (1, 2) and 0 < bit_rate < 15 and sample_rate < 3 else None
