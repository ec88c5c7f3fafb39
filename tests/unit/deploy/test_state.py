"""What the local stack remembers, and how services read it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from deploy.local.process import Process
from deploy.local.state import (
    FIRST_PORT,
    LAST_PORT,
    Failed,
    ServerState,
    addresses,
    choose_ports,
    env_file,
    from_json,
    load,
    new_state,
    save,
    to_json,
    write_private,
)
from shared.settings import KafkaSettings, MediaSettings, PostgresSettings, RedisSettings


def test_a_state_comes_back_as_it_was() -> None:
    state = (
        new_state()
        .with_server("kafka", ServerState((20001, 20002), Process(7, 99, "boot")))
        .with_server("redis", ServerState((20003,)))
    )
    assert from_json(to_json(state)) == state


def test_there_is_no_state_where_there_was_never_a_stack(tmp_path: Path) -> None:
    assert load(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"servers": {"kafka": {}}}', '{"servers": {}, "x": 1}']
)
def test_a_damaged_state_is_said_to_be_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "stack.json").write_text(text)
    with pytest.raises(Failed, match="damaged"):
        load(tmp_path)


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    save(tmp_path, new_state())
    assert stat.S_IMODE((tmp_path / "stack.json").stat().st_mode) == 0o600


def test_a_private_file_replaces_one_that_was_public(tmp_path: Path) -> None:
    path = tmp_path / "stack.env"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)


@pytest.mark.parametrize(
    ("remembered", "count", "taken", "expected"),
    [
        ((25000,), 1, set(), (25000,)),  # remembered and free: kept
        ((25000, 25001), 2, {25001}, (21000, 21001)),  # one of them taken: all new
        ((), 2, {21000}, (21001, 21002)),  # a taken candidate is passed over
        ((25000,), 2, set(), (21000, 21001)),  # a server that needs more ports than it used to
    ],
)
def test_ports_are_remembered_while_they_are_free(
    remembered: tuple[int, ...], count: int, taken: set[int], expected: tuple[int, ...]
) -> None:
    candidates = iter([21000, 21000, 21001, 21002, 21003])
    chosen = choose_ports(remembered, count, lambda port: port not in taken, lambda: next(candidates))
    assert chosen == expected


def test_when_no_port_is_free_that_is_an_error() -> None:
    with pytest.raises(Failed, match="no free port"):
        choose_ports((), 1, lambda port: False)


def test_ports_are_below_the_range_of_outgoing_connections() -> None:
    assert FIRST_PORT < LAST_PORT < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


def test_services_read_what_the_stack_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = new_state()
    for name, ports in {"kafka": (20001, 20002), "postgres": (20003,), "redis": (20004,)}.items():
        state = state.with_server(name, ServerState(ports))
    write_private(tmp_path / "stack.env", env_file(addresses(tmp_path, state)))
    monkeypatch.setenv("CROWDTONE_LOCAL_DIR", str(tmp_path))
    assert KafkaSettings().bootstrap_servers == "127.0.0.1:20001"
    assert PostgresSettings().url.get_secret_value() == (
        f"postgresql+psycopg2://crowdtone:{state.postgres_password}@127.0.0.1:20003/crowdtone"
    )
    assert RedisSettings().url.get_secret_value() == f"redis://:{state.redis_password}@127.0.0.1:20004/0"
    assert MediaSettings().url == (tmp_path / "media").as_uri()


def test_the_environment_wins_over_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stack.env").write_text("CROWDTONE_KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:1\n")
    monkeypatch.setenv("CROWDTONE_LOCAL_DIR", str(tmp_path))
    monkeypatch.setenv("CROWDTONE_KAFKA_BOOTSTRAP_SERVERS", "broker.example:9092")
    assert KafkaSettings().bootstrap_servers == "broker.example:9092"


def test_a_server_that_is_not_part_of_the_stack_has_no_address(tmp_path: Path) -> None:
    assert set(addresses(tmp_path, new_state())) == {"CROWDTONE_MEDIA_URL", "CROWDTONE_AUTHOR_KEY"}


def test_author_keys_differ_and_have_256_bits() -> None:
    keys = {new_state().author_key for _ in range(10)}
    assert {len(bytes.fromhex(key)) for key in keys} == {32}
    assert len(keys) == 10


def test_ports_of_a_server_that_is_still_dying_are_waited_for() -> None:
    answers = iter([False, False, True, True])
    ports = choose_ports((1, 2), 2, free=lambda port: next(answers), candidate=lambda: 3, patience_s=10)
    assert ports == (1, 2)


def test_ports_that_stay_taken_are_given_up() -> None:
    candidates = iter([3, 4])
    ports = choose_ports(
        (1, 2), 2, free=lambda port: port > 2, candidate=lambda: next(candidates), patience_s=0.2
    )
    assert ports == (3, 4)
