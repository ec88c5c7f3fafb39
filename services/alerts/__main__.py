"""The alerts service: settings -> objects -> run.

Three threads: Faust counts what arrives, the judge judges what that touched, the watch reports to operators
and ends the process when the others hang. Whatever fails ends all of it at once: a start finds everything
again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

import psutil

from services.alerts import app as faust_app
from services.alerts.pending import Pending
from services.alerts.settings import GROUP, AlertsSettings, DetectSettings
from services.alerts.stall import Stall
from services.alerts.store import AlertStore
from shared import codec, db, heartbeat, kafka, metrics, topics, worker
from shared.errors import Unavailable
from shared.messages import Alert, Record
from shared.settings import KafkaSettings, PostgresSettings, RedisSettings, WorkerSettings, local_dir

SERVICE: Final = "alerts"
JUDGE_S: Final = 0.5
WATCH_S: Final = 1.0
HANG_S: Final = 30.0

log = logging.getLogger(__name__)


def end(error: BaseException) -> NoReturn:
    """End the process from any thread; nothing is lost by it. 75 where trying again can help, else 1."""
    log.error("%s", error, exc_info=None if isinstance(error, Unavailable) else error)
    logging.shutdown()
    os._exit(75 if isinstance(error, Unavailable) else 1)


def own_folder(parent: Path) -> Path:
    """A folder for this process alone, as Faust needs one; those of processes that were killed are removed.

    With its table in memory Faust keeps nothing in it.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.iterdir():
        if left.name.isdecimal() and not psutil.pid_exists(int(left.name)):
            shutil.rmtree(left, ignore_errors=True)
    own = parent / str(os.getpid())
    own.mkdir(exist_ok=True)
    return own


class Service:
    """The objects that the three threads share."""

    def __init__(self) -> None:
        self.loop = WorkerSettings()
        self.settings = AlertsSettings()
        self.broker = KafkaSettings()
        detection = DetectSettings()
        postgres = PostgresSettings()
        self.pending = Pending(
            self.settings, window_s=detection.window_s, baseline_windows=detection.baseline_windows
        )
        self.store = AlertStore(db.engine(postgres), detection, retry_s=postgres.retry_s)
        self.sink = kafka.Sink(self.broker)
        self.sink_lock = threading.Lock()
        self.handled = faust_app.Handled()
        self.turned = time.monotonic()
        self.owned: frozenset[int] = frozenset()
        self.restored: int | None = None

    def write(self, alerts: Sequence[Alert]) -> None:
        with self.sink_lock:
            self.sink.write([codec.encode_alert(alert) for alert in alerts])
        for alert in alerts:
            metrics.ALERTS.labels(alert.kind, alert.state.name.lower()).inc()
            log.info("%s is %s (revision %d)", alert.alert_id, alert.state.name.lower(), alert.revision)

    def dead_letter(self, record: Record, reason: str) -> None:
        if self.handled.dead_letters_in_a_row > self.loop.dead_letter_limit:
            raise worker.TooManyDeadLetters(self.loop.dead_letter_limit)
        with self.sink_lock:
            letter = codec.dead_letter(record, service=SERVICE, reason=reason, time=datetime.now(UTC))
            self.sink.write([letter])

    def judge(self, *, everything: bool = False) -> None:
        """Judge what is due, then publish what is not published, whoever found it."""
        due = self.pending.take(time.time(), everything=everything)
        for topic, starts_s in due.items():
            self.store.judge(topic, starts_s, datetime.now(UTC))
        self.store.publish(self.write)

    def sweep(self) -> None:
        """Judge the newest windows of every topic, whatever Faust made of their records."""
        for topic, starts_s in self.store.newest(self.settings.sweep_windows).items():
            self.store.judge(topic, starts_s, datetime.now(UTC))


def judging(service: Service, stopped: threading.Event) -> None:
    try:
        swept = float("-inf")
        while not stopped.wait(JUDGE_S):
            if time.monotonic() >= swept + service.settings.sweep_s:
                swept = time.monotonic()
                service.sweep()
            service.judge()
    except BaseException as error:
        end(error)


def watching(service: Service, stopped: threading.Event) -> None:
    try:
        client = heartbeat.connect(RedisSettings())
        beats = heartbeat.Heartbeat(client, SERVICE, interval_s=service.loop.heartbeat_s, now=time.time())
        stall = Stall(service.settings.stall_s)
        counted = faust_app.Handled()
        with kafka.Group(service.broker, GROUP, topics.SENTIMENTS.name) as group:
            while not stopped.wait(WATCH_S):
                now = time.monotonic()
                if now - service.turned > HANG_S:
                    raise Unavailable(f"the event loop has not turned for {HANG_S:.0f} s")
                progress = group.progress()
                if still := stall.seen(progress, service.owned, now, restored=service.restored):
                    raise Unavailable(
                        f"no progress for {service.settings.stall_s:.0f} s in partitions {sorted(still)} "
                        f"of {topics.SENTIMENTS.name} (committed, end): {progress}"
                    )
                lag = sum(max(0, last - next_) for next_, last in progress.values())
                posts, dead = service.handled.posts, service.handled.dead_letters
                metrics.LAG.labels(SERVICE).set(lag)
                metrics.POSTS.labels(SERVICE).inc(posts - counted.posts)
                metrics.DEAD_LETTERS.labels(SERVICE).inc(dead - counted.dead_letters)
                counted = faust_app.Handled(posts, dead)
                if beats.due(time.time()):
                    beats.beat(now=time.time(), posts=posts, dead_letters=dead, lag_records=lag)
    except BaseException as error:
        end(error)


def run() -> None:
    for talkative in ("faust", "mode", "aiokafka"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    service = Service()
    stopped = worker.on_sigterm()
    metrics.serve(service.loop.metrics_port)
    with kafka.Group(service.broker, GROUP, topics.SENTIMENTS.name) as group:
        partitions = len(group.progress())
    app = faust_app.build(
        service.broker,
        service.pending,
        partitions=partitions,
        keep_windows=service.settings.keep_windows,
        datadir=own_folder(local_dir() / "alerts"),
        dead_letter=service.dead_letter,
        failed=end,
        handled=service.handled,
    )

    def turn() -> None:
        service.turned = time.monotonic()
        if app.consumer.started:
            service.owned = frozenset(each.partition for each in app.consumer.assignment())
            service.restored = faust_app.restored(app)

    def draining() -> bool:
        """Whether a signal came; from then on there is `drain_s` to end."""
        if stopped() and not late.is_alive():
            late.start()
        return stopped()

    drain_s = service.settings.drain_s
    late = threading.Timer(drain_s, end, [TimeoutError(f"not drained within {drain_s:.0f} s")])
    late.daemon = True
    ended = threading.Event()
    threads = [
        threading.Thread(target=each, args=(service, ended), name=each.__name__, daemon=True)
        for each in (judging, watching)
    ]
    for thread in threads:
        thread.start()
    asyncio.run(faust_app.serve(app, draining, turn, end))
    ended.set()
    for thread in threads:
        thread.join()
    service.judge(everything=True)
    late.cancel()
    log.info("drained")


if __name__ == "__main__":
    worker.main(SERVICE, run, log_level=WorkerSettings().log_level)
