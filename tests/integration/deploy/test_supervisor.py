"""The supervisor over real child processes: restarts, drains, gives up, and takes its children with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.local.process import Process, identify, is_alive, send, wait_gone

# Runs `supervisor.run` as `crowdtone run` does, with children and a policy of the test's own.
MAIN = """
import sys
from functools import partial
from pathlib import Path
from deploy.local import fork
from deploy.local.restarts import Policy
from deploy.local.supervisor import Program, run

folder, drain_s, *programs = sys.argv[1:]
for name, code in zip(programs[::2], programs[1::2]):
    (Path(folder) / f"{name}.py").write_text(code)
sys.path.insert(0, folder)
programs = [Program(name, partial(fork.fork, name, name)) for name in programs[::2]]
policy = Policy(first_wait_s=0.05, longest_wait_s=0.2, quick_s=5.0, quick_failures=3)
show = lambda name, line: print(f"{name}|{line}", flush=True)
sys.exit(run(programs, Path(folder) / "logs", show=show, policy=policy, drain_s=float(drain_s)))
"""

# Says its pid, then works until SIGTERM, after which it takes a moment to finish.
WORKER = """
import os, signal, sys, time
stopped = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
open(sys.argv[1] if len(sys.argv) > 1 else "pids", "a").write(f"{os.getpid()}\\n")
print("working", flush=True)
while not stopped:
    time.sleep(0.01)
time.sleep(0.2)
print("drained", flush=True)
"""
STUBBORN = WORKER.replace("while not stopped:", "while True:")
BROKEN = "import sys; print('the reason it cannot run'); sys.exit(3)"


class Supervisor:
    """A supervisor in a process of its own, and what it has said so far."""

    def __init__(self, folder: Path, drain_s: float, *programs: str) -> None:
        self.folder = folder
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", MAIN, str(folder), str(drain_s), *programs],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": os.getcwd()},
            )

    def said(self) -> str:
        return self.output.read_text()

    def wait_until_said(self, words: str, times: int = 1) -> None:
        deadline = time.monotonic() + 30
        while self.said().count(words) < times:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def pids(self) -> list[int]:
        path = self.folder / "pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


@contextmanager
def _supervisor(folder: Path, *programs: str, drain_s: float = 30.0) -> Iterator[Supervisor]:
    supervisor = Supervisor(folder, drain_s, *programs)
    try:
        yield supervisor
    finally:
        supervisor.popen.kill()
        supervisor.popen.wait()


def _process(pid: int) -> Process:
    process = identify(pid)
    assert process is not None
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_every_child(tmp_path: Path, number: signal.Signals) -> None:
    with _supervisor(tmp_path, "one", WORKER, "two", WORKER) as supervisor:
        supervisor.wait_until_said("|working", times=2)
        supervisor.popen.send_signal(number)
        assert supervisor.popen.wait(30) == 0, supervisor.said()
        assert supervisor.said().count("|drained") == 2
        assert (tmp_path / "logs" / "one.log").read_text() == "working\ndrained\n"


def test_a_child_that_was_still_starting_is_not_a_failure(tmp_path: Path) -> None:
    with _supervisor(
        tmp_path, "starting", "import time; print('up', flush=True); time.sleep(60)"
    ) as supervisor:
        supervisor.wait_until_said("starting|up")
        supervisor.popen.terminate()
        assert supervisor.popen.wait(30) == 0, supervisor.said()
        assert "starting ended (SIGTERM)" in supervisor.said()


def test_a_killed_child_is_started_again(tmp_path: Path) -> None:
    with _supervisor(tmp_path, "worker", WORKER) as supervisor:
        for killed in (1, 2):
            supervisor.wait_until_said("|working", times=killed)
            os.kill(supervisor.pids()[-1], signal.SIGKILL)
        supervisor.wait_until_said("|working", times=3)
        assert len(set(supervisor.pids())) == 3
        assert supervisor.said().count("worker failed (SIGKILL)") == 2
        supervisor.popen.terminate()
        assert supervisor.popen.wait(30) == 0


def test_one_that_keeps_failing_ends_the_run_with_its_reason_after_the_others_drained(tmp_path: Path) -> None:
    with _supervisor(tmp_path, "broken", BROKEN, "worker", WORKER) as supervisor:
        assert supervisor.popen.wait(30) == 1, supervisor.said()
        said = supervisor.said()
        assert "|broken failed 3 times in a row (exit 3)." in said
        assert str(tmp_path / "logs" / "broken.log") in said
        assert "|  the reason it cannot run" in said
        assert "worker|drained" in said or "worker|working" not in said  # it may not even have begun
        assert all(identify(pid) is None for pid in supervisor.pids())


def test_a_child_that_ends_well_is_done(tmp_path: Path) -> None:
    with _supervisor(tmp_path, "short", "print('done')") as supervisor:
        assert supervisor.popen.wait(30) == 0
        assert "short|done" in supervisor.said()
        assert supervisor.said().count("short started") == 1


def test_what_does_not_drain_in_time_is_killed_and_that_is_a_failure(tmp_path: Path) -> None:
    with _supervisor(tmp_path, "stubborn", STUBBORN, drain_s=0.3) as supervisor:
        supervisor.wait_until_said("stubborn|working")
        supervisor.popen.terminate()
        assert supervisor.popen.wait(30) == 1
        assert "stubborn did not drain before 0.3 s and was killed" in supervisor.said()


def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    with _supervisor(tmp_path, "stubborn", STUBBORN) as supervisor:
        supervisor.wait_until_said("stubborn|working")
        supervisor.popen.send_signal(signal.SIGINT)
        supervisor.wait_until_said("draining")
        supervisor.popen.send_signal(signal.SIGINT)
        assert supervisor.popen.wait(10) == 1
        assert "was killed" in supervisor.said()


def test_children_drain_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    with _supervisor(tmp_path, "worker", WORKER) as supervisor:
        supervisor.wait_until_said("worker|working")
        worker = _process(supervisor.pids()[0])
        supervisor.popen.kill()
        assert wait_gone(worker, 30)
        assert not is_alive(worker)
        assert (tmp_path / "logs" / "worker.log").read_text().endswith("drained\n")
        assert not send(worker, signal.SIGKILL)
