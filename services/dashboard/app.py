"""The page's server: static files, and the API's answers as JSON, server-sent events and media.

Knows nothing of Postgres, Kafka or Redis. What it serves comes from strangers, so every response forbids what
the page does not need.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.dashboard.client import GRAINS, LABELS, ApiClient, ApiError, Filter, Json
from services.dashboard.media_type import media_type
from services.dashboard.settings import ApiClientSettings, DashboardSettings

STATIC: Final = Path(__file__).parent / "static"
MAX_PAGE_SIZE: Final = 200
# Proxies and browsers cut a connection that stays silent; a comment line keeps it.
KEEP_ALIVE_S: Final = 15.0
# How soon an idle stream notices that the server wants to stop.
CLOSING_POLL_S: Final = 0.5
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")

PAGE_POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
MEDIA_POLICY: Final = "default-src 'none'; sandbox"
HEADERS: Final = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",
}


class SecureHeaders:
    """Sets every header of HEADERS that a response does not set itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def create_app(
    settings: DashboardSettings, api: ApiClientSettings, *, closing: Callable[[], bool] = lambda: False
) -> Starlette:
    """The ASGI application. closing: true once the server wants to stop, so that endless streams end."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        client = ApiClient(api, media_max_bytes=settings.media_max_bytes)
        app.state.api = client
        app.state.closing = closing
        app.state.timeout_s = api.timeout_s
        yield
        await client.close()

    return Starlette(
        routes=[
            Route("/", page),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/api/choices", choices),
            Route("/api/trends", trends),
            Route("/api/trends/stream", trends_stream),
            Route("/api/compare", compare),
            Route("/api/alerts", alerts),
            Route("/api/posts", posts),
            Route("/api/services", services),
            Route("/media/{sha256}", media),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[
            Middleware(SecureHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=settings.allowed_hosts.split(",")),
        ],
        exception_handlers={ApiError: on_api_error},
        lifespan=lifespan,
    )


async def on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse({"error": error.reason}, status_code=error.status)


async def page(request: Request) -> Response:
    return FileResponse(STATIC / "index.html")


async def healthz(request: Request) -> Response:
    """Alive: this process answers. Says nothing of the API."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Ready: the API answers."""
    await _api(request).topics()
    return JSONResponse({"status": "ok"})


async def choices(request: Request) -> Response:
    return JSONResponse(await _api(request).choices())


async def trends(request: Request) -> Response:
    return JSONResponse({"points": await _api(request).trends(_filter(request), _grain(request))})


async def trends_stream(request: Request) -> Response:
    """Server-sent events: `snapshot` (every point), then `points` (changed ones), `away` at the end."""
    source = _api(request).stream(_filter(request), _grain(request))
    closing: Callable[[], bool] = request.app.state.closing
    timeout_s: float = request.app.state.timeout_s
    try:
        # Before the response begins, so that a refusal has a status of its own.
        first = await asyncio.wait_for(anext(source, []), timeout_s)
    except TimeoutError as error:
        raise ApiError(HTTPStatus.GATEWAY_TIMEOUT, "the API did not answer in time") from error
    return StreamingResponse(_events(source, first, closing), media_type="text/event-stream")


async def _events(
    source: AsyncIterator[list[Json]], first: list[Json], closing: Callable[[], bool]
) -> AsyncIterator[str]:
    # There is always a read under way when this yields, so that cancelling it hangs up on the API.
    pending = asyncio.ensure_future(_next(source))
    silent_s = 0.0
    try:
        yield _event("snapshot", {"points": first})
        while not closing():
            done, _ = await asyncio.wait({pending}, timeout=CLOSING_POLL_S)
            if done:
                points = pending.result()
                if points is None:
                    return
                pending, silent_s = asyncio.ensure_future(_next(source)), 0.0
                yield _event("points", {"points": points})
            else:
                silent_s += CLOSING_POLL_S
                if silent_s >= KEEP_ALIVE_S:
                    silent_s = 0.0
                    yield ": still here\n\n"
    except ApiError as error:
        yield _event("away", {"error": error.reason})
    finally:
        pending.cancel()


async def _next(source: AsyncIterator[list[Json]]) -> list[Json] | None:
    return await anext(source, None)


def _event(name: str, value: Json) -> str:
    return f"event: {name}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n"


async def compare(request: Request) -> Response:
    return JSONResponse({"topics": await _api(request).compare(_filter(request), _grain(request))})


async def alerts(request: Request) -> Response:
    found = await _api(request).alerts(_filter(request), page_size=MAX_PAGE_SIZE)
    return JSONResponse({"alerts": found})


async def posts(request: Request) -> Response:
    label = request.query_params.get("label", "")
    if label and label not in LABELS:
        raise _bad(f"label is one of {', '.join(LABELS)}")
    size = request.query_params.get("page_size", "20")
    if not size.isascii() or not size.isdigit() or not 1 <= int(size) <= MAX_PAGE_SIZE:
        raise _bad(f"page_size is a number from 1 to {MAX_PAGE_SIZE}")
    token = request.query_params.get("page_token", "")
    return JSONResponse(
        await _api(request).posts(_filter(request), label=label, page_size=int(size), page_token=token)
    )


async def services(request: Request) -> Response:
    """Each process with `age_s`, the seconds since it reported, by this machine's clock."""
    now = datetime.now(UTC)
    found = await _api(request).services()
    for status in found:
        age_s = (now - datetime.fromisoformat(status["report_time"])).total_seconds()
        status["age_s"] = max(0.0, age_s)
    return JSONResponse({"services": found})


async def media(request: Request) -> Response:
    """A picture or sound under a type that was read from its bytes; 415 for anything else."""
    sha256 = request.path_params["sha256"]
    if not _SHA256.fullmatch(sha256):
        raise ApiError(HTTPStatus.NOT_FOUND, "no such media")
    content = await _api(request).media(sha256)
    kind = media_type(content)
    if kind is None:
        raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not a picture or sound that is safe to show")
    headers = {
        "Content-Security-Policy": MEDIA_POLICY,
        # The name is the hash of the bytes: they never change.
        "Cache-Control": "private, max-age=31536000, immutable",
        "Accept-Ranges": "bytes",
    }
    window = byte_range(request.headers, len(content))
    if window is None:
        return Response(content, media_type=kind, headers=headers)
    start, end = window
    if start >= end:
        headers["Content-Range"] = f"bytes */{len(content)}"
        return Response(status_code=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers=headers)
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
    return Response(content[start:end], HTTPStatus.PARTIAL_CONTENT, headers, kind)


def byte_range(headers: Headers, size: int) -> tuple[int, int] | None:
    """The one range asked for as [start, end), empty where it lies outside; None for the whole.

    Players ask for a range to seek. Several ranges at once are answered with the whole, as RFC 9110 allows.
    """
    found = _RANGE.fullmatch(headers.get("range", ""))
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


def _api(request: Request) -> ApiClient:
    client: ApiClient = request.app.state.api
    return client


def _bad(reason: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, reason)


def _filter(request: Request) -> Filter:
    query = request.query_params
    return Filter(
        topic=query.get("topic", "*"),
        start_time=_time(request, "start"),
        end_time=_time(request, "end"),
        platform=query.get("platform", ""),
        language=query.get("language", ""),
    )


def _grain(request: Request) -> str:
    grain = request.query_params.get("grain", "hour")
    if grain not in GRAINS:
        raise _bad(f"grain is one of {', '.join(GRAINS)}")
    return grain


def _time(request: Request, name: str) -> datetime | None:
    text = request.query_params.get(name, "")
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is None or not math.isfinite(time.timestamp()):
            raise ValueError
    except (ValueError, OverflowError):
        raise _bad(f"{name} is a time with its zone, such as 2026-03-01T12:00:00Z") from None
    return time.astimezone(UTC)
