"""When a process is taken to hang."""

from __future__ import annotations

from services.alerts.stall import Stall


def test_waiting_records_without_progress_are_a_stall() -> None:
    stall = Stall(90)
    assert not stall.seen({0: (5, 9)}, {0}, 0.0)
    assert not stall.seen({0: (5, 12)}, {0}, 89.0)
    assert stall.seen({0: (5, 12)}, {0}, 90.0) == {0}


def test_progress_and_an_empty_partition_are_none() -> None:
    stall = Stall(90)
    stall.seen({0: (5, 9), 1: (3, 3)}, {0, 1}, 0.0)
    assert not stall.seen({0: (6, 9), 1: (3, 3)}, {0, 1}, 89.0)
    assert not stall.seen({0: (6, 9), 1: (3, 3)}, {0, 1}, 178.0)
    # What arrives after a quiet night has its own ninety seconds.
    assert not stall.seen({0: (9, 9), 1: (3, 3)}, {0, 1}, 179.0)
    assert not stall.seen({0: (9, 10), 1: (3, 3)}, {0, 1}, 9000.0)
    assert stall.seen({0: (9, 10), 1: (3, 3)}, {0, 1}, 9090.0) == {0}


def test_the_partitions_of_another_process_are_its_own_affair() -> None:
    stall = Stall(90)
    for now in (0.0, 100.0):
        still = stall.seen({0: (5, 9), 1: (0, 0)}, {1}, now)
    assert still == frozenset()


def test_a_process_without_partitions_answers_for_all() -> None:
    stall = Stall(90)
    stall.seen({0: (5, 9)}, (), 0.0)
    assert stall.seen({0: (5, 9)}, (), 90.0) == {0}


def test_reading_the_table_back_is_progress_for_as_long_as_it_gets_on() -> None:
    stall = Stall(90)
    stall.seen({0: (5, 9)}, {0}, 0.0)
    for now in range(80, 400, 80):
        assert not stall.seen({0: (5, 9)}, {0}, now, restored=now)
    # It is there, and the records have their own ninety seconds.
    assert not stall.seen({0: (5, 9)}, {0}, 400.0)
    assert not stall.seen({0: (5, 9)}, {0}, 489.0)
    assert stall.seen({0: (5, 9)}, {0}, 490.0) == {0}


def test_a_table_that_is_not_read_on_is_a_stall() -> None:
    stall = Stall(90)
    stall.seen({0: (5, 9)}, {0}, 0.0, restored=7)
    assert stall.seen({0: (5, 9)}, {0}, 90.0, restored=7) == {0}
