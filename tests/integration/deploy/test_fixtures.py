"""The servers that other tests stand on: each test has its own place in them."""

from __future__ import annotations

import redis as redis_client
import sqlalchemy as sa

from shared.kafka import check_partitions
from shared.settings import KafkaSettings, PostgresSettings, RedisSettings


def test_each_test_has_topics_of_its_own(kafka: KafkaSettings) -> None:
    assert kafka.topic_prefix
    assert check_partitions(kafka) == kafka.partitions


def test_redis_is_empty(redis: RedisSettings) -> None:
    with redis_client.Redis.from_url(redis.url.get_secret_value()) as client:
        assert client.dbsize() == 0
        client.set("left", "over")


def test_redis_is_empty_again(redis: RedisSettings) -> None:
    with redis_client.Redis.from_url(redis.url.get_secret_value()) as client:
        assert client.dbsize() == 0


def test_a_database_is_migrated_and_its_own(postgres: PostgresSettings) -> None:
    engine = sa.create_engine(postgres.url.get_secret_value())
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM alembic_version")).scalar_one() == 1
    engine.dispose()
