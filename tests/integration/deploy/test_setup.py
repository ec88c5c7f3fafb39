"""`deploy/setup.sh` where something cannot be installed: it names it, says what to do, and stops."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib.util import cache_from_source
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# What the script calls before it installs anything, but for redis-server.
TOOLS = ("bash", "cat", "cut", "dirname", "head", "id", "java", "mvn", "python3", "sed", "setpriv")


@pytest.fixture
def checkout() -> Iterator[Path]:
    """As much of a checkout as the script reads, where another user can read it too."""
    folder = Path(tempfile.mkdtemp(prefix="crowdtone-setup-"))
    folder.chmod(0o755)
    for name in ("deploy/setup.sh", "deploy/kafka/pom.xml", "requirements.lock", "pyproject.toml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "bin").mkdir()
    for tool in (*TOOLS, "sha256sum"):
        program = shutil.which(tool)
        assert program is not None
        (folder / "bin" / tool).symlink_to(program)
    yield folder
    shutil.rmtree(folder)


def _setup(checkout: Path) -> subprocess.CompletedProcess[str]:
    nobody = (
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"] if os.geteuid() == 0 else []
    )
    return subprocess.run(
        [*nobody, str(checkout / "bin" / "bash"), str(checkout / "deploy" / "setup.sh")],
        env={"PATH": str(checkout / "bin"), "HOME": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_root_it_says_what_root_has_to_install(checkout: Path) -> None:
    (checkout / "bin" / "apt-get").symlink_to("/usr/bin/apt-get")
    result = _setup(checkout)
    assert result.returncode == 1
    wanted = [line for line in result.stderr.splitlines() if "sudo apt-get install" in line]
    assert len(wanted) == 1
    assert "redis-server" in wanted[0].split()
    assert not (checkout / ".venv").exists()


def test_without_apt_it_says_what_it_needs(checkout: Path) -> None:
    result = _setup(checkout)
    assert result.returncode == 1
    assert "redis-server" in result.stderr
    assert "there is no apt-get" in result.stderr
    assert "Java 17" in result.stderr


@pytest.mark.parametrize(
    "package", ["torch", "torchaudio", "kafka/consumer", "sqlalchemy/engine", "alembic", "faust/app"]
)
def test_what_services_import_is_compiled(package: str) -> None:
    module = Path(sysconfig.get_path("purelib"), package, "__init__.py")
    assert module.exists()
    assert Path(cache_from_source(str(module))).exists(), (
        "deploy/setup.sh compiles it; else each start has to"
    )
