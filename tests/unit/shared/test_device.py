"""Batches on a CPU are computed side by side, each by one thread, and come back as they were asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from shared.device import started_on


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_batches_of_a_cpu_are_computed_side_by_side_by_one_thread_each() -> None:
    both = threading.Barrier(2)

    def start(items: Sequence[int]) -> Callable[[], Sequence[tuple[int, int]]]:
        both.wait(timeout=30)  # neither ends before the other has begun
        return lambda: [(item, torch.get_num_threads()) for item in items]

    submit = started_on("cpu", start)
    waits = [submit([1, 2]), submit([3])]
    assert [wait() for wait in waits] == [[(1, 1), (2, 1)], [(3, 1)]]
    assert torch.get_num_threads() == 2


def test_what_fails_is_told_to_whoever_waits_for_it() -> None:
    def start(items: Sequence[int]) -> Callable[[], Sequence[int]]:
        if 0 in items:
            raise ValueError("poison")
        return lambda: items

    submit = started_on("cpu", start)
    bad, good = submit([0]), submit([1])
    assert good() == [1]
    with pytest.raises(ValueError, match="poison"):
        bad()


def test_a_gpu_is_handed_each_batch_at_once_by_one_thread_at_a_time() -> None:
    inside = 0
    most = 0

    def start(items: Sequence[int]) -> Callable[[], Sequence[int]]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1
        return lambda: items

    hand_over = started_on("cuda", start)
    with ThreadPoolExecutor(4) as turns:
        waits = list(turns.map(hand_over, [[number] for number in range(8)]))
    assert most == 1
    assert [wait() for wait in waits] == [[number] for number in range(8)]
