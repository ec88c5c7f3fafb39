"""What a process tells operators about itself: one expiring Redis key per instance.

Losing Redis blinds the dashboard and nothing else, so a failure here is logged once and passed over.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections import deque
from dataclasses import asdict, dataclass
from typing import Final

import psutil
import redis

from shared.settings import RedisSettings

log = logging.getLogger(__name__)

KEY_PREFIX: Final = "crowdtone:service:"
EXPIRY_S: Final = 15
RATE_WINDOW_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """One process as it last reported. Times are seconds since the epoch."""

    service: str
    instance: str
    start_time_s: float
    report_time_s: float
    posts: int
    dead_letters: int
    posts_per_s: float
    lag_records: int
    memory_bytes: int


class Heartbeat:
    """Reports at most every `interval_s`, from the loop itself: a loop that hangs goes silent."""

    def __init__(self, client: redis.Redis, service: str, *, interval_s: float, now: float) -> None:
        self._client = client
        self._service = service
        self._instance = f"{socket.gethostname()}:{os.getpid()}"
        self._interval_s = interval_s
        self._start_time_s = now
        self._next_s = now
        self._history: deque[tuple[float, int]] = deque([(now, 0)])
        self._failing = False

    def due(self, now: float) -> bool:
        return now >= self._next_s

    def beat(self, *, now: float, posts: int, dead_letters: int, lag_records: int) -> None:
        self._next_s = now + self._interval_s
        self._history.append((now, posts))
        while len(self._history) > 2 and self._history[1][0] <= now - RATE_WINDOW_S:
            self._history.popleft()
        then, posts_then = self._history[0]
        report = ServiceReport(
            service=self._service,
            instance=self._instance,
            start_time_s=self._start_time_s,
            report_time_s=now,
            posts=posts,
            dead_letters=dead_letters,
            posts_per_s=(posts - posts_then) / (now - then) if now > then else 0.0,
            lag_records=lag_records,
            memory_bytes=psutil.Process().memory_info().rss,
        )
        try:
            self._client.set(
                f"{KEY_PREFIX}{report.service}:{report.instance}", json.dumps(asdict(report)), ex=EXPIRY_S
            )
            self._failing = False
        except redis.RedisError as error:
            if not self._failing:
                log.warning("the dashboard does not see this process while Redis is away: %s", error)
            self._failing = True


def connect(settings: RedisSettings) -> redis.Redis:
    """A client that gives up after `timeout_s`: what it holds is never worth waiting for."""
    return redis.Redis.from_url(
        settings.url.get_secret_value(),
        socket_timeout=settings.timeout_s,
        socket_connect_timeout=settings.timeout_s,
        decode_responses=False,
    )


def reports(client: redis.Redis) -> list[ServiceReport]:
    """All processes that reported lately, by service and instance. Raises redis.RedisError."""
    keys = sorted(client.scan_iter(match=f"{KEY_PREFIX}*"))
    values = client.mget(keys) if keys else []
    return [ServiceReport(**json.loads(value)) for value in values if value is not None]
