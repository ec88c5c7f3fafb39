"""The cache of converted weights: whole or not there, built once, checked on every use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors

from shared.weights import intact, packaged, sha256_of, stored


def build(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")


def test_builds_once_and_returns_the_same_folder(tmp_path: Path) -> None:
    calls: list[Path] = []

    def counted(folder: Path) -> None:
        calls.append(folder)
        build(folder)

    first = stored(tmp_path, "model-1", counted)
    second = stored(tmp_path, "model-1", counted)
    assert first == second == tmp_path / "model-1"
    assert (first / "model.bin").read_bytes() == b"weights"
    assert len(calls) == 1


@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
def test_a_damaged_folder_is_built_again(tmp_path: Path, harm: str) -> None:
    weights = stored(tmp_path, "model-1", build) / "model.bin"
    if harm == "gone":
        weights.unlink()
    else:
        weights.write_bytes(b"weighty" if harm == "changed" else b"")
    assert not intact(weights.parent)
    assert (stored(tmp_path, "model-1", build) / "model.bin").read_bytes() == b"weights"


def test_a_failed_build_leaves_nothing_that_could_be_taken_for_weights(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        build(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        stored(tmp_path, "model-1", broken)
    assert [path.name for path in tmp_path.iterdir()] == [".model-1.lock"]


def test_services_that_start_together_build_once(tmp_path: Path) -> None:
    calls: list[Path] = []

    def counted(folder: Path) -> None:
        calls.append(folder)
        build(folder)

    with ThreadPoolExecutor(8) as threads:
        folders = set(threads.map(lambda _: stored(tmp_path, "model-1", counted), range(8)))
    assert len(folders) == len(calls) == 1


def test_weights_of_a_package_are_named_when_missing_or_wrong() -> None:
    installed = Path(safetensors.__file__)
    assert packaged("safetensors", "__init__.py", sha256_of(installed)) == installed
    with pytest.raises(FileNotFoundError, match="no_such_package"):
        packaged("no_such_package", "model.bin", "")
    with pytest.raises(FileNotFoundError, match=r"no\.bin"):
        packaged("safetensors", "no.bin", "")
    with pytest.raises(ValueError, match="expected 0000"):
        packaged("safetensors", "__init__.py", "0000")
