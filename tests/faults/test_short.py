"""The faults in short, for `make test`: everything a post passes through is killed, and no post is missing.

`make faults` is the whole of it.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.injections import MIX
from tests.faults.recount import Published
from tests.faults.run import run
from tests.faults.system import System


def test_killing_everything_loses_and_doubles_no_post(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    directory: Path = tmp_path_factory.mktemp("faults")
    with System(directory, ("text_encoder", "fusion", "api")) as system:
        row = run(
            system,
            MIX,
            posts=2_000,
            times=1,
            rate_per_s=100,
            chance=random.Random(7),
            published=Published(system.kafka_address),
            say=print,
        )
    assert row.holds, (row, capsys.readouterr().out)
    assert row.posts >= 2_000
