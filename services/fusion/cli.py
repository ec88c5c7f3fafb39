"""`crowdtone verify`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from services.fusion.trends import ZERO, Counts
from services.fusion.verify import Difference, Report
from services.fusion.verify import verify as recompute
from shared import db
from shared.settings import PostgresSettings

SHOWN = 50


def verify(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Recompute the trends from the posts and compare. Exits 1 on any difference, 0 when there is none."""
    postgres = PostgresSettings()
    engine = db.engine(postgres)
    report = db.retried(lambda: recompute(engine), retry_s=postgres.retry_s, what="verify")
    if as_json:
        typer.echo(json.dumps(_as_json(report)))
    else:
        _show(report)
    if not report.holds:
        raise typer.Exit(1)


def _show(report: Report) -> None:
    console = Console()
    if report.differences:
        columns = ("topic", "grain", "bucket (UTC)", "platform", "language", "what", "kept", "counted")
        table = Table(*(Column(name, overflow="fold", no_wrap=name.startswith("bucket")) for name in columns))
        for difference in report.differences[:SHOWN]:
            key = difference.key
            place = (
                key.topic,
                key.grain.name.lower(),
                f"{key.bucket:%Y-%m-%d %H:%M}",
                key.platform,
                key.language,
            )
            for what, kept, counted in _values(difference):
                table.add_row(*place, what, kept, counted)
        console.print(table)
        if len(report.differences) > SHOWN:
            console.print(f"and {len(report.differences) - SHOWN:,} rows more (--json lists up to 1,000)")
    if report.unlisted_posts:
        console.print(f"{report.unlisted_posts:,} posts are not listed in post_days with their event time")
    if report.wrong_totals:
        console.print(f"{report.wrong_totals:,} rows of trend_totals are not the sums of their trends")
    verdict = "the trends are exactly what the posts say" if report.holds else "THE TRENDS ARE WRONG"
    console.print(f"{report.posts:,} posts against {report.trends:,} trend rows: {verdict}")


def _values(difference: Difference) -> list[tuple[str, str, str]]:
    """What differs in a row: name, kept, counted. A row that is not there counts nothing."""
    kept_row, counted_row = difference.kept or ZERO, difference.counted or ZERO
    return [
        (name, f"{kept:,}", f"{counted:,}")
        for name, kept, counted in zip(Counts._fields, kept_row, counted_row, strict=True)
        if kept != counted
    ]


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "holds": report.holds,
        "posts": report.posts,
        "trends": report.trends,
        "unlisted_posts": report.unlisted_posts,
        "wrong_totals": report.wrong_totals,
        "differences": [
            {
                **difference.key._asdict(),
                "grain": difference.key.grain.name.lower(),
                "bucket": difference.key.bucket.isoformat(),
                "kept": difference.kept._asdict() if difference.kept else None,
                "counted": difference.counted._asdict() if difference.counted else None,
            }
            for difference in report.differences
        ],
    }
