"""What becomes of the alerts of some windows when they are judged again. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from services.alerts.detect import Finding
from shared.messages import Alert, AlertState


def revised(
    topic: str, window_s: int, findings: Iterable[Finding], standing: Mapping[str, Alert], now: datetime
) -> list[Alert]:
    """The alerts that are new or changed, with their next revision; those that stay as they are are left out.

    standing: every alert, by id, that exists for the windows judged. One that is no longer found is
    withdrawn; one that is found again is active again.
    """
    found = {alert.alert_id: alert for alert in (_alert(topic, window_s, each, now) for each in findings)}
    withdrawn = (
        replace(alert, state=AlertState.WITHDRAWN)
        for alert_id, alert in standing.items()
        if alert_id not in found
    )
    changed = []
    for alert in (*found.values(), *withdrawn):
        before = standing.get(alert.alert_id)
        if before is None:
            changed.append(alert)
        elif before != replace(alert, revision=before.revision, update_time=before.update_time):
            changed.append(replace(alert, revision=before.revision + 1, update_time=now))
    return sorted(changed, key=lambda alert: (alert.window_start, alert.kind))


def _alert(topic: str, window_s: int, finding: Finding, now: datetime) -> Alert:
    return Alert(
        topic=topic,
        window_start=datetime.fromtimestamp(finding.start_s, UTC),
        window_s=window_s,
        kind=finding.kind.value,
        value=finding.value,
        baseline=finding.baseline,
        deviation=finding.deviation,
        posts=finding.posts,
        baseline_posts=finding.baseline_posts,
        state=AlertState.ACTIVE,
        revision=1,
        update_time=now,
    )
