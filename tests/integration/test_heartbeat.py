"""What operators see of each process, in a real Redis."""

from __future__ import annotations

import logging
import os

import pytest

from shared.heartbeat import EXPIRY_S, KEY_PREFIX, Heartbeat, connect, reports
from shared.settings import RedisSettings


def test_a_process_reports_its_figures_until_it_stops(redis: RedisSettings) -> None:
    with connect(redis) as client:
        heartbeat = Heartbeat(client, "fusion", interval_s=2, now=1000)
        assert heartbeat.due(1000)
        heartbeat.beat(now=1000, posts=0, dead_letters=0, lag_records=50)
        assert not heartbeat.due(1001.9)
        assert heartbeat.due(1002)
        heartbeat.beat(now=1002, posts=100, dead_letters=3, lag_records=7)
        (report,) = reports(client)
        assert (report.service, report.posts, report.dead_letters, report.lag_records) == (
            "fusion",
            100,
            3,
            7,
        )
        assert (report.start_time_s, report.report_time_s, report.posts_per_s) == (1000, 1002, 50)
        assert report.instance.endswith(f":{os.getpid()}")
        assert report.memory_bytes > 10 * 2**20
        (key,) = client.keys(f"{KEY_PREFIX}*")
        assert 0 < client.ttl(key) <= EXPIRY_S
        client.delete(key)  # as expiry does
        assert reports(client) == []


def test_the_rate_is_that_of_the_last_seconds(redis: RedisSettings) -> None:
    with connect(redis) as client:
        heartbeat = Heartbeat(client, "fusion", interval_s=2, now=0)
        for second in range(0, 102, 2):
            heartbeat.beat(now=second, posts=10 * second, dead_letters=0, lag_records=0)
        for second in range(102, 130, 2):
            heartbeat.beat(now=second, posts=1000, dead_letters=0, lag_records=0)
        assert reports(client)[0].posts_per_s == 0


def test_all_processes_are_listed_by_name(redis: RedisSettings) -> None:
    with connect(redis) as client:
        for service in ("text_encoder", "fusion", "ingest"):
            Heartbeat(client, service, interval_s=2, now=0).beat(
                now=1, posts=1, dead_letters=0, lag_records=0
            )
        assert [report.service for report in reports(client)] == ["fusion", "ingest", "text_encoder"]


def test_without_redis_it_warns_once_and_goes_on(
    redis: RedisSettings, caplog: pytest.LogCaptureFixture
) -> None:
    away = RedisSettings.model_validate({"url": "redis://127.0.0.1:1/0"})
    with connect(away) as nobody, connect(redis) as client, caplog.at_level(logging.WARNING):
        heartbeat = Heartbeat(nobody, "fusion", interval_s=1, now=0)
        for second in range(5):
            heartbeat.beat(now=second, posts=0, dead_letters=0, lag_records=0)
        heartbeat._client = client  # it comes back
        heartbeat.beat(now=6, posts=1, dead_letters=0, lag_records=0)
        assert len(reports(client)) == 1
    assert len(caplog.records) == 1
