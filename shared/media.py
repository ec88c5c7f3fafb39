"""The media store: pictures and sounds, content-addressed by SHA-256, under an fsspec URL."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import secrets

import fsspec
from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from shared.errors import InvalidMessage, Unavailable
from shared.settings import MediaSettings

log = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class MediaStore:
    """Bytes by their hash. The same bytes are stored once, whoever posts them."""

    def __init__(self, settings: MediaSettings) -> None:
        self._max_bytes = settings.max_bytes
        self._fs, self._root = fsspec.url_to_fs(settings.url, auto_mkdir=True)

    def _path(self, sha256: str) -> str:
        if not _SHA256.fullmatch(sha256):
            raise InvalidMessage(f"not a SHA-256: {sha256[:80]!r}")
        return f"{self._root}/{sha256[:2]}/{sha256[2:4]}/{sha256}"

    def put(self, content: bytes) -> str:
        """Store `content` and return its SHA-256.

        Raises InvalidMessage over the size limit, OSError when it cannot be written.
        """
        if len(content) > self._max_bytes:
            raise InvalidMessage(f"media of {len(content)} bytes; the limit is {self._max_bytes}")
        sha256 = hashlib.sha256(content).hexdigest()
        path = self._path(sha256)
        if not self._fs.exists(path):
            # Written aside and moved: nobody ever sees half a file, not even after a crash. Under a name of
            # its own: two writers of the same content must not move each other's halves.
            part = f"{path}.{secrets.token_hex(8)}.part"
            try:
                self._fs.pipe_file(part, content)
                self._fs.mv(part, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._fs.rm_file(part)
                raise
        return sha256

    def get_with_retries(self, sha256: str, retry_s: float) -> bytes:
        """As `get`, from a store that may be away for a while; Unavailable when it is so for `retry_s`."""
        retrying = Retrying(
            retry=retry_if_exception_type(OSError),
            stop=stop_after_delay(retry_s),
            wait=wait_exponential_jitter(multiplier=0.1, max=5.0, jitter=0.5),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        )
        try:
            return retrying(lambda: self.get(sha256))
        except OSError as error:
            raise Unavailable(f"the media store stayed away for {retry_s:.0f} s: {error}") from error

    def get(self, sha256: str) -> bytes:
        """Raises InvalidMessage when there is no such content, or it is larger than is read here.

        Raises OSError when the store cannot be read.
        """
        path = self._path(sha256)
        try:
            if self._fs.size(path) > self._max_bytes:
                raise InvalidMessage(f"media {sha256} is over {self._max_bytes} bytes")
            content: bytes = self._fs.cat_file(path)
        except FileNotFoundError as error:
            raise InvalidMessage(f"media {sha256} is not in the store") from error
        return content
