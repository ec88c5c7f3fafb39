"""When a child is started again: a table of lives and what follows each."""

from __future__ import annotations

import pytest

from deploy.local.restarts import GiveUp, Policy, Restart, after_exit

POLICY = Policy(first_wait_s=1.0, longest_wait_s=5.0, quick_s=10.0, quick_failures=5)


@pytest.mark.parametrize(
    ("lived_s", "in_a_row", "expected"),
    [
        (0.1, 0, Restart(1.0, 1)),
        (0.1, 1, Restart(2.0, 2)),
        (9.9, 2, Restart(4.0, 3)),
        (0.1, 3, Restart(5.0, 4)),  # not 8: the longest wait
        (0.1, 4, GiveUp(5)),
        (10.0, 4, Restart(1.0, 1)),  # it worked for a while: all before is forgiven
        (3600.0, 0, Restart(1.0, 1)),
    ],
)
def test_after_exit(lived_s: float, in_a_row: int, expected: Restart | GiveUp) -> None:
    assert after_exit(POLICY, lived_s, in_a_row) == expected


def test_one_that_always_dies_at_once_is_given_up_within_a_minute() -> None:
    waited_s, in_a_row = 0.0, 0
    while isinstance(verdict := after_exit(Policy(), 0.0, in_a_row), Restart):
        waited_s, in_a_row = waited_s + verdict.wait_s, verdict.in_a_row
    assert waited_s < 60


def test_one_that_dies_after_long_lives_is_started_for_ever() -> None:
    in_a_row = 0
    for _ in range(1000):
        verdict = after_exit(Policy(), 31.0, in_a_row)
        assert isinstance(verdict, Restart)
        in_a_row = verdict.in_a_row
