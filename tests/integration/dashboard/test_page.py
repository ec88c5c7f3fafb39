"""The page in a real Chromium: what it draws is what was written."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from playwright.sync_api import Browser, Page, expect

from shared.heartbeat import KEY_PREFIX
from shared.messages import Modality
from shared.testing import NOON

from .conftest import HOSTILE, Fed, Run, Watched, scored

pytestmark = pytest.mark.browser

TURN = NOON + timedelta(hours=12)


def figure(page: Page, name: str) -> Any:
    """The headline number over `name`."""
    return page.locator(".figure", has=page.locator(f"dt:text-is('{name}')")).locator("dd")


def dots(page: Page, what: str = "data-score") -> dict[datetime, float]:
    """Bucket -> an attribute of its dot: the mean score, or where it is drawn."""
    found: dict[str, str] = page.evaluate(
        "what => Object.fromEntries([...document.querySelectorAll('.dot')]"
        ".map(dot => [dot.dataset.t, dot.getAttribute(what)]))",
        what,
    )
    return {datetime.fromtimestamp(int(t) / 1000, UTC): float(value) for t, value in found.items()}


def opened(page: Page, fed: Fed, query: str = "?topic=lumio") -> None:
    page.goto(fed.system.url + query)
    expect(page.locator(".dot").first).to_be_attached()
    expect(page.locator(".post").first).to_be_visible()


def at_hour(page: Page, hour: int) -> tuple[float, float]:
    """Where the chart has the middle of the `hour`th of its 24 hours."""
    box = page.locator(".stage").bounding_box()
    assert box is not None
    return box["x"] + 46 + (box["width"] - 46 - 14) * (hour + 0.5) / 24, box["y"] + 120


def test_the_chart_has_the_means_that_were_written(page: Page, fed: Fed) -> None:
    opened(page, fed)
    drawn = dots(page)
    assert drawn.keys() == fed.hours("lumio").keys()
    for hour, score in drawn.items():
        assert score == pytest.approx(fed.mean("lumio", hour), abs=1e-5)
    heights = dots(page, "cy")
    liked, disliked, zero = heights[NOON], heights[TURN], page.locator(".mood .zero").get_attribute("y1")
    assert liked < float(zero or "nan") < disliked
    rows = page.locator("#table tbody tr")
    expect(rows).to_have_count(24)
    page.locator(".numbers summary").click()
    expect(rows.first).to_have_text("Sat 13 Jun, 12:00–13:00+0.6030030")


def test_the_headline_has_the_counts_and_the_turn(page: Page, fed: Fed) -> None:
    opened(page, fed)
    expect(figure(page, "posts")).to_have_text("76")
    expect(figure(page, "positive")).to_have_text(re.compile("^49%37$"))
    expect(figure(page, "unscored")).to_have_text(re.compile("^1%1$"))
    expect(figure(page, "mean score, −1 to 1")).to_have_text("+0.04")
    expect(page.locator(".turned")).to_contain_text("turned down at Sun 14 Jun, 00:00 UTC: from +0.60 before")
    expect(page.locator(".turn text")).to_contain_text("turning point")
    page.goto(fed.system.url + "?topic=metro")
    expect(page.locator(".turned")).to_have_text("No clear turn in the mood.")


def test_the_crosshair_reads_a_bucket(page: Page, fed: Fed) -> None:
    opened(page, fed)
    page.mouse.move(*at_hour(page, 3))
    tip = page.locator(".tip")
    expect(tip).to_contain_text("Sat 13 Jun, 15:00–16:00 UTC")
    expect(tip.locator(".tip-score")).to_have_text("+0.60")
    expect(tip.locator(".sum")).to_contain_text("3")


def test_arrow_keys_read_the_chart_aloud_and_enter_drills_down(page: Page, fed: Fed) -> None:
    opened(page, fed)
    page.locator(".stage").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator("[role=status]")).to_have_text(
        "Sat 13 Jun, 13:00–14:00: mean score +0.60, 3 posts, 0 negative, 0 neutral, 3 positive, 0 unscored"
    )
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"bucket=2026-06-13T13:00Z"))
    expect(page.locator(".post")).to_have_count(3)


def test_a_click_on_the_chart_lists_the_posts_behind_it(page: Page, fed: Fed) -> None:
    opened(page, fed)
    page.mouse.click(*at_hour(page, 14))
    expect(page.locator(".post")).to_have_count(3)
    ids = page.locator(".post").evaluate_all("posts => posts.map(post => post.dataset.id)")
    assert ids == ["x:l14-2", "x:l14-1", "x:l14-0"]
    page.locator("#bucket").click()
    expect(page.locator(".post")).to_have_count(20)
    assert "bucket" not in page.url


def test_topics_switch_and_the_address_can_be_shared(page: Page, fed: Fed) -> None:
    opened(page, fed, "")
    expect(figure(page, "posts")).to_have_text(str(len(fed.verdicts)))
    page.locator("#topic").select_option("metro")
    expect(figure(page, "posts")).to_have_text("12")
    expect(page).to_have_url(re.compile(r"\?topic=metro$"))
    page.locator("#language").select_option("fr")
    page.locator("#grain").select_option("day")
    expect(page.locator("#table tbody tr")).to_have_count(2)
    shared_url = page.url
    page.locator(".topic[data-topic=lumio]").click()
    expect(page.locator("#empty-title")).to_have_text("No post matches")  # nobody wrote about it in French
    page.goto(shared_url)
    expect(figure(page, "posts")).to_have_text("12")
    expect(page.locator("#topic")).to_have_value("metro")
    expect(page.locator("#language")).to_have_value("fr")
    page.go_back()
    expect(page.locator("#empty-title")).to_have_text("No post matches")
    page.locator("#empty-clear").click()
    expect(figure(page, "posts")).to_have_text(str(len(fed.verdicts)))


def test_topics_are_compared(page: Page, fed: Fed) -> None:
    opened(page, fed)
    expect(page.locator(".topic")).to_have_count(2)
    expect(page.locator(".topic").first).to_contain_text("Lumio One")
    expect(page.locator(".topic[data-topic=metro]")).to_contain_text("14% of the voice · 12 posts")
    expect(page.locator(".topic[data-topic=metro] .topic-score")).to_have_text("+0.10")
    assert page.locator(".topic .spark .line").count() == 4


def test_a_verdict_shows_what_each_modality_said(page: Page, fed: Fed) -> None:
    opened(page, fed)
    voice = page.locator('[data-id="x:voice"]')
    # Contributions and starting point sum to the score.
    rows = voice.locator(".waterfall tr").all_inner_texts()
    assert [" ".join(row.split()) for row in rows] == [
        "Starting point +0.05",
        "Text +0.20",
        "Voice shorter than one window",
        "Words spoken +0.25",
        "Score +0.50",
    ]
    expect(voice.locator("blockquote")).to_contain_text("Das will sie am Mittwoch abgeben.")
    expect(voice.locator(".emotions")).to_have_text("joy 70%anger 20%")
    expect(voice.locator(".chip").first).to_have_text("▲ positive +0.50")
    empty = page.locator('[data-id="x:empty"]')
    expect(empty).to_contain_text("Nothing here that the model can judge.")
    expect(empty.locator(".chip")).to_have_text("○ unscored")
    expect(page.locator('[data-id="x:picture"] .permalink')).to_have_attribute(
        "href", "https://x.example/picture"
    )


def test_pictures_and_voices_load(page: Page, fed: Fed) -> None:
    opened(page, fed)
    images = page.locator('[data-id="x:picture"] img')
    expect(images).to_have_count(2)
    for image in images.all():
        image.scroll_into_view_if_needed()
        page.wait_for_function(
            "image => image.complete && image.naturalWidth > 0", arg=image.element_handle()
        )
    seconds = page.locator('[data-id="x:voice"] audio').evaluate(
        """player => new Promise((resolve, reject) => {
            player.onloadedmetadata = () => resolve(player.duration);
            player.onerror = () => reject(player.error);
            player.preload = "metadata"; player.load();
        })"""
    )
    assert 0.5 < seconds < 10


def test_markup_in_a_post_is_text(page: Page, fed: Fed) -> None:
    opened(page, fed)
    card = page.locator('[data-id="x:hostile"]')
    expect(card.locator(".text")).to_have_text(HOSTILE)
    assert card.locator("img, script, .text b").count() == 0
    assert card.locator("a").count() == 0  # its link was a javascript: one
    assert page.evaluate("window.hacked") is None


def test_labels_filter_the_posts_and_more_can_be_loaded(page: Page, fed: Fed) -> None:
    opened(page, fed)
    page.locator(".label[data-label=negative]").click()
    expect(page.locator('.post:not([data-label="negative"])')).to_have_count(0)
    expect(page.locator(".label[data-label=negative]")).to_have_text("negative38")
    while page.locator("#more").is_visible():
        before = page.locator(".post").count()
        page.locator("#more").click()
        expect(page.locator(".post").nth(before)).to_be_attached()
    ids = page.locator(".post").evaluate_all("posts => posts.map(post => post.dataset.id)")
    assert len(ids) == len(set(ids)) == 38


def test_new_verdicts_arrive_without_a_reload(page: Page, run: Run) -> None:
    with run() as system:
        system.create_topics(tea="Tea")
        page.goto(system.url)
        expect(page.locator("#empty-title")).to_have_text("No posts yet")
        expect(page.locator("#empty-command")).to_contain_text("crowdtone ingest jsonl")
        page.evaluate("window.sameDocument = true")

        system.write(scored("x:1", NOON, 0.5, topics=("tea",)), scored("x:2", NOON + timedelta(hours=6), 0.5))
        expect(figure(page, "posts")).to_have_text("2")
        expect(page.locator(".post")).to_have_count(2)
        expect(page.locator("#live-text")).to_have_text("live")

        system.write(scored("x:3", NOON + timedelta(hours=7), -0.9))
        expect(figure(page, "posts")).to_have_text("3")
        expect(page.locator(".post").first).to_have_attribute("data-id", "x:3")
        expect(page.locator(".topic")).to_have_count(1)

        # A late modality turns a verdict: the same card, the same bucket, other numbers.
        fuller = {Modality.TEXT: -0.1, Modality.IMAGE: -0.5}
        system.write(scored("x:2", NOON + timedelta(hours=6), -0.6, contributions=fuller))
        expect(page.locator('[data-id="x:2"] .chip')).to_have_text("▼ negative −0.60")
        expect(page.locator(".post")).to_have_count(3)
        expect(figure(page, "negative")).to_have_text("67%2")
        assert page.evaluate("window.sameDocument") is True
        page.goto("about:blank")  # before its server goes, which it would report


def test_a_lost_api_is_said_and_found_again(page: Page, run: Run, watched: Watched) -> None:
    with run() as system:
        system.write(scored("x:1", NOON, 0.5))
        page.goto(system.url)
        expect(figure(page, "post")).to_have_text("1")
        assert system.stop("api") == 0
        expect(page.locator("#banner")).to_contain_text(
            "The API is away. Is it running? `crowdtone run api` starts it."
        )
        expect(page.locator("#live")).to_have_attribute("data-state", "away")
        expect(figure(page, "post")).to_have_text("1")  # what was known stays
        system.start("api")
        system.write(scored("x:2", NOON + timedelta(hours=1), 0.5))
        expect(page.locator("#banner")).to_be_hidden(timeout=60_000)
        expect(figure(page, "posts")).to_have_text("2")
        # Chromium itself reports each answer that is not 200; nothing else may be among them.
        assert all(re.search("status of 50[34]|ERR_INCOMPLETE", problem) for problem in watched.problems)
        watched.problems.clear()
        # With a stream open.
        assert system.stop("dashboard") == 0
        expect(page.locator("#banner")).to_contain_text("The dashboard's server does not answer.")
        page.goto("about:blank")
        watched.problems.clear()


def test_a_topic_that_is_not_tracked_is_refused_politely(page: Page, fed: Fed, watched: Watched) -> None:
    page.goto(fed.system.url + "?topic=nobody")
    expect(page.locator("#empty-text")).to_contain_text("'nobody'")
    expect(page.locator("#banner")).to_be_hidden()
    page.locator("#empty-clear").click()
    expect(figure(page, "posts")).to_have_text(str(len(fed.verdicts)))
    assert all("status of 404" in problem for problem in watched.problems)
    watched.problems.clear()


def test_services_and_those_that_fell_silent(page: Page, fed: Fed) -> None:
    def report(service: str, age_s: float, **numbers: float) -> None:
        values = {"start_time_s": 0.0, "posts": 0, "dead_letters": 0, "posts_per_s": 0.0, "lag_records": 0}
        values |= {"memory_bytes": 0, "report_time_s": time.time() - age_s} | numbers
        key = f"{KEY_PREFIX}{service}:test:1"
        client.set(key, json.dumps({"service": service, "instance": "test:1", **values}), ex=30)

    with redis.Redis.from_url(fed.system.env["CROWDTONE_REDIS_URL"]) as client:
        report(
            "fusion", 0, posts=12_345, dead_letters=2, posts_per_s=41.7, lag_records=310, memory_bytes=2**28
        )
        report("ingest", 9)
        page.goto(fed.system.url)
        fusion = page.locator("#service-table tr[data-service=fusion]")
        expect(fusion.locator("td").nth(0)).to_have_text("42")
        expect(fusion.locator("td").nth(1)).to_have_text("310")
        expect(fusion.locator("td").nth(2)).to_have_text("12.3K")
        expect(fusion.locator("td").nth(3)).to_have_text("2")
        expect(fusion.locator("td").nth(4)).to_have_text("256 MB")
        ingest = page.locator("#service-table tr[data-service=ingest]")
        expect(ingest).to_have_class("stale")
        expect(ingest).to_contain_text("silent")
        client.delete(f"{KEY_PREFIX}fusion:test:1", f"{KEY_PREFIX}ingest:test:1")
        expect(fusion).to_have_class("stale")  # gone from Redis, not from the table


def test_a_phone_scrolls_in_one_direction(page: Page, fed: Fed) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    opened(page, fed)
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.fixture(scope="module")
def numbers(chromium: Browser, fed: Fed) -> Iterator[Page]:
    """Somewhere to run numbers.js, which needs no page of its own."""
    page = chromium.new_page()
    page.goto(f"{fed.system.url}healthz")
    yield page
    page.close()


NUMBERS = "async ([name, ...args]) => (await import('/static/numbers.js'))[name](...args)"


def points(*scores: float | None, posts: int = 10) -> list[dict[str, Any]]:
    """One point an hour; None for an hour in which nothing could be scored."""
    return [
        {
            "t": hour * 3_600_000,
            "posts": posts,
            "unscored": posts if score is None else 0,
            "mean_score": score or 0.0,
            "negative": 0,
            "neutral": 0,
            "positive": 0 if score is None else posts,
        }
        for hour, score in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("scores", "turn"),
    [
        ((0.5, 0.5, 0.5, -0.4, -0.4, -0.4), 3),
        ((0.5, 0.4, 0.6, 0.5, -0.1, -0.2, 0.0), 4),
        ((0.5, 0.5, None, -0.4, -0.4), 3),
        ((0.5,) * 8, None),
        ((0.5, -0.5) * 4, None),
        ((0.1, 0.1, 0.1, 0.2, 0.2, 0.2), None),  # too small to tell
        ((0.9,) + (0.0,) * 20, None),  # one odd hour at the edge
        ((0.5, -0.5), None),
        ((), None),
        ((None, None), None),
    ],
)
def test_turning_point(numbers: Page, scores: tuple[float | None, ...], turn: int | None) -> None:
    found = numbers.evaluate(NUMBERS, ["turningPoint", points(*scores)])
    assert (None if found is None else found["t"] // 3_600_000) == turn


def test_means_leave_unscored_posts_out(numbers: Page) -> None:
    found = numbers.evaluate(NUMBERS, ["totals", [*points(0.8, None), *points(0.2, posts=30)]])
    assert (found["posts"], found["scored"], found["unscored"]) == (50, 40, 10)
    assert found["mean"] == pytest.approx(0.35)
    assert numbers.evaluate(NUMBERS, ["totals", points(None)])["mean"] is None
    change = numbers.evaluate(NUMBERS, ["changeOverHalves", points(0.5, 0.5, -0.1, -0.1), 0, 4 * 3_600_000])
    assert change == pytest.approx(-0.6)


def test_the_moving_mean_breaks_where_nobody_spoke(numbers: Page) -> None:
    hour = 3_600_000
    scattered = [points(0.4)[0], points(0.4)[0] | {"t": 20 * hour}]
    curve = numbers.evaluate(NUMBERS, ["movingMean", scattered, 0, 24 * hour, hour])
    scores = [point["score"] for point in curve if point["score"] is not None]
    assert scores == pytest.approx([0.4] * len(scores))
    assert all(point["score"] is None for point in curve if 4 * hour < point["t"] < 18 * hour)
