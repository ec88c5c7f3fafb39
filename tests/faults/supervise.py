"""`python -m tests.faults.supervise SERVICE...`: services forked from one process that has imported them all.

A service is started again for ever, unlike under `crowdtone run`, which gives up after six quick failures in
a row: twenty kills are the point here. A file NAME.N in the folder `extra` asks for one more process of a
service, which is not started again.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deploy.local.fork import PR_SET_PDEATHSIG, fork, preload

TICK_S: Final = 0.1
RESTART_S: Final = 0.3
DRAIN_S: Final = 80.0


def main(names: Sequence[str]) -> int:
    """Run until SIGTERM, then let everything drain; 0 when all ended with 0 or were still starting."""
    directory = Path(os.environ["CROWDTONE_LOCAL_DIR"])
    requests = directory / "extra"
    requests.mkdir(exist_ok=True)
    # With whoever runs the faults, kill -9 included; the services end with it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    preload(f"services.{name}.__main__" for name in names)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    running = {_start(name, directory): name for name in names}
    restarts: dict[str, float] = {}
    while not stopped:
        for pid, code in _ended(running):
            name = running.pop(pid)
            extra = "." in name
            print(f"{name} {'ended' if extra and code == 0 else 'failed'} ({_how(code)})", flush=True)
            if not extra:
                restarts[name] = time.monotonic() + RESTART_S
        for name in [name for name, at in restarts.items() if at <= time.monotonic()]:
            del restarts[name]
            running[_start(name, directory)] = name
        for request in list(requests.iterdir()):
            request.unlink()
            running[_start(request.name, directory)] = request.name
        time.sleep(TICK_S)
    return _drain(running)


def _start(name: str, directory: Path) -> int:
    """Fork a service, named NAME or NAME.N; its pid."""
    log = directory / "logs" / f"{name}.log"
    child = fork(name, f"services.{name.partition('.')[0]}", log)
    print(f"{name} started (pid {child.pid}, {log})", flush=True)
    return child.pid


def _ended(running: dict[int, str]) -> list[tuple[int, int]]:
    found = []
    for pid in running:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


def _drain(running: dict[int, str]) -> int:
    for pid in running:
        os.kill(pid, signal.SIGTERM)
    worst, deadline = 0, time.monotonic() + DRAIN_S
    while running and time.monotonic() < deadline:
        for pid, code in _ended(running):
            print(f"{running.pop(pid)} ended ({_how(code)})", flush=True)
            worst = worst or int(code not in (0, -signal.SIGTERM))
        time.sleep(TICK_S)
    for pid, name in running.items():
        print(f"{name} did not drain and was killed", flush=True)
        os.kill(pid, signal.SIGKILL)
    return worst or int(bool(running))


def _how(code: int) -> str:
    return f"exit {code}" if code >= 0 else signal.Signals(-code).name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
