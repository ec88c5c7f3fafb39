"""`crowdtone bench sink`: verdicts committed to Postgres with their trends, on a server of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Annotated

import numpy as np
import sqlalchemy as sa
import typer

from benchmarks import load
from benchmarks.figures import AsJson, Posts, show
from benchmarks.system import servers
from deploy.local import stack
from services.fusion.join import Joined
from services.fusion.model import EMOTIONS
from services.fusion.revision import Scored
from services.fusion.store import PostgresStore
from services.fusion.verdicts import Verdicts
from services.fusion.verify import verify
from shared import db
from shared.messages import Label
from shared.settings import PostgresSettings

WARM_UP = 5  # batches that are not counted: connections, day partitions, caches


def sink(
    posts: Posts = 50_000,
    batch: Annotated[int, typer.Option(help="Posts in a transaction.", min=1)] = 2_000,
    per_s: Annotated[float, typer.Option(help="Posts in a second of event time.", min=0.001)] = 1_000.0,
    as_json: AsJson = False,
) -> None:
    """Write verdicts as fusion does: post, trends and ledger in one transaction a batch, then verify."""
    with servers(stack.POSTGRES) as running:
        figures = _run(running.postgres, posts, batch, per_s)
    show("sink", figures, as_json)


def _run(postgres: PostgresSettings, posts: int, batch: int, per_s: float) -> dict[str, object]:
    engine = db.engine(postgres)
    try:
        store = PostgresStore(engine, group="bench", retry_s=10)
        generation = store.claim([0])[0].generation
        wall_s, python_s = [], []
        server_s = 0.0
        for number, verdicts in enumerate(_batches(posts + WARM_UP * batch, batch, per_s)):
            if number == WARM_UP:
                server_s = _server_cpu_s(engine)
            began, cpu_began = perf_counter(), process_time()
            store.write({0: generation}, verdicts, next_offsets={0: number + 1}, now=datetime.now(UTC))
            if number >= WARM_UP:
                wall_s.append((perf_counter() - began) / len(verdicts))
                python_s.append((process_time() - cpu_began) / len(verdicts))
        server_s = _server_cpu_s(engine) - server_s
        report = verify(engine)
    finally:
        engine.dispose()
    return {
        "posts": posts,
        "batch": batch,
        "posts_per_s": round(1 / median(wall_s)),
        "python_us_per_post": round(median(python_s) * 1e6, 1),
        "postgres_us_per_post": round(server_s / posts * 1e6, 1),
        "trend_rows": report.trends,
        "verify_holds": report.holds,
    }


def _batches(posts: int, batch: int, per_s: float) -> Iterator[list[Scored]]:
    """Posts in the order of their event time with drawn verdicts: numbers as long as a model's are."""
    rng = np.random.default_rng(2)
    texts = list(load.posts(2_000))
    vector = np.ones(1, np.float16)
    for start in range(0, posts, batch):
        numbers = range(start, min(start + batch, posts))
        probabilities = rng.dirichlet(np.ones(3), len(numbers)).tolist()
        emotions = rng.dirichlet(np.ones(len(EMOTIONS)), len(numbers)).tolist()
        contributions = rng.normal(size=len(numbers)).tolist()
        joined = []
        for number in numbers:
            post = replace(
                texts[number % len(texts)],
                post_id=f"bench:{number}",
                event_time=load.START + timedelta(seconds=number / per_s),
            )
            one = Joined.of(0, post)
            for modality in sorted(post.expected):
                one.take(modality, vector, "", "")
            joined.append(one)
        verdicts = Verdicts(
            [Label(1 + int(best)) for best in np.argmax(probabilities, 1)],
            [(negative, neutral, positive) for negative, neutral, positive in probabilities],
            [positive - negative for negative, _, positive in probabilities],
            [tuple(one.vectors) for one in joined],
            [[share] * len(one.vectors) for share, one in zip(contributions, joined, strict=True)],
            EMOTIONS,
            emotions,
            "bench@1",
        )
        yield [Scored(one, verdicts, row) for row, one in enumerate(joined)]


def _server_cpu_s(engine: sa.Engine) -> float:
    """CPU seconds of the server's processes that live now (proc(5): /proc/PID/stat, fields 14 and 15)."""
    with engine.connect() as connection:
        pids = connection.scalars(sa.text("SELECT pid FROM pg_stat_activity")).all()
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
