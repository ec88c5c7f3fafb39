"""`crowdtone dlq` against a real broker: what is listed, sent back once, and deleted."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from typer.testing import CliRunner, Result

from deploy.dlq import app
from shared import codec, topics
from shared.kafka import Sink, Source, read_all
from shared.messages import Output, Record
from shared.settings import KafkaSettings
from shared.testing import NOON, post

BYTES = b"\x00\xff not a post"
HEADERS = (("traceparent", b"00-1-2-01"), ("ce_id", b"x"))


@pytest.fixture
def dlq(kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> KafkaSettings:
    """Two kinds of letters of `posts`, one of them of a good post, and lines of a feed."""
    monkeypatch.setenv("CROWDTONE_KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("CROWDTONE_KAFKA_TOPIC_PREFIX", kafka.topic_prefix)
    good = codec.encode_post(post("test:good"))
    records = [Record("posts", n % 4, n, b"key", BYTES, HEADERS) for n in range(450)]
    with Sink(kafka) as sink:
        sink.write([_dead(record, f"not a Post: {record.offset} is wrong") for record in records])
        sink.write([_dead(Record("posts", 2, 9, good.key, good.value, good.headers), "by mistake")])
        feed = (("feed", b"posts.jsonl"),)
        lines = [Record("feed", 0, 1, None, b"{broken", feed), Record("feed", 0, 2, None, b'{"id": 1}', feed)]
        sink.write([codec.dead_letter(one, service="ingest", reason="no", time=NOON) for one in lines])
        cut = (*feed, ("truncated_from_bytes", b"99"))
        sink.write([_dead(Record("feed", 0, 3, None, b'{"id"', cut), "too long")])
    return kafka


def _dead(record: Record, reason: str) -> Output:
    return codec.dead_letter(record, service="text_encoder", reason=reason, time=NOON)


def crowdtone_dlq(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, result.output
    return result


def listed(*words: str) -> list[dict[str, object]]:
    return [json.loads(row) for row in crowdtone_dlq("ls", "--json", *words).stdout.splitlines()]


def test_dead_letters_are_listed_shown_sent_back_once_and_purged(dlq: KafkaSettings) -> None:
    counts = {(row["topic"], row["reason"]): (row["letters"], row["replayed"]) for row in listed()}
    assert counts == {
        ("posts", "not a Post: # is wrong"): (450, 0),
        ("posts", "by mistake"): (1, 0),
        ("feed", "no"): (2, 0),
        ("feed", "too long"): (1, 0),
    }
    assert [row["letters"] for row in listed("--topic", "posts", "--reason", "MISTAKE")] == [1]
    assert listed("--since", "2999-01-01") == []
    (row,) = listed("--topic", "posts", "--reason", " 449 is", "--each")
    assert row["from"] == "posts/1/449"

    shown = crowdtone_dlq("show", "posts", str(row["offset"])).stdout
    assert "00 ff 20 6e 6f 74" in shown
    assert "ce_id: x" in shown
    raw = crowdtone_dlq("show", "posts", str(row["offset"]), "--raw")
    assert raw.stdout_bytes == BYTES

    crowdtone_dlq("replay", "posts", "--dry-run")
    assert CliRunner().invoke(app, ["replay", "posts"], input="n\n").exit_code == 1
    assert list(read_all(dlq, "posts")) == []
    crowdtone_dlq("replay", "posts", "--reason", "mistake", "--yes")
    crowdtone_dlq("replay", "posts", "--limit", "440", "--yes")
    crowdtone_dlq("replay", "posts", "--yes")
    crowdtone_dlq("replay", "posts", "--yes")  # nothing is left
    sent = list(read_all(dlq, "posts"))
    assert Counter(record.value == BYTES for record in sent) == {True: 450, False: 1}
    assert {record.headers for record in sent if record.value == BYTES} == {HEADERS}
    assert Counter(record.partition for record in sent) == {0: 113, 1: 113, 2: 113, 3: 112}
    (good,) = [record for record in sent if record.value != BYTES]
    assert codec.decode_post(good.value) == post("test:good")
    assert good.partition == 2
    assert {row["replayed"] for row in listed("--topic", "posts")} == {450, 1}
    crowdtone_dlq("replay", "posts", "--reason", "mistake", "--again", "--yes")
    assert len(list(read_all(dlq, "posts"))) == 452

    crowdtone_dlq("purge", "posts", "--up-to", "99", "--yes")
    assert sum(int(str(row["letters"])) for row in listed("--topic", "posts")) == 351
    crowdtone_dlq("purge", "posts", "--yes")
    assert listed("--topic", "posts") == []
    assert len(listed("--topic", "feed")) == 2


def test_lines_of_a_feed_are_written_out_to_be_ingested_again(dlq: KafkaSettings) -> None:
    result = crowdtone_dlq("replay", "feed", "--yes")
    assert result.stdout == '{broken\n{"id": 1}\n'
    assert "only the first 5 of 99 bytes" in result.stderr
    assert crowdtone_dlq("replay", "feed", "--reason", "no", "--yes").stdout == ""


def test_a_replayed_post_reaches_the_group_that_set_it_aside(dlq: KafkaSettings) -> None:
    crowdtone_dlq("replay", "posts", "--reason", "mistake", "--yes")
    with Source(dlq, [topics.POSTS.name], "text_encoder") as source:
        for _ in range(100):
            if found := source.poll():
                break
    assert [codec.decode_post(record.value).post_id for record in found] == ["test:good"]


def test_mistakes_are_told(dlq: KafkaSettings) -> None:
    crowdtone_dlq("show", "posts", "7000", code=1)
    crowdtone_dlq("ls", "--topic", "carrier-pigeon", code=2)
    crowdtone_dlq("ls", "--since", "yesterday", code=2)
    crowdtone_dlq("show", "sentiments", "0", code=1)
    crowdtone_dlq("purge", "sentiments", "--yes")
