"""What a piece of work used of the machine: processor, memory, batches, and the GPU where there is one."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.figures import cpu_s

MIB: Final = 1024 * 1024
_BUDGET, _FILLED, _PADDING = (f"crowdtone_batch_{part}_total" for part in ("budget", "filled", "padding"))


class Gpu:
    """Looks at the GPU five times a second from `with` to its end; at nothing where there is none."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._seen: list[tuple[float, float]] = []
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        if shutil.which("nvidia-smi"):
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._over.set()
        if self._sampler.is_alive():
            self._sampler.join()

    def figures(self) -> dict[str, object]:
        """None without a GPU."""
        seen = self._seen
        return {
            "gpu_busy_share": round(sum(busy for busy, _ in seen) / len(seen), 3) if seen else None,
            "gpu_memory_mib": round(max(memory for _, memory in seen)) if seen else None,
        }

    def _sample(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        while not self._over.wait(0.2):
            line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
            busy, memory = map(float, line.split(","))
            self._seen.append((busy / 100, memory))


@contextmanager
def usage() -> Iterator[dict[str, object]]:
    """Measures from `with` to its end, this process with its children and the whole GPU; then the figures are
    there.

    cpu_cores_used: mean; below the machine's where something else ran on it too. peak_rss_mib: of this
    process since it began, its loading included.
    """
    figures: dict[str, object] = {}
    began, cpu_began = time.perf_counter(), cpu_s(os.getpid())
    with Gpu() as gpu:
        yield figures
    cpu_cores = (cpu_s(os.getpid()) - cpu_began) / (time.perf_counter() - began)
    figures |= {
        "cpu_cores_used": round(cpu_cores, 2),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB),
        **gpu.figures(),
    }


def memory_bytes(pid: int, field: str) -> int:
    """A field of /proc/PID/status (proc(5)): VmRSS what a process has in memory, VmHWM the most it had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} of {pid}")


def children_bytes(pid: int) -> int:
    """What the living children of a process have in memory: those that decode media."""
    total = 0
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += child.memory_info().rss
    return total


def batches(metrics: str) -> Counter[str]:
    """What a process has counted of the batches of its model, out of the text of its /metrics."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name in (_BUDGET, _FILLED, _PADDING):
                found[sample.name] += int(sample.value)
    return found


def shares(counted: Counter[str]) -> dict[str, float | None]:
    """How full batches were of their budget, and which share of what they held was padding."""
    budget, filled = counted[_BUDGET], counted[_FILLED]
    return {
        "batch_fill": round(filled / budget, 3) if budget else None,
        "padding_share": round(counted[_PADDING] / filled, 3) if filled else None,
    }
