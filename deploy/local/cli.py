"""`crowdtone stack ...` and `crowdtone run ...`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deploy.local import fork, supervisor
from deploy.local import stack as local_stack
from deploy.local.process import tail
from deploy.local.state import Failed
from shared.settings import WorkerSettings, local_dir

CROWDTONE: Final = (sys.executable, "-m", "services.cli")
DAEMONS: Final = ("text_encoder", "image_encoder", "audio_encoder", "fusion", "api", "alerts", "dashboard")
COLOURS: Final = ("cyan", "magenta", "green", "yellow", "blue", "bright_red", "bright_cyan", "bright_magenta")

console = Console(highlight=False)
complaints = Console(stderr=True, highlight=False)
app = typer.Typer(
    no_args_is_help=True,
    help="""Kafka, Postgres and Redis on this machine.

    Data, logs and the settings by which services find them (`stack.env`) are in `.local`, or in the folder
    that CROWDTONE_LOCAL_DIR names. With servers elsewhere none of this is needed: set
    CROWDTONE_KAFKA_BOOTSTRAP_SERVERS, CROWDTONE_POSTGRES_URL and CROWDTONE_REDIS_URL.""",
)


def _say(line: str) -> None:
    console.print(escape(line), soft_wrap=True)


def _fail(reason: str) -> typer.Exit:
    complaints.print(escape(reason), style="red", soft_wrap=True)
    return typer.Exit(1)


@app.command()
def up() -> None:
    """Start what does not run yet, wait until it answers, create database, tables and topics.

    Safe to run at any time: what is there stays as it is, data included.
    """
    try:
        addresses = local_stack.up(local_dir(), say=_say)
        local_stack.create_database(local_dir())
    except Failed as error:
        raise _fail(str(error)) from None
    _create_schema(addresses)
    _say(f"settings are in {local_dir() / 'stack.env'}")


@app.command()
def schema() -> None:
    """Create or migrate tables and topics on the servers that the settings name, here or elsewhere.

    `up` does it for the local stack.
    """
    _create_schema({})


def _create_schema(addresses: dict[str, str]) -> None:
    """addresses: variables of the local stack; what they do not name, the settings do."""
    from deploy.postgres import migrate
    from shared.kafka import create_topics
    from shared.settings import KafkaSettings, PostgresSettings

    url = addresses.get("CROWDTONE_POSTGRES_URL") or PostgresSettings().url.get_secret_value()
    migrate(url)
    _say("the database is at its newest migration")
    brokers = addresses.get("CROWDTONE_KAFKA_BOOTSTRAP_SERVERS") or KafkaSettings().bootstrap_servers
    create_topics(KafkaSettings(bootstrap_servers=brokers))
    _say("the topics exist")


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="One object, for programs.")] = False,
) -> None:
    """Which servers run and answer. Exits 0 when all do, 3 when not."""
    try:
        found = local_stack.statuses(local_dir())
    except Failed as error:
        raise _fail(str(error)) from None
    if as_json:
        print(
            json.dumps(
                {
                    server.name: {
                        "answers": server.answers,
                        "trouble": server.trouble,
                        "address": server.address,
                        "pid": server.process.pid if server.process else None,
                        "log": str(server.log),
                    }
                    for server in found
                }
            )
        )
    else:
        table = Table("server", "state", "address", "pid", "log", box=None, pad_edge=False)
        for server in found:
            state = "[green]answers[/]" if server.answers else f"[red]{escape(server.trouble)}[/]"
            pid = str(server.process.pid) if server.process else "-"
            table.add_row(server.name, state, server.address or "-", pid, str(server.log))
        console.print(table)
    raise typer.Exit(0 if all(server.answers for server in found) else 3)


@app.command()
def logs(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Servers or services; all by default.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Show the ends of the logs of servers and services."""
    folder = local_dir() / "logs"
    paths = [folder / f"{name}.log" for name in names] if names else sorted(folder.glob("*.log"))
    if missing := [path for path in paths if not path.exists()]:
        raise _fail(f"no log {', '.join(map(str, missing))}")
    if not paths:
        raise _fail(f"no logs in {folder}: nothing was started there yet")
    for path in paths:
        console.print(f"[bold]{escape(str(path))}[/]", soft_wrap=True)
        print(tail(path, lines))
    following = [supervisor.Following(path) for path in paths if follow]
    show = _shower([each.log.stem for each in following])
    try:
        while following:
            for each in following:
                for line in each.new_lines():
                    show(each.log.stem, line)
            time.sleep(0.2)
    except KeyboardInterrupt:
        pass


@app.command()
def down() -> None:
    """Stop the servers. Their data stays; remove the folder to be rid of it."""
    try:
        local_stack.down(local_dir(), say=_say)
    except Failed as error:
        raise _fail(str(error)) from None


def run(
    services: Annotated[
        list[str],
        typer.Argument(metavar="SERVICE...", help="Any of them, `all`, or SERVICE=N for N processes of it."),
    ],
    drain_s: Annotated[
        float, typer.Option(help="After a first signal: how long before what still runs is killed.")
    ] = 60.0,
    up: Annotated[
        bool, typer.Option("--up", help="`crowdtone stack up` first, while the services' code is loaded.")
    ] = False,
) -> None:
    """Run services until Ctrl-C or SIGTERM, then let them finish what they hold.

    One that dies is started again after a wait that doubles; one that keeps dying ends the run with the end
    of its log. Logs are in `.local/logs`. To use more cores, start more of the same:
    `crowdtone run text_encoder=2 fusion`. With CROWDTONE_WORKER_METRICS_PORT the first process has its
    metrics on that port, and each other one on the next.
    """
    try:
        modules = modules_of(services)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    stack = subprocess.Popen([*CROWDTONE, "stack", "up"]) if up else None
    fork.preload(f"{module}.__main__" for module in dict.fromkeys(modules.values()))
    if stack is not None and stack.wait() != 0:
        raise typer.Exit(1)
    first_port = WorkerSettings().metrics_port
    programs = [
        supervisor.Program(
            name, partial(fork.fork, name, module, environment=metrics_port(first_port, number))
        )
        for number, (name, module) in enumerate(modules.items())
    ]
    show = _shower(list(modules))
    raise typer.Exit(supervisor.run(programs, local_dir() / "logs", show=show, drain_s=drain_s))


def modules_of(words: list[str]) -> dict[str, str]:
    """The processes that the command line asks for: the name of each and the module that it runs.

    From the second process of a service on, the name tells which: `fusion.2`. Raises ValueError for a word
    that names no service.
    """
    modules: dict[str, str] = {}
    for word in words:
        name, equals, count = word.partition("=")
        if equals and not (count.isdecimal() and 1 <= int(count) <= 64):
            raise ValueError(f"{word}: SERVICE=N takes a number from 1 to 64")
        names = DAEMONS if name == "all" else (name.replace("-", "_"),)
        if names[0] not in DAEMONS:
            raise ValueError(f"no service {name!r}; there are {', '.join(DAEMONS)}, and all")
        if not modules.keys().isdisjoint(names):
            raise ValueError("each service once; SERVICE=N for more of it")
        for each in names:
            for instance in range(1, int(count or 1) + 1):
                modules[each if instance == 1 else f"{each}.{instance}"] = f"services.{each}"
    return modules


def metrics_port(first: int, number: int) -> dict[str, str]:
    """The environment of the number-th process, from 0: no two want one port; {} where first is 0."""
    return {"CROWDTONE_WORKER_METRICS_PORT": str(first + number)} if first else {}


def _shower(names: list[str]) -> supervisor.Show:
    """Prints lines with the name of who said them, each in its own colour; ours stand out by having none."""
    width = max(map(len, names), default=0)
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(names)}

    def show(name: str, line: str) -> None:
        prefix = f"[{colours[name]}]{name:<{width}}[/] " if name else "[bold]crowdtone[/] "
        console.print(prefix + escape(line), soft_wrap=True)

    return show
