"""The calls of the API: checked, asked, answered. Raises ApiError for what a caller can act on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import grpc
import redis
from google.protobuf.timestamp_pb2 import Timestamp

from protos.crowdtone.v1 import api_pb2 as api
from protos.crowdtone.v1 import api_pb2_grpc
from services.api import errors, live, requests
from services.api.errors import ApiError
from services.api.live import Live
from services.api.queries import Point, Queries, Row, TooManyPoints, UnknownTopic, add_points, serialized
from services.api.recent import Recent
from services.api.requests import TrendQuery
from shared.errors import InvalidMessage
from shared.heartbeat import ServiceReport
from shared.media import MediaStore
from shared.tables import Grain

log = logging.getLogger(__name__)

CHUNK_BYTES: Final = 256 * 1024


@dataclass(frozen=True)
class Servicer(api_pb2_grpc.CrowdtoneServiceServicer):
    """recent: answers of QueryTrends. reports: the processes that reported lately; raises RedisError."""

    queries: Queries
    recent: Recent[TrendQuery, bytes]
    live: Live
    media: MediaStore
    reports: Callable[[], list[ServiceReport]]
    stream_interval_s: float
    stream_refresh_s: float

    def QueryTrends(  # type: ignore[override]  # the guard sends bytes as they are
        self, request: api.QueryTrendsRequest, context: grpc.ServicerContext
    ) -> bytes:
        """A QueryTrendsResponse, serialized: many get the same one."""
        query = requests.trend_query(request, default=Grain.HOUR)
        return self.recent.get(query, lambda: self._trend(query))

    def StreamTrends(
        self, request: api.StreamTrendsRequest, context: grpc.ServicerContext
    ) -> Iterator[api.StreamTrendsResponse]:
        query = requests.trend_query(request, default=Grain.MINUTE)
        with self.live.watch(query.filter.topic) as mark:
            if mark is None:
                raise ApiError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    errors.TOO_MANY_STREAMS,
                    "as many live streams are open as are served; try again later",
                )
            if not context.add_callback(mark.end):
                return
            for points in live.changes(
                query,
                self._look,
                mark,
                interval_s=self.stream_interval_s,
                refresh_s=self.stream_refresh_s,
            ):
                answer = api.StreamTrendsResponse()
                add_points(answer, points)
                yield answer
            if self.live.stopped():
                raise ApiError(
                    grpc.StatusCode.UNAVAILABLE, errors.SHUTTING_DOWN, "this server stops; connect again"
                )

    def GetPost(self, request: api.GetPostRequest, context: grpc.ServicerContext) -> api.GetPostResponse:
        post_id = requests.post_id(request)
        post = self.queries.post(post_id)
        if post is None:
            raise ApiError(
                grpc.StatusCode.NOT_FOUND,
                errors.POST_NOT_FOUND,
                f"no post {post_id!r} has a verdict",
                metadata={"post_id": post_id},
            )
        return api.GetPostResponse(post=post)

    def ListPosts(
        self, request: api.ListPostsRequest, context: grpc.ServicerContext
    ) -> api.ListPostsResponse:
        query = requests.post_query(request)
        try:
            posts, token = self.queries.posts(query)
        except UnknownTopic:
            _no_topic(query.filter.topic)
        return api.ListPostsResponse(posts=posts, next_page_token=token)

    def GetMedia(
        self, request: api.GetMediaRequest, context: grpc.ServicerContext
    ) -> Iterator[api.GetMediaResponse]:
        sha256 = requests.sha256(request)
        try:
            content = self.media.get(sha256)
        except InvalidMessage:
            raise ApiError(
                grpc.StatusCode.NOT_FOUND,
                errors.MEDIA_NOT_FOUND,
                f"no picture or sound {sha256} is kept",
                metadata={"sha256": sha256},
            ) from None
        except OSError as error:
            log.warning("the media store: %s", error)
            raise ApiError(
                grpc.StatusCode.UNAVAILABLE, errors.MEDIA_STORE_UNAVAILABLE, "the media store does not answer"
            ) from None
        for start in range(0, len(content), CHUNK_BYTES):
            yield api.GetMediaResponse(chunk=content[start : start + CHUNK_BYTES])

    def ListTopics(
        self, request: api.ListTopicsRequest, context: grpc.ServicerContext
    ) -> api.ListTopicsResponse:
        return api.ListTopicsResponse(topics=self.queries.topics())

    def CreateTopic(
        self, request: api.CreateTopicRequest, context: grpc.ServicerContext
    ) -> api.CreateTopicResponse:
        wanted = requests.new_topic(request)
        topic = self.queries.create_topic(wanted)
        if topic is None:
            raise ApiError(
                grpc.StatusCode.ALREADY_EXISTS,
                errors.TOPIC_EXISTS,
                f"there is a topic {wanted.name!r} already",
                metadata={"topic": wanted.name},
            )
        self.recent.clear()
        return api.CreateTopicResponse(topic=topic)

    def DeleteTopic(
        self, request: api.DeleteTopicRequest, context: grpc.ServicerContext
    ) -> api.DeleteTopicResponse:
        name = requests.topic_name(request)
        if not self.queries.delete_topic(name):
            _no_topic(name)
        self.recent.clear()
        return api.DeleteTopicResponse()

    def ListAlerts(
        self, request: api.ListAlertsRequest, context: grpc.ServicerContext
    ) -> api.ListAlertsResponse:
        query = requests.alert_query(request)
        try:
            alerts, token = self.queries.alerts(query)
        except UnknownTopic:
            _no_topic(query.topic)
        return api.ListAlertsResponse(alerts=alerts, next_page_token=token)

    def ListServices(
        self, request: api.ListServicesRequest, context: grpc.ServicerContext
    ) -> api.ListServicesResponse:
        try:
            reports = self.reports()
        except redis.RedisError:
            raise ApiError(
                grpc.StatusCode.UNAVAILABLE,
                errors.REDIS_UNAVAILABLE,
                "Redis, where the services report, does not answer; the services may be well",
            ) from None
        return api.ListServicesResponse(services=[_status(report) for report in reports])

    def _trend(self, query: TrendQuery) -> bytes:
        return serialized(self._rows(query))

    def _look(self, query: TrendQuery) -> list[Point]:
        return [Point._make(row) for row in self._rows(query)]

    def _rows(self, query: TrendQuery) -> Sequence[Row]:
        try:
            return self.queries.trend(query)
        except UnknownTopic:
            _no_topic(query.filter.topic)
        except TooManyPoints:
            limit = self.queries.max_points
            errors.refuse(
                errors.TOO_MANY_POINTS,
                [
                    errors.Violation(
                        "filter.start_time",
                        f"the interval has more than {limit} buckets of one {query.grain.name.lower()}: "
                        "ask for a coarser grain or a shorter interval",
                    )
                ],
            )


def _no_topic(name: str) -> NoReturn:
    raise ApiError(
        grpc.StatusCode.NOT_FOUND,
        errors.TOPIC_NOT_FOUND,
        f"no topic {name!r} is tracked",
        metadata={"topic": name},
    )


def _status(report: ServiceReport) -> api.ServiceStatus:
    return api.ServiceStatus(
        service=report.service,
        instance=report.instance,
        start_time=_timestamp(report.start_time_s),
        report_time=_timestamp(report.report_time_s),
        posts=report.posts,
        dead_letters=report.dead_letters,
        posts_per_s=report.posts_per_s,
        lag_records=report.lag_records,
        memory_bytes=report.memory_bytes,
    )


def _timestamp(time_s: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(time_s * 1_000_000) * 1000)
    return stamp
