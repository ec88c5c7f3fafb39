"""Source and Sink: the only file that imports kafka (kafka-python).

kafka-python calls rebalance listeners on another thread than poll (3.0.12), so a listener here only
notes what changed; `poll` acts on it on the loop's own thread: it drops what was read under the old
assignment and seeks every new partition to where its owner wants to start. So a record is never stepped
under one assignment and committed under another.
"""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import kafka
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import OffsetSpec
from kafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaConfigurationError,
    KafkaError,
    RebalanceInProgressError,
    TopicAlreadyExistsError,
)
from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception,
    stop_after_delay,
    wait_exponential_jitter,
)

from shared import topics
from shared.errors import Unavailable
from shared.messages import Output, Record, TopicPartition
from shared.settings import KafkaSettings

log = logging.getLogger(__name__)

JOINING_POLL_MS: Final = 3_000
"""How long a poll may last while nothing is assigned. kafka-python 3.0.12 throws away a join that completes
between two polls and starts another: 6 joins instead of 2 with polls of 20 ms and gaps of 200 ms."""

POSITION_MS: Final = 1_000

FLUSH_MARGIN_S: Final = 2.0
"""What is not delivered `retry_s` after it was sent has failed; this much later nobody is told any more."""

Rebalanced = Callable[[frozenset[TopicPartition], frozenset[TopicPartition]], Mapping[TopicPartition, int]]
"""(revoked, assigned) -> where to start reading the assigned ones, for those it has an opinion on."""


def from_committed(
    revoked: frozenset[TopicPartition], assigned: frozenset[TopicPartition]
) -> Mapping[TopicPartition, int]:
    return {}


class _Listener(kafka.ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, changes: deque[tuple[str, frozenset[Any]]]) -> None:
        self._changes = changes

    def on_partitions_revoked(self, revoked: Collection[Any]) -> None:
        self._changes.append(("revoked", frozenset(revoked)))

    def on_partitions_lost(self, lost: Collection[Any]) -> None:
        self._changes.append(("revoked", frozenset(lost)))

    def on_partitions_assigned(self, assigned: Collection[Any]) -> None:
        self._changes.append(("assigned", frozenset(assigned)))


def _broker(settings: KafkaSettings) -> dict[str, Any]:
    """Where the brokers are, and not to wait longer than `retry_s` for the first answer (30 s by itself)."""
    return {
        "bootstrap_servers": settings.bootstrap_servers.split(","),
        "bootstrap_timeout_ms": min(30_000, int(settings.retry_s * 1000)),
    }


def _may_pass(error: BaseException) -> bool:
    """Whether waiting can help; a setting that the client refuses stays refused."""
    return isinstance(error, KafkaError) and not isinstance(error, KafkaConfigurationError)


def _retrying(settings: KafkaSettings) -> Retrying:
    return Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_delay(settings.retry_s),
        wait=wait_exponential_jitter(multiplier=0.2, max=5.0),
        before_sleep=before_sleep_log(log, logging.WARNING),
        reraise=True,
    )


def _reached(settings: KafkaSettings, what: str, work: Callable[[], Any]) -> Any:
    """`work()` with bounded retries. Raises Unavailable when the broker stays away."""
    try:
        return _retrying(settings)(work)
    except KafkaConfigurationError:
        raise
    except KafkaError as error:
        raise Unavailable(
            f"Kafka at {settings.bootstrap_servers} stayed away for {settings.retry_s:.0f} s: {what}: {error}"
        ) from error


class Source:
    """Records of some topics for one member of a consumer group."""

    def __init__(
        self,
        settings: KafkaSettings,
        names: Sequence[str],
        group: str,
        *,
        rebalanced: Rebalanced = from_committed,
        poll_timeout_s: float = 0.2,
    ) -> None:
        self._prefix = settings.topic_prefix
        self._poll_timeout_ms = int(poll_timeout_s * 1000)
        self._rebalanced = rebalanced
        self._changes: deque[tuple[str, frozenset[Any]]] = deque()
        # Where reading began of each partition since it was last assigned.
        self._starts: dict[Any, int] = {}
        self._settings = settings
        self._consumer = _reached(
            settings,
            "consumer",
            lambda: KafkaConsumer(
                **_broker(settings),
                group_id=f"{settings.topic_prefix}{group}",
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                max_poll_records=settings.max_poll_records,
                fetch_max_wait_ms=settings.fetch_max_wait_ms,
                session_timeout_ms=settings.session_timeout_ms,
                heartbeat_interval_ms=max(1, settings.session_timeout_ms // 4),
                max_poll_interval_ms=settings.max_poll_interval_ms,
                max_partition_fetch_bytes=topics.MAX_MESSAGE_BYTES,
            ),
        )
        self._consumer.subscribe(
            [f"{self._prefix}{name}" for name in names], listener=_Listener(self._changes)
        )
        for name in names:
            # A member that joins before it knows the topic's partitions assigns none, and may stay without:
            # kafka-python 3.0.12 does not always notice that they became known meanwhile. Asked after
            # subscribing, for only then does what it learns count; else it rebalances once more.
            known = partial(self._consumer.partitions_for_topic, f"{self._prefix}{name}")
            _reached(settings, "partitions of a topic", known)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the group without committing: what was not finished is read again."""
        self._consumer.close(autocommit=False)

    def _logical(self, partition: Any) -> TopicPartition:
        return TopicPartition(partition.topic.removeprefix(self._prefix), partition.partition)

    def _physical(self, partition: TopicPartition) -> Any:
        return kafka.TopicPartition(f"{self._prefix}{partition.topic}", partition.partition)

    def poll(self) -> list[Record]:
        """Up to `max_poll_records` records, in offset order within a partition; none if none came."""
        joining = not self._consumer.assignment()
        timeout_ms = JOINING_POLL_MS if joining else self._poll_timeout_ms
        # It waits for a broker that is away, but raises when a connection breaks while it looks for the
        # group's coordinator (kafka-python 3.0.12).
        polled = _reached(self._settings, "poll", partial(self._consumer.poll, timeout_ms=timeout_ms))
        restarted = self._apply_changes()
        owned = self._consumer.assignment()
        records = []
        for partition, batch in polled.items():
            if partition in restarted or partition not in owned:
                continue
            name = partition.topic.removeprefix(self._prefix)
            records += [_record(name, message) for message in batch]
        return records

    def _apply_changes(self) -> set[Any]:
        """Tell the owner what moved and seek what is new; the partitions whose polled records are stale."""
        revoked: set[Any] = set()
        assigned: set[Any] = set()
        while self._changes:
            kind, partitions = self._changes.popleft()
            if kind == "revoked":
                revoked |= partitions
                assigned -= partitions
            else:
                assigned |= partitions
        if not revoked and not assigned:
            return set()
        starts = self._rebalanced(
            frozenset(self._logical(partition) for partition in revoked),
            frozenset(self._logical(partition) for partition in assigned),
        )
        for partition in assigned:
            start = starts.get(self._logical(partition))
            if start is None:
                start = _reached(
                    self._settings, "committed offset", partial(self._consumer.committed, partition)
                )
            try:
                if start is None:
                    self._consumer.seek_to_beginning(partition)
                else:
                    self._consumer.seek(partition, start)
                self._starts[partition] = start or 0
            except (IllegalStateError, AssertionError):
                # Taken away again meanwhile; the listener has noted that too.
                log.info("lost %s before reading it", partition)
        log.info("rebalanced: revoked %s, assigned %s", sorted(revoked), sorted(assigned))
        return assigned

    def commit(self, finished: Mapping[TopicPartition, int]) -> None:
        """Commit `finished`. A partition lost meanwhile is its new owner's to commit; one that came back is
        committed no lower than that owner did."""
        owned = self._consumer.assignment()
        offsets = {
            physical: kafka.OffsetAndMetadata(offset, "", -1)
            for partition, offset in finished.items()
            if (physical := self._physical(partition)) in owned and offset >= self._starts.get(physical, 0)
        }
        if not offsets:
            return

        def attempt() -> None:
            try:
                self._consumer.commit(offsets)
            except (CommitFailedError, RebalanceInProgressError) as error:
                log.warning("not committed, the group rebalances: %s", error)

        _reached(self._settings, "commit", attempt)

    def lag_records(self) -> int:
        """Records between the position and the last known end of the assigned partitions."""
        lag = 0
        for partition in self._consumer.assignment():
            end = self._consumer.highwater(partition)
            if end is not None:
                try:
                    lag += max(0, end - self._consumer.position(partition, timeout_ms=POSITION_MS))
                except KafkaError as error:  # for operators only: what cannot be said now is said next time
                    log.info("no position of %s: %s", partition, error)
        return lag


class Sink:
    """Writes outputs and returns only when the brokers have them all."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._prefix = settings.topic_prefix
        self._settings = settings
        self._producer = _reached(
            settings,
            "producer",
            lambda: KafkaProducer(
                **_broker(settings),
                acks="all",
                enable_idempotence=True,
                linger_ms=5,
                batch_size=256 * 1024,
                compression_type=None if settings.compression == "none" else settings.compression,
                max_request_size=topics.MAX_MESSAGE_BYTES,
                max_block_ms=int(settings.retry_s * 1000),
                delivery_timeout_ms=int(settings.retry_s * 1000),
                # Less than the delivery's, so that a request without an answer is sent once more in its time.
                request_timeout_ms=min(30_000, int(settings.retry_s * 500)),
                allow_auto_create_topics=False,
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            self._producer.close(timeout=self._settings.retry_s if error is None else 0)
        except KafkaError as left:
            # What is left unsent was not acknowledged to anybody; why we end must not be hidden by it.
            log.warning("the producer was left with unsent records: %s", left)

    def write(self, outputs: Sequence[Output]) -> None:
        """Send all and wait for every acknowledgement. Raises Unavailable when one does not come."""
        try:
            pending = [
                self._producer.send(
                    f"{self._prefix}{output.topic}",
                    value=output.value,
                    key=output.key,
                    headers=list(output.headers),
                    partition=output.partition,
                )
                for output in outputs
            ]
            if pending:
                # Bounded, for it may never end: where one batch expires after a broker was killed, an
                # idempotent producer can keep those of other partitions for ever (kafka-python 3.0.12).
                self._producer.flush(timeout=self._settings.retry_s + FLUSH_MARGIN_S)
            for future in pending:
                future.get(timeout=self._settings.retry_s)
        except KafkaError as error:
            raise Unavailable(f"Kafka did not take {len(outputs)} records: {error}") from error


def _record(name: str, message: Any) -> Record:
    """name: the topic's logical one."""
    return Record(
        topic=name,
        partition=message.partition,
        offset=message.offset,
        key=message.key,
        value=message.value or b"",
        headers=tuple(message.headers),
        timestamp_ms=message.timestamp,
    )


def _listens(server: str, timeout_s: float = 2.0) -> bool:
    host, _, port = server.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def check_answers(settings: KafkaSettings, timeout_s: float = 3.0) -> None:
    """Whether a broker speaks Kafka now; for another thread than the one whose client is in use.

    Asks for the API versions (KIP-35), the one request that needs nothing known. Raises Unavailable.
    """
    # Length, API key 18 version 0, correlation id 7, no client id.
    request = struct.pack(">ihhih", 10, 18, 0, 7, -1)
    errors = []
    for server in settings.bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as connection:
                connection.sendall(request)
                answer = connection.recv(8, socket.MSG_WAITALL)
        except OSError as error:
            errors.append(f"{server}: {error}")
            continue
        if len(answer) == 8 and struct.unpack(">ii", answer)[1] == 7:
            return
        errors.append(f"{server}: not a Kafka broker's answer")
    raise Unavailable(f"no broker answers: {'; '.join(errors)}")


class Tail:
    """What is written to one topic from now on: no group, no offsets, no promise that none is missed."""

    def __init__(self, settings: KafkaSettings, name: str, *, poll_timeout_s: float = 0.2) -> None:
        """Raises Unavailable at once when no broker answers; whoever follows a tail can do without it."""
        self._name = name
        self._poll_timeout_ms = int(poll_timeout_s * 1000)
        # A consumer whose constructor fails leaves its thread and sockets behind (kafka-python 3.0.12), and
        # whoever follows a tail tries again and again: knock first.
        if not any(_listens(server) for server in settings.bootstrap_servers.split(",")):
            raise Unavailable(f"nothing listens at {settings.bootstrap_servers}")
        try:
            self._consumer = KafkaConsumer(
                f"{settings.topic_prefix}{name}",
                bootstrap_servers=settings.bootstrap_servers.split(","),
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="latest",
                max_poll_records=settings.max_poll_records,
                fetch_max_wait_ms=settings.fetch_max_wait_ms,
                max_partition_fetch_bytes=topics.MAX_MESSAGE_BYTES,
                bootstrap_timeout_ms=5_000,
                allow_auto_create_topics=False,
            )
        except KafkaError as error:
            raise Unavailable(f"Kafka at {settings.bootstrap_servers} does not answer: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._consumer.close(autocommit=False)

    def poll(self) -> list[Record]:
        """What came meanwhile; none when nothing did, or when the broker is away. Raises Unavailable."""
        try:
            polled = self._consumer.poll(timeout_ms=self._poll_timeout_ms)
        except KafkaError as error:
            raise Unavailable(f"the tail of {self._name} cannot be read: {error}") from error
        return [_record(self._name, message) for batch in polled.values() for message in batch]


def read_all(settings: KafkaSettings, name: str) -> Iterator[Record]:
    """Every record a topic holds when this is called, partition by partition: no group, nothing committed.

    Raises ValueError when there is no such topic, Unavailable when the brokers stay away.
    """
    consumer = _reached(
        settings,
        "consumer",
        lambda: KafkaConsumer(
            **_broker(settings),
            group_id=None,
            enable_auto_commit=False,
            max_poll_records=settings.max_poll_records,
            fetch_max_wait_ms=settings.fetch_max_wait_ms,
            max_partition_fetch_bytes=topics.MAX_MESSAGE_BYTES,
            allow_auto_create_topics=False,
        ),
    )
    try:
        physical = f"{settings.topic_prefix}{name}"
        known = partial(consumer.partitions_for_topic, physical)
        numbers = _reached(settings, "partitions of a topic", known)
        if not numbers:
            raise ValueError(f"there is no topic {physical}")
        partitions = [kafka.TopicPartition(physical, number) for number in sorted(numbers)]
        starts = _reached(settings, "first offsets", partial(consumer.beginning_offsets, partitions))
        ends = _reached(settings, "last offsets", partial(consumer.end_offsets, partitions))
        for partition in partitions:
            consumer.assign([partition])
            consumer.seek(partition, starts[partition])
            silent_since_s = time.monotonic()
            while consumer.position(partition) < ends[partition]:
                polled = consumer.poll(timeout_ms=1_000).get(partition, [])
                if polled:
                    silent_since_s = time.monotonic()
                elif time.monotonic() - silent_since_s > settings.retry_s:
                    raise Unavailable(f"{physical} cannot be read: no answer for {settings.retry_s:.0f} s")
                yield from (_record(name, message) for message in polled if message.offset < ends[partition])
    finally:
        consumer.close(autocommit=False)


def delete_before(settings: KafkaSettings, name: str, offsets: Mapping[int, int]) -> None:
    """Delete the records of each partition below its offset, for good."""

    def attempt() -> None:
        admin = KafkaAdminClient(**_broker(settings))
        try:
            physical = f"{settings.topic_prefix}{name}"
            admin.delete_records(
                {kafka.TopicPartition(physical, partition): offset for partition, offset in offsets.items()}
            )
        finally:
            admin.close()

    _reached(settings, "delete records", attempt)


def create_topics(settings: KafkaSettings) -> None:
    """Create every missing topic with its partitions and retention. Running it again changes nothing."""
    wanted = {
        f"{settings.topic_prefix}{topic.name}": {
            "num_partitions": topic.partitions or settings.partitions,
            "replication_factor": settings.replication_factor,
            "configs": {
                "retention.ms": str(topic.retention_ms),
                "max.message.bytes": str(topic.max_message_bytes),
            },
        }
        for topic in topics.ALL
    }

    def attempt() -> None:
        admin = KafkaAdminClient(**_broker(settings))
        try:
            existing = set(admin.list_topics())
            missing = {name: options for name, options in wanted.items() if name not in existing}
            if missing:
                try:
                    admin.create_topics(missing, wait_for_metadata=True)
                except TopicAlreadyExistsError:
                    log.info("another process created the topics at the same time")
        finally:
            admin.close()

    _reached(settings, "create topics", attempt)


def check_partitions(settings: KafkaSettings) -> int:
    """The partition count of the topics of the join. Raises ValueError when they differ or one is missing.

    A partition number means the same posts in each of them; with unequal counts posts would wait for ever.
    """

    def attempt() -> dict[str, int]:
        admin = KafkaAdminClient(**_broker(settings))
        try:
            names = [f"{settings.topic_prefix}{topic.name}" for topic in topics.JOINED]
            return {
                description["name"]: len(description["partitions"])
                for description in admin.describe_topics(names)
            }
        finally:
            admin.close()

    counts = _reached(settings, "describe topics", attempt)
    if 0 in counts.values() or len(counts) != len(topics.JOINED):
        raise ValueError(
            f"topics of the join are missing ({counts}): run `crowdtone stack up`, or create them"
        )
    if len(set(counts.values())) != 1:
        raise ValueError(f"the topics of the join must have equal partition counts, but have {counts}")
    return int(next(iter(counts.values())))


class Group:
    """How far a consumer group has come, as the brokers know it: a consumer that hangs would not tell."""

    def __init__(self, settings: KafkaSettings, group: str, name: str) -> None:
        self._group = f"{settings.topic_prefix}{group}"
        self._topic = f"{settings.topic_prefix}{name}"
        self._settings = settings
        self._admin = _reached(
            settings,
            "admin client",
            lambda: KafkaAdminClient(bootstrap_servers=settings.bootstrap_servers.split(",")),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._admin.close()

    def progress(self) -> dict[int, tuple[int, int]]:
        """partition -> (next offset to be read after a restart, end). Raises Unavailable.

        A partition that was never committed stands at its beginning.
        """

        def attempt() -> dict[int, tuple[int, int]]:
            (description,) = self._admin.describe_topics([self._topic])
            partitions = [
                kafka.TopicPartition(self._topic, each["partition_index"])
                for each in description["partitions"]
            ]
            ends = self._admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
            starts = self._admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.EARLIEST))
            committed = self._admin.list_group_offsets({self._group: partitions})[self._group]
            return {
                each.partition: (
                    max(committed[each].offset if each in committed else 0, starts[each].offset),
                    ends[each].offset,
                )
                for each in partitions
            }

        found: dict[int, tuple[int, int]] = _reached(self._settings, "progress of a group", attempt)
        return found
