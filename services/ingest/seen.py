"""Which posts were produced before: their ids in Redis, and where a websocket was left.

Remembering comes after the brokers have the posts. A crash between the two costs a duplicate, which fusion
counts once anyway; the other order would cost a post. Without Redis everything is new.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import redis

log = logging.getLogger(__name__)

PAUSE_S: Final = 5.0
CURSOR_TTL_S: Final = 3 * 24 * 3600


class Seen:
    """Asks and marks in one round trip per batch; an absent Redis is asked again only every `PAUSE_S`."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        prefix: str,
        ttl_s: int,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """prefix: the deployment's topic prefix, so that two systems on one Redis keep apart."""
        self._client = client
        self._prefix = f"crowdtone:ingest:{prefix}"
        self._ttl_s = ttl_s
        self._enabled = enabled
        self._clock = clock
        self._away_until = -1.0
        self._warned = False

    def which(self, post_ids: Sequence[str]) -> list[bool]:
        """For each id, whether it was marked before; all False while Redis is away."""
        if not post_ids or not self._enabled or self._away():
            return [False] * len(post_ids)
        try:
            values = self._client.mget([self._key(post_id) for post_id in post_ids])
        except redis.RedisError as error:
            self._lost(error)
            return [False] * len(post_ids)
        self._warned = False
        return [value is not None for value in values]

    def mark(self, post_ids: Sequence[str]) -> None:
        """Remember ids that the brokers have acknowledged."""
        if not post_ids or not self._enabled or self._away():
            return
        pipeline = self._client.pipeline(transaction=False)
        for post_id in post_ids:
            pipeline.set(self._key(post_id), b"1", nx=True, ex=self._ttl_s)
        try:
            pipeline.execute()
        except redis.RedisError as error:
            self._lost(error)

    def cursor_us(self, url: str) -> int | None:
        """Where the stream at `url` was left; None when nobody knows."""
        try:
            value = self._client.get(f"{self._prefix}:cursor:{url}")
        except redis.RedisError as error:
            self._lost(error)
            return None
        return int(value) if isinstance(value, bytes) and value.isdigit() else None

    def leave_at(self, url: str, cursor_us: int) -> None:
        if self._away():
            return
        try:
            self._client.set(f"{self._prefix}:cursor:{url}", str(cursor_us), ex=CURSOR_TTL_S)
        except redis.RedisError as error:
            self._lost(error)

    def _key(self, post_id: str) -> str:
        return f"{self._prefix}:seen:{post_id}"

    def _away(self) -> bool:
        return self._clock() < self._away_until

    def _lost(self, error: redis.RedisError) -> None:
        self._away_until = self._clock() + PAUSE_S
        if not self._warned:
            log.warning("Redis is away, so a post that comes twice is produced twice: %s", error)
        self._warned = True
