"""`crowdtone demo`: the whole system on the shipped sample feed, from an empty stack to trends that verify.

It drives the other commands as a user would, and reads the results over the API like any client.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from deploy.local.cli import CROWDTONE, DAEMONS
from deploy.local.process import tail
from deploy.local.supervisor import Following
from protos.crowdtone.v1 import api_pb2, api_pb2_grpc

ALL_POSTS = "*"
POLL_S = 0.25
DEMO_DIR = Path("demo")

console = Console()


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="End after `verify` instead of waiting for Ctrl-C.")
    ] = False,
    local_dir: Annotated[
        Path, typer.Option(help="Where the demo's own stack lives; emptied at the start.", file_okay=False)
    ] = Path(".local/demo"),
    timeout_s: Annotated[
        float, typer.Option(help="Give up when the verdicts take longer than this.")
    ] = 900.0,
) -> None:
    """Play the sample feed through the whole system and show what it found.

    Starts its own Kafka, Postgres and Redis on free ports of this machine, runs every service, ingests
    demo/feed.jsonl with its pictures and voices, waits until each post has its verdict, prints the trends,
    checks them against the posts (`crowdtone verify`) and leaves the dashboard up until Ctrl-C.
    """
    began = time.monotonic()
    env = os.environ | {
        "CROWDTONE_LOCAL_DIR": str(local_dir),
        "CROWDTONE_API_ADDRESS": f"127.0.0.1:{_free_port(50051)}",
        "CROWDTONE_DASHBOARD_PORT": str(_free_port(8080)),
    }
    # `docker stop`, CI and `kill` send SIGTERM: leave as after Ctrl-C, with everything stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if (local_dir / "stack.json").exists():
            _run(["stack", "down"], env, quiet=True)
        shutil.rmtree(local_dir, ignore_errors=True)
        with _services(env, local_dir) as services:
            _demo(services, env, once=once, began=began, timeout_s=timeout_s)
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        _run(["stack", "down"], env, quiet=True)


def _demo(services: Services, env: dict[str, str], *, once: bool, began: float, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with grpc.insecure_channel(env["CROWDTONE_API_ADDRESS"]) as channel:
        _wait_until_ready(services, channel, deadline)
        api = api_pb2_grpc.CrowdtoneServiceStub(channel)
        _run(["topics", "load", str(DEMO_DIR / "topics.json")], env)
        feed_began = time.monotonic()
        feed = [str(DEMO_DIR / "feed.jsonl"), "--media", str(DEMO_DIR / "media"), "--json"]
        counts = json.loads(_run(["ingest", "jsonl", *feed], env, quiet=True))
        first_verdict_s = _wait_for_verdicts(api, counts["produced"], deadline, feed_began)
        scored_s = time.monotonic() - feed_began
        _print_trends(api)
        _run(["verify"], env)
        _print_figures(api, env, counts["produced"], scored_s, first_verdict_s, feed_began - began)
        console.print(
            f"\n[bold]Dashboard[/]  http://127.0.0.1:{env['CROWDTONE_DASHBOARD_PORT']}/\n"
            f"[bold]Ask it[/]     CROWDTONE_API_ADDRESS={env['CROWDTONE_API_ADDRESS']} "
            "crowdtone query trends lumio-one",
            soft_wrap=True,
        )
        if not once:
            console.print("Up until Ctrl-C.")
            while True:
                time.sleep(1)


def _free_port(preferred: int) -> int:
    """`preferred` when nothing listens there, else any free one."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


def _run(arguments: Sequence[str], env: dict[str, str], *, quiet: bool = False) -> str:
    """Run one crowdtone command and return what it printed; a failure ends the demo with its output."""
    if not quiet:
        console.print(f"[dim]$ crowdtone {' '.join(arguments)}[/]")
    done = subprocess.run([*CROWDTONE, *arguments], env=env, capture_output=True, text=True)
    if not quiet or done.returncode:
        print(done.stdout, end="", flush=True)
        print(done.stderr, end="", file=sys.stderr, flush=True)
    if done.returncode:
        console.print(f"[red]crowdtone {' '.join(arguments)} failed (exit {done.returncode})[/]")
        raise typer.Exit(done.returncode)
    return done.stdout


@dataclass(frozen=True, slots=True)
class Services:
    """The command that runs them all, and what it said."""

    supervisor: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """End the demo when they ended, with the end of their log."""
        if self.supervisor.poll() is not None:
            print(tail(self.log))
            console.print(f"[red]the services ended (exit {self.supervisor.returncode}); see {self.log}[/]")
            raise typer.Exit(1)


@contextmanager
def _services(env: dict[str, str], local_dir: Path) -> Iterator[Services]:
    """The stack and every service under the supervisor, drained at the end."""
    console.print("[dim]$ crowdtone run all --up[/]")
    local_dir.mkdir(parents=True)
    log = local_dir / "services.log"
    with log.open("wb") as output:
        supervisor = subprocess.Popen(
            [*CROWDTONE, "run", "all", "--up"], env=env, stdout=output, stderr=subprocess.STDOUT
        )
    services = Services(supervisor, log)
    try:
        yield services
        services.check()
    finally:
        supervisor.terminate()
        supervisor.wait(timeout=120)


def _wait_until_ready(services: Services, channel: grpc.Channel, deadline: float) -> None:
    """Until the API answers; meanwhile, what servers and supervisor say."""
    said, ready = Following(services.log, shown=0), grpc.channel_ready_future(channel)
    with console.status("starting servers and services"):
        while True:
            with suppress(grpc.FutureTimeoutError):
                ready.result(timeout=POLL_S)
                return
            for line in said.new_lines():
                if not line.startswith(DAEMONS):
                    console.print(line, style="dim", markup=False, soft_wrap=True)
            services.check()
            if time.monotonic() > deadline:
                console.print(f"[red]the API did not answer in time; see {services.log}[/]")
                raise typer.Exit(1)


def _posts(api: Any) -> Iterator[api_pb2.ScoredPost]:
    token = ""
    while True:
        page = api.ListPosts(
            api_pb2.ListPostsRequest(
                filter=api_pb2.TrendFilter(topic=ALL_POSTS), page_size=500, page_token=token
            )
        )
        yield from page.posts
        token = page.next_page_token
        if not token:
            return


def _wait_for_verdicts(api: Any, produced: int, deadline: float, began: float) -> float:
    """Until all `produced` posts have a complete verdict; the seconds from the feed's start to the first."""
    first_verdict_s = 0.0
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("posts with a verdict", total=produced)
        while True:
            # Reading every post is work for the cores that the models need: only when all are there.
            posts = sum(point.posts for point in _points(api, ALL_POSTS, api_pb2.GRAIN_DAY))
            full = sum(post.sentiment.complete for post in _posts(api)) if posts >= produced else 0
            if posts and not first_verdict_s:
                first_verdict_s = time.monotonic() - began
            if full:
                progress.update(task, description="posts with their full verdict", completed=full)
            else:
                progress.update(task, completed=posts)
            if full >= produced:
                return first_verdict_s
            if time.monotonic() > deadline:
                console.print(f"[red]{posts} of {produced} posts have a verdict, {full} their full one[/]")
                raise typer.Exit(1)
            time.sleep(POLL_S)


def _print_trends(api: Any) -> None:
    table = Table(
        title="How people feel", title_justify="left", box=None, pad_edge=False, collapse_padding=True
    )
    table.add_column("topic", no_wrap=True)
    table.add_column("day", no_wrap=True)
    for name in ("posts", "neg", "neut", "pos", "unsc", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("score by hour", no_wrap=True)
    topics = [
        (topic.name, topic.display_name) for topic in api.ListTopics(api_pb2.ListTopicsRequest()).topics
    ]
    for name, display_name in [*topics, (ALL_POSTS, "all posts")]:
        hours = _points(api, name, api_pb2.GRAIN_HOUR)
        for point in _points(api, name, api_pb2.GRAIN_DAY):
            day = point.bucket_start.ToDatetime().date()
            scores = [hour.mean_score for hour in hours if hour.bucket_start.ToDatetime().date() == day]
            table.add_row(
                display_name,
                f"{day:%d %b}",
                *(str(count) for count in (point.posts, point.negative, point.neutral, point.positive)),
                str(point.unscored),
                f"{point.mean_score:+.2f}",
                sparkline(scores),
            )
        table.add_section()
    console.print(table)


def _points(api: Any, topic: str, grain: api_pb2.Grain.ValueType) -> Sequence[api_pb2.TrendPoint]:
    request = api_pb2.QueryTrendsRequest(filter=api_pb2.TrendFilter(topic=topic), grain=grain)
    points: Sequence[api_pb2.TrendPoint] = api.QueryTrends(request).points
    return points


def sparkline(scores: Sequence[float]) -> str:
    """One block per score, from -1 (lowest) to 1 (highest)."""
    blocks = "▁▂▃▄▅▆▇█"
    return "".join(blocks[min(7, max(0, int((score + 1) * 4)))] for score in scores)


def _print_figures(
    api: Any, env: dict[str, str], produced: int, scored_s: float, first_verdict_s: float, startup_s: float
) -> None:
    """Speed and memory of this run; docs/BENCHMARKS.md says what they were measured on."""
    table = Table(
        title="This run", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_row("start to services ready", f"{startup_s:.1f} s")
    table.add_row("feed to first verdict", f"{first_verdict_s:.1f} s")
    table.add_row("start to first verdict", f"{startup_s + first_verdict_s:.1f} s")
    table.add_row("feed to last verdict", f"{scored_s:.1f} s")
    table.add_row("posts/s", f"{produced / scored_s:.1f}")
    for status in api.ListServices(api_pb2.ListServicesRequest()).services:
        peak = peak_memory_bytes(int(status.instance.rpartition(":")[2]))
        if peak:
            table.add_row(f"peak memory, {status.service}", f"{peak / 2**20:.0f} MiB")
    console.print(table)


def peak_memory_bytes(pid: int) -> int:
    """The high-water mark of a process' resident memory (Linux); 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
