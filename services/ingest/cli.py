"""`crowdtone ingest`: the commands, and the wiring of what they run; nothing else here reads it."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy.exc import ProgrammingError

from services.ingest import erase, jetstream, jsonl
from services.ingest.attachments import Attachments, MediaCounts
from services.ingest.draft import Parse
from services.ingest.feeds import LineFeed, SocketFeed
from services.ingest.fetch import Fetcher
from services.ingest.intake import SERVICE, Counts, Intake, author_hash
from services.ingest.seen import Seen
from services.ingest.settings import AuthorSettings, FetchSettings, IngestSettings
from services.ingest.tracked import TrackedTopics
from shared import db, health, heartbeat, kafka, worker
from shared.errors import Unavailable
from shared.media import MediaStore
from shared.settings import KafkaSettings, MediaSettings, PostgresSettings, RedisSettings, WorkerSettings

log = logging.getLogger(__name__)
S = TypeVar("S", AuthorSettings, FetchSettings, IngestSettings)

app = typer.Typer(
    no_args_is_help=True, help="Read posts from files and feeds.", pretty_exceptions_enable=False
)

Rate = Annotated[float | None, typer.Option(min=0.001, help="Lines per second at most.")]
AsJson = Annotated[bool, typer.Option("--json", help="End with one JSON object instead of a table.")]
Fetch = Annotated[
    bool | None,
    typer.Option(
        "--fetch/--no-fetch",
        help="Fetch pictures and sounds from the addresses in posts; default: only of a live stream.",
    ),
]
Again = Annotated[bool, typer.Option("--again", help="Also produce posts that were produced before.")]


class Feed(worker.Readable, Protocol):
    """A source that may come to an end."""

    bytes_read: int

    @property
    def finished(self) -> bool: ...


Open = Callable[[IngestSettings, Intake, Seen, Callable[[], None]], Feed]


@app.command("jsonl")
def jsonl_command(
    file: Annotated[
        str, typer.Argument(help="One JSON object a line (see demo/README.md); - is standard input.")
    ],
    media: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder that media paths start from; default: the folder of FILE.",
        ),
    ] = None,
    rate: Rate = None,
    loop: Annotated[
        bool,
        typer.Option(
            "--loop",
            help="Begin again at the end, until stopped; from then on every post is new and posted now.",
        ),
    ] = False,
    fetch: Fetch = None,
    again: Again = False,
    as_json: AsJson = False,
) -> None:
    """Read posts from a file of JSON lines."""
    if file == "-" and loop:
        raise typer.BadParameter("standard input cannot be read twice", param_hint="--loop")
    with opened(file) as (fd, name):
        folder = media if media is not None else None if file == "-" else Path(file).parent
        feed = _lines(fd, name, rate, loop)
        _ingest(jsonl.parse, feed, folder, bool(fetch), _size(fd, loop), again, as_json)


@app.command("jetstream")
def jetstream_command(
    source: Annotated[
        str, typer.Argument(metavar="FILE|URL", help="A recording (JSON lines; -), or ws(s)://...")
    ],
    rate: Rate = None,
    fetch: Fetch = None,
    again: Again = False,
    as_json: AsJson = False,
) -> None:
    """Read new posts from Bluesky's Jetstream (version 1), recorded or live.

    A live stream runs until stopped, survives broken connections, and resumes where it was left the last
    time.
    """
    if source.startswith(("ws://", "wss://")):
        if rate is not None:
            raise typer.BadParameter("a live stream has its own rate", param_hint="--rate")
        _ingest(jetstream.parse, _stream(source), None, fetch is not False, None, again, as_json)
        return
    with opened(source) as (fd, name):
        feed = _lines(fd, name, rate, False)
        _ingest(jetstream.parse, feed, None, bool(fetch), _size(fd, False), again, as_json)


@app.command("erase")
def erase_command(
    platform: Annotated[str, typer.Argument(help="Where the author posts.")],
    author: Annotated[str, typer.Argument(help="The author's name there, as the feed gives it.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many posts there are.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take back every stored post of an author: text and verdict go, and the trends are corrected.

    Each is sent the way of a deletion at the source, so it is gone as soon as the text encoder and fusion
    have come to it. Posts that are still under way are not found yet: run it again when the lag is 0.
    """
    if not author:
        raise typer.BadParameter("whose posts?", param_hint="AUTHOR")
    key = _author_key()
    postgres, settings = PostgresSettings(), KafkaSettings()
    engine = db.engine(postgres)
    wanted = author_hash(key, platform.lower(), author)
    try:
        posts = db.retried(
            lambda: erase.posts_of(engine, wanted), retry_s=postgres.retry_s, what="posts of an author"
        )
        print(f"{len(posts):,} posts of this author")
        if not posts or dry_run:
            return
        if not yes:
            typer.confirm("Take them all back for good?", abort=True)
        with kafka.Sink(settings) as sink:
            erase.retract(sink, posts)
        print("sent; they go as fusion comes to them")
    except Unavailable as error:
        log.error("%s", error)
        raise typer.Exit(75) from None
    finally:
        engine.dispose()


@contextmanager
def opened(file: str) -> Iterator[tuple[int, str]]:
    """File descriptor and name of a file or, for "-", of standard input. Raises typer.BadParameter."""
    if file == "-":
        yield sys.stdin.fileno(), "stdin"
        return
    try:
        fd = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from error
    try:
        if Path(file).is_dir():
            raise typer.BadParameter(f"{file} is a folder")
        yield fd, Path(file).name
    finally:
        os.close(fd)


def _size(fd: int, loop: bool) -> int | None:
    """Bytes to read, for the progress bar; None when nobody knows."""
    return None if loop else os.fstat(fd).st_size or None


def _lines(fd: int, name: str, rate: float | None, loop: bool) -> Open:
    def open_feed(settings: IngestSettings, intake: Intake, seen: Seen, progress: Callable[[], None]) -> Feed:
        def committed() -> None:
            intake.finished()
            progress()

        return LineFeed(
            fd,
            name,
            batch_posts=settings.batch_posts,
            batch_bytes=settings.batch_bytes,
            batch_s=settings.batch_s,
            max_line_bytes=settings.max_line_bytes,
            rate_per_s=rate,
            loop=loop,
            committed=committed,
        )

    return open_feed


def _stream(url: str) -> Open:
    def open_feed(settings: IngestSettings, intake: Intake, seen: Seen, progress: Callable[[], None]) -> Feed:
        def committed(cursor_us: int | None) -> None:
            intake.finished()
            if cursor_us is not None:
                seen.leave_at(url, cursor_us)
            progress()

        return SocketFeed(
            url,
            cursor_us=seen.cursor_us(url),
            cursor_of=jetstream.cursor_us,
            rewind_s=settings.cursor_rewind_s,
            batch_posts=settings.batch_posts,
            batch_bytes=settings.batch_bytes,
            batch_s=settings.batch_s,
            max_line_bytes=settings.max_line_bytes,
            retry_s=settings.socket_retry_s,
            committed=committed,
        )

    return open_feed


def _ingest(
    parse: Parse,
    open_feed: Open,
    folder: Path | None,
    fetch: bool,
    size_bytes: int | None,
    again: bool,
    as_json: bool,
) -> None:
    worker_settings = WorkerSettings()
    worker.main(
        SERVICE,
        lambda: _run(parse, open_feed, folder, fetch, size_bytes, again, as_json, worker_settings),
        log_level=worker_settings.log_level,
    )


def _run(
    parse: Parse,
    open_feed: Open,
    folder: Path | None,
    fetch: bool,
    size_bytes: int | None,
    again: bool,
    as_json: bool,
    worker_settings: WorkerSettings,
) -> None:
    author_key = _author_key()
    settings, fetch_settings = _settings(IngestSettings), _settings(FetchSettings)
    kafka_settings, media_settings, postgres_settings = KafkaSettings(), MediaSettings(), PostgresSettings()
    stopped = worker.on_sigterm()
    engine = db.engine(postgres_settings)
    known = health.Health(
        stall_s=worker_settings.stall_s,
        checks={
            "kafka": partial(kafka.check_answers, kafka_settings),
            "postgres": partial(
                db.check_answers, db.engine(postgres_settings, pool_size=1, statement_timeout_s=3)
            ),
        },
    )
    health.serve(worker_settings.metrics_port, known)
    try:
        kafka.check_partitions(kafka_settings)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    redis_client = heartbeat.connect(RedisSettings())
    try:
        tracked = TrackedTopics(
            engine,
            retry_s=postgres_settings.retry_s,
            refresh_s=settings.topics_refresh_s,
            now=time.time(),
        )
    except ProgrammingError as error:
        raise typer.BadParameter(
            f"the database has no tables yet; `crowdtone stack up` makes them: {error.orig}"
        ) from error
    attachments = Attachments(
        folder,
        MediaStore(media_settings),
        max_bytes=media_settings.max_bytes,
        retry_s=settings.media_retry_s,
        fetch=Fetcher(fetch_settings, max_bytes=media_settings.max_bytes).fetch if fetch else None,
        concurrency=fetch_settings.concurrency,
        batch_s=fetch_settings.batch_s,
    )
    seen = Seen(
        redis_client, prefix=kafka_settings.topic_prefix, ttl_s=settings.dedup_ttl_s, enabled=not again
    )
    intake = Intake(
        parse,
        tracked.matcher,
        attachments,
        seen,
        author_key=author_key,
        settings=settings,
    )
    began = time.monotonic()
    drained = health.end_after(stopped, worker_settings.drain_s)
    try:
        with kafka.Sink(kafka_settings) as sink, progress_bar(intake.counts, size_bytes) as advance:
            feed = open_feed(settings, intake, seen, lambda: advance(feed.bytes_read))
            worker.run(
                SERVICE,
                feed,
                intake.step,
                sink,
                stopped=lambda: stopped() or feed.finished,
                dead_letter_limit=settings.dead_letter_limit,
                heartbeat=heartbeat.Heartbeat(
                    redis_client, SERVICE, interval_s=worker_settings.heartbeat_s, now=time.time()
                ),
                health=known,
            )
    except worker.TooManyDeadLetters as error:
        log.error("%s; is this the right kind of file?", error)
        raise typer.Exit(1) from error
    finally:
        known.ended()
        drained()
        report(intake.counts, attachments.counts, time.monotonic() - began, as_json)
        engine.dispose()
        redis_client.close()


def _author_key() -> bytes:
    """Raises typer.BadParameter when there is none."""
    author_key = _settings(AuthorSettings).author_key
    if author_key is None or not author_key.get_secret_value():
        raise typer.BadParameter(
            "CROWDTONE_AUTHOR_KEY is not set: author ids are only ever stored as a hash under this secret. "
            "`crowdtone stack up` makes one for the local stack; elsewhere make one with "
            "`openssl rand -hex 32`, keep it, and give the same one to every ingest process."
        )
    return author_key.get_secret_value().encode()


def _settings(kind: type[S]) -> S:
    """Read from the environment. Raises typer.BadParameter naming what is wrong, and no secret."""
    try:
        return kind()
    except ValidationError as error:
        prefix = kind.model_config.get("env_prefix", "")
        wrong = [
            f"{prefix}{'.'.join(map(str, each['loc'])).upper()}: {each['msg']}" for each in error.errors()
        ]
        raise typer.BadParameter("; ".join(wrong)) from None


def report(counts: Counts, media: MediaCounts, seconds: float, as_json: bool) -> None:
    """What became of the lines, on standard output."""
    if as_json:
        values = asdict(counts) | {f"media_{name}": value for name, value in asdict(media).items()}
        print(json.dumps(values | {"seconds": round(seconds, 3)}))
        return
    table = Table("lines", "number", "what it means")
    for name, number, meaning in (
        ("read", counts.read, f"in {seconds:.1f} s"),
        ("produced", counts.produced, "new and edited posts on topic `posts`"),
        ("retracted", counts.retracted, "deleted by their authors"),
        ("duplicate", counts.duplicate, "produced before"),
        ("rejected", counts.rejected, "no posts: on topic `feed.dlq`, with the reason"),
        ("skipped", counts.skipped, "about no post: likes, follows, ..."),
        ("media stored", media.stored, "pictures and sounds"),
        ("media missing", media.missing, "to be answered `absent`"),
        ("media ignored", media.ignored, "neither picture nor sound"),
    ):
        table.add_row(name, f"{number:,}", meaning)
    Console().print(table)


@contextmanager
def progress_bar(counts: Counts, size_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a log line every 10 s elsewhere; yields what is told the bytes read so far."""
    console = Console(stderr=True)
    if not console.is_terminal:
        next_s = time.monotonic() + 10

        def line(bytes_read: int) -> None:
            nonlocal next_s
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + 10
                log.info("%s", _words(counts))

        yield line
        return
    columns = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
    if size_bytes:
        columns.insert(1, BarColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(_words(counts), total=size_bytes)
        yield lambda bytes_read: progress.update(task, completed=bytes_read, description=_words(counts))


def _words(counts: Counts) -> str:
    return (
        f"{counts.read:,} read, {counts.produced:,} produced, {counts.duplicate:,} duplicate, "
        f"{counts.rejected:,} rejected, {counts.skipped:,} skipped"
    )
