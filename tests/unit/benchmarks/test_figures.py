"""CPU seconds of a process with children that come and go."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from benchmarks.figures import cpu_s


def test_a_child_that_ends_while_we_count_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    listed = psutil.Process(ended.pid)
    ended.wait()
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [listed])
    assert cpu_s(os.getpid()) > 0


def test_a_process_that_is_not_there_is_no_zero() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(psutil.NoSuchProcess):
        cpu_s(ended.pid)
