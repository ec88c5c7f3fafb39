"""The API as the page sees it: gRPC answers as JSON values. The only file here that imports grpc."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from protos.crowdtone.v1 import api_pb2 as api
from protos.crowdtone.v1 import api_pb2_grpc as api_grpc
from protos.crowdtone.v1 import events_pb2 as events
from services.dashboard.settings import ApiClientSettings

Json = dict[str, Any]

ALL_POSTS: Final = "*"
GRAINS: Final = {"minute": api.GRAIN_MINUTE, "hour": api.GRAIN_HOUR, "day": api.GRAIN_DAY}
LABELS: Final = {
    "negative": events.LABEL_NEGATIVE,
    "neutral": events.LABEL_NEUTRAL,
    "positive": events.LABEL_POSITIVE,
    "unscored": events.LABEL_UNSCORED,
}
MODALITIES: Final = {
    events.MODALITY_TEXT: "text",
    events.MODALITY_IMAGE: "image",
    events.MODALITY_AUDIO: "audio",
    events.MODALITY_SPEECH: "speech",
}
_LABEL_NAMES: Final = {number: name for name, number in LABELS.items()}

MAX_RESPONSE_BYTES: Final = 64 * 1024 * 1024
# How many topics are asked for at once when all are compared.
COMPARE_CONCURRENCY: Final = 8
# Newest posts whose platforms and languages are offered as filters: the API has no list of them.
CHOICE_POSTS: Final = 200


class ApiError(Exception):
    """The API did not answer as asked; `status` is what to tell the browser, `reason` a line for a person."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Filter:
    """Which posts: times are aware, start inclusive, end exclusive, None for open; empty string for any."""

    topic: str = ALL_POSTS
    start_time: datetime | None = None
    end_time: datetime | None = None
    platform: str = ""
    language: str = ""

    def to_proto(self) -> api.TrendFilter:
        message = api.TrendFilter(topic=self.topic, platform=self.platform, language=self.language)
        if self.start_time is not None:
            message.start_time.FromDatetime(self.start_time)
        if self.end_time is not None:
            message.end_time.FromDatetime(self.end_time)
        return message


class ApiClient:
    """One channel to the API. Every method raises ApiError where the API refuses or is away."""

    def __init__(self, settings: ApiClientSettings, *, media_max_bytes: int) -> None:
        """Connects when it is first used. Raises OSError where a TLS file cannot be read."""
        self._channel = _channel(settings)
        self._stub = api_grpc.CrowdtoneServiceStub(self._channel)
        token = settings.token.get_secret_value()
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._timeout_s = settings.timeout_s
        self._media_max_bytes = media_max_bytes

    async def close(self) -> None:
        await self._channel.close(None)

    async def topics(self) -> list[Json]:
        """Tracked topics by display name."""
        try:
            response = await self._stub.ListTopics(
                api.ListTopicsRequest(), timeout=self._timeout_s, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise api_error(error) from error
        topics = [{"name": t.name, "display_name": t.display_name or t.name} for t in response.topics]
        return sorted(topics, key=lambda topic: topic["display_name"].casefold())

    async def trends(self, which: Filter, grain: str) -> list[Json]:
        """One point per bucket that has posts, oldest first. grain: a key of GRAINS."""
        request = api.QueryTrendsRequest(filter=which.to_proto(), grain=GRAINS[grain])
        try:
            response = await self._stub.QueryTrends(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise api_error(error) from error
        return [point_json(point) for point in response.points]

    async def stream(self, which: Filter, grain: str) -> AsyncIterator[list[Json]]:
        """First the whole interval, then points that changed, for ever. Close it to hang up."""
        request = api.StreamTrendsRequest(filter=which.to_proto(), grain=GRAINS[grain])
        call = self._stub.StreamTrends(request, metadata=self._metadata)
        try:
            async for response in call:
                yield [point_json(point) for point in response.points]
        except grpc.aio.AioRpcError as error:
            raise api_error(error) from error
        finally:
            call.cancel()

    async def posts(
        self, which: Filter, *, label: str = "", page_size: int = 0, page_token: str = ""
    ) -> Json:
        """{"posts": [...], "next_page_token": ""}, newest first. label: a key of LABELS, or empty for all."""
        request = api.ListPostsRequest(
            filter=which.to_proto(),
            label=LABELS[label] if label else events.LABEL_UNSPECIFIED,
            page_size=page_size,
            page_token=page_token,
        )
        try:
            response = await self._stub.ListPosts(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise api_error(error) from error
        return {
            "posts": [post_json(scored) for scored in response.posts],
            "next_page_token": response.next_page_token,
        }

    async def choices(self) -> Json:
        """What the page's filters offer: topics, the span of event times, platforms and languages.

        earliest (to the hour), latest: ISO 8601, None where there are no posts. Platforms and languages are
        those of the newest CHOICE_POSTS posts.
        """
        topics, days, newest = await asyncio.gather(
            self.topics(), self.trends(Filter(), "day"), self.posts(Filter(), page_size=CHOICE_POSTS)
        )
        first = None
        if days:
            # To the hour: a day may begin long before its first post.
            day = datetime.fromisoformat(days[0]["bucket_start"])
            hours = await self.trends(Filter(start_time=day, end_time=day + timedelta(days=1)), "hour")
            first = hours[0]["bucket_start"] if hours else days[0]["bucket_start"]
        posts = newest["posts"]
        return {
            "topics": topics,
            "earliest": first,
            "latest": posts[0]["event_time"] if posts else None,
            "platforms": sorted({post["platform"] for post in posts}),
            "languages": sorted({post["language"] for post in posts}),
        }

    async def alerts(self, which: Filter, *, page_size: int) -> list[Json]:
        """The newest alerts whose window begins in the interval, newest first; withdrawn ones are left out.

        Alerts are of whole topics: platform and language are not looked at.
        """
        between = which.to_proto()
        request = api.ListAlertsRequest(topic=which.topic, page_size=page_size)
        if between.HasField("start_time"):
            request.start_time.CopyFrom(between.start_time)
        if between.HasField("end_time"):
            request.end_time.CopyFrom(between.end_time)
        try:
            response = await self._stub.ListAlerts(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise api_error(error) from error
        return [alert_json(alert) for alert in response.alerts]

    async def compare(self, which: Filter, grain: str) -> list[Json]:
        """The trend of every tracked topic over the same interval; `which.topic` is not looked at."""
        gate = asyncio.Semaphore(COMPARE_CONCURRENCY)

        async def trend(topic: Json) -> Json:
            async with gate:
                of_topic = Filter(
                    topic["name"], which.start_time, which.end_time, which.platform, which.language
                )
                return topic | {"points": await self.trends(of_topic, grain)}

        return list(await asyncio.gather(*(trend(topic) for topic in await self.topics())))

    async def services(self) -> list[Json]:
        """Every process that reported lately."""
        try:
            response = await self._stub.ListServices(
                api.ListServicesRequest(), timeout=self._timeout_s, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise api_error(error) from error
        return [
            {
                "service": status.service,
                "instance": status.instance,
                "start_time": _iso(status.start_time),
                "report_time": _iso(status.report_time),
                "posts": status.posts,
                "dead_letters": status.dead_letters,
                "posts_per_s": status.posts_per_s,
                "lag_records": status.lag_records,
                "memory_bytes": status.memory_bytes,
            }
            for status in response.services
        ]

    async def media(self, sha256: str) -> bytes:
        """Bytes of a picture or sound. Raises ApiError (413) where there are more than is passed on."""
        content = bytearray()
        call = self._stub.GetMedia(
            api.GetMediaRequest(sha256=sha256), timeout=self._timeout_s, metadata=self._metadata
        )
        try:
            async for response in call:
                content += response.chunk
                if len(content) > self._media_max_bytes:
                    raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "larger than this page passes on")
        except grpc.aio.AioRpcError as error:
            raise api_error(error) from error
        finally:
            call.cancel()
        return bytes(content)


def _channel(settings: ApiClientSettings) -> grpc.aio.Channel:
    options = [
        # An API that comes back is noticed by people who watch: do not back off for minutes.
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    ]
    if not settings.tls and settings.tls_ca_file is None:
        return grpc.aio.insecure_channel(settings.address, options=options)
    ca, cert, key = settings.tls_ca_file, settings.tls_client_cert_file, settings.tls_client_key_file
    credentials = grpc.ssl_channel_credentials(
        root_certificates=ca.read_bytes() if ca else None,
        private_key=key.read_bytes() if key else None,
        certificate_chain=cert.read_bytes() if cert else None,
    )
    return grpc.aio.secure_channel(settings.address, credentials, options=options)


def api_error(error: grpc.aio.AioRpcError) -> ApiError:
    """The HTTP face of a gRPC status; nothing is passed on but what the API wrote for its callers."""
    trailing: Any = error.trailing_metadata()  # a grpc.aio.Metadata; grpc-stubs says otherwise
    # Only the API adds details; without them the status was made up on this side, of a broken connection.
    said = trailing is not None and "grpc-status-details-bin" in trailing
    if error.code() is grpc.StatusCode.UNAVAILABLE and said:
        return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, error.details() or "the API cannot answer now")
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return ApiError(HTTPStatus.BAD_REQUEST, error.details() or "the API refused the request")
        case grpc.StatusCode.NOT_FOUND:
            return ApiError(HTTPStatus.NOT_FOUND, error.details() or "not found")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ApiError(HTTPStatus.TOO_MANY_REQUESTS, "the API is asked too often")
        case grpc.StatusCode.UNAVAILABLE:
            return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "the API is away")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return ApiError(HTTPStatus.GATEWAY_TIMEOUT, "the API did not answer in time")
        case code:
            return ApiError(HTTPStatus.BAD_GATEWAY, f"the API failed ({code.name})")


def point_json(point: api.TrendPoint) -> Json:
    return {
        "bucket_start": _iso(point.bucket_start),
        "posts": point.posts,
        "negative": point.negative,
        "neutral": point.neutral,
        "positive": point.positive,
        "unscored": point.unscored,
        "mean_score": point.mean_score,
    }


def alert_json(alert: events.Alert) -> Json:
    return {
        "alert_id": alert.alert_id,
        "topic": alert.topic,
        "window_start": _iso(alert.window_start),
        "window_s": alert.window_s,
        "kind": alert.kind,
        "value": alert.value,
        "baseline": alert.baseline,
        "deviation": alert.deviation,
        "posts": alert.posts,
    }


def post_json(scored: api.ScoredPost) -> Json:
    """One post with its verdict. `url` is empty where it is not one that a link may lead to."""
    post, sentiment = scored.post, scored.sentiment
    return {
        "post_id": post.post_id,
        "platform": post.platform,
        "event_time": _iso(post.event_time),
        "language": post.language,
        "text": post.text,
        "url": permalink(post.url),
        "topics": list(post.topics),
        "media": [
            {"kind": MODALITIES.get(media.kind, "unknown"), "sha256": media.sha256} for media in post.media
        ],
        "revision": sentiment.revision,
        "complete": sentiment.complete,
        "label": _LABEL_NAMES.get(sentiment.label, "unscored"),
        "negative": sentiment.negative,
        "neutral": sentiment.neutral,
        "positive": sentiment.positive,
        "score": sentiment.score,
        "modalities": _modalities_json(sentiment.modalities),
        "emotions": [
            {"name": emotion.name, "probability": emotion.probability}
            for emotion in sorted(sentiment.emotions, key=lambda emotion: -emotion.probability)
        ],
        "transcript": sentiment.transcript,
        "model_version": sentiment.model_version,
    }


def permalink(url: str) -> str:
    """`url` where it is http or https with a host, else empty: a feed may say `javascript:...`."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return url if parts.scheme in {"http", "https"} and parts.hostname else ""


def _modalities_json(weights: Sequence[events.ModalityWeight]) -> list[Json]:
    return [
        {
            "modality": MODALITIES.get(weight.modality, "unknown"),
            "contribution": weight.contribution,
            "absent_reason": weight.absent_reason,
        }
        for weight in weights
    ]


def _iso(stamp: Timestamp) -> str:
    return stamp.ToJsonString()
