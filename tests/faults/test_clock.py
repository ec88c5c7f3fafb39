"""The wall clock that the fault `clock` moves: it moves, and nothing else does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.faults.clock import WallClock

HOUR_S = 3600

# Says what it sees, then waits in every way that something in the services does, on either clock.
CHILD = """
import ctypes, datetime, json, os, sys, threading, time

def timed(wait):
    began = time.monotonic()
    wait()
    return time.monotonic() - began

def look():
    libc = ctypes.CDLL(None)
    class Timespec(ctypes.Structure):
        _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
    def at(clock, seconds):
        return ctypes.byref(Timespec(*divmod(time.clock_gettime_ns(clock) + int(seconds * 1e9), 10**9)))
    def room():
        return ctypes.create_string_buffer(128)
    def condition(clock):
        attributes, cond, mutex = room(), room(), room()
        libc.pthread_condattr_init(attributes)
        libc.pthread_condattr_setclock(attributes, clock)
        libc.pthread_cond_init(cond, attributes)
        libc.pthread_mutex_lock(mutex)
        return cond, mutex
    wall, steady = time.CLOCK_REALTIME, time.CLOCK_MONOTONIC
    semaphore, word = room(), ctypes.c_int(0)
    libc.sem_init(semaphore, 0, 0)
    SYS_futex = {"x86_64": 202, "aarch64": 98}[os.uname().machine]
    WAIT_BITSET, CLOCK_REALTIME = 9, 256
    def futex(clock, operation):
        numbers = [ctypes.c_long(each) for each in (SYS_futex, operation)]
        libc.syscall(numbers[0], ctypes.byref(word), numbers[1], ctypes.c_long(0), at(clock, .05), None,
                     ctypes.c_long(0xffffffff))
    return {
        "clocks": [time.time(), time.clock_gettime(wall), time.clock_gettime(5),
                   float(libc.time(None)), datetime.datetime.now().timestamp()],
        "monotonic": time.monotonic(),
        "waits": {
            "sleep": timed(lambda: time.sleep(.05)),
            "lock": timed(lambda: threading.Semaphore(0).acquire(timeout=.05)),
            "event": timed(lambda: threading.Event().wait(.05)),
            "sem_timedwait": timed(lambda: libc.sem_timedwait(semaphore, at(wall, .05))),
            "sem_clockwait": timed(lambda: libc.sem_clockwait(semaphore, wall, at(wall, .05))),
            "sem_clockwait, steady": timed(lambda: libc.sem_clockwait(semaphore, steady, at(steady, .05))),
            "cond": timed(lambda: libc.pthread_cond_timedwait(*condition(wall), at(wall, .05))),
            "cond, steady": timed(lambda: libc.pthread_cond_timedwait(*condition(steady), at(steady, .05))),
            "cond_clockwait": timed(
                lambda: libc.pthread_cond_clockwait(*condition(wall), wall, at(wall, .05))),
            "futex": timed(lambda: futex(wall, WAIT_BITSET | CLOCK_REALTIME)),
            "futex, steady": timed(lambda: futex(steady, WAIT_BITSET)),
        },
    }

for line in sys.stdin:
    print(json.dumps(look()), flush=True)
"""


def test_the_wall_clock_moves_and_nothing_else_does(tmp_path: Path) -> None:
    clock = WallClock(tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env=os.environ | clock.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    impatience = threading.Timer(600, child.kill)  # instead of hours
    impatience.start()
    with child:
        for offset in (0, 5 * HOUR_S, -6 * HOUR_S, 0):
            clock.set(offset)  # while it runs
            began_s, monotonic_s = time.time(), time.monotonic()
            child.stdin.write("look\n")
            child.stdin.flush()
            seen = json.loads(child.stdout.readline())
            took_s = time.monotonic() - monotonic_s
            for wall in seen["clocks"]:
                # The coarse clocks are behind by up to a tick, time(2) by up to a second.
                assert began_s - 1.1 <= wall - offset <= began_s + took_s
            assert monotonic_s <= seen["monotonic"] <= monotonic_s + took_s
            for how, waited_s in seen["waits"].items():
                assert waited_s >= 0.049, (how, offset, seen["waits"])
        assert clock.rules(child.pid)
        assert not clock.rules(os.getpid())
        child.stdin.close()
    impatience.cancel()
    assert child.returncode == 0


def test_without_its_file_nothing_runs(tmp_path: Path) -> None:
    env = os.environ | WallClock(tmp_path).env | {"CLOCK_OFFSET_FILE": str(tmp_path / "none")}
    said = subprocess.run([sys.executable, "-c", "pass"], env=env, capture_output=True, check=False)
    assert said.returncode == 1
    assert b"CLOCK_OFFSET_FILE" in said.stderr
