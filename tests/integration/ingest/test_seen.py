"""What Redis remembers of earlier posts, and that nothing depends on it."""

from __future__ import annotations

import logging

import pytest
import redis as redis_py

from services.ingest.seen import Seen
from shared import heartbeat
from shared.settings import RedisSettings


def make(client: redis_py.Redis, **changes: object) -> Seen:
    return Seen(client, **({"prefix": "", "ttl_s": 100} | changes))  # type: ignore[arg-type]


def test_what_was_marked_is_known_until_it_expires(redis: RedisSettings) -> None:
    with heartbeat.connect(redis) as client:
        seen = make(client)
        assert seen.which(["x:a", "x:b"]) == [False, False]
        seen.mark(["x:a"])
        assert seen.which(["x:b", "x:a", "x:a"]) == [False, True, True]
        (key,) = client.keys("crowdtone:ingest:*")
        assert 0 < client.ttl(key) <= 100
        client.expire(key, 0)
        assert seen.which(["x:a"]) == [False]


def test_marking_again_does_not_make_it_last_longer(redis: RedisSettings) -> None:
    with heartbeat.connect(redis) as client:
        make(client, ttl_s=5).mark(["x:a"])
        make(client, ttl_s=500).mark(["x:a"])
        (key,) = client.keys("crowdtone:ingest:*")
        assert client.ttl(key) <= 5


def test_two_systems_on_one_redis_keep_apart(redis: RedisSettings) -> None:
    with heartbeat.connect(redis) as client:
        make(client, prefix="one.").mark(["x:a"])
        assert make(client, prefix="two.").which(["x:a"]) == [False]
        assert make(client, prefix="one.").which(["x:a"]) == [True]


def test_a_disabled_memory_knows_and_keeps_nothing(redis: RedisSettings) -> None:
    with heartbeat.connect(redis) as client:
        make(client).mark(["x:a"])
        seen = make(client, enabled=False)
        assert seen.which(["x:a"]) == [False]
        seen.mark(["x:b"])
        assert make(client).which(["x:b"]) == [False]


def test_where_a_stream_was_left(redis: RedisSettings) -> None:
    with heartbeat.connect(redis) as client:
        seen = make(client)
        assert seen.cursor_us("wss://a/") is None
        seen.leave_at("wss://a/", 123)
        assert seen.cursor_us("wss://a/") == 123
        assert seen.cursor_us("wss://b/") is None


def test_without_redis_all_is_new_one_warning_is_given_and_it_is_not_asked_every_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    with heartbeat.connect(RedisSettings(url="redis://127.0.0.1:1/0")) as client:
        asked = 0
        plain_mget = client.mget

        def mget(keys: list[str]) -> object:
            nonlocal asked
            asked += 1
            return plain_mget(keys)

        client.mget = mget
        seen = Seen(client, prefix="", ttl_s=5, clock=lambda: now)
        with caplog.at_level(logging.WARNING):
            for _ in range(10):
                assert seen.which(["x:a"]) == [False]
                seen.mark(["x:a"])
        assert asked == 1
        now = 6.0
        assert seen.which(["x:a"]) == [False]
        assert asked == 2
    assert len([record for record in caplog.records if "Redis is away" in record.message]) == 1
