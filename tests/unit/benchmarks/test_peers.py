"""A peer that cannot be had is told with the reason; nobody's figure is made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import peers


@pytest.mark.parametrize("file", sorted(peers.REQUIREMENTS.glob("*.txt")), ids=lambda file: file.stem)
def test_every_version_of_a_peer_is_pinned(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line]
    assert len(lines) > 20
    assert [line for line in lines if "==" not in line] == []


def test_what_cannot_be_installed_is_missing_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "infinity.txt").write_text(f"nothing @ {(tmp_path / 'nowhere.whl').as_uri()}\n")
    monkeypatch.setattr(peers, "REQUIREMENTS", tmp_path)
    with pytest.raises(peers.Missing, match=r"cannot be installed: .*nowhere"):
        peers._environment(tmp_path, "infinity")
