"""`crowdtone bench backlog`: many posts wait; what services hold in memory while they work them off.

On servers of its own, started for the run and removed after it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from itertools import cycle
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import Progress, track

from benchmarks import load
from benchmarks.figures import AsJson, show
from benchmarks.system import Servers, Services, servers, services
from benchmarks.usage import MIB, children_bytes, memory_bytes
from deploy.local import stack
from deploy.local.process import tail
from services.fusion.model import FusionModel
from services.fusion.settings import SHIPPED_WEIGHTS
from services.fusion.verify import verify
from shared import codec, db, topics
from shared.kafka import Group, Sink
from shared.media import MediaStore
from shared.messages import Label, Modality, Output, Post, PostSentiment, Verdict

DIFFERENT: Final = 2_000
"""Posts that are not the same but for id and time."""


class Service(StrEnum):
    """Those that consume a topic, in the order of the pipeline."""

    text_encoder = "text_encoder"
    image_encoder = "image_encoder"
    audio_encoder = "audio_encoder"
    fusion = "fusion"
    alerts = "alerts"

    @property
    def topic(self) -> str:
        """What it consumes."""
        match self:
            case Service.fusion:
                return topics.EMBEDDINGS.name
            case Service.alerts:
                return topics.SENTIMENTS.name
            case _:
                return topics.POSTS.name


def command(
    service: Annotated[
        list[Service] | None, typer.Option(help="Which work it off, one process each; given again: more.")
    ] = None,
    posts: Annotated[int, typer.Option(help="Posts that wait before they start.", min=1)] = 100_000,
    limit_s: Annotated[
        float, typer.Option(help="Watch for so long at most; what is left then is told.")
    ] = 3600,
    as_json: AsJson = False,
) -> None:
    """Fill a topic, start services (all of them by default), and watch their memory until it is drained.

    The topic is what the first of them in the pipeline reads. Encoders get a few words, pictures and sounds
    over and over: most come from the embedding cache, so that a CPU drains as many as a GPU would. Fusion by
    itself gets random vectors, alerts by itself verdicts of every label.
    """
    show("backlog", backlog(service or list(Service), posts, limit_s), as_json)


def backlog(wanted: Sequence[Service], count: int, limit_s: float) -> dict[str, object]:
    """As `command`, as an object. Raises RuntimeError when a service ends before it is told to."""
    which = [each for each in Service if each in wanted]
    with servers(stack.KAFKA, stack.POSTGRES, stack.REDIS) as on:
        began = time.monotonic()
        with Sink(on.kafka) as sink:
            chunks = -(-count // load.CHUNK_POSTS)
            for some in track(outputs(which, count, on), "filling", chunks, console=Console(stderr=True)):
                sink.write(some)
        filled_s = time.monotonic() - began
        with services(on, which) as running:
            figures = _watch(on, running, which, limit_s)
        if Service.fusion in which:
            engine = db.engine(on.postgres)
            report = verify(engine)
            engine.dispose()
            figures |= {"posts_stored": report.posts, "verify_holds": report.holds}
    return {"posts_waiting": count, "fill_posts_per_s": round(count / filled_s), **figures}


def _watch(on: Servers, running: Services, which: Sequence[Service], limit_s: float) -> dict[str, object]:
    """Until everything is committed or `limit_s` has passed: seconds, records left, memory."""
    pids = running.pids()
    own: dict[str, list[int]] = {name: [] for name in pids}
    children: dict[str, list[int]] = {name: [] for name in pids}
    began = time.monotonic()
    with ExitStack() as entered, Progress(console=Console(stderr=True)) as progress:
        bars = {each: progress.add_task(f"left to {each}", total=None) for each in which}
        groups = {each: entered.enter_context(Group(on.kafka, each, each.topic)) for each in which}
        while True:
            # Along the pipeline: when one has nothing left, all that the next is to get from it is there.
            left: dict[Service, int] = {}
            for each in which:
                places = groups[each].progress().values()
                left[each] = sum(end - at for at, end in places)
                end = sum(end for _, end in places)
                progress.update(bars[each], total=end, completed=end - left[each])
            for name, pid in pids.items():
                own[name].append(memory_bytes(pid, "VmRSS"))
                children[name].append(children_bytes(pid))
            seconds = time.monotonic() - began
            if not any(left.values()) or seconds > limit_s:
                break
            time.sleep(1)
    peaks = {name: memory_bytes(pid, "VmHWM") for name, pid in pids.items()}
    if running.pids() != pids:
        raise RuntimeError(f"a service ended and was started again:\n{tail(running.log, 30)}")
    figures: dict[str, object] = {"seconds": round(seconds, 1)}
    for name in pids:
        half = own[name][len(own[name]) // 2 :]
        figures |= {
            f"{name}_records_left": left[Service(name)],
            f"{name}_peak_rss_mib": round(peaks[name] / MIB),
            f"{name}_rss_mib_second_half": f"{min(half) // MIB} to {max(half) // MIB}",
            f"{name}_peak_rss_of_children_mib": round(max(children[name]) / MIB),
        }
    return figures


def outputs(which: Sequence[Service], count: int, on: Servers, *, first: int = 0) -> Iterator[list[Output]]:
    """Posts `first` to `first + count`, for these to work off: records of the topic that the first reads."""
    texts = list(load.posts(DIFFERENT))
    kinds = {Service.image_encoder: Modality.IMAGE, Service.audio_encoder: Modality.AUDIO}
    shown = [kind for service, kind in kinds.items() if service in which]
    if shown:
        texts = load.with_media(texts, MediaStore(on.media), shown)
    # A few thousand texts over and over: making them must not take the longest.
    every = (
        replace(
            texts[number % len(texts)],
            post_id=f"bench:{number}",
            event_time=load.START + timedelta(seconds=number),
        )
        for number in range(first, first + count)
    )
    chunks = load.in_chunks(every)
    match which[0]:
        case Service.fusion:
            model = FusionModel.load(SHIPPED_WEIGHTS, "cpu")
            return load.embeddings(chunks, model.dimensions, model.encoders, on.kafka.partitions)
        case Service.alerts:
            return _sentiments(chunks)
        case _:
            return ([codec.encode_post(post) for post in chunk] for chunk in chunks)


def _sentiments(chunks: Iterable[list[Post]]) -> Iterator[list[Output]]:
    """A verdict a post, every label in turn."""
    verdicts = [
        Verdict(label, probabilities, probabilities[2] - probabilities[0], (), {}, "bench")
        for label, probabilities in (
            (Label.NEGATIVE, (0.8, 0.1, 0.1)),
            (Label.NEUTRAL, (0.1, 0.8, 0.1)),
            (Label.POSITIVE, (0.1, 0.1, 0.8)),
        )
    ]
    for chunk in chunks:
        yield codec.encode_sentiments(
            PostSentiment(post, 1, verdict, complete=True, classified_time=load.START)
            for post, verdict in zip(chunk, cycle(verdicts), strict=False)
        )
