"""What stands out, and what does not: by hand, on the sample feed, on shuffled labels, on made-up noise."""

from __future__ import annotations

import csv
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.alerts.detect import Finding, Kind, Window, detect
from services.alerts.settings import DetectSettings

SETTINGS = DetectSettings()
HOUR = 3600
DEMO = Path("demo")


def series(*counts: tuple[int, int, int], unscored: int = 0) -> list[Window]:
    """Hours from the epoch on; each (negative, neutral, positive)."""
    return [Window(at * HOUR, sum(each) + unscored, *each) for at, each in enumerate(counts)]


def found(windows: list[Window], settings: DetectSettings = SETTINGS) -> list[Finding]:
    return detect(windows, [each.start_s for each in windows], settings)


GOOD, BAD, MIXED = (0, 2, 4), (7, 0, 0), (2, 2, 2)


def test_a_drop_is_found_in_its_window() -> None:
    (finding,) = found(series(*[GOOD] * 12, (6, 1, 0), GOOD))
    assert (finding.start_s, finding.kind) == (12 * HOUR, Kind.MOOD_DROP)
    assert finding.value == pytest.approx(-6 / 7)
    assert finding.baseline == pytest.approx(4 / 6)
    assert (finding.posts, finding.baseline_posts) == (7, 72)


def test_the_deviation_is_that_of_a_draw_without_replacement() -> None:
    # 72 posts with a sum of 48 and 7 with one of -6, so all 79: mean 42/79, mean square 54/79.
    (finding,) = found(series(*[GOOD] * 12, (6, 1, 0)))
    mean = 42 / 79
    chance = (7 * 72 / 78 * (54 / 79 - mean**2)) ** 0.5
    assert finding.deviation == pytest.approx((-6 - 7 * mean + 0.5) / chance)


def test_a_rise_is_the_mirror_of_a_drop() -> None:
    drop = series(*[GOOD] * 12, (6, 1, 0))
    mirrored = [Window(w.start_s, w.posts, w.positive, w.neutral, w.negative) for w in drop]
    (down,), (up,) = found(drop), found(mirrored)
    assert up.kind is Kind.MOOD_RISE
    assert (up.value, up.baseline, up.deviation) == pytest.approx(
        (-down.value, -down.baseline, -down.deviation)
    )


@pytest.mark.parametrize(
    ("windows", "why"),
    [
        (series(*[GOOD] * 12, (4, 0, 0)), "fewer scored posts than min_posts"),
        (series(*[GOOD] * 7, BAD), "fewer windows than min_windows"),
        (series(*[(0, 0, 1)] * 12, BAD), "fewer posts in the baseline than min_baseline_posts"),
        (series(*[(0, 40, 60)] * 12, (20, 30, 100)), "a change smaller than min_change"),
        (series(*[MIXED] * 12, (4, 1, 1)), "what chance does too"),
        (series(*[GOOD] * 12, (0, 0, 0), unscored=20), "nothing was scored"),
        (series(*[GOOD] * 24), "nothing happened"),
    ],
)
def test_no_alert_for(windows: list[Window], why: str) -> None:
    assert found(windows) == []


@pytest.mark.parametrize(
    "windows",
    [
        series(*[GOOD] * 12, (5, 0, 0)),  # min_posts
        series(*[GOOD] * 8, BAD),  # min_windows
        series(*[(0, 0, 2)] * 10, BAD),  # min_baseline_posts, which do not differ from one another
        series((0, 0, 0), *[GOOD] * 12, BAD, unscored=1),  # a window before it of which nothing was scored
    ],
)
def test_what_is_just_enough_is_judged(windows: list[Window]) -> None:
    assert [finding.kind for finding in found(windows)] == [Kind.MOOD_DROP]


def test_a_turn_as_large_as_asked_for_is_one() -> None:
    by_a_quarter = series(*[(0, 50, 50)] * 12, (0, 75, 25))
    (finding,) = found(by_a_quarter, DetectSettings(min_change=0.25))
    asked = -finding.deviation
    assert found(by_a_quarter, DetectSettings(min_change=0.25, mood_deviation=asked)) == [finding]
    assert found(by_a_quarter, DetectSettings(min_change=0.25, mood_deviation=math.nextafter(asked, 9))) == []
    assert found(by_a_quarter, DetectSettings(min_change=0.2501)) == []


@pytest.mark.parametrize(("usual", "least"), [(3, 12), (10, 20)])  # min_spike_posts, min_spike_ratio
def test_a_spike_as_large_as_asked_for_is_one(usual: int, least: int) -> None:
    easily = DetectSettings(spike_deviation=1)
    windows = [Window(at * HOUR, usual) for at in range(24)]
    (finding,) = found([*windows, Window(24 * HOUR, least)], easily)
    assert found([*windows, Window(24 * HOUR, least - 1)], easily) == []
    for asked, spikes in ((finding.deviation, [finding]), (math.nextafter(finding.deviation, 99), [])):
        assert found([*windows, Window(24 * HOUR, least)], DetectSettings(spike_deviation=asked)) == spikes


def test_a_spike_is_held_against_how_much_windows_differ() -> None:
    windows = [Window(at * HOUR, (1, 16)[at % 2]) for at in range(24)]
    (spike,) = detect([*windows, Window(24 * HOUR, 200)], [24 * HOUR], SETTINGS)
    low, high, root = (2 * math.sqrt(posts + 3 / 8) for posts in (1, 16, 200))
    assert spike.deviation == pytest.approx((root - (low + high) / 2) / (1.4826 * (high - low) / 2))
    assert (spike.baseline, spike.baseline_posts) == (8.5, 204)


def test_a_flooded_window_weighs_as_three_usual_ones() -> None:
    finding = found(series(*[MIXED] * 11, (0, 0, 5000), (12, 0, 0)))[-1]
    assert finding.baseline == pytest.approx(18 / (66 + 18))


def test_a_baseline_is_so_many_windows_and_no_more() -> None:
    findings = found(series((0, 0, 12), *[MIXED] * 24, (12, 0, 0)))
    assert [finding.baseline for finding in findings] == [0]


def test_the_deviation_is_less_where_windows_differ_by_more_than_chance() -> None:
    # Sums of +60 and -20 in turn, each of 100 posts: mean 0.2, mean square 0.7.
    (finding,) = found(
        series(*[(5, 30, 65), (45, 30, 25)] * 12, (95, 5, 0)), DetectSettings(mood_deviation=1)
    )
    size, total, unneutral = 2400, 480, 1680
    mean = (total - 95) / (size + 100)
    chance = math.sqrt(100 * size / (size + 99) * ((unneutral + 95) / (size + 100) - mean**2))
    spread = 39.5**2 / (100 * (0.7 - 0.2**2)) / 0.4549
    assert finding.deviation == pytest.approx((-95 - 100 * mean + 0.5) / chance / math.sqrt(spread))


def test_windows_as_like_as_whole_posts_can_be_do_not_differ_by_more_than_chance() -> None:
    (finding,) = found(series(*[(0, 1, 0)] * 22, (1, 0, 0), (0, 0, 1), BAD))
    mean = -7 / 31
    chance = math.sqrt(7 * 24 / 30 * (9 / 31 - mean**2))
    assert finding.deviation == pytest.approx((-7 - 7 * mean + 0.5) / chance)


def test_one_flooded_hour_does_not_set_the_baseline() -> None:
    hours = [MIXED] * 20
    hours[10] = (0, 0, 5000)
    findings = found(series(*hours))
    assert {finding.start_s for finding in findings} == {10 * HOUR}


def test_hours_that_differ_more_than_chance_must_differ_more_to_stand_out() -> None:
    steady = series(*[(25, 30, 45)] * 24, (45, 30, 25))
    swinging = series(*[(5, 30, 65), (45, 30, 25)] * 12, (45, 30, 25))
    assert [finding.kind for finding in found(steady)] == [Kind.MOOD_DROP]
    assert found(swinging) == []


def test_a_spike_is_found_and_a_daily_rhythm_is_none() -> None:
    quiet = [(1, 1, 1)] * 24
    (spike,) = [each for each in found(series(*quiet, (10, 10, 10))) if each.kind is Kind.VOLUME_SPIKE]
    assert (spike.value, spike.baseline, spike.posts, spike.baseline_posts) == (30, 3, 30, 72)
    day = [round(100 * (1 + 0.9 * np.sin(2 * np.pi * at / 24))) for at in range(96)]
    assert found([Window(at * HOUR, posts, 0, posts, 0) for at, posts in enumerate(day)]) == []


def test_unscored_posts_count_as_volume_and_not_as_mood() -> None:
    windows = [Window(at * HOUR, 3) for at in range(24)] + [Window(24 * HOUR, 30)]
    (finding,) = found(windows)
    assert (finding.kind, finding.baseline_posts) == (Kind.VOLUME_SPIKE, 72)


def test_only_the_windows_asked_for_are_judged() -> None:
    windows = series(*[GOOD] * 12, BAD, BAD)
    assert [each.start_s for each in detect(windows, [13 * HOUR], SETTINGS)] == [13 * HOUR]


counts = st.tuples(*[st.integers(0, 60)] * 3)


@given(st.lists(counts, max_size=40), st.integers(1, 40))
def test_a_window_is_judged_by_its_baseline_and_nothing_else(
    hours: list[tuple[int, int, int]], keep: int
) -> None:
    windows = series(*hours)
    cut = windows[: keep + SETTINGS.baseline_windows]
    whole = {finding for finding in found(windows) if finding.start_s < len(cut) * HOUR}
    assert whole == set(found(cut))
    if len(windows) > SETTINGS.baseline_windows:
        last = windows[-1].start_s
        tail = windows[-SETTINGS.baseline_windows - 1 :]
        assert detect(tail, [last], SETTINGS) == detect(windows, [last], SETTINGS)


# --- the sample feed, as its author meant it


def sample() -> dict[str, list[tuple[float, str]]]:
    intended = {
        row["post_id"]: row for row in csv.DictReader((DEMO / "intended.csv").read_text().splitlines())
    }
    posts: dict[str, dict[str, tuple[float, str]]] = defaultdict(dict)
    for line in (DEMO / "feed.jsonl").read_text().splitlines():
        post = json.loads(line)
        post_id = f"{post['platform']}:{post['id']}"
        row = intended[post_id]
        at = datetime.fromisoformat(post["created_at"]).timestamp()
        posts[row["topic"]][post_id] = (at, row["label"])
    return {topic: list(found.values()) for topic, found in posts.items() if topic}


def counted(posts: Iterable[tuple[float, str]], width: int = HOUR) -> list[Window]:
    sums: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for at, label in posts:
        sums[int(at // width) * width][label] += 1
    return [
        Window(start, sum(labels.values()), labels["negative"], labels["neutral"], labels["positive"])
        for start in range(min(sums), max(sums) + width, width)
        for labels in [sums[start]]
    ]


TURN = datetime.fromisoformat("2026-06-14T10:00:00Z").timestamp()


def test_the_turn_of_the_sample_feed_is_found_and_nothing_else() -> None:
    findings = {topic: found(counted(posts)) for topic, posts in sample().items()}
    assert set(findings) == {"lumio-one", "metro-aurora", "solfest"}
    assert {finding.kind for finding in findings["lumio-one"]} == {Kind.MOOD_DROP}
    assert findings["lumio-one"][0].start_s == TURN
    assert findings["metro-aurora"] == []
    assert findings["solfest"] == []


def test_the_turn_is_found_by_a_model_that_is_right_in_eight_of_ten() -> None:
    # Wrong verdicts are any label. 200 draws; 199.3 were right in a run of 300 (README.md).
    rng = random.Random(0)
    posts = sample()["lumio-one"]
    hits = 0
    for _ in range(200):
        noisy = [
            (at, label if rng.random() < 0.8 else rng.choice(["negative", "neutral", "positive"]))
            for at, label in posts
        ]
        hits += any(
            finding.kind is Kind.MOOD_DROP and TURN <= finding.start_s < TURN + 2 * HOUR
            for finding in found(counted(noisy))
        )
    assert hits >= 190


@pytest.mark.parametrize("width", [HOUR, 3 * HOUR])
@pytest.mark.parametrize("topic", ["lumio-one", "metro-aurora", "solfest"])
def test_shuffled_labels_raise_no_alarm(topic: str, width: int) -> None:
    # Nominal two-sided rate at 3.5 deviations: 4.7e-4 of the windows judged.
    rng = random.Random(7)
    posts = sample()[topic]
    settings = DetectSettings(window_s=width)
    labels = [label for _, label in posts]
    alarms = 0
    for _ in range(100):
        rng.shuffle(labels)
        windows = counted(zip((at for at, _ in posts), labels, strict=True), width)
        alarms += sum(finding.kind is not Kind.VOLUME_SPIKE for finding in found(windows, settings))
    assert alarms <= 1


def test_noise_with_a_daily_rhythm_raises_few_alarms() -> None:
    rng = np.random.default_rng(0)
    alarms = topic_days = 0
    for mean in (3, 10, 100):
        for _ in range(5):
            hours = np.arange(15 * 24)
            posts = rng.poisson(mean * (1 + 0.8 * np.sin(2 * np.pi * hours / 24)))
            labels = [rng.multinomial(count, [0.25, 0.35, 0.4]).tolist() for count in posts]
            windows = series(*[(a, b, c) for a, b, c in labels])
            alarms += len(detect(windows, [each.start_s for each in windows[24:]], SETTINGS))
            topic_days += 14
    assert alarms / topic_days <= 0.02
