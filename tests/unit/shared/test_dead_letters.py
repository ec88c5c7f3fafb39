"""A dead letter gives back exactly what was set aside."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import codec
from shared.dead_letters import DeadLetter, Filter, line, marked, marker, original, read
from shared.errors import InvalidMessage
from shared.messages import Output, Record
from shared.testing import NOON, post

POST = codec.encode_post(post("test:1"))


def letter(record: Record, reason: str = "not a Post: 12 bytes") -> DeadLetter:
    output = codec.dead_letter(record, service="text_encoder", reason=reason, time=NOON)
    stamp = int(NOON.timestamp() * 1000)
    return read(Record(output.topic, 0, 41, output.key, output.value, output.headers, stamp))


@given(
    st.one_of(st.none(), st.binary(max_size=20)),
    st.binary(max_size=200),
    st.sampled_from([POST.headers, (), (("feed", b"x"),), (("ce_id", b"7"), ("more", b"\xff"))]),
    st.integers(0, 100),
)
def test_the_original_comes_back_as_it_was(
    key: bytes | None, value: bytes, headers: tuple[tuple[str, bytes], ...], partition: int
) -> None:
    found = letter(Record("posts", partition, 7, key, value, headers))
    assert (found.topic, found.partition, found.offset, found.service) == (
        "posts",
        partition,
        7,
        "text_encoder",
    )
    assert original(found) == Output("posts", key, value, headers, partition)


def test_a_line_of_a_feed_is_no_record_and_comes_back_as_a_line() -> None:
    found = letter(Record("feed", 0, 3, None, b'{"a":\n1}', (("feed", b"posts.jsonl"),)))
    assert found.feed == "posts.jsonl"
    assert line(found) == b'{"a": 1}\n'
    with pytest.raises(InvalidMessage, match="ingested again"):
        original(found)
    cut = Record("feed", 0, 3, None, b'{"a"', (("truncated_from_bytes", b"900"),))
    with pytest.raises(InvalidMessage, match="first 4 of 900 bytes"):
        line(letter(cut))


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("topic", b"posts"),),
        tuple((name, b"x") for name in ("topic", "partition", "offset", "service", "reason")),
    ],
)
def test_what_is_no_dead_letter_is_said_so(headers: tuple[tuple[str, bytes], ...]) -> None:
    with pytest.raises(InvalidMessage, match="not a dead letter"):
        read(Record("posts.dlq", 0, 0, None, b"", headers))


def test_alike_reasons_are_of_one_kind() -> None:
    record = Record("posts", 0, 1, None, b"")
    assert letter(record, "a line of 812 bytes").kind == letter(record, "a line of 7 bytes").kind


def test_filters() -> None:
    found = letter(Record("posts", 0, 1, None, b""), "unknown Modality 9")
    assert Filter().takes(found)
    assert Filter(reason="MODALITY", service="text_encoder", since=NOON).takes(found)
    assert not Filter(reason="NaN").takes(found)
    assert not Filter(service="fusion").takes(found)
    assert not Filter(since=NOON + timedelta(seconds=1)).takes(found)
    assert not Filter(feed="x").takes(found)


@given(st.sets(st.integers(0, 60), min_size=1))
def test_a_marker_names_the_offsets(offsets: set[int]) -> None:
    output = marker("posts.dlq", 0, list(offsets), time=datetime.now(UTC))
    record = Record(output.topic, 0, 99, output.key, output.value, output.headers)
    ranges = marked(record)
    assert ranges is not None
    assert {offset for each in ranges for offset in each} == offsets
    assert marked(replace(record, headers=(("replayed", b"x-y"),))) is None
    assert marked(Record("posts.dlq", 0, 0, None, POST.value, POST.headers)) is None
