"""What the server sends, and what it refuses, over the real API."""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

import pytest

from services.dashboard.app import HEADERS
from shared.messages import Modality

from .conftest import Fed


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/static/app.js", "/api/topics-no-such", "/api/trends?grain=x"]
)
def test_every_response_forbids_what_the_page_does_not_need(fed: Fed, path: str) -> None:
    _, headers, _ = fed.system.get(path)
    for name, value in HEADERS.items():
        assert headers[name.lower()] == value


@pytest.mark.parametrize(
    "content",
    [b"<!doctype html><script>alert(1)</script>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b""],
)
def test_media_that_could_run_is_not_served(fed: Fed, content: bytes) -> None:
    status, headers, body = fed.system.get(f"/media/{fed.system.media.put(content)}")
    assert status == 415
    assert headers["content-type"] == "application/json"
    assert content not in body or not content


def test_media_is_typed_by_its_bytes_sandboxed_and_seekable(fed: Fed) -> None:
    media = fed.system.demo_media(Modality.AUDIO, "03a01Wa.opus")
    status, headers, whole = fed.system.get(f"/media/{media.sha256}")
    assert (status, headers["content-type"]) == (200, "audio/ogg")
    assert headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert headers["x-content-type-options"] == "nosniff"
    status, headers, part = fed.system.get(f"/media/{media.sha256}", Range="bytes=10-19")
    assert (status, headers["content-range"], part) == (206, f"bytes 10-19/{len(whole)}", whole[10:20])
    assert fed.system.get(f"/media/{media.sha256}", Range="bytes=99999999-")[0] == 416


@pytest.mark.parametrize("name", ["0" * 64, "../../etc/passwd", "ABC", "0" * 63])
def test_media_that_is_not_kept_is_not_found(fed: Fed, name: str) -> None:
    assert fed.system.get(f"/media/{name}")[0] == 404


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/api/trends?grain=year", "grain is one of minute, hour, day"),
        ("/api/trends?start=yesterday", "start is a time with its zone, such as 2026-03-01T12:00:00Z"),
        (
            "/api/trends?start=2026-03-01T12:00:00",
            "start is a time with its zone, such as 2026-03-01T12:00:00Z",
        ),
        ("/api/posts?label=angry", "label is one of negative, neutral, positive, unscored"),
        ("/api/posts?page_size=1000000", "page_size is a number from 1 to 200"),
        ("/api/posts?page_size=-1", "page_size is a number from 1 to 200"),
    ],
)
def test_a_question_that_makes_no_sense_is_told_so(fed: Fed, path: str, reason: str) -> None:
    status, _, body = fed.system.get(path)
    assert (status, json.loads(body)) == (400, {"error": reason})


@pytest.mark.parametrize("path", ["/api/posts?page_token=made-up", "/api/trends?start=0001-01-01T00:00:00Z"])
def test_what_the_api_refuses_is_a_bad_request_too(fed: Fed, path: str) -> None:
    assert fed.system.get(path)[0] in (200, 400)


def test_a_foreign_host_name_is_refused(fed: Fed) -> None:
    assert fed.system.get("/api/choices", Host="attacker.example")[0] == 400
    assert fed.system.get("/api/choices", Host="localhost")[0] == 200


def test_only_reading_is_possible(fed: Fed) -> None:
    connection = http.client.HTTPConnection(urlsplit(fed.system.url).netloc, timeout=30)
    connection.request("POST", "/api/trends", body=b"{}")
    assert connection.getresponse().status == 405
    connection.close()


def test_the_stream_begins_with_the_whole_interval(fed: Fed) -> None:
    connection = http.client.HTTPConnection(urlsplit(fed.system.url).netloc, timeout=30)
    connection.request("GET", "/api/trends/stream?topic=lumio&grain=day")
    response = connection.getresponse()
    assert response.getheader("content-type", "").startswith("text/event-stream")
    assert response.readline() == b"event: snapshot\n"
    points = json.loads(response.readline().removeprefix(b"data: "))["points"]
    assert [point["posts"] for point in points] == [36, 40]
    connection.close()
    status, _, body = fed.system.get("/api/trends/stream?topic=nobody")
    assert status == 404
    assert "nobody" in json.loads(body)["error"]
