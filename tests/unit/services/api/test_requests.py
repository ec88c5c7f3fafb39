"""Requests are checked once, and every fault is named; page tokens open only what they were made for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from protos.crowdtone.v1 import api_pb2 as pb
from protos.crowdtone.v1 import events_pb2 as events
from services.api import errors, pages, requests
from services.api.errors import ApiError
from shared.messages import Label
from shared.tables import Grain
from shared.testing import NOON

NOW = Timestamp(seconds=1_780_000_000)


def trends(**fields: Any) -> pb.QueryTrendsRequest:
    return pb.QueryTrendsRequest(filter=pb.TrendFilter(**fields))


def grain(number: Any, **fields: Any) -> pb.QueryTrendsRequest:
    return pb.QueryTrendsRequest(filter=pb.TrendFilter(**fields), grain=number)


def posts(**fields: Any) -> pb.ListPostsRequest:
    return pb.ListPostsRequest(filter=pb.TrendFilter(topic="*"), **fields)


def topic(**fields: Any) -> pb.CreateTopicRequest:
    return pb.CreateTopicRequest(topic=pb.TrackedTopic(**({"name": "tea", "keywords": ["tea"]} | fields)))


def check(request: Any) -> Any:
    """The request through the function that is for it."""
    match request:
        case pb.QueryTrendsRequest() | pb.StreamTrendsRequest():
            return requests.trend_query(request, default=Grain.HOUR)
        case pb.ListPostsRequest():
            return requests.post_query(request)
        case pb.ListAlertsRequest():
            return requests.alert_query(request)
        case pb.GetPostRequest():
            return requests.post_id(request)
        case pb.GetMediaRequest():
            return requests.sha256(request)
        case pb.CreateTopicRequest():
            return requests.new_topic(request)
        case pb.DeleteTopicRequest():
            return requests.topic_name(request)
    raise AssertionError(request)


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.QueryTrendsRequest(), ["filter.topic"]),
        (trends(topic="Tea"), ["filter.topic"]),
        (trends(topic="tea\0"), ["filter.topic"]),
        (trends(topic="*", platform="a\0b"), ["filter.platform"]),
        (trends(topic="*", platform="a" * 65), ["filter.platform"]),
        (trends(topic="*", language="EN"), ["filter.language"]),
        (trends(topic="*", language="en-GB"), ["filter.language"]),
        (trends(topic="*", start_time=NOW, end_time=NOW), ["filter.end_time"]),
        (trends(topic="*", start_time=Timestamp(seconds=2**62)), ["filter.start_time"]),
        (trends(topic="*", end_time=Timestamp(seconds=-(2**62))), ["filter.end_time"]),
        (trends(topic="*", end_time=Timestamp(nanos=-1)), ["filter.end_time"]),
        (grain(9, topic="*"), ["grain"]),
        (
            grain(9, language="?"),
            ["filter.topic", "filter.language", "grain"],
        ),
        (pb.StreamTrendsRequest(), ["filter.topic"]),
        (pb.GetPostRequest(), ["post_id"]),
        (pb.GetPostRequest(post_id="a:\0"), ["post_id"]),
        (pb.GetPostRequest(post_id="a" * 513), ["post_id"]),
        (pb.ListPostsRequest(), ["filter.topic"]),
        (posts(label=9), ["label"]),
        (posts(page_size=-1), ["page_size"]),
        (posts(page_token="nonsense"), ["page_token"]),
        (posts(page_token="é"), ["page_token"]),
        (pb.ListAlertsRequest(), ["topic"]),
        (pb.ListAlertsRequest(topic="?", page_size=-1), ["topic", "page_size"]),
        (pb.ListAlertsRequest(topic="*", start_time=NOW, end_time=NOW), ["end_time"]),
        (pb.ListAlertsRequest(topic="*", start_time=Timestamp(nanos=-1)), ["start_time"]),
        (pb.ListAlertsRequest(topic="*", page_token="nonsense"), ["page_token"]),
        (pb.GetMediaRequest(), ["sha256"]),
        (pb.GetMediaRequest(sha256="../../etc/passwd"), ["sha256"]),
        (pb.GetMediaRequest(sha256="A" * 64), ["sha256"]),
        (pb.CreateTopicRequest(), ["topic.name", "topic.keywords"]),
        (topic(name="*"), ["topic.name"]),
        (topic(name="1tea"), ["topic.name"]),
        (topic(name="t" * 64), ["topic.name"]),
        (topic(name="tea\n"), ["topic.name"]),
        (topic(display_name="x" * 201), ["topic.display_name"]),
        (topic(display_name="a\x1b[31m"), ["topic.display_name"]),
        (
            topic(keywords=["tea", " ", "x" * 101, "#"]),
            [f"topic.keywords[{i}]" for i in (1, 2, 3)],
        ),
        (topic(keywords=[]), ["topic.keywords"]),
        (topic(keywords=[f"w{i}" for i in range(201)]), ["topic.keywords"]),
        (pb.DeleteTopicRequest(), ["name"]),
        (pb.DeleteTopicRequest(name="*"), ["name"]),
    ],
)
def test_a_bad_request_names_every_field_at_fault(request_: Any, fields: list[str]) -> None:
    with pytest.raises(ApiError) as caught:
        check(request_)
    refusal = caught.value
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.reason == (
        errors.INVALID_PAGE_TOKEN if fields == ["page_token"] else errors.INVALID_REQUEST
    )
    assert [violation.field for violation in refusal.violations] == fields


def test_what_is_left_out_has_its_default() -> None:
    query = requests.trend_query(trends(topic="*"), default=Grain.MINUTE)
    assert query == requests.TrendQuery(requests.Filter("*"), Grain.MINUTE)
    page = requests.post_query(posts())
    assert page == requests.PostQuery(requests.Filter("*"), None, 50, None)
    assert requests.post_query(posts(page_size=501, label=events.LABEL_UNSCORED)) == requests.PostQuery(
        requests.Filter("*"), Label.UNSCORED, 500, None
    )


@pytest.mark.parametrize(
    ("width", "start"),
    [
        (Grain.MINUTE, datetime(2026, 6, 13, 12, 34, tzinfo=UTC)),
        (Grain.HOUR, datetime(2026, 6, 13, 12, tzinfo=UTC)),
        (Grain.DAY, datetime(2026, 6, 13, tzinfo=UTC)),
    ],
)
def test_the_bucket_an_interval_begins_in_is_asked_for_whole(width: Grain, start: datetime) -> None:
    time = Timestamp()
    time.FromDatetime(datetime(2026, 6, 13, 12, 34, 56, 789, tzinfo=UTC))
    query = requests.trend_query(grain(int(width), topic="*", start_time=time), default=Grain.HOUR)
    assert query.filter.start_time == start
    assert requests.floor(requests.BEGINNING, width) == requests.BEGINNING
    assert timedelta(0) <= requests.END - requests.floor(requests.END, width) < requests.WIDTH[width]


@given(
    st.sampled_from(Grain),
    st.one_of(
        st.datetimes(timezones=st.just(UTC)),
        st.sampled_from([requests.BEGINNING, requests.END, NOON, NOON + timedelta(microseconds=1)]),
    ),
)
def test_an_interval_ends_with_a_bucket_and_has_the_same_buckets(width: Grain, time: datetime) -> None:
    end = requests.ceiling(time, width)
    before = {bucket for bucket in buckets_around(time, width) if bucket < time}
    assert before == {bucket for bucket in buckets_around(time, width) if bucket < end}
    assert end in (requests.floor(end, width), requests.END, time)
    assert requests.ceiling(end, width) == end


def buckets_around(time: datetime, width: Grain) -> list[datetime]:
    first = requests.floor(time, width)
    last = requests.END - requests.WIDTH[width]
    return [first, *([first + requests.WIDTH[width]] if first <= last else [])]


def test_keywords_are_trimmed_and_each_is_kept_once() -> None:
    wanted = requests.new_topic(topic(display_name=" ", keywords=["Tea", " TEA ", "green\t tea", "🫖"]))
    assert wanted == requests.NewTopic("tea", "tea", ("Tea", "green tea", "🫖"))


TIMES = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))


@given(TIMES, st.text(max_size=60), st.text(max_size=30))
def test_a_page_token_opens_what_it_was_made_for(time: datetime, post_id: str, fingerprint: str) -> None:
    position = pages.Position(time, post_id)
    token = pages.encode(position, fingerprint)
    assert pages.decode(token, fingerprint) == position
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    with pytest.raises(ValueError, match="another request"):
        pages.decode(token, fingerprint + "x")


def test_a_page_token_with_any_letter_changed_is_refused() -> None:
    token = pages.encode(pages.Position(NOON, "bluesky:3l"), "request")
    tampered = {
        token[:index] + letter + token[index + 1 :] for index in range(len(token)) for letter in "AQgw_-+/=\n"
    } | {token[:-1], token + "A", token + "=", token + "==", "", token[::-1]}
    for one in tampered - {token}:
        with pytest.raises(ValueError):
            pages.decode(one, "request")


@given(st.text(max_size=80))
def test_no_text_is_a_page_token_or_a_crash(text: str) -> None:
    with pytest.raises(ValueError):
        pages.decode(text, "request")


def test_every_field_of_the_request_is_in_the_token() -> None:
    later = Timestamp(seconds=NOW.seconds + 60)
    variants: list[dict[str, Any]] = [
        {"filter": pb.TrendFilter(topic="tea")},
        {"filter": pb.TrendFilter(topic="coffee")},
        {"filter": pb.TrendFilter(topic="tea", platform="a")},
        {"filter": pb.TrendFilter(topic="tea", language="en")},
        {"filter": pb.TrendFilter(topic="tea", start_time=NOW)},
        {"filter": pb.TrendFilter(topic="tea", start_time=later)},
        {"filter": pb.TrendFilter(topic="tea", end_time=NOW)},
        {"filter": pb.TrendFilter(topic="tea"), "label": events.LABEL_POSITIVE},
        {"filter": pb.TrendFilter(topic="tea"), "page_size": 7},
    ]
    alerts: list[dict[str, Any]] = [
        {"topic": "tea"},
        {"topic": "*"},
        {"topic": "tea", "start_time": NOW},
        {"topic": "tea", "end_time": NOW},
        {"topic": "tea", "include_withdrawn": True},
        {"topic": "tea", "page_size": 7},
    ]
    prints = {requests.fingerprint(requests.post_query(pb.ListPostsRequest(**v))) for v in variants}
    prints |= {requests.fingerprint(requests.alert_query(pb.ListAlertsRequest(**v))) for v in alerts}
    assert len(prints) == len(variants) + len(alerts)
    assert len(pb.ListAlertsRequest.DESCRIPTOR.fields) == 6, "a new field belongs in the fingerprint"
    assert len(pb.ListPostsRequest.DESCRIPTOR.fields) == 4, "a new field belongs in the fingerprint"
    assert len(pb.TrendFilter.DESCRIPTOR.fields) == 5, "a new field belongs in the fingerprint"
