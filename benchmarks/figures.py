"""What the verbs share: their options, rounds in turn, and how figures are shown."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated

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


def in_turn(rounds: int, *works: Callable[[], object]) -> list[float]:
    """Median seconds of each work, after one round that is not counted; in turn, so that drift hits all."""
    seconds: list[list[float]] = [[] for _ in works]
    for counted in range(rounds + 1):
        for work, taken in zip(works, seconds, strict=True):
            began = time.perf_counter()
            work()
            if counted:
                taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in seconds]


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
