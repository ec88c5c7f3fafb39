"""How calls end that cannot be answered: the status, its details, and what they do not tell."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis as redis_client
import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from protos.crowdtone.v1 import api_pb2 as pb
from protos.crowdtone.v1 import api_pb2_grpc
from services.api.client import channel
from services.api.settings import ApiClientSettings
from shared.heartbeat import Heartbeat, connect, reports
from shared.media import MediaStore
from shared.settings import MediaSettings, RedisSettings
from shared.testing import NOON


class Refusal:
    """A failed call, taken apart."""

    def __init__(self, error: grpc.RpcError) -> None:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # a failed call is its own error
        assert status is not None, error
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details:
            detail.Unpack(info) or detail.Unpack(bad)
        self.code = error.code()
        self.message: str = status.message
        self.domain: str = info.domain
        self.reason: str = info.reason
        self.metadata = dict(info.metadata)
        self.fields = [violation.field for violation in bad.field_violations]


def refused(call: Any, request: Any, **options: Any) -> Refusal:
    def ask() -> None:
        answer = call(request, **options)
        if not hasattr(answer, "DESCRIPTOR"):
            list(answer)

    with pytest.raises(grpc.RpcError) as caught:
        ask()
    return Refusal(caught.value)


LIST = pb.ListTopicsRequest()


def trends(**fields: Any) -> pb.QueryTrendsRequest:
    return pb.QueryTrendsRequest(filter=pb.TrendFilter(**fields))


def topic(**fields: Any) -> pb.CreateTopicRequest:
    return pb.CreateTopicRequest(topic=pb.TrackedTopic(**({"name": "tea", "keywords": ["tea"]} | fields)))


def test_a_bad_request_names_every_field_at_fault(api: Any) -> None:
    bad: list[tuple[str, Any, list[str]]] = [
        ("QueryTrends", trends(language="?"), ["filter.topic", "filter.language"]),
        ("StreamTrends", pb.StreamTrendsRequest(), ["filter.topic"]),
        ("GetPost", pb.GetPostRequest(), ["post_id"]),
        ("ListPosts", pb.ListPostsRequest(filter=pb.TrendFilter(topic="*"), page_size=-1), ["page_size"]),
        (
            "ListPosts",
            pb.ListPostsRequest(filter=pb.TrendFilter(topic="*"), page_token="nonsense"),
            ["page_token"],
        ),
        ("GetMedia", pb.GetMediaRequest(sha256="../../etc/passwd"), ["sha256"]),
        ("CreateTopic", pb.CreateTopicRequest(), ["topic.name", "topic.keywords"]),
        ("DeleteTopic", pb.DeleteTopicRequest(name="*"), ["name"]),
    ]
    for method, request, fields in bad:
        refusal = refused(getattr(api, method), request, timeout=10)
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refusal.domain == "crowdtone"
        assert refusal.reason == ("INVALID_PAGE_TOKEN" if fields == ["page_token"] else "INVALID_REQUEST")
        assert refusal.fields == fields
        assert all(field in refusal.message for field in fields)


def test_what_is_not_there_is_not_found(api: Any) -> None:
    tea: dict[str, Any] = {"topic": "tea"}
    missing: list[tuple[str, Any, str, dict[str, str]]] = [
        ("QueryTrends", trends(**tea), "TOPIC_NOT_FOUND", tea),
        ("StreamTrends", pb.StreamTrendsRequest(filter=pb.TrendFilter(**tea)), "TOPIC_NOT_FOUND", tea),
        ("ListPosts", pb.ListPostsRequest(filter=pb.TrendFilter(**tea)), "TOPIC_NOT_FOUND", tea),
        ("GetPost", pb.GetPostRequest(post_id="a:1"), "POST_NOT_FOUND", {"post_id": "a:1"}),
        ("GetMedia", pb.GetMediaRequest(sha256="0" * 64), "MEDIA_NOT_FOUND", {"sha256": "0" * 64}),
        ("DeleteTopic", pb.DeleteTopicRequest(name="tea"), "TOPIC_NOT_FOUND", tea),
    ]
    for method, request, reason, metadata in missing:
        refusal = refused(getattr(api, method), request, timeout=10)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, reason)
        assert refusal.metadata == metadata


def test_a_topics_name_is_taken_once_whoever_is_first(api: Any) -> None:
    calls = [api.CreateTopic.future(topic(display_name=f"number {i}"), timeout=10) for i in range(8)]
    outcomes = []
    for call in calls:
        error = call.exception()
        outcomes.append(Refusal(error).reason if error else "OK")
    assert sorted(outcomes) == ["OK"] + ["TOPIC_EXISTS"] * 7
    assert len(api.ListTopics(LIST).topics) == 1


def test_an_interval_with_too_many_points_is_refused(serving: Any, rows: Any) -> None:
    for minute in range(4):
        rows.post(f"a:{minute}", NOON.replace(minute=minute))
    with serving(max_points=3) as served:
        request = pb.QueryTrendsRequest(filter=pb.TrendFilter(topic="*"), grain=pb.GRAIN_MINUTE)
        refusal = refused(served.stub.QueryTrends, request)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_POINTS")
        assert "more than 3 buckets of one minute" in refusal.message
        request.grain = pb.GRAIN_HOUR
        assert served.stub.QueryTrends(request).points[0].posts == 4
        # A stream that grows beyond it is told so too.
        stream = refused(
            served.stub.StreamTrends,
            pb.StreamTrendsRequest(filter=pb.TrendFilter(topic="*"), grain=pb.GRAIN_MINUTE),
        )
        assert stream.reason == "TOO_MANY_POINTS"


def test_pictures_come_in_chunks_and_whole(served: Any, api: Any, tmp_path: Path) -> None:
    store = MediaStore(MediaSettings(url=(tmp_path / "media").as_uri()))
    content = bytes(range(256)) * 4096 + b"end"
    chunks = [
        answer.chunk for answer in api.GetMedia(pb.GetMediaRequest(sha256=store.put(content)), timeout=10)
    ]
    assert b"".join(chunks) == content
    assert max(len(chunk) for chunk in chunks) <= 256 * 1024
    assert list(api.GetMedia(pb.GetMediaRequest(sha256=store.put(b"")), timeout=10)) == []


def test_services_are_those_that_reported(serving: Any, redis: RedisSettings) -> None:
    client = connect(redis)
    Heartbeat(client, "fusion", interval_s=1, now=1_780_000_000.25).beat(
        now=1_780_000_002.25, posts=10, dead_letters=1, lag_records=3
    )
    with serving(reports=lambda: reports(client)) as served:
        (status,) = served.stub.ListServices(pb.ListServicesRequest()).services
    assert (status.service, status.posts, status.dead_letters, status.lag_records) == ("fusion", 10, 1, 3)
    assert status.posts_per_s == 5.0
    assert status.start_time == Timestamp(seconds=1_780_000_000, nanos=250_000_000)
    assert status.report_time == Timestamp(seconds=1_780_000_002, nanos=250_000_000)
    assert status.memory_bytes > 1_000_000
    client.close()


def test_without_redis_the_services_are_unknown_and_the_rest_goes_on(serving: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else takes it, and nobody answers
        client = redis_client.Redis(port=closed.getsockname()[1], socket_connect_timeout=1)
        with serving(reports=lambda: reports(client)) as served:
            refusal = refused(served.stub.ListServices, pb.ListServicesRequest())
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "REDIS_UNAVAILABLE")
            assert "Redis" in refusal.message
            assert served.stub.ListTopics(LIST).topics == []
        client.close()


def test_a_bug_ends_one_call_and_tells_nothing(
    serving: Any, rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows.post("a:1", NOON, modalities={"SMELL": {"contribution": 1.0, "absent_reason": ""}})
    with serving() as served:
        refusal = refused(served.stub.GetPost, pb.GetPostRequest(post_id="a:1"))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "SMELL" not in refusal.message
        assert "SMELL" not in str(refusal.metadata)
        number = refusal.metadata["number"]
        assert number in refusal.message
        assert served.stub.ListTopics(LIST).topics == []
    assert any(number in record.getMessage() and record.exc_info for record in caplog.records)


def test_a_missing_table_is_a_bug_of_ours_and_says_no_sql(serving: Any, rows: Any) -> None:
    with rows.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE trend_totals"))
    with serving() as served:
        refusal = refused(served.stub.QueryTrends, trends(topic="*"))
    assert refusal.code is grpc.StatusCode.INTERNAL
    assert "trend_totals" not in refusal.message
    assert "SELECT" not in refusal.message


def test_a_slow_query_is_cut_off_by_the_server(serving: Any, rows: Any) -> None:
    with rows.engine.begin() as connection, serving(query_timeout_s=0.3) as served:
        connection.execute(sa.text("LOCK TABLE trend_totals IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        refusal = refused(served.stub.QueryTrends, trends(topic="*"), timeout=20)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "TOO_LATE")
        assert time.monotonic() - began < 10
        assert served.stub.ListTopics(LIST).topics == []


def test_a_call_that_waited_past_its_deadline_costs_no_query(serving: Any, rows: Any) -> None:
    with serving(threads=1, max_streams=1, query_timeout_s=20) as served:
        request = trends(topic="*")
        with rows.engine.begin() as connection:
            connection.execute(sa.text("LOCK TABLE trend_totals IN ACCESS EXCLUSIVE MODE"))
            # One slow call holds the thread, another waits for it.
            slow = [served.stub.QueryTrends.future(request, timeout=30) for _ in range(2)]
            time.sleep(0.3)
            late = [served.stub.CreateTopic.future(topic(name=f"t{i}"), timeout=0.3) for i in range(3)]
            for call in late:
                with pytest.raises(grpc.RpcError) as caught:
                    call.result()
                assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            time.sleep(0.3)
        for call in slow:
            call.result()
        assert served.stub.ListTopics(LIST, timeout=10).topics == []


def test_more_calls_than_may_wait_are_refused_at_once(serving: Any, rows: Any) -> None:
    with serving(threads=1, max_streams=1, max_waiting_calls=1, query_timeout_s=20) as served:
        with rows.engine.begin() as connection:
            connection.execute(sa.text("LOCK TABLE trend_totals IN ACCESS EXCLUSIVE MODE"))
            calls = [served.stub.QueryTrends.future(trends(topic="*"), timeout=30) for _ in range(8)]
            time.sleep(1.0)
        codes = [call.code() for call in calls]
        assert codes.count(grpc.StatusCode.OK) == 3
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 5


def test_a_request_larger_than_is_read_is_refused(serving: Any) -> None:
    with serving(max_request_bytes=4096) as served:
        with pytest.raises(grpc.RpcError) as caught:
            served.stub.GetPost(pb.GetPostRequest(post_id="x" * 5000))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert served.stub.ListTopics(LIST).topics == []


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def test_only_a_known_token_is_let_in(serving: Any) -> None:
    hashes = f"{token_hash('old')},{token_hash('new')}"
    with serving(token_sha256=hashes, reflection=True) as served:
        call = served.stub.ListTopics
        assert refused(call, LIST).reason == "TOKEN_MISSING"
        for given, reason in (
            ("Basic old", "TOKEN_MISSING"),
            ("Bearer", "TOKEN_MISSING"),
            ("Bearer wrong", "TOKEN_UNKNOWN"),
            (f"Bearer {token_hash('old')}", "TOKEN_UNKNOWN"),
            ("Bearer ", "TOKEN_UNKNOWN"),
        ):
            refusal = refused(call, LIST, metadata=[("authorization", given)])
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason), given
        for given in ("Bearer old", "bearer new"):
            call(LIST, metadata=[("authorization", given)])
        assert refused(call, LIST).reason == "TOKEN_MISSING"  # whoever was let in before
        stream = pb.StreamTrendsRequest(filter=pb.TrendFilter(topic="*"))
        assert refused(served.stub.StreamTrends, stream).reason == "TOKEN_MISSING"
        # A probe has no token; a tool that asks what there is needs one.
        health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest())
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        reflect = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo
        assert refused(reflect, iter([asked])).reason == "TOKEN_MISSING"
        (answer,) = reflect(iter([asked]), metadata=[("authorization", "Bearer new")])
        assert "crowdtone.v1.CrowdtoneService" in [s.name for s in answer.list_services_response.service]


def test_the_client_brings_its_token(serving: Any) -> None:
    with serving(token_sha256=token_hash("secret")) as served:
        with channel(ApiClientSettings(address=served.address, token="secret")) as opened:
            stub: Any = api_pb2_grpc.CrowdtoneServiceStub(opened)
            assert stub.ListTopics(LIST, timeout=10).topics == []
            request = pb.StreamTrendsRequest(filter=pb.TrendFilter(topic="*"))
            call = stub.StreamTrends(request, timeout=10)
            assert next(call).points == []
            call.cancel()


def test_without_the_setting_nothing_is_described(served: Any) -> None:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as caught:
        list(reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo(iter([asked])))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and server.pem and client.pem with their .key files, made by openssl for this run."""
    directory = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test ca",
        "-keyout", "ca.key", "-out", "ca.pem",
    )  # fmt: skip
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.csr",
        )  # fmt: skip
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", "names", "-out", f"{name}.pem",
        )  # fmt: skip
    return directory


def test_tls_asks_callers_for_their_certificate_where_told_to(serving: Any, certificates: Path) -> None:
    ca = (certificates / "ca.pem").read_bytes()
    known = grpc.ssl_channel_credentials(
        ca, (certificates / "client.key").read_bytes(), (certificates / "client.pem").read_bytes()
    )
    with serving(
        credentials=known,
        tls_cert_file=certificates / "server.pem",
        tls_key_file=certificates / "server.key",
        tls_client_ca_file=certificates / "ca.pem",
    ) as served:
        assert served.stub.ListTopics(LIST, timeout=10).topics == []
        for credentials in (grpc.ssl_channel_credentials(ca), None):
            stranger = (
                grpc.secure_channel(served.address, credentials)
                if credentials
                else grpc.insecure_channel(served.address)
            )
            stub: Any = api_pb2_grpc.CrowdtoneServiceStub(stranger)
            with stranger, pytest.raises(grpc.RpcError) as caught:
                stub.ListTopics(LIST, timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_client_speaks_tls_by_its_settings(serving: Any, certificates: Path) -> None:
    credentials = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
    with serving(
        credentials=credentials,
        tls_cert_file=certificates / "server.pem",
        tls_key_file=certificates / "server.key",
    ) as served:
        settings = ApiClientSettings(address=served.address, tls_ca_file=certificates / "ca.pem")
        with channel(settings) as opened:
            stub: Any = api_pb2_grpc.CrowdtoneServiceStub(opened)
            assert stub.ListTopics(LIST, timeout=10).topics == []


def test_two_servers_do_not_share_an_address_by_accident(serving: Any) -> None:
    with serving() as served:
        with pytest.raises(RuntimeError, match="bind"):
            with serving(address=served.address):
                pass
