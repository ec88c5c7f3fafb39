"""What a piece of work used of the machine: processor, memory, and the GPU where there is one."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import threading
import time
from types import TracebackType
from typing import Self

from benchmarks.figures import cpu_s

MIB = 1024 * 1024


class Usage:
    """Measures from `with` to its end: this process with its children, and the whole GPU."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._gpu: list[tuple[float, float]] = []
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._began, self._cpu_began = time.perf_counter(), cpu_s(os.getpid())
        if shutil.which("nvidia-smi"):
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._seconds = time.perf_counter() - self._began
        self._cpu_used_s = cpu_s(os.getpid()) - self._cpu_began
        self._over.set()
        if self._sampler.is_alive():
            self._sampler.join()

    def figures(self) -> dict[str, object]:
        """cpu_cores_used: mean; below the machine's where something else ran on it too.

        peak_rss_mib: of this process since it began, its loading included. gpu_*: None without a GPU.
        """
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "cpu_cores_used": round(self._cpu_used_s / self._seconds, 2),
            "peak_rss_mib": round(peak_kib * 1024 / MIB),
            "gpu_busy_share": round(sum(busy for busy, _ in self._gpu) / len(self._gpu), 3)
            if self._gpu
            else None,
            "gpu_memory_mib": round(max(memory for _, memory in self._gpu)) if self._gpu else None,
        }

    def _sample(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        while not self._over.wait(0.2):
            line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
            busy, memory = map(float, line.split(","))
            self._gpu.append((busy / 100, memory))
