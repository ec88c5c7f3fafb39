"""Where lines come from: a file, standard input, or a websocket. Each is a source for `shared.worker.run`.

A record of a feed has the topic `feed`, partition 0, and as its offset the number of its line, counted from
1. A feed is read once and in order; its `commit` tells that everything polled so far is durable.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import select
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from websockets.exceptions import InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from services.ingest.intake import FEED, REPLAY, TRUNCATED
from shared.errors import Unavailable
from shared.messages import Record, TopicPartition

log = logging.getLogger(__name__)

CHUNK_BYTES: Final = 256 * 1024


def record(line: bytes, number: int, name: str, *headers: tuple[str, bytes]) -> Record:
    return Record(FEED.topic, FEED.partition, number, None, line, (("feed", name.encode()), *headers))


class Pace:
    """Lets through `rate_per_s` a second, evenly; a pause is not made up for by a burst. None: no limit."""

    def __init__(self, rate_per_s: float | None) -> None:
        self._every_s = 1 / rate_per_s if rate_per_s else 0.0
        self._next_s = 0.0

    def wait_s(self, now: float) -> float:
        """How long until the next may pass."""
        return max(0.0, self._next_s - now)

    def passed(self, now: float) -> None:
        # At most a fifth of a second behind: a slow batch is caught up with, a long pause is not.
        self._next_s = max(self._next_s, now - 0.2) + self._every_s


class LineFeed:
    """The lines of a file descriptor but for blank ones; one over the limit is cut, and a header says so."""

    def __init__(
        self,
        fd: int,
        name: str,
        *,
        batch_posts: int,
        batch_bytes: int,
        batch_s: float,
        max_line_bytes: int,
        rate_per_s: float | None = None,
        loop: bool = False,
        committed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """loop: begin again at the end, from then on with a REPLAY header; the file must be seekable."""
        self._fd = fd
        self._name = name
        self._batch_posts = batch_posts
        self._batch_bytes = batch_bytes
        self._batch_s = batch_s
        self._max_line_bytes = max_line_bytes
        self._pace = Pace(rate_per_s)
        self._loop = loop
        self._committed = committed
        self._clock = clock
        self._lines: deque[tuple[bytes, int]] = deque()  # (line, its full length)
        self._partial = bytearray()
        self._partial_bytes = 0
        self._number = 0
        self._in_this_pass = 0
        self._replay = b""
        self._at_end = False
        self.bytes_read = 0

    @property
    def finished(self) -> bool:
        """Whether every line has been polled."""
        return self._at_end and not self._lines

    def poll(self) -> list[Record]:
        """The next lines: as many as a batch holds, or came within `batch_s`, or the rate allows."""
        deadline = self._clock() + self._batch_s
        records: list[Record] = []
        size = 0
        while len(records) < self._batch_posts and size < self._batch_bytes:
            left = deadline - self._clock()
            wait = self._pace.wait_s(self._clock())
            if wait > left:
                time.sleep(max(0.0, left))
                break
            if wait:
                time.sleep(wait)
            if not self._lines and not self._fill(max(0.0, left - wait)):
                break
            line, length = self._lines.popleft()
            self._pace.passed(self._clock())
            self._number += 1
            size += len(line)
            headers = []
            if length > len(line):
                headers.append((TRUNCATED, str(length).encode()))
            if self._replay:
                headers.append((REPLAY, self._replay))
            records.append(record(line, self._number, self._name, *headers))
        return records

    def commit(self, finished: Mapping[TopicPartition, int]) -> None:
        self._committed()

    def lag_records(self) -> int:
        """Lines read ahead; how many more the file has nobody knows before they are read."""
        return len(self._lines)

    def _fill(self, timeout_s: float) -> bool:
        """Read until there is a line; False when none came in time or ever will."""
        deadline = self._clock() + timeout_s
        while not self._lines and not self._at_end:
            # Standard input can be silent for hours; a stop must not wait for it.
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - self._clock()))
            if not ready:
                return False
            chunk = os.read(self._fd, CHUNK_BYTES)
            self.bytes_read += len(chunk)
            if chunk:
                self._split(chunk)
            else:
                self._end_pass()
        return bool(self._lines)

    def _split(self, chunk: bytes) -> None:
        *whole, rest = chunk.split(b"\n")
        for end in whole:
            self._extend(end)
            self._end_line()
        self._extend(rest)

    def _extend(self, part: bytes) -> None:
        self._partial_bytes += len(part)
        self._partial += part[: max(0, self._max_line_bytes - len(self._partial))]

    def _end_line(self) -> None:
        if self._partial.strip():
            self._lines.append((bytes(self._partial), self._partial_bytes))
            self._in_this_pass += 1
        self._partial.clear()
        self._partial_bytes = 0

    def _end_pass(self) -> None:
        self._end_line()
        if not self._loop or not self._in_this_pass:
            self._at_end = True
            return
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._in_this_pass = 0
        self._number = 0
        # Told apart from every other pass, those of other runs too.
        self._replay = f"~{time.time_ns() // 1000:x}".encode()


class SocketFeed:
    """The messages of a Jetstream websocket, resumed where it broke off."""

    def __init__(
        self,
        url: str,
        *,
        cursor_us: int | None,
        cursor_of: Callable[[bytes], int | None],
        rewind_s: float,
        batch_posts: int,
        batch_bytes: int,
        batch_s: float,
        max_line_bytes: int,
        retry_s: float,
        committed: Callable[[int | None], None] = lambda cursor_us: None,
    ) -> None:
        """cursor_of: where to resume after a message. committed: is told where to resume after a crash."""
        self._url = url
        self._cursor_us = cursor_us
        self._cursor_of = cursor_of
        self._rewind_us = int(rewind_s * 1e6)
        self._batch_posts = batch_posts
        self._batch_bytes = batch_bytes
        self._batch_s = batch_s
        self._max_line_bytes = max_line_bytes
        self._retry_s = retry_s
        self._committed = committed
        self._connected = ExitStack()
        self._socket: ClientConnection | None = None
        self._attempts = 0
        self._next_attempt_s = 0.0
        self._silent_since_s: float | None = None
        self._number = 0
        self.finished = False  # a stream never is
        self.bytes_read = 0

    def close(self) -> None:
        self._connected.close()

    def poll(self) -> list[Record]:
        """What came within `batch_s`, up to a batch. Raises Unavailable when the server stays away."""
        deadline = time.monotonic() + self._batch_s
        records: list[Record] = []
        size = 0
        while len(records) < self._batch_posts and size < self._batch_bytes:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if self._socket is None and not self._connect(left):
                break
            assert self._socket is not None
            try:
                # Bytes, not text: what is not UTF-8 is a dead letter, not the end of the stream.
                message = self._socket.recv(timeout=left, decode=False)
            except TimeoutError:
                break
            except (WebSocketException, OSError) as error:
                self._lost(error)
                continue
            line = bytes(message)
            self._number += 1
            self.bytes_read += len(line)
            size += len(line)
            headers: tuple[tuple[str, bytes], ...] = ()
            if len(line) > self._max_line_bytes:
                headers = ((TRUNCATED, str(len(line)).encode()),)
            records.append(record(line[: self._max_line_bytes], self._number, self._name, *headers))
        if records:
            self._attempts, self._silent_since_s = 0, None
            self._cursor_us = next(
                (cursor for item in reversed(records) if (cursor := self._cursor_of(item.value))),
                self._cursor_us,
            )
        return records

    def commit(self, finished: Mapping[TopicPartition, int]) -> None:
        self._committed(self._cursor_us if finished else None)

    def lag_records(self) -> int:
        return 0

    @property
    def _name(self) -> str:
        return urlsplit(self._url).netloc.rpartition("@")[2]

    def _connect(self, left_s: float) -> bool:
        wait = self._next_attempt_s - time.monotonic()
        if wait > 0:
            time.sleep(min(wait, left_s))
            return False
        cursor = self._cursor_us - self._rewind_us if self._cursor_us else None
        try:
            self._socket = self._connected.enter_context(
                connect(
                    subscription(self._url, cursor, self._max_line_bytes),
                    # Twice, so that a server that ignores our limit still gets its message dead-lettered.
                    max_size=2 * self._max_line_bytes,
                    # While we do not ask for messages, 16 wait in memory and the rest stays with the server.
                    max_queue=16,
                    open_timeout=5,
                    close_timeout=1,
                )
            )
        except InvalidURI:
            raise
        except (WebSocketException, OSError) as error:  # TimeoutError is an OSError
            self._lost(error)
            return False
        log.info("connected to %s%s", self._name, f", from {cursor}" if cursor else "")
        return True

    def _lost(self, error: Exception) -> None:
        """Note when to try again. Raises Unavailable after `retry_s` without a message."""
        now = time.monotonic()
        self._socket = None
        with contextlib.suppress(WebSocketException, OSError):
            self._connected.close()
        if self._silent_since_s is None:
            self._silent_since_s = now
        if now - self._silent_since_s > self._retry_s:
            raise Unavailable(f"{self._name} stayed away for {self._retry_s:.0f} s: {error}") from error
        self._attempts += 1
        # Jitter, so that many of us do not come back at the same moment.
        delay = min(30.0, 0.2 * 2 ** min(self._attempts, 10)) * random.uniform(0.5, 1.0)
        self._next_attempt_s = now + delay
        log.warning("%s is away, trying again in %.1f s: %s", self._name, delay, error)


def subscription(url: str, cursor_us: int | None, max_message_bytes: int) -> str:
    """The address with what we want: posts, from the cursor on. What the user wrote in it stays."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    given = {name for name, _ in query}
    if "wantedCollections" not in given:
        query.append(("wantedCollections", "app.bsky.feed.post"))
    if "maxMessageSizeBytes" not in given:
        query.append(("maxMessageSizeBytes", str(max_message_bytes)))
    if cursor_us is not None:
        query = [(name, value) for name, value in query if name != "cursor"]
        query.append(("cursor", str(cursor_us)))
    return urlunsplit(parts._replace(query=urlencode(query)))
