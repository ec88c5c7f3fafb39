"""What the loop may rely on of a source and a sink: the same tests for the fakes and for Apache Kafka.

And, of the real one alone, what a rebalance may do: no record is skipped, none committed past, none committed
by a member that has lost its partition.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import kafka as kafka_python
import pytest
from kafka.errors import KafkaConnectionError

from shared import kafka as real
from shared.errors import Unavailable
from shared.messages import Output, Record, TopicPartition
from shared.settings import KafkaSettings
from shared.testing import FakeSink, FakeSource
from shared.worker import Readable, Writable

TOPIC = "posts"
PARTITIONS = 4
Crash = Callable[[], Readable]


@dataclass
class Topic:
    """A topic with records in it: opened once, and opened again after its reader died."""

    open: Callable[[int], Readable]
    committed: Callable[[], Mapping[int, int]]
    opened: list[Readable] = field(default_factory=list)


def outputs(count: int) -> list[Output]:
    return [
        Output(TOPIC, f"k{number}".encode(), f"v{number}".encode(), (("h", b"1"),), number % PARTITIONS)
        for number in range(count)
    ]


def place(records: Sequence[Record]) -> Mapping[TopicPartition, int]:
    """What a step that is done with all of them says."""
    return {TopicPartition(record.topic, record.partition): record.offset + 1 for record in records}


def poll(source: Readable, count: int, timeout_s: float = 60) -> list[Record]:
    """At least `count` records."""
    found: list[Record] = []
    deadline = time.monotonic() + timeout_s
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} records"
        found += source.poll()
    return found


@pytest.fixture(params=["fake", "kafka"])
def topic(request: pytest.FixtureRequest) -> Iterator[Callable[[int], Topic]]:
    """Makes a topic that holds `outputs(count)`."""
    with ExitStack() as stack:

        def fake(count: int) -> Topic:
            ends: dict[int, int] = defaultdict(int)
            records = []
            for output in outputs(count):
                assert output.partition is not None
                records.append(
                    Record(
                        TOPIC,
                        output.partition,
                        ends[output.partition],
                        output.key,
                        output.value,
                        output.headers,
                    )
                )
                ends[output.partition] += 1
            sources: list[FakeSource] = []

            def open_source(max_poll_records: int) -> FakeSource:
                source = FakeSource(records, max_poll_records=max_poll_records)
                if sources:
                    source.committed = sources[-1].committed
                sources.append(source)
                return source

            return Topic(
                open_source, lambda: {place.partition: n for place, n in sources[-1].committed.items() if n}
            )

        def kafka(count: int) -> Topic:
            settings: KafkaSettings = request.getfixturevalue("kafka")
            with real.Sink(settings) as sink:
                sink.write(outputs(count))
            before: list[real.Source] = []

            def open_source(max_poll_records: int) -> real.Source:
                while before:
                    before.pop().close()
                source = real.Source(
                    settings.model_copy(update={"max_poll_records": max_poll_records}), [TOPIC], "group"
                )
                before.append(source)
                return source

            def close() -> None:
                for source in before:
                    source.close()

            stack.callback(close)
            return Topic(open_source, lambda: committed(settings, "group"))

        yield fake if request.param == "fake" else kafka


def committed(settings: KafkaSettings, group: str) -> dict[int, int]:
    """Committed offsets by partition, asked of the broker by somebody else."""
    admin = kafka_python.KafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    try:
        name = f"{settings.topic_prefix}{group}"
        partitions = [
            kafka_python.TopicPartition(f"{settings.topic_prefix}{TOPIC}", number)
            for number in range(PARTITIONS)
        ]
        offsets = admin.list_group_offsets({name: partitions})[name]
        return {place.partition: each.offset for place, each in offsets.items() if each.offset > 0}
    finally:
        admin.close()


def test_every_record_comes_once_in_order_and_whole(topic: Callable[[int], Topic]) -> None:
    source = topic(40).open(500)
    records = poll(source, 40)
    assert len(records) == 40
    for partition in range(PARTITIONS):
        mine = [record for record in records if record.partition == partition]
        assert [record.offset for record in mine] == list(range(10))
        assert [record.value for record in mine] == [b"v%d" % (partition + 4 * n) for n in range(10)]
        assert [record.key for record in mine] == [b"k%d" % (partition + 4 * n) for n in range(10)]
    assert {record.headers for record in records} == {(("h", b"1"),)}
    assert {record.topic for record in records} == {TOPIC}, "the name without the deployment's prefix"
    assert source.poll() == []
    assert source.lag_records() == 0


def test_a_poll_is_bounded_and_the_rest_comes_later(topic: Callable[[int], Topic]) -> None:
    source = topic(40).open(7)
    sizes: list[int] = []
    while sum(sizes) < 40:
        sizes.append(len(source.poll()))
    assert max(sizes) <= 7
    assert sum(sizes) == 40


def test_after_a_crash_it_goes_on_from_what_was_committed(topic: Callable[[int], Topic]) -> None:
    made = topic(40)
    source = made.open(500)
    first = poll(source, 40)
    finished = {TopicPartition(TOPIC, 0): 10, TopicPartition(TOPIC, 1): 4}
    source.commit(finished)
    assert made.committed() == {0: 10, 1: 4}
    again = poll(made.open(500), 26)
    assert {(r.partition, r.offset) for r in again} == {
        (r.partition, r.offset)
        for r in first
        if r.offset >= finished.get(TopicPartition(TOPIC, r.partition), 0)
    }


def test_committing_nothing_commits_nothing(topic: Callable[[int], Topic]) -> None:
    made = topic(8)
    source = made.open(500)
    poll(source, 8)
    source.commit({})
    assert made.committed() == {}
    assert len(poll(made.open(500), 8)) == 8


@pytest.fixture(params=["fake", "kafka"])
def sink(request: pytest.FixtureRequest) -> Iterator[tuple[Writable, Callable[[], int]]]:
    """A sink, and how many records its topic has."""
    if request.param == "fake":
        fake = FakeSink()
        yield fake, lambda: len(fake.written)
        return
    settings: KafkaSettings = request.getfixturevalue("kafka")

    def count() -> int:
        consumer = kafka_python.KafkaConsumer(bootstrap_servers=settings.bootstrap_servers, group_id=None)
        try:
            name = f"{settings.topic_prefix}{TOPIC}"
            places = [kafka_python.TopicPartition(name, number) for number in range(PARTITIONS)]
            return int(sum(consumer.end_offsets(places).values()))
        finally:
            consumer.close()

    with real.Sink(settings) as sink:
        yield sink, count


def test_what_was_written_is_there_when_write_returns(sink: tuple[Writable, Callable[[], int]]) -> None:
    writable, count = sink
    writable.write([])
    assert count() == 0
    writable.write(outputs(100))
    assert count() == 100


# Of Apache Kafka alone.


def test_a_producer_that_never_ends_is_given_up(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of a broker found it: ingest waited for ever for batches that nobody sent any more."""

    def write_and_leave() -> None:
        with real.Sink(kafka.model_copy(update={"retry_s": 2.0})) as sink:
            # As it was found: records are accepted and their batches never leave.
            monkeypatch.setattr(sink._producer._sender, "_send_producer_data", lambda *arguments: 0.1)
            sink.write([Output(TOPIC, b"k", b"v")])

    began = time.monotonic()
    with pytest.raises(Unavailable, match="did not take 1 records"):
        write_and_leave()
    assert time.monotonic() - began < 60


def test_a_connection_that_breaks_during_a_poll_is_made_again(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of a broker found it: kafka-python's poll waits for a broker, but not always."""
    with real.Sink(kafka) as sink:
        sink.write([Output(TOPIC, b"k", b"v")])
    with real.Source(kafka, [TOPIC], "reader") as source:
        poll = source._consumer.poll
        breaks = iter([True, True])

        def breaking(**arguments: Any) -> Any:
            if next(breaks, False):
                raise KafkaConnectionError("reset by peer")
            return poll(**arguments)

        monkeypatch.setattr(source._consumer, "poll", breaking)
        deadline = time.monotonic() + 60
        read: list[Record] = []
        while not read and time.monotonic() < deadline:
            read += source.poll()
        assert [record.value for record in read] == [b"v"]

        def away(**arguments: Any) -> Any:
            raise KafkaConnectionError("refused")

        monkeypatch.setattr(source._consumer, "poll", away)
        monkeypatch.setattr(source, "_settings", kafka.model_copy(update={"retry_s": 1.0}))
        with pytest.raises(Unavailable, match="stayed away"):
            source.poll()


@pytest.mark.parametrize("retry_s", [10.0, 30.0])
def test_a_short_patience_is_one_the_client_can_have(kafka: KafkaSettings, retry_s: float) -> None:
    with real.Sink(kafka.model_copy(update={"retry_s": retry_s})) as sink:
        sink.write([Output(TOPIC, b"k", b"v")])


def test_a_record_beyond_the_limit_is_refused_aloud(kafka: KafkaSettings) -> None:
    with real.Sink(kafka) as sink:
        with pytest.raises(Unavailable):
            sink.write([Output(TOPIC, b"k", bytes(9 * 2**20))])
        sink.write([Output(TOPIC, b"k", secrets.token_bytes(7 * 2**20))])


def test_equal_partitions_are_checked(kafka: KafkaSettings) -> None:
    assert real.check_partitions(kafka) == PARTITIONS
    with pytest.raises(ValueError, match="stack up"):
        real.check_partitions(kafka.model_copy(update={"topic_prefix": "nobody."}))


@pytest.mark.parametrize("partitions", [1, 2])
def test_any_number_of_partitions_is_read_to_the_end(kafka: KafkaSettings, partitions: int) -> None:
    settings = kafka.model_copy(
        update={"partitions": partitions, "topic_prefix": f"p{secrets.token_hex(4)}."}
    )
    real.create_topics(settings)
    assert real.check_partitions(settings) == partitions
    with real.Sink(settings) as sink:
        sink.write([Output(TOPIC, b"k%d" % number, b"v") for number in range(50)])
    with real.Source(settings, [TOPIC], "group") as source:
        records = poll(source, 50)
    assert {record.partition for record in records} == set(range(partitions))


class Member(threading.Thread):
    """A member of a group that reads, takes its time, and commits; logs what it did where all see it."""

    def __init__(self, settings: KafkaSettings, log: Log) -> None:
        super().__init__()
        self._settings = settings
        self._log = log
        self.leave = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with real.Source(self._settings, [TOPIC], "group", poll_timeout_s=0.05) as source:
                while not self.leave.is_set():
                    records = source.poll()
                    time.sleep(0.01)
                    self._log.read(records)
                    self._log.about_to_commit(place(records))
                    source.commit(place(records))
        except BaseException as error:
            self.error = error


class Log:
    """Which offsets were read by anybody, by partition; complains of a commit beyond them."""

    def __init__(self) -> None:
        self.offsets: dict[int, set[int]] = defaultdict(set)
        self.reads = 0
        self.beyond: list[str] = []
        self._lock = threading.Lock()

    def read(self, records: Sequence[Record]) -> None:
        with self._lock:
            self.reads += len(records)
            for record in records:
                self.offsets[record.partition].add(record.offset)

    def about_to_commit(self, finished: Mapping[TopicPartition, int]) -> None:
        with self._lock:
            for each, offset in finished.items():
                missing = set(range(offset)) - self.offsets[each.partition]
                if missing:
                    self.beyond.append(f"{each} to {offset} without {sorted(missing)[:5]}")


def test_members_that_come_and_go_skip_nothing_and_commit_past_nothing(kafka: KafkaSettings) -> None:
    settings = kafka.model_copy(update={"max_poll_records": 20, "session_timeout_ms": 6000})
    count = 4000
    with real.Sink(settings) as sink:
        sink.write(outputs(count))
    log = Log()

    def joined() -> Member:
        member = Member(settings, log)
        member.start()
        return member

    members = [joined()]
    deadline = time.monotonic() + 180
    turn = 0
    try:
        while sum(map(len, log.offsets.values())) < count:
            assert time.monotonic() < deadline, f"{sum(map(len, log.offsets.values()))} of {count}"
            assert all(member.error is None for member in members), [member.error for member in members]
            turn += 1
            if turn % 2:
                members.append(joined())
            else:
                leaver = members.pop(0)
                leaver.leave.set()
                leaver.join()
            time.sleep(0.7)
    finally:
        for member in members:
            member.leave.set()
        for member in members:
            member.join()
    assert log.beyond == []
    assert turn > 2, "nobody came or went while there was something to read"
    assert all(offsets == set(range(count // PARTITIONS)) for offsets in log.offsets.values())
    # What the last members left uncommitted is read again, and not more than a few polls of each member.
    ends = committed(settings, "group")
    assert all(ends[partition] <= count // PARTITIONS for partition in range(PARTITIONS))


def test_a_member_that_lost_a_partition_does_not_commit_it(kafka: KafkaSettings) -> None:
    """It polled all, another took half: of what it says it has finished, only its own half is committed."""
    with real.Sink(kafka) as sink:
        sink.write(outputs(40))
    changes: list[tuple[frozenset[TopicPartition], frozenset[TopicPartition]]] = []

    def rebalanced(
        revoked: frozenset[TopicPartition], assigned: frozenset[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        changes.append((revoked, assigned))
        return {}

    with real.Source(kafka, [TOPIC], "group", rebalanced=rebalanced) as first:
        finished = place(poll(first, 40))
        assert len(finished) == PARTITIONS
        other = Member(kafka, Log())
        other.start()
        try:
            while not any(revoked for revoked, _ in changes):
                first.poll()
            while not changes[-1][1]:
                first.poll()
            kept = {each.partition for each in changes[-1][1]}
            assert len(kept) == PARTITIONS // 2
        finally:
            other.leave.set()
        # Before the other leaves the group: what it committed is its own to commit.
        first.commit(dict.fromkeys(finished, 1))
        other.join()
        assert other.error is None
        state = committed(kafka, "group")
    assert {partition for partition, offset in state.items() if offset == 1} <= kept
    for partition in set(range(PARTITIONS)) - kept:
        assert state.get(partition, 10) == 10


def test_a_partition_that_came_back_is_committed_no_lower_than_meanwhile(kafka: KafkaSettings) -> None:
    """As by a turn that was under way when it was lost, and ends when it is back."""
    with real.Sink(kafka) as sink:
        sink.write(outputs(40))
    assigned: set[TopicPartition] = set()

    def rebalanced(
        revoked: frozenset[TopicPartition], given: frozenset[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        assigned.difference_update(revoked)
        assigned.update(given)
        return {}

    with real.Source(kafka, [TOPIC], "group", rebalanced=rebalanced) as first:
        finished = place(poll(first, 40))
        other = Member(kafka, Log())
        other.start()
        try:
            while sum(offset == 10 for offset in committed(kafka, "group").values()) < PARTITIONS // 2:
                first.poll()
                assert other.error is None
        finally:
            other.leave.set()
            other.join()
        lost = {partition for partition, offset in committed(kafka, "group").items() if offset == 10}
        while len(assigned) < PARTITIONS:
            first.poll()
        first.commit(dict.fromkeys(finished, 1))
        state = committed(kafka, "group")
    assert state == {partition: 10 if partition in lost else 1 for partition in range(PARTITIONS)}


def test_a_partition_is_read_from_where_its_owner_wants_to_start(kafka: KafkaSettings) -> None:
    """From its ledger rather than from what is committed; one it has no opinion on from what is committed."""
    with real.Sink(kafka) as sink:
        sink.write(outputs(40))
    with real.Source(kafka, [TOPIC], "group") as source:
        poll(source, 40)
        source.commit({TopicPartition(TOPIC, 0): 9, TopicPartition(TOPIC, 1): 2, TopicPartition(TOPIC, 2): 8})
    starts = {TopicPartition(TOPIC, 0): 5, TopicPartition(TOPIC, 1): 7}
    with real.Source(kafka, [TOPIC], "group", rebalanced=lambda revoked, assigned: starts) as source:
        records = poll(source, 5 + 3 + 2 + 10)
    for partition, first in ((0, 5), (1, 7), (2, 8), (3, 0)):
        offsets = [record.offset for record in records if record.partition == partition]
        assert offsets == list(range(first, 10))


def test_a_step_longer_than_the_session_keeps_its_partitions(kafka: KafkaSettings) -> None:
    """So bounded polls and a long max_poll_interval are enough: nothing needs pausing while a step runs."""
    settings = kafka.model_copy(update={"session_timeout_ms": 6000, "max_poll_records": 10})
    with real.Sink(settings) as sink:
        sink.write(outputs(40))
    moves: list[int] = []

    def rebalanced(
        revoked: frozenset[TopicPartition], assigned: frozenset[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        moves.append(len(assigned))
        return {}

    with real.Source(settings, [TOPIC], "group", rebalanced=rebalanced) as source:
        records = poll(source, 1)
        time.sleep(7.5)
        source.commit(place(records))
        rest = poll(source, 40 - len(records))
    assert len(records) + len(rest) == 40
    assert moves == [PARTITIONS]
    assert committed(settings, "group") == {
        partition: 1 + max(record.offset for record in records if record.partition == partition)
        for partition in {record.partition for record in records}
    }


def test_a_step_longer_than_the_poll_interval_loses_its_partitions_and_cannot_commit(
    kafka: KafkaSettings,
) -> None:
    with real.Sink(kafka) as sink:
        sink.write(outputs(40))
    slow = kafka.model_copy(update={"session_timeout_ms": 6000, "max_poll_interval_ms": 6000})
    log = Log()
    with real.Source(slow, [TOPIC], "group") as source:
        finished = place(poll(source, 40))
        other = Member(kafka, log)
        other.start()
        try:
            deadline = time.monotonic() + 60
            while sum(map(len, log.offsets.values())) < 40:  # the other is given everything
                assert time.monotonic() < deadline
                time.sleep(0.1)
            source.commit(dict.fromkeys(finished, 1))
            assert not any(offset == 1 for offset in committed(kafka, "group").values())
        finally:
            other.leave.set()
            other.join()
    assert other.error is None


def test_pausing_all_partitions_and_resuming_all_starves_none(kafka: KafkaSettings) -> None:
    """Of the library itself (kafka-python): selective pausing was seen to starve a partition, this not."""
    with real.Sink(kafka) as sink:
        sink.write(outputs(400))
    consumer = kafka_python.KafkaConsumer(
        f"{kafka.topic_prefix}{TOPIC}",
        bootstrap_servers=kafka.bootstrap_servers,
        group_id=f"{kafka.topic_prefix}paused",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_poll_records=30,
        fetch_max_wait_ms=10,
    )
    found: list[tuple[int, int]] = []
    try:
        deadline = time.monotonic() + 60
        while len(found) < 400:
            assert time.monotonic() < deadline, f"{len(found)} of 400"
            found += [(m.partition, m.offset) for batch in consumer.poll(200).values() for m in batch]
            if consumer.assignment():
                consumer.pause(*consumer.assignment())
                assert consumer.poll(20) == {}
                consumer.resume(*consumer.assignment())
    finally:
        consumer.close(autocommit=False)
    assert sorted(found) == [(partition, offset) for partition in range(4) for offset in range(100)]
