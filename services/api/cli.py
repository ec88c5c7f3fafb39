"""`crowdtone query` and `crowdtone topics`: the API from a terminal, as tables or as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, cast

import grpc
import typer
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from protos.crowdtone.v1 import api_pb2 as api
from protos.crowdtone.v1 import api_pb2_grpc
from protos.crowdtone.v1 import events_pb2 as events
from services.api.client import channel
from services.api.settings import ApiClientSettings

query_app = typer.Typer(no_args_is_help=True, help="Ask how people feel: trends, posts, live.")
topics_app = typer.Typer(no_args_is_help=True, help="What is tracked: list, create, load, delete.")

console = Console()
error_console = Console(stderr=True)

Json = dict[str, Any]
USAGE_EXIT: Final = 2
BAR_CELLS: Final = 20
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
# Told apart by shape as well as by colour: tables are also read in logs and by those who see no red.
_SHARES: Final = (
    ("negative", "▒", "red"),
    ("neutral", "─", "white"),
    ("positive", "█", "green"),
    ("unscored", "·", "bright_black"),
)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN: Final = re.compile(r"(\d{1,9})([smhdw])")


class Grain(StrEnum):
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"


class Label(StrEnum):
    NEGATIVE = "negative"
    NEUTRAL = "neutral"
    POSITIVE = "positive"
    UNSCORED = "unscored"


Topic = Annotated[str, typer.Argument(metavar="TOPIC", help='A topic\'s name, or "*" for all posts.')]
Since = Annotated[
    str, typer.Option(help="Begin here: 30m, 12h, 2d, 1w ago, or ISO 8601 (UTC unless it says otherwise).")
]
Until = Annotated[str, typer.Option(help="End before this; the same forms.")]
Platform = Annotated[str, typer.Option(help="Only posts of this platform.")]
Language = Annotated[str, typer.Option(help="Only posts in this language (en, de, ...).")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]


@query_app.command("trends")
def query_trends(
    topic: Topic,
    since: Since = "",
    until: Until = "",
    grain: Annotated[Grain, typer.Option(help="Width of a bucket.")] = Grain.HOUR,
    platform: Platform = "",
    language: Language = "",
    as_json: AsJson = False,
) -> None:
    """How people felt about TOPIC over time."""
    which = _filter(topic, since, until, platform, language)
    with _api() as (stub, timeout_s):
        request = api.QueryTrendsRequest(filter=which, grain=_grain(grain))
        points = stub.QueryTrends(request, timeout=timeout_s).points
    if as_json:
        _print_json(
            _filter_json(which)
            | {
                "grain": str(grain),
                "points": [_point_json(point) for point in points],
                "total": _total_json(points),
            }
        )
        return
    if not points:
        console.print(f"no posts about {escape(topic)} in this interval")
        return
    console.print(_trend_table(topic, points, grain))
    total = _total_json(points)
    console.print(
        f"{total['posts']} posts: "
        + ", ".join(f"{_percent(total[name], total['posts'])} {name}" for name, _, _ in _SHARES)
        + f"; mean score {total['mean_score']:+.2f}"
    )


@query_app.command("live")
def query_live(
    topic: Topic,
    since: Since = "1h",
    grain: Annotated[Grain, typer.Option(help="Width of a bucket.")] = Grain.MINUTE,
    platform: Platform = "",
    language: Language = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as they come.")] = False,
    updates: Annotated[int, typer.Option(min=0, help="End after so many messages; 0 goes on.")] = 0,
) -> None:
    """Follow TOPIC: each line is a bucket as it is now, printed again when it changes. Ctrl-C ends it."""
    which = _filter(topic, since, "", platform, language)
    with _api() as (stub, _):
        call = stub.StreamTrends(api.StreamTrendsRequest(filter=which, grain=_grain(grain)))
        try:
            for number, answer in enumerate(call, 1):
                if as_json:
                    _print_json({"points": [_point_json(point) for point in answer.points]}, indent=None)
                elif number == 1 and not answer.points:
                    console.print(f"no posts about {escape(topic)} since {since}; waiting")
                else:
                    for point in answer.points:
                        console.print(_point_line(point, grain))
                if number == updates:
                    call.cancel()
                    return
        except KeyboardInterrupt:
            call.cancel()


@query_app.command("posts")
def query_posts(
    topic: Topic,
    since: Since = "",
    until: Until = "",
    label: Annotated[Label | None, typer.Option(help="Only this verdict.")] = None,
    platform: Platform = "",
    language: Language = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The posts behind a trend, newest first."""
    which = _filter(topic, since, until, platform, language)
    request = api.ListPostsRequest(
        filter=which,
        label=events.Label.Value(f"LABEL_{label.name}") if label else events.LABEL_UNSPECIFIED,
        page_size=min(limit, 500),
    )
    posts: list[api.ScoredPost] = []
    with _api() as (stub, timeout_s):
        while len(posts) < limit:
            answer = stub.ListPosts(request, timeout=timeout_s)
            posts += answer.posts
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                break
    posts = posts[:limit]
    if as_json:
        _print_json(_filter_json(which) | {"posts": [_post_json(post) for post in posts]})
        return
    if not posts:
        console.print(f"no posts about {escape(topic)} in this interval")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("time (UTC)", "id", "language", "verdict", "score", "text"):
        table.add_column(
            name,
            justify="right" if name == "score" else "left",
            no_wrap=name != "id",
            overflow="fold" if name == "id" else "ellipsis",
        )
    for scored in posts:
        table.add_row(
            _minutes(scored.post.event_time),
            Text(_plain(scored.post.post_id)),
            Text(scored.post.language),
            _verdict(scored.sentiment),
            f"{scored.sentiment.score:+.2f}",
            Text(_plain(scored.post.text)),
        )
    console.print(table)


@query_app.command("post")
def query_post(
    post_id: Annotated[str, typer.Argument(metavar="ID", help="<platform>:<the platform's id>")],
    as_json: AsJson = False,
) -> None:
    """One post, its verdict, and what each of its modalities said."""
    with _api() as (stub, timeout_s):
        scored = stub.GetPost(api.GetPostRequest(post_id=post_id), timeout=timeout_s).post
    if as_json:
        _print_json(_post_json(scored))
        return
    post, sentiment = scored.post, scored.sentiment
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bright_black")
    table.add_column(overflow="fold")
    partial = "" if sentiment.complete else " (not all its parts have been read yet)"
    rows = [
        ("post", Text(_plain(post.post_id))),
        ("time", Text(f"{_minutes(post.event_time)} UTC")),
        ("language", Text(post.language)),
        ("topics", Text(", ".join(post.topics) or "none")),
        ("text", Text(_plain(post.text))),
        ("verdict", _verdict(sentiment) + Text(f" {sentiment.score:+.2f}{partial}")),
        (
            "negative / neutral / positive",
            Text(f"{sentiment.negative:.2f} / {sentiment.neutral:.2f} / {sentiment.positive:.2f}"),
        ),
    ]
    rows += [
        (
            events.Modality.Name(weight.modality).removeprefix("MODALITY_").lower(),
            Text(
                f"absent: {_plain(weight.absent_reason)}"
                if weight.absent_reason
                else f"{weight.contribution:+.3f}"
            ),
        )
        for weight in sentiment.modalities
    ]
    if sentiment.transcript:
        rows.append(("transcript", Text(_plain(sentiment.transcript))))
    if sentiment.emotions:
        emotions = ", ".join(f"{emotion.name} {emotion.probability:.2f}" for emotion in sentiment.emotions)
        rows.append(("emotions", Text(emotions)))
    rows.append(("model", Text(f"{sentiment.model_version}, revision {sentiment.revision}")))
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


@query_app.command("alerts")
def query_alerts(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help='A topic\'s name, or "*" for every topic.')],
    since: Since = "",
    until: Until = "",
    withdrawn: Annotated[bool, typer.Option("--withdrawn", help="Also those later posts took back.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many, newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Where the mood or the volume of TOPIC turned, newest first."""
    which = _filter(topic, since, until, "", "")
    request = api.ListAlertsRequest(topic=topic, include_withdrawn=withdrawn, page_size=min(limit, 500))
    for name in ("start_time", "end_time"):
        if which.HasField(name):
            getattr(request, name).CopyFrom(getattr(which, name))
    alerts: list[events.Alert] = []
    with _api() as (stub, timeout_s):
        while len(alerts) < limit:
            answer = stub.ListAlerts(request, timeout=timeout_s)
            alerts += answer.alerts
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                break
    alerts = alerts[:limit]
    if as_json:
        _print_json({"topic": topic, "alerts": [_alert_json(alert) for alert in alerts]})
        return
    if not alerts:
        console.print(f"no alerts about {escape(topic)} in this interval")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("window (UTC)", "topic", "alert", "value", "before", "deviation", "posts", "state"):
        table.add_column(
            name, justify="right" if name in {"value", "before", "deviation", "posts"} else "left"
        )
    for alert in alerts:
        digits = ".0f" if alert.kind == "volume_spike" else "+.2f"
        end = alert.window_start.ToDatetime() + timedelta(seconds=alert.window_s)
        table.add_row(
            f"{_minutes(alert.window_start)} to {end:%H:%M}",
            alert.topic,
            alert.kind.replace("_", " "),
            f"{alert.value:{digits}}",
            f"{alert.baseline:{digits}}",
            f"{alert.deviation:+.1f}",
            str(alert.posts),
            _state(alert),
        )
    console.print(table)


@topics_app.command("list")
def topics_list(as_json: AsJson = False) -> None:
    """The topics that are tracked."""
    with _api() as (stub, timeout_s):
        topics = stub.ListTopics(api.ListTopicsRequest(), timeout=timeout_s).topics
    if as_json:
        _print_json({"topics": [_topic_json(topic) for topic in topics]})
        return
    if not topics:
        console.print("no topic is tracked yet: crowdtone topics create NAME --keyword WORD")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("name", "display name", "keywords"):
        table.add_column(name)
    for topic in topics:
        table.add_row(topic.name, Text(_plain(topic.display_name)), Text(_plain(", ".join(topic.keywords))))
    console.print(table)


@topics_app.command("create")
def topics_create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and hyphens.")],
    keyword: Annotated[list[str], typer.Option(help="A word, phrase or hashtag; once for each.")],
    display_name: Annotated[str, typer.Option(help="As people write it; NAME where it is not given.")] = "",
    as_json: AsJson = False,
) -> None:
    """Track NAME: posts that have one of its keywords count for it from now on."""
    with _api() as (stub, timeout_s):
        wanted = api.TrackedTopic(name=name, display_name=display_name, keywords=keyword)
        topic = stub.CreateTopic(api.CreateTopicRequest(topic=wanted), timeout=timeout_s).topic
    if as_json:
        _print_json(_topic_json(topic))
    else:
        console.print(f"tracking {topic.name}: {escape(_plain(', '.join(topic.keywords)))}")


@topics_app.command("load")
def topics_load(
    file: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="A JSON list of {name, display_name, keywords} objects."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Track every topic of FILE that is not tracked yet; those that are stay as they are."""
    wanted = _read_topics(file)
    created: list[str] = []
    existing: list[str] = []
    with _api() as (stub, timeout_s):
        for topic in wanted:
            try:
                stub.CreateTopic(api.CreateTopicRequest(topic=topic), timeout=timeout_s)
                created.append(topic.name)
            except grpc.RpcError as error:
                if _code(error) is not grpc.StatusCode.ALREADY_EXISTS:
                    raise
                existing.append(topic.name)
    if as_json:
        _print_json({"created": created, "existing": existing})
        return
    console.print(f"tracking {len(created)} new topics{': ' if created else ''}{', '.join(created)}")
    if existing:
        console.print(f"tracked before, left as they are: {', '.join(existing)}")


@topics_app.command("delete")
def topics_delete(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The topic's name.")],
) -> None:
    """Stop tracking NAME. What was counted stays, and is seen again when the name is created again."""
    with _api() as (stub, timeout_s):
        stub.DeleteTopic(api.DeleteTopicRequest(name=name), timeout=timeout_s)
    console.print(f"no longer tracking {name}")


@contextmanager
def _api() -> Iterator[tuple[Any, float]]:
    """(stub, timeout in seconds); a call that fails ends the command with a line that says what to do."""
    try:
        settings = ApiClientSettings()
    except ValidationError as error:
        for fault in error.errors():
            variable = f"CROWDTONE_API_{'_'.join(str(part) for part in fault['loc'])}".upper()
            error_console.print(f"{variable}: {escape(fault['msg'])}", style="red")
        raise typer.Exit(USAGE_EXIT) from None
    try:
        with channel(settings) as opened:
            yield api_pb2_grpc.CrowdtoneServiceStub(opened), settings.timeout_s
    except OSError as error:
        _fail(f"cannot read {error.filename}: {error.strerror}; see CROWDTONE_API_TLS_*")
    except grpc.RpcError as error:
        _fail(explain(error, settings))


def explain(error: grpc.RpcError, settings: ApiClientSettings) -> str:
    """One or more lines for a person: what was wrong, and what to do."""
    code = _code(error)
    status = rpc_status.from_call(cast(grpc.Call, error))
    details = str(getattr(error, "details", lambda: "")() or "")
    if status is None and code is grpc.StatusCode.UNAVAILABLE:
        if "handshake" in details.lower() or "ssl" in details.lower() or "certificate" in details.lower():
            return f"no TLS with {settings.address}: check CROWDTONE_API_TLS_CA_FILE ({details})"
        return (
            f"no API at {settings.address}: start it with `crowdtone run api`, "
            "or set CROWDTONE_API_ADDRESS to where it is"
        )
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return f"{details}: set CROWDTONE_API_TOKEN"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and status is None:
        return (
            f"the API at {settings.address} did not answer within {settings.timeout_s:g} s "
            "(CROWDTONE_API_TIMEOUT_S): ask for a shorter interval, or see its log"
        )
    if code is grpc.StatusCode.NOT_FOUND and status is not None and _reason(status) == "TOPIC_NOT_FOUND":
        return f"{details}; `crowdtone topics list` shows those that are"
    return details or code.name


def _reason(status: Any) -> str:
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    code: grpc.StatusCode = cast(grpc.Call, error).code()  # a failed call is its own error
    return code


def _fail(message: str, exit_code: int = 1) -> NoReturn:
    error_console.print(escape(message), style="red", soft_wrap=True)
    raise typer.Exit(exit_code)


def _filter(topic: str, since: str, until: str, platform: str, language: str) -> api.TrendFilter:
    now = datetime.now(UTC)
    which = api.TrendFilter(topic=topic, platform=platform, language=language)
    for option, text, stamp in (
        ("--since", since, which.start_time),
        ("--until", until, which.end_time),
    ):
        if not text:
            continue
        try:
            stamp.FromDatetime(parse_time(text, now))
        except (ValueError, OverflowError):
            raise typer.BadParameter(
                f"{text!r} is neither a span such as 30m, 12h, 2d, 1w nor a time such as 2026-06-13T12:00",
                param_hint=option,
            ) from None
    return which


def parse_time(text: str, now: datetime) -> datetime:
    """A span before `now` ("2d"), or ISO 8601, taken as UTC where it names no zone. Raises ValueError."""
    span = _SPAN.fullmatch(text.strip())
    if span:
        return now - timedelta(**{_UNITS[span[2]]: int(span[1])})
    time = datetime.fromisoformat(text.strip())
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _grain(grain: Grain) -> api.Grain.ValueType:
    return api.Grain.Value(f"GRAIN_{grain.name}")


def _read_topics(file: Path) -> list[api.TrackedTopic]:
    try:
        entries = json.loads(file.read_text())
        if not isinstance(entries, list):
            raise ValueError("is not a list")
        topics = []
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not set(entry) <= {"name", "display_name", "keywords"}:
                raise ValueError(f"entry {number} is not an object of name, display_name and keywords")
            topics.append(api.TrackedTopic(**entry))
    except (ValueError, TypeError) as error:
        _fail(f"{file}: {error}", USAGE_EXIT)
    return topics


def _trend_table(topic: str, points: Sequence[api.TrendPoint], grain: Grain) -> Table:
    most = max(point.posts for point in points)
    table = Table(title=escape(topic), title_justify="left", box=None, pad_edge=False)
    table.add_column(f"{grain} (UTC)", no_wrap=True)
    table.add_column("posts", justify="right")
    table.add_column("volume", no_wrap=True)
    for name, _, colour in _SHARES:
        table.add_column(name, justify="right", style=colour)
    table.add_column("score", justify="right")
    table.add_column("share", no_wrap=True)
    for point in points:
        table.add_row(
            _bucket(point.bucket_start, grain),
            str(point.posts),
            volume_bar(point.posts, most),
            *(str(getattr(point, name)) for name, _, _ in _SHARES),
            f"{point.mean_score:+.2f}",
            share_bar(point),
        )
    return table


def _point_line(point: api.TrendPoint, grain: Grain) -> Text:
    line = Text(f"{_bucket(point.bucket_start, grain)}  {point.posts:>6} posts  {point.mean_score:+.2f}  ")
    return line + share_bar(point)


def volume_bar(posts: int, most: int, cells: int = 8) -> str:
    """A bar in eighths of a cell; never empty where there is a post."""
    eighths = max(1, round(posts / most * cells * 8)) if posts else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def share_bar(point: api.TrendPoint, cells: int = BAR_CELLS) -> Text:
    """The labels' shares of a bucket as `cells` cells: largest remainders, so that they always fill it."""
    bar = Text()
    if not point.posts:
        return bar
    exact = [getattr(point, name) * cells / point.posts for name, _, _ in _SHARES]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: cells - sum(counts)]:
        counts[index] += 1
    for (_, glyph, colour), count in zip(_SHARES, counts, strict=True):
        bar.append(glyph * count, style=colour)
    return bar


def _verdict(sentiment: events.PostSentiment) -> Text:
    name = events.Label.Name(sentiment.label).removeprefix("LABEL_").lower()
    return Text(name, style=next((colour for label, _, colour in _SHARES if label == name), ""))


def _plain(text: str) -> str:
    """A stranger's words on one line, with nothing in them that a terminal would obey."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def _minutes(stamp: Timestamp) -> str:
    return f"{stamp.ToDatetime():%Y-%m-%d %H:%M}"


def _bucket(stamp: Timestamp, grain: Grain) -> str:
    return f"{stamp.ToDatetime():%Y-%m-%d}" if grain is Grain.DAY else _minutes(stamp)


def _print_json(value: Json, indent: int | None = 2) -> None:
    # Not rich, which colours and wraps what a program reads; flushed, for whoever follows through a pipe.
    print(json.dumps(value, ensure_ascii=False, indent=indent), flush=True)


def _filter_json(which: api.TrendFilter) -> Json:
    return {
        "topic": which.topic,
        "start_time": which.start_time.ToJsonString() if which.HasField("start_time") else None,
        "end_time": which.end_time.ToJsonString() if which.HasField("end_time") else None,
        "platform": which.platform,
        "language": which.language,
    }


def _point_json(point: api.TrendPoint) -> Json:
    counts = {name: getattr(point, name) for name in ("posts", *(name for name, _, _ in _SHARES))}
    return {
        "bucket_start": point.bucket_start.ToJsonString(),
        **counts,
        "mean_score": round(point.mean_score, 6),
    }


def _total_json(points: Sequence[api.TrendPoint]) -> Json:
    total: Json = {
        name: sum(getattr(point, name) for point in points)
        for name in ("posts", *(name for name, _, _ in _SHARES))
    }
    scored = total["posts"] - total["unscored"]
    summed = sum(point.mean_score * (point.posts - point.unscored) for point in points)
    return total | {"mean_score": round(summed / scored, 6) if scored else 0.0}


def _post_json(scored: api.ScoredPost) -> Json:
    post, sentiment = scored.post, scored.sentiment
    return {
        "post_id": post.post_id,
        "platform": post.platform,
        "event_time": post.event_time.ToJsonString(),
        "ingest_time": post.ingest_time.ToJsonString(),
        "language": post.language,
        "text": post.text,
        "topics": list(post.topics),
        "url": post.url,
        "media": [
            {"kind": _modality(media.kind), "sha256": media.sha256, "mime_type": media.mime_type}
            for media in post.media
        ],
        "expected": [_modality(modality) for modality in post.expected],
        "label": events.Label.Name(sentiment.label).removeprefix("LABEL_").lower(),
        "negative": sentiment.negative,
        "neutral": sentiment.neutral,
        "positive": sentiment.positive,
        "score": sentiment.score,
        "modalities": [
            {
                "modality": _modality(weight.modality),
                "contribution": weight.contribution,
                "absent_reason": weight.absent_reason,
            }
            for weight in sentiment.modalities
        ],
        "emotions": {emotion.name: emotion.probability for emotion in sentiment.emotions},
        "transcript": sentiment.transcript,
        "model_version": sentiment.model_version,
        "revision": sentiment.revision,
        "complete": sentiment.complete,
        "classified_time": sentiment.classified_time.ToJsonString(),
    }


def _alert_json(alert: events.Alert) -> Json:
    return {
        "alert_id": alert.alert_id,
        "topic": alert.topic,
        "window_start": alert.window_start.ToJsonString(),
        "window_s": alert.window_s,
        "kind": alert.kind,
        "value": alert.value,
        "baseline": alert.baseline,
        "deviation": alert.deviation,
        "posts": alert.posts,
        "baseline_posts": alert.baseline_posts,
        "state": _state(alert),
        "revision": alert.revision,
        "update_time": alert.update_time.ToJsonString(),
    }


def _state(alert: events.Alert) -> str:
    return events.AlertState.Name(alert.state).removeprefix("ALERT_STATE_").lower()


def _topic_json(topic: api.TrackedTopic) -> Json:
    return {
        "name": topic.name,
        "display_name": topic.display_name,
        "keywords": list(topic.keywords),
        "create_time": topic.create_time.ToJsonString(),
    }


def _modality(number: int) -> str:
    return events.Modality.Name(events.Modality.ValueType(number)).removeprefix("MODALITY_").lower()
