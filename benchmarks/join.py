"""`crowdtone bench join`: fusion's step on one core, from record bytes to rows as Postgres copies them in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import chain
from statistics import median
from time import process_time
from typing import TypeVar

import torch

from benchmarks import load
from benchmarks.figures import AsJson, Device, OnDevice, Posts, Rounds, show
from services.fusion.fusion import Fusion
from services.fusion.join import Answers, Join
from services.fusion.model import FusionModel
from services.fusion.revision import Scored, Written, counted_new, fullest, revise
from services.fusion.rows import posts_lines, trends_lines
from services.fusion.settings import SHIPPED_WEIGHTS
from services.fusion.store import Claim
from services.fusion.trends import deltas
from services.fusion.verdicts import Verdicts
from shared import codec, topics
from shared.messages import Modality, Record, TopicPartition, Vector
from shared.service import settle

STEP_RECORDS = 8  # of up to 500 answers each
T = TypeVar("T")


def join(
    posts: Posts = 20_000, rounds: Rounds = 3, device: OnDevice = Device.cpu, as_json: AsJson = False
) -> None:
    """Fusion's step on one core: decode, join, classify, and write the rows as Postgres copies them in.

    Seconds are CPU seconds of this process, with one torch thread. What is published then is timed apart.
    """
    torch.set_num_threads(1)
    model = FusionModel.load(SHIPPED_WEIGHTS, device)
    written = load.embeddings(load.in_chunks(load.posts(posts)), model.dimensions, model.encoders)
    records = [
        Record(topics.EMBEDDINGS.name, 0, offset, None, output.value)
        for offset, output in enumerate(chain.from_iterable(written))
    ]
    embeddings = sum(len(post.expected) for post in load.posts(posts))
    settle()  # as the service does
    runs = [_run(model, records, posts) for _ in range(rounds + 1)][1:]
    part_us = {part: median(run[part] for run in runs) / posts * 1e6 for part in runs[0]}
    rows_us = sum(us for part, us in part_us.items() if part != "sentiments")
    show(
        "join",
        {
            "device": device.value,
            "threads": torch.get_num_threads(),
            "posts": posts,
            "embeddings": embeddings,
            "embeddings_per_s": round(embeddings / posts / rows_us * 1e6),
            "posts_per_s": round(1e6 / rows_us),
            "embeddings_per_s_published": round(embeddings / posts / sum(part_us.values()) * 1e6),
            **{f"{part}_us_per_post": round(us, 1) for part, us in part_us.items()},
        },
        as_json,
    )


def _run(model: FusionModel, records: Sequence[Record], posts: int) -> dict[str, float]:
    """CPU seconds of each part of working off the records once."""
    clock = _Clock()
    store = _CopyText(clock)
    fusion = Fusion(Join(grace_s=30, late_s=60, max_open_posts=200_000), _Timed(model, clock), store)
    fusion.rebalanced(frozenset(), frozenset({TopicPartition(topics.EMBEDDINGS.name, 0)}))
    verdicts = 0
    for start in range(0, len(records), STEP_RECORDS):
        some = records[start : start + STEP_RECORDS]
        verdicts += clock.timed("step", partial(fusion.step, some, 0.0)).posts
        # The step has done this too: what it took is told apart by doing it again.
        clock.timed("sentiments", lambda: codec.encode_sentiments(item.sentiment for item in store.written))
    if verdicts != posts:
        raise AssertionError(f"{verdicts} verdicts of {posts} posts")
    parts = dict(clock.seconds)
    rest = parts.pop("step") - sum(parts.values())
    return {"decode_and_join": rest, **parts}


class _Clock:
    """CPU seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, part: str, work: Callable[[], T]) -> T:
        began = process_time()
        result = work()
        self.seconds[part] += process_time() - began
        return result


class _Timed:
    """The model, and how long it takes."""

    def __init__(self, model: FusionModel, clock: _Clock) -> None:
        self._model, self._clock = model, clock
        self.dimensions, self.encoders = model.dimensions, model.encoders

    def classify(self, posts: Sequence[Mapping[Modality, Vector]]) -> Verdicts:
        return self._clock.timed("classify", lambda: self._model.classify(posts))


class _CopyText:
    """A store that goes as far as the text to copy. Every post is new to it and comes once."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self.written: list[Written] = []

    def claim(self, partitions: Iterable[int]) -> dict[int, Claim]:
        return {partition: Claim(1, 0, {}) for partition in partitions}

    def parts(self, versions: Mapping[str, int]) -> dict[str, Answers]:
        raise AssertionError(f"{len(versions)} posts came late")

    def write(
        self,
        generations: Mapping[int, int],
        verdicts: Sequence[Scored],
        *,
        next_offsets: Mapping[int, int],
        expired: Sequence[str] = (),
        now: datetime,
    ) -> list[Written]:
        def rows() -> list[Written]:
            written = [revise(None, scored, now) for scored in fullest(verdicts)]
            "\n".join(posts_lines(written))
            "\n".join(trends_lines(deltas(counted_new(written))))
            return written

        self.written = self._clock.timed("rows", rows)
        return self.written
