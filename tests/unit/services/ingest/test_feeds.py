"""Lines out of a file descriptor: none lost, none invented, whatever the chunks; and a rate that is kept."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest import feeds
from services.ingest.feeds import LineFeed, Pace, subscription
from shared.messages import Record


def feed(fd: int, **changes: float | bool | None) -> LineFeed:
    settings = {"batch_posts": 7, "batch_bytes": 1000, "batch_s": 0.05, "max_line_bytes": 50} | changes
    return LineFeed(fd, "test", **settings)  # type: ignore[arg-type]


@contextmanager
def piped(content: bytes) -> Iterator[int]:
    """A pipe that is being written to."""
    end, start = os.pipe()

    def write() -> None:
        with open(start, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield end
    finally:
        os.close(end)
        thread.join()


def drain(source: LineFeed) -> list[Record]:
    found: list[Record] = []
    while not source.finished:
        found += source.poll()
        source.commit({})
    return found


@given(
    st.lists(st.binary(max_size=80).filter(lambda line: b"\n" not in line), max_size=30), st.integers(1, 40)
)
def test_every_line_comes_once_and_in_order(lines: list[bytes], chunk_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "CHUNK_BYTES", chunk_bytes)
        with piped(b"\n".join(lines)) as fd:
            source = feed(fd)
            found = drain(source)
    kept = [line for line in lines if line[:50].strip()]
    assert [record.value for record in found] == [line[:50] for line in kept]
    assert [record.offset for record in found] == list(range(1, len(kept) + 1))
    for record, line in zip(found, kept, strict=True):
        cut = dict(record.headers).get("truncated_from_bytes")
        assert cut == (str(len(line)).encode() if len(line) > 50 else None)
    assert source.bytes_read == len(b"\n".join(lines))


def test_a_silent_input_is_not_waited_for() -> None:
    end, start = os.pipe()
    source = feed(end)
    began = time.monotonic()
    assert source.poll() == []
    assert 0.04 < time.monotonic() - began < 2
    os.write(start, b"half")
    assert source.poll() == []
    os.write(start, b" a line\n")
    assert [record.value for record in source.poll()] == [b"half a line"]
    os.close(start)
    assert source.poll() == []
    assert source.finished
    os.close(end)


def test_batches_are_bounded_by_number_and_by_bytes(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"x" * 40 + b"\n" + (b"x" * 40 + b"\n") * 19)
    with path.open("rb") as file:
        sizes = [len(feed(file.fileno()).poll())]
        file.seek(0)
        sizes.append(len(feed(file.fileno(), batch_bytes=100).poll()))
    assert sizes == [7, 3]


def test_a_looped_file_says_which_pass_it_is(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"a\nb\n")
    with path.open("rb") as file:
        source = feed(file.fileno(), loop=True)
        found = [*source.poll(), *source.poll()][:6]
    assert not source.finished
    assert [record.value for record in found] == [b"a", b"b"] * 3
    passes = [dict(record.headers).get("replay", b"") for record in found]
    assert passes[0] == passes[1] == b""
    assert len(set(passes)) == 3


def test_an_empty_looped_file_ends(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"\n \n")
    with path.open("rb") as file:
        assert drain(feed(file.fileno(), loop=True)) == []


def test_a_commit_is_told() -> None:
    told: list[bool] = []
    with piped(b"a\n") as fd:
        source = LineFeed(
            fd,
            "test",
            batch_posts=1,
            batch_bytes=10,
            batch_s=0.01,
            max_line_bytes=10,
            committed=lambda: told.append(True),
        )
        source.poll()
        assert told == []
        source.commit({})
    assert told == [True]


def test_the_pace_is_even_and_a_pause_is_not_made_up_for() -> None:
    pace = Pace(10)
    now, passed = 100.0, 0
    while now < 102.0:
        if pace.wait_s(now) == 0:
            pace.passed(now)
            passed += 1
        now += 0.01
    assert 19 <= passed <= 23
    now += 60
    burst = 0
    while pace.wait_s(now) == 0:
        pace.passed(now)
        burst += 1
    assert burst <= 4
    assert Pace(None).wait_s(0) == 0


def test_what_is_subscribed_to() -> None:
    url = subscription("wss://jetstream.example/subscribe?wantedDids=did:x", 123, 1000)
    assert urlsplit(url).path == "/subscribe"
    assert parse_qs(urlsplit(url).query) == {
        "wantedDids": ["did:x"],
        "wantedCollections": ["app.bsky.feed.post"],
        "maxMessageSizeBytes": ["1000"],
        "cursor": ["123"],
    }
    ours = subscription("ws://h/?wantedCollections=a&wantedCollections=b&cursor=1", None, 5)
    assert parse_qs(urlsplit(ours).query)["wantedCollections"] == ["a", "b"]
    assert parse_qs(urlsplit(ours).query)["cursor"] == ["1"]
    assert parse_qs(urlsplit(subscription("ws://h/?cursor=1", 2, 5)).query)["cursor"] == ["2"]
