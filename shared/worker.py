"""run(): the one loop of every service that reads a topic.

At least once: outputs are durable before their inputs are forgotten. An empty read still steps, for that
is how a step notices that time has passed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from shared import metrics
from shared.errors import Unavailable
from shared.health import Health
from shared.heartbeat import Heartbeat
from shared.messages import Output, Record, Step, TopicPartition

log = logging.getLogger(__name__)


class Readable(Protocol):
    """What the loop needs of a source; `shared.kafka.Source` is one, `shared.testing.FakeSource` another."""

    def poll(self) -> list[Record]: ...
    def commit(self, finished: Mapping[TopicPartition, int]) -> None: ...
    def lag_records(self) -> int: ...


class Writable(Protocol):
    """What the loop needs of a sink."""

    def write(self, outputs: Sequence[Output]) -> None: ...


class TooManyDeadLetters(RuntimeError):
    """So many in a row point at this build, not at the data: better stop than drain the topic."""

    def __init__(self, in_a_row: int) -> None:
        super().__init__(
            f"{in_a_row} dead letters in a row; the `reason` header of each, on its .dlq topic, says why"
        )


def run(
    service: str,
    source: Readable,
    step: Step,
    sink: Writable,
    *,
    stopped: Callable[[], bool],
    dead_letter_limit: int,
    heartbeat: Heartbeat | None = None,
    health: Health | None = None,
    clock: Callable[[], float] = time.time,
) -> None:
    """Read, step, write, commit, until `stopped()`; the turn under way is finished first.

    Raises TooManyDeadLetters after `dead_letter_limit` dead letters with not one good post between them, and
    whatever the step, the source or the sink raise: the offsets of that turn stay uncommitted.
    """
    posts = dead_letters = in_a_row = 0
    while not stopped():
        if health is not None:
            health.turned()
        records = source.poll()
        began = time.perf_counter()
        result = step(records, clock())
        dead = sum(1 for output in result.outputs if output.topic.endswith(".dlq"))
        in_a_row = 0 if result.posts else in_a_row + dead
        sink.write(result.outputs)
        source.commit(result.finished)
        if in_a_row >= dead_letter_limit:
            raise TooManyDeadLetters(in_a_row)
        posts += result.posts
        dead_letters += dead
        metrics.POSTS.labels(service).inc(result.posts)
        metrics.DEAD_LETTERS.labels(service).inc(dead)
        if records:
            metrics.STEP_SECONDS.labels(service).observe(time.perf_counter() - began)
        now = clock()
        if heartbeat is not None and heartbeat.due(now):
            lag = source.lag_records()
            metrics.LAG.labels(service).set(lag)
            heartbeat.beat(now=now, posts=posts, dead_letters=dead_letters, lag_records=lag)


def on_sigterm() -> Callable[[], bool]:
    """Turns SIGTERM and SIGINT into a question: has one come?"""
    event = threading.Event()

    def note(number: int, frame: object) -> None:
        event.set()

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return event.is_set


def main(service: str, body: Callable[[], None], *, log_level: str = "INFO") -> None:
    """Run a service's body: logs to standard error; exit 75 (EX_TEMPFAIL) when a dependency stayed away."""
    logging.basicConfig(
        level=log_level, format=f"%(asctime)s %(levelname)s {service}[{os.getpid()}] %(name)s: %(message)s"
    )
    logging.getLogger("kafka").setLevel(logging.WARNING)
    # It warns of every 0.1 s its thread did not run, which on a busy machine is all the time.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
    try:
        body()
    except Unavailable as error:
        log.error("%s; exiting with offsets uncommitted", error)
        sys.exit(75)
