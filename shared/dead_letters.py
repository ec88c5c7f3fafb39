"""A dead letter read again: where it was, why it could not be used, what it was before, what was replayed.

Pure. `shared.codec.dead_letter` writes them; `crowdtone dlq` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from shared import cloudevents
from shared.errors import InvalidMessage
from shared.messages import Output, Record
from shared.topics import FEED

PLACE: Final = ("topic", "partition", "offset", "service", "reason")
"""Headers that say where the original was and why it is here; all others came with it."""

REPLAYED: Final = "replayed"
"""Header of a marker: a record without content on a dead-letter topic that says which offsets were replayed.

Beside the letters and not in a consumer group's offset, because a replay may choose among them.
"""

ADDED_TYPE: Final = b"crowdtone.v1.DeadLetter"
"""`ce_type` of the CloudEvents headers of a letter that had none of its own."""

_ADDED: Final = frozenset(
    name
    for name, _ in cloudevents.headers(
        id="", type="", source="", time=datetime(2000, 1, 1, tzinfo=UTC), traceparent=""
    )
)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of a dead-letter topic. `record` is as it lies there, its offset that of the letter.

    topic, partition, offset: of the original; a line of a feed has the topic "feed" and its line number.
    """

    record: Record
    topic: str
    partition: int
    offset: int
    service: str
    reason: str

    @property
    def time(self) -> datetime:
        """When it was set aside."""
        return datetime.fromtimestamp(self.record.timestamp_ms / 1000, UTC)

    @property
    def kind(self) -> str:
        """The reason without its numbers, so that alike ones are counted together."""
        return re.sub(r"\d+", "#", self.reason)

    @property
    def feed(self) -> str:
        """Name of the feed a line came from; "" for a record of a topic."""
        return dict(self.record.headers).get("feed", b"").decode(errors="replace") if self.is_line else ""

    @property
    def is_line(self) -> bool:
        return self.topic == FEED


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are wanted. reason: part of it, in any case. since: set aside then or later (UTC)."""

    reason: str = ""
    since: datetime | None = None
    service: str = ""
    feed: str = ""

    def takes(self, letter: DeadLetter) -> bool:
        return (
            self.reason.casefold() in letter.reason.casefold()
            and (self.since is None or letter.time >= self.since)
            and self.service in ("", letter.service)
            and self.feed in ("", letter.feed)
        )


def read(record: Record) -> DeadLetter:
    """Raises InvalidMessage for a record that no service of ours set aside."""
    headers = dict(record.headers)
    missing = [name for name in PLACE if name not in headers]
    if missing:
        raise InvalidMessage(f"not a dead letter: no header {', '.join(missing)}")
    values = {name: headers[name].decode(errors="replace") for name in PLACE}
    try:
        partition, offset = int(values["partition"]), int(values["offset"])
    except ValueError as error:
        raise InvalidMessage(f"not a dead letter: {error}") from error
    return DeadLetter(record, values["topic"], partition, offset, values["service"], values["reason"])


def original(letter: DeadLetter) -> Output:
    """The record as it was: key, bytes, headers, topic and partition.

    Raises InvalidMessage for a line of a feed: it never was a record.
    """
    if letter.is_line:
        raise InvalidMessage("a line of a feed is no record; it is ingested again")
    gone = set(PLACE)
    if dict(letter.record.headers).get("ce_type") == ADDED_TYPE:
        gone |= _ADDED
    kept = tuple(header for header in letter.record.headers if header[0] not in gone)
    return Output(letter.topic, letter.record.key, letter.record.value, kept, letter.partition)


def line(letter: DeadLetter) -> bytes:
    """A feed's line as it was, ended. Raises InvalidMessage where only its beginning was kept."""
    truncated = dict(letter.record.headers).get("truncated_from_bytes")
    if truncated is not None:
        raise InvalidMessage(
            f"only the first {len(letter.record.value)} of {truncated.decode()} bytes are kept"
        )
    # A message of a websocket may be JSON over several lines; between JSON's tokens a blank says the same.
    return letter.record.value.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"


def marker(dlq: str, partition: int, offsets: Sequence[int], *, time: datetime) -> Output:
    """Says on the dead-letter topic `dlq` that the letters at these offsets were replayed."""
    ranges = _ranges(offsets)
    return Output(
        dlq,
        None,
        b"",
        (
            *cloudevents.headers(
                id=f"{dlq}/{partition}/{ranges}/{time.timestamp()}",
                type="crowdtone.v1.Replayed",
                source="dlq",
                time=time,
                traceparent=cloudevents.new_trace(),
            ),
            (REPLAYED, ranges.encode()),
        ),
        partition,
    )


def marked(record: Record) -> list[range] | None:
    """The offsets a marker names; None when the record is no marker."""
    header = dict(record.headers).get(REPLAYED)
    if header is None or record.value:
        return None
    try:
        pairs = [part.partition("-") for part in header.decode("ascii").split(",")]
        return [range(int(first), int(last or first) + 1) for first, _, last in pairs]
    except ValueError:
        return None


def _ranges(offsets: Iterable[int]) -> str:
    """ "3-5,9" of 3, 4, 5, 9."""
    parts: list[list[int]] = []
    for offset in sorted(offsets):
        if parts and offset == parts[-1][1] + 1:
            parts[-1][1] = offset
        else:
            parts.append([offset, offset])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
