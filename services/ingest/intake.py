"""The idea of ingest: lines in, posts out. A step of the shared loop, and what follows when it is durable."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from services.ingest.attachments import Attachments
from services.ingest.draft import EARLIEST, Draft, Parse, Retraction, Skipped
from services.ingest.matching import Matcher
from services.ingest.settings import IngestSettings
from shared import cloudevents, codec, metrics, topics
from shared.errors import InvalidMessage
from shared.messages import Modality, Output, Post, Record, Result, TopicPartition

SERVICE: Final = "ingest"
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
FEED: Final = TopicPartition(topics.FEED, 0)

# Headers a feed puts on its records.
TRUNCATED: Final = "truncated_from_bytes"
REPLAY: Final = "replay"


class Remembers(Protocol):
    """What intake needs to know of earlier posts; `seen.Seen` knows it."""

    def which(self, post_ids: Sequence[str]) -> list[bool]: ...
    def mark(self, post_ids: Sequence[str]) -> None: ...


@dataclass(slots=True)
class Counts:
    """What became of the lines: read is always the sum of the others."""

    read: int = 0
    produced: int = 0
    retracted: int = 0
    duplicate: int = 0
    rejected: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a line says, when it came (UTC), and what tells this pass of a looped file apart ("" in the
    first)."""

    draft: Draft | Retraction
    now: datetime
    replay: str = ""


def author_hash(key: bytes, platform: str, author: str) -> str:
    """HMAC-SHA-256 in hexadecimal; "" for no author. The same name on two platforms is two authors."""
    if not author:
        return ""
    return hmac.new(key, f"{platform}\0{author}".encode(), hashlib.sha256).hexdigest()


def post_id(arrival: Arrival) -> str:
    return f"{arrival.draft.platform}:{arrival.draft.id}{arrival.replay}"


def version(draft: Draft) -> int:
    """Microseconds since the epoch at which this form of a post was written; 0 for the first."""
    if draft.edited_at is None or draft.edited_at <= draft.created_at:
        return 0
    return (draft.edited_at - EPOCH) // timedelta(microseconds=1)


def form_id(arrival: Arrival) -> str:
    """What is produced once: a post, each edit of it, its deletion."""
    draft = arrival.draft
    if isinstance(draft, Retraction):
        return f"{post_id(arrival)}@deleted"
    return f"{post_id(arrival)}@{edit}" if (edit := version(draft)) else post_id(arrival)


def check(arrival: Arrival, settings: IngestSettings) -> None:
    """Raises InvalidMessage when a draft is over a limit."""
    draft = arrival.draft
    if draft.platform not in settings.platforms:
        known = ", ".join(sorted(settings.platforms))
        raise InvalidMessage(f"unknown platform {draft.platform[:80]!a}; known are {known}")
    if isinstance(draft, Retraction):
        return
    if draft.created_at < EARLIEST:
        raise InvalidMessage(f"posted {draft.created_at.isoformat()}: before {EARLIEST.year}")
    for what, when in (("posted", draft.created_at), ("edited", draft.edited_at or draft.created_at)):
        ahead = when - arrival.now
        if ahead > timedelta(seconds=settings.future_skew_s):
            raise InvalidMessage(
                f"{what} {when.isoformat()}: {ahead.total_seconds():.0f} s ahead of our clock, "
                f"more than {settings.future_skew_s:.0f}"
            )
    if len(draft.text) > settings.max_text_chars:
        raise InvalidMessage(f"text of {len(draft.text)} characters; the limit is {settings.max_text_chars}")
    if len(draft.attachments) > settings.max_media:
        raise InvalidMessage(f"{len(draft.attachments)} media; the limit is {settings.max_media}")


class Intake:
    """Turns lines into posts and keeps count.

    step: for `shared.worker.run`. finished: to be called once what the last step returned is durable.
    """

    def __init__(
        self,
        parse: Parse,
        matcher: Callable[[float], Matcher],
        attachments: Attachments,
        seen: Remembers,
        *,
        author_key: bytes,
        settings: IngestSettings,
    ) -> None:
        self._parse = parse
        self._matcher = matcher
        self._attachments = attachments
        self._seen = seen
        self._author_key = author_key
        self._settings = settings
        self._to_mark: list[str] = []
        self._turn = Counts()
        self.counts = Counts()

    def step(self, records: Sequence[Record], now: float) -> Result:
        """One `posts` record per new post and one dead letter per line that is none, in their order."""
        time = datetime.fromtimestamp(now, UTC)
        matcher = self._matcher(now)
        taken: list[tuple[Record, Arrival | InvalidMessage]] = []
        skipped = 0
        for record in records:
            replay = dict(record.headers).get(REPLAY, b"").decode()
            try:
                draft = self._draft(record)
                if isinstance(draft, Skipped):
                    skipped += 1
                    continue
                arrival = Arrival(draft, time, replay)
                check(arrival, self._settings)
                taken.append((record, arrival))
            except InvalidMessage as error:
                if replay:  # it has been set aside when the file was first read
                    skipped += 1
                else:
                    taken.append((record, error))
        arrivals = {form_id(item): item for _, item in taken if isinstance(item, Arrival)}
        known = {id for id, was in zip(arrivals, self._seen.which(list(arrivals)), strict=True) if was}
        self._attachments.fetch(
            attachment
            for id, arrival in arrivals.items()
            if id not in known and isinstance(arrival.draft, Draft)
            for attachment in arrival.draft.attachments
        )
        outputs: list[Output] = []
        new: dict[str, None] = {}
        duplicates = rejected = retracted = 0
        for record, item in taken:
            try:
                if isinstance(item, InvalidMessage):
                    raise item
                id = form_id(item)
                if id in known or id in new:
                    duplicates += 1
                    continue
                post = (
                    self._post(item, item.draft, matcher)
                    if isinstance(item.draft, Draft)
                    else tombstone(post_id(item), item.draft.platform, time)
                )
                outputs.append(codec.encode_post(post))
                new[id] = None
                retracted += post.deleted
            except InvalidMessage as error:
                outputs.append(codec.dead_letter(record, service=SERVICE, reason=str(error), time=time))
                rejected += 1
        self._to_mark = list(new)
        self._turn = Counts(
            read=len(records),
            produced=len(new) - retracted,
            retracted=retracted,
            duplicate=duplicates,
            rejected=rejected,
            skipped=skipped,
        )
        end = {FEED: records[-1].offset + 1} if records else {}
        return Result(outputs, end, posts=len(new))

    def finished(self) -> None:
        """The brokers have what the last step returned: it counts, and its posts are duplicates from now."""
        self._seen.mark(self._to_mark)
        for outcome, number in asdict(self._turn).items():
            setattr(self.counts, outcome, getattr(self.counts, outcome) + number)
            if outcome != "read":
                metrics.INGEST_LINES.labels(outcome).inc(number)
        self._to_mark, self._turn = [], Counts()

    def _draft(self, record: Record) -> Draft | Retraction | Skipped:
        truncated = dict(record.headers).get(TRUNCATED)
        if truncated is not None:
            raise InvalidMessage(
                f"a line of {truncated.decode()} bytes; the limit is {self._settings.max_line_bytes}"
            )
        return self._parse(record.value)

    def _post(self, arrival: Arrival, draft: Draft, matcher: Matcher) -> Post:
        media = self._attachments.take(draft.attachments)
        expected = {Modality.TEXT}
        for item in media:
            # What is said and how it is said are two answers to the same sound.
            expected |= {item.kind} if item.kind is Modality.IMAGE else {Modality.AUDIO, Modality.SPEECH}
        return Post(
            post_id=post_id(arrival),
            platform=draft.platform,
            event_time=arrival.now if arrival.replay else draft.created_at,
            ingest_time=arrival.now,
            language=draft.language,
            text=draft.text,
            media=media,
            topics=matcher.match(draft.text, draft.about),
            expected=frozenset(expected),
            author_hash=author_hash(self._author_key, draft.platform, draft.author),
            url=draft.url,
            traceparent=cloudevents.new_trace(),
            version=version(draft),
        )


def tombstone(post_id: str, platform: str, now: datetime) -> Post:
    """What takes a post back. When that was posted its deletion does not say; fusion knows."""
    return Post(
        post_id=post_id,
        platform=platform,
        event_time=now,
        ingest_time=now,
        traceparent=cloudevents.new_trace(),
        deleted=True,
    )
