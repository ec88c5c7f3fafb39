"""What a parser makes of one line: a draft of a post, not yet checked against any limit. Pure.

And the few things every parser needs: JSON that can only fail one way, strings every later part can store,
times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from shared.errors import InvalidMessage

EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""No platform we read is older; an earlier time is a clock that was never set."""

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d):(\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_SUBTAG = re.compile(r"([A-Za-z]{2,3})(?:[-_].*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Attachment:
    """What came with a post, a picture mostly: a path below the media folder, or an address."""

    path: str = ""
    source_url: str = ""
    mime_type: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Draft:
    """One post as its source has it. Times are UTC.

    about: words that tell what it is about but not how its author felt (tags, link titles, descriptions of
    pictures, the community it was posted in): matched for topics, never scored.
    edited_at: when its author wrote this form of it; None for the first.
    """

    platform: str
    id: str
    created_at: datetime
    author: str = ""
    text: str = ""
    language: str = "und"
    url: str = ""
    attachments: tuple[Attachment, ...] = ()
    about: str = ""
    edited_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Retraction:
    """The source has deleted a post."""

    platform: str
    id: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A well-formed event that is about no post: a like, a follow."""

    kind: str


Parse = Callable[[bytes], Draft | Retraction | Skipped]
"""One line -> what it is. Raises InvalidMessage when it is nothing we know."""


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object in `line`. Raises InvalidMessage for anything else, in whichever way it is broken."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidMessage(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise InvalidMessage("JSON nested too deeply") from error
    except ValueError as error:  # a JSONDecodeError, or a number of thousands of digits
        raise InvalidMessage(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidMessage(f"JSON, but {_json_type(value)}, not an object")
    return value


def string(value: object, what: str) -> str:
    """A string that UTF-8 and Postgres can hold: NUL and halves of surrogate pairs become U+FFFD; None is "".

    Raises InvalidMessage when it is no string.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidMessage(f"{what} is {_json_type(value)}, not a string")
    return _UNSTORABLE.sub("\ufffd", value)


def identifier(value: object, what: str) -> str:
    """An id: a string of 1 to 512 printable characters, or an integer. Never altered, for it names the post.

    Raises InvalidMessage.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None or value == "":
        raise InvalidMessage(f"{what} is missing")
    if not isinstance(value, str):
        raise InvalidMessage(f"{what} is {_json_type(value)}, not a string")
    if len(value) > 512 or not value.isprintable() or value != value.strip():
        raise InvalidMessage(f"{what} is not 1 to 512 printable characters: {value[:80]!a}")
    return value


def time(value: object, what: str) -> datetime:
    """An RFC 3339 time (section 5.6) in UTC. Raises InvalidMessage, for NaN and its like too."""
    if value is None:
        raise InvalidMessage(f"{what} is missing")
    found = _RFC3339.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidMessage(f"{what} is not an RFC 3339 time: {str(value)[:80]!a}")
    day, minute, second, fraction, zone = found.groups()
    if second == "60":  # a leap second; datetime has none
        second, fraction = "59", ".999999"
    try:
        there = datetime.fromisoformat(f"{day}T{minute}:{second}{fraction or ''}{zone.upper()}")
        return there.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidMessage(f"{what} is no time: {str(value)[:80]!a}: {error}") from error


def language(value: object) -> str:
    """The primary subtag of a BCP 47 tag, in lower case ("en" of "en-US"), or "und". Never guessed."""
    found = _SUBTAG.fullmatch(value) if isinstance(value, str) else None
    return found[1].lower() if found else "und"


def permalink(value: object) -> str:
    """An http(s) address of at most 2,048 characters, or "": what people will click must not be a script."""
    if not isinstance(value, str) or len(value) > 2048 or not value.isprintable():
        return ""
    return value if value.lower().startswith(("http://", "https://")) else ""


def _json_type(value: object) -> str:
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), "something else")
