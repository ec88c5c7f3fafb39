"""What judging again makes of alerts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.alerts.detect import Finding, Kind
from services.alerts.revision import revised
from shared.messages import Alert, AlertState

NOW = datetime(2026, 6, 14, 12, tzinfo=UTC)
START_S = int(datetime(2026, 6, 14, 10, tzinfo=UTC).timestamp())
DROP = Finding(START_S, Kind.MOOD_DROP, -1.0, 0.6, -6.0, 14, 90)


def judged(findings: list[Finding], standing: dict[str, Alert], hours: int = 0) -> list[Alert]:
    return revised("lumio-one", 3600, findings, standing, NOW + timedelta(hours=hours))


def by_id(alerts: list[Alert]) -> dict[str, Alert]:
    return {alert.alert_id: alert for alert in alerts}


def test_a_finding_is_an_alert_with_an_id_made_of_what_it_is() -> None:
    (alert,) = judged([DROP], {})
    assert alert.alert_id == "lumio-one/2026-06-14T10:00:00Z/mood_drop"
    assert (alert.state, alert.revision, alert.update_time) == (AlertState.ACTIVE, 1, NOW)


def test_the_same_again_changes_nothing() -> None:
    assert judged([DROP], by_id(judged([DROP], {})), hours=1) == []


def test_another_value_is_another_revision() -> None:
    standing = by_id(judged([DROP], {}))
    (alert,) = judged([replace(DROP, value=-0.9)], standing, hours=1)
    assert (alert.value, alert.revision, alert.update_time) == (-0.9, 2, NOW + timedelta(hours=1))


def test_what_no_longer_holds_is_withdrawn_once_and_may_come_back() -> None:
    standing = by_id(judged([DROP], {}))
    (withdrawn,) = judged([], standing, hours=1)
    assert (withdrawn.state, withdrawn.revision, withdrawn.value) == (AlertState.WITHDRAWN, 2, -1.0)
    assert judged([], by_id([withdrawn]), hours=2) == []
    (back,) = judged([DROP], by_id([withdrawn]), hours=3)
    assert (back.state, back.revision) == (AlertState.ACTIVE, 3)


@given(
    st.lists(
        st.lists(st.sampled_from([DROP, replace(DROP, start_s=START_S + 3600)]), unique=True), max_size=6
    )
)
def test_the_alerts_end_as_the_last_judgement_says(judgements: list[list[Finding]]) -> None:
    standing: dict[str, Alert] = {}
    for findings in [*judgements, [DROP]]:
        standing |= by_id(judged(findings, standing))
    active = [alert.alert_id for alert in standing.values() if alert.state is AlertState.ACTIVE]
    assert active == ["lumio-one/2026-06-14T10:00:00Z/mood_drop"]
