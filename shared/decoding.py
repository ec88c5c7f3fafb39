"""Decoders of strangers' bytes, each in a process of its own with so much memory and so much time.

A picture that unpacks to gigabytes, or a codec that crashes on one, ends that process and not the service,
which starts another. The process has no secrets in its environment, can open neither file nor socket once it
has started, and talks through two pipes: bytes in, an array out, no pickles either way.
`python -m shared.decoding MODULE:FUNCTION ...` is that process; nobody but `Decoders` starts it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import queue
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidMessage

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]
Decode = Callable[[bytes], Array]
"""Raises InvalidMessage."""

MAX_REASON_CHARS: Final = 300
END_S: Final = 5.0
# What an array may consist of, so that no decoder that was taken over can make us read anything else.
DTYPES: Final = frozenset({"|u1", "<f4"})
# By the clock a content may take so many times its CPU time: machines are busy.
CLOCK_TIMES: Final = 20
# So many contents that took too long, in so many seconds, are no accident: until it is over, each gets a
# tenth of the time. Else whoever posts a few hundred of them holds a service up until its watchdog ends it.
SLOW_MANY: Final = 20
SLOW_S: Final = 300.0
# A request: how many bytes follow, and how long they may take. A reply: how many of JSON, then of array.
_REQUEST = struct.Struct("<Qd")
_REPLY = struct.Struct("<IQ")
_KEPT_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
_ENVIRONMENT: Final = {
    "OPENBLAS_NUM_THREADS": "1",
    # A process that only decodes has what it decodes at the top of its heap, and glibc would give that back
    # to the kernel after each picture to fault it in again: 6.1 instead of 3.8 ms of CPU.
    "MALLOC_TRIM_THRESHOLD_": str(16 * 1024 * 1024),
    "MALLOC_MMAP_THRESHOLD_": str(4 * 1024 * 1024),
}


class Decoders:
    """Some processes that all decode one way. Used from as many threads as there are processes, at best."""

    def __init__(
        self,
        factory: str,
        *arguments: float,
        processes: int,
        memory_bytes: int,
        cpu_s: float,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """factory: "module:function", which makes a `Decode` of the arguments; whatever that will ever import
        or open, the factory has.

        memory_bytes: of address space, on top of what the process has after its start.
        cpu_s: of CPU for one content; by the clock `CLOCK_TIMES` as long. max_bytes: of an array.
        """
        command = [sys.executable, "-m", __name__, factory]
        command += [str(memory_bytes), json.dumps(arguments)]
        self._cpu_s = cpu_s
        self._clock = clock
        self._slow_at_s: deque[float] = deque(maxlen=SLOW_MANY)
        self._lock = threading.Lock()
        self._max_bytes = max_bytes
        children = [_Child(command) for _ in range(processes)]
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        for child in children:
            self._idle.put(child)
        self.close = weakref.finalize(self, _close, children)

    def decode(self, content: bytes) -> Array:
        """What the decoder makes of it. Raises InvalidMessage with its reason, or why it was ended.

        Raises RuntimeError when a process does not even start: then it is the installation.
        """
        cpu_s = self._allowed_s()
        child = self._idle.get()
        try:
            for attempt in (1, 2):
                reply = child.ask(content, cpu_s, self._max_bytes)
                if reply is not None:
                    break
                status = child.end()
                if status in (-signal.SIGPROF, -signal.SIGALRM):
                    with self._lock:
                        self._slow_at_s.append(self._clock())
                    raise InvalidMessage(f"took more than {cpu_s:g} s to decode")
                how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
                log.warning("a decoder ended by %s on %d bytes, attempt %d", how, len(content), attempt)
            else:
                # Asked twice: once may be somebody else's doing, as the kernel's when memory is short.
                raise InvalidMessage(f"the decoder ended by {how} on it")
        finally:
            self._idle.put(child)
        if isinstance(reply, str):
            raise InvalidMessage(reply)
        return reply

    def _allowed_s(self) -> float:
        with self._lock:
            many = len(self._slow_at_s) == SLOW_MANY and self._clock() - self._slow_at_s[0] < SLOW_S
        return self._cpu_s / 10 if many else self._cpu_s


class _Child:
    """One process: started when it is first needed, and again when it has ended."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, content: bytes, cpu_s: float, max_bytes: int) -> Array | str | None:
        """The array, the reason why there is none, or None when the process ended."""
        process = self._process or self._start()
        try:
            _write(process.stdin.fileno(), _REQUEST.pack(len(content), cpu_s), content)  # type: ignore[union-attr]
            return _reply(process.stdout.fileno(), max_bytes)  # type: ignore[union-attr]
        except (EOFError, BrokenPipeError):
            return None

    def end(self) -> int:
        """Its exit status; negative: the signal that ended it."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.stdin.close()  # type: ignore[union-attr]
        process.stdout.close()  # type: ignore[union-attr]
        try:
            return process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:  # it sent nonsense and stayed
            process.kill()
            return process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=Path(__file__).parents[1],  # the import root
            env={name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ} | _ENVIRONMENT,
        )
        try:
            _reply(process.stdout.fileno(), 0)  # type: ignore[union-attr]
        except EOFError:
            raise RuntimeError(f"a decoder did not start, exit status {self.end()}; see above") from None
        return process


def _close(children: Sequence[_Child]) -> None:
    for child in children:
        child.end()


def _write(file: int, *parts: bytes | memoryview) -> None:
    for part in parts:
        view = memoryview(part).cast("B")
        while view:
            view = view[os.write(file, view) :]


def _read(file: int, length: int) -> bytearray:
    """Raises EOFError when it ends before."""
    content = bytearray(length)
    view = memoryview(content)
    while view:
        read = os.readv(file, [view])
        if not read:
            raise EOFError
        view = view[read:]
    return content


def _reply(file: int, max_bytes: int) -> Array | str:
    """Believed no further than needed: who sends it has just read what a stranger wrote.

    Raises EOFError when the process has ended, or sends what ours never would.
    """
    head_bytes, array_bytes = _REPLY.unpack(_read(file, _REPLY.size))
    if head_bytes > 64 * 1024 or array_bytes > max_bytes:
        raise EOFError
    head, content = _read(file, head_bytes), _read(file, array_bytes)
    try:
        told = json.loads(head)
        if "reason" in told:
            return str(told["reason"])[:MAX_REASON_CHARS]
        if told["dtype"] not in DTYPES:
            raise ValueError("dtype")
        return np.frombuffer(content, told["dtype"]).reshape(told["shape"])
    except (ValueError, TypeError, KeyError, RecursionError):  # the last of JSON thousands of brackets deep
        raise EOFError from None


def _child(factory: str, memory_bytes: int, arguments: Sequence[float]) -> None:
    """The process: reads contents, answers arrays, until nobody sends any more."""
    # A signal to the whole group is for the service, which drains; this ends when its input does.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    module, _, name = factory.partition(":")
    decode: Decode = getattr(importlib.import_module(module), name)(*arguments)
    _limit(memory_bytes)
    _answer(answers, {"reason": "started"})
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            length, cpu_s = _REQUEST.unpack(_read(0, _REQUEST.size))
            content = bytes(_read(0, length))
            # Unhandled, either ends the process wherever it is, in the depths of a codec too.
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            signal.setitimer(signal.ITIMER_REAL, cpu_s * CLOCK_TIMES)
            try:
                array = np.ascontiguousarray(decode(content))
                head: dict[str, Any] = {"dtype": array.dtype.str, "shape": array.shape}
            except InvalidMessage as error:
                array, head = None, {"reason": str(error)[:MAX_REASON_CHARS]}
            except MemoryError:
                array, head = None, {"reason": f"needs more than {memory_bytes >> 20} MiB to decode"}
            except Exception as error:
                array, head = None, {"reason": f"the decoder failed on it: {type(error).__name__}"}
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            del content
            _answer(answers, head, array)
            del array


def _answer(file: int, head: dict[str, Any], array: Array | None = None) -> None:
    text = json.dumps(head).encode()
    content = b"" if array is None else array.reshape(-1).data
    _write(file, _REPLY.pack(len(text), 0 if array is None else array.nbytes), text, content)


def _limit(memory_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    address_space = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # what is open stays open


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
