"""The one loop: what is written before what is committed, when it ends, and what a failure leaves behind."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import pytest

from shared import worker
from shared.errors import Unavailable
from shared.health import Health
from shared.messages import Output, Record, Result, Step, TopicPartition
from shared.testing import FakeSink, FakeSource

PLACE = TopicPartition("posts", 0)


def records(count: int) -> list[Record]:
    return [Record("posts", 0, offset, None, b"%d" % offset) for offset in range(count)]


def copy(contents: Sequence[Record], now: float) -> Result:
    """Every record becomes an output."""
    finished = {PLACE: contents[-1].offset + 1} if contents else {}
    return Result([Output("out", None, record.value) for record in contents], finished, posts=len(contents))


def dead(contents: Sequence[Record], now: float) -> Result:
    finished = {PLACE: contents[-1].offset + 1} if contents else {}
    return Result([Output("posts.dlq", None, record.value) for record in contents], finished)


def after(turns: int) -> Callable[[], bool]:
    """False as many times as there are to be turns."""
    left = iter([False] * turns)
    return lambda: next(left, True)


class Watched(FakeSource):
    """Each poll takes 2 s of a clock, and asks whether the loop is live: 5 s without a turn are too long."""

    def __init__(self, contents: Sequence[Record], *, max_poll_records: int = 500) -> None:
        super().__init__(contents, max_poll_records=max_poll_records)
        self.now_s = 0.0
        self.health = Health(stall_s=5, checks={}, watchdog=False, clock=lambda: self.now_s)
        self.reasons: list[str] = []

    def poll(self) -> list[Record]:
        self.now_s += 2
        self.reasons.append(self.health.not_live())
        return super().poll()


def run(
    source: FakeSource,
    step: Step,
    sink: FakeSink,
    *,
    turns: int = 5,
    dead_letter_limit: int = 100,
    side_by_side: int = 1,
    health: Health | None = None,
) -> None:
    worker.run(
        "test",
        source,
        step,
        sink,
        stopped=after(turns),
        dead_letter_limit=dead_letter_limit,
        turns=side_by_side,
        health=health,
        clock=lambda: 0,
    )


def test_everything_is_written_and_then_committed() -> None:
    source, sink = FakeSource(records(10), max_poll_records=3), FakeSink()
    run(source, copy, sink)
    assert [output.value for output in sink.written] == [b"%d" % n for n in range(10)]
    assert source.committed == {PLACE: 10}


def test_a_commit_comes_after_its_write() -> None:
    order: list[str] = []

    class Source(FakeSource):
        def commit(self, finished: Mapping[TopicPartition, int]) -> None:
            order.append(f"commit {finished.get(PLACE)}")

    class Sink(FakeSink):
        def write(self, outputs: Sequence[Output]) -> None:
            order.append(f"write {len(outputs)}")

    run(Source(records(4), max_poll_records=2), copy, Sink(), turns=2)
    assert order == ["write 2", "commit 2", "write 2", "commit 4"]


@pytest.mark.parametrize("fails", ["step", "write"])
def test_a_failure_leaves_the_turn_uncommitted_and_the_next_process_repeats_it(fails: str) -> None:
    source, sink = FakeSource(records(6), max_poll_records=2), FakeSink()
    run(source, copy, sink, turns=1)

    def broken(contents: Sequence[Record], now: float) -> Result:
        raise RuntimeError("a bug")

    if fails == "write":
        sink.fail = Unavailable("no brokers")
    with pytest.raises((RuntimeError, Unavailable)):
        run(source, broken if fails == "step" else copy, sink)
    assert source.committed == {PLACE: 2}
    source.crash()
    run(source, copy, sink, turns=10)
    assert [output.value for output in sink.written] == [b"%d" % n for n in range(6)]
    assert source.committed == {PLACE: 6}


def test_an_empty_poll_still_steps_with_the_time() -> None:
    times: list[float] = []

    def step(contents: Sequence[Record], now: float) -> Result:
        times.append(now)
        return Result()

    clock = iter(range(100))
    worker.run(
        "test",
        FakeSource([]),
        step,
        FakeSink(),
        stopped=after(3),
        dead_letter_limit=1,
        clock=lambda: next(clock),
    )
    assert len(times) == 3
    assert times == sorted(times)


def test_too_many_dead_letters_in_a_row_stop_it_and_are_kept() -> None:
    source, sink = FakeSource(records(10), max_poll_records=2), FakeSink()
    with pytest.raises(worker.TooManyDeadLetters, match="6 dead letters in a row"):
        run(source, dead, sink, dead_letter_limit=5)
    assert len(sink.written) == 6
    assert source.committed == {PLACE: 6}


def test_good_posts_between_them_start_the_count_anew() -> None:
    def every_other(contents: Sequence[Record], now: float) -> Result:
        return (dead if contents and contents[0].offset % 4 else copy)(contents, now)

    source, sink = FakeSource(records(40), max_poll_records=2), FakeSink()
    run(source, every_other, sink, turns=30, dead_letter_limit=3)
    assert source.committed == {PLACE: 40}


def test_turns_side_by_side_do_not_wait_for_each_other_and_are_committed_in_order() -> None:
    second_written = threading.Event()
    commits: list[int] = []

    class Source(FakeSource):
        def commit(self, finished: Mapping[TopicPartition, int]) -> None:
            assert second_written.is_set()
            commits.append(finished[PLACE])

    class Sink(FakeSink):
        def write(self, outputs: Sequence[Output]) -> None:
            super().write(outputs)
            if outputs[0].value == b"2":
                second_written.set()

    def step(contents: Sequence[Record], now: float) -> Result:
        if contents[0].offset == 0:
            assert second_written.wait(10)  # the first turn ends only after the second
        return copy(contents, now)

    source, sink = Source(records(8), max_poll_records=2), Sink()
    run(source, step, sink, turns=4, side_by_side=2)
    assert commits == [2, 4, 6, 8]
    assert {output.value for output in sink.written} == {b"%d" % n for n in range(8)}


def test_no_more_turns_are_under_way_than_asked_for() -> None:
    under_way = most = 0
    lock = threading.Lock()

    def step(contents: Sequence[Record], now: float) -> Result:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        with lock:
            under_way -= 1
        return copy(contents, now)

    ahead: list[int] = []

    class Source(FakeSource):
        def poll(self) -> list[Record]:
            ahead.append(self._position - self.committed[PLACE])
            return super().poll()

    source = Source(records(30), max_poll_records=2)
    run(source, step, FakeSink(), turns=15, side_by_side=3)
    assert most == 3
    assert max(ahead) == 4  # two turns: the third is read now
    assert source.committed == {PLACE: 30}


def test_a_loop_that_always_has_a_turn_under_way_is_live() -> None:
    source = Watched(records(12), max_poll_records=1)

    def step(contents: Sequence[Record], now: float) -> Result:
        time.sleep(0.02)
        return copy(contents, now)

    run(source, step, FakeSink(), turns=12, side_by_side=2, health=source.health)
    assert source.reasons == [""] * 12


@pytest.mark.parametrize("side_by_side", [2, 3])
def test_a_failed_turn_leaves_itself_and_the_later_ones_uncommitted(side_by_side: int) -> None:
    later_written = threading.Event()

    def step(contents: Sequence[Record], now: float) -> Result:
        if contents[0].offset == 2:
            assert later_written.wait(10)
            raise RuntimeError("a bug")
        return copy(contents, now)

    class Sink(FakeSink):
        def write(self, outputs: Sequence[Output]) -> None:
            super().write(outputs)
            if outputs and outputs[0].value == b"4":
                later_written.set()

    source, sink = FakeSource(records(10), max_poll_records=2), Sink()
    with pytest.raises(RuntimeError, match="a bug"):
        run(source, step, sink, side_by_side=side_by_side)
    assert source.committed == {PLACE: 2}
    source.crash()
    run(source, copy, sink, turns=10, side_by_side=side_by_side)
    assert source.committed == {PLACE: 10}
    assert {output.value for output in sink.written} == {b"%d" % n for n in range(10)}


def test_a_turn_that_hangs_beside_empty_polls_is_noticed() -> None:
    released = threading.Event()

    class Source(Watched):
        def poll(self) -> list[Record]:
            if len(self.reasons) == 5:
                released.set()
            return super().poll()

    def step(contents: Sequence[Record], now: float) -> Result:
        assert released.wait(10) or not contents
        return copy(contents, now)

    source = Source(records(1))
    run(source, step, FakeSink(), turns=6, side_by_side=2, health=source.health)
    assert source.reasons[:2] == ["", ""]
    assert "stuck" in source.reasons[-1]


def test_nothing_is_asked_of_a_step_that_is_at_work() -> None:
    asked: list[int] = []

    def step(contents: Sequence[Record], now: float) -> Result:
        if contents:
            time.sleep(0.05)
        asked.append(len(contents))
        return copy(contents, now)

    class Source(FakeSource):
        def poll(self) -> list[Record]:
            time.sleep(0.01)
            return super().poll()

    run(Source(records(1)), step, FakeSink(), turns=12, side_by_side=2)
    assert asked[0] == 1
    assert set(asked[1:]) == {0}


def test_a_signal_is_noted_and_the_turn_is_finished() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stopped = worker.on_sigterm()
        assert not stopped()

        def step(contents: Sequence[Record], now: float) -> Result:
            os.kill(os.getpid(), signal.SIGTERM)
            return copy(contents, now)

        source, sink = FakeSource(records(4), max_poll_records=2), FakeSink()
        worker.run("test", source, step, sink, stopped=stopped, dead_letter_limit=1)
        assert stopped()
        assert source.committed == {PLACE: 2}
        assert len(sink.written) == 2
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_dependency_that_stays_away_is_exit_75(caplog: pytest.LogCaptureFixture) -> None:
    def body() -> None:
        raise Unavailable("Kafka stayed away")

    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as exit:
        worker.main("test", body)
    assert exit.value.code == 75
    assert "Kafka stayed away" in caplog.text


def test_a_bug_is_not_caught() -> None:
    def body() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        worker.main("test", body)
