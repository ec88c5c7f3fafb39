"""Whether a child that ended is started again, and when. Pure: no clock, no process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """Wait first_wait_s, doubled after each quick failure up to longest_wait_s; give up at `quick_failures`.

    A failure is quick when the child lived less than quick_s; a longer life forgives all before it.
    """

    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    quick_s: float = 30.0
    quick_failures: int = 6


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after wait_s. in_a_row: quick failures so far, to hand to the next `after_exit`."""

    wait_s: float
    in_a_row: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It fails whenever it is started. in_a_row: how often it did."""

    in_a_row: int


def after_exit(policy: Policy, lived_s: float, in_a_row: int) -> Restart | GiveUp:
    """What to do with a child that ended by itself, other than with exit code 0."""
    failures = in_a_row + 1 if lived_s < policy.quick_s else 1
    if failures >= policy.quick_failures and lived_s < policy.quick_s:
        return GiveUp(failures)
    return Restart(min(policy.longest_wait_s, policy.first_wait_s * 2 ** (failures - 1)), failures)
