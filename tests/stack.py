"""The whole system as a user has it, for tests: every command in its own process, every answer over the API.

Nothing of the application is imported here but its contract, `protos`.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from protos.crowdtone.v1 import api_pb2, api_pb2_grpc

CROWDTONE: Final = (sys.executable, "-m", "services.cli")
ROOT: Final = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def open_folder() -> Iterator[Path]:
    """An empty folder that another user can walk to: as root, Postgres runs as one.

    None of pytest's: each pytest that starts closes the folder above them to others, and a server that has
    its data there ends.
    """
    with tempfile.TemporaryDirectory(prefix="crowdtone-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextmanager
def services(
    command: Sequence[str], env: Mapping[str, str], log: Path, *, drain_s: float = 90.0
) -> Iterator[api_pb2_grpc.CrowdtoneServiceStub]:
    """Run `command`, which supervises services, and wait for their API; at the end all of them must drain.

    env: with CROWDTONE_API_ADDRESS, where the API will listen.
    """
    with log.open("ab") as output:
        supervisor = subprocess.Popen(command, env=env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        with grpc.insecure_channel(env["CROWDTONE_API_ADDRESS"]) as channel:
            grpc.channel_ready_future(channel).result(timeout=300)
            yield api_pb2_grpc.CrowdtoneServiceStub(channel)
    finally:
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(timeout=drain_s) == 0, "the services did not drain"


@dataclass
class Pipeline:
    """A running system: its environment, its API, and the commands a user would type."""

    env: dict[str, str]
    directory: Path
    api: api_pb2_grpc.CrowdtoneServiceStub
    produced: int = 0

    @property
    def log(self) -> Path:
        """What the supervisor of the services said."""
        return self.directory / "services.log"

    def crowdtone(self, *arguments: str, exit_code: int = 0) -> str:
        """Run one command to its end; its standard output."""
        done = subprocess.run(
            [*CROWDTONE, *arguments], env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == exit_code, (
            f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout

    def ingest(self, *arguments: str) -> dict[str, int]:
        """`crowdtone ingest ... --json`: its counts."""
        counts: dict[str, int] = json.loads(self.crowdtone("ingest", *arguments, "--json"))
        self.produced += counts["produced"]
        return counts

    def posts(self, which: api_pb2.TrendFilter | None = None) -> dict[str, Any]:
        """Every scored post by its id, through all pages; all posts, or those of a filter."""
        found: dict[str, Any] = {}
        token = ""
        while True:
            page = self.api.ListPosts(
                api_pb2.ListPostsRequest(
                    filter=which or api_pb2.TrendFilter(topic="*"), page_size=500, page_token=token
                )
            )
            for scored in page.posts:
                assert scored.post.post_id not in found, "a page showed a post twice"
                found[scored.post.post_id] = scored
            token = page.next_page_token
            if not token:
                return found

    def wait_for_verdicts(self, timeout_s: float = 600.0) -> dict[str, Any]:
        """Until every post ever produced here has its complete verdict; all posts by id."""

        def done() -> dict[str, Any] | None:
            posts = self.posts()
            complete = sum(scored.sentiment.complete for scored in posts.values())
            return posts if complete >= self.produced else None

        posts: dict[str, Any] = self.wait(done, f"{self.produced} complete verdicts", timeout_s)
        return posts

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float) -> Any:
        """The first true value of `condition`, asked twice a second."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
            time.sleep(0.5)
        pytest.fail(
            f"no {what} within {timeout_s:.0f} s; the services' log ends:\n{self.log.read_text()[-6000:]}"
        )

    def services(self) -> dict[str, Any]:
        """The newest report of each service."""
        reports = self.api.ListServices(api_pb2.ListServicesRequest()).services
        return {report.service: report for report in sorted(reports, key=lambda r: r.start_time.seconds)}

    def pid(self, service: str) -> int:
        """The process that reports as `service`; 0 while none does."""
        report = self.services().get(service)
        return int(report.instance.rpartition(":")[2]) if report else 0
