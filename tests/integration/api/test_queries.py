"""Trends and posts over a real Postgres, asked through a real socket, against sums worked out by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from protos.crowdtone.v1 import api_pb2 as pb
from protos.crowdtone.v1 import events_pb2 as events
from shared.messages import Label
from shared.testing import NOON


def stamp(time: datetime) -> Timestamp:
    value = Timestamp()
    value.FromDatetime(time)
    return value


def trend(api: Any, grain: pb.Grain.ValueType = pb.GRAIN_HOUR, **fields: Any) -> list[tuple[Any, ...]]:
    """(bucket, posts, negative, neutral, positive, unscored, mean score) of each point."""
    for name in ("start_time", "end_time"):
        if name in fields:
            fields[name] = stamp(fields[name])
    answer = api.QueryTrends(pb.QueryTrendsRequest(filter=pb.TrendFilter(**fields), grain=grain), timeout=10)
    return [
        (
            point.bucket_start.ToDatetime(tzinfo=UTC),
            point.posts,
            point.negative,
            point.neutral,
            point.positive,
            point.unscored,
            round(point.mean_score, 6),
        )
        for point in answer.points
    ]


@pytest.fixture
def mixed(rows: Any) -> None:
    """Five posts on two days, two platforms, two languages; all but one of topic `tea`."""
    rows.topic("tea", "coffee")
    rows.post("a:1", NOON, Label.POSITIVE, of=("tea",), platform="a")
    rows.post("b:1", NOON + timedelta(seconds=30), Label.NEGATIVE, of=("tea",), platform="b", language="de")
    rows.post("a:2", NOON + timedelta(minutes=1), Label.UNSCORED, of=("tea",), platform="a")
    rows.post("a:3", NOON + timedelta(hours=12), Label.NEUTRAL, of=("tea",), platform="a", language="de")
    rows.post("b:2", NOON + timedelta(hours=12), Label.POSITIVE, platform="b")


MIDNIGHT = NOON + timedelta(hours=12)


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize(
    ("grain", "fields", "expected"),
    [
        # Mean score: of the scored posts only. (0.75 - 0.5) / 2 at noon, with one post unscored.
        (pb.GRAIN_HOUR, {"topic": "tea"}, [(NOON, 3, 1, 0, 1, 1, 0.125), (MIDNIGHT, 1, 0, 1, 0, 0, 0.0)]),
        (
            pb.GRAIN_UNSPECIFIED,
            {"topic": "tea"},
            [(NOON, 3, 1, 0, 1, 1, 0.125), (MIDNIGHT, 1, 0, 1, 0, 0, 0)],
        ),
        (
            pb.GRAIN_MINUTE,
            {"topic": "tea"},
            [
                (NOON, 2, 1, 0, 1, 0, 0.125),
                (NOON + timedelta(minutes=1), 1, 0, 0, 0, 1, 0.0),
                (MIDNIGHT, 1, 0, 1, 0, 0, 0.0),
            ],
        ),
        (
            pb.GRAIN_DAY,
            {"topic": "*"},
            [(NOON.replace(hour=0), 3, 1, 0, 1, 1, 0.125), (MIDNIGHT, 2, 0, 1, 1, 0, 0.375)],
        ),
        (pb.GRAIN_HOUR, {"topic": "tea", "platform": "b"}, [(NOON, 1, 1, 0, 0, 0, -0.5)]),
        (
            pb.GRAIN_HOUR,
            {"topic": "tea", "language": "de"},
            [(NOON, 1, 1, 0, 0, 0, -0.5), (MIDNIGHT, 1, 0, 1, 0, 0, 0.0)],
        ),
        (
            pb.GRAIN_HOUR,
            {"topic": "tea", "language": "de", "platform": "a"},
            [(MIDNIGHT, 1, 0, 1, 0, 0, 0.0)],
        ),
        # Start inclusive and end exclusive; the bucket in which the interval begins is whole.
        (pb.GRAIN_HOUR, {"topic": "tea", "end_time": MIDNIGHT}, [(NOON, 3, 1, 0, 1, 1, 0.125)]),
        (pb.GRAIN_HOUR, {"topic": "tea", "start_time": MIDNIGHT}, [(MIDNIGHT, 1, 0, 1, 0, 0, 0.0)]),
        (
            pb.GRAIN_HOUR,
            {"topic": "tea", "start_time": NOON + timedelta(minutes=59), "end_time": MIDNIGHT},
            [(NOON, 3, 1, 0, 1, 1, 0.125)],
        ),
        (pb.GRAIN_HOUR, {"topic": "tea", "platform": "nowhere"}, []),
        (pb.GRAIN_HOUR, {"topic": "coffee"}, []),
    ],
)
def test_a_trend_is_the_sum_over_what_was_not_asked_for(
    api: Any, grain: pb.Grain.ValueType, fields: dict[str, Any], expected: list[tuple[Any, ...]]
) -> None:
    assert trend(api, grain, **fields) == expected


def test_a_bucket_whose_posts_were_all_taken_back_is_no_point(api: Any, rows: Any) -> None:
    rows.topic("tea")
    rows.post("a:1", NOON, of=("tea",))
    rows.post("a:2", MIDNIGHT, of=("tea",))
    rows.retract("a:1")
    assert [point[0] for point in trend(api, topic="tea")] == [MIDNIGHT]


def test_a_trend_asked_for_again_may_be_as_old_as_the_setting_says_and_no_older(
    serving: Any, rows: Any
) -> None:
    rows.topic("tea")
    rows.post("a:1", NOON, of=("tea",))

    def posts(served: Any, **fields: Any) -> int:
        (point,) = trend(served.stub, topic="tea", **fields)
        return int(point[1])

    with serving(trend_max_age_ms=60_000) as kept, serving(trend_max_age_ms=1) as anew:
        assert posts(kept) == posts(kept, end_time=MIDNIGHT) == posts(anew) == 1
        rows.post("a:2", NOON, of=("tea",))
        # The same buckets, whatever moment within the last of them is named as the end.
        assert posts(kept) == posts(kept, end_time=MIDNIGHT - timedelta(minutes=59)) == 1
        assert posts(kept, start_time=NOON) == 2
        time.sleep(0.002)
        assert posts(anew) == 2


def test_who_creates_or_deletes_a_topic_sees_that_at_once(serving: Any, rows: Any) -> None:
    rows.topic("tea")
    rows.post("a:1", NOON, of=("tea",))
    with serving(trend_max_age_ms=60_000) as served:
        assert len(trend(served.stub, topic="tea")) == 1
        served.stub.DeleteTopic(pb.DeleteTopicRequest(name="tea"))
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                trend(served.stub, topic="tea")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        rows.topic("tea")  # by another process: a refusal is not kept
        assert len(trend(served.stub, topic="tea")) == 1


@pytest.mark.usefixtures("mixed")
def test_a_deleted_topic_is_unknown_though_its_trends_are_kept(api: Any) -> None:
    before = trend(api, topic="tea")
    api.DeleteTopic(pb.DeleteTopicRequest(name="tea"))
    with pytest.raises(grpc.RpcError) as caught:
        trend(api, topic="tea")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    api.CreateTopic(pb.CreateTopicRequest(topic=pb.TrackedTopic(name="tea", keywords=["tea"])))
    assert trend(api, topic="tea") == before


def test_a_post_comes_back_as_it_was_written(api: Any, rows: Any) -> None:
    time = NOON + timedelta(microseconds=123_456)
    rows.post(
        "bluesky:3l/x y",
        time,
        Label.NEGATIVE,
        of=("tea", "coffee"),
        platform="bluesky",
        language="de",
        text="Grüße 🫖",
        media=[
            {"kind": 2, "sha256": "ab" * 32, "mime_type": "image/png", "size_bytes": 7, "source_url": "u"},
            {"kind": 3, "sha256": "", "mime_type": "", "size_bytes": 0, "source_url": ""},
        ],
        author_hash="cd" * 32,
        url="https://example.org/1",
        traceparent="00-x",
        revision=2,
        negative=0.8,
        neutral=0.15,
        positive=0.05,
        score_micro=-750_000,
        expected=0b1110,
        answered=0b0110,
        modalities={
            "IMAGE": {"contribution": 0.0, "absent_reason": "truncated"},
            "TEXT": {"contribution": -0.6, "absent_reason": ""},
        },
        emotions={"joy": 0.1, "anger": 0.7},
        transcript="was man hört",
    )
    scored = api.GetPost(pb.GetPostRequest(post_id="bluesky:3l/x y")).post
    assert scored.post == events.Post(
        post_id="bluesky:3l/x y",
        platform="bluesky",
        event_time=stamp(time),
        ingest_time=stamp(time + timedelta(seconds=1)),
        language="de",
        text="Grüße 🫖",
        media=[
            events.Media(
                kind=events.MODALITY_IMAGE,
                sha256="ab" * 32,
                mime_type="image/png",
                size_bytes=7,
                source_url="u",
            ),
            events.Media(kind=events.MODALITY_AUDIO),
        ],
        topics=["tea", "coffee"],
        expected=[events.MODALITY_TEXT, events.MODALITY_IMAGE, events.MODALITY_AUDIO],
        author_hash="cd" * 32,
        url="https://example.org/1",
        traceparent="00-x",
    )
    assert scored.sentiment == events.PostSentiment(
        post_id="bluesky:3l/x y",
        revision=2,
        event_time=stamp(time),
        platform="bluesky",
        language="de",
        topics=["tea", "coffee"],
        label=events.LABEL_NEGATIVE,
        negative=0.8,
        neutral=0.15,
        positive=0.05,
        score=-0.75,
        modalities=[
            events.ModalityWeight(modality=events.MODALITY_TEXT, contribution=-0.6),
            events.ModalityWeight(modality=events.MODALITY_IMAGE, absent_reason="truncated"),
        ],
        emotions=[
            events.Emotion(name="anger", probability=0.7),
            events.Emotion(name="joy", probability=0.1),
        ],
        model_version="test@1",
        complete=False,  # AUDIO is expected and has not answered
        classified_time=stamp(time + timedelta(seconds=2)),
        transcript="was man hört",
    )


def test_a_post_whose_expected_modalities_all_answered_is_complete(api: Any, rows: Any) -> None:
    rows.post("a:1", NOON, expected=0b0110, answered=0b1110)
    assert api.GetPost(pb.GetPostRequest(post_id="a:1")).post.sentiment.complete


def listed(
    api: Any, page_size: int = 0, label: events.Label.ValueType = events.LABEL_UNSPECIFIED, **f: Any
) -> list[str]:
    for name in ("start_time", "end_time"):
        if name in f:
            f[name] = stamp(f[name])
    request = pb.ListPostsRequest(filter=pb.TrendFilter(**f), label=label, page_size=page_size)
    return [scored.post.post_id for scored in api.ListPosts(request).posts]


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"topic": "*"}, ["b:2", "a:3", "a:2", "b:1", "a:1"]),  # one event time: the higher id first
        ({"topic": "tea"}, ["a:3", "a:2", "b:1", "a:1"]),
        ({"topic": "coffee"}, []),
        ({"topic": "tea", "label": events.LABEL_UNSCORED}, ["a:2"]),
        ({"topic": "*", "label": events.LABEL_POSITIVE}, ["b:2", "a:1"]),
        ({"topic": "*", "platform": "b"}, ["b:2", "b:1"]),
        ({"topic": "*", "language": "de"}, ["a:3", "b:1"]),
        ({"topic": "*", "start_time": NOON + timedelta(seconds=30), "end_time": MIDNIGHT}, ["a:2", "b:1"]),
        ({"topic": "*", "page_size": 2}, ["b:2", "a:3"]),
        ({"topic": "*", "page_size": 10_000}, ["b:2", "a:3", "a:2", "b:1", "a:1"]),
    ],
)
def test_posts_are_listed_newest_first(api: Any, fields: dict[str, Any], expected: list[str]) -> None:
    assert listed(api, **fields) == expected


def test_the_page_tokens_walk_every_post_once_while_new_ones_arrive(api: Any, rows: Any) -> None:
    rows.topic("tea")
    # Many posts at one instant, on both sides of midnight: the id decides among them.
    there = [f"a:{number:03}" for number in range(57)]
    for number, post_id in enumerate(there):
        rows.post(post_id, MIDNIGHT + timedelta(minutes=number // 20 - 1), of=("tea",))
    request = pb.ListPostsRequest(filter=pb.TrendFilter(topic="tea"), page_size=7)
    walked: list[str] = []
    pages = 0
    while True:
        answer = api.ListPosts(request)
        walked += [scored.post.post_id for scored in answer.posts]
        rows.post(f"a:new-{pages}", MIDNIGHT + timedelta(hours=1, minutes=pages), of=("tea",))
        pages += 1
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token
    assert sorted(walked) == there
    assert pages == 9
    assert len(listed(api, 100, topic="tea")) == 57 + pages


def test_a_last_page_that_is_full_has_no_token(api: Any, rows: Any) -> None:
    for number in range(4):
        rows.post(f"a:{number}", NOON)
    answer = api.ListPosts(pb.ListPostsRequest(filter=pb.TrendFilter(topic="*"), page_size=4))
    assert len(answer.posts) == 4
    assert answer.next_page_token == ""


def test_a_page_of_long_posts_ends_early_and_goes_on(serving: Any, rows: Any) -> None:
    for number in range(5):
        rows.post(f"a:{number}", NOON + timedelta(seconds=number), text="x" * 400, transcript="y" * 100)
    with serving(max_page_bytes=1_200) as served:
        request = pb.ListPostsRequest(filter=pb.TrendFilter(topic="*"), page_size=100)
        sizes = []
        while True:
            answer = served.stub.ListPosts(request)
            sizes.append(len(answer.posts))
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                break
    assert sizes == [3, 2]
    with serving(max_page_bytes=1) as served:
        assert len(served.stub.ListPosts(pb.ListPostsRequest(filter=pb.TrendFilter(topic="*"))).posts) == 1


def test_a_page_token_is_of_one_request(api: Any, rows: Any) -> None:
    rows.topic("tea", "coffee")
    for number in range(4):
        rows.post(f"a:{number}", NOON + timedelta(seconds=number), of=("tea", "coffee"))
    first = pb.ListPostsRequest(filter=pb.TrendFilter(topic="tea"), page_size=2)
    token = api.ListPosts(first).next_page_token
    changed = [
        pb.ListPostsRequest(filter=pb.TrendFilter(topic="coffee"), page_size=2),
        pb.ListPostsRequest(filter=pb.TrendFilter(topic="tea", platform="test"), page_size=2),
        pb.ListPostsRequest(filter=pb.TrendFilter(topic="tea", language="en"), page_size=2),
        pb.ListPostsRequest(filter=pb.TrendFilter(topic="tea", start_time=stamp(NOON)), page_size=2),
        pb.ListPostsRequest(filter=pb.TrendFilter(topic="tea", end_time=stamp(MIDNIGHT)), page_size=2),
        pb.ListPostsRequest(filter=pb.TrendFilter(topic="tea"), page_size=2, label=events.LABEL_POSITIVE),
        pb.ListPostsRequest(filter=pb.TrendFilter(topic="tea"), page_size=3),
    ]
    for request in changed:
        request.page_token = token
        with pytest.raises(grpc.RpcError) as caught:
            api.ListPosts(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, request
    first.page_token = token
    assert [scored.post.post_id for scored in api.ListPosts(first).posts] == ["a:1", "a:0"]


def test_topics_are_made_listed_and_deleted(api: Any) -> None:
    made = api.CreateTopic(
        pb.CreateTopicRequest(
            topic=pb.TrackedTopic(name="tea", display_name=" Tea ", keywords=["Tea", "tea", "  green   tea "])
        )
    ).topic
    assert (made.name, made.display_name, list(made.keywords)) == ("tea", "Tea", ["Tea", "green tea"])
    assert abs(made.create_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=1)
    api.CreateTopic(pb.CreateTopicRequest(topic=pb.TrackedTopic(name="coffee", keywords=["coffee"])))
    topics = api.ListTopics(pb.ListTopicsRequest()).topics
    assert [(topic.name, topic.display_name) for topic in topics] == [("coffee", "coffee"), ("tea", "Tea")]
    api.DeleteTopic(pb.DeleteTopicRequest(name="coffee"))
    assert [topic.name for topic in api.ListTopics(pb.ListTopicsRequest()).topics] == ["tea"]
