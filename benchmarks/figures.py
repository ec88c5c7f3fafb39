"""What the verbs share: their options, rounds in turn, and how figures are shown."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np
import numpy.typing as npt
import psutil
import typer
from rich.console import Console
from rich.table import Table


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Posts = Annotated[int, typer.Option(help="Posts in the load.", min=1)]
Rounds = Annotated[int, typer.Option(help="Rounds, taken in turn; medians are shown.", min=1)]
OnDevice = Annotated[
    Device, typer.Option("--device", help="Where the models run; auto: a GPU if there is one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One object instead of a table.")]


@dataclass(frozen=True, slots=True)
class Taken:
    """Medians of a work's rounds. cpu_s: of all who did it; the truer one where the machine is busy."""

    wall_s: float
    cpu_s: float


def in_turn(rounds: int, *works: Callable[[], object]) -> list[float]:
    """Median seconds of each work by the clock; as `in_turn_by`."""
    return [taken.wall_s for taken in in_turn_by(rounds, *((work, os.getpid()) for work in works))]


def in_turn_by(rounds: int, *works: tuple[Callable[[], object], int]) -> list[Taken]:
    """What each work takes, done by a process (its id) with its children.

    After one round that is not counted; in turn, so that drift hits all. Standard error tells of each round.
    """
    rows: list[list[Taken]] = [[] for _ in works]
    for counted in range(rounds + 1):
        for (work, pid), taken in zip(works, rows, strict=True):
            began, cpu_began = time.perf_counter(), cpu_s(pid)
            work()
            taken.append(Taken(time.perf_counter() - began, cpu_s(pid) - cpu_began))
        took = ", ".join(f"{taken[-1].wall_s:.2f} s" for taken in rows)
        print(f"{f'round {counted} of {rounds}' if counted else 'warmed up'}: {took}", file=sys.stderr)
    rows = [taken[1:] for taken in rows]
    return [
        Taken(
            statistics.median(each.wall_s for each in taken), statistics.median(each.cpu_s for each in taken)
        )
        for taken in rows
    ]


def cpu_s(pid: int) -> float:
    """CPU seconds that a process and its living children have used."""
    process = psutil.Process(pid)
    times = [process.cpu_times()]
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # ended since the children were listed
            times.append(child.cpu_times())
    return sum(each.user + each.system for each in times)


def percentiles(name: str, seconds: Sequence[float] | npt.NDArray[np.float64]) -> dict[str, object]:
    """p50, p95 and p99 of latencies, in milliseconds."""
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99]) * 1000
    return {f"{name}_p50_ms": round(p50, 2), f"{name}_p95_ms": round(p95, 2), f"{name}_p99_ms": round(p99, 2)}


def show(title: str, figures: Mapping[str, object], as_json: bool) -> None:
    """Print the figures: one JSON object on one line, or a table."""
    if as_json:
        print(json.dumps(figures))
        return
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console().print(table)
