"""`crowdtone` imports only the command that runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from services.cli import ENTRIES, Entry, build, load, wanted_command


@pytest.mark.parametrize(
    ("argv", "environment_words", "expected"),
    [
        ([], "", None),
        (["--help"], "", None),
        (["stack", "up"], "", "stack"),
        (["--help", "run"], "", "run"),
        ([], "crowdtone ing", "ing"),
        ([], "crowdtone", None),
    ],
)
def test_wanted_command(argv: list[str], environment_words: str, expected: str | None) -> None:
    assert wanted_command(argv, environment_words) == expected


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(build(None), ["--help"])
    assert result.exit_code == 0
    assert [entry.name for entry in ENTRIES if entry.name not in result.output] == []


def test_an_unknown_command_is_refused() -> None:
    assert CliRunner().invoke(build("nonsense"), ["nonsense"]).exit_code == 2


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_command_exists_and_explains_itself(entry: Entry) -> None:
    result = CliRunner().invoke(build(entry.name), [entry.name, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_light_commands_never_load_torch() -> None:
    heavy = {"train", "evaluate", "predict"}
    light = [entry.name for entry in ENTRIES if entry.name not in heavy]
    program = (
        f"import sys; from services.cli import build; [build(name) for name in {[None, *light]!r}]; "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"


def test_commands_are_imported_by_the_names_they_are_listed_with() -> None:
    assert all(callable(load(entry)) for entry in ENTRIES)
