"""CloudEvents 1.0 binary headers (Kafka protocol binding) and W3C trace context, on every record."""

from __future__ import annotations

import os
import random
from datetime import datetime
from functools import lru_cache

# Ids must be unique and are no secrets: the system's generator would take a system call, 5 % of a verdict.
# Services are forked from one process (deploy.local.fork) and must not all go on from its state.
_ids = random.Random()
os.register_at_fork(after_in_child=_ids.seed)

Headers = tuple[tuple[str, bytes], ...]


def headers(
    *,
    id: str,
    type: str,
    source: str,
    time: datetime,
    traceparent: str,
    content_type: str = "application/protobuf",
) -> Headers:
    """The headers of one event.

    id: unique within `source`; the same event replayed has the same id.
    type: "crowdtone.v1.<Message>". source: the service. time: aware, UTC.
    """
    return (
        *_fixed(type, source, content_type),
        ("ce_id", id.encode()),
        ("ce_time", _time(time)),
        ("traceparent", traceparent.encode()),
    )


@lru_cache(maxsize=64)
def _fixed(type: str, source: str, content_type: str) -> Headers:
    return (
        ("ce_specversion", b"1.0"),
        ("ce_type", type.encode()),
        ("ce_source", f"/crowdtone/{source}".encode()),
        ("content-type", content_type.encode()),
    )


@lru_cache(maxsize=64)  # all verdicts of a step are of one time
def _time(time: datetime) -> bytes:
    return time.isoformat().replace("+00:00", "Z").encode()


def new_trace() -> str:
    """A fresh, sampled `traceparent` (W3C Trace Context, section 3.2)."""
    return f"00-{_number(128):032x}-{_number(64):016x}-01"


def child_span(traceparent: str) -> str:
    """A new span of the same trace; a new trace where there is none to continue."""
    parts = traceparent.split("-")
    if len(parts) != 4 or len(parts[1]) != 32:
        return new_trace()
    return f"00-{parts[1]}-{_number(64):016x}-{parts[3]}"


def _number(bits: int) -> int:
    """Any but zero, which is no id."""
    return _ids.getrandbits(bits) or 1
