"""The one interceptor: who may call, and how a call that fails ends. INTERNAL carries no internal text."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn, TypeAlias, cast

import grpc
from grpc_status import rpc_status
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.api import errors
from services.api.errors import ApiError
from shared import db, metrics

log = logging.getLogger(__name__)

# Probes have no token, and what they learn is one word.
OPEN_PREFIX: Final = "/grpc.health.v1.Health/"
QUERY_CANCELED: Final = "57014"
_BEARER: Final = "bearer "

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Guard(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """token_hashes: SHA-256 of each bearer token let in; with none, everybody is. streams: their threads."""

    def __init__(self, token_hashes: Sequence[bytes], streams: ThreadPoolExecutor) -> None:
        self._token_hashes = tuple(token_hashes)
        self._streams = streams
        self._admitted: dict[str, Handler] = {}  # by method: made once, not for each call

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        refusal = self._refusal(handler_call_details.invocation_metadata or ())
        if refusal is None and method in self._admitted:
            return self._admitted[method]
        handler = continuation(handler_call_details)
        if handler is None or method.startswith(OPEN_PREFIX):
            return handler
        guarded = self._handler(handler, method.rpartition("/")[2], refusal)
        if refusal is None:
            self._admitted[method] = guarded
        return guarded

    def _handler(self, handler: Handler, name: str, refusal: ApiError | None) -> Handler:
        if handler.response_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            behaviour: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
            stream = _guarded_stream(behaviour, name, refusal)
            stream.experimental_thread_pool = self._streams  # type: ignore[attr-defined]  # grpc looks for it
            return make(
                stream,
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            _guarded(cast(Any, handler.unary_unary), name, refusal),
            request_deserializer=handler.request_deserializer,
            response_serializer=_serializer(cast(Any, handler.response_serializer)),
        )

    def _refusal(self, metadata: Sequence[tuple[str, str | bytes]]) -> ApiError | None:
        if not self._token_hashes:
            return None
        given = next((value for key, value in metadata if key == "authorization"), None)
        if not isinstance(given, str) or given[: len(_BEARER)].lower() != _BEARER:
            return ApiError(
                grpc.StatusCode.UNAUTHENTICATED,
                errors.TOKEN_MISSING,
                "this API asks for a bearer token in the metadata `authorization`",
            )
        hashed = hashlib.sha256(given[len(_BEARER) :].strip().encode()).digest()
        # Every hash is compared, in constant time: how long it takes says nothing about any of them.
        if not sum([hmac.compare_digest(hashed, known) for known in self._token_hashes]):
            return ApiError(
                grpc.StatusCode.UNAUTHENTICATED, errors.TOKEN_UNKNOWN, "this bearer token is not let in"
            )
        return None


def _serializer(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """An answer that is bytes already, made for several callers, is sent as it is."""
    return lambda answer: answer if isinstance(answer, bytes) else serialize(answer)


def _guarded(behaviour: Callable[..., Any], name: str, refusal: ApiError | None) -> Callable[..., Any]:
    answered = metrics.API_SECONDS.labels(name, "OK")

    def call(request: Any, context: grpc.ServicerContext) -> Any:
        began = time.perf_counter()
        try:
            _admit(context, refusal)
            answer = behaviour(request, context)
        except Exception as error:
            _end(context, name, began, error)
        answered.observe(time.perf_counter() - began)
        return answer

    return call


def _guarded_stream(
    behaviour: Callable[..., Iterator[Any]], name: str, refusal: ApiError | None
) -> Callable[..., Iterator[Any]]:
    def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        began = time.perf_counter()
        try:
            _admit(context, refusal)
            yield from behaviour(request, context)
        except Exception as error:
            _end(context, name, began, error)
        metrics.API_SECONDS.labels(name, "OK").observe(time.perf_counter() - began)

    return call


def _admit(context: grpc.ServicerContext, refusal: ApiError | None) -> None:
    if refusal is not None:
        raise refusal
    remaining_s = context.time_remaining()
    if remaining_s is not None and remaining_s <= 0:
        # It waited for a thread until its caller had gone: an answer would only delay those still there.
        raise ApiError(grpc.StatusCode.DEADLINE_EXCEEDED, errors.TOO_LATE, "the deadline passed in the queue")


def _end(context: grpc.ServicerContext, name: str, began: float, error: Exception) -> NoReturn:
    refusal = to_api_error(name, error)
    metrics.API_SECONDS.labels(name, refusal.code.name).observe(time.perf_counter() - began)
    context.abort_with_status(rpc_status.to_status(errors.to_status(refusal)))
    raise AssertionError("abort raises")


def to_api_error(name: str, error: Exception) -> ApiError:
    """What a caller is told of `error`; what it hides goes to the log, under a number the caller is given."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DBAPIError) and getattr(error.orig, "pgcode", None) == QUERY_CANCELED:
        return ApiError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            errors.TOO_LATE,
            "the query took longer than this server lets one take: ask for a shorter interval",
        )
    if isinstance(error, PoolTimeout) or db.is_transient(error):
        log.warning("%s: Postgres is away: %s", name, type(error).__name__)
        return ApiError(
            grpc.StatusCode.UNAVAILABLE,
            errors.POSTGRES_UNAVAILABLE,
            "the database does not answer; try again in a moment",
        )
    number = secrets.token_hex(4)
    log.error("%s failed, number %s", name, number, exc_info=error)
    return ApiError(
        grpc.StatusCode.INTERNAL,
        errors.INTERNAL,
        f"internal error, number {number} in the server's log",
        metadata={"number": number},
    )
