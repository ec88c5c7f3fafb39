"""One poison input in a batch costs that input and nobody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest

from shared.encoding import ahead, answers, halving
from shared.errors import InvalidMessage


def doubled(items: Sequence[int]) -> list[int]:
    if 13 in items:
        raise RuntimeError("13")
    return [2 * item for item in items]


def test_the_culprit_is_found_and_its_neighbours_keep_their_places() -> None:
    gone = InvalidMessage("gone")
    items: list[int | Exception] = [5, 13, gone, 7, 1, 0]
    results = ahead(lambda some: partial(doubled, some), items, [[5, 4], [3, 1, 0]])
    assert results[0] == 10
    assert isinstance(results[1], RuntimeError)
    assert results[2:] == [gone, 14, 2, 0]


def test_every_batch_is_started_before_the_first_is_waited_for() -> None:
    happened: list[str] = []

    def start(items: Sequence[int]) -> Callable[[], list[int]]:
        happened.append(f"start {items}")

        def wait() -> list[int]:
            happened.append(f"wait {items}")
            return doubled(items)

        return wait

    assert ahead(start, [1, 2, 3], [[2], [0, 1]]) == [2, 4, 6]
    assert happened == ["start [3]", "start [1, 2]", "wait [3]", "wait [1, 2]"]


@pytest.mark.parametrize("at_start", [True, False])
def test_a_culprit_is_found_whether_it_fails_at_the_start_or_later(at_start: bool) -> None:
    def start(items: Sequence[int]) -> Callable[[], list[int]]:
        if at_start:
            found = doubled(items)
            return lambda: found
        return lambda: doubled(items)

    results = ahead(start, [5, 13, 7, 1], [[3], [2, 1, 0]])
    assert [results[0], *results[2:]] == [10, 14, 2]
    assert isinstance(results[1], RuntimeError)


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        (InvalidMessage("empty text"), "empty text"),
        (RuntimeError("/secret/path"), "the model failed on it: RuntimeError"),
        (np.array([1.0, np.nan]), "the model gave no finite vector"),
        (np.array([1e6, 0.0]), "the model gave no finite vector"),  # no float16
    ],
)
def test_what_is_no_vector_is_absent_with_the_reason(vector: object, reason: str) -> None:
    (absent,) = answers([vector])  # type: ignore[list-item]
    assert absent.absent_reason == reason
    assert absent.vector is None


@pytest.mark.parametrize("count", [1, 2, 8, 100])
def test_bad_inputs_alone_in_a_batch_are_each_answered(count: int) -> None:
    results = halving(doubled, [13] * count)
    assert [type(result) for result in results] == [RuntimeError] * count


def test_inputs_that_say_nothing_are_no_broken_model() -> None:
    silent = [InvalidMessage("no speech heard")] * 8
    assert halving(lambda items: silent, range(8)) == silent
