"""Bluesky's Jetstream events: which are posts, and what is taken from them."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.draft import Attachment, Draft, Retraction, Skipped
from services.ingest.jetstream import cursor_us, parse
from shared.errors import InvalidMessage

DATA = Path(os.environ.get("CROWDTONE_DATA_DIR", Path(__file__).parents[5] / "shared" / "data"))
BLUESKY = DATA / "feed_payloads" / "bluesky"
DID = "did:plc:aaaabbbbccccddddeeeeffff"
SEEN = datetime(2026, 7, 4, 14, 38, 8, tzinfo=UTC)
TIME_US = int(SEEN.timestamp() * 1_000_000)


def event(record: dict[str, Any] | None = None, **commit: Any) -> bytes:
    made = {
        "did": DID,
        "time_us": TIME_US,
        "kind": "commit",
        "commit": {
            "rev": "3l",
            "operation": "create",
            "collection": "app.bsky.feed.post",
            "rkey": "3mptbyoeyc22k",
            "record": {
                "$type": "app.bsky.feed.post",
                "createdAt": "2026-07-04T14:38:06.240Z",
                "text": "hello",
                **(record or {}),
            },
        }
        | commit,
    }
    return json.dumps(made).encode()


def draft(line: bytes) -> Draft:
    found = parse(line)
    assert isinstance(found, Draft)
    return found


def blob(cid: str, mime_type: str = "image/jpeg") -> dict[str, Any]:
    return {"$type": "blob", "ref": {"$link": cid}, "mimeType": mime_type, "size": 1234}


def test_a_post() -> None:
    assert draft(event({"langs": ["en-US", "de"]})) == Draft(
        platform="bluesky",
        id=f"{DID}/3mptbyoeyc22k",
        created_at=datetime(2026, 7, 4, 14, 38, 6, 240_000, tzinfo=UTC),
        author=DID,
        text="hello",
        language="en",
        url=f"https://bsky.app/profile/{DID}/post/3mptbyoeyc22k",
    )


def test_an_update_is_a_later_form_of_the_same_post() -> None:
    first, edited = draft(event()), draft(event(operation="update", record={"text": "hello!"}))
    assert (edited.id, edited.created_at, edited.text) == (first.id, first.created_at, "hello!")
    assert first.edited_at is None
    time_us = json.loads(event())["time_us"]
    assert edited.edited_at == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)
    with pytest.raises(InvalidMessage, match="time_us"):
        parse(event(operation="update").replace(b'"time_us"', b'"other"'))


def test_a_deletion_names_its_post() -> None:
    assert parse(event(operation="delete").replace(b'"record"', b'"other"')) == Retraction(
        "bluesky", f"{DID}/3mptbyoeyc22k"
    )


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (event(collection="app.bsky.feed.like"), "create app.bsky.feed.like"),
        (event(collection="app.bsky.feed.repost"), "create app.bsky.feed.repost"),
        (event(operation="delete", collection="app.bsky.feed.like"), "delete app.bsky.feed.like"),
        (b'{"did":"did:plc:x","time_us":1,"kind":"identity","identity":{}}', "identity"),
        (b'{"did":"did:plc:x","time_us":1,"kind":"account","account":{}}', "account"),
        (b'{"kind":"something of next year"}', "something of next year"),
    ],
)
def test_other_events_are_skipped(line: bytes, kind: str) -> None:
    assert parse(line) == Skipped(kind)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b'{"kind": 5}',
        b'{"kind": "commit"}',
        b'{"kind": "commit", "commit": []}',
        b'{"kind": "commit", "commit": {"operation": "create"}}',
        event(rkey="x").replace(b'"record"', b'"other"'),
        event(rkey=None),
        event({"text": 5}),
    ],
)
def test_what_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidMessage):
        parse(line)


@pytest.mark.parametrize(
    ("created_at", "event_time"),
    [
        ("2026-07-04T14:38:06Z", datetime(2026, 7, 4, 14, 38, 6, tzinfo=UTC)),
        (
            "2012-01-01T00:00:00Z",
            datetime(2012, 1, 1, tzinfo=UTC),
        ),  # imported from elsewhere: when it was said
        ("2026-07-05T00:00:00Z", SEEN),  # later than the network saw it: a wrong clock
        ("0001-01-01T00:00:00Z", SEEN),
        ("1970-01-01T00:00:00Z", SEEN),
        ("", SEEN),
        ("NaN", SEEN),
        (None, SEEN),
        (5, SEEN),
    ],
)
def test_the_event_time_is_the_authors_where_it_can_be(created_at: object, event_time: datetime) -> None:
    assert draft(event({"createdAt": created_at})).created_at == event_time


def test_without_any_time_it_is_no_post() -> None:
    made = json.loads(event({"createdAt": "soon"}))
    for bad in (None, "1", True, 10**30):
        with pytest.raises(InvalidMessage, match="createdAt"):
            parse(json.dumps(made | {"time_us": bad}).encode())


def test_pictures_and_videos_are_declared_where_they_are() -> None:
    images = {
        "$type": "app.bsky.embed.images",
        "images": [{"image": blob("bafy1"), "alt": "A lumio"}, {"image": 5}],
    }
    quoted = {"$type": "app.bsky.embed.recordWithMedia", "media": images, "record": {}}
    video = {"$type": "app.bsky.embed.video", "video": blob("bafy2", "video/mp4"), "alt": "It burns"}
    base = "https://bsky.social/xrpc/com.atproto.sync.getBlob"
    for embed in (images, quoted):
        found = draft(event({"embed": embed}))
        assert found.attachments == (
            Attachment(source_url=f"{base}?did={DID}&cid=bafy1", mime_type="image/jpeg", size_bytes=1234),
        )
        assert found.about == "A lumio"
        assert found.text == "hello", "a description of a picture is not what the author feels"
    found = draft(event({"embed": video}))
    assert found.attachments[0].mime_type == "video/mp4"
    assert found.about == "It burns"


def test_a_link_card_tells_what_it_is_about_but_its_picture_is_not_the_authors() -> None:
    card = {
        "$type": "app.bsky.embed.external",
        "external": {"title": "Lumio recalled", "description": "Again", "thumb": blob("bafy3")},
    }
    found = draft(event({"embed": card, "tags": ["LumioGate", 5]}))
    assert found.attachments == ()
    assert found.about == "#LumioGate Lumio recalled Again"


@pytest.mark.parametrize("cid", ["", "a/../b", "a?x=1", "a" * 200, 5, None])
def test_a_blob_whose_name_is_none_is_left_out(cid: Any) -> None:
    images = {"$type": "app.bsky.embed.images", "images": [{"image": blob(cid)}]}
    assert draft(event({"embed": images})).attachments == ()


def test_where_to_resume() -> None:
    assert cursor_us(event()) == TIME_US
    for line in (b"junk", b"{}", b'{"time_us": "1"}', b'{"time_us": true}', b'{"time_us": -1}'):
        assert cursor_us(line) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["embed", "langs", "tags", "text", "createdAt", "media", "images", "external", "video"]
)
embeds = st.fixed_dictionaries(
    {"$type": st.sampled_from(["app.bsky.embed.images", "app.bsky.embed.recordWithMedia"])},
    optional=dict.fromkeys(("images", "media", "external", "video", "alt"), values),
)


@given(st.dictionaries(keys, values | embeds, max_size=4))
def test_no_record_does_more_than_be_refused(record: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidMessage):
        parse(event(record))


@pytest.mark.skipif(not BLUESKY.exists(), reason="the recorded Bluesky events are not on this machine")
def test_recorded_events_are_all_understood() -> None:
    found: Counter[type] = Counter()
    for path in sorted(BLUESKY.glob("*.jsonl")):
        posts = 0
        for line in path.read_bytes().splitlines():
            item = parse(line)
            found[type(item)] += 1
            posts += isinstance(item, Draft)
        if path.name == "jetstream_capture_20260704.jsonl":
            assert posts == 17
    assert found.total() == 162
