"""A process is a pid with its start: a stranger with a recycled pid is not it."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from deploy.local.process import (
    Process,
    exit_code,
    identify,
    is_alive,
    parse_stat,
    send,
    spawn,
    tail,
    wait_gone,
    wait_reaped,
)


def test_a_command_name_with_spaces_and_brackets_does_not_shift_the_fields() -> None:
    stat = "42 (a b) c) S 1 42 42 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 987654 1000 10"
    assert parse_stat(stat) == ("S", 987654)


def test_we_are_alive() -> None:
    ourselves = identify(os.getpid())
    assert ourselves is not None
    assert is_alive(ourselves)


def _recycled() -> Process:
    ourselves = identify(os.getpid())
    assert ourselves is not None
    return dataclasses.replace(ourselves, start_ticks=ourselves.start_ticks - 1)


def test_a_recycled_pid_is_a_stranger_and_is_not_signalled() -> None:
    stranger = _recycled()  # our own pid: were it signalled, this test would end here
    assert not is_alive(stranger)
    assert not send(stranger, signal.SIGKILL)


def test_the_same_pid_and_ticks_of_another_boot_is_a_stranger() -> None:
    ourselves = identify(os.getpid())
    assert ourselves is not None
    assert not is_alive(dataclasses.replace(ourselves, boot_id="another"))


def test_a_child_appends_both_its_outputs_to_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "child.log"
    for word in ("first", "second"):
        child = spawn(["sh", "-c", 'echo "$WORD"; echo err >&2'], log, env={"WORD": word})
        assert wait_gone(child, 10)
    assert log.read_text() == "first\nerr\nsecond\nerr\n"


def test_a_child_is_signalled_and_reaped(tmp_path: Path) -> None:
    child = spawn(["sleep", "60"], tmp_path / "log")
    assert send(child, signal.SIGTERM)
    assert wait_gone(child, 10)
    assert not send(child, signal.SIGTERM)
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, 0)  # reaped already


def test_waiting_for_what_does_not_end_takes_no_longer_than_asked(tmp_path: Path) -> None:
    child = spawn(["sleep", "60"], tmp_path / "log")
    assert not wait_gone(child, 0.05)
    send(child, signal.SIGKILL)
    assert wait_gone(child, 10)


def test_exit_codes_are_those_of_the_child(tmp_path: Path) -> None:
    child = spawn(["sh", "-c", 'exit "$CODE"'], tmp_path / "log", env={"CODE": "7"})
    code = None
    while code is None:
        code = exit_code(child)
    assert code == 7


def test_a_child_is_in_a_session_of_its_own_and_takes_the_default_signals(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = spawn(["sh", "-c", "cat /proc/$$/stat; grep SigIgn /proc/$$/status"], log)
    assert wait_gone(child, 10)
    stat, ignored = log.read_text().splitlines()
    assert int(stat.split(") ")[1].split()[3]) == child.pid  # session
    assert int(ignored.split()[1], 16) & 1 << (signal.SIGPIPE - 1) == 0


def test_a_program_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        spawn(["no-such-program"], tmp_path / "log", dies_with_us=True)


@pytest.mark.parametrize(
    ("text", "lines", "expected"),
    [
        ("", 3, ""),
        ("a\nb\nc\nd\n", 2, "c\nd"),
        ("no newline at the end", 2, "no newline at the end"),
        ("x" * 70_000 + "\nlast\n", 1, "last"),
    ],
)
def test_tail(tmp_path: Path, text: str, lines: int, expected: str) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    assert tail(log, lines) == expected


def test_the_tail_of_a_log_that_was_never_written_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "none") == ""


def test_a_zombie_is_waited_for_until_its_parent_reaps_it() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # dead, and still in the table
    reap = threading.Timer(0.3, os.waitpid, (child, 0))
    reap.start()
    began = time.monotonic()
    wait_reaped(child, 10)
    assert 0.2 < time.monotonic() - began < 5
    assert not Path(f"/proc/{child}").exists()
    reap.join()


def test_what_lives_is_not_waited_for() -> None:
    began = time.monotonic()
    wait_reaped(os.getpid(), 10)
    assert time.monotonic() - began < 1
