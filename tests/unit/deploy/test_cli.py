"""Which processes `crowdtone run ...` means."""

from __future__ import annotations

import pytest

from deploy.local.cli import DAEMONS, metrics_port, modules_of


def test_all_is_every_daemon() -> None:
    assert modules_of(["all"]) == {name: f"services.{name}" for name in DAEMONS}


def test_a_number_means_so_many_processes_of_it() -> None:
    assert modules_of(["text-encoder=3", "fusion"]) == {
        "text_encoder": "services.text_encoder",
        "text_encoder.2": "services.text_encoder",
        "text_encoder.3": "services.text_encoder",
        "fusion": "services.fusion",
    }


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
        modules_of(words)


def test_each_process_has_its_metrics_on_a_port_of_its_own() -> None:
    ports = [metrics_port(9_100, number)["CROWDTONE_WORKER_METRICS_PORT"] for number in range(3)]
    assert ports == ["9100", "9101", "9102"]
    assert metrics_port(0, 1) == {}
