"""`crowdtone bench scaling`: what a rate of posts takes, computed from figures that were measured elsewhere.

Pure but for the command: `plan` is arithmetic over `Figures`. docs/SCALING.md shows the table and argues it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Final

import typer

from benchmarks.figures import AsJson, show
from benchmarks.load import AUDIO_SHARE, IMAGE_SHARE

DAY_S: Final = 86_400
RATES: Final = (1_000, 100_000, 1_000_000)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one of each does, and what one post leaves. docs/SCALING.md says where each default is from."""

    # On one H100: texts of eight encoder processes; of the others what the GPU can do (that of sounds not
    # measured by us), and the part of it that a service is to keep.
    texts_per_s: float = 35_500.0
    bare_images_per_s: float = 12_000.0
    bare_clips_per_s: float = 1_780.0
    kept: float = 0.6
    # Of all posts; every post has words.
    image_share: float = IMAGE_SHARE
    audio_share: float = AUDIO_SHARE
    # One process each: texts through an encoder of eight that share a GPU, records into Kafka, embeddings
    # through join and classifier to records of `sentiments`, posts into one Postgres.
    read_per_s: float = 4_440.0
    produced_per_s: float = 12_000.0
    joined_per_s: float = 32_700.0
    stored_per_s: float = 10_300.0
    # A post and an embedding as records, a row of `posts` and of `trends` with their keys.
    post_bytes: float = 184.0
    embedding_bytes: float = 1_482.0
    stored_bytes: float = 900.0
    trend_row_bytes: float = 259.0
    topics: int = 1_000
    cells: int = 40
    """Pairs of platform and language."""
    gpu_usd_per_h: float = 3.0
    busy: float = 0.7
    """The most a stage may be. At one server (M/M/1) a post waits 2.3 service times at 0.7, and 9 at 0.9."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rate takes. Counts are whole machines or processes; `_per_day` of one copy, uncompressed."""

    posts_per_s: float
    ingest_processes: int
    text_gpus: int
    text_processes: int
    image_gpus: int
    audio_gpus: int
    fusion_processes: int
    partitions: int
    postgres_shards: int
    kafka_mb_per_s: float
    posts_gb_per_day: float
    trend_rows_per_day: int
    trends_gb_per_day: float
    usd_per_million_posts: float
    waits_ms: float
    first_limit: str


def plan(posts_per_s: float, figures: Figures) -> Plan:
    """The least of everything that carries `posts_per_s` with no stage busier than `figures.busy`.

    Partitions: two for each process of the stage that has most, so that a lost one's can be shared out.
    waits_ms: the sum of the mean queueing times of the stages, each an M/M/c queue (Erlang C) of single
    posts; what a batch waits to fill comes on top.
    """
    # Sound answers twice: how it is said, and what is said.
    answers = 1 + figures.image_share + 2 * figures.audio_share
    stages = {
        "ingest": (posts_per_s, figures.produced_per_s),
        "text_encoder": (posts_per_s, figures.texts_per_s),
        "text_process": (posts_per_s, figures.read_per_s),
        "image_encoder": (posts_per_s * figures.image_share, figures.bare_images_per_s * figures.kept),
        "audio_encoder": (posts_per_s * figures.audio_share, figures.bare_clips_per_s * figures.kept),
        "fusion": (posts_per_s * answers, figures.joined_per_s),
        "postgres": (posts_per_s, figures.stored_per_s),
    }
    servers = {name: servers_for(load, each, figures.busy) for name, (load, each) in stages.items()}
    gpus = servers["text_encoder"] + servers["image_encoder"] + servers["audio_encoder"]
    minutes = min(posts_per_s * 60, figures.topics * figures.cells) + min(posts_per_s * 60, figures.cells)
    rows = minutes * 1440 + (figures.topics + 1) * figures.cells * 25
    return Plan(
        posts_per_s=posts_per_s,
        ingest_processes=servers["ingest"],
        text_gpus=servers["text_encoder"],
        text_processes=max(servers["text_encoder"], servers["text_process"]),
        image_gpus=servers["image_encoder"],
        audio_gpus=servers["audio_encoder"],
        fusion_processes=servers["fusion"],
        partitions=2 * max(servers.values()),
        postgres_shards=servers["postgres"],
        kafka_mb_per_s=posts_per_s * (figures.post_bytes + answers * figures.embedding_bytes) / 1e6,
        posts_gb_per_day=posts_per_s * DAY_S * figures.stored_bytes / 1e9,
        trend_rows_per_day=round(rows),
        trends_gb_per_day=rows * figures.trend_row_bytes / 1e9,
        usd_per_million_posts=gpus * figures.gpu_usd_per_h / 3600 / posts_per_s * 1e6,
        waits_ms=1000
        * sum(mean_wait_s(load, each, servers[name]) for name, (load, each) in stages.items() if load),
        first_limit=max(stages, key=lambda name: stages[name][0] / stages[name][1]),
    )


def servers_for(load_per_s: float, each_per_s: float, busy: float) -> int:
    """The fewest servers of which none is busier than `busy`; at least one."""
    return max(1, math.ceil(load_per_s / (each_per_s * busy) - 1e-9))


def mean_wait_s(load_per_s: float, each_per_s: float, servers: int) -> float:
    """Mean time in the queue of an M/M/c (Erlang C). Raises ValueError where the servers cannot keep up."""
    offered = load_per_s / each_per_s
    if offered >= servers:
        raise ValueError(f"{servers} servers of {each_per_s}/s cannot carry {load_per_s}/s")
    blocked = 1.0  # Erlang B by its recurrence, which does not overflow
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    waiting = blocked / (1 - offered / servers * (1 - blocked))
    return waiting / (servers * each_per_s - load_per_s)


def command(
    gpu_usd_per_h: Annotated[float, typer.Option(help="Price of a GPU: an assumption.", min=0)] = 3.0,
    as_json: AsJson = False,
) -> None:
    """What 1,000, 100,000 and 1,000,000 posts/s take."""
    plans = [asdict(plan(rate, replace(Figures(), gpu_usd_per_h=gpu_usd_per_h))) for rate in RATES]
    every = {name: [one[name] for one in plans] for name in plans[0]}
    show("scaling", every if as_json else {name: _line(values) for name, values in every.items()}, as_json)


def _line(values: list[object]) -> str:
    return "".join(f"{value:>16,.2f}" if isinstance(value, float) else f"{value:>16}" for value in values)
