"""Which processes `crowdtone run ...` means."""

from __future__ import annotations

import sys

import pytest

from deploy.local.cli import DAEMONS, programs_of


def _names(*words: str) -> list[str]:
    return [program.name for program in programs_of(list(words))]


def test_all_is_every_daemon() -> None:
    assert _names("all") == list(DAEMONS)


def test_a_number_means_so_many_processes_of_it() -> None:
    assert _names("text-encoder=3", "fusion") == [
        "text_encoder",
        "text_encoder.2",
        "text_encoder.3",
        "fusion",
    ]


def test_a_service_is_its_module() -> None:
    assert programs_of(["api"])[0].argv == (sys.executable, "-m", "services.api")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["ingest"], "no service 'ingest'"),  # a command, not a daemon
        (["fusion=0"], "from 1 to 64"),
        (["fusion="], "from 1 to 64"),
        (["fusion=x"], "from 1 to 64"),
        (["fusion", "fusion"], "each service once"),
        (["all", "api"], "each service once"),
    ],
)
def test_what_means_nothing_is_refused(words: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        programs_of(words)
