"""Every fault: what is done to a running system, once, and when it may work again.

An injection returns when the harm is over: the process is dead, the server may start, the network is a cable
again. From then on the clock of recovery runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from protos.crowdtone.v1 import api_pb2
from shared.kafka import Group
from shared.settings import KafkaSettings
from tests.faults.clock import WallClock
from tests.faults.feed import Feed
from tests.faults.system import System, wait_until

OFFSET_COMMIT: Final = 8  # api key of the Kafka protocol
COMMITTED: Final = b"COMMIT\0"
REPLAYED: Final = 200
"""Records; each of `embeddings` is of up to some hundred posts."""
ALL: Final = 2**62


class CannotInject(Exception):
    """This machine cannot be harmed in this way; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What an injection can reach."""

    system: System
    feed: Feed
    random: random.Random
    last: bool = False


Inject = Callable[[Scene], None]
Recovered = Callable[[System], Callable[[], bool]]


def verdicts_are_enough(system: System) -> Callable[[], bool]:
    return lambda: True


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of the table.

    times: how often by default. around: what is set up for all its injections. plan: of its posts, where it
    is another than `Plan`'s. recovered: what must hold besides the verdicts of all posts offered by then;
    called when the harm ends, and what it returns is asked until it is true.
    """

    name: str
    what: str
    inject: Inject
    times: int = 20
    around: Callable[[System], AbstractContextManager[Any]] = lambda system: nullcontext()
    plan: dict[str, int] = field(default_factory=dict)
    recovered: Recovered = verdicts_are_enough


# Processes --------------------------------------------------------------------------------------------------


def kill_service(service: str) -> Inject:
    return lambda scene: scene.system.kill(service)


def kill_ingest(scene: Scene) -> None:
    scene.feed.kill()


def api_answers(system: System) -> Callable[[], bool]:
    def answers() -> bool:
        request = api_pb2.ListPostsRequest(filter=api_pb2.TrendFilter(topic="*"), page_size=1)
        try:
            return bool(system.pipeline.api.ListPosts(request, timeout=2).posts)
        except grpc.RpcError:
            return False

    return answers


def dashboard_answers(system: System) -> Callable[[], bool]:
    """The page shows the newest posts again."""
    address = f"http://127.0.0.1:{system.env['CROWDTONE_DASHBOARD_PORT']}/api/posts"

    def answers() -> bool:
        try:
            with urllib.request.urlopen(address, timeout=2) as answer:
                return bool(json.load(answer)["posts"])
        except OSError:  # also HTTPError: the API behind it is not there
            return False

    return answers


def alerts_catch_up(system: System) -> Callable[[], bool]:
    """The alerts' group has read everything that was in `sentiments` when the harm ended."""
    with Group(_kafka_settings(system), "alerts", "sentiments") as group:
        ends = {partition: end for partition, (_, end) in group.progress().items()}

    def caught_up() -> bool:
        with Group(_kafka_settings(system), "alerts", "sentiments") as group:
            return all(group.progress()[partition][0] >= end for partition, end in ends.items())

    return caught_up


def _kafka_settings(system: System) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=system.kafka_address)


def kill_server(server: str) -> Inject:
    def inject(scene: Scene) -> None:
        scene.system.end_server(server)
        time.sleep(scene.random.uniform(0, 3))
        scene.system.start_server(server)

    return inject


def storm(scene: Scene) -> None:
    """A member joins a group, works for some seconds, and leaves it in peace or by kill -9."""
    service = scene.random.choice(["fusion", "text_encoder"])
    with scene.system.extra(service) as member:
        time.sleep(scene.random.uniform(0.5, 4))
        if scene.random.random() < 0.5:
            scene.system.kill(member)
            wait_until(lambda: scene.system.pid(member) is None, 10)


def everything(scene: Scene) -> None:
    """kill -9 of what a post passes through, one after another, before any of it has recovered."""
    harms = [kill_service("fusion"), kill_service("text_encoder")]
    harms += [kill_server(server) for server in ("kafka", "postgres", "redis")]
    scene.random.shuffle(harms)
    for harm in harms:
        harm(scene)
        time.sleep(scene.random.uniform(0, 1))


@contextmanager
def second_members(system: System) -> Iterator[None]:
    """Somebody who takes over what a paused member has."""
    with system.extra("fusion"), system.extra("text_encoder"):
        yield


def pause(scene: Scene) -> None:
    """SIGSTOP beyond session timeout and max.poll.interval; then it goes on where it was, a zombie."""
    service = scene.random.choice(["fusion", "fusion", "text_encoder"])
    scene.system.kill(service, signal.SIGSTOP)
    time.sleep(scene.random.uniform(11, 14))
    scene.system.kill(service, signal.SIGCONT)


# Networks ---------------------------------------------------------------------------------------------------


def network(server: str) -> Inject:
    """One of: reset; refused for some seconds; silent for some seconds, then reset; slow for some seconds."""

    def inject(scene: Scene) -> None:
        proxy = scene.system.proxies[server]
        kind = scene.random.choice(["cut", "refuse", "stall", "slow"])
        seconds = scene.random.uniform(2, 8)
        if kind == "cut":
            proxy.cut()
        elif kind == "refuse":
            proxy.refuse()
            time.sleep(seconds)
        elif kind == "stall":
            proxy.stalled = True
            time.sleep(seconds)
            proxy.cut()
        else:
            proxy.delay_s = scene.random.uniform(0.05, 0.3)
            time.sleep(seconds)
        proxy.calm()

    return inject


def cut_at_commit(scene: Scene) -> None:
    """Postgres gets COMMIT and its answer never arrives; or COMMIT is lost, and the transaction with it."""
    proxy = scene.system.proxies["postgres"]
    arrives = scene.random.random() < 0.7
    seen = threading.Event()

    def watch(chunk: bytes) -> bool:
        if seen.is_set() or COMMITTED not in chunk:
            return True
        seen.set()
        if not arrives:
            proxy.cut_here()
            return False
        proxy.deaf = True
        return True

    proxy.watch = watch
    if seen.wait(30):
        time.sleep(0.3)
        proxy.cut()
    proxy.calm()


def kill_broker_at_commit(scene: Scene) -> None:
    """kill -9 of the broker while an OffsetCommit request is on its way."""
    proxy = scene.system.proxies["kafka"]
    seen = threading.Event()

    def watch(chunk: bytes) -> bool:
        if len(chunk) >= 6:
            length, api_key = struct.unpack(">ih", chunk[:6])
            if api_key == OFFSET_COMMIT and length <= len(chunk) - 4:
                seen.set()
        return True

    proxy.watch = watch
    seen.wait(30)
    scene.system.end_server("kafka", scene.random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
    proxy.watch = lambda chunk: True
    scene.system.start_server("kafka")


# Disk, clock, topics ----------------------------------------------------------------------------------------


@contextmanager
def small_store(system: System) -> Iterator[None]:
    if not system.store_is_small:
        raise CannotInject("only root may mount the small file system that is filled up")
    yield


def fill_disk(scene: Scene) -> None:
    """Not a byte left in the media store for some seconds."""
    filler = scene.system.store / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024 * 1024) if _left(scene.system.store) > 1024 * 1024 else bytes(512))
    time.sleep(scene.random.uniform(2, 8))
    filler.unlink()


def _left(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


@contextmanager
def own_clock(system: System) -> Iterator[None]:
    """The services again, and every ingest, with a wall clock of their own; the monotonic one stays true."""
    try:
        clock = WallClock(system.directory)
    except FileNotFoundError as missing:
        raise CannotInject("there is no gcc: apt-get install gcc libc6-dev") from missing
    system.stop_services()
    with ExitStack() as undo:
        system.run_services(**clock.env)

        def back() -> None:
            system.stop_services()
            system.run_services()

        undo.callback(back)
        fusion = system.pid("fusion")
        assert fusion is not None
        assert clock.rules(fusion), "what the services are forked from has another clock"
        system.clock = clock
        yield


def jump(scene: Scene) -> None:
    """All services' wall clocks jump: by up to six hours off the true time, either way, or back to it."""
    assert scene.system.clock is not None
    scene.system.clock.set(scene.random.choice([0, 1, -1]) * scene.random.randint(1, 21_600))


def replay(scene: Scene) -> None:
    """Records come again, in another order; or fusion starts over from an older offset, in the end from 0."""
    if scene.last or scene.random.random() < 0.3:
        back = ALL if scene.last else scene.random.randint(1, REPLAYED)
        scene.system.rows(
            "UPDATE offset_ledger SET next_offset = greatest(0, next_offset - %s) WHERE topic = 'embeddings'",
            back,
        )
        scene.system.kill("fusion")
        return
    topic = scene.random.choice(["posts", "embeddings"])
    again = _newest(scene.system, topic, REPLAYED)
    scene.random.shuffle(again)
    producer = KafkaProducer(bootstrap_servers=scene.system.kafka_address, max_request_size=8 * 1024 * 1024)
    try:
        for record in again:
            producer.send(
                topic, record.value, key=record.key, headers=list(record.headers), partition=record.partition
            )
        producer.flush()
    finally:
        producer.close()


def _newest(system: System, topic: str, count: int) -> list[Any]:
    """About the newest `count` records of a topic."""
    consumer = KafkaConsumer(
        bootstrap_servers=system.kafka_address,
        group_id=None,
        enable_auto_commit=False,
        max_partition_fetch_bytes=8 * 1024 * 1024,
    )
    try:
        partitions = [
            TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))
        ]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        for each in partitions:
            consumer.seek(each, max(0, ends[each] - count // len(partitions)))
        found: list[Any] = []
        while any(consumer.position(each) < ends[each] for each in partitions):
            for batch in consumer.poll(timeout_ms=500).values():
                found += batch
        return found
    finally:
        consumer.close()


MIX: Final = Fault(
    "mix",
    "kill -9 of fusion, text encoder, Kafka, Postgres, Redis at once",
    everything,
    times=10,
    plan={"image_every": 1, "sound_every": 1},  # no pictures, no sounds: two services are enough for them
)
FAULTS: Final = (
    MIX,
    # Early: it reads whatever the faults before it left, 20 times.
    Fault("replay", "records again and out of order; fusion from offset 0", replay),
    Fault("kill-text-encoder", "kill -9 of the text encoder", kill_service("text_encoder")),
    Fault(
        "kill-image-encoder",
        "kill -9 of the image encoder",
        kill_service("image_encoder"),
        plan={"image_every": 25},
    ),
    Fault(
        "kill-audio-encoder",
        "kill -9 of the audio encoder",
        kill_service("audio_encoder"),
        plan={"sound_every": 100},
    ),
    Fault("kill-fusion", "kill -9 of fusion", kill_service("fusion")),
    Fault("kill-api", "kill -9 of the API", kill_service("api"), recovered=api_answers),
    Fault("kill-alerts", "kill -9 of alerts", kill_service("alerts"), recovered=alerts_catch_up),
    Fault(
        "kill-dashboard", "kill -9 of the dashboard", kill_service("dashboard"), recovered=dashboard_answers
    ),
    Fault("kill-ingest", "kill -9 of ingest", kill_ingest),
    Fault("kill-kafka", "kill -9 of Kafka", kill_server("kafka")),
    Fault("kill-postgres", "kill -9 of Postgres", kill_server("postgres")),
    Fault("kill-redis", "kill -9 of Redis, which forgets all", kill_server("redis")),
    Fault("storm", "members join and leave: fusion, text encoder", storm),
    Fault("network-kafka", "Kafka cut off, refused, silent, slow", network("kafka")),
    Fault("network-postgres", "Postgres cut off, refused, silent, slow", network("postgres")),
    Fault("network-redis", "Redis cut off, refused, silent, slow", network("redis")),
    Fault("commit-postgres", "connection lost at COMMIT", cut_at_commit),
    Fault("commit-kafka", "broker killed or restarted during an offset commit", kill_broker_at_commit),
    Fault(
        "disk-full",
        "media store full",
        fill_disk,
        around=small_store,
        plan={"image_every": 20, "picture_bytes": 24_000},
    ),
    Fault("zombie", "SIGSTOP beyond max.poll.interval", pause, around=second_members),
    Fault("clock", "the services' clock jumps by up to 6 h", jump, around=own_clock),
)
