"""Posts in, verdicts and trends out: the shipped feed, hostile input, real Bluesky events, kills."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest

from protos.crowdtone.v1 import api_pb2, events_pb2
from tests.stack import CROWDTONE, ROOT, Pipeline, free_port, services

DEMO = ROOT / "demo"
DATA = Path(os.environ.get("CROWDTONE_DATA_DIR", ROOT.parent / "shared" / "data"))
JETSTREAM = DATA / "feed_payloads" / "bluesky" / "jetstream_capture_20260704.jsonl"


def recount(posts: dict[str, Any]) -> Counter[int]:
    return Counter(scored.sentiment.label for scored in posts.values())


def trend_totals(pipeline: Pipeline, topic: str, grain: int) -> Counter[int]:
    request = api_pb2.QueryTrendsRequest(filter=api_pb2.TrendFilter(topic=topic), grain=grain)  # type: ignore[arg-type]
    totals: Counter[int] = Counter()
    for point in pipeline.api.QueryTrends(request).points:
        totals += Counter(
            {
                events_pb2.LABEL_NEGATIVE: point.negative,
                events_pb2.LABEL_NEUTRAL: point.neutral,
                events_pb2.LABEL_POSITIVE: point.positive,
                events_pb2.LABEL_UNSCORED: point.unscored,
            }
        )
        assert point.posts == point.negative + point.neutral + point.positive + point.unscored
    return totals


def jsonl(path: Path, *posts: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(post) + "\n" for post in posts))
    return path


def plain(id: str, text: str, **more: Any) -> dict[str, Any]:
    return {
        "platform": "mastodon",
        "id": id,
        "author": "someone",
        "created_at": "2026-06-14T09:00:00Z",
        "text": text,
        "lang": "en",
    } | more


@pytest.fixture(scope="module")
def fed(pipeline: Pipeline) -> dict[str, Any]:
    """The shipped feed, scored: all its posts by id."""
    lines = (DEMO / "feed.jsonl").read_text().splitlines()
    counts = pipeline.ingest("jsonl", str(DEMO / "feed.jsonl"), "--media", str(DEMO / "media"))
    assert counts["produced"] == len(lines)
    assert counts["rejected"] == counts["duplicate"] == 0
    return pipeline.wait_for_verdicts()


def test_every_post_of_the_feed_has_one_complete_verdict(pipeline: Pipeline, fed: dict[str, Any]) -> None:
    wanted = [json.loads(line) for line in (DEMO / "feed.jsonl").read_text().splitlines()]
    assert set(fed) == {f"{post['platform']}:{post['id']}" for post in wanted}
    for scored in fed.values():
        sentiment = scored.sentiment
        assert sentiment.complete
        if sentiment.label != events_pb2.LABEL_UNSCORED:
            assert sentiment.negative + sentiment.neutral + sentiment.positive == pytest.approx(1, abs=1e-4)
            assert sentiment.score == pytest.approx(sentiment.positive - sentiment.negative, abs=1e-4)
        answered = {weight.modality for weight in sentiment.modalities}
        assert answered == set(scored.post.expected), "every expected modality is accounted for"


def test_pictures_and_voices_have_a_say(fed: dict[str, Any]) -> None:
    spoke: Counter[int] = Counter()
    for scored in fed.values():
        for weight in scored.sentiment.modalities:
            spoke[weight.modality] += not weight.absent_reason
    assert spoke[events_pb2.MODALITY_TEXT] > 200
    assert spoke[events_pb2.MODALITY_IMAGE] > 30
    assert spoke[events_pb2.MODALITY_AUDIO] > 20
    assert spoke[events_pb2.MODALITY_SPEECH] > 20
    assert any(scored.sentiment.transcript for scored in fed.values())


def test_the_verdicts_agree_with_what_the_authors_meant(fed: dict[str, Any]) -> None:
    """Far above the 1/3 of chance and the share of the largest class: the model reads these posts."""
    with (DEMO / "intended.csv").open() as file:
        intended = {row["post_id"]: row["label"] for row in csv.DictReader(file)}
    names = {"negative": 1, "neutral": 2, "positive": 3}
    right = sum(fed[post_id].sentiment.label == names[label] for post_id, label in intended.items())
    assert right / len(intended) > 0.6


def test_the_mood_of_the_phone_launch_turns(pipeline: Pipeline, fed: dict[str, Any]) -> None:
    request = api_pb2.QueryTrendsRequest(
        filter=api_pb2.TrendFilter(topic="lumio-one"), grain=api_pb2.GRAIN_DAY
    )
    first, second = pipeline.api.QueryTrends(request).points
    assert first.mean_score - second.mean_score > 0.2


def test_trends_are_the_sum_of_the_posts(pipeline: Pipeline, fed: dict[str, Any]) -> None:
    topics = [topic.name for topic in pipeline.api.ListTopics(api_pb2.ListTopicsRequest()).topics]
    assert len(topics) == 3
    for topic in [*topics, "*"]:
        expected = recount(pipeline.posts(api_pb2.TrendFilter(topic=topic)))
        assert expected
        for grain in (api_pb2.GRAIN_MINUTE, api_pb2.GRAIN_HOUR, api_pb2.GRAIN_DAY):
            assert trend_totals(pipeline, topic, grain) == expected
    pipeline.crowdtone("verify")


def test_the_same_feed_again_changes_nothing(pipeline: Pipeline, fed: dict[str, Any]) -> None:
    before = trend_totals(pipeline, "*", api_pb2.GRAIN_HOUR)
    counts = pipeline.ingest("jsonl", str(DEMO / "feed.jsonl"), "--media", str(DEMO / "media"))
    assert counts["produced"] == 0
    assert counts["duplicate"] == len(fed)
    assert trend_totals(pipeline, "*", api_pb2.GRAIN_HOUR) == before


def test_the_query_command_prints_what_the_api_says(pipeline: Pipeline, fed: dict[str, Any]) -> None:
    answer = json.loads(pipeline.crowdtone("query", "trends", "solfest", "--grain", "day", "--json"))
    totals = trend_totals(pipeline, "solfest", api_pb2.GRAIN_DAY)
    assert sum(point["posts"] for point in answer["points"]) == totals.total()
    table = pipeline.crowdtone("query", "trends", "solfest", "--grain", "day")
    assert "2026-06-13" in table


def test_bad_lines_are_set_aside_and_their_neighbours_scored(pipeline: Pipeline, tmp_path: Path) -> None:
    good = [plain(f"good-{number}", "what a lovely day") for number in range(3)]
    feed = jsonl(
        tmp_path / "feed.jsonl",
        good[0],
        plain("empty", ""),
        plain("huge", "a" * 1_000_000),
        plain("no-time", "hello", created_at="NaN"),
        plain("future", "hello", created_at=(datetime.now(UTC) + timedelta(days=3650)).isoformat()),
        good[1],
        plain("where", "hello", platform="carrier-pigeon"),
    )
    with feed.open("a") as file:
        file.write("{broken\n[1, 2]\n")
        file.write(json.dumps(good[2]) + "\n")
    counts = pipeline.ingest("jsonl", str(feed))
    assert counts["read"] == 10
    assert counts["produced"] == 4
    assert counts["rejected"] == 6
    posts = pipeline.wait_for_verdicts()
    for post in good:
        assert posts[f"mastodon:{post['id']}"].sentiment.label == events_pb2.LABEL_POSITIVE
    empty = posts["mastodon:empty"].sentiment
    assert empty.label == events_pb2.LABEL_UNSCORED
    assert "empty" in empty.modalities[0].absent_reason


def test_bad_media_is_absent_with_its_reason_and_the_words_are_still_scored(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    media = tmp_path / "media"
    media.mkdir()
    picture = next((DEMO / "media").rglob("*.webp"), None) or next((DEMO / "media").rglob("*.jpg"))
    (media / "good.webp").write_bytes(picture.read_bytes())
    (media / "truncated.webp").write_bytes(picture.read_bytes()[:200])
    (media / "empty.jpg").write_bytes(b"")
    (media / "words.png").write_text("this is no picture")
    (media / "noise.mp3").write_bytes(bytes(range(256)) * 20)
    names = ["good.webp", "truncated.webp", "empty.jpg", "words.png", "noise.mp3", "missing.jpg"]
    posts = [plain(f"media-{name}", "I love this so much", media=[name]) for name in names]
    pipeline.ingest("jsonl", str(jsonl(tmp_path / "feed.jsonl", *posts)), "--media", str(media))
    scored = pipeline.wait_for_verdicts()
    for name in names:
        sentiment = scored[f"mastodon:media-{name}"].sentiment
        reasons = {weight.modality: weight.absent_reason for weight in sentiment.modalities}
        assert not reasons[events_pb2.MODALITY_TEXT]
        if name == "good.webp":
            assert not reasons[events_pb2.MODALITY_IMAGE]
            continue
        assert sentiment.label == events_pb2.LABEL_POSITIVE
        kind = events_pb2.MODALITY_AUDIO if name.endswith(".mp3") else events_pb2.MODALITY_IMAGE
        assert reasons[kind], f"{name} was encoded?"


def test_the_shipped_broken_feed_ends_as_its_ids_say(pipeline: Pipeline) -> None:
    """Bad times, platforms and lines are set aside, bad media absent, the good posts between are scored."""
    wanted: dict[str, set[str]] = {kind: set() for kind in ("good", "unscored", "absent", "any", "reject")}
    lines = (DEMO / "broken.jsonl").read_bytes().splitlines()
    for line in lines:
        # Also in lines that are no JSON any more.
        if found := re.search(rb'"id": "(([a-z]+)-[^"]+)"', line):
            wanted[found[2].decode()].add(f"mastodon:{found[1].decode()}")
    counts = pipeline.ingest("jsonl", str(DEMO / "broken.jsonl"), "--media", str(DEMO / "broken_media"))
    assert counts["read"] == len(lines) == counts["produced"] + counts["rejected"] + counts["duplicate"]
    assert counts["rejected"] >= len(wanted["reject"])
    assert counts["duplicate"] == 1
    posts = pipeline.wait_for_verdicts()
    assert posts.keys().isdisjoint(wanted["reject"])
    assert len(wanted["good"]) >= 20
    for post_id in wanted["good"]:
        scored = posts[post_id].sentiment
        assert scored.label != events_pb2.LABEL_UNSCORED
        assert not any(
            weight.absent_reason
            for weight in scored.modalities
            if weight.modality != events_pb2.MODALITY_SPEECH
        )
    for post_id in wanted["unscored"]:
        assert posts[post_id].sentiment.label == events_pb2.LABEL_UNSCORED
    assert "mastodon:absent-silence-10-hours" in wanted["absent"]
    for post_id in wanted["absent"]:
        scored = posts[post_id].sentiment
        reasons = {weight.modality: weight.absent_reason for weight in scored.modalities}
        assert not reasons.pop(events_pb2.MODALITY_TEXT)
        assert all(reasons.values()), f"{post_id} has a broken picture or sound that was encoded"
        assert scored.label != events_pb2.LABEL_UNSCORED
    pipeline.crowdtone("verify")


def test_an_edit_replaces_a_post_and_a_deletion_takes_it_back(pipeline: Pipeline, tmp_path: Path) -> None:
    before = trend_totals(pipeline, "*", api_pb2.GRAIN_HOUR)
    posts = {
        name: plain(f"form-{name}", "what a lovely day, I am so happy", created_at="2026-06-15T23:59:59Z")
        for name in ("kept", "edited", "deleted")
    }
    pipeline.ingest("jsonl", str(jsonl(tmp_path / "feed.jsonl", *posts.values())))
    pipeline.wait_for_verdicts()
    changes = [
        posts["edited"] | {"text": "what a terrible day, I hate it", "edited_at": "2026-06-16T08:00:00Z"},
        {"platform": "mastodon", "id": "form-deleted", "deleted": True},
        {"platform": "mastodon", "id": "never-seen", "deleted": True},
    ]
    feed = str(jsonl(tmp_path / "changes.jsonl", *changes))
    counts = json.loads(pipeline.crowdtone("ingest", "jsonl", feed, "--json"))
    assert (counts["produced"], counts["retracted"]) == (1, 2)
    pipeline.produced -= 1

    def changed() -> dict[str, Any] | None:
        found = pipeline.posts()
        edited = found["mastodon:form-edited"]
        done = edited.post.text == changes[0]["text"] and "mastodon:form-deleted" not in found
        return found if done else None

    found = pipeline.wait(changed, "edit and deletion", 300)
    assert found["mastodon:form-kept"].sentiment.label == events_pb2.LABEL_POSITIVE
    edited = found["mastodon:form-edited"].sentiment
    assert (edited.label, edited.revision) == (events_pb2.LABEL_NEGATIVE, 2)
    assert edited.event_time.ToJsonString() == "2026-06-15T23:59:59Z"
    with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
        pipeline.api.GetPost(api_pb2.GetPostRequest(post_id="mastodon:form-deleted"))
    both = Counter({events_pb2.LABEL_POSITIVE: 1, events_pb2.LABEL_NEGATIVE: 1})
    assert trend_totals(pipeline, "*", api_pb2.GRAIN_HOUR) == before + both
    # The posts themselves once more, as a crash of ingest would bring them: nothing comes back.
    pipeline.crowdtone("ingest", "jsonl", str(tmp_path / "feed.jsonl"), "--again")
    after = plain("form-after", "what a lovely day, I am so happy")
    pipeline.ingest("jsonl", str(jsonl(tmp_path / "after.jsonl", after)))
    found = pipeline.wait_for_verdicts()
    assert "mastodon:form-deleted" not in found
    assert found["mastodon:form-edited"].sentiment.label == events_pb2.LABEL_NEGATIVE
    pipeline.crowdtone("verify")


@pytest.mark.skipif(not JETSTREAM.exists(), reason="the recorded Bluesky capture is not on this machine")
def test_a_recorded_bluesky_capture_gives_seventeen_verdicts(pipeline: Pipeline) -> None:
    counts = pipeline.ingest("jetstream", str(JETSTREAM))
    assert counts["produced"] == 17
    posts = pipeline.wait_for_verdicts()
    bluesky = [post for post in posts.values() if post.post.url.startswith("https://bsky.app/profile/did:")]
    assert len(bluesky) == 17


def kill_and_await_successor(pipeline: Pipeline, service: str) -> None:
    old = pipeline.pid(service)
    os.kill(old, signal.SIGKILL)
    pipeline.wait(lambda: pipeline.pid(service) not in (0, old), f"new {service}", 120)


def test_killed_services_lose_and_double_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    """kill -9 of fusion and of the text encoder with posts in flight; the supervisor starts them again."""
    before = trend_totals(pipeline, "*", api_pb2.GRAIN_DAY).total()
    posts = [plain(f"kill-{number}", f"number {number} made me happy") for number in range(2000)]
    pipeline.ingest("jsonl", str(jsonl(tmp_path / "feed.jsonl", *posts)))
    for service in ("text_encoder", "fusion", "text_encoder", "fusion"):
        kill_and_await_successor(pipeline, service)
    pipeline.wait_for_verdicts()
    assert trend_totals(pipeline, "*", api_pb2.GRAIN_DAY).total() == before + 2000
    pipeline.crowdtone("verify")


def test_every_service_reports_itself(pipeline: Pipeline, fed: dict[str, Any]) -> None:
    names = {"text_encoder", "image_encoder", "audio_encoder", "fusion"}

    def all_done() -> dict[str, Any] | None:
        """A report is as old as the last beat: what was said before the last record was read passes."""
        reports = pipeline.services()
        done = names <= set(reports) and not any(reports[name].lag_records for name in names)
        return reports if done else None

    reports = pipeline.wait(all_done, "report of each service without lag", 60)
    for name in names:
        assert reports[name].memory_bytes > 10 * 2**20


def test_no_secret_is_in_any_log(pipeline: Pipeline, fed: dict[str, Any], tmp_path: Path) -> None:
    """Of the whole run so far, and of what complains about wrong secrets, told to say everything it can."""
    lines = (pipeline.directory / "stack.env").read_text().splitlines()
    stack = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    postgres, redis = urlsplit(stack["CROWDTONE_POSTGRES_URL"]), urlsplit(stack["CROWDTONE_REDIS_URL"])
    known = {
        "Postgres password": postgres.password,
        "Redis password": redis.password,
        "author key": stack["CROWDTONE_AUTHOR_KEY"],
        "API token": "token-" + secrets.token_hex(16),
        "wrong token": "wrong-" + secrets.token_hex(16),
        "wrong password": "wrong-" + secrets.token_hex(16),
    }
    said = tmp_path / "said.log"

    def crowdtone(*arguments: str, **changes: str) -> int:
        env = pipeline.env | {"CROWDTONE_WORKER_LOG_LEVEL": "DEBUG"} | changes
        with said.open("ab") as output:
            command = [*CROWDTONE, *arguments]
            return subprocess.run(
                command, env=env, cwd=ROOT, stdout=output, stderr=output, timeout=300
            ).returncode

    address = f"127.0.0.1:{free_port()}"
    asked = pipeline.env | {
        "CROWDTONE_API_ADDRESS": address,
        "CROWDTONE_API_TOKEN_SHA256": hashlib.sha256(str(known["API token"]).encode()).hexdigest(),
        "CROWDTONE_WORKER_LOG_LEVEL": "DEBUG",
    }
    with services([sys.executable, "-m", "services.api"], asked, said):
        for name, ends in (("API token", 0), ("wrong token", 1)):
            told = {"CROWDTONE_API_ADDRESS": address, "CROWDTONE_API_TOKEN": str(known[name])}
            assert (crowdtone("topics", "list", **told) != 0) == ends
    # A token where its hash belongs must not be repeated by the error that says so.
    assert crowdtone("run", "api", CROWDTONE_API_TOKEN_SHA256=str(known["API token"])) != 0
    wrong = stack["CROWDTONE_POSTGRES_URL"].replace(str(postgres.password), str(known["wrong password"]))
    away = {"CROWDTONE_POSTGRES_URL": wrong, "CROWDTONE_POSTGRES_RETRY_S": "1"}
    assert crowdtone("verify", **away) != 0
    assert crowdtone("ingest", "jsonl", "demo/feed.jsonl", **away) == 75
    wrong = f"redis://:{known['wrong password']}@127.0.0.1:{redis.port}/0"
    feed = jsonl(tmp_path / "feed.jsonl", plain("fed-already", "I love it"))
    pipeline.produced += 1
    assert crowdtone("ingest", "jsonl", str(feed), CROWDTONE_REDIS_URL=wrong) == 0

    logs = [said, pipeline.log, *(pipeline.directory / "logs").rglob("*")]
    texts = {path.name: path.read_bytes() for path in logs if path.is_file()}
    for name in ("kafka", "postgres", "redis", "text_encoder", "image_encoder", "fusion", "api"):
        assert any(found.startswith(name) for found in texts), f"no log of {name} among {sorted(texts)}"
    assert b"password authentication failed" in texts["said.log"]
    for name, text in texts.items():
        for what, secret in known.items():
            assert secret
            assert secret.encode() not in text, f"the {what} is in {name}"
    for name in ("stack.env", "stack.json"):
        assert (pipeline.directory / name).stat().st_mode & 0o077 == 0
