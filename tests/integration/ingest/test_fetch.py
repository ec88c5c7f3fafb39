"""The fetcher against real servers of the test's own, every one of them up to something."""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.ingest.attachments import Attachments
from services.ingest.draft import Attachment
from services.ingest.fetch import AWAY_AFTER, Fetcher, resolve
from services.ingest.settings import FetchSettings
from shared.errors import InvalidMessage, Unavailable
from shared.media import MediaStore
from shared.messages import Media, Modality
from shared.settings import MediaSettings

MAX_BYTES = 100_000
PNG = b"\x89PNG\r\n\x1a\n" + bytes(1000)

Answer = Callable[[socket.socket, str], None]
"""(connection, path): sends what it likes."""


class Server:
    """Answers one request per connection and remembers what was asked of it."""

    def __init__(self, answer: Answer, tls: ssl.SSLContext | None = None) -> None:
        self._answer = answer
        self._tls = tls
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.host_port = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host_port}"
        self.requests: list[bytes] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        with connection, contextlib.suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection:
                request = b""
                while b"\r\n\r\n" not in request and (part := connection.recv(65536)):
                    request += part
                if request:
                    self.requests.append(request)
                    self._answer(connection, request.split(b" ")[1].decode())
        with self._lock:
            self._at_once -= 1


@contextmanager
def serving(answer: Answer | bytes, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    def send(connection: socket.socket, path: str) -> None:
        assert isinstance(answer, bytes)
        connection.sendall(answer)

    server = Server(send if isinstance(answer, bytes) else answer, tls)
    try:
        yield server
    finally:
        server.close()


def http(content: bytes = b"", status: str = "200 OK", length: int | None = -1, **headers: str) -> bytes:
    """length: of the content as declared; -1 for the true one, None for none."""
    lines = [f"HTTP/1.1 {status}"] + [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if length is not None:
        lines.append(f"Content-Length: {len(content) if length < 0 else length}")
    return "\r\n".join([*lines, "", ""]).encode() + content


def fetcher(*allowed: str, total_s: float = 5, max_redirects: int = 3, **more: Any) -> Fetcher:
    told = FetchSettings(allow_hosts=frozenset(allowed), total_s=total_s, max_redirects=max_redirects)
    return Fetcher(told, max_bytes=MAX_BYTES, **more)


def fetched(fetcher: Fetcher, address: str, within_s: float = 20) -> bytes:
    return fetcher.fetch(address, time.monotonic() + within_s).content


def refused(fetcher: Fetcher, address: str) -> str:
    with pytest.raises(InvalidMessage) as raised:
        fetched(fetcher, address)
    return str(raised.value)


def test_a_picture_is_fetched_and_nothing_of_ours_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens at the discard port
    with serving(http(PNG, Set_Cookie="a=b")) as server:
        it = fetcher(server.host_port)
        assert fetched(it, f"{server.url}/a%20b.png?c=ü#d") == PNG
        assert fetched(it, f"{server.url}/again") == PNG
    assert server.requests == [
        f"GET /{path} HTTP/1.1\r\nHost: {server.host_port}\r\nUser-Agent: crowdtone/0.1\r\n"
        "Accept: image/*, audio/*, video/*\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n".encode()
        for path in ("a%20b.png?c=%C3%BC", "again")
    ]


def test_loopback_is_refused_and_never_connected_to() -> None:
    with serving(http(PNG)) as server:
        for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"):
            assert "port" in refused(fetcher(), f"http://{host}:{server.port}/")
            assert "not public" in refused(fetcher(), f"http://{host}/")
            assert "not public" in refused(fetcher(), f"https://{host}/")
    assert server.requests == []


@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
def test_each_redirect_passes_the_same_door(status: str) -> None:
    with serving(http(PNG)) as inside:

        def answer(connection: socket.socket, path: str) -> None:
            there = {
                "/loopback": inside.url,
                "/metadata": "http://169.254.169.254/latest/meta-data/",
                "/file": "file:///etc/passwd",
                "/decimal": "http://2130706433/",
                "/credentials": f"http://a:b@{inside.host_port}/",
                "/nowhere": "",
                "/again": "/again",
                "/good": "/twice",
                "/twice": f"//{server.host_port}/picture",
                "/utf8": "/ü",
            }.get(path)
            if there is None:
                connection.sendall(http(PNG))
            else:
                connection.sendall(
                    f"HTTP/1.1 {status}\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n".encode()
                )

        with serving(answer) as server:
            it = fetcher(server.host_port)
            assert "port" in refused(it, f"{server.url}/loopback")
            assert "link-local, metadata" in refused(it, f"{server.url}/metadata")
            assert "only http and https" in refused(it, f"{server.url}/file")
            assert "no host" in refused(it, f"{server.url}/decimal")
            assert "credentials" in refused(it, f"{server.url}/credentials")
            assert "nowhere" in refused(it, f"{server.url}/nowhere")
            assert "more than 3 redirects" in refused(it, f"{server.url}/again")
            assert fetched(it, f"{server.url}/good") == PNG
            assert fetched(it, f"{server.url}/utf8") == PNG
            assert server.requests[-1].startswith(b"GET /%C3%BC HTTP/1.1")
            assert len([one for one in server.requests if b"/again" in one]) == 4
    assert inside.requests == []


def test_a_name_that_changes_its_mind_is_resolved_once_and_pinned() -> None:
    """DNS rebinding: allowed when it is checked, elsewhere when it is asked again."""
    asked: list[str] = []

    def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    with serving(http(PNG)) as server:
        name = f"media.example:{server.port}"
        assert fetched(fetcher(name, resolve=rebinding), f"http://{name}/") == PNG
    assert asked == ["media.example"]
    assert f"Host: {name}\r\n".encode() in server.requests[0]


@pytest.mark.parametrize(
    "private", ["127.0.0.1", "10.0.0.1", "::ffff:127.0.0.1", "fd00::1", "169.254.169.254"]
)
def test_one_private_address_among_public_ones_refuses_them_all(private: str) -> None:
    for found in ([private], ["1.1.1.1", private], [private, "1.1.1.1"]):
        why = refused(fetcher(resolve=lambda host, port, found=found: found), "http://evil.example/")
        assert f"evil.example is at {private}, which is not public" in why


def test_only_the_host_and_port_that_are_allowed_are_let_in() -> None:
    with serving(http(PNG)) as server, serving(http(PNG)) as other:
        it = fetcher(server.host_port)
        assert "port" in refused(it, f"{other.url}/")
        assert "port" in refused(it, f"http://localhost:{server.port}/")
    assert other.requests == []


def drip(connection: socket.socket, what: bytes, every_s: float = 0.05) -> None:
    for byte in what:
        connection.sendall(bytes([byte]))
        time.sleep(every_s)


@pytest.mark.parametrize("part", ["silence", "head", "header", "body", "chunks", "redirects"])
def test_a_server_that_takes_its_time_runs_out_of_it(part: str) -> None:
    def answer(connection: socket.socket, path: str) -> None:
        if part == "silence":
            connection.recv(1)
        elif part == "head":
            drip(connection, http(PNG))
        elif part == "header":
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            drip(connection, b"X-Padding: " + b"a" * 1000)
        elif part == "body":
            connection.sendall(http(b"", length=1000))
            drip(connection, bytes(1000))
        elif part == "chunks":
            connection.sendall(http(length=None, Transfer_Encoding="chunked"))
            drip(connection, b"1\r\na\r\n" * 200)
        else:
            time.sleep(0.3)
            connection.sendall(http(status="302 x", Location="/more"))

    with serving(answer) as server:
        began = time.monotonic()
        why = refused(fetcher(server.host_port, total_s=0.8, max_redirects=20), f"{server.url}/")
        took_s = time.monotonic() - began
    assert "too slow" in why
    assert 0.7 < took_s < 4


def test_a_name_that_is_never_resolved_runs_out_of_time() -> None:
    over = threading.Event()

    def hangs(host: str, port: int) -> Sequence[str]:
        over.wait(30)
        return []

    assert "not resolved in time" in refused(fetcher(resolve=hangs, total_s=0.3), "http://slow.example/")
    over.set()
    assert "not resolved" in refused(fetcher(), "http://does-not-exist.invalid/")


def test_a_dead_address_leaves_time_for_the_next() -> None:
    with serving(http(PNG)) as server:
        name = f"media.example:{server.port}"
        # Nobody listens at 127.0.0.2: refused at once, as a route that is gone would be.
        it = fetcher(name, resolve=lambda host, port: ["127.0.0.2", "127.0.0.1"])
        assert fetched(it, f"http://{name}/") == PNG


def test_a_host_that_stays_away_is_left_alone_for_a_while() -> None:
    with serving(http(PNG)) as server:
        host_port = server.host_port
    now = [1000.0]
    it = fetcher(host_port, clock=lambda: now[0])
    for _ in range(AWAY_AFTER):
        with pytest.raises(InvalidMessage, match="is away"):
            it.fetch(f"http://{host_port}/", now[0] + 20)
    with pytest.raises(InvalidMessage, match="away a moment ago"):
        it.fetch(f"http://{host_port}/", now[0] + 20)
    now[0] += 61
    with pytest.raises(InvalidMessage, match="is away"):
        it.fetch(f"http://{host_port}/", now[0] + 20)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (http(bytes(MAX_BYTES + 1)), "100001 bytes; the limit is 100000"),
        (http(b"", length=2**62), "bytes; the limit is 100000"),
        (http(bytes(MAX_BYTES + 1), length=None), "over 100000 bytes"),
        (http(b"a" * 9, length=10), "1 bytes short"),
        (http(length=None, Transfer_Encoding="chunked") + b"186A1\r\n" + bytes(100_001), "broke off|over"),
        (http(length=None, Transfer_Encoding="chunked") + b"5\r\nab", "broke off"),
        (http(length=None, Transfer_Encoding="chunked") + b"-5\r\nab", "broke off"),
        (http(length=None, Transfer_Encoding="chunked") + b"x\r\nab", "broke off"),
        (
            http(length=None, Transfer_Encoding="chunked") + b"1\r\na\r\n" * 100_000,
            "more bytes than the limit",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000, "more bytes than the limit"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", "no HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP"),
        (b"", "is away: RemoteDisconnected"),
        (http(PNG, status="404 Not Found"), "status 404"),
        (http(PNG, status="206 Partial Content"), "status 206"),
        (http(gzip.compress(bytes(50_000_000)), Content_Encoding="gzip"), "over 100000 bytes"),
        (http(zlib.compress(bytes(100_001)), Content_Encoding="deflate"), "over 100000 bytes"),
        (http(gzip.compress(PNG)[:-9], Content_Encoding="gzip"), "breaks off"),
        (http(PNG, Content_Encoding="gzip"), "is broken"),
        (http(PNG, Content_Encoding="br"), "not asked for"),
        (http(PNG, Content_Encoding="gzip, gzip"), "not asked for"),
    ],
)
def test_a_server_that_lies_is_found_out(answer: bytes, why: str) -> None:
    with serving(answer) as server:
        with pytest.raises(InvalidMessage, match=why):
            fetched(fetcher(server.host_port), f"{server.url}/")


@pytest.mark.parametrize(
    "answer",
    [
        http(PNG, length=None),
        http(PNG + b"more than was promised", length=len(PNG)),
        http(gzip.compress(PNG), Content_Encoding="gzip"),
        http(gzip.compress(PNG), Content_Encoding="X-GZIP"),
        http(zlib.compress(PNG), Content_Encoding="deflate"),
        http(PNG, Content_Encoding="identity"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + http(PNG),
        http(length=None, Transfer_Encoding="chunked") + b"%X\r\n%s\r\n0\r\n\r\n" % (len(PNG), PNG),
        b"HTTP/1.0 200 OK\r\n\r\n" + PNG,
    ],
)
def test_every_honest_way_to_send_a_picture_is_read(answer: bytes) -> None:
    with serving(answer) as server:
        assert fetched(fetcher(server.host_port), f"{server.url}/") == PNG


@given(
    st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", http(length=None, Transfer_Encoding="chunked")]),
    st.binary(max_size=300) | st.text("0123456789abcdefx-\r\n:; ", max_size=100).map(str.encode),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_a_server_says_it_is_an_answer_or_a_reason(head: bytes, rest: bytes) -> None:
    with serving(head + rest) as server:
        it = fetcher(server.host_port, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        with contextlib.suppress(InvalidMessage):
            fetched(it, f"{server.url}/")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cert.pem with key.pem beside it, of media.example, signed by itself."""
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=media.example -addext"
    subprocess.run(
        [*command.split(), "subjectAltName=DNS:media.example", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder / "cert.pem"


def test_a_certificate_must_be_of_the_name_asked_for(certificate: Path) -> None:
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate, certificate.with_name("key.pem"))
    names: list[str] = []
    theirs.sni_callback = lambda connection, name, context: names.append(name)
    ours = ssl.create_default_context(cafile=certificate)
    with serving(http(PNG), theirs) as server:
        name, other = f"media.example:{server.port}", f"other.example:{server.port}"

        def here(host: str, port: int) -> Sequence[str]:
            return ["127.0.0.1"]

        assert fetched(fetcher(name, resolve=here, tls=ours), f"https://{name}/") == PNG
        assert "media.example" in names
        assert "mismatch" in refused(fetcher(other, resolve=here, tls=ours), f"https://{other}/")
        assert "self-signed" in refused(fetcher(name, resolve=here), f"https://{name}/")
    assert len(server.requests) == 1


def test_a_tls_server_that_never_shakes_hands_runs_out_of_time() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    host_port = f"127.0.0.1:{listening.getsockname()[1]}"
    with listening:
        assert "too slow" in refused(fetcher(host_port, total_s=0.4), f"https://{host_port}/")


def test_a_batch_is_fetched_at_once_in_order_and_ends_in_time(tmp_path: Path) -> None:
    def answer(connection: socket.socket, path: str) -> None:
        if path == "/slow.png":
            connection.recv(1)
        elif path == "/page.png":
            connection.sendall(http(b"<html>the intranet</html>", Content_Type="image/png"))
        elif path == "/gone.png":
            connection.sendall(http(status="404 x"))
        else:
            time.sleep(0.1)
            connection.sendall(http(PNG + path.encode()))

    store = MediaStore(MediaSettings(url=(tmp_path / "store").as_uri()))
    with serving(answer) as server:
        attachments = Attachments(
            None,
            store,
            max_bytes=MAX_BYTES,
            retry_s=0.1,
            fetch=fetcher(server.host_port, total_s=60).fetch,
            concurrency=4,
            batch_s=2,
        )
        wanted = [Attachment(source_url=f"{server.url}/{number}.png") for number in range(8)]
        others = [Attachment(source_url=f"{server.url}/{name}.png") for name in ("slow", "page", "gone")]
        began = time.monotonic()
        attachments.fetch([*wanted, *others, *wanted])
        assert time.monotonic() - began < 6
        taken = attachments.take([*wanted, *others])
    assert [store.get(media.sha256) for media in taken[:8]] == [
        PNG + f"/{number}.png".encode() for number in range(8)
    ]
    assert 2 <= server.most_at_once <= 4
    assert len(server.requests) == 11  # an address that comes twice is fetched once
    reasons = [media.absent_reason for media in taken[8:]]
    assert all(media.sha256 == "" and media.kind is Modality.IMAGE for media in taken[8:])
    assert reasons == [
        "not fetched: 127.0.0.1 was too slow",
        "not fetched: neither picture nor sound",
        "not fetched: status 404",
    ]
    assert attachments.counts.stored == 8
    assert attachments.counts.missing == 3


def test_what_is_not_fetched_is_declared_all_the_same(tmp_path: Path) -> None:
    store = MediaStore(MediaSettings(url=(tmp_path / "store").as_uri()))
    attachments = Attachments(
        None, store, max_bytes=MAX_BYTES, retry_s=0.1, fetch=fetcher().fetch, concurrency=2
    )
    wanted = Attachment(source_url="http://[::1]/a", mime_type="video/mp4", size_bytes=9)
    attachments.fetch([wanted])
    assert attachments.take([wanted]) == (
        Media(
            Modality.AUDIO, "", "video/mp4", 9, "http://[::1]/a",
            "not fetched: ::1 is at ::1, which is not public: loopback",
        ),
    )  # fmt: skip


def test_a_store_that_takes_nothing_stops_ingest_and_not_the_picture(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"a file where the folder should be")
    store = MediaStore(MediaSettings(url=(tmp_path / "store").as_uri()))
    with serving(http(PNG)) as server:
        attachments = Attachments(
            None, store, max_bytes=MAX_BYTES, retry_s=0.1, fetch=fetcher(server.host_port).fetch
        )
        with pytest.raises(Unavailable):
            attachments.fetch([Attachment(source_url=f"{server.url}/a.png")])


def test_the_resolver_of_this_machine_gives_addresses() -> None:
    assert "127.0.0.1" in resolve("localhost", 80)
