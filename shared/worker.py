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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from shared import metrics
from shared.errors import Unavailable
from shared.health import Health
from shared.heartbeat import Heartbeat
from shared.messages import Output, Record, Result, Step, TopicPartition

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
    turns: int = 1,
    heartbeat: Heartbeat | None = None,
    health: Health | None = None,
    clock: Callable[[], float] = time.time,
) -> None:
    """Read, step, write, commit, until `stopped()`; the turns under way are finished first.

    turns: so many at once, each stepping and writing in a thread of its own while the next is read, so that
    no post waits for another one's turn and no model for Kafka. They are committed in the order in which they
    were read. For a step that any threads may be in; it is never asked about nothing while one is.
    Raises TooManyDeadLetters after `dead_letter_limit` dead letters with not one good post between them, and
    whatever the step, the source or the sink raise: the offsets of that turn and later ones stay uncommitted.
    """
    posts = dead_letters = in_a_row = 0
    under_way: deque[Future[Result]] = deque()

    def turn(records: Sequence[Record]) -> Result:
        began = time.perf_counter()
        result = step(records, clock())
        sink.write(result.outputs)
        if records:
            metrics.STEP_SECONDS.labels(service).observe(time.perf_counter() - began)
        return result

    def finish(result: Result) -> None:
        nonlocal posts, dead_letters, in_a_row
        dead = sum(1 for output in result.outputs if output.topic.endswith(".dlq"))
        in_a_row = 0 if result.posts else in_a_row + dead
        source.commit(result.finished)
        if in_a_row >= dead_letter_limit:
            raise TooManyDeadLetters(in_a_row)
        posts += result.posts
        dead_letters += dead
        metrics.POSTS.labels(service).inc(result.posts)
        metrics.DEAD_LETTERS.labels(service).inc(dead)

    with ThreadPoolExecutor(turns, thread_name_prefix="turn") as threads:
        while not stopped():
            if health is not None and not under_way:
                health.turned()
            records = source.poll()
            if turns > 1 and records:
                under_way.append(threads.submit(turn, records))
            elif not under_way:
                finish(turn(records))
            while under_way and (len(under_way) == turns or under_way[0].done()):
                finish(under_way.popleft().result())
                if health is not None:
                    health.turned()
            now = clock()
            if heartbeat is not None and heartbeat.due(now):
                lag = source.lag_records()
                metrics.LAG.labels(service).set(lag)
                heartbeat.beat(now=now, posts=posts, dead_letters=dead_letters, lag_records=lag)
        while under_way:
            finish(under_way.popleft().result())


def on_sigterm() -> Callable[[], bool]:
    """Turns SIGTERM and SIGINT into a question: has one come?

    It is answered though the main thread is stuck in a model or a library, where Python runs no handler: the
    interpreter writes the signal's number to a pipe at once, which a thread of its own reads.
    """
    event = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def note(number: int, frame: object) -> None:
        event.set()

    for number in numbers:
        signal.signal(number, note)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def wait() -> None:
        while os.read(reading, 1)[0] not in numbers:
            pass
        event.set()

    threading.Thread(target=wait, name="signals", daemon=True).start()
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
