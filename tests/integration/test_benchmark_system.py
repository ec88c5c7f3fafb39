"""A benchmark's servers and services are real, its own, and gone afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from benchmarks import growth, load
from benchmarks.__main__ import app
from benchmarks.backlog import Service
from benchmarks.system import servers
from deploy.local import stack
from shared import db, heartbeat
from shared.e5 import E5, Floats, Reading
from tests.faults import models


def test_servers_are_there_for_a_with_and_gone_after_it() -> None:
    with servers(stack.POSTGRES, stack.REDIS) as on:
        with heartbeat.connect(on.redis) as client:
            assert client.ping()
        engine = db.engine(on.postgres)
        with engine.connect() as connection:
            assert connection.execute(sa.text("SELECT count(*) FROM posts")).scalar_one() == 0
        engine.dispose()
        processes = [Path(f"/proc/{on.pid(name)}") for name in ("postgres", "redis")]
        assert all(process.exists() for process in processes)
    assert not on.directory.exists()
    assert not any(process.exists() for process in processes)


def test_posts_go_from_kafka_to_postgres_and_each_figure_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = models.write_text_model(
        tmp_path / "text", [*{word: None for post in load.posts(200) for word in post.text.split()}]
    )
    models.write_fusion_model(tmp_path / "fusion", version)
    monkeypatch.setenv("CROWDTONE_TEXT_MODEL", str(tmp_path / "text"))
    monkeypatch.setenv("CROWDTONE_TEXT_ADAPTER", "none")
    monkeypatch.setenv("CROWDTONE_FUSION_MODEL", str(tmp_path / "fusion"))
    options = ["--text-only", "--posts", "60", "--per-s", "50", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, ["e2e", *options], catch_exceptions=False)
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["verify_holds"] is True
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p95_ms"] <= figures["latency_p99_ms"]
    assert 0 < figures["latency_to_classified_p50_ms"] < figures["latency_p50_ms"]
    # The tiny model takes hardly any of it.
    assert figures["latency_p50_ms"] / 2 < figures["latency_added_p50_ms"] < figures["latency_p50_ms"]
    assert 0 < figures["posts_per_s"] < 60
    assert 0 < figures["text_encoder_batch_fill"] <= 1
    assert 0 <= figures["text_encoder_padding_share"] < 1
    for name in ("text_encoder", "fusion"):
        assert figures[f"{name}_cpu_s"] >= 0
        assert figures[f"{name}_peak_rss_mib"] > 50
    assert figures["gpu_busy_share"] is None or 0 <= figures["gpu_busy_share"] <= 1


def test_what_waits_is_worked_off_and_the_memory_of_each_service_is_told() -> None:
    options = ["--service", "alerts", "--service", "fusion", "--posts", "300", "--json"]
    result = CliRunner().invoke(app, ["backlog", *options], catch_exceptions=False)
    figures = json.loads(result.stdout.splitlines()[-1])
    assert (figures["posts_stored"], figures["verify_holds"]) == (300, True)
    for name in ("fusion", "alerts"):
        assert figures[f"{name}_records_left"] == 0
        assert figures[f"{name}_peak_rss_mib"] > 50
        assert figures[f"{name}_peak_rss_of_children_mib"] == 0


def test_two_processes_share_a_backlog() -> None:
    took = growth.work_off(Service.fusion, 600, processes=2)
    assert took.wall_s > 0
    assert took.cpu_s > 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Texts that this process gives the model, by batch; 16 of them are those that int8 learns from."""
    sizes: list[int] = []
    start = E5.start

    def counted(e5: E5, readings: Sequence[Reading]) -> Callable[[], Floats]:
        sizes.append(len(readings))
        return start(e5, readings)

    monkeypatch.setattr(E5, "start", counted)
    return sizes


@pytest.mark.parametrize("options", [[], ["--no-model"]], ids=["model", "no model"])
def test_an_encoders_loop_is_measured_with_its_model_and_without(
    options: list[str], asked: list[int]
) -> None:
    given = ["encode", "--posts", "150", "--rounds", "1", "--device", "cpu", "--json", *options]
    result = CliRunner().invoke(app, given, catch_exceptions=False)
    figures = json.loads(result.stdout)
    assert figures["posts_per_s"] > 0
    assert figures["batch_ms_p50"] > 0
    if options:
        assert sum(asked) < 150
        assert "ratio_to_bare_loop" not in figures
    else:
        assert sum(asked) >= 2 * 150  # the round that warms up, and one
        assert 0 < figures["ratio_to_bare_loop"] < 10


def test_an_encoders_load_is_shared_among_processes(asked: list[int]) -> None:
    given = ["encode", "--posts", "64", "--rounds", "1", "--device", "cpu", "--processes", "2", "--json"]
    result = CliRunner().invoke(app, given, catch_exceptions=False)
    figures = json.loads(result.stdout)
    assert (figures["posts"], figures["processes"]) == (64, 2)
    assert sum(asked) < 64, "the posts are other processes'"
    assert figures["ratio_to_bare_loop"] > 0
    assert 0 < figures["batch_fill"] <= 1, "what the processes saw is told"
    assert "round 1 of 1" in result.stderr


def test_only_the_text_encoder_is_measured_without_its_model() -> None:
    result = CliRunner().invoke(app, ["encode", "--no-model", "--modality", "image"])
    assert result.exit_code == 2
    assert "for texts" in result.output
