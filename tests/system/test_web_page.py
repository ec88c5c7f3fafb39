"""The page over the whole system: a post goes in as a file and shows up in a browser that was open before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.stack import ROOT, Pipeline

pytestmark = pytest.mark.browser

MEDIA = ROOT / "demo" / "media"
# Eight services share the cores with the browser.
expect.set_options(timeout=30_000)


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    problems: list[str] = []
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    context.close()
    assert problems == []


def test_a_post_appears_with_picture_voice_and_what_each_said(
    pipeline: Pipeline, page: Page, tmp_path: Path
) -> None:
    def feed(*posts: dict[str, object]) -> None:
        path = tmp_path / "feed.jsonl"
        path.write_text(
            "".join(json.dumps({"platform": "mastodon", "lang": "en"} | post) + "\n" for post in posts)
        )
        pipeline.ingest("jsonl", str(path), "--media", str(MEDIA))
        pipeline.wait_for_verdicts()

    # The page shows the 24 hours up to the newest post of all: these are newer than what other tests feed.
    def hours_ago(hours: float) -> str:
        return (datetime.now(UTC) - timedelta(hours=hours)).isoformat()

    feed({"id": "page-1", "created_at": hours_ago(3), "text": "Solfest opens its gates at noon."})
    page.goto(
        f"http://127.0.0.1:{pipeline.env['CROWDTONE_DASHBOARD_PORT']}/?topic=solfest&interval=24h&grain=hour"
    )
    expect(page.locator('[data-id="mastodon:page-1"]')).to_be_visible()
    page.evaluate("window.sameDocument = true")

    feed(
        {
            "id": "page-2",
            "created_at": hours_ago(0.5),
            "text": "<b>What a night at Solfest</b>, the fireworks were wonderful!",
            "media": ["images/solfest_fireworks.webp", "voices/03a01Wa.opus"],
            "url": "https://mastodon.example/@a/2",
        }
    )
    card = page.locator('[data-id="mastodon:page-2"]')
    expect(card).to_be_visible()
    assert page.evaluate("window.sameDocument") is True
    assert page.locator(".post").first.get_attribute("data-id") == "mastodon:page-2"
    expect(card.locator(".text")).to_have_text(
        "<b>What a night at Solfest</b>, the fireworks were wonderful!"
    )
    image = card.locator("img")
    page.wait_for_function("image => image.naturalWidth > 0", arg=image.element_handle())
    expect(card.locator("audio")).to_have_count(1)
    expect(card.locator(".permalink")).to_have_attribute("href", "https://mastodon.example/@a/2")
    rows = card.locator(".waterfall th").all_inner_texts()
    assert rows == ["Starting point", "Text", "Picture", "Voice", "Words spoken", "Score"]

    for service in ("text_encoder", "image_encoder", "audio_encoder", "fusion", "api"):
        row = page.locator(f"#service-table tr[data-service={service}]").first
        expect(row).to_be_visible()
        expect(row).not_to_have_class("stale")
