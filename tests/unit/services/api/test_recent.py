"""What is asked again within a moment is not worked out again, and is never older than was promised."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.recent import Recent


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def recent(clock: Clock, max_age_s: float = 0.25, max_size: int = 100) -> Recent[str, str]:
    return Recent(max_age_s=max_age_s, max_size=max_size, size=len, clock=clock)


@given(
    st.sampled_from([0.0, 0.25, 1.0]),
    st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.floats(0, 0.6), st.floats(0, 0.6))),
)
def test_no_answer_is_based_on_more_than_the_age_before_it_was_asked(
    max_age_s: float, calls: list[tuple[str, float, float]]
) -> None:
    clock = Clock()
    answers = Recent[str, float](max_age_s=max_age_s, max_size=3, size=lambda _: 1, clock=clock)
    for key, pause_s, work_s in calls:
        clock.now += pause_s
        asked = clock.now

        def work(work_s: float = work_s) -> float:
            read_at = clock.now
            clock.now += work_s
            return read_at

        assert answers.get(key, work) >= asked - max_age_s


def test_what_is_asked_again_at_once_is_worked_out_once() -> None:
    clock, worked = Clock(), []
    answers = recent(clock)

    def ask(key: str) -> str:
        return answers.get(key, lambda: worked.append(key) or f"{key}{len(worked)}")  # type: ignore[func-returns-value]

    assert [ask("a"), ask("b"), ask("a")] == ["a1", "b2", "a1"]
    clock.now += 0.25
    assert ask("a") == "a1"
    clock.now += 0.01
    assert ask("a") == "a3"
    answers.clear()
    assert [ask("a"), ask("b")] == ["a4", "b5"]


def test_those_who_ask_while_it_is_worked_out_share_it_and_its_failure() -> None:
    answers = recent(Clock())
    asked, go = threading.Barrier(9), threading.Event()
    worked = []

    def work(fails: bool) -> str:
        worked.append(fails)
        assert go.wait(10)
        if fails:
            raise LookupError("gone")
        return "there"

    def ask(fails: bool) -> str:
        asked.wait(10)
        return answers.get("a", lambda: work(fails))

    with ThreadPoolExecutor(8) as pool:
        for fails in (True, False):
            go.clear()
            calls = [pool.submit(ask, fails) for _ in range(8)]
            asked.wait(10)
            while not worked:
                pass
            go.set()
            if fails:
                for call in calls:
                    with pytest.raises(LookupError):
                        call.result(10)
                worked.clear()
            else:
                assert {call.result(10) for call in calls} == {"there"}


def test_what_was_begun_before_a_change_is_given_to_nobody_who_asks_after_it() -> None:
    answers = recent(Clock())
    begun, go = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert go.wait(10)
        return "before"

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(answers.get, "a", slow)
        assert begun.wait(10)
        answers.clear()
        assert answers.get("a", lambda: "after") == "after"
        go.set()
        assert first.result(10) == "before"
    assert answers.get("a", lambda: "again") == "after"


def test_the_oldest_go_where_they_come_to_too_much() -> None:
    answers = recent(Clock(), max_size=10)
    for key in ("a", "b", "c"):
        answers.get(key, lambda: "xxxx")
    assert answers.get("a", lambda: "new") == "new"
    assert answers.get("c", lambda: "never asked") == "xxxx"
    assert answers.get("big", lambda: "x" * 11) == "x" * 11
    assert answers.get("big", lambda: "not kept") == "not kept"
