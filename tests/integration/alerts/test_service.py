"""The service on a real Kafka, Postgres and Redis: what it finds, and what a crash changes: nothing."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import redis as redis_client
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from services.alerts.app import COMPACTED_SOON, FETCH_BYTES, TABLE
from services.alerts.settings import GROUP, DetectSettings
from services.alerts.store import AlertStore
from shared import db, topics
from shared.heartbeat import reports
from shared.kafka import Group, Source
from shared.messages import Label, Record
from shared.settings import KafkaSettings, PostgresSettings, RedisSettings
from tests.integration.alerts.conftest import Feed, Sample, Worker, content, hour, published, until

QUICK = {
    "CROWDTONE_ALERTS_SETTLE_S": "0.2",
    "CROWDTONE_ALERTS_OPEN_SETTLE_S": "0.5",
    # Only what Faust tells is judged: the one sweep at the start sees empty tables.
    "CROWDTONE_ALERTS_SWEEP_S": "100000",
}
DROP = "lumio-one/2026-06-13T20:00:00Z/mood_drop"


def turn(at: int = 20) -> list[Sample]:
    """Good hours, then a bad one."""
    good = [each for before in range(at) for each in hour("lumio-one", before, positive=5, neutral=1)]
    return good + hour("lumio-one", at, negative=9)


def committed_all(kafka: KafkaSettings) -> bool:
    with Group(kafka, GROUP, topics.SENTIMENTS.name) as group:
        return all(next_ == end for next_, end in group.progress().values())


def test_a_turn_is_found_published_and_withdrawn_when_its_posts_are_read_again(
    feed: Feed, start: Callable[..., Worker], kafka: KafkaSettings, redis: RedisSettings
) -> None:
    worker = start(**QUICK)
    worker.ready()
    feed.track("lumio-one")
    posts = turn()
    feed.send(posts)
    (row,) = feed.settled(alerts=1)
    assert (row.alert_id, row.state, row.revision) == (DROP, 1, 1)
    assert (row.value, row.posts, row.baseline_posts) == (-1.0, 9, 120)

    # The same records again: what is true stays as it is.
    feed.publish(posts)
    until(lambda: committed_all(kafka), bool)
    # A late revision: the pictures of the bad hour turn out to be merry.
    bad = posts[-9:]
    better = [Sample(each.post_id, each.topic, each.event_time, Label.POSITIVE) for each in bad]
    feed.count(better, taken_back=bad)
    feed.publish(better, revision=2)
    (row,) = until(feed.alerts, lambda rows: rows[0].state == 2 and rows[0].published_revision == 2)
    assert (row.alert_id, row.revision) == (DROP, 2)
    records = published(kafka, 2)
    assert [(each.alert_id, each.state, each.revision) for each in records] == [(DROP, 1, 1), (DROP, 2, 2)]

    def shown() -> list[str]:
        with redis_client.Redis.from_url(redis.url.get_secret_value()) as client:
            return [report.service for report in reports(client) if report.posts >= len(posts)]

    assert until(shown, bool) == ["alerts"]
    began = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(timeout=15) == 0, worker.log.read_text()
    assert time.monotonic() - began < 15
    assert committed_all(kafka)


def test_killed_in_mid_stream_the_alerts_are_those_of_an_undisturbed_run(
    feed: Feed,
    start: Callable[..., Worker],
    kafka: KafkaSettings,
    postgres: PostgresSettings,
    stack: dict[str, str],
) -> None:
    rng = random.Random(3)
    posts = [
        each
        for topic in ("lumio-one", "solfest", "metro-aurora")
        for at in range(36)
        for each in hour(
            topic,
            at,
            negative=rng.randrange(3) + 15 * (topic == "lumio-one" and at in (30, 31)),
            neutral=rng.randrange(4),
            positive=4 + rng.randrange(5) + 20 * (topic == "solfest" and at == 33),
        )
    ]
    rng.shuffle(posts)
    feed.track("lumio-one", "solfest", "metro-aurora")
    worker = start(**QUICK)
    worker.ready()
    kills = 0
    for begin in range(0, len(posts), 60):
        feed.send(posts[begin : begin + 60])
        if begin % 300 == 240:
            time.sleep(rng.random())
            worker.process.kill()
            worker.process.wait()
            kills += 1
            # Records that came before the crash come again, as they do when an offset was not committed.
            feed.publish(rng.sample(posts[: begin + 60], 30))
            worker = start(**QUICK)
    assert kills >= 3
    until(lambda: committed_all(kafka), bool, 120)

    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(timeout=30) == 0, worker.log.read_text()

    # What the sums say when nothing was ever judged before.
    rows = feed.alerts()
    expected = feed.judged_afresh(AlertStore(db.engine(postgres), DetectSettings(), retry_s=5))
    assert {kind for _, kind in expected} == {"mood_drop", "volume_spike"}

    assert {(row.alert_id, row.kind): content(row) for row in rows if row.state == 1} == expected
    assert all(row.published_revision == row.revision for row in rows)
    # Published: of every alert each revision, in order; the newest is what the table says.
    records = published(kafka, sum(row.revision for row in rows))
    newest = {record.alert_id: record for record in records}
    assert {row.alert_id: (row.state, row.revision) for row in rows} == {
        alert_id: (record.state, record.revision) for alert_id, record in newest.items()
    }
    for row in rows:
        assert {r.revision for r in records if r.alert_id == row.alert_id} == set(range(1, row.revision + 1))


def test_what_was_touched_before_a_crash_is_judged_after_it(
    feed: Feed, start: Callable[..., Worker], kafka: KafkaSettings
) -> None:
    # Nothing settles, so the first process counts and commits but judges nothing.
    patient = QUICK | {"CROWDTONE_ALERTS_SETTLE_S": "1000", "CROWDTONE_ALERTS_OPEN_SETTLE_S": "1000"}
    patient["CROWDTONE_ALERTS_MAX_WAIT_S"] = "1000"
    worker = start(**patient)
    worker.ready()
    feed.send(turn())
    until(lambda: committed_all(kafka), bool)
    worker.process.kill()
    worker.process.wait()
    assert feed.alerts() == []
    # The topic is not tracked, so no sweep looks at it: only the table's changelog remembers.
    after = start(**QUICK)
    (row,) = feed.settled(alerts=1)
    assert row.alert_id == DROP
    assert "windows recovered from the changelog" in after.log.read_text()
    assert "0 windows recovered" not in after.log.read_text()


def test_a_sweep_finds_what_faust_never_heard_of(feed: Feed, start: Callable[..., Worker]) -> None:
    feed.track("lumio-one")
    feed.count(turn())
    start()
    (row,) = feed.settled(alerts=1)
    assert row.alert_id == DROP


def test_two_processes_share_the_partitions_and_find_the_same(
    feed: Feed, start: Callable[..., Worker], kafka: KafkaSettings
) -> None:
    workers = [start(**QUICK), start(**QUICK)]
    for worker in workers:
        worker.ready(120)
    feed.send(turn())
    (row,) = feed.settled(alerts=1)
    assert row.alert_id == DROP
    assert [worker.process.poll() for worker in workers] == [None, None]


def test_what_is_no_verdict_is_a_dead_letter_and_those_around_it_count(
    feed: Feed, start: Callable[..., Worker], kafka: KafkaSettings
) -> None:
    start(**QUICK)
    large = b"\xff" * (4 * FETCH_BYTES)
    feed.poison(b"\xffnot a verdict")
    feed.poison(large)
    feed.send(turn())
    feed.poison(b"")
    (row,) = feed.settled(alerts=1)
    assert row.alert_id == DROP
    until(lambda: committed_all(kafka), bool)
    letters: list[Record] = []
    with Source(kafka, [topics.SENTIMENTS.dead_letters], "test-letters") as source:
        while len(letters) < 3:
            letters += source.poll()
    assert {letter.value for letter in letters} == {b"\xffnot a verdict", large, b""}
    headers = [dict(letter.headers) for letter in letters]
    assert {each["service"] for each in headers} == {b"alerts"}
    assert {each["topic"] for each in headers} == {b"sentiments"}


def test_a_build_that_reads_nothing_stops(feed: Feed, start: Callable[..., Worker]) -> None:
    worker = start(CROWDTONE_WORKER_DEAD_LETTER_LIMIT="5")
    for _ in range(12):
        feed.poison(b"\xff")
    assert worker.process.wait(timeout=60) == 1
    assert "dead letters in a row" in worker.log.read_text()


def test_a_stalled_worker_ends_so_that_it_is_started_again(
    feed: Feed, start: Callable[..., Worker], kafka: KafkaSettings
) -> None:
    # Faust hangs, its session alive, when what its agent waits for hangs: a dead letter without a topic.
    worker = start(CROWDTONE_ALERTS_STALL_S="4")
    worker.ready()
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    admin.delete_topics([f"{kafka.topic_prefix}{topics.SENTIMENTS.dead_letters}"])
    admin.close()
    feed.poison(b"\xff")
    assert worker.process.wait(timeout=90) == 75, worker.log.read_text()
    assert "no progress for 4 s" in worker.log.read_text()


def test_the_changelog_is_compacted_soon(start: Callable[..., Worker], kafka: KafkaSettings) -> None:
    """A start reads all of it: by Kafka's defaults that is an entry for every verdict of the last week."""
    start().ready()
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    name = f"{kafka.topic_prefix}{GROUP}-{TABLE}-changelog"
    (found,) = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)]).values()
    admin.close()
    told = {key: about["value"] for key, about in found[name].items()}
    assert told["cleanup.policy"] == "compact"
    assert COMPACTED_SOON.items() <= told.items()


def test_postgres_away_for_too_long_ends_it_with_75(feed: Feed, start: Callable[..., Worker]) -> None:
    worker = start(
        CROWDTONE_POSTGRES_URL="postgresql+psycopg2://nobody@127.0.0.1:1/none", CROWDTONE_POSTGRES_RETRY_S="1"
    )
    assert worker.process.wait(timeout=60) == 75
    assert "Postgres stayed away" in worker.log.read_text()


def test_names_are_honest_and_the_folder_is_its_own(
    feed: Feed, start: Callable[..., Worker], kafka: KafkaSettings, tmp_path: Path
) -> None:
    left = tmp_path / "alerts" / "999999999"
    left.mkdir(parents=True)
    worker = start()
    worker.ready()
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    ours = {name for name in admin.list_topics() if name.startswith(kafka.topic_prefix)}
    admin.close()
    expected = {f"{kafka.topic_prefix}{topic.name}" for topic in topics.ALL}
    assert ours - expected == {f"{kafka.topic_prefix}alerts-arrivals-changelog"}
    assert [each.name for each in (tmp_path / "alerts").iterdir()] == [str(worker.process.pid)]
    listening = [
        each for each in psutil.Process(worker.process.pid).net_connections() if each.status == "LISTEN"
    ]
    assert listening == []
