"""One Bluesky Jetstream v1 event -> a draft, when it is a new or edited post, or a retraction. Pure.

Source: github.com/bluesky-social/jetstream (README, "Consuming Jetstream") and the lexicons
app.bsky.feed.post, app.bsky.embed.* of AT Protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

from services.ingest.draft import (
    EARLIEST,
    Attachment,
    Draft,
    Retraction,
    Skipped,
    identifier,
    language,
    parse_object,
    string,
    time,
)
from shared.errors import InvalidMessage

POST: Final = "app.bsky.feed.post"
PLATFORM: Final = "bluesky"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse(line: bytes) -> Draft | Retraction | Skipped:
    """Raises InvalidMessage when it is no event, or a post without what makes one."""
    event = parse_object(line)
    kind = event.get("kind")
    if not isinstance(kind, str):
        raise InvalidMessage("an event without kind")
    if kind != "commit":
        return Skipped(kind[:80])
    commit = event.get("commit")
    if not isinstance(commit, dict):
        raise InvalidMessage("a commit event without commit")
    collection, operation = commit.get("collection"), commit.get("operation")
    if not isinstance(collection, str) or not isinstance(operation, str):
        raise InvalidMessage("a commit without collection or operation")
    if collection != POST or operation not in ("create", "update", "delete"):
        return Skipped(f"{operation} {collection}"[:80])
    did, rkey = identifier(event.get("did"), "did"), identifier(commit.get("rkey"), "rkey")
    if operation == "delete":
        return Retraction(PLATFORM, f"{did}/{rkey}")
    record = commit.get("record")
    if not isinstance(record, dict):
        raise InvalidMessage("a post without record")
    edited_at = _network_time(event.get("time_us")) if operation == "update" else None
    if operation == "update" and edited_at is None:
        raise InvalidMessage("an update without time_us: it cannot be told from other updates")
    languages = record.get("langs")
    return Draft(
        platform=PLATFORM,
        id=f"{did}/{rkey}",
        created_at=_event_time(record.get("createdAt"), event.get("time_us")),
        author=did,
        text=string(record.get("text"), "text"),
        language=language(languages[0] if isinstance(languages, list) and languages else None),
        url=f"https://bsky.app/profile/{quote(did, safe=':')}/post/{quote(rkey, safe=':')}",
        attachments=tuple(_attachments(did, _embedded(record))),
        about=" ".join(_about(record)),
        edited_at=edited_at,
    )


def cursor_us(line: bytes) -> int | None:
    """Where to resume after this event: its time in microseconds since the epoch, None when it has none."""
    try:
        time_us = parse_object(line).get("time_us")
    except InvalidMessage:
        return None
    return time_us if isinstance(time_us, int) and not isinstance(time_us, bool) and time_us > 0 else None


def _event_time(created_at: object, time_us: object) -> datetime:
    """When the author says; when the network saw it, where that is no time, before 2000, or later than this.

    The same rule as Bluesky's own `sortAt`: createdAt is the client's word, and clients are wrong every day.
    """
    seen = _network_time(time_us)
    try:
        said = time(created_at, "createdAt")
    except InvalidMessage:
        if seen is None:
            raise
        return seen
    if seen is not None and not EARLIEST <= said <= seen:
        return seen
    return said


def _network_time(time_us: object) -> datetime | None:
    """When the network saw it; None where that is no time."""
    if not isinstance(time_us, int) or isinstance(time_us, bool):
        return None
    try:
        return _EPOCH + timedelta(microseconds=time_us)
    except OverflowError:
        return None


def _embedded(record: dict[str, Any]) -> dict[str, Any]:
    """What is embedded, without the quoted post around it."""
    embed = record.get("embed")
    if isinstance(embed, dict) and embed.get("$type") == "app.bsky.embed.recordWithMedia":
        embed = embed.get("media")
    return embed if isinstance(embed, dict) else {}


def _pictures(embed: dict[str, Any]) -> list[dict[str, Any]]:
    images = embed.get("images")
    return [item for item in images if isinstance(item, dict)] if isinstance(images, list) else []


def _attachments(did: str, embed: dict[str, Any]) -> Iterator[Attachment]:
    """Pictures and the video the author added; a link card's thumbnail is not the author's."""
    for image in _pictures(embed):
        if attachment := _blob(did, image.get("image")):
            yield attachment
    if attachment := _blob(did, embed.get("video")):
        yield attachment


def _blob(did: str, blob: object) -> Attachment | None:
    if not isinstance(blob, dict):
        return None
    ref, mime_type, size = blob.get("ref"), blob.get("mimeType"), blob.get("size")
    cid = ref.get("$link") if isinstance(ref, dict) else blob.get("cid")  # the second: blobs from before 2023
    if not isinstance(cid, str) or not cid.isalnum() or len(cid) > 128:
        return None
    return Attachment(
        source_url=f"https://bsky.social/xrpc/com.atproto.sync.getBlob?did={quote(did, safe=':')}&cid={cid}",
        mime_type=mime_type if isinstance(mime_type, str) and mime_type.isascii() else "",
        size_bytes=size if isinstance(size, int) and 0 <= size < 2**40 else 0,
    )


def _about(record: dict[str, Any]) -> Iterator[str]:
    """Tags beside the text, descriptions of the pictures, the link card's title: what it is about."""
    tags = record.get("tags")
    for tag in tags if isinstance(tags, list) else ():
        if isinstance(tag, str):
            yield f"#{tag}"
    embed = _embedded(record)
    described: list[Any] = [*_pictures(embed), embed]
    for item in described:
        if isinstance(item.get("alt"), str):
            yield item["alt"]
    card = embed.get("external")
    if isinstance(card, dict):
        for key in ("title", "description"):
            if isinstance(card.get(key), str):
                yield card[key]
