"""`crowdtone ingest` as a user runs it, against real Kafka, Postgres and Redis."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
import sqlalchemy as sa
from kafka import KafkaConsumer, TopicPartition
from typer.testing import CliRunner, Result

from services.ingest.cli import app
from shared import codec, db, heartbeat, tables, topics
from shared.media import MediaStore
from shared.messages import Modality, Post, Record
from shared.settings import KafkaSettings, MediaSettings, PostgresSettings, RedisSettings

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "demo"
DATA = Path(os.environ.get("CROWDTONE_DATA_DIR", ROOT.parent / "shared" / "data"))
CAPTURE = DATA / "feed_payloads" / "bluesky" / "jetstream_capture_20260704.jsonl"


@dataclass
class Ingest:
    """A stack of one's own, and the command."""

    env: Mapping[str, str]
    kafka: KafkaSettings
    media: MediaStore
    folder: Path

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """As a process of its own, to be stopped or killed."""
        return subprocess.Popen(
            [sys.executable, "-m", "services.ingest", *arguments, "--json"],
            env={**self.env, **env},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, exit_code: int = 0, **env: str) -> Result:
        """To its end, in this process: a start takes a second and more, and nothing here depends on it."""
        result = CliRunner(env={**self.env, **env}).invoke(app, [*arguments, "--json"])
        assert result.exit_code == exit_code, f"{result.exit_code}: {result.output} {result.exception!r}"
        return result

    def __call__(self, *arguments: str, exit_code: int = 0, **env: str) -> dict[str, Any]:
        """The counts of a run."""
        counts: dict[str, Any] = json.loads(self.run(*arguments, exit_code=exit_code, **env).stdout)
        return counts

    def file(self, content: bytes) -> str:
        path = self.folder / f"feed{len(list(self.folder.glob('feed*')))}.jsonl"
        path.write_bytes(content)
        return str(path)

    def records(self, topic: str) -> list[Record]:
        """Everything on a topic, by partition and offset. No group: nobody's offsets are touched."""
        found: list[Record] = []
        with self._reader(topic) as (reader, partitions):
            reader.assign(partitions)
            reader.seek_to_beginning(*partitions)
            count = sum(reader.end_offsets(partitions).values())
            while len(found) < count:
                found += [
                    Record(topic, each.partition, each.offset, each.key, each.value, tuple(each.headers))
                    for batch in reader.poll(timeout_ms=200).values()
                    for each in batch
                ]
        return sorted(found, key=lambda record: (record.partition, record.offset))

    def count(self, topic: str = topics.POSTS.name) -> int:
        """How many records the brokers have of a topic."""
        with self._reader(topic) as (reader, partitions):
            return int(sum(reader.end_offsets(partitions).values()))

    @contextmanager
    def _reader(self, topic: str) -> Iterator[tuple[Any, list[Any]]]:
        reader = KafkaConsumer(bootstrap_servers=self.kafka.bootstrap_servers, group_id=None)
        try:
            name = f"{self.kafka.topic_prefix}{topic}"
            numbers = range(1 if topic.endswith(".dlq") else self.kafka.partitions)
            yield reader, [TopicPartition(name, number) for number in numbers]
        finally:
            reader.close()

    def posts(self) -> dict[str, Post]:
        found = [codec.decode_post(record.value) for record in self.records(topics.POSTS.name)]
        posts = {post.post_id: post for post in found}
        assert len(posts) == len(found), "a post was produced twice"
        return posts

    def dead_letters(self) -> list[tuple[bytes, dict[str, str]]]:
        """(bytes, headers) in the order of the lines."""
        records = self.records(topics.dead_letters(topics.FEED))
        return [(record.value, {name: text.decode() for name, text in record.headers}) for record in records]


@pytest.fixture
def ingest(
    stack: dict[str, str], kafka: KafkaSettings, postgres: PostgresSettings, tmp_path: Path
) -> Iterator[Ingest]:
    engine = db.engine(postgres)
    with engine.begin() as connection:
        connection.execute(
            sa.insert(tables.topics),
            [
                {"name": topic["name"], "display_name": topic["display_name"], "keywords": topic["keywords"]}
                for topic in json.loads((DEMO / "topics.json").read_text())
            ],
        )
    engine.dispose()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Ingest(stack, kafka, MediaStore(MediaSettings(url=stack["CROWDTONE_MEDIA_URL"])), tmp_path)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def line(id: str, text: str = "hello", **more: Any) -> bytes:
    post = {"platform": "x", "id": id, "author": "ann", "created_at": "2026-06-13T09:00:00Z", "text": text}
    return json.dumps(post | more).encode() + b"\n"


def lines(count: int, prefix: str = "n") -> bytes:
    return b"".join(line(f"{prefix}{number}") for number in range(count))


def test_the_sample_feed_becomes_posts_once(ingest: Ingest) -> None:
    wanted = [json.loads(row) for row in (DEMO / "feed.jsonl").read_text().splitlines()]
    arguments = ("jsonl", str(DEMO / "feed.jsonl"), "--media", str(DEMO / "media"))
    counts = ingest(*arguments)
    assert counts["read"] == counts["produced"] == len(wanted)
    assert counts["duplicate"] == counts["rejected"] == counts["skipped"] == 0
    assert counts["media_missing"] == counts["media_ignored"] == 0
    posts = ingest.posts()
    assert set(posts) == {f"{post['platform']}:{post['id']}" for post in wanted}
    for post in wanted:
        made = posts[f"{post['platform']}:{post['id']}"]
        assert made.text == post.get("text", "")
        assert len(made.media) == len(post.get("media", ()))
        sounds = any(name.startswith("voices/") for name in post.get("media", ()))
        pictures = any(name.startswith("images/") for name in post.get("media", ()))
        assert (Modality.IMAGE in made.expected) == pictures
        assert (Modality.AUDIO in made.expected) == (Modality.SPEECH in made.expected) == sounds
        assert post["author"] not in repr(made).replace(made.url, "").replace(made.text, "")
        for name, media in zip(post.get("media", ()), made.media, strict=True):
            assert ingest.media.get(media.sha256) == (DEMO / "media" / name).read_bytes()
    authors = {post["author"]: posts[f"{post['platform']}:{post['id']}"].author_hash for post in wanted}
    assert all(len(hashed) == 64 for hashed in authors.values())

    again = ingest(*arguments)
    assert (again["produced"], again["duplicate"]) == (0, len(wanted))
    assert len(ingest.posts()) == len(wanted)


def test_the_posts_of_one_id_share_a_partition(ingest: Ingest) -> None:
    """Kafka's own partitioner by key: all partitions are used, and an id always goes to the same one."""
    feed = ingest.file(lines(100))
    assert ingest("jsonl", feed)["produced"] == 100
    assert ingest("jsonl", feed, "--again")["produced"] == 100
    records = ingest.records(topics.POSTS.name)
    partitions: dict[bytes | None, set[int]] = {}
    for record in records:
        partitions.setdefault(record.key, set()).add(record.partition)
    assert len(records) == 200
    assert all(len(places) == 1 for places in partitions.values())
    assert {record.partition for record in records} == {0, 1, 2, 3}
    headers = dict(records[0].headers)
    assert headers["ce_type"] == b"crowdtone.v1.Post"
    assert headers["ce_source"] == b"/crowdtone/ingest"
    assert headers["traceparent"].startswith(b"00-")


def test_broken_lines_are_set_aside_with_their_reason_and_their_bytes(ingest: Ingest) -> None:
    feed = (DEMO / "broken.jsonl").read_bytes()
    counts = ingest("jsonl", str(DEMO / "broken.jsonl"), "--media", str(DEMO / "broken_media"))
    posts, dead = ingest.posts(), ingest.dead_letters()
    assert counts["produced"] == len(posts)
    assert counts["rejected"] == len(dead)
    assert counts["read"] == counts["produced"] + counts["duplicate"] + counts["rejected"]
    written = feed.split(b"\n")
    wanted = {json.loads(text)["id"] for text in written if b'"good-' in text}
    assert len(wanted) == 22 - 1  # good-01 comes twice
    assert {f"mastodon:{id}" for id in wanted} <= set(posts)
    assert counts["duplicate"] == 1
    for name in posts:
        assert name.split(":")[1].split("-")[0] in {"good", "unscored", "absent", "any"}, name
    for value, headers in dead:
        assert value in written
        assert headers["reason"]
        assert (headers["service"], headers["topic"], headers["feed"]) == ("ingest", "feed", "broken.jsonl")
    assert not posts["mastodon:absent-missing-file"].media[0].sha256
    rejected = {
        json.loads(text)["id"]
        for text in written
        if b'"reject-' in text and b"cut" not in text and b"utf8" not in text
    }
    assert rejected.isdisjoint(name.split(":")[1] for name in posts)


def test_a_text_of_a_megabyte_and_a_line_beyond_every_limit(ingest: Ingest) -> None:
    huge = line("huge", "a" * 6_000_000)
    counts = ingest("jsonl", ingest.file(line("a") + line("big", "a" * 1_000_000) + huge + line("b")))
    assert (counts["produced"], counts["rejected"]) == (2, 2)
    assert set(ingest.posts()) == {"x:a", "x:b"}
    big, cut = ingest.dead_letters()
    assert big[0] == line("big", "a" * 1_000_000).rstrip(b"\n")
    assert big[1]["reason"] == "text of 1000000 characters; the limit is 65536"
    assert cut[0] == huge[: 4 * 1024 * 1024]
    assert cut[1]["truncated_from_bytes"] == str(len(huge) - 1)


def test_a_crash_before_the_brokers_answer_loses_nothing(ingest: Ingest, tmp_path: Path) -> None:
    """Killed at any moment, the second run produces what the first did not: at least once, never less."""
    feed = tmp_path / "feed.jsonl"
    feed.write_bytes(lines(3000))
    for wait_s in (0.05, 0.4):
        process = ingest.start("jsonl", str(feed), "--rate", "2000", CROWDTONE_INGEST_BATCH_POSTS="50")
        while process.poll() is None and not ingest.count():
            time.sleep(0.05)
        time.sleep(wait_s)
        process.kill()
        process.communicate()
    counts = ingest("jsonl", str(feed))
    assert counts["duplicate"] > 0, "the killed runs had marked nothing: not the moment this is about"
    produced = {record.key for record in ingest.records(topics.POSTS.name)}
    assert produced == {f"x:n{number}".encode() for number in range(3000)}


def test_without_redis_every_post_is_new_and_none_is_lost(ingest: Ingest) -> None:
    away: dict[str, Any] = {"CROWDTONE_REDIS_URL": "redis://127.0.0.1:1/0"}
    for _ in range(2):
        assert ingest("jsonl", ingest.file(lines(20)), **away)["produced"] == 20
    assert len(ingest.records(topics.POSTS.name)) == 40


def test_without_postgres_it_says_so_and_exits_75(ingest: Ingest, caplog: pytest.LogCaptureFixture) -> None:
    away = {
        "CROWDTONE_POSTGRES_URL": "postgresql+psycopg2://crowdtone@127.0.0.1:1/x",
        "CROWDTONE_POSTGRES_RETRY_S": "1",
    }
    ingest.run("jsonl", ingest.file(lines(1)), exit_code=75, **away)
    assert "Postgres stayed away" in caplog.text


def test_without_kafka_it_says_so_and_exits_75(ingest: Ingest) -> None:
    """A process of its own: kafka-python 3.0.12 leaves the sockets of failed attempts to the collector."""
    away = {"CROWDTONE_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "CROWDTONE_KAFKA_RETRY_S": "1"}
    with ingest.start("jsonl", ingest.file(lines(1)), **away) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 75
    assert b"Kafka at 127.0.0.1:1 stayed away" in err
    assert out == b""


def test_without_a_key_no_author_is_stored_and_the_error_says_how_to_make_one(ingest: Ingest) -> None:
    feed = ingest.file(lines(1))
    for key in ("", "short"):
        told = ingest.run("jsonl", feed, exit_code=2, CROWDTONE_AUTHOR_KEY=key).stderr
        assert "CROWDTONE_AUTHOR_KEY" in told
        assert ("openssl" in told) == (key == "")
    assert ingest.count() == 0


def test_a_wrong_file_stops_instead_of_filling_the_dead_letters(ingest: Ingest, tmp_path: Path) -> None:
    wrong = tmp_path / "table.csv"
    wrong.write_text("id,text\n" + "1,hello\n" * 5000)
    counts = ingest("jsonl", str(wrong), exit_code=1)
    assert counts["rejected"] < 2000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_finishes_its_batch_and_tells_its_counts(
    ingest: Ingest, number: signal.Signals
) -> None:
    """Standard input stays open and silent: a stop must not wait for it."""
    with ingest.start("jsonl", "-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(lines(30))
        process.stdin.flush()
        while not ingest.count():
            time.sleep(0.05)
        process.send_signal(number)
        counts = json.loads(process.stdout.read())
        assert process.wait(timeout=30) == 0
    assert counts["produced"] == len(ingest.posts()) == 30


def test_a_running_ingest_is_seen_by_operators_and_follows_the_topics(
    ingest: Ingest, redis: RedisSettings, postgres: PostgresSettings
) -> None:
    process = ingest.start("jsonl", "-", CROWDTONE_INGEST_TOPICS_REFRESH_S="0.2")
    assert process.stdin is not None
    process.stdin.write(line("before", "the new gadget"))
    process.stdin.flush()
    while not ingest.count():
        time.sleep(0.05)
    with redis_py.Redis.from_url(redis.url.get_secret_value()) as client:
        report = next(report for report in heartbeat.reports(client) if report.service == "ingest")
    assert report.memory_bytes > 10 * 2**20
    engine = db.engine(postgres)
    with engine.begin() as connection:
        connection.execute(
            sa.insert(tables.topics).values(name="gadget", display_name="Gadget", keywords=["gadget"])
        )
    engine.dispose()
    time.sleep(1)
    out, _ = process.communicate(line("after", "the new gadget"), timeout=30)
    assert json.loads(out)["produced"] == 2
    posts = ingest.posts()
    assert posts["x:before"].topics == ()
    assert posts["x:after"].topics == ("gadget",)


def test_a_running_ingest_says_how_it_is(ingest: Ingest) -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    process = ingest.start("jsonl", "-", CROWDTONE_WORKER_METRICS_PORT=str(port))
    assert process.stdin is not None
    process.stdin.write(line("first"))
    process.stdin.flush()
    while not ingest.count():
        time.sleep(0.05)
    assert get("/livez") == (200, "ok\n")
    while (told := get("/readyz")) != (200, "ok\n"):  # a busy machine may need more than the 3 s it gives
        assert told[0] == 503
    assert 'crowdtone_posts_total{service="ingest"}' in get("/metrics")[1]
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_looped_file_gives_new_posts_of_now(ingest: Ingest, tmp_path: Path) -> None:
    feed = tmp_path / "feed.jsonl"
    feed.write_bytes(line("a") + b"broken\n" + line("b"))
    process = ingest.start("jsonl", str(feed), "--loop", "--rate", "50")
    while ingest.count() < 10:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    counts = json.loads(out)
    assert counts["rejected"] == 1, "a broken line is set aside once, not once a pass"
    posts = ingest.posts()
    assert counts["produced"] == len(posts) >= 10
    assert {"x:a", "x:b"} < set(posts)
    for name, post in posts.items():
        assert (post.event_time == post.ingest_time) == ("~" in name)


def test_the_rate_is_kept(ingest: Ingest) -> None:
    began = time.monotonic()
    counts = ingest("jsonl", ingest.file(lines(80)), "--rate", "40")
    assert counts["produced"] == 80
    assert 1.8 < counts["seconds"] < time.monotonic() - began


@pytest.mark.skipif(not CAPTURE.exists(), reason="the recorded Bluesky capture is not on this machine")
def test_the_recorded_bluesky_capture_has_seventeen_posts(ingest: Ingest) -> None:
    counts = ingest("jetstream", str(CAPTURE))
    assert (counts["read"], counts["produced"], counts["retracted"], counts["skipped"]) == (152, 17, 1, 134)
    posts = {id: post for id, post in ingest.posts().items() if not post.deleted}
    assert len(posts) == 17
    assert all(post.url.startswith("https://bsky.app/profile/did:plc:") for post in posts.values())
    assert sum(Modality.IMAGE in post.expected for post in posts.values()) == 2


def test_media_at_addresses_is_fetched_where_told_to_and_never_stops_the_feed(ingest: Ingest) -> None:
    picture = (DEMO / "media" / "images" / "cat.webp").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"127.0.0.1:{server.server_port}"
        media = [f"http://{here}/a.webp", "http://127.0.0.1/b.png", "http://nowhere.invalid/c.mp3"]
        feed = ingest.file(b"".join(line(f"{name}{n}", media=media) for n in range(3) for name in "ab"))
        try:
            unfetched = ingest("jsonl", ingest.file(line("unfetched", media=media)))
            counts = ingest("jsonl", feed, "--fetch", CROWDTONE_FETCH_ALLOW_HOSTS=json.dumps([here]))
        finally:
            server.shutdown()
    assert (unfetched["produced"], unfetched["media_missing"]) == (1, 3)
    assert (counts["produced"], counts["media_stored"], counts["media_missing"]) == (6, 6, 12)
    posts = ingest.posts()
    assert {media.absent_reason for media in posts.pop("x:unfetched").media} == {""}
    for post in posts.values():
        fetched, inside, nowhere = post.media
        assert ingest.media.get(fetched.sha256) == picture
        assert (fetched.mime_type, fetched.source_url) == ("image/webp", media[0])
        assert inside.absent_reason == "not fetched: 127.0.0.1 is at 127.0.0.1, which is not public: loopback"
        assert nowhere.absent_reason.startswith("not fetched: nowhere.invalid ")
        assert (inside.kind, nowhere.kind) == (Modality.IMAGE, Modality.AUDIO)
