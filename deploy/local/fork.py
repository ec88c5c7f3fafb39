"""Services as forks of one process that has imported them: what they share, torch above all, loads once.

Measured: all seven services import in 5.3 CPU seconds together, of which torch is 3.4, and in 21 one by one.
Nothing may have started a thread before a fork, because only the forking thread lives on in the child and a
lock that another held stays locked. Importing the services starts none (a test holds that).
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

from deploy.local.process import Process, identify_child

PR_SET_PDEATHSIG: Final = 1  # prctl(2)
PR_SET_NAME: Final = 15
OPENBLAS_THREADS: Final = "OPENBLAS_NUM_THREADS"


def preload(modules: Iterable[str]) -> None:
    """Import what children will run, so that they find it imported. Raises what the imports raise."""
    before = os.environ.get(OPENBLAS_THREADS)
    # numpy's OpenBLAS would start its threads on import. The models compute in torch, which has its own.
    os.environ[OPENBLAS_THREADS] = "1"
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        if before is None:
            del os.environ[OPENBLAS_THREADS]
        else:
            os.environ[OPENBLAS_THREADS] = before
    # A collection in a child would write to, and so copy, every page that holds one of these objects.
    gc.freeze()


def fork(
    name: str, module: str, log: Path, *, environment: Mapping[str, str] = MappingProxyType({})
) -> Process:
    """What `python -m module` would do, in a fork of this process; like `spawn(..., dies_with_us=True)`.

    name: what the process is called in `ps` and `top`, up to 15 characters of it.
    environment: variables that it gets besides ours.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # A signal that comes before the child has its own handlers waits; ours would only note it.
    signals = {signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    pid = os.fork()
    if pid == 0:
        os.environ.update(environment)
        _become(name, module, log, parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return identify_child(pid)


def _become(name: str, module: str, log: Path, parent: int) -> NoReturn:
    code = 1
    try:
        _detach(name, log, parent)
        code = _run(module)
    except BaseException:
        traceback.print_exc()
    finally:
        # Not the parent's way out: its `finally` blocks and its exit handlers are not ours to run.
        try:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code & 0xFF)


def _detach(name: str, log: Path, parent: int) -> None:
    """A session, files and signals of its own, and an end when the parent ends."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, file in ((0, nothing), (1, output), (2, output)):
        os.dup2(file, descriptor)
    os.close(nothing)
    os.close(output)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    libc.prctl(PR_SET_NAME, name.encode())
    if os.getppid() != parent:  # it ended before it could be asked for a signal
        os.kill(os.getpid(), signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})


def _run(module: str) -> int:
    """Run it as `__main__`; its exit code."""
    sys.argv = [module]
    sys.modules.pop(f"{module}.__main__", None)  # so far it was only imported
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    return 0
