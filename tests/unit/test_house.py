"""The house keeps its own rules: the lock, the layout, the protos."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from kafka.record import util as kafka_records
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra),
]
LOCK = (ROOT / "requirements.lock").read_text()


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_the_lock_has_what_pyproject_asks_for(text: str) -> None:
    requirement = Requirement(text)
    locked = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", LOCK, re.MULTILINE)
    versions = [version for name, version in locked if name == canonicalize_name(requirement.name)]
    assert versions, "run make lock"
    assert all(requirement.specifier.contains(version) for version in versions), "run make lock"


def test_the_lock_has_a_hash_for_everything_and_names_no_host() -> None:
    entries = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) > 50
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in LOCK


def test_checksums_of_records_are_computed_in_c() -> None:
    # kafka-python falls back on Python without a word; each byte then costs 3,700 times as much.
    assert kafka_records.crc32c_c is not None


def test_the_console_script_is_ours() -> None:
    (script,) = entry_points(group="console_scripts", name="crowdtone")
    assert script.value == "services.cli:main"


def test_every_verb_of_the_makefile_explains_itself() -> None:
    makefile = (ROOT / "Makefile").read_text()
    verbs = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[0] for line in listed.splitlines()} == verbs
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == verbs


def test_ci_runs_what_a_developer_runs() -> None:
    assert "exec make check test" in (ROOT / ".ci" / "run").read_text()


def test_every_guarantee_names_tests_and_faults_that_exist() -> None:
    page = (ROOT / "docs" / "GUARANTEES.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 20
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text(), f"{path} has no {test}"
    faults = re.findall(r'Fault\(\s*"([\w-]+)"', (ROOT / "tests" / "faults" / "injections.py").read_text())
    assert len(faults) > 15
    listed = [
        name for names in re.findall(r"faults? (`[\w-]+`(?:, `[\w-]+`)*)", page) for name in names.split(", ")
    ]
    assert {name.strip("`") for name in listed} <= set(faults)


def test_every_defence_names_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 20
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text(), f"{path} has no {test}"
    section = page.split("## What stands in the way")[1].split("## What nothing here")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ")]
    defences = [row for row in rows if not row.startswith(("| attack |", "| --- |"))]
    assert len(defences) > 20
    assert [row for row in defences if "`tests/" not in row and "`make lint`" not in row] == []


def test_each_promise_has_something_that_shows_it() -> None:
    page = (ROOT / "docs" / "GUARANTEES.md").read_text()
    rows = page.split("## Arrow by arrow")[1].split("## What you may see")[0].splitlines()
    promises = [row for row in rows if row.startswith("|")][2:]
    assert len(promises) > 15
    assert [row for row in promises if "`tests/" not in row] == []
