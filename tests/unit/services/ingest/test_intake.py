"""Lines in, posts out, each once; what is over a limit is set aside and its neighbours are not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.ingest import jetstream, jsonl
from services.ingest.attachments import Attachments
from services.ingest.draft import Parse
from services.ingest.feeds import record
from services.ingest.intake import Counts, Intake, author_hash
from services.ingest.matching import Matcher
from services.ingest.settings import AuthorSettings, IngestSettings
from shared import codec
from shared.media import MediaStore
from shared.messages import Modality, Output, Post, Record
from shared.settings import MediaSettings

NOW = datetime(2026, 6, 13, 12, tzinfo=UTC)
KEY = b"a key of the test's own"


class Remembered:
    """What `seen.Seen` does, in memory."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    def which(self, post_ids: Sequence[str]) -> list[bool]:
        return [post_id in self.ids for post_id in post_ids]

    def mark(self, post_ids: Sequence[str]) -> None:
        self.ids.update(post_ids)


@pytest.fixture
def seen() -> Remembered:
    return Remembered()


def make(tmp_path: Path, seen: Remembered, parse: Parse = jsonl.parse, **settings: Any) -> Intake:
    matcher = Matcher({"lumio": ["lumio"]})
    store = MediaStore(MediaSettings(url=(tmp_path / "store").as_uri()))
    return Intake(
        parse,
        lambda now: matcher,
        Attachments(tmp_path, store, max_bytes=1000, retry_s=0.1),
        seen,
        author_key=KEY,
        settings=IngestSettings(**settings),
    )


def line(id: str = "1", **more: Any) -> bytes:
    post = {"platform": "x", "id": id, "author": "ann", "created_at": "2026-06-13T09:00:00Z", "text": "hello"}
    return json.dumps(post | more).encode()


def records(*contents: bytes, headers: tuple[tuple[str, bytes], ...] = ()) -> list[Record]:
    return [record(content, number, "test", *headers) for number, content in enumerate(contents, 1)]


def posts(outputs: Sequence[Output]) -> list[Post]:
    return [codec.decode_post(output.value) for output in outputs if output.topic == "posts"]


def reasons(outputs: Sequence[Output]) -> list[str]:
    return [dict(output.headers)["reason"].decode() for output in outputs if output.topic == "feed.dlq"]


def step(intake: Intake, contents: list[Record]) -> Sequence[Output]:
    result = intake.step(contents, NOW.timestamp())
    assert result.posts == len(posts(result.outputs))
    return result.outputs


def test_a_post_as_it_leaves(tmp_path: Path, seen: Remembered) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "a.ogg").write_bytes(b"OggS")
    wanted = line(text="My Lumio!", lang="de-AT", media=["a.png", "a.ogg"], url="https://example.org/1")
    (output,) = step(make(tmp_path, seen), records(wanted))
    (post,) = posts([output])
    assert post.post_id == "x:1"
    assert output.key == b"x:1"
    assert output.partition is None, "Kafka's partitioner places it by its key"
    assert post.event_time == NOW - timedelta(hours=3)
    assert post.ingest_time == NOW
    assert post.language == "de"
    assert post.topics == ("lumio",)
    assert post.expected == frozenset(Modality)
    assert [media.kind for media in post.media] == [Modality.IMAGE, Modality.AUDIO]
    assert post.author_hash == author_hash(KEY, "x", "ann")
    assert b"ann" not in output.value
    headers = dict(output.headers)
    assert headers["ce_id"] == b"x:1"
    assert headers["traceparent"].decode() == post.traceparent


def test_only_words_are_expected_of_a_post_without_media_even_when_it_has_none(
    tmp_path: Path, seen: Remembered
) -> None:
    (post,) = posts(step(make(tmp_path, seen), records(line(text=""))))
    assert post.text == ""
    assert post.expected == {Modality.TEXT}


def test_authors_are_told_apart_but_not_told() -> None:
    hashed = author_hash(KEY, "x", "ann")
    assert len(hashed) == 64
    others = [
        author_hash(KEY, "x", "bob"),
        author_hash(KEY, "y", "ann"),
        author_hash(b"another key", "x", "ann"),
    ]
    assert hashed not in others
    assert author_hash(KEY, "x", "") == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"platform": "carrier-pigeon"}, "unknown platform 'carrier-pigeon'"),
        ({"created_at": "1999-12-31T23:59:59Z"}, "before 2000"),
        ({"created_at": "2026-06-13T13:00:01Z"}, "ahead of our clock"),
        ({"created_at": "9026-06-13T13:00:00Z"}, "ahead of our clock"),
        ({"text": "a" * 65_537}, "text of 65537 characters"),
        ({"media": ["a.png"] * 33}, "33 media"),
        ({"created_at": "NaN"}, "not an RFC 3339 time"),
    ],
)
def test_over_a_limit(tmp_path: Path, seen: Remembered, changes: dict[str, Any], reason: str) -> None:
    bad = line("bad", **changes)
    outputs = step(make(tmp_path, seen), records(line("a"), bad, line("b")))
    assert [post.post_id for post in posts(outputs)] == ["x:a", "x:b"]
    assert reason in reasons(outputs)[0]
    dead = outputs[1]
    assert dead.value == bad
    assert dict(dead.headers)["offset"] == b"2"


def test_at_a_limit_it_is_a_post(tmp_path: Path, seen: Remembered) -> None:
    contents = [
        line("a", created_at="2000-01-01T00:00:00Z"),
        line("b", created_at="2026-06-13T13:00:00Z"),
        line("c", text="é" * 65_536),
    ]
    assert len(posts(step(make(tmp_path, seen), records(*contents)))) == 3


def test_limits_can_be_set(tmp_path: Path, seen: Remembered) -> None:
    intake = make(
        tmp_path, seen, platforms=["carrier-pigeon"], future_skew_s=0, max_text_chars=2, max_media=0
    )
    contents = [
        line("a", platform="carrier-pigeon", text="ok"),
        line("b", text="ok"),
        line("c", platform="carrier-pigeon", created_at="2026-06-13T12:00:01Z", text="ok"),
        line("d", platform="carrier-pigeon", text="long"),
        line("e", platform="carrier-pigeon", text="ok", media=["a.png"]),
    ]
    outputs = step(intake, records(*contents))
    assert [post.post_id for post in posts(outputs)] == ["carrier-pigeon:a"]
    assert len(reasons(outputs)) == 4


def test_a_post_is_a_duplicate_only_once_the_brokers_have_it(tmp_path: Path, seen: Remembered) -> None:
    intake = make(tmp_path, seen)
    assert len(posts(step(intake, records(line("a"), line("a"), line("b"))))) == 2
    # The write failed, the process came back: nothing was marked, so nothing is lost.
    assert len(posts(step(make(tmp_path, seen), records(line("a"))))) == 1
    assert seen.ids == set()
    intake.finished()
    assert seen.ids == {"x:a", "x:b"}
    assert posts(step(intake, records(line("a"), line("b")))) == []
    intake.finished()
    assert intake.counts == Counts(read=5, produced=2, duplicate=3)


def test_the_same_id_on_two_platforms_is_two_posts(tmp_path: Path, seen: Remembered) -> None:
    outputs = step(make(tmp_path, seen), records(line("a"), line("a", platform="reddit")))
    assert [post.post_id for post in posts(outputs)] == ["x:a", "reddit:a"]


def test_a_refused_line_does_not_make_a_duplicate_of_a_good_one(tmp_path: Path, seen: Remembered) -> None:
    (tmp_path / "out").symlink_to("/")
    bad = line("a", media=["out/etc/hostname"])
    outputs = step(make(tmp_path, seen), records(bad, line("a")))
    assert [post.post_id for post in posts(outputs)] == ["x:a"]
    assert len(reasons(outputs)) == 1


def test_nothing_counts_before_it_is_durable(tmp_path: Path, seen: Remembered) -> None:
    intake = make(tmp_path, seen)
    step(intake, records(line("a"), b"junk", line("a")))
    assert intake.counts == Counts()
    intake.finished()
    assert intake.counts == Counts(read=3, produced=1, duplicate=1, rejected=1)
    intake.finished()  # an idle turn
    assert intake.counts == Counts(read=3, produced=1, duplicate=1, rejected=1)


def test_events_that_are_no_posts_are_skipped(tmp_path: Path, seen: Remembered) -> None:
    intake = make(tmp_path, seen, jetstream.parse)
    assert step(intake, records(b'{"kind": "identity"}', b'{"kind": "account"}')) == []
    intake.finished()
    assert intake.counts == Counts(read=2, skipped=2)


def test_a_line_that_was_cut_says_how_long_it_was(tmp_path: Path, seen: Remembered) -> None:
    outputs = step(make(tmp_path, seen), records(line(), headers=(("truncated_from_bytes", b"99999"),)))
    assert reasons(outputs) == ["a line of 99999 bytes; the limit is 4194304"]
    assert dict(outputs[0].headers)["truncated_from_bytes"] == b"99999"


def test_a_replayed_line_is_a_new_post_of_now_and_a_broken_one_is_set_aside_only_once(
    tmp_path: Path, seen: Remembered
) -> None:
    intake = make(tmp_path, seen)
    step(intake, records(line("a"), b"junk"))
    intake.finished()
    outputs = step(intake, records(line("a"), b"junk", headers=(("replay", b"~1"),)))
    intake.finished()
    (post,) = posts(outputs)
    assert post.post_id == "x:a~1"
    assert post.event_time == post.ingest_time == NOW
    assert reasons(outputs) == []
    assert intake.counts == Counts(read=4, produced=2, rejected=1, skipped=1)


def test_a_key_that_is_too_short_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROWDTONE_AUTHOR_KEY", "short")
    with pytest.raises(ValidationError):
        AuthorSettings()
    monkeypatch.setenv("CROWDTONE_AUTHOR_KEY", "0123456789abcdef")
    key = AuthorSettings().author_key
    assert key is not None
    assert "0123456789abcdef" not in repr(key)


def test_the_key_can_be_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "crowdtone_author_key").write_text("0123456789abcdef\n")
    monkeypatch.setenv("CROWDTONE_SECRETS_DIR", str(tmp_path))
    key = AuthorSettings().author_key
    assert key is not None
    assert key.get_secret_value() == "0123456789abcdef"


def test_each_form_of_a_post_is_produced_once(tmp_path: Path, seen: Remembered) -> None:
    first, second = (f"2026-06-13T10:00:0{n}Z" for n in (1, 2))
    intake = make(tmp_path, seen)
    lines = [
        line(),
        line(text="hello!", edited_at=first),
        line(text="hello?", edited_at=second),
        line(text="hello!", edited_at=first),
        line(edited_at="2026-06-13T09:00:00Z"),  # at its creation: not edited
        b'{"platform": "x", "id": "1", "deleted": true}',
        b'{"platform": "X", "id": 1, "deleted": true}',
    ]
    outputs = step(intake, records(*lines))
    intake.finished()
    found = posts(outputs)
    assert [post.text for post in found] == ["hello", "hello!", "hello?", ""]
    assert {post.post_id for post in found} == {"x:1"}
    assert {output.key for output in outputs} == {b"x:1"}, "all forms of a post share a partition, in order"
    assert sorted(found, key=lambda post: post.rank) == found
    assert [post.version for post in found[:2]] == [0, 1_781_344_801_000_000]
    assert [post.deleted for post in found] == [False, False, False, True]
    assert found[-1].author_hash == found[-1].url == ""
    assert len({dict(output.headers)["ce_id"] for output in outputs}) == 4
    assert intake.counts == Counts(read=7, produced=3, retracted=1, duplicate=3)
    assert step(intake, records(*lines)) == []


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"edited_at": "soon"}, "edited_at is not an RFC 3339 time"),
        ({"edited_at": "2036-06-13T10:00:00Z"}, "edited 2036-06-13T10:00:00+00:00: "),
        ({"deleted": "yes"}, "deleted is neither true nor false"),
        ({"deleted": True, "platform": "carrier-pigeon"}, "unknown platform"),
    ],
)
def test_an_edit_or_deletion_that_is_none_is_set_aside(
    tmp_path: Path, seen: Remembered, more: dict[str, Any], reason: str
) -> None:
    (found,) = reasons(step(make(tmp_path, seen), records(line(**more))))
    assert reason in found
