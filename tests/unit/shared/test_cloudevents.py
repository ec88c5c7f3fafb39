"""Headers of every record: CloudEvents 1.0 and W3C trace context."""

from __future__ import annotations

import multiprocessing
import re

import pytest

from shared import cloudevents
from shared.testing import NOON

TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01")


def test_headers_are_those_of_the_kafka_binding() -> None:
    made = cloudevents.headers(
        id="x:1", type="crowdtone.v1.Post", source="ingest", time=NOON, traceparent="00-a-b-01"
    )
    assert dict(made) == {
        "ce_specversion": b"1.0",
        "ce_id": b"x:1",
        "ce_type": b"crowdtone.v1.Post",
        "ce_source": b"/crowdtone/ingest",
        "ce_time": b"2026-06-13T12:00:00Z",
        "content-type": b"application/protobuf",
        "traceparent": b"00-a-b-01",
    }


def test_a_trace_is_new_each_time_and_continued_by_its_children() -> None:
    trace = cloudevents.new_trace()
    assert TRACEPARENT.fullmatch(trace)
    assert cloudevents.new_trace() != trace
    child = cloudevents.child_span(trace)
    assert TRACEPARENT.fullmatch(child)
    assert child != trace
    assert child.split("-")[1] == trace.split("-")[1]


def test_forked_processes_do_not_draw_the_same_ids() -> None:
    with (
        multiprocessing.get_context("fork").Pool(1) as one,
        multiprocessing.get_context("fork").Pool(1) as two,
    ):
        drawn = {one.apply(cloudevents.new_trace), two.apply(cloudevents.new_trace), cloudevents.new_trace()}
    assert len(drawn) == 3


@pytest.mark.parametrize("broken", ["", "junk", "00-short-b-01", "a-b-c-d-e"])
def test_where_there_is_no_trace_a_new_one_begins(broken: str) -> None:
    assert TRACEPARENT.fullmatch(cloudevents.child_span(broken))
