"""Live and ready: what the loop and the dependencies say, over HTTP."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import pytest

from shared import metrics
from shared.health import CHECKED_S, Health, handler


class World:
    """A clock and a dependency."""

    def __init__(self) -> None:
        self.now = 0.0
        self.away = False
        self.asked = 0
        self.health = Health(stall_s=60, checks={"kafka": self.check}, watchdog=False, clock=lambda: self.now)

    def check(self) -> None:
        self.asked += 1
        if self.away:
            raise ConnectionError("no route to host")


@pytest.fixture
def world() -> World:
    return World()


def test_a_loop_that_turns_is_live_and_one_that_hangs_is_not(world: World) -> None:
    world.health.turned()
    world.now = 60
    assert world.health.not_live() == ""
    world.now = 61
    assert world.health.not_live() == "the loop is stuck: no turn for 61 s"
    assert world.health.not_ready() == world.health.not_live()
    world.health.turned()
    assert world.health.not_live() == ""


def test_before_its_first_turn_it_is_live_but_not_ready(world: World) -> None:
    assert world.health.not_live() == ""
    assert world.health.not_ready() == "starting"
    world.now = 61
    assert world.health.not_live()


def test_a_dependency_that_is_away_makes_it_unready_but_not_dead(world: World) -> None:
    world.health.turned()
    assert world.health.not_ready() == ""
    world.away = True
    assert world.health.not_ready() == "", "asked just now"
    world.now = CHECKED_S + 0.1
    assert world.health.not_ready() == "away: kafka"
    assert world.health.not_live() == ""
    world.away = False
    world.now *= 3
    assert world.health.not_ready() == ""
    assert world.asked == 3


@pytest.fixture
def port(world: World) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(world.health))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_over_http(world: World, port: int) -> None:
    assert get(port, "/livez") == (200, "ok\n")
    assert get(port, "/readyz") == (503, "starting\n")
    world.health.turned()
    assert get(port, "/readyz") == (200, "ok\n")
    world.now, world.away = 30, True
    assert get(port, "/readyz") == (503, "away: kafka\n")
    assert get(port, "/livez") == (200, "ok\n")
    world.now = 100
    assert get(port, "/livez")[0] == 503
    metrics.POSTS.labels("test_health").inc()
    status, text = get(port, "/metrics")
    assert status == 200
    assert 'crowdtone_posts_total{service="test_health"}' in text
    assert get(port, "/")[0] == 404
