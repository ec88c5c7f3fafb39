"""Services as forks of one process: what they find imported, what they are to the system, how they end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from deploy.local.cli import DAEMONS

# Forks a module after importing others, as `crowdtone run` does; says how it ended.
MAIN = """
import os, sys
from pathlib import Path
from deploy.local import fork

folder, module, *imported = sys.argv[1:]
sys.path.insert(0, folder)
fork.preload(imported)
print(len(os.listdir("/proc/self/task")), "OPENBLAS_NUM_THREADS" in os.environ, flush=True)
log = Path(folder) / "log"
child = fork.fork("a_name_of_more_than_15", module, log, environment={"OF_THE_CHILD": "its own"})
assert "OF_THE_CHILD" not in os.environ
print(os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]))
"""


def _fork(folder: Path, code: str, *imported: str, module: str = "child") -> tuple[list[str], str]:
    """What the parent said, line by line, and what its child, which runs `code`, wrote to its log."""
    (folder / "child.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", MAIN, str(folder), module, *imported],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stderr == ""
    return done.stdout.splitlines(), (folder / "log").read_text()


def test_importing_every_service_starts_no_thread_and_a_child_computes_with_what_it_finds(
    tmp_path: Path,
) -> None:
    code = """
import sys
assert "torch" in sys.modules
import numpy, torch
torch.set_num_threads(2)
ones = torch.ones(600, 600)
print(int((ones @ ones).sum()), int((ones.numpy() @ ones.numpy()).sum()), torch.get_num_threads())
"""
    said, log = _fork(tmp_path, code, *(f"services.{name}.__main__" for name in DAEMONS))
    assert said == ["1 False", "0"]
    assert log.split() == ["216000000", "216000000", "2"]


def test_a_child_is_a_process_of_its_own(tmp_path: Path) -> None:
    code = """
import os, signal, sys
print(__name__, sys.stdin.read() == "", os.getsid(0) == os.getpid())
print(open("/proc/self/comm").read().strip(), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
print("to stderr", os.environ["OF_THE_CHILD"], file=sys.stderr)
"""
    said, log = _fork(tmp_path, code)
    assert said[-1] == "0"
    assert sorted(log.splitlines()) == [
        "__main__ True True",
        "a_name_of_more_ True",
        "to stderr its own",
    ]


def test_a_module_that_was_imported_runs_again_without_a_warning(tmp_path: Path) -> None:
    package = tmp_path / "service"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("print(__name__)")
    said, log = _fork(tmp_path, "", "service.__main__", module="service")
    assert (said[0], said[-1]) == ("service.__main__", "0")
    assert log == "__main__\n"


def test_how_a_child_ends(tmp_path: Path) -> None:
    for code, exit_code, words in (
        ("raise SystemExit(75)", "75", ""),
        ("raise SystemExit", "0", ""),
        ("raise SystemExit('no such file')", "1", "no such file\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "-9", ""),
    ):
        (tmp_path / "log").unlink(missing_ok=True)
        said, log = _fork(tmp_path, code)
        assert (said[-1], log) == (exit_code, words)


def test_a_child_that_raises_says_where(tmp_path: Path) -> None:
    said, log = _fork(tmp_path, "def f():\n    raise KeyError('a bug')\nf()")
    assert said[-1] == "1"
    assert "KeyError: 'a bug'" in log
    assert 'child.py", line 2, in f' in log
