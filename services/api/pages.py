"""Opaque page tokens: the last row of a page, and which request it was a page of. Pure.

A token carries a checksum and no signature: what it opens is a position, and any position can be asked for
anyway by `end_time`. So no key has to be shared by the API's processes, and a token outlives all of them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_VERSION: Final = b"\x01"
_CHECKSUM_BYTES: Final = 12
_TIME: Final = struct.Struct(">q")


@dataclass(frozen=True, slots=True)
class Position:
    """A row in newest-first order: its time (UTC, to the microsecond), then its id."""

    time: datetime
    id: str


def encode(position: Position, fingerprint: str) -> str:
    """The token of the page after `position`; fingerprint: of the request it continues."""
    time_us = (position.time - _EPOCH) // timedelta(microseconds=1)
    content = _VERSION + _TIME.pack(time_us) + position.id.encode()
    return _text(_checksum(content, fingerprint) + content)


def decode(token: str, fingerprint: str) -> Position:
    """Raises ValueError, with what to say to the caller, for a token that is not of this very request."""
    try:
        packed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raise ValueError("is not a page token") from None
    if _text(packed) != token:  # the decoder passes over letters and bits that mean nothing
        raise ValueError("is not a page token")
    checksum, content = packed[:_CHECKSUM_BYTES], packed[_CHECKSUM_BYTES:]
    if checksum != _checksum(content, fingerprint):
        raise ValueError("belongs to another request: begin again without a token")
    try:
        if content[:1] != _VERSION:
            raise ValueError
        (time_us,) = _TIME.unpack_from(content, 1)
        return Position(_EPOCH + timedelta(microseconds=time_us), content[1 + _TIME.size :].decode())
    except (ValueError, struct.error, OverflowError):
        raise ValueError("is not a page token") from None


def _text(packed: bytes) -> str:
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def _checksum(content: bytes, fingerprint: str) -> bytes:
    return hashlib.sha256(fingerprint.encode() + b"\0" + content).digest()[:_CHECKSUM_BYTES]
