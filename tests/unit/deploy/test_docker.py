"""docker-compose.yml describes the same system as the local stack, in words that our settings know."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import services
from deploy.local import kafka
from deploy.local.cli import DAEMONS
from shared import settings
from shared.topics import MAX_MESSAGE_BYTES

ROOT = Path(__file__).parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
# Read from the environment itself, before there are settings.
ALSO_KNOWN = {"CROWDTONE_SECRETS_DIR", "CROWDTONE_LOCAL_DIR"}


def _known_variables() -> set[str]:
    for _, name, is_package in pkgutil.iter_modules(services.__path__, "services."):
        if is_package and find_spec(f"{name}.settings"):
            importlib.import_module(f"{name}.settings")
    known, found = set(ALSO_KNOWN), settings.Settings.__subclasses__()
    while found:
        one = found.pop()
        found += one.__subclasses__()
        known |= {f"{one.model_config.get('env_prefix', '')}{field}".upper() for field in one.model_fields}
    return known


@pytest.mark.parametrize("name", ["docker-compose.yml", "deploy/docker/gpu.yml"])
def test_compose_files_are_valid(name: str) -> None:
    check = subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            str(ROOT / name),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_every_variable_is_one_that_our_settings_know() -> None:
    variables = {
        variable
        for service in COMPOSE["services"].values()
        for variable in service.get("environment", {})
        if variable.startswith("CROWDTONE_")
    }
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    variables |= {
        word.partition("=")[0]
        for line in dockerfile.splitlines()
        if line.startswith("ENV ")
        for word in line.split()
        if word.startswith("CROWDTONE_")
    }
    secrets = {name.upper() for name in COMPOSE["secrets"] if name.startswith("crowdtone_")}
    assert variables >= {"CROWDTONE_KAFKA_BOOTSTRAP_SERVERS", "CROWDTONE_CACHE_DIR"}
    assert (variables | secrets) - _known_variables() == set()


def test_every_daemon_is_there_and_runs_its_module() -> None:
    commands = {name: COMPOSE["services"][name]["command"] for name in DAEMONS}
    assert commands == {name: [f"services.{name}"] for name in DAEMONS}
    assert [name for name in DAEMONS if find_spec(f"services.{name}.__main__") is None] == []


def test_nothing_is_open_to_other_machines() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_the_broker_is_the_local_stack_s() -> None:
    broker = COMPOSE["services"]["kafka"]
    assert f"<kafka.version>{broker['image'].partition(':')[2]}</kafka.version>" in kafka.POM.read_text()
    assert broker["environment"]["KAFKA_MESSAGE_MAX_BYTES"] == str(MAX_MESSAGE_BYTES)
    local = kafka.properties(Path("data"), 1, 2)
    differ = {
        name
        for name, value in broker["environment"].items()
        if (key := name.removeprefix("KAFKA_").lower().replace("_", ".")) in local and local[key] != value
    }
    assert differ == {  # addresses and folders; all that rules behaviour is the same
        "KAFKA_LISTENERS",
        "KAFKA_ADVERTISED_LISTENERS",
        "KAFKA_CONTROLLER_QUORUM_VOTERS",
        "KAFKA_LOG_DIRS",
    }


def test_secrets_are_made_once_and_are_what_settings_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> dict[str, str]:
        subprocess.run(
            [str(ROOT / "deploy/docker/secrets.sh"), str(tmp_path / "s")], check=True, capture_output=True
        )
        return {path.name: path.read_text() for path in (tmp_path / "s").iterdir()}

    made = make()
    assert make() == made
    assert set(made) == set(COMPOSE["secrets"])
    monkeypatch.setenv("CROWDTONE_SECRETS_DIR", str(tmp_path / "s"))
    url = settings.PostgresSettings().url.get_secret_value()
    assert url == f"postgresql+psycopg2://crowdtone:{made['postgres_password']}@postgres:5432/crowdtone"
    assert made["redis_password"] in settings.RedisSettings().url.get_secret_value()
