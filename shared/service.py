"""What services are wired to: health, heartbeat, Kafka and the loop by serve(), and the encoders' cache."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from functools import partial

from pydantic import BaseModel

from shared import health, heartbeat, kafka, worker
from shared.embedding_cache import EmbeddingCache
from shared.encoding import Encoder
from shared.kafka import Rebalanced
from shared.messages import Step
from shared.settings import EmbeddingCacheSettings, KafkaSettings, RedisSettings, WorkerSettings
from shared.topics import Topic


def embedding_cache(encoder: Encoder, *shaped_by: BaseModel) -> EmbeddingCache | None:
    """The cache of this encoder under these settings, or None where it is switched off."""
    settings = EmbeddingCacheSettings()
    if not settings.ttl_s:
        return None
    client = heartbeat.connect(RedisSettings())
    prefix = KafkaSettings().topic_prefix
    return EmbeddingCache(client, encoder, *shaped_by, ttl_s=settings.ttl_s, prefix=prefix)


def settle() -> None:
    """Leave what lives now, the model and all that was imported, to itself, and look for cycles rarely.

    Python's collector walks all of it each time the messages of a step outgrow a quarter of it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def serve(
    service: str,
    topic: Topic,
    step: Step,
    *,
    stopped: Callable[[], bool],
    max_poll_records: int,
    turns: int = 1,
    rebalanced: Rebalanced = kafka.from_committed,
    checks: Mapping[str, health.Check] | None = None,
) -> None:
    """Run `step` on the records of `topic`, as a member of the consumer group named like the service.

    turns: of the loop at once (`worker.run`).
    checks: of what the service needs besides Kafka, by name, for /readyz.
    Raises ValueError when the topics of the join have unequal partition counts, and what `worker.run` raises.
    """
    loop, broker = WorkerSettings(), KafkaSettings(max_poll_records=max_poll_records)
    known = health.Health(
        stall_s=loop.stall_s, checks={"kafka": partial(kafka.check_answers, broker)} | dict(checks or {})
    )
    health.serve(loop.metrics_port, known)
    health.end_after(stopped, loop.drain_s)
    kafka.check_partitions(broker)
    beats = heartbeat.Heartbeat(
        heartbeat.connect(RedisSettings()), service, interval_s=loop.heartbeat_s, now=time.time()
    )
    with (
        kafka.Sink(broker) as sink,
        kafka.Source(broker, [topic.name], service, rebalanced=rebalanced) as source,
    ):
        settle()
        try:
            worker.run(
                service,
                source,
                step,
                sink,
                stopped=stopped,
                dead_letter_limit=loop.dead_letter_limit,
                turns=turns,
                heartbeat=beats,
                health=known,
            )
        finally:
            known.ended()
