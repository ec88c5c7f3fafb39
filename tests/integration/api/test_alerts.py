"""Alerts over a real Postgres, newest window first."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from protos.crowdtone.v1 import api_pb2 as pb
from protos.crowdtone.v1 import events_pb2 as events
from shared.testing import NOON

NOON_S = int(NOON.timestamp())


def listed(api: Any, **fields: Any) -> list[str]:
    return [alert.alert_id for alert in api.ListAlerts(pb.ListAlertsRequest(**fields), timeout=10).alerts]


def test_alerts_are_found_by_topic_and_time_and_the_withdrawn_only_when_asked(api: Any, rows: Any) -> None:
    rows.topic("tea", "coffee")
    rows.alert("tea/0/mood_drop", "tea", NOON)
    rows.alert("tea/1/mood_drop", "tea", NOON + timedelta(hours=1), state=2, revision=3)
    rows.alert("coffee/1/volume_spike", "coffee", NOON + timedelta(hours=1), kind="volume_spike")
    assert listed(api, topic="*") == ["coffee/1/volume_spike", "tea/0/mood_drop"]
    assert listed(api, topic="tea") == ["tea/0/mood_drop"]
    assert listed(api, topic="tea", include_withdrawn=True) == ["tea/1/mood_drop", "tea/0/mood_drop"]
    hour = Timestamp(seconds=NOON_S + 3600)
    assert listed(api, topic="*", start_time=hour) == ["coffee/1/volume_spike"]
    assert listed(api, topic="*", end_time=hour) == ["tea/0/mood_drop"]
    (alert,) = api.ListAlerts(pb.ListAlertsRequest(topic="tea")).alerts
    assert alert == events.Alert(
        alert_id="tea/0/mood_drop",
        topic="tea",
        window_start=Timestamp(seconds=NOON_S),
        window_s=3600,
        kind="mood_drop",
        value=-0.5,
        baseline=0.25,
        state=events.ALERT_STATE_ACTIVE,
        revision=1,
        deviation=-6.5,
        posts=40,
        baseline_posts=400,
        update_time=Timestamp(seconds=NOON_S + 7200),
    )
    with pytest.raises(grpc.RpcError) as caught:
        listed(api, topic="cocoa")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_the_pages_of_alerts_hold_each_once(api: Any, rows: Any) -> None:
    rows.topic("tea")
    there = [f"tea/{number:02}/mood_drop" for number in range(7)]
    for number, alert_id in enumerate(there):
        rows.alert(alert_id, "tea", NOON + timedelta(hours=number // 3))
    request = pb.ListAlertsRequest(topic="*", page_size=3)
    sizes, walked = [], []
    while True:
        answer = api.ListAlerts(request)
        sizes.append(len(answer.alerts))
        walked += [alert.alert_id for alert in answer.alerts]
        rows.alert(f"new/{len(sizes)}", "tea", NOON + timedelta(days=1))
        request.page_token = answer.next_page_token
        if not answer.next_page_token:
            break
    assert sizes == [3, 3, 1]
    assert walked == sorted(there, reverse=True)
