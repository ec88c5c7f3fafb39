"""A live stream from a real websocket server of the test's own: resumed, retried, in the end given up on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.sync.server import Server, ServerConnection, serve

from services.ingest.feeds import SocketFeed
from services.ingest.intake import FEED
from services.ingest.jetstream import cursor_us
from shared.errors import Unavailable
from shared.messages import Record

Handler = Callable[[ServerConnection], None]


def event(number: int) -> bytes:
    return json.dumps({"did": "did:plc:x", "time_us": number * 1_000_000, "kind": "identity"}).encode()


@contextmanager
def serving(handler: Handler, port: int = 0) -> Iterator[Server]:
    with serve(handler, "127.0.0.1", port) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def address(server: Server) -> str:
    return f"ws://127.0.0.1:{server.socket.getsockname()[1]}/subscribe"


def asked(connection: ServerConnection) -> dict[str, list[str]]:
    assert connection.request is not None
    return parse_qs(urlsplit(connection.request.path).query)


@contextmanager
def reading(
    url: str, cursor: int | None = None, retry_s: float = 20
) -> Iterator[tuple[SocketFeed, list[int | None]]]:
    committed: list[int | None] = []
    feed = SocketFeed(
        url,
        cursor_us=cursor,
        cursor_of=cursor_us,
        rewind_s=2,
        batch_posts=100,
        batch_bytes=100_000,
        batch_s=0.05,
        max_line_bytes=1000,
        retry_s=retry_s,
        committed=committed.append,
    )
    try:
        yield feed, committed
    finally:
        feed.close()


def poll(feed: SocketFeed, count: int) -> list[Record]:
    found: list[Record] = []
    deadline = time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} messages"
        found += feed.poll()
    return found


def test_messages_come_in_order_and_tell_where_to_resume() -> None:
    def handler(connection: ServerConnection) -> None:
        for number in range(1, 4):
            connection.send(event(number).decode())
        connection.send(b"\xff not UTF-8")
        connection.send("x" * 1500)
        connection.recv()

    with serving(handler) as server, reading(address(server)) as (feed, committed):
        records = poll(feed, 5)
        feed.commit({FEED: 6})
        assert feed.poll() == []  # a silent server is no reason to wait
        feed.commit({})
    assert [record.value for record in records[:4]] == [event(1), event(2), event(3), b"\xff not UTF-8"]
    assert records[4].value == b"x" * 1000
    assert dict(records[4].headers)["truncated_from_bytes"] == b"1500"
    assert committed == [3_000_000, None]


def test_a_broken_connection_is_resumed_a_little_before_where_it_broke() -> None:
    queries: list[dict[str, list[str]]] = []

    def handler(connection: ServerConnection) -> None:
        queries.append(asked(connection))
        connection.send(event(100 + len(queries)).decode())
        if len(queries) == 1:
            connection.socket.close()  # no farewell, as when a cable is cut
        elif len(queries) == 3:
            connection.recv()

    with serving(handler) as server, reading(address(server), cursor=50_000_000) as (feed, _):
        assert [record.value for record in poll(feed, 3)] == [event(101), event(102), event(103)]
    assert [query["cursor"] for query in queries] == [["48000000"], ["99000000"], ["100000000"]]
    assert queries[0]["wantedCollections"] == ["app.bsky.feed.post"]


def test_a_server_that_comes_back_is_found_again() -> None:
    def handler(connection: ServerConnection) -> None:
        connection.send(event(1).decode())
        connection.recv()

    with serving(handler) as server:
        url = address(server)
        port = server.socket.getsockname()[1]
        feeding = reading(url)
        feed, _ = feeding.__enter__()
        poll(feed, 1)
    for _ in range(5):
        assert feed.poll() == []
    with serving(handler, port):
        poll(feed, 1)
        feeding.__exit__(None, None, None)


def test_a_server_that_stays_away_is_given_up_on() -> None:
    with serving(lambda connection: None) as server:
        url = address(server)
    with reading(url, retry_s=0.5) as (feed, _):
        with pytest.raises(Unavailable, match="stayed away"):
            poll(feed, 1)
