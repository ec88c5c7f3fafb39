"""Real servers for the tests: Apache Kafka, PostgreSQL and Redis, started by the project's own code.

One of each for the whole run, on free ports, in a temporary folder, and only when a test asks for it; they
end with pytest even when it is killed. Each test gets a place of its own in them: a topic prefix, a database,
an empty Redis.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from playwright.sync_api import Browser, sync_playwright

from deploy.local import stack as local_stack
from deploy.local.postgres import create_database, drop_database
from deploy.local.state import State, load, postgres_url
from deploy.postgres import migrate
from shared.kafka import create_topics
from shared.settings import KafkaSettings, PostgresSettings, RedisSettings

# No test may see the settings or the stack of whoever runs it; an empty folder is a machine without a stack.
for _name in [name for name in os.environ if name.startswith("CROWDTONE_") and name != "CROWDTONE_CACHE_DIR"]:
    del os.environ[_name]
os.environ["CROWDTONE_LOCAL_DIR"] = tempfile.mkdtemp(prefix="crowdtone-no-stack-")
# Two cores hold the servers and the services as well.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Two cores that also run servers and services are slow for minutes at a time; that is no finding.
settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")

TEMPLATE = "migrated"

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

Up = Callable[[local_stack.Server], State]


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["CROWDTONE_LOCAL_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Starts a server unless it runs, and tells where it is."""
    directory = tmp_path_factory.mktemp("servers")

    def up(server: local_stack.Server) -> State:
        local_stack.up(directory, [server], dies_with_us=True)
        state = load(directory)
        assert state is not None
        return state

    yield up
    local_stack.down(directory)
    shutil.rmtree(directory)


@pytest.fixture
def kafka(servers: Up) -> KafkaSettings:
    """A real broker with this test's own topics: every topic and group name has a prefix of its own."""
    port = servers(local_stack.KAFKA).of("kafka").ports[0]
    settings = KafkaSettings(
        bootstrap_servers=f"127.0.0.1:{port}", topic_prefix=f"t{secrets.token_hex(4)}.", fetch_max_wait_ms=10
    )
    create_topics(settings)
    return settings


@pytest.fixture(scope="session")
def migrated(servers: Up) -> State:
    """A PostgreSQL with a migrated database to copy: copying takes a tenth of the time of migrating."""
    state = servers(local_stack.POSTGRES)
    create_database(state.of("postgres").ports[0], state.postgres_password, TEMPLATE)
    migrate(postgres_url(state, TEMPLATE))
    return state


@pytest.fixture
def postgres(migrated: State) -> Iterator[PostgresSettings]:
    """A migrated database of this test's own in a real server; dropped afterwards."""
    port, password, name = (
        migrated.of("postgres").ports[0],
        migrated.postgres_password,
        f"t{secrets.token_hex(4)}",
    )
    create_database(port, password, name, TEMPLATE)
    yield PostgresSettings(url=postgres_url(migrated, name))
    drop_database(port, password, name)


@pytest.fixture
def redis(servers: Up) -> RedisSettings:
    """A real Redis with nothing in it."""
    import redis

    state = servers(local_stack.REDIS)
    settings = RedisSettings(url=f"redis://:{state.redis_password}@127.0.0.1:{state.of('redis').ports[0]}/0")
    with redis.Redis.from_url(settings.url.get_secret_value()) as client:
        client.flushall()
    return settings


@pytest.fixture
def stack(
    kafka: KafkaSettings, postgres: PostgresSettings, redis: RedisSettings, tmp_path: Path
) -> dict[str, str]:
    """The environment in which `python -m services.<name>` and every `crowdtone` command use this stack."""
    return os.environ | {
        "CROWDTONE_LOCAL_DIR": str(tmp_path),
        "CROWDTONE_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "CROWDTONE_KAFKA_TOPIC_PREFIX": kafka.topic_prefix,
        "CROWDTONE_KAFKA_FETCH_MAX_WAIT_MS": str(kafka.fetch_max_wait_ms),
        "CROWDTONE_POSTGRES_URL": postgres.url.get_secret_value(),
        "CROWDTONE_REDIS_URL": redis.url.get_secret_value(),
        "CROWDTONE_MEDIA_URL": (tmp_path / "media").as_uri(),
        "CROWDTONE_AUTHOR_KEY": secrets.token_hex(32),
    }


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for the whole run: Playwright does not run twice in a thread."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("these tests need Chromium (Debian: apt-get install chromium), or -m 'not browser'")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()
