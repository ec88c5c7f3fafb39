"""A wall clock of the tests' own: `clock.c`, compiled, and the file that moves it."""

from __future__ import annotations

import mmap
import struct
import subprocess
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("clock.c")


class WallClock:
    """The wall clock of each process that is started with `env`; it lives in `folder`.

    At first it tells the true time. Raises FileNotFoundError where there is no gcc.
    """

    def __init__(self, folder: Path) -> None:
        library, file = folder / "clock.so", folder / "clock-offset"
        self._library = library
        gcc = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([*gcc, "-o", str(library), str(SOURCE), "-ldl"], check=True)
        file.write_bytes(struct.pack("=q", 0))
        with file.open("r+b") as opened:
            self._offset_s = memoryview(mmap.mmap(opened.fileno(), 8)).cast("q")
        self.env: Final = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(file)}

    def set(self, seconds: int) -> None:
        """From now on it is so many seconds ahead of the true time; negative: behind."""
        self._offset_s[0] = seconds

    def rules(self, pid: int) -> bool:
        """Whether this process has it."""
        return str(self._library) in Path(f"/proc/{pid}/maps").read_text()
