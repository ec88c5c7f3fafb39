"""`python -m tests.faults`: every fault on the real system, and a table of what was lost or counted twice.

A fault's posts are offered while it happens, again and again; then everything is drained and counted: from
the input file against Postgres, the API and `sentiments`, and by `crowdtone verify`. Nothing may be lost,
nothing be there twice. Columns:

  times       how often the fault was injected
  posts       offered meanwhile, at least --posts
  lost        without their complete verdict in the end, or missing in a trend
  duplicated  there twice, or counted twice in a trend
  recovery    seconds from the end of the harm until every post offered by then had its complete verdict:
              median and longest of the injections, about a quarter, whose recovery the next one waits for
  restarts    how often services ended by themselves (exit 75: a dependency stayed away), to be started again

Each row is in rows.jsonl of the run's folder as soon as it is there, for a run that is broken off.

Exits 0 when every fault that ran lost and duplicated nothing, 1 when not. What this machine cannot do (mount
as root, gcc) is listed as skipped, with what is missing.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.injections import FAULTS, Fault
from tests.faults.recount import Published
from tests.faults.run import Row, run
from tests.faults.system import System


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    by_name = {fault.name: fault for fault in FAULTS}
    faults = [by_name[name] for name in arguments.only or by_name]
    say = Console(stderr=True, highlight=False)
    directory = arguments.keep or Path(tempfile.mkdtemp(prefix="crowdtone-faults-"))
    directory.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    say.print(f"starting servers and services in {directory}; seed {arguments.seed}")
    began = time.monotonic()
    with System(directory) as system:
        published = Published(system.kafka_address)
        for fault in faults:
            row = run(
                system,
                fault,
                posts=arguments.posts,
                times=arguments.times or fault.times,
                rate_per_s=arguments.rate,
                published=published,
                chance=random.Random(f"{arguments.seed} {fault.name}"),
                say=lambda line: say.print(line, soft_wrap=True),
            )
            rows.append(row)
            line = json.dumps(asdict(row) | {"holds": row.holds})
            with (directory / "rows.jsonl").open("a") as file:
                file.write(line + "\n")
            if arguments.json:
                print(line, flush=True)
    if not arguments.json:
        _show(rows)
    say.print(f"{len(rows)} faults in {(time.monotonic() - began) / 60:.0f} minutes; logs are in {directory}")
    return 0 if all(row.holds or row.skipped for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = "\n".join(f"  {fault.name:<20}{fault.what} ({_times(fault)})" for fault in FAULTS)
    parser.epilog = f"the faults, and how often each is injected by default:\n{names}"
    parser.add_argument(
        "--only", action="append", metavar="NAME", choices=[fault.name for fault in FAULTS],
        help="only this fault; given again: those, in this order",
    )  # fmt: skip
    parser.add_argument("--posts", type=int, default=5_000, help="offered for each fault at least (5000)")
    parser.add_argument("--times", type=int, help="injections of each fault, instead of its own number")
    parser.add_argument("--rate", type=float, default=25.0, help="posts offered each second meanwhile (25)")
    parser.add_argument("--seed", default="1", help="rules when what is done; the same seed, the same plan")
    parser.add_argument("--json", action="store_true", help="one JSON object per fault, as it ends")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="folder for data and logs (a new one in /tmp)"
    )
    return parser


def _times(fault: Fault) -> str:
    return f"{fault.times} times"


def _show(rows: Sequence[Row]) -> None:
    console = Console(highlight=False)
    headings = ("fault", "times", "posts", "lost", "duplicated", "recovery s", "restarts")
    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        if row.skipped:
            table.add_row(row.what, "-", "-", "-", "-", "-", f"skipped: {row.skipped}")
            continue
        recovery = f"{row.median_s:.1f}, {row.longest_s:.1f}"
        numbers = (row.times, row.posts, row.lost, row.duplicated)
        colour = "" if row.holds else "red"
        table.add_row(row.what, *(f"{n:,}" for n in numbers), recovery, str(row.restarts), style=colour)
    console.print(table)
    for row in rows:
        for problem in row.problems:
            console.print(f"[red]{row.name}[/]: {problem}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
