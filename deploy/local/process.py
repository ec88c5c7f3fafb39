"""Child processes that a later command can find again.

A pid alone is not an identity: the kernel reuses it. A `Process` is a pid with the moment it started, and
signals go through a pidfd that was opened before that moment was checked, so a stranger with a recycled pid
is never signalled. Linux only. Knows nothing of servers or services.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """One process of one boot. start_ticks: clock ticks from boot to its start, as /proc/PID/stat has it."""

    pid: int
    start_ticks: int
    boot_id: str


def boot_id() -> str:
    """The kernel's random name for this boot; start_ticks of different boots must not be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def parse_stat(stat: str) -> tuple[str, int]:
    """State letter and start_ticks from the text of /proc/PID/stat (proc_pid_stat(5), fields 3 and 22).

    The command name, field 2, may hold spaces and parentheses: fields are counted from its last ')'.
    """
    fields = stat[stat.rindex(")") + 2 :].split()
    return fields[0], int(fields[19])


def identify(pid: int) -> Process | None:
    """The live process with this pid, or None where there is none (a zombie is not alive)."""
    try:
        state, start_ticks = parse_stat(Path(f"/proc/{pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else Process(pid, start_ticks, boot_id())


def is_alive(process: Process) -> bool:
    return identify(process.pid) == process


def spawn(
    argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, dies_with_us: bool = False
) -> Process:
    """Start `argv` in its own session, output appended to `log`.

    Its own session: Ctrl-C in our terminal does not reach it; we decide who is told.
    env: added to ours. dies_with_us: it gets SIGTERM when the thread that called this ends, even by kill -9
    (PR_SET_PDEATHSIG); without it the child outlives us, to be found again.
    Raises FileNotFoundError when the program does not exist.
    """
    # setpriv(1), because code between fork and exec is unsafe once there are threads.
    command = _with_parent_death_signal(argv) if dies_with_us else list(argv)
    if shutil.which(argv[0]) is None:
        raise FileNotFoundError(f"no program {argv[0]!r}")
    log.parent.mkdir(parents=True, exist_ok=True)
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    # Not subprocess: its Popen objects insist on being waited for, and these children outlive the command.
    pid = os.posix_spawnp(
        command[0],
        command,
        {**os.environ, **(env or {})},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        # Python ignores these, and what is ignored stays ignored after exec.
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )
    return identify_child(pid)


def identify_child(pid: int) -> Process:
    """Our child with this pid. One that has ended already has it until we reap it, so it is no stranger's."""
    _, start_ticks = parse_stat(Path(f"/proc/{pid}/stat").read_text())
    return Process(pid, start_ticks, boot_id())


def _with_parent_death_signal(argv: Sequence[str]) -> list[str]:
    # One setpriv, not two: a change of user clears the parent death signal that was set before it.
    rest = argv[1:] if argv[0] == "setpriv" else ["--", *argv]
    return ["setpriv", "--pdeathsig", "TERM", *rest]


def exit_code(process: Process) -> int | None:
    """How our child ended, negative for a signal as in subprocess; None while it runs. Reaps it: ask once."""
    pid, status = os.waitpid(process.pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def send(process: Process, signal_number: signal.Signals) -> bool:
    """Signal exactly this process. Returns False when it no longer runs."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        # The pidfd names whoever had the pid when it was opened; only now is checking the identity no race.
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(pidfd, signal_number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def wait_gone(process: Process, timeout_s: float) -> bool:
    """Wait until it no longer runs; False when it does after timeout_s. Reaps it where it is our child."""
    deadline = time.monotonic() + timeout_s
    while is_alive(process):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    with contextlib.suppress(ChildProcessError):  # somebody else's child, or reaped already
        os.waitpid(process.pid, os.WNOHANG)
    return True


def wait_reaped(pid: int, timeout_s: float) -> None:
    """Wait while `pid` is a zombie: dead, but its parent has not asked how it ended."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            state, _ = parse_stat(Path(f"/proc/{pid}/stat").read_text())
        except (FileNotFoundError, ProcessLookupError):
            return
        if state not in "ZX":
            return
        time.sleep(0.02)


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log, at most 64 KiB; empty when there is no such file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
