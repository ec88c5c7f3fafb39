"""`crowdtone bench e2e`: posts from bytes in Kafka to verdicts committed in Postgres, by `crowdtone run`.

On servers of its own. A post's latency is from its `ingest_time`, when its bytes were handed to Kafka, to the
commit of the verdict that rests on all of it, as Postgres itself timed that (`track_commit_timestamp`).
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
import typer

from benchmarks import load
from benchmarks.encode import SUBJECTS, Kind, Shape, input_of
from benchmarks.figures import AsJson, Device, OnDevice, cpu_s, in_turn_by, percentiles, show
from benchmarks.system import Servers, Services, servers, services
from benchmarks.usage import MIB, Gpu, batches, memory_bytes, shares
from deploy.local import postgres, stack
from services.fusion.verify import verify
from shared import codec, db
from shared.device import choose_device
from shared.kafka import Sink
from shared.media import MediaStore
from shared.messages import Modality, Post
from shared.settings import ModelSettings

ENCODERS: Final = {
    Kind.text: ("text_encoder", Modality.TEXT),
    Kind.image: ("image_encoder", Modality.IMAGE),
    Kind.audio: ("audio_encoder", Modality.AUDIO),
}
# What takes some minutes on two cores: a clip costs a second of CPU.
MIXED_POSTS: Final = 300
TEXT_POSTS: Final = 2_000
WARM_UP: Final = 20
"""Posts that are worked off before anything is counted, some with pictures and some with sounds."""
CHUNK: Final = 500
LIMIT_S: Final = 3_600.0
SINGLE: Final = 50
"""Posts that each encoder is given one by one, where all come at once; of posts offered slowly, all are."""

# Its own answer to when a transaction was durable. It changes nothing else of the server.
TIMED_POSTGRES: Final = dataclasses.replace(
    stack.POSTGRES,
    command=lambda directory, state: [
        *postgres.command(directory, state.of("postgres").ports[0]),
        "-c",
        "track_commit_timestamp=on",
    ],
)


Floats = npt.NDArray[np.float64]


class Committed(NamedTuple):
    """Seconds since the epoch of each post, in the order of its ingestion."""

    ingested: Floats
    classified: Floats
    committed: Floats


def e2e(
    posts: Annotated[
        int, typer.Option(help="Posts in the load; 0: as many as take some minutes on two cores.", min=0)
    ] = 0,
    text_only: Annotated[
        bool, typer.Option("--text-only", help="Words alone; else 40 % with a picture, 10 % with a sound.")
    ] = False,
    per_s: Annotated[
        float, typer.Option(help="Posts offered a second, at random times; 0: all at once.", min=0)
    ] = 0.0,
    device: OnDevice = Device.auto,
    as_json: AsJson = False,
) -> None:
    """Posts/s and latency from Kafka to Postgres, over the bare model loops of the encoders in turn."""
    count = posts or (TEXT_POSTS if text_only else MIXED_POSTS)
    model = ModelSettings(device=choose_device(device))
    kinds = [Kind.text] if text_only else list(ENCODERS)
    with servers(stack.KAFKA, TIMED_POSTGRES, stack.REDIS) as on:
        media = MediaStore(on.media)
        every = _load(count + WARM_UP, kinds, media)
        figures: dict[str, Any] = {
            "device": model.device,
            "cores": len(os.sched_getaffinity(0)),
            "posts": count,
            "load": "text" if text_only else "mix",
            "offered_per_s": per_s or None,
        }
        figures_of_run, latency_s = measured(on, every, kinds, model.device, per_s)
        figures |= figures_of_run
        own_s = np.zeros(count)
        for kind in kinds:
            figures_alone, single_s = _alone(kind, model, media, every[WARM_UP:], count if per_s else SINGLE)
            figures |= figures_alone
            # The encoders of a post work at the same time, so the slowest of them is its own way.
            np.maximum.at(own_s, list(single_s), list(single_s.values()))
        if per_s:
            figures |= percentiles("latency_added", latency_s - own_s)
    bare_s = [figures[f"{kind}_bare_loop_s"] for kind in kinds]
    figures["bare_loops_posts_per_s"] = round(count / sum(bare_s), 1)
    if not per_s:  # offered slowly, they take as long as they are offered
        figures["ratio_to_bare_loop"] = round(sum(bare_s) / figures["seconds"], 3)
    used_s = [figures[f"{name}_cpu_s"] for name in (*(ENCODERS[kind][0] for kind in kinds), "fusion")]
    bare_cpu_s = [figures[f"{kind}_bare_loop_cpu_s"] for kind in kinds]
    figures["cpu_ratio_to_bare_loop"] = round(sum(bare_cpu_s) / sum(used_s), 3)
    show("e2e", figures, as_json)


def measured(
    on: Servers, every: Sequence[Post], kinds: Sequence[Kind], device: str, per_s: float
) -> tuple[dict[str, Any], Floats]:
    """Run the services, give them the first WARM_UP posts and then, counted, the rest; latencies in s."""
    names = [*(ENCODERS[kind][0] for kind in kinds), "fusion"]
    engine = db.engine(on.postgres)
    try:
        with (
            services(on, names, CROWDTONE_DEVICE=device, CROWDTONE_FUSION_DEVICE=device) as running,
            Sink(on.kafka) as sink,
        ):
            _produce(sink, every[:WARM_UP], 0.0)
            _wait_complete(running, engine, WARM_UP)
            pids = running.pids() | {server: on.pid(server) for server in ("kafka", "postgres", "redis")}
            cpu_before = {name: cpu_s(pid) for name, pid in pids.items()}
            batches_before = {name: batches(running.metrics(name)) for name in names}
            with Gpu() as gpu:
                _produce(sink, every[WARM_UP:], per_s)
                _wait_complete(running, engine, len(every))
            cpu_used_s = {name: cpu_s(pid) - cpu_before[name] for name, pid in pids.items()}
            held = {name: batches(running.metrics(name)) - batches_before[name] for name in names}
            peaks = {name: memory_bytes(pids[name], "VmHWM") for name in names}
        times = _times(engine, len(every) - WARM_UP)
        holds = verify(engine).holds
    finally:
        engine.dispose()
    seconds = float(times.committed.max() - times.ingested.min())
    latency_s = times.committed - times.ingested
    figures: dict[str, Any] = {
        "seconds": round(seconds, 2),
        "posts_per_s": round(len(times.ingested) / seconds, 1),
        **percentiles("latency", latency_s),
        **percentiles("latency_to_classified", times.classified - times.ingested),
        **gpu.figures(),
        "cpu_cores_used": round(sum(cpu_used_s.values()) / seconds, 2),
        **{f"{name}_cpu_s": round(used_s, 2) for name, used_s in cpu_used_s.items()},
        **{f"{name}_peak_rss_mib": round(peak / MIB) for name, peak in peaks.items()},
    }
    for name in names[:-1]:
        figures |= {f"{name}_{what}": value for what, value in shares(held[name]).items()}
    return figures | {"verify_holds": holds}, latency_s


def _alone(
    kind: Kind, model: ModelSettings, media: MediaStore, every: Sequence[Post], single: int
) -> tuple[dict[str, Any], dict[int, float]]:
    """What an encoder's model takes for the load by itself, with all cores, and for `single` posts one by
    one: seconds by the post's place."""
    slot = ENCODERS[kind][1]
    subject = SUBJECTS[kind](model, Shape.default)
    inputs = {i: input_of(slot, media, post) for i, post in enumerate(every) if slot in post.expected}
    (taken,) = in_turn_by(1, (subject.bare(list(inputs.values())), os.getpid()))
    single_s = {}
    for i, item in islice(inputs.items(), single):
        began = time.perf_counter()
        subject.encoder.encode([item])
        single_s[i] = time.perf_counter() - began
    return {
        f"{kind}_bare_loop_s": round(taken.wall_s, 2),
        f"{kind}_bare_loop_cpu_s": round(taken.cpu_s, 2),
        **percentiles(f"{kind}_single", list(single_s.values())),
    }, single_s


def _load(count: int, kinds: Sequence[Kind], media: MediaStore) -> list[Post]:
    every = list(load.posts(count))
    if kinds == [Kind.text]:
        return [replace(post, expected=frozenset({Modality.TEXT})) for post in every]
    return load.with_media(every, media, [Modality.IMAGE, Modality.AUDIO])


def _produce(sink: Sink, every: Sequence[Post], per_s: float) -> None:
    """All at once, or each at its time: at random ones (Poisson), the same for the same number."""
    due = np.zeros(len(every))
    if per_s:
        due = np.random.default_rng(4).exponential(1 / per_s, len(every)).cumsum()
    began, began_time = time.monotonic(), datetime.now(UTC)
    sent = 0
    while sent < len(every):
        time.sleep(max(0.0, due[sent] - (time.monotonic() - began)))
        ready = int(np.searchsorted(due, time.monotonic() - began, side="right"))
        numbers = range(sent, min(ready, sent + CHUNK))
        # Not the time of its turn: what a post waits for us to send those before it counts.
        sink.write(
            [
                codec.encode_post(replace(every[i], ingest_time=began_time + timedelta(seconds=due[i])))
                for i in numbers
            ]
        )
        sent += len(numbers)


def _wait_complete(running: Services, engine: sa.Engine, count: int) -> None:
    query = sa.text("SELECT count(*) FROM posts WHERE expected & ~answered = 0")

    def done() -> bool | None:
        with engine.connect() as connection:
            return True if connection.execute(query).scalar_one() >= count else None

    running.wait(done, f"{count} complete verdicts", LIMIT_S)


def _times(engine: sa.Engine, count: int) -> Committed:
    """Of the posts after the warm-up."""
    query = sa.text("""
        SELECT extract(epoch FROM ingest_time)::float8, extract(epoch FROM classified_time)::float8,
            extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8
        FROM posts ORDER BY event_time DESC LIMIT :count
    """)
    with engine.connect() as connection:
        rows = np.array(connection.execute(query, {"count": count}).all(), np.float64)
    if len(rows) != count:
        raise AssertionError(f"{len(rows)} verdicts for {count} posts")
    return Committed(*rows[::-1].T)
