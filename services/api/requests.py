"""Requests as the queries want them: checked once, every fault named. Pure: no clock, no database."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NoReturn

from google.protobuf.timestamp_pb2 import Timestamp

from protos.crowdtone.v1 import api_pb2 as api
from services.api import errors, pages
from services.api.errors import Violation
from shared.messages import Label
from shared.tables import ALL_POSTS, Grain

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 500
MAX_KEYWORDS: Final = 200
MAX_KEYWORD_CHARS: Final = 100
MAX_DISPLAY_NAME_CHARS: Final = 200
MAX_PLATFORM_CHARS: Final = 64
MAX_POST_ID_CHARS: Final = 512

BEGINNING: Final = datetime(1, 1, 1, tzinfo=UTC)
END: Final = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

WIDTH: Final = {
    Grain.MINUTE: timedelta(minutes=1),
    Grain.HOUR: timedelta(hours=1),
    Grain.DAY: timedelta(days=1),
}
_TOPIC: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_LANGUAGE: Final = re.compile(r"[a-z]{2,8}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which posts count. Times are UTC, start inclusive, end exclusive; an empty string is any."""

    topic: str
    start_time: datetime = BEGINNING
    end_time: datetime = END
    platform: str = ""
    language: str = ""


@dataclass(frozen=True, slots=True)
class TrendQuery:
    """The buckets from one start to another: those that overlap the interval that was asked for.

    So all who ask within one bucket for "the day up to now" ask the same.
    """

    filter: Filter
    grain: Grain


@dataclass(frozen=True, slots=True)
class PostQuery:
    """A page of posts, newest first, that begins after `after`. label None is any."""

    filter: Filter
    label: Label | None
    page_size: int
    after: pages.Position | None


@dataclass(frozen=True, slots=True)
class AlertQuery:
    """A page of alerts, newest first, that begins after `after`. Times: those a window starts at."""

    topic: str
    start_time: datetime
    end_time: datetime
    include_withdrawn: bool
    page_size: int
    after: pages.Position | None


@dataclass(frozen=True, slots=True)
class NewTopic:
    """A topic to be tracked."""

    name: str
    display_name: str
    keywords: tuple[str, ...]


def trend_query(request: api.QueryTrendsRequest | api.StreamTrendsRequest, *, default: Grain) -> TrendQuery:
    """Raises ApiError naming every field at fault."""
    violations: list[Violation] = []
    found = _filter(request.filter, violations)
    grain = _grain(request.grain, default, violations)
    if violations:
        errors.refuse(errors.INVALID_REQUEST, violations)
    whole = replace(found, start_time=floor(found.start_time, grain), end_time=ceiling(found.end_time, grain))
    return TrendQuery(whole, grain)


def post_query(request: api.ListPostsRequest) -> PostQuery:
    """Raises ApiError naming every field at fault; a page token of another request is one."""
    violations: list[Violation] = []
    found = _filter(request.filter, violations)
    label: Label | None = None
    if request.label:
        try:
            label = Label(request.label)
        except ValueError:
            violations.append(Violation("label", f"{request.label} is no label"))
    if request.page_size < 0:
        violations.append(Violation("page_size", "must not be negative"))
    if violations:
        errors.refuse(errors.INVALID_REQUEST, violations)
    query = PostQuery(found, label, _page_size(request), None)
    return replace(query, after=_position(request.page_token, fingerprint(query)))


def alert_query(request: api.ListAlertsRequest) -> AlertQuery:
    """Raises ApiError naming every field at fault; a page token of another request is one."""
    violations: list[Violation] = []
    topic = _topic(request.topic, "topic", violations)
    start, end = _interval(request, "", violations)
    if request.page_size < 0:
        violations.append(Violation("page_size", "must not be negative"))
    if violations:
        errors.refuse(errors.INVALID_REQUEST, violations)
    query = AlertQuery(topic, start, end, request.include_withdrawn, _page_size(request), None)
    return replace(query, after=_position(request.page_token, fingerprint(query)))


def fingerprint(query: PostQuery | AlertQuery) -> str:
    """What a page token belongs to: every field of the request but the token itself."""
    return repr(replace(query, after=None))


def post_id(request: api.GetPostRequest) -> str:
    """Raises ApiError."""
    value = request.post_id
    if not value or len(value) > MAX_POST_ID_CHARS or "\0" in value:
        _refuse_one("post_id", f"must be 1 to {MAX_POST_ID_CHARS} characters, such as bluesky:3lxyz")
    return value


def sha256(request: api.GetMediaRequest) -> str:
    """Raises ApiError."""
    if not _SHA256.fullmatch(request.sha256):
        _refuse_one("sha256", "must be 64 lower-case hexadecimal digits")
    return request.sha256


def topic_name(request: api.DeleteTopicRequest) -> str:
    """Raises ApiError."""
    if not _TOPIC.fullmatch(request.name):
        _refuse_one("name", _TOPIC_RULE)
    return request.name


def new_topic(request: api.CreateTopicRequest) -> NewTopic:
    """The topic with its words trimmed; its name where it has no display name. Raises ApiError."""
    topic = request.topic
    violations: list[Violation] = []
    if not _TOPIC.fullmatch(topic.name):
        violations.append(Violation("topic.name", _TOPIC_RULE))
    display_name = topic.display_name.strip()
    if len(display_name) > MAX_DISPLAY_NAME_CHARS or not _printable(display_name):
        violations.append(
            Violation("topic.display_name", f"must be at most {MAX_DISPLAY_NAME_CHARS} printable characters")
        )
    keywords: dict[str, str] = {}
    for index, keyword in enumerate(topic.keywords):
        trimmed = " ".join(keyword.split())
        if not trimmed or len(trimmed) > MAX_KEYWORD_CHARS or not _printable(trimmed):
            violations.append(
                Violation(
                    f"topic.keywords[{index}]", f"must be 1 to {MAX_KEYWORD_CHARS} printable characters"
                )
            )
        elif not any(unicodedata.category(char)[0] in "LNS" for char in trimmed):
            violations.append(
                Violation(f"topic.keywords[{index}]", "has no letter, digit or symbol to look for")
            )
        else:
            keywords.setdefault(trimmed.casefold(), trimmed)
    if not 1 <= len(topic.keywords) <= MAX_KEYWORDS:
        violations.append(Violation("topic.keywords", f"must be 1 to {MAX_KEYWORDS} words or phrases"))
    if violations:
        errors.refuse(errors.INVALID_REQUEST, violations)
    return NewTopic(topic.name, display_name or topic.name, tuple(keywords.values()))


def floor(time: datetime, grain: Grain) -> datetime:
    """The start of the bucket that `time` is in."""
    return time - (time - _EPOCH) % WIDTH[grain]


def ceiling(time: datetime, grain: Grain) -> datetime:
    """The first start of a bucket that is not before `time`; `time` where no later one can be named."""
    start = floor(time, grain)
    return time if start == time or start > END - WIDTH[grain] else start + WIDTH[grain]


_TOPIC_RULE: Final = (
    "must be 1 to 63 lower-case letters, digits and hyphens, the first a letter, such as solar-panels"
)


def _filter(message: api.TrendFilter, violations: list[Violation]) -> Filter:
    topic = _topic(message.topic, "filter.topic", violations)
    start, end = _interval(message, "filter.", violations)
    if len(message.platform) > MAX_PLATFORM_CHARS or not _printable(message.platform):
        violations.append(
            Violation("filter.platform", f"must be at most {MAX_PLATFORM_CHARS} printable characters")
        )
    if message.language and not _LANGUAGE.fullmatch(message.language):
        violations.append(
            Violation("filter.language", "must be a primary BCP 47 subtag in lower case, such as en, or und")
        )
    return Filter(topic, start, end, message.platform, message.language)


def _topic(name: str, field: str, violations: list[Violation]) -> str:
    if not name:
        violations.append(Violation(field, f'is required; "{ALL_POSTS}" is all of them'))
    elif name != ALL_POSTS and not _TOPIC.fullmatch(name):
        violations.append(Violation(field, f'{_TOPIC_RULE}, or "{ALL_POSTS}" for all of them'))
    return name


def _interval(
    message: api.TrendFilter | api.ListAlertsRequest, path: str, violations: list[Violation]
) -> tuple[datetime, datetime]:
    start, end = BEGINNING, END
    if message.HasField("start_time"):
        start = _time(message.start_time, f"{path}start_time", BEGINNING, violations)
    if message.HasField("end_time"):
        end = _time(message.end_time, f"{path}end_time", END, violations)
    if start >= end:
        violations.append(Violation(f"{path}end_time", "must be after start_time"))
    return start, end


def _time(stamp: Timestamp, field: str, default: datetime, violations: list[Violation]) -> datetime:
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        violations.append(
            Violation(field, "is not a time between the years 1 and 9999, with 0 to 999999999 nanos")
        )
        return default


def _page_size(request: api.ListPostsRequest | api.ListAlertsRequest) -> int:
    return min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def _position(token: str, fingerprint: str) -> pages.Position | None:
    if not token:
        return None
    try:
        return pages.decode(token, fingerprint)
    except ValueError as error:
        errors.refuse(errors.INVALID_PAGE_TOKEN, [Violation("page_token", str(error))])


def _grain(number: int, default: Grain, violations: list[Violation]) -> Grain:
    if not number:
        return default
    try:
        return Grain(number)
    except ValueError:
        violations.append(Violation("grain", f"{number} is no grain: minute, hour or day"))
        return default


def _printable(text: str) -> bool:
    """No control characters: Postgres cannot hold a NUL, and the rest are for confusing a terminal."""
    return not any(unicodedata.category(char) == "Cc" for char in text)


def _refuse_one(field: str, description: str) -> NoReturn:
    errors.refuse(errors.INVALID_REQUEST, [Violation(field, description)])
