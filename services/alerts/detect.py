"""Where the mood or the number of posts of a topic turned. Pure: integers in, findings out; no clock, no
database.

Mood. A scored post counts -1, 0 or 1 by its label. Were a window like the windows before it (its baseline),
its posts would be a random draw from both together; the sum of such a draw has a known mean and variance, and
the deviation is the distance of the window's sum from that mean in standard deviations, with a continuity
correction of half a post. That is the Cochran-Armitage test for a trend (Cochran 1954, Biometrics 10;
Armitage 1955, Biometrics 11), and with two labels the two-proportion test. Unlike Welch's test it needs no
variance of the window alone, which is 0 where all of five posts are negative. Two guards make it robust: a
window that was flooded counts in the baseline as no more than 3 usual ones, and where past windows differ
from each other by more than chance the deviation is divided by what they do (the median of their squared
deviations over that of chi-square with one degree of freedom: overdispersion as in McCullagh and Nelder 1989,
section 4.5, with a median in place of the mean).

Volume. The square root 2 * sqrt(posts + 3/8) of a Poisson count has a standard deviation of 1 at any rate
(Anscombe 1948, Biometrika 35); the deviation is the distance from the median of the baseline's roots, divided
by their spread (1.4826 times their median absolute deviation) where that is more than 1. So a daily rhythm is
spread, not a spike.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final, NamedTuple

from services.alerts.settings import DetectSettings

FLOOD: Final = 3.0
"""A window of the baseline weighs at most so many times the median one."""
CHI_SQUARE_MEDIAN: Final = 0.4549
"""Of one degree of freedom."""
MAD_TO_DEVIATION: Final = 1.4826
"""Of a normal distribution: 1 / 0.6745."""


class Kind(StrEnum):
    MOOD_DROP = "mood_drop"
    MOOD_RISE = "mood_rise"
    VOLUME_SPIKE = "volume_spike"


class Window(NamedTuple):
    """What is counted of one topic in one window. start_s: seconds since the epoch; posts: unscored ones
    too."""

    start_s: int
    posts: int = 0
    negative: int = 0
    neutral: int = 0
    positive: int = 0

    @property
    def scored(self) -> int:
        return self.negative + self.neutral + self.positive


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that stands out. Fields as in shared.messages.Alert."""

    start_s: int
    kind: Kind
    value: float
    baseline: float
    deviation: float
    posts: int
    baseline_posts: int


def detect(series: Sequence[Window], judged: Collection[int], settings: DetectSettings) -> list[Finding]:
    """What stands out in the windows that start at `judged`, oldest first.

    series: windows without a gap, oldest first, empty ones as zeros; from the topic's first post on, or from
    the beginning of the oldest judged window's baseline.
    """
    wanted = frozenset(judged)
    findings = []
    for index, window in enumerate(series):
        if window.start_s not in wanted or not window.posts:
            continue
        before = series[max(0, index - settings.baseline_windows) : index]
        if len(before) < settings.min_windows:
            continue
        for finding in (_mood(window, before, settings), _spike(window, before, settings)):
            if finding is not None:
                findings.append(finding)
    return findings


def _mood(window: Window, before: Sequence[Window], settings: DetectSettings) -> Finding | None:
    scored = [each for each in before if each.scored]
    baseline_posts = sum(each.scored for each in scored)
    if window.scored < settings.min_posts or baseline_posts < settings.min_baseline_posts:
        return None
    cap = FLOOD * median(each.scored for each in scored)
    weights = [min(1.0, cap / each.scored) for each in scored]
    size = sum(weight * each.scored for weight, each in zip(weights, scored, strict=True))
    total = sum(
        weight * (each.positive - each.negative) for weight, each in zip(weights, scored, strict=True)
    )
    unneutral = sum(
        weight * (each.positive + each.negative) for weight, each in zip(weights, scored, strict=True)
    )
    usual, mood = total / size, (window.positive - window.negative) / window.scored
    change = mood - usual
    if abs(change) < settings.min_change:
        return None
    # Drawing without replacement from window and baseline together.
    both = size + window.scored
    mean = (total + window.positive - window.negative) / both
    variance = (unneutral + window.positive + window.negative) / both - mean**2
    chance = math.sqrt(window.scored * size / (both - 1) * variance)
    distance = window.scored * (mood - mean)
    corrected = math.copysign(max(0.0, abs(distance) - 0.5), distance)
    spread = _overdispersion(scored, usual, unneutral / size - usual**2)
    deviation = corrected / (chance * math.sqrt(spread))
    if abs(deviation) < settings.mood_deviation:
        return None
    kind = Kind.MOOD_DROP if deviation < 0 else Kind.MOOD_RISE
    return Finding(window.start_s, kind, mood, usual, deviation, window.scored, baseline_posts)


def _overdispersion(windows: Sequence[Window], mean: float, variance: float) -> float:
    """How many times the variance between windows is that of chance; at least 1."""
    if variance <= 0.0:
        return 1.0
    squares = [
        max(0.0, abs(each.positive - each.negative - each.scored * mean) - 0.5) ** 2
        / (each.scored * variance)
        for each in windows
    ]
    return max(1.0, median(squares) / CHI_SQUARE_MEDIAN)


def _spike(window: Window, before: Sequence[Window], settings: DetectSettings) -> Finding | None:
    usual = median(each.posts for each in before)
    if window.posts < max(settings.min_spike_posts, settings.min_spike_ratio * usual):
        return None
    roots = [_root(each.posts) for each in before]
    middle = median(roots)
    spread = max(1.0, MAD_TO_DEVIATION * median(abs(root - middle) for root in roots))
    deviation = (_root(window.posts) - middle) / spread
    if deviation < settings.spike_deviation:
        return None
    return Finding(
        window.start_s,
        Kind.VOLUME_SPIKE,
        float(window.posts),
        float(usual),
        deviation,
        window.posts,
        sum(each.posts for each in before),
    )


def _root(posts: int) -> float:
    return 2.0 * math.sqrt(posts + 0.375)
