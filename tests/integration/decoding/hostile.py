"""What a codec may do that has met the wrong bytes. Runs in a decoder's process, which imports it by name."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shared.decoding import Array
from shared.errors import InvalidMessage


def decoder(first: float, second: float) -> Callable[[bytes], Array]:
    def decode(content: bytes) -> Array:
        match content.partition(b" ")[0]:
            case b"reason":
                raise InvalidMessage("as it was told: é")
            case b"long-reason":
                raise InvalidMessage("a" * 100_000)
            case b"bug":
                raise ZeroDivisionError
            case b"bomb":
                return np.ones(10**10, np.uint8)
            case b"segv":
                ctypes.string_at(0)
            case b"abort":
                os.abort()
            case b"exit":
                os._exit(3)
            case b"kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case b"sleep":
                time.sleep(60)
            case b"busy":
                sum(range(10**12))  # never leaves C
            case b"deaf":
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
            case b"chatter":
                print("not an answer", flush=True)
                os.write(1, b"\0" * 100)
            case b"open":
                Path("/etc/hostname").read_bytes()
            case b"write":
                Path("/var/tmp/crowdtone-hostile").write_bytes(b"")
            case b"connect":
                socket.create_connection(("127.0.0.1", 80))
            case b"fork":
                os.pipe()
            case b"environment":
                return np.frombuffer("\n".join(sorted(os.environ)).encode(), np.uint8)
            case b"pid":
                return np.frombuffer(os.getpid().to_bytes(8, "little"), np.uint8)
            case b"float64":
                return np.zeros(3)
            case b"large":
                return np.zeros(1001, np.uint8)
            case b"empty":
                return np.zeros((0, 3), np.float32)
            case b"strided":
                return np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
        return np.array([len(content), first, second], np.float32)

    return decode


def broken(*arguments: float) -> Callable[[bytes], Array]:
    raise RuntimeError("this installation is broken")
