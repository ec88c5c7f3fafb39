"""When windows are judged. The clock is an argument."""

from __future__ import annotations

import pytest

from services.alerts.pending import Pending
from services.alerts.settings import AlertsSettings

HOUR = 3600


@pytest.fixture
def pending() -> Pending:
    settings = AlertsSettings(lateness_s=300, settle_s=2, open_settle_s=10, max_wait_s=60)
    return Pending(settings, window_s=HOUR, baseline_windows=3)


def test_nothing_arrived(pending: Pending) -> None:
    assert pending.take(0.0) == {}


def test_an_open_window_waits_until_it_is_quiet(pending: Pending) -> None:
    pending.touch(["a"], HOUR + 5, 0.0)
    pending.touch(["a"], HOUR + 9, 4.0)
    assert pending.take(13.9) == {}
    assert pending.take(14.0) == {"a": {HOUR, 2 * HOUR, 3 * HOUR, 4 * HOUR}}
    assert pending.take(100.0) == {}


def test_a_closed_window_waits_less(pending: Pending) -> None:
    pending.touch(["a"], HOUR - 1, 0.0)
    pending.touch(["b"], HOUR + 299, 0.0)  # not yet late enough to close the first hour
    assert pending.take(2.0) == {}
    pending.touch(["b"], HOUR + 300, 2.0)
    assert pending.take(2.0) == {"a": {0, HOUR, 2 * HOUR, 3 * HOUR}}


def test_one_that_is_never_quiet_is_judged_all_the_same(pending: Pending) -> None:
    taken = []
    for now in range(200):
        pending.touch(["a"], 5.0, float(now))
        if pending.take(float(now)):
            taken.append(now)
    assert taken == [60, 121, 182]


def test_later_windows_come_along_unless_they_wait_themselves(pending: Pending) -> None:
    pending.touch(["a"], 0.0, 0.0)
    pending.touch(["a"], HOUR, 9.0)
    pending.touch(["b"], 2 * HOUR, 9.0)
    assert pending.take(10.0) == {"a": {0, 2 * HOUR, 3 * HOUR}}


def test_everything_is_everything(pending: Pending) -> None:
    pending.touch(["a", "b"], 0.0, 0.0)
    assert set(pending.take(0.0, everything=True)) == {"a", "b"}


def test_times_before_1970_have_windows_too(pending: Pending) -> None:
    assert pending.start_of(-1.0) == -HOUR
