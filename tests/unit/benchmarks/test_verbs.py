"""`crowdtone bench`: every verb is there, and only the one that runs is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import VERBS, app
from services.cli import Entry


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_exists_and_explains_itself(verb: Entry) -> None:
    result = CliRunner().invoke(app, [verb.name, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.output


def test_help_names_the_verbs_without_importing_them() -> None:
    program = (
        "import sys; from benchmarks.__main__ import app\n"
        "try: app(['--help'])\nfinally: print('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    assert [verb.name for verb in VERBS if verb.name not in output] == []
    assert output.strip().endswith("False")


def test_an_unknown_verb_is_refused() -> None:
    assert CliRunner().invoke(app, ["nonsense"]).exit_code == 2
