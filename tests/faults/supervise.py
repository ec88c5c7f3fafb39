"""`python -m tests.faults.supervise SERVICE...`: services forked from one process that has imported them all.

Importing torch takes a service seconds, on busy cores half a minute: 20 kills would measure that and little
else. A fork of a process that has imported everything and started nothing is the same service a blink after
it was killed. It is started again for ever, unlike under `crowdtone run`, which gives up after six quick
failures in a row. A file NAME.N in the folder `extra` asks for one more process of a service, which is not
started again.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

TICK_S: Final = 0.1
RESTART_S: Final = 0.3
DRAIN_S: Final = 80.0
PR_SET_PDEATHSIG: Final = 1  # prctl(2)


def main(names: Sequence[str]) -> int:
    """Run until SIGTERM, then let everything drain; 0 when all ended with 0 or were still starting."""
    directory = Path(os.environ["CROWDTONE_LOCAL_DIR"])
    requests = directory / "extra"
    requests.mkdir(exist_ok=True)
    _end_with_parent()
    for name in names:
        importlib.import_module(f"services.{name}.__main__")
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
    pid = os.fork()
    if pid:
        print(f"{name} started (pid {pid}, {log})", flush=True)
        return pid
    _become(name.partition(".")[0], log)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _become(service: str, log: Path) -> NoReturn:
    """What `python -m services.SERVICE` would do, in this process."""
    code = 1
    try:
        _end_with_parent()
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = [service]
        runpy.run_module(f"services.{service}", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
