"""`crowdtone dlq`: what could not be read, why, and what becomes of it. Knows topics, no service."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared import kafka, topics
from shared.dead_letters import DeadLetter, Filter, line, marked, marker, original, read
from shared.errors import InvalidMessage, Unavailable
from shared.messages import Output, Record
from shared.settings import KafkaSettings
from shared.topics import FEED, dead_letters

SOURCES: Final = tuple(topic.name.removesuffix(".dlq") for topic in topics.ALL if topic.name.endswith(".dlq"))
BATCH_RECORDS: Final = 200
BATCH_BYTES: Final = 8 * 1024 * 1024
HEXDUMP_BYTES: Final = 4096
T = TypeVar("T")

console = Console(highlight=False)
complaints = Console(stderr=True, highlight=False)
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="""Dead letters: what a service could not read, and why.

    TOPIC is where a record was before (posts, embeddings, sentiments, alerts), or "feed" for lines of feeds
    that ingest refused. A dead letter stays until it is purged, or 30 days.""",
)

Source = Annotated[str, typer.Argument(metavar="TOPIC", help=" | ".join(SOURCES))]
Reason = Annotated[str, typer.Option(help="Only where this is part of the reason.")]
Since = Annotated[str, typer.Option(help='Only what was set aside since: "2h", "3d" or an RFC 3339 time.')]
Service = Annotated[str, typer.Option(help="Only what this service set aside.")]
FeedName = Annotated[str, typer.Option("--feed", help="Only lines of the feed of this name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


@dataclass(slots=True)
class _Group:
    """Dead letters of one topic, service and kind of reason."""

    letters: int = 0
    replayed: int = 0
    times: list[datetime] = field(default_factory=list)  # of the first and the last


@app.command("ls")
def list_(
    topic: Annotated[str | None, typer.Option(help="Only of this topic.")] = None,
    reason: Reason = "",
    since: Since = "",
    service: Service = "",
    feed: FeedName = "",
    each: Annotated[bool, typer.Option("--each", help="One line for each record, newest first.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Lines at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """How many dead letters there are, by topic, service and reason (its numbers written as #)."""
    settings = KafkaSettings()
    wanted = Filter(reason, _time(since), service, feed)
    names = SOURCES if topic is None else (_source(topic),)
    groups: dict[tuple[str, str, str], _Group] = defaultdict(_Group)
    rows: list[dict[str, Any]] = []
    for name in names:
        done = _replayed(settings, name)
        for letter in _letters(settings, name):
            if not wanted.takes(letter):
                continue
            again = letter.record.offset in done[letter.record.partition]
            if each:
                rows.append(_row(letter, again))
                continue
            group = groups[letter.topic, letter.service, letter.kind]
            group.letters += 1
            group.replayed += again
            group.times = [min([letter.time, *group.times]), max([letter.time, *group.times])]
    if not each:
        by_size = sorted(groups.items(), key=lambda item: (item[0][0], -item[1].letters))
        rows = [
            {
                "topic": of,
                "service": by,
                "reason": kind,
                "letters": group.letters,
                "replayed": group.replayed,
                "first": _iso(group.times[0]),
                "last": _iso(group.times[1]),
            }
            for (of, by, kind), group in by_size
        ]
    else:
        rows.sort(key=lambda row: str(row["time"]), reverse=True)
    _print(rows, limit, as_json)


@app.command()
def show(
    topic: Source,
    offset: Annotated[int, typer.Argument(help="Of the dead letter (`ls --each` tells).")],
    partition: Annotated[int, typer.Option(help="Of the dead letter.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Write the original bytes and nothing else.")] = False,
) -> None:
    """One dead letter: where it was, why it is here, its headers and its bytes."""
    name = _source(topic)
    for letter in _letters(KafkaSettings(), name):
        if (letter.record.partition, letter.record.offset) == (partition, offset):
            break
    else:
        raise _fail(f"no dead letter at {dead_letters(name)}/{partition}/{offset}")
    if raw:
        sys.stdout.buffer.write(letter.record.value)
        return
    for what, value in _row(letter, False).items():
        if what not in ("topic", "partition", "offset", "replayed"):
            console.print(f"[bold]{what}[/bold] {escape(str(value))}", soft_wrap=True)
    console.print(f"[bold]key[/bold] {escape(repr(letter.record.key))}", soft_wrap=True)
    for header, content in letter.record.headers:
        text = content.decode(errors="backslashreplace")
        console.print(f"  {escape(header)}: {escape(text)}", soft_wrap=True)
    for text in _content(letter.record.value):
        console.print(escape(text), soft_wrap=True)


@app.command()
def replay(
    topic: Source,
    reason: Reason = "",
    since: Since = "",
    service: Service = "",
    feed: FeedName = "",
    limit: Annotated[int, typer.Option(min=1, help="Records at most, oldest first.")] = 1_000_000,
    again: Annotated[bool, typer.Option("--again", help="Also what was replayed before.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Send records back to where they were: the same bytes, headers, key and partition.

    Each goes once: what was replayed is noted on the dead-letter topic, once the brokers have it. A crash
    between the two sends up to 200 records twice, which changes no verdict. What is bad still comes back as a
    new dead letter.

    A line of a feed never was a record, so it is ingested again: `crowdtone dlq replay feed` writes the lines
    to standard output, for `crowdtone ingest jsonl -` or `jetstream -` (--feed chooses among feeds; pictures
    need the --media folder they had).
    """
    name, settings = _source(topic), KafkaSettings()
    wanted = Filter(reason, _time(since), service, feed)
    done: dict[int, set[int]] = defaultdict(set) if again else _replayed(settings, name)
    chosen: dict[int, set[int]] = defaultdict(set)
    kinds: Counter[str] = Counter()
    for letter in _letters(settings, name):
        place = letter.record
        if sum(kinds.values()) >= limit:
            break
        if wanted.takes(letter) and place.offset not in done[place.partition]:
            chosen[place.partition].add(place.offset)
            kinds[f"{letter.service}: {letter.kind}"] += 1
    total = sum(kinds.values())
    for kind, count in kinds.most_common(10):
        complaints.print(f"{count:>8,}  {escape(kind)}", soft_wrap=True)
    where = "standard output" if name == FEED else name
    if not total or dry_run:
        complaints.print(f"{total:,} records to replay to {where}" + (", nothing done" if dry_run else ""))
        return
    if not yes:
        typer.confirm(f"Replay {total:,} records to {where}?", abort=True, err=True)
    sent, kept = _reached(lambda: _replay(settings, name, chosen))
    complaints.print(f"replayed {sent:,} records to {where}" + (f"; {kept:,} cannot be" if kept else ""))


def _replay(settings: KafkaSettings, name: str, chosen: dict[int, set[int]]) -> tuple[int, int]:
    """Send and note, batch by batch. Returns how many were sent, and how many cannot be."""
    sent = kept = 0
    with kafka.Sink(settings) as sink:
        batch: list[DeadLetter] = []

        def flush() -> None:
            nonlocal sent
            if not batch:
                return
            if name == FEED:
                sys.stdout.buffer.writelines(line(letter) for letter in batch)
                sys.stdout.buffer.flush()
            else:
                sink.write([original(letter) for letter in batch])
            offsets: dict[int, list[int]] = defaultdict(list)
            for letter in batch:
                offsets[letter.record.partition].append(letter.record.offset)
            now = datetime.now(UTC)
            notes: list[Output] = [
                marker(dead_letters(name), partition, those, time=now) for partition, those in offsets.items()
            ]
            sink.write(notes)
            sent += len(batch)
            batch.clear()

        size = 0
        for letter in _letters(settings, name):
            if letter.record.offset not in chosen[letter.record.partition]:
                continue
            if name == FEED:
                try:
                    line(letter)
                except InvalidMessage as error:
                    complaints.print(f"offset {letter.record.offset}: {escape(str(error))}", soft_wrap=True)
                    kept += 1
                    continue
            batch.append(letter)
            size += len(letter.record.value)
            if len(batch) >= BATCH_RECORDS or size >= BATCH_BYTES:
                flush()
                size = 0
        flush()
    return sent, kept


@app.command()
def purge(
    topic: Source,
    up_to: Annotated[
        int | None, typer.Option(min=0, help="The last offset that goes; default: all there is now.")
    ] = None,
    partition: Annotated[int, typer.Option(help="Of the dead letters.")] = 0,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Delete dead letters for good, the oldest first, up to an offset."""
    name, settings = _source(topic), KafkaSettings()
    done = _replayed(settings, name)
    letters = replayed = 0
    last = -1
    for record in _records(settings, name):
        if record.partition == partition and (up_to is None or record.offset <= up_to):
            last = record.offset
            letters += marked(record) is None
            replayed += record.offset in done[partition]
    if last < 0:
        complaints.print("nothing to purge")
        return
    what = f"{letters:,} dead letters of {name}, {letters - replayed:,} of them never replayed"
    if dry_run:
        complaints.print(f"{what}: nothing done")
        return
    if not yes:
        typer.confirm(f"Delete {what}?", abort=True, err=True)
    _reached(lambda: kafka.delete_before(settings, dead_letters(name), {partition: last + 1}))
    complaints.print(f"deleted {what}")


def _records(settings: KafkaSettings, name: str) -> Iterator[Record]:
    try:
        yield from kafka.read_all(settings, dead_letters(name))
    except (Unavailable, ValueError) as error:
        raise _fail(str(error)) from None


def _letters(settings: KafkaSettings, name: str) -> Iterator[DeadLetter]:
    """All dead letters of a topic, in order; what is neither letter nor marker is told of and passed over."""
    for record in _records(settings, name):
        if marked(record) is not None:
            continue
        try:
            yield read(record)
        except InvalidMessage as error:
            where = f"{record.topic}/{record.partition}/{record.offset}"
            complaints.print(f"{where}: {escape(str(error))}", soft_wrap=True)


def _replayed(settings: KafkaSettings, name: str) -> dict[int, set[int]]:
    """Per partition, the offsets of the letters that were replayed."""
    done: dict[int, set[int]] = defaultdict(set)
    for record in _records(settings, name):
        for offsets in marked(record) or ():
            done[record.partition].update(offsets)
    return done


def _row(letter: DeadLetter, again: bool) -> dict[str, Any]:
    return {
        "offset": letter.record.offset,
        "time": _iso(letter.time),
        "from": f"{letter.topic}/{letter.partition}/{letter.offset}",
        "service": letter.service,
        "reason": letter.reason,
        "bytes": len(letter.record.value),
        "replayed": again,
    }


def _print(rows: list[dict[str, Any]], limit: int, as_json: bool) -> None:
    if as_json:
        for row in rows[:limit]:
            typer.echo(json.dumps(row))
        return
    if not rows:
        console.print("no dead letters")
        return
    table = Table(*rows[0])
    for row in rows[:limit]:
        table.add_row(*(escape(f"{value:,}" if type(value) is int else str(value)) for value in row.values()))
    console.print(table)
    if len(rows) > limit:
        console.print(f"and {len(rows) - limit:,} more (--limit)")


def _content(value: bytes) -> Iterator[str]:
    """Text as text; anything else as a hexdump of its beginning."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    if all(character.isprintable() or character in "\n\t" for character in text):
        yield text
        return
    for at in range(0, min(len(value), HEXDUMP_BYTES), 16):
        row = value[at : at + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{at:08x}  {row.hex(' '):<47}  {shown}"
    if len(value) > HEXDUMP_BYTES:
        yield f"and {len(value) - HEXDUMP_BYTES:,} bytes more (--raw writes all)"


def _source(topic: str) -> str:
    name = topic.removesuffix(".dlq")
    if name not in SOURCES:
        raise typer.BadParameter(f"{topic!r} has no dead letters; one of {', '.join(SOURCES)}")
    return name


def _time(since: str) -> datetime | None:
    """Raises typer.BadParameter."""
    if not since:
        return None
    if found := re.fullmatch(r"(\d{1,6})([smhd])", since):
        unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[found[2]]
        return datetime.now(UTC) - timedelta(**{unit: int(found[1])})
    try:
        time = datetime.fromisoformat(since)
    except ValueError as error:
        raise typer.BadParameter(f"{since!r} is neither like 2h nor a time", param_hint="--since") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _reached(work: Callable[[], T]) -> T:
    try:
        return work()
    except Unavailable as error:
        raise _fail(str(error)) from None


def _fail(reason: str) -> typer.Exit:
    complaints.print(escape(reason), style="red", soft_wrap=True)
    return typer.Exit(1)
