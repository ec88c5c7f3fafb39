"""gRPC answers as the page gets them."""

from __future__ import annotations

import json
from http import HTTPStatus

import grpc
import grpc.aio
import pytest

from protos.crowdtone.v1 import api_pb2 as api
from protos.crowdtone.v1 import events_pb2 as events
from services.dashboard.client import api_error, permalink, point_json, post_json


def scored_post() -> api.ScoredPost:
    post = events.Post(
        post_id="x:1",
        platform="x",
        language="de",
        text="<b>",
        url="https://x.example/1",
        media=[
            events.Media(kind=events.MODALITY_IMAGE, sha256="a" * 64, source_url="http://10.0.0.1/secret")
        ],
        author_hash="who",
    )
    post.event_time.FromJsonString("2026-03-01T12:00:00.5Z")
    sentiment = events.PostSentiment(
        revision=2,
        label=events.LABEL_POSITIVE,
        negative=0.1,
        neutral=0.2,
        positive=0.7,
        score=0.6,
        modalities=[
            events.ModalityWeight(modality=events.MODALITY_TEXT, contribution=0.65),
            events.ModalityWeight(modality=events.MODALITY_IMAGE, absent_reason="truncated"),
        ],
        emotions=[
            events.Emotion(name="joy", probability=0.3),
            events.Emotion(name="surprise", probability=0.6),
        ],
    )
    return api.ScoredPost(post=post, sentiment=sentiment)


def test_a_post_keeps_what_the_page_shows_and_nothing_that_names_its_author() -> None:
    value = post_json(scored_post())
    assert value["text"] == "<b>"
    assert value["event_time"] == "2026-03-01T12:00:00.500Z"
    assert value["label"] == "positive"
    assert value["media"] == [{"kind": "image", "sha256": "a" * 64}]
    assert value["modalities"] == [
        {"modality": "text", "contribution": 0.65, "absent_reason": ""},
        {"modality": "image", "contribution": 0.0, "absent_reason": "truncated"},
    ]
    assert [emotion["name"] for emotion in value["emotions"]] == ["surprise", "joy"]
    text = json.dumps(value)
    assert "who" not in text
    assert "10.0.0.1" not in text


def test_counts_are_numbers_not_the_strings_that_protobuf_makes_of_int64() -> None:
    point = api.TrendPoint(posts=2**40, negative=1, neutral=2, positive=3, unscored=4, mean_score=-0.25)
    point.bucket_start.seconds = 1_772_366_400
    assert point_json(point) == {
        "bucket_start": "2026-03-01T12:00:00Z",
        "posts": 2**40,
        "negative": 1,
        "neutral": 2,
        "positive": 3,
        "unscored": 4,
        "mean_score": -0.25,
    }


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://x.example/1?a=b#c", "https://x.example/1?a=b#c"),
        ("http://x.example", "http://x.example"),
        ("javascript:alert(1)", ""),
        ("JaVaScRiPt:alert(1)", ""),
        (" javascript:alert(1)", ""),
        ("data:text/html,<script>alert(1)</script>", ""),
        ("//x.example/1", ""),
        ("https://", ""),
        ("http://[broken", ""),
        ("", ""),
    ],
)
def test_only_links_to_somewhere_on_the_web(url: str, expected: str) -> None:
    assert permalink(url) == expected


def status(code: grpc.StatusCode, details: str, *trailing: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details, None)


@pytest.mark.parametrize(
    ("error", "expected", "reason"),
    [
        (status(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses"), 503, "the API is away"),
        (
            status(
                grpc.StatusCode.UNAVAILABLE, "Redis does not answer", ("grpc-status-details-bin", b"\x08")
            ),
            503,
            "Redis does not answer",
        ),
        (status(grpc.StatusCode.NOT_FOUND, "no topic 'tea' is tracked"), 404, "no topic 'tea' is tracked"),
        (status(grpc.StatusCode.INVALID_ARGUMENT, "grain"), 400, "grain"),
        (status(grpc.StatusCode.DEADLINE_EXCEEDED, "x"), 504, "the API did not answer in time"),
        (status(grpc.StatusCode.UNAUTHENTICATED, "bad token abc"), 502, "the API failed (UNAUTHENTICATED)"),
        (status(grpc.StatusCode.INTERNAL, "SELECT secret"), 502, "the API failed (INTERNAL)"),
    ],
)
def test_a_grpc_status_becomes_an_http_status_without_the_apis_insides(
    error: grpc.aio.AioRpcError, expected: int, reason: str
) -> None:
    found = api_error(error)
    assert found.status == HTTPStatus(expected)
    assert found.reason == reason
