"""Fakes with the behaviour of the real thing, and builders. The contract tests keep the fakes honest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from shared.encoding import Input
from shared.messages import Answer, Modality, Output, Post, Record, TopicPartition

NOON = datetime(2026, 6, 13, 12, tzinfo=UTC)


def post(post_id: str = "test:1", **changes: Any) -> Post:
    """A small valid post; `changes` replace its fields."""
    values: dict[str, Any] = {
        "post_id": post_id,
        "platform": post_id.split(":")[0],
        "event_time": NOON,
        "ingest_time": NOON,
        "language": "en",
        "text": f"text of {post_id}",
    }
    return Post(**(values | changes))


class FakeSource:
    """A topic in memory: polled in offset order, re-read from what was committed after `crash()`."""

    def __init__(self, records: Sequence[Record], *, max_poll_records: int = 500) -> None:
        self._records = list(records)
        self._max = max_poll_records
        self._position = 0
        self.committed: dict[TopicPartition, int] = defaultdict(int)

    def poll(self) -> list[Record]:
        batch = self._records[self._position : self._position + self._max]
        self._position += len(batch)
        return [
            record
            for record in batch
            if record.offset >= self.committed[TopicPartition(record.topic, record.partition)]
        ]

    def commit(self, finished: Mapping[TopicPartition, int]) -> None:
        self.committed.update(finished)

    def lag_records(self) -> int:
        return len(self._records) - self._position

    def crash(self) -> None:
        """Forget the position, as a killed process does."""
        self._position = 0


class FakeSink:
    """Keeps what was written; `fail` makes the next write raise it instead."""

    def __init__(self) -> None:
        self.written: list[Output] = []
        self.fail: Exception | None = None

    def write(self, outputs: Sequence[Output]) -> None:
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        self.written.extend(outputs)


class FakeEncoder:
    """A deterministic 4-dimensional encoder that needs no model: byte statistics of what it is given."""

    model_version = "fake@1"

    def __init__(self, slot: Modality = Modality.TEXT) -> None:
        self.slots: tuple[Modality, ...] = (slot,)
        self.dimensions: Mapping[Modality, int] = {slot: 4}

    def encode(self, inputs: Sequence[Input]) -> list[Mapping[Modality, Answer]]:
        return [{self.slots[0]: self._answer(item)} for item in inputs]

    def _answer(self, item: Input) -> Answer:
        content = b"".join(item.media) if item.media else item.text.encode()
        if not content.strip():
            return Answer(None, "empty")
        values = np.frombuffer(content, np.uint8)
        return Answer(np.array([values.size % 7, values.mean() / 255, values.std() / 255, 1], np.float16))
