"""`crowdtone bench VERB`: what the services cost on this machine, and how fusion models compare.

Each verb is a file of this folder and a line of `VERBS`, imported only when it is the one that runs.
"""

from __future__ import annotations

from typing import Any, Final

import typer
from typer.core import TyperGroup

from services.cli import Entry, load

MEASURE: Final = "Measure"

VERBS: Final = (
    Entry("encode", "benchmarks.encode:encode", MEASURE, "An encoder's step over the bare model loop."),
    Entry("join", "benchmarks.join:join", MEASURE, "Fusion's step on one core, to rows ready for Postgres."),
    Entry("e2e", "benchmarks.e2e:e2e", MEASURE, "Kafka to Postgres by all services: posts/s, latency."),
    Entry("sink", "benchmarks.sink:sink", MEASURE, "Verdicts committed to a real Postgres, with trends."),
    Entry("peers", "benchmarks.peers:peers", MEASURE, "The text encoder beside others with the same model."),
    Entry("api", "benchmarks.api:api", MEASURE, "Trend queries over 90 days; requests/s of one API process."),
    Entry("scaling", "benchmarks.scaling:command", MEASURE, "What a rate takes, from measured figures."),
    Entry("backlog", "benchmarks.backlog:command", MEASURE, "Memory while a service works off a full topic."),
    Entry("growth", "benchmarks.growth:command", MEASURE, "Cost of a post: long backlogs, more processes."),
    Entry("compare", "benchmarks.compare:compare", MEASURE, "Fusion strategies and heads on labelled sets."),
)


class _Verbs(TyperGroup):
    """A group that knows its commands by name and help, and imports the one that is asked for."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        entry = next((entry for entry in VERBS if entry.name == name), None)
        if entry is None:
            return name, command, rest
        alone = typer.Typer(pretty_exceptions_enable=False)
        alone.command(entry.name)(load(entry))
        return name, typer.main.get_command(alone), rest


def _named_only() -> None:
    raise AssertionError("a verb is imported before it runs")


app = typer.Typer(help=__doc__, cls=_Verbs, no_args_is_help=True, rich_markup_mode="markdown")
for _entry in VERBS:
    app.command(_entry.name, help=_entry.help, rich_help_panel=_entry.panel)(_named_only)


if __name__ == "__main__":
    app(prog_name="crowdtone bench")
