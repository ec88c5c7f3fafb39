"""The cache of converted weights: a folder per source and recipe, built once, checked on every use.

Knows no model. A build happens under a lock beside its target and arrives by one rename, so a reader sees a
whole folder or none, and two services that start together convert once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

DEFAULT_CACHE_DIR = Path("~/.cache/crowdtone")
SUMS = "SHA256SUMS"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces (about 1 GB/s a core)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def packaged(module: str, name: str, sha256: str) -> Path:
    """Path of a weights file that ships inside an installed package.

    Raises FileNotFoundError naming the package to install, ValueError when the file is not the one expected.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the weights ship in the Python package {module!r}, which is not installed")
    path = Path(spec.origin).parent / name
    if not path.is_file():
        raise FileNotFoundError(f"package {module!r} has no file {name!r}")
    if (found := sha256_of(path)) != sha256:
        raise ValueError(f"{path.name} of package {module!r} has SHA-256 {found}, expected {sha256}")
    return path


def stored(cache_dir: Path, name: str, build: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, built by `build(empty_folder)` when it is missing or damaged.

    name: must change with the source and with the recipe, e.g. "multilingual-e5-small-q4-3f9a-1".
    Returns a folder whose every file has just been checked against its SHA-256.
    """
    cache_dir = cache_dir.expanduser()
    folder = cache_dir / name
    if intact(folder):
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir / f".{name}.lock"):
        if intact(folder):  # another process built it while we waited for the lock
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache_dir))
        try:
            build(partial)
            files = sorted(path for path in partial.iterdir() if path.is_file())
            (partial / SUMS).write_text("".join(f"{sha256_of(path)}  {path.name}\n" for path in files))
            partial.chmod(0o755)
            os.rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def intact(folder: Path) -> bool:
    """Whether every file the folder lists is there with the SHA-256 it had when it was built."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
        return bool(lines) and all(
            sha256_of(folder / name) == sha for sha, name in (line.split("  ") for line in lines)
        )
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
