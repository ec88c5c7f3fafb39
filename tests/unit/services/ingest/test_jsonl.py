"""Our own feed format: what is a post, and with which words each thing that is none is refused."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.draft import Attachment, Draft, Retraction
from services.ingest.jsonl import parse, posted_in
from shared.errors import InvalidMessage

POST: dict[str, Any] = {
    "platform": "mastodon",
    "id": "1",
    "author": "ann",
    "created_at": "2026-06-13T09:00:00Z",
    "text": "hello",
    "lang": "en",
    "media": ["a/b.jpg"],
    "url": "https://example.org/1",
}


def draft(content: bytes) -> Draft:
    found = parse(content)
    assert isinstance(found, Draft)
    return found


def line(**changes: Any) -> bytes:
    values = POST | changes
    return json.dumps({key: value for key, value in values.items() if value is not ...}).encode()


def test_a_whole_post() -> None:
    assert draft(line()) == Draft(
        platform="mastodon",
        id="1",
        created_at=datetime(2026, 6, 13, 9, tzinfo=UTC),
        author="ann",
        text="hello",
        language="en",
        url="https://example.org/1",
        attachments=(Attachment(path="a/b.jpg"),),
    )


def test_only_platform_id_and_time_are_needed() -> None:
    found = draft(b'{"platform": "X", "id": 7, "created_at": "2026-06-13T09:00:00Z", "unknown": [1]}')
    assert found == Draft("x", "7", datetime(2026, 6, 13, 9, tzinfo=UTC))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-06-13T09:00:00Z", datetime(2026, 6, 13, 9, tzinfo=UTC)),
        ("2026-06-13t09:00:00z", datetime(2026, 6, 13, 9, tzinfo=UTC)),
        ("2026-06-13 11:00:00+02:00", datetime(2026, 6, 13, 9, tzinfo=UTC)),
        ("2026-06-13T09:00:00.5-00:00", datetime(2026, 6, 13, 9, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-06-13T09:00:00.123456789Z", datetime(2026, 6, 13, 9, 0, 0, 123_456, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2016, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
    ],
)
def test_times(written: str, meant: datetime) -> None:
    assert draft(line(created_at=written)).created_at == meant


@given(
    st.datetimes(
        min_value=datetime(1900, 1, 1),
        max_value=datetime(9000, 1, 1),
        timezones=st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
    )
)
def test_every_time_python_writes_is_read_back(time: datetime) -> None:
    assert draft(line(created_at=time.isoformat())).created_at == time


@pytest.mark.parametrize(
    "time",
    [
        "NaN", math.nan, math.inf, "inf", "", 1_781_341_200, True, [], "yesterday", "2026-06-13",
        "2026-06-13T09:00:00",
        "2026-13-13T09:00:00Z", "2026-06-31T09:00:00Z", "2026-06-13T25:00:00Z", "99999-06-13T09:00:00Z",
        "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-06-13T09:00:00+99:99",
        "२०२६-06-13T09:00:00Z",
        "2026-W01-1T09:00:00Z", "2026-06-13T09:00:00Z ", "2026-06-13T09:00:00\nZ",
    ],
)  # fmt: skip
def test_what_is_no_time(time: object) -> None:
    with pytest.raises(InvalidMessage, match="created_at is no"):
        draft(line(created_at=time))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"hello", "not JSON"),
        (b"[]", "a list, not an object"),
        (b'"text"', "a string, not an object"),
        (b"null", "null, not an object"),
        (b"12", "a number, not an object"),
        (b"true", "a boolean, not an object"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"text": "caf\xe9"}', "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"id": ' + b"9" * 5000 + b"}", "not JSON"),
        (line(platform=...), "platform is missing"),
        (line(platform=5.5), "platform is a number"),
        (line(id=...), "id is missing"),
        (line(id=""), "id is missing"),
        (line(id=True), "id is a boolean"),
        (line(id=["1"]), "id is a list"),
        (line(id="a\nb"), "printable"),
        (line(id="a\0b"), "printable"),
        (line(id="\ud800"), "printable"),
        (line(id=" a"), "printable"),
        (line(id="a" * 513), "printable"),
        (line(created_at=...), "created_at is missing"),
        (line(created_at=None), "created_at is missing"),
        (line(text=5), "text is a number, not a string"),
        (line(text=["a"]), "text is a list"),
        (line(author=["a"]), "author is a list"),
        (line(media="a.jpg"), "media is not a list"),
        (line(media=[1]), "an item of media is a number"),
        (line(media=[""]), "not below the media folder"),
        (line(media=["/etc/passwd"]), "not below the media folder"),
        (line(media=["C:\\x"]), "not below the media folder"),
        (line(media=["../x"]), "leads out"),
        (line(media=["a/../../x"]), "leads out"),
        (line(media=["a\\..\\..\\x"]), "leads out"),
    ],
)
def test_what_is_no_post(bad: bytes, reason: str) -> None:
    with pytest.raises(InvalidMessage, match=reason):
        draft(bad)


def test_text_that_no_store_can_hold_is_mended_and_kept() -> None:
    assert draft(line(text="half \ud83d a\0b")).text == "half \ufffd a\ufffdb"
    assert draft(line(text="whole \U0001f600")).text == "whole \U0001f600"
    assert draft(b"\xef\xbb\xbf" + line(text="after a BOM")).text == "after a BOM"
    assert draft(line(text=None)).text == draft(line(text=...)).text == ""


@pytest.mark.parametrize(
    ("written", "language"),
    [("en", "en"), ("EN-us", "en"), ("zh-Hans-CN", "zh"), ("pt_BR", "pt"), ("fil", "fil"), ("tlh-x-y", "tlh")]
    + [(bad, "und") for bad in (None, "", "e", "english", 5, ["en"], "12", "日本", "en\n")],
)
def test_language(written: object, language: str) -> None:
    assert draft(line(lang=written)).language == language


def test_only_addresses_people_can_follow_are_kept() -> None:
    assert draft(line(url="HTTPS://example.org/a")).url == "HTTPS://example.org/a"
    for bad in (
        "javascript:alert(1)",
        "data:text/html,x",
        "//x",
        5,
        None,
        "https://a/" + "a" * 2048,
        "https://a/\n",
    ):
        assert draft(line(url=bad)).url == ""


def test_media_elsewhere_is_declared_with_its_address() -> None:
    assert draft(line(media=["https://example.org/a.jpg"])).attachments == (
        Attachment(source_url="https://example.org/a.jpg"),
    )


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://a.example/hashtag/Solfest2026/1", "#Solfest2026"),
        ("https://a.example/r/LumioOne/comments/x", "LumioOne"),
        ("https://a.example/tags/caf%C3%A9?x=1", "#café"),
        ("https://a.example/user/status/1", ""),
        ("", ""),
    ],
)
def test_where_it_was_posted(url: str, words: str) -> None:
    assert posted_in(url) == words


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(junk: bytes) -> None:
    with pytest.raises(InvalidMessage):
        draft(junk)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.fixed_dictionaries({}, optional={key: json_values | st.just(POST[key]) for key in POST}))
def test_no_object_does_more_than_be_refused(post: dict[str, Any]) -> None:
    try:
        found = draft(json.dumps(post).encode())
    except InvalidMessage:
        return
    found.text.encode()  # storable
    assert found.id
    assert found.platform
    assert "\0" not in found.text + found.author + found.url


def test_an_edit_and_a_deletion() -> None:
    assert draft(line(edited_at="2026-06-13T10:00:00Z")).edited_at == datetime(2026, 6, 13, 10, tzinfo=UTC)
    assert draft(line(edited_at=None, deleted=False)).edited_at is None
    assert parse(b'{"platform": "Mastodon", "id": 1, "deleted": true}') == Retraction("mastodon", "1")
