"""Alerts on the page: what stands is marked and listed, what was withdrawn is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from playwright.sync_api import Page, expect

from shared import db, tables
from shared.messages import AlertState
from shared.settings import PostgresSettings
from shared.testing import NOON

from .conftest import Run, System, feed

pytestmark = pytest.mark.browser

TURN = NOON + timedelta(hours=12)


def row(
    topic: str, start: datetime, kind: str, value: float, baseline: float, state: AlertState
) -> dict[str, object]:
    return {
        "alert_id": f"{topic}/{start:%Y-%m-%dT%H:%M:%SZ}/{kind}",
        "topic": topic,
        "window_start": start,
        "window_s": 3600,
        "kind": kind,
        "value": value,
        "baseline": baseline,
        "deviation": -5.0,
        "posts": 3,
        "baseline_posts": 36,
        "state": int(state),
        "revision": 1,
        "published_revision": 1,
        "update_time": start,
    }


@pytest.fixture(scope="module")
def alarmed(run: Run) -> Iterator[System]:
    with run() as system:
        feed(system)
        rows = [
            row("lumio", TURN, "mood_drop", -0.5, 0.6, AlertState.ACTIVE),
            row("lumio", TURN + timedelta(hours=1), "mood_drop", -0.4, 0.5, AlertState.ACTIVE),
            row("lumio", NOON + timedelta(hours=3), "mood_rise", 0.9, 0.1, AlertState.WITHDRAWN),
            row("metro", NOON + timedelta(hours=20), "volume_spike", 40, 2, AlertState.ACTIVE),
        ]
        engine = db.engine(PostgresSettings(url=system.env["CROWDTONE_POSTGRES_URL"]))
        with engine.begin() as connection:
            connection.execute(sa.insert(tables.alerts), rows)
        engine.dispose()
        yield system


def test_alerts_are_marked_and_listed_by_episode(page: Page, alarmed: System) -> None:
    page.goto(f"{alarmed.url}?topic=lumio")
    expect(page.locator(".alert-mark")).to_have_count(2)
    assert (
        page.locator(".alert-mark").evaluate_all("marks => marks.map(mark => mark.dataset.kind)")
        == ["mood_drop"] * 2
    )
    # Two windows in a row are one line; of a withdrawn one there is no trace.
    expect(page.locator("#alerts li")).to_have_count(1)
    expect(page.locator("#alerts")).to_contain_text("mood drop")
    expect(page.locator("#alerts")).to_contain_text("00:00–02:00")
    expect(page.locator("#alerts")).to_contain_text("−0.50, usual +0.60")


def test_an_alert_leads_to_its_posts(page: Page, alarmed: System) -> None:
    page.goto(alarmed.url)
    expect(page.locator("#alerts li")).to_have_count(2)  # of every topic
    page.locator("#alerts button", has_text="volume spike").click()
    expect(page.locator("#topic")).to_have_value("metro")
    expect(page.locator(".post")).to_have_count(1)
    expect(page.locator(".post .source")).to_contain_text("reddit")
    expect(page.locator("#alerts")).to_contain_text("40 posts, usual 2 posts")


def test_a_topic_without_alerts_has_no_list(page: Page, alarmed: System) -> None:
    status, _, body = alarmed.get("/api/alerts?topic=metro&end=2026-06-13T00:00:00Z")
    assert (status, json.loads(body)) == (200, {"alerts": []})
    page.goto(f"{alarmed.url}?topic=metro&interval=24h")
    expect(page.locator("#alerts li")).to_have_count(1)
    assert alarmed.get("/api/alerts?topic=nobody")[0] == 404
