"""Every Kafka topic: name, partitions, retention, who writes it and who reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DAY_MS: Final = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. `partitions` None means the deployment's count, which all topics of the join share."""

    name: str
    partitions: int | None
    retention_ms: int
    max_message_bytes: int
    written_by: tuple[str, ...]
    read_by: tuple[str, ...]

    @property
    def dead_letters(self) -> str:
        """The topic for records of this one that cannot be read."""
        return dead_letters(self.name)


def dead_letters(topic: str) -> str:
    return f"{topic}.dlq"


MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024

ENCODERS: Final = ("text_encoder", "image_encoder", "audio_encoder")
POSTS: Final = Topic("posts", None, 7 * DAY_MS, MAX_MESSAGE_BYTES, ("ingest",), ENCODERS)
EMBEDDINGS: Final = Topic("embeddings", None, 7 * DAY_MS, MAX_MESSAGE_BYTES, ENCODERS, ("fusion",))
SENTIMENTS: Final = Topic("sentiments", None, 7 * DAY_MS, MAX_MESSAGE_BYTES, ("fusion",), ("alerts", "api"))
ALERTS: Final = Topic("alerts", 1, 30 * DAY_MS, MAX_MESSAGE_BYTES, ("alerts",), ("api",))
# What ingest could not read never was on a topic of ours: its dead letters are those of `feed`.
FEED: Final = "feed"

JOINED: Final = (POSTS, EMBEDDINGS)
"""Topics whose partition numbers mean the same posts; a start-up check refuses unequal counts."""


def _dlq(name: str) -> Topic:
    return Topic(dead_letters(name), 1, 30 * DAY_MS, MAX_MESSAGE_BYTES, ("any",), ("people",))


ALL: Final = (
    POSTS,
    EMBEDDINGS,
    SENTIMENTS,
    ALERTS,
    _dlq(FEED),
    *(_dlq(topic.name) for topic in (POSTS, EMBEDDINGS, SENTIMENTS, ALERTS)),
)
