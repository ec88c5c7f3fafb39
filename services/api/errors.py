"""The API's refusals: a gRPC status with google.rpc.ErrorInfo and, for bad requests, BadRequest. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN: Final = "crowdtone"

# The reasons: what a program may decide on. Messages are for people and may change.
INVALID_REQUEST: Final = "INVALID_REQUEST"
INVALID_PAGE_TOKEN: Final = "INVALID_PAGE_TOKEN"
TOO_MANY_POINTS: Final = "TOO_MANY_POINTS"
TOPIC_NOT_FOUND: Final = "TOPIC_NOT_FOUND"
TOPIC_EXISTS: Final = "TOPIC_EXISTS"
POST_NOT_FOUND: Final = "POST_NOT_FOUND"
MEDIA_NOT_FOUND: Final = "MEDIA_NOT_FOUND"
TOKEN_MISSING: Final = "TOKEN_MISSING"
TOKEN_UNKNOWN: Final = "TOKEN_UNKNOWN"
TOO_MANY_STREAMS: Final = "TOO_MANY_STREAMS"
TOO_LATE: Final = "TOO_LATE"
POSTGRES_UNAVAILABLE: Final = "POSTGRES_UNAVAILABLE"
REDIS_UNAVAILABLE: Final = "REDIS_UNAVAILABLE"
MEDIA_STORE_UNAVAILABLE: Final = "MEDIA_STORE_UNAVAILABLE"
SHUTTING_DOWN: Final = "SHUTTING_DOWN"
INTERNAL: Final = "INTERNAL"


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that is not as it must be. field: its path, e.g. "filter.topic"."""

    field: str
    description: str


class ApiError(Exception):
    """A call that ends with this status. Everything in it is shown to the caller."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})


def refuse(reason: str, violations: Sequence[Violation]) -> NoReturn:
    """Raise INVALID_ARGUMENT naming every field at fault."""
    message = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
    raise ApiError(grpc.StatusCode.INVALID_ARGUMENT, reason, message, violations=violations)


def to_status(error: ApiError) -> status_pb2.Status:
    """The google.rpc.Status of a refusal."""
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=violation.field, description=violation.description
                    )
                    for violation in error.violations
                ]
            )
        )
    packed = []
    for detail in details:
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    return status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=error.message, details=packed)
