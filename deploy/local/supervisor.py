"""Runs services as child processes of one command: starts, follows, restarts and drains them.

A child writes its own log file, so nothing it says is lost when we are killed; we only read along to show it.
Each gets SIGTERM from the kernel when we die, kill -9 included (PR_SET_PDEATHSIG), and then drains.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from deploy.local.process import Process, exit_code, send, tail
from deploy.local.restarts import GiveUp, Policy, after_exit

TICK_S = 0.1
KEPT_LOG_BYTES = 20 * 1024 * 1024


Show = Callable[[str, str], None]
"""Called with (name of a program, line of its output), and with ("", line) for what we say ourselves."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run under which name.

    start: called with its log, to which its output is appended; gives a child that gets SIGTERM when we die.
    """

    name: str
    start: Callable[[Path], Process]


class Following:
    """A log, read along. shown: bytes of it that were shown already; by default all that is there."""

    def __init__(self, log: Path, shown: int | None = None) -> None:
        self.log = log
        self.shown = shown if shown is not None else log.stat().st_size if log.exists() else 0

    def new_lines(self) -> list[str]:
        """Whole lines that were written since the last call."""
        try:
            with self.log.open("rb") as file:
                file.seek(self.shown)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self.shown += len(whole)
        return whole.decode("utf-8", "replace").splitlines()


class Child:
    """One program and the processes that ran it, one after the other."""

    def __init__(self, program: Program, log: Path) -> None:
        self.program = program
        self.log = log
        self.said = Following(log)
        self.process: Process | None = None
        self.started = 0.0
        self.start_at = 0.0  # when to start it next, while it has no process
        self.in_a_row = 0
        self.done = False


def run(
    programs: Sequence[Program],
    logs: Path,
    *,
    show: Show,
    policy: Policy | None = None,
    drain_s: float = 60.0,
) -> int:
    """Run the programs until they have all ended, or until SIGTERM or SIGINT, which is passed on as SIGTERM.

    One that ends other than with 0 is started again as `policy` says; when that gives up on one, the reason
    is shown and the others are drained. A second signal, or drain_s after the first, kills what is left.
    Must be called in the main thread. Returns 0 when every program ended well, else 1.
    """
    policy = policy or Policy()
    children = [Child(program, _fresh_log(logs / f"{program.name}.log")) for program in programs]
    failed = False
    drain_until: float | None = None
    with _signals() as received:
        while not all(child.done for child in children):
            now = time.monotonic()
            if drain_until is None and (received or failed):
                drain_until = now + drain_s
                _drain(children, show)
            if drain_until is not None and (len(received) > 1 or now > drain_until):
                failed |= _kill(children, show, "a second signal" if len(received) > 1 else f"{drain_s:g} s")
            for child in children:
                if child.process is None and not child.done and now >= child.start_at:
                    child.process = child.program.start(child.log)
                    child.started = now
                    show("", f"{child.program.name} started (pid {child.process.pid}, {child.log})")
                failed |= _follow(child, policy, now, drain_until is not None, show)
            time.sleep(TICK_S)
        for child in children:
            _show_new(child, show)
    return 1 if failed else 0


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT as a list that grows, instead of an end in the middle of something."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(child: Child, policy: Policy, now: float, draining: bool, show: Show) -> bool:
    """Show what it said and see whether it ended. Returns True when that is a failure for good."""
    code = None if child.process is None else exit_code(child.process)
    _show_new(child, show)
    if code is None:
        return False
    name, lived_s = child.program.name, now - child.started
    child.process = None
    child.done = draining or code == 0
    if child.done:
        show("", f"{name} ended ({_how(code)})")
        # Ended by our own SIGTERM: it was still starting, held nothing, and had no handler yet.
        return code not in (0, -signal.SIGTERM)
    verdict = after_exit(policy, lived_s, child.in_a_row)
    if isinstance(verdict, GiveUp):
        child.done = True
        show("", f"{name} failed {verdict.in_a_row} times in a row ({_how(code)}). {child.log} ends with:")
        for line in tail(child.log).splitlines():
            show("", f"  {line}")
        return True
    child.in_a_row, child.start_at = verdict.in_a_row, now + verdict.wait_s
    show("", f"{name} failed ({_how(code)}) after {lived_s:.0f} s; again in {verdict.wait_s:.1f} s")
    return False


def _drain(children: Sequence[Child], show: Show) -> None:
    show("", "draining: every service finishes what it holds; again to kill them")
    for child in children:
        if child.process is None:
            child.done = True  # it was waiting to be started again
        else:
            send(child.process, signal.SIGTERM)


def _kill(children: Sequence[Child], show: Show, why: str) -> bool:
    """Kill what still runs. Returns whether anything did."""
    left = [child for child in children if child.process is not None]
    for child in left:
        assert child.process is not None
        if send(child.process, signal.SIGKILL):
            show("", f"{child.program.name} did not drain before {why} and was killed")
    return bool(left)


def _show_new(child: Child, show: Show) -> None:
    for line in child.said.new_lines():
        show(child.program.name, line)


def _fresh_log(log: Path) -> Path:
    """The log to append to; a long one makes way for a new one, and the one before that is forgotten."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > KEPT_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    return log


def _how(code: int) -> str:
    return f"exit {code}" if code >= 0 else signal.Signals(-code).name
