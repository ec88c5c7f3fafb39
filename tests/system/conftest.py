"""One system for the whole session: its servers and services, started by the project's own commands."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.stack import CROWDTONE, ROOT, Pipeline, free_port, open_folder, services


@pytest.fixture(scope="session")
def pipeline() -> Iterator[Pipeline]:
    with open_folder() as directory:
        env = os.environ | {
            "CROWDTONE_LOCAL_DIR": str(directory),
            "CROWDTONE_API_ADDRESS": f"127.0.0.1:{free_port()}",
            "CROWDTONE_DASHBOARD_PORT": str(free_port()),
        }
        try:
            with services([*CROWDTONE, "run", "all", "--up"], env, directory / "services.log") as api:
                system = Pipeline(env, directory, api)
                system.crowdtone("topics", "load", "demo/topics.json")
                yield system
        finally:
            subprocess.run([*CROWDTONE, "stack", "down"], env=env, cwd=ROOT, check=True, timeout=120)
