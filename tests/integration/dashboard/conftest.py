"""The page as people have it: API and dashboard as processes, real Postgres, real Redis, a real Chromium.

Verdicts are written by fusion's own store, so the trends are the ones the page will meet.
"""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from deploy.local import stack as local_stack
from deploy.local.postgres import create_database, drop_database
from deploy.local.state import State, postgres_url
from protos.crowdtone.v1 import api_pb2, api_pb2_grpc
from services.fusion.revision import Scored
from services.fusion.store import PostgresStore
from services.fusion.testing import judged
from shared import db
from shared.media import MediaStore
from shared.messages import Answer, Label, Media, Modality, ModalityWeight, Verdict
from shared.settings import MediaSettings, PostgresSettings
from shared.testing import NOON, post

ROOT = Path(__file__).parents[3]
DEMO_MEDIA = ROOT / "demo" / "media"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scored(
    post_id: str,
    time: datetime,
    score: float | None,
    *,
    absent: dict[Modality, str] | None = None,
    contributions: dict[Modality, float] | None = None,
    transcript: str = "",
    **fields: Any,
) -> Scored:
    """A verdict: positive above 0.25, negative below -0.25, unscored for None."""
    weights = (
        {Modality.TEXT: score or 0.0} if contributions is None and score is not None else contributions or {}
    )
    missing = absent or {}
    expected = frozenset({Modality.TEXT, *weights, *missing})
    answers = {
        modality: Answer(
            np.ones(4, np.float16) if modality in weights else None,
            missing.get(modality, "" if modality in weights else "empty text"),
            transcript if modality is Modality.SPEECH else "",
        )
        for modality in expected
    }
    if score is None:
        label, probabilities = Label.UNSCORED, (0.0, 0.0, 0.0)
    else:
        label = Label.POSITIVE if score > 0.25 else Label.NEGATIVE if score < -0.25 else Label.NEUTRAL
        neutral = 1 - abs(score)
        probabilities = (max(0.0, -score), neutral, max(0.0, score))
    modalities = tuple(
        ModalityWeight(modality, weights.get(modality, 0.0), answers[modality].absent_reason)
        for modality in sorted(expected)
    )
    verdict = Verdict(label, probabilities, score or 0.0, modalities, {"joy": 0.7, "anger": 0.2}, "test@1")
    return judged(0, post(post_id, event_time=time, expected=expected, **fields), answers, verdict)


@dataclass
class System:
    """One API and one dashboard over one database; either can be stopped and started again."""

    env: dict[str, str]
    directory: Path
    store: PostgresStore
    media: MediaStore
    api_address: str
    url: str
    generation: int = 0
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, service: str) -> None:
        with (self.directory / f"{service}.log").open("ab") as log:
            self._processes[service] = subprocess.Popen(
                [sys.executable, "-m", f"services.{service}"], env=self.env, cwd=ROOT, stdout=log, stderr=log
            )

    def stop(self, service: str) -> int:
        """SIGTERM and the exit code."""
        process = self._processes.pop(service)
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=30)

    def stop_all(self) -> None:
        for service in list(self._processes):
            self.stop(service)

    def write(self, *verdicts: Scored) -> None:
        if not self.generation:
            self.generation = self.store.claim([0])[0].generation
        now = datetime.now(UTC)
        self.store.write({0: self.generation}, verdicts, next_offsets={0: 1}, now=now)

    def create_topics(self, **names: str) -> None:
        with grpc.insecure_channel(self.api_address) as channel:
            stub = api_pb2_grpc.CrowdtoneServiceStub(channel)
            for name, display_name in names.items():
                topic = api_pb2.TrackedTopic(name=name, display_name=display_name, keywords=[name])
                stub.CreateTopic(api_pb2.CreateTopicRequest(topic=topic), timeout=30, wait_for_ready=True)

    def demo_media(self, kind: Modality, name: str) -> Media:
        folder = "images" if kind is Modality.IMAGE else "voices"
        return Media(kind, self.media.put((DEMO_MEDIA / folder / name).read_bytes()))

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers by lower-case name, and body of one request to the dashboard."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, body
        finally:
            connection.close()

    def wait_until_ready(self) -> None:
        """Until the dashboard hears from the API: both import and connect first, seconds on two cores."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if self.get("/readyz")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        logs = "\n".join(path.read_text()[-3000:] for path in self.directory.glob("*.log"))
        pytest.fail(f"the dashboard did not get ready:\n{logs}")


Run = Callable[[], AbstractContextManager[System]]


@pytest.fixture(scope="session")
def run(
    migrated: State,
    servers: Callable[[local_stack.Server], State],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """Starts an API and a dashboard over a database of their own."""
    state = servers(local_stack.REDIS)
    # These processes report until the whole run ends: not into the database that other tests find empty.
    redis_url = f"redis://:{state.redis_password}@127.0.0.1:{state.of('redis').ports[0]}/1"

    @contextmanager
    def running() -> Iterator[System]:
        directory = tmp_path_factory.mktemp("dashboard")
        name = f"t{secrets.token_hex(4)}"
        port, password = migrated.of("postgres").ports[0], migrated.postgres_password
        create_database(port, password, name, "migrated")
        url = postgres_url(migrated, name)
        media_url = (directory / "media").as_uri()
        address, page_port = f"127.0.0.1:{free_port()}", free_port()
        env = os.environ | {
            "CROWDTONE_LOCAL_DIR": str(directory),
            "CROWDTONE_POSTGRES_URL": url,
            "CROWDTONE_REDIS_URL": redis_url,
            "CROWDTONE_MEDIA_URL": media_url,
            # Nobody is there: the API does without Kafka and looks by itself, here often.
            "CROWDTONE_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9",
            "CROWDTONE_API_STREAM_REFRESH_S": "0.3",
            "CROWDTONE_API_STREAM_INTERVAL_S": "0.1",
            "CROWDTONE_API_ADDRESS": address,
            "CROWDTONE_DASHBOARD_PORT": str(page_port),
        }
        engine = db.engine(PostgresSettings(url=url))
        store = PostgresStore(engine, group="test", retry_s=10)
        media = MediaStore(MediaSettings(url=media_url))
        system = System(env, directory, store, media, address, f"http://127.0.0.1:{page_port}/")
        system.start("api")
        system.start("dashboard")
        try:
            system.wait_until_ready()
            yield system
        finally:
            system.stop_all()
            engine.dispose()
            drop_database(port, password, name)

    return running


# Two cores hold the servers, the services and the browser: a page may take its time.
WAIT_MS = 20_000
expect.set_options(timeout=WAIT_MS)

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><b>bold</b>'
HOSTILE_URL = "javascript:window.hacked=1"


@dataclass(frozen=True)
class Fed:
    """A system with a day of posts, and what was written, counted here and not by the code under test."""

    system: System
    verdicts: Sequence[Scored]

    def mean(self, topic: str, start: datetime, width: timedelta = timedelta(hours=1)) -> float:
        scores = [
            verdict.verdict.score
            for verdict in self.verdicts
            if topic in ("*", *verdict.post.topics)
            and start <= verdict.post.event_time < start + width
            and verdict.verdict.label is not Label.UNSCORED
        ]
        return sum(scores) / len(scores)

    def hours(self, topic: str) -> dict[datetime, int]:
        """Posts per hour that has any."""
        found: dict[datetime, int] = {}
        for verdict in self.verdicts:
            if topic in ("*", *verdict.post.topics):
                hour = verdict.post.event_time.replace(minute=0, second=0)
                found[hour] = found.get(hour, 0) + 1
        return found


@pytest.fixture(scope="session")
def fed(run: Run) -> Iterator[Fed]:
    """Twenty-four hours: people like `lumio` for twelve, then they do not; `metro` moves nobody."""
    with run() as system:
        yield Fed(system, feed(system))


def feed(system: System) -> list[Scored]:
    system.create_topics(lumio="Lumio One", metro="Metro Aurora")
    verdicts = []
    for hour in range(24):
        time = NOON + timedelta(hours=hour)
        for i, minute in enumerate((5, 25, 45)):
            score = (0.6 if hour < 12 else -0.5) + (0.1, 0.0, -0.1)[i]
            verdicts.append(
                scored(f"x:l{hour}-{i}", time + timedelta(minutes=minute), score, topics=("lumio",))
            )
        if hour % 2 == 0:
            verdicts.append(
                scored(f"reddit:m{hour}", time + timedelta(minutes=30), 0.1, topics=("metro",), language="fr")
            )
    last = NOON + timedelta(hours=23)
    verdicts += [
        scored(
            "x:picture",
            last + timedelta(minutes=50),
            -0.4,
            contributions={Modality.TEXT: -0.1, Modality.IMAGE: -0.25},
            topics=("lumio",),
            url="https://x.example/picture",
            media=(
                system.demo_media(Modality.IMAGE, "lumio_cracked.webp"),
                system.demo_media(Modality.IMAGE, "lumio_box.webp"),
            ),
        ),
        scored(
            "x:voice",
            last + timedelta(minutes=51),
            0.5,
            contributions={Modality.TEXT: 0.2, Modality.SPEECH: 0.25},
            absent={Modality.AUDIO: "shorter than one window"},
            transcript="Das will sie am Mittwoch abgeben.",
            topics=("lumio",),
            media=(system.demo_media(Modality.AUDIO, "03a01Wa.opus"),),
        ),
        scored("x:empty", last + timedelta(minutes=52), None, topics=("lumio",), text=""),
        scored(
            "x:hostile", last + timedelta(minutes=53), -0.5, topics=("lumio",), text=HOSTILE, url=HOSTILE_URL
        ),
    ]
    system.write(*verdicts)
    return verdicts


@dataclass
class Watched:
    """What a page did besides what it showed."""

    problems: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def page(chromium: Browser, watched: Watched) -> Iterator[Page]:
    """A page that fails its test on any console error, any exception, any request beyond loopback."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB")
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.on(
        "console",
        lambda message: (
            watched.problems.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: watched.problems.append(str(error)))
    page.on("request", lambda request: watched.hosts.add(str(urlsplit(request.url).hostname)))
    yield page
    context.close()
    assert watched.problems == []
    assert watched.hosts == {"127.0.0.1"}
