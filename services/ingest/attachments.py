"""A draft's attachments -> the post's media: files below one folder, and addresses, stored by content."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from services.ingest import sniffing
from services.ingest.draft import Attachment
from services.ingest.fetch import Fetched
from shared import metrics
from shared.errors import InvalidMessage, Unavailable
from shared.media import MediaStore
from shared.messages import Media

log = logging.getLogger(__name__)


@dataclass(slots=True)
class MediaCounts:
    """stored: read and kept. missing: declared, to be answered `absent`. ignored: no picture and no sound."""

    stored: int = 0
    missing: int = 0
    ignored: int = 0


Fetch = Callable[[str, float], Fetched]
"""(address, deadline of time.monotonic) -> what is there. Raises InvalidMessage."""


class Attachments:
    """Reads files below `folder` (None: there are no files) into `store`, and addresses where told to."""

    def __init__(
        self,
        folder: Path | None,
        store: MediaStore,
        *,
        max_bytes: int,
        retry_s: float,
        fetch: Fetch | None = None,
        concurrency: int = 1,
        batch_s: float = 20.0,
    ) -> None:
        """fetch: None leaves what is at addresses where it is. concurrency: fetches at once.

        batch_s: how long the fetches of one batch may take.
        """
        self._folder = folder.resolve() if folder is not None else None
        self._store = store
        self._max_bytes = max_bytes
        self._retry_s = retry_s
        self._fetch = fetch
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="fetch")
        self._batch_s = batch_s
        self._at_addresses: dict[str, Media | str] = {}  # what was fetched, or why not
        self.counts = MediaCounts()

    def fetch(self, attachments: Iterable[Attachment]) -> None:
        """Fetch and store what is at addresses, several at once, for the `take`s of the same batch.

        It ends within `batch_s`, and no address can make it fail. Raises Unavailable when the store takes
        nothing.
        """
        self._at_addresses.clear()
        if self._fetch is None:
            return
        deadline_s = time.monotonic() + self._batch_s
        wanted = dict.fromkeys(item.source_url for item in attachments if item.source_url)
        found = self._threads.map(lambda address: self._fetched(address, deadline_s), wanted)
        self._at_addresses.update(zip(wanted, found, strict=True))

    def take(self, attachments: Sequence[Attachment]) -> tuple[Media, ...]:
        """The media of a post, in order.

        A file that cannot be read is declared all the same, without a SHA-256: the post is not lost for it.
        Raises InvalidMessage when a path leads out of the folder, Unavailable when the store takes nothing.
        """
        taken = []
        for attachment in attachments:
            media = self._file(attachment) if attachment.path else self._elsewhere(attachment)
            if media is None:
                self.counts.ignored += 1
                continue
            if media.sha256:
                self.counts.stored += 1
            else:
                self.counts.missing += 1
            taken.append(media)
        return tuple(taken)

    def _elsewhere(self, attachment: Attachment) -> Media | None:
        found = self._at_addresses.get(attachment.source_url, "")
        if isinstance(found, Media):
            return found
        kind_and_type = sniffing.kind(b"", attachment.source_url, attachment.mime_type)
        if kind_and_type is None:
            return None
        kind, mime_type = kind_and_type
        return Media(kind, "", mime_type, attachment.size_bytes, attachment.source_url, found)

    def _fetched(self, address: str, deadline_s: float) -> Media | str:
        """What is at the address, stored, or why it is not. Stored at once: only so many are in memory."""
        assert self._fetch is not None
        try:
            content = self._fetch(address, deadline_s).content
            # By its bytes alone: an answer that is no medium may be a page of somebody's network, and is not
            # kept.
            kind_and_type = sniffing.kind(content[: sniffing.HEAD_BYTES])
            if kind_and_type is None:
                raise InvalidMessage("neither picture nor sound")
        except InvalidMessage as error:
            metrics.INGEST_FETCHES.labels("absent").inc()
            log.info("%.200a was not fetched and will be absent: %s", address, error)
            return f"not fetched: {error}"
        metrics.INGEST_FETCHES.labels("fetched").inc()
        kind, mime_type = kind_and_type
        return Media(kind, self._put(content), mime_type, len(content), address)

    def _file(self, attachment: Attachment) -> Media | None:
        name = attachment.path
        try:
            content = self._read(name)
        except InvalidMessage:
            raise
        except (OSError, ValueError) as error:  # ValueError: a name no file can have
            log.warning("media %.80a cannot be read and will be absent: %s", name, error)
            content = None
        found = sniffing.kind((content or b"")[: sniffing.HEAD_BYTES], name, attachment.mime_type)
        if found is None:
            log.warning("media %.80a is neither picture nor sound: ignored", name)
            return None
        kind, mime_type = found
        if content is None:
            return Media(kind, "", mime_type)
        return Media(kind, self._put(content), mime_type, len(content))

    def _read(self, name: str) -> bytes:
        """Raises OSError when it is missing, no plain file or too large, InvalidMessage when elsewhere."""
        if self._folder is None:
            raise FileNotFoundError("no media folder was given (--media)")
        path = (self._folder / name).resolve()
        if not path.is_relative_to(self._folder):
            raise InvalidMessage(f"media path leads out of the media folder: {name[:80]!a}")
        # Not blocking: opening a pipe would wait for its writer.
        with open(path, "rb", opener=lambda file, flags: os.open(file, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError("not a plain file")
            content = file.read(self._max_bytes + 1)
        if len(content) > self._max_bytes:
            raise OSError(f"{status.st_size} bytes; the limit is {self._max_bytes}")
        return content

    def _put(self, content: bytes) -> str:
        try:
            return retried(lambda: self._store.put(content), self._retry_s)
        except OSError as error:
            raise Unavailable(f"the media store took nothing for {self._retry_s:.0f} s: {error}") from error


def retried(work: Callable[[], str], retry_s: float) -> str:
    """`work()` again while it raises OSError, for `retry_s`; then that error."""
    retrying = Retrying(
        retry=retry_if_exception_type(OSError),
        stop=stop_after_delay(retry_s),
        wait=wait_exponential_jitter(multiplier=0.1, max=5.0),
        before_sleep=before_sleep_log(log, logging.WARNING),
        reraise=True,
    )
    return retrying(work)
