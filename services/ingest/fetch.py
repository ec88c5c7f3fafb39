"""Pictures and sounds from addresses that strangers chose: fetched within limits, or refused with the reason.

`addresses.py` says where one may go. Here a name is resolved once, every address it has is checked, and the
connection goes to the checked address, so that a name which means something else a moment later gains
nothing. Every redirect is a new address and passes the same door. Nothing of ours is sent: no cookie, no
credentials, no referrer; no proxy is asked, because a proxy would resolve the name again.

The HTTP is the standard library's, over one file object that knows the deadline and counts the bytes: a
server that sends one byte a second runs out of time in the headers as in the body.
"""

from __future__ import annotations

import http.client
import io
import logging
import queue
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urljoin

from services.ingest import addresses
from services.ingest.addresses import Target
from services.ingest.settings import FetchSettings
from shared.errors import InvalidMessage

log = logging.getLogger(__name__)

# Headers and the framing of chunks, on top of the content.
OVERHEAD_BYTES: Final = 256 * 1024
CHUNK_BYTES: Final = 64 * 1024
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# A host that could not be reached so often in a row is not asked for a while: else each batch waits for it.
AWAY_AFTER: Final = 3
AWAY_S: Final = 60.0
MAX_HOSTS_REMEMBERED: Final = 10_000

Resolve = Callable[[str, int], Sequence[str]]
"""(host, port) -> its IP addresses. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """content: unpacked. What the server calls it is not asked: its bytes tell."""

    content: bytes


class Away(InvalidMessage):
    """Not the address is wrong: its host did not answer, or too slowly."""


class _TooManyBytes(Exception):
    """Not a ValueError: `http.client` takes one for a malformed chunk while it reads a chunk's size."""


def resolve(host: str, port: int) -> Sequence[str]:
    """By the system's resolver. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Fetcher:
    """Fetches one address at a time; may be called from several threads."""

    def __init__(
        self,
        settings: FetchSettings,
        *,
        max_bytes: int,
        resolve: Resolve = resolve,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """max_bytes: of the content, packed and unpacked. tls: None verifies as the system does."""
        self._settings = settings
        self._max_bytes = max_bytes
        self._resolve = resolve
        self._tls = tls or ssl.create_default_context()
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[int, float]] = {}  # host -> (in a row, not asked until)

    def fetch(self, address: str, deadline_s: float) -> Fetched:
        """deadline_s: of the clock; `total_s` from now is the deadline where that is sooner.

        Raises InvalidMessage with the reason, whatever the server or its name does.
        """
        if self._clock() >= deadline_s:
            raise InvalidMessage("its turn did not come in time")
        deadline_s = min(deadline_s, self._clock() + self._settings.total_s)
        for _ in range(self._settings.max_redirects + 1):
            target = addresses.target(address)
            self._refuse_if_away(target.host_port)
            try:
                answer = self._get(target, deadline_s)
            except Away:
                self._failed(target.host_port)
                raise
            self._answered(target.host_port)
            if isinstance(answer, Fetched):
                return answer
            address = urljoin(address, answer)
        raise InvalidMessage(f"more than {self._settings.max_redirects} redirects")

    def _get(self, target: Target, deadline_s: float) -> Fetched | str:
        """The content, or where the server says it is."""
        try:
            with self._connected(target, self._pinned(target, deadline_s), deadline_s) as connection:
                connection.settimeout(self._left_s(deadline_s))
                connection.sendall(_request(target))
                wire = _Wire(connection, deadline_s, self._max_bytes + OVERHEAD_BYTES, self._clock)
                response = http.client.HTTPResponse(cast(socket.socket, _Pinned(wire)), method="GET")
                with response:
                    response.begin()
                    return self._read(response)
        except InvalidMessage:
            raise
        except _TooManyBytes as error:
            raise InvalidMessage("more bytes than the limit") from error
        except ssl.SSLCertVerificationError as error:
            raise InvalidMessage(f"{target.host}: {error.verify_message}") from error
        except TimeoutError as error:
            raise Away(f"{target.host} was too slow") from error
        except OSError as error:
            raise Away(f"{target.host} is away: {error.strerror or type(error).__name__}") from error
        except (http.client.HTTPException, ValueError) as error:
            # The body breaks off, the head is no HTTP, a chunk has no length: whose message may be long.
            raise InvalidMessage(
                f"{target.host} broke off or speaks no HTTP: {type(error).__name__}"
            ) from error

    def _read(self, response: http.client.HTTPResponse) -> Fetched | str:
        if response.status in REDIRECTS:
            location = response.headers.get("Location")
            if not location:
                raise InvalidMessage("a redirect to nowhere")
            # Headers come as Latin-1; an address written in UTF-8 is meant as such.
            return location.encode("latin-1").decode("utf-8", errors="replace")
        if response.status != http.client.OK:
            raise InvalidMessage(f"status {response.status}")
        if response.length is not None and response.length > self._max_bytes:
            raise InvalidMessage(f"{response.length} bytes; the limit is {self._max_bytes}")
        content = self._unpacked(response)
        if response.length:  # what the server promised and did not send
            raise InvalidMessage(f"broke off, {response.length} bytes short")
        return Fetched(content)

    def _unpacked(self, response: http.client.HTTPResponse) -> bytes:
        """Raises InvalidMessage as soon as there is more than the limit, packed or unpacked."""
        packing = (response.headers.get("Content-Encoding") or "identity").strip().lower()
        if packing not in ("identity", "gzip", "x-gzip", "deflate"):
            raise InvalidMessage(f"content encoding {packing[:40]!a} was not asked for")
        unpacker = None if packing == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
        content = bytearray()
        read = 0
        try:
            while chunk := response.read(CHUNK_BYTES):
                read += len(chunk)
                if unpacker is not None:
                    chunk = unpacker.decompress(chunk, self._max_bytes + 1 - len(content))
                content += chunk
                if max(read, len(content)) > self._max_bytes:
                    raise InvalidMessage(f"over {self._max_bytes} bytes, unpacked")
        except zlib.error as error:
            raise InvalidMessage("its content encoding is broken") from error
        if unpacker is not None and not unpacker.eof:
            raise InvalidMessage("its content encoding breaks off")
        return bytes(content)

    def _pinned(self, target: Target, deadline_s: float) -> list[str]:
        """The IP addresses that may be connected to. Raises InvalidMessage when only one may not."""
        open_door = target.host_port in self._settings.allow_hosts
        if not open_door and target.port != addresses.PORTS[target.scheme]:
            raise InvalidMessage(f"port {target.port} is not fetched from")
        found = self._resolved(target, deadline_s)
        if not found:
            raise Away(f"{target.host} has no address")
        for each in found:
            # One private address among public ones is a trap, not a mistake to work around.
            if not open_door and (why := addresses.refusal(each)):
                raise InvalidMessage(f"{target.host} is at {each[:60]}, which is not public: {why}")
        return found

    def _resolved(self, target: Target, deadline_s: float) -> list[str]:
        answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(list(self._resolve(target.host, target.port)))
            except (OSError, ValueError) as error:  # UnicodeError of a name no resolver takes
                answers.put(error)

        # The system's resolver takes no timeout; a thread that waits for one ends when it gives up.
        threading.Thread(target=ask, name="resolve", daemon=True).start()
        try:
            found = answers.get(timeout=self._left_s(deadline_s))
        except queue.Empty:
            raise Away(f"{target.host} was not resolved in time") from None
        if isinstance(found, Exception):
            raise Away(f"{target.host} was not resolved: {getattr(found, 'strerror', None) or found}")
        return found

    def _connected(self, target: Target, pinned: Sequence[str], deadline_s: float) -> socket.socket:
        """To the first of the addresses that answers. Raises OSError of the last."""
        failed: OSError = OSError("no address")
        for number, each in enumerate(pinned):
            family = socket.AF_INET6 if ":" in each else socket.AF_INET
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                # One dead address must not use up the time of the others.
                connection.settimeout(self._left_s(deadline_s) / (len(pinned) - number))
                connection.connect((each, target.port))
                if target.scheme == "http":
                    return connection
                connection.settimeout(self._left_s(deadline_s))
                # The certificate must be of the name in the address, not of where it led.
                return self._tls.wrap_socket(connection, server_hostname=target.host)
            except ssl.SSLCertVerificationError:
                connection.close()
                raise
            except OSError as error:
                connection.close()
                failed = error
            except BaseException:
                connection.close()
                raise
        raise failed

    def _left_s(self, deadline_s: float) -> float:
        left_s = deadline_s - self._clock()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def _refuse_if_away(self, host_port: str) -> None:
        with self._lock:
            in_a_row, until_s = self._failures.get(host_port, (0, 0.0))
        if in_a_row >= AWAY_AFTER and self._clock() < until_s:
            raise InvalidMessage(f"{host_port} was away a moment ago")

    def _failed(self, host_port: str) -> None:
        with self._lock:
            if len(self._failures) >= MAX_HOSTS_REMEMBERED:
                self._failures.clear()
            in_a_row, _ = self._failures.get(host_port, (0, 0.0))
            self._failures[host_port] = (in_a_row + 1, self._clock() + AWAY_S)

    def _answered(self, host_port: str) -> None:
        with self._lock:
            self._failures.pop(host_port, None)


def _request(target: Target) -> bytes:
    """Nothing in it can come from the address but what `addresses.target` has made plain ASCII."""
    default = target.port == addresses.PORTS[target.scheme]
    return (
        f"GET {target.path} HTTP/1.1\r\n"
        f"Host: {target.bracketed if default else target.host_port}\r\n"
        "User-Agent: crowdtone/0.1\r\n"
        "Accept: image/*, audio/*, video/*\r\n"
        "Accept-Encoding: identity\r\n"
        "Connection: close\r\n"
        "\r\n"
    ).encode("ascii")


class _Wire(io.RawIOBase):
    """What a socket receives, until a deadline and up to a number of bytes."""

    def __init__(
        self, connection: socket.socket, deadline_s: float, max_bytes: int, clock: Callable[[], float]
    ) -> None:
        self._connection = connection
        self._deadline_s = deadline_s
        self._left = max_bytes
        self._clock = clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises TimeoutError past the deadline, _TooManyBytes past the bytes."""
        left_s = self._deadline_s - self._clock()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
        received = self._connection.recv_into(buffer)
        self._left -= received
        if self._left < 0:
            raise _TooManyBytes
        return received


@dataclass(frozen=True, slots=True)
class _Pinned:
    """All that http.client asks of a socket it only reads from."""

    wire: _Wire

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self.wire, CHUNK_BYTES)
