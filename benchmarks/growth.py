"""`crowdtone bench growth`: what a post costs when many wait, and what more processes of a service bring.

Each run is on servers of its own, with a partition for each process; each process computes with one thread.
They are warmed up and idle; then the posts are written at once, and the clock runs until the last of them is
committed. CPU seconds are those of the service's processes alone.
"""

from __future__ import annotations

import os
import re
import sys
import time
from typing import Annotated, Final, NamedTuple

import typer

from benchmarks.backlog import Service, outputs
from benchmarks.figures import AsJson, cpu_s, show
from benchmarks.system import Servers, Services, servers, services
from deploy.local import stack
from shared.kafka import Group, Sink

BACKLOGS: Final = (1, 10, 100)
PROCESSES: Final = (1, 2, 4)
PROCESSES_TIMES: Final = 20
"""So many times the least backlog for each number of processes."""
POSTS: Final = {
    Service.text_encoder: 20,
    Service.image_encoder: 10,
    Service.audio_encoder: 4,
    Service.fusion: 1_000,
    Service.alerts: 200,
}
"""The least backlog: a hundred times that is some minutes' work of a core at most."""
WARM_UP: Final = {
    Service.text_encoder: 16,
    Service.image_encoder: 16,
    Service.audio_encoder: 16,
    Service.fusion: 500,
    Service.alerts: 500,
}
"""Posts for each partition."""
LIMIT_S: Final = 3_600.0
LOOK_S: Final = 0.05
ONE_THREAD: Final = {"CROWDTONE_THREADS": "1", "OMP_NUM_THREADS": "1", "CROWDTONE_FUSION_DEVICE": "cpu"}
ON_THE_CPU: Final = {"CROWDTONE_DEVICE": "cpu", "CROWDTONE_EMBEDDING_CACHE_TTL_S": "0"}
"""The load repeats its texts, and a repost is not what is measured."""


class Took(NamedTuple):
    wall_s: float
    cpu_s: float


def command(
    service: Annotated[Service, typer.Option(help="Which one works it off.")] = Service.fusion,
    posts: Annotated[
        int,
        typer.Option(
            help="The least backlog; the others are 10 and 100 times it. 0: as many as take a few minutes.",
            min=0,
        ),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Posts/s and CPU a post at 1, 10 and 100 times a backlog, and with 1, 2 and 4 processes."""
    posts = posts or POSTS[service]
    figures: dict[str, object] = {
        "service": service.value,
        "cores": len(os.sched_getaffinity(0)),
        "posts": posts,
    }
    for times in BACKLOGS:
        figures |= _figures(f"{times}x", posts * times, work_off(service, posts * times, processes=1))
    count = posts * PROCESSES_TIMES
    for processes in PROCESSES:
        took = work_off(service, count, processes=processes)
        figures |= _figures(f"{processes}_processes", count, took)
        if processes == 1:
            alone = took
        else:
            figures[f"times_of_{processes}_processes"] = round(alone.wall_s / took.wall_s, 2)
    show("growth", figures, as_json)


def _figures(name: str, posts: int, took: Took) -> dict[str, object]:
    figures: dict[str, object] = {
        f"posts_per_s_{name}": round(posts / took.wall_s, 1),
        f"cpu_us_per_post_{name}": round(took.cpu_s / posts * 1e6),
    }
    print(figures, file=sys.stderr)  # minutes go by until they are all there
    return figures


def work_off(service: Service, posts: int, *, processes: int) -> Took:
    """From the first post written to the last one committed, with as many partitions as processes."""
    with (
        servers(stack.KAFKA, stack.POSTGRES, stack.REDIS, partitions=processes) as on,
        services(on, [f"{service}={processes}"], **ONE_THREAD, **ON_THE_CPU) as running,
        Sink(on.kafka) as sink,
        Group(on.kafka, service, service.topic) as group,
    ):
        warm_up = WARM_UP[service] * processes
        for some in outputs([service], warm_up, on):
            sink.write(some)
        running.wait(lambda: _assigned(on, running) or None, "partition for every process", LIMIT_S)
        running.wait(lambda: _drained(group) or None, "end of the warm-up", LIMIT_S)
        pids = running.pids()
        waiting = list(outputs([service], posts, on, first=warm_up))
        cpu_before = [cpu_s(pid) for pid in pids.values()]
        began = time.monotonic()
        for some in waiting:
            sink.write(some)
        running.wait(lambda: _drained(group) or None, "end of the backlog", LIMIT_S, LOOK_S)
        wall_s = time.monotonic() - began
        return Took(wall_s, sum(cpu_s(pid) for pid in pids.values()) - sum(cpu_before))


def _drained(group: Group) -> bool:
    return all(at == end for at, end in group.progress().values())


def _assigned(on: Servers, running: Services) -> bool:
    """Whether each process said that it got a partition when its group was last shared out."""
    logs = [(on.directory / "logs" / f"{name}.log") for name in running.ports]
    said = [
        re.findall(r"rebalanced: .* assigned \[(.*)\]", log.read_text()) if log.exists() else []
        for log in logs
    ]
    return all(every and every[-1] for every in said)
