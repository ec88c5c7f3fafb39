"""`crowdtone`: every command in one place, each imported only when it is the one that runs.

So `crowdtone --help` takes a fraction of a second and no light command ever loads torch.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import typer

HELP: Final = """How people feel about a brand, topic or event, from words, pictures and sound, live.

Start with `crowdtone demo`: it plays a sample feed through the whole system and shows a page with what it
found. Or step by step:

1. `crowdtone stack up` starts Kafka, Postgres and Redis on this machine
2. `crowdtone run all` runs the services; leave it running
3. `crowdtone topics load FILE` says what to look for
4. `crowdtone ingest jsonl FILE` feeds it posts
5. `crowdtone query trends TOPIC` tells how people feel about it

Everything is set by environment variables CROWDTONE_...; docs/ lists them."""

SYSTEM: Final = "Run the system"
FEED: Final = "Feed it and ask it"
MODELS: Final = "Models"


@dataclass(frozen=True, slots=True)
class Entry:
    """A command or group of commands. target: "module:name" of a typer.Typer or of a function."""

    name: str
    target: str
    panel: str
    help: str


ENTRIES: Final = (
    Entry("demo", "deploy.local.demo:demo", SYSTEM, "Play the sample feed through the whole system."),
    Entry("stack", "deploy.local.cli:app", SYSTEM, "Kafka, Postgres and Redis: up, status, logs, down."),
    Entry("run", "deploy.local.cli:run", SYSTEM, "Run services, restart what dies, drain on Ctrl-C."),
    Entry("verify", "services.fusion.cli:verify", SYSTEM, "Recompute the trends; exit 1 on any difference."),
    Entry("dlq", "deploy.dlq:app", SYSTEM, "Dead letters: list, show, replay, purge."),
    Entry("bench", "benchmarks.__main__:app", SYSTEM, "Measure what the services cost on this machine."),
    Entry("ingest", "services.ingest.cli:app", FEED, "Read posts from files and feeds."),
    Entry("topics", "services.api.cli:topics_app", FEED, "What to look for: list, create, load, delete."),
    Entry("query", "services.api.cli:query_app", FEED, "Trends and posts, as tables or JSON."),
    Entry("train", "services.training.cli:train", MODELS, "Train a fusion model."),
    Entry("evaluate", "services.training.cli:evaluate", MODELS, "Measure a model on labelled data."),
    Entry("predict", "services.training.cli:predict", MODELS, "Score one post given on the command line."),
)


def build(wanted: str | None, entries: Sequence[Entry] = ENTRIES) -> typer.Typer:
    """The command line with the `wanted` command in full, and the others by name and help only."""
    app = typer.Typer(
        name="crowdtone",
        help=HELP,
        no_args_is_help=True,
        rich_markup_mode="markdown",  # it joins the lines of a paragraph
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def crowdtone() -> None:
        pass  # without it typer makes an application of one command that command itself

    for entry in entries:
        target = load(entry) if entry.name == wanted else _named_only
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=entry.name, rich_help_panel=entry.panel)
        else:
            app.command(
                entry.name,
                rich_help_panel=entry.panel,
                help=entry.help if entry.name != wanted else None,
            )(target)
    return app


def load(entry: Entry) -> typer.Typer | Callable[..., object]:
    module, _, name = entry.target.partition(":")
    target: typer.Typer | Callable[..., object] = getattr(importlib.import_module(module), name)
    return target


def _named_only() -> None:
    raise AssertionError("a command that was not wanted cannot run")


def wanted_command(argv: Sequence[str], environment_words: str) -> str | None:
    """The first word that is no option. environment_words: the line so far, when a shell completes it."""
    words = environment_words.split()[1:] or argv
    return next((word for word in words if not word.startswith("-")), None)


def main() -> None:
    build(wanted_command(sys.argv[1:], os.environ.get("COMP_WORDS", "")))()


if __name__ == "__main__":
    main()
