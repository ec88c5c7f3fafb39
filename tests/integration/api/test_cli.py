"""`crowdtone query` and `crowdtone topics` against a served API."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.api.cli import query_app, topics_app
from shared.messages import Label
from shared.testing import NOON

Run = Callable[..., Any]


@pytest.fixture
def crowdtone(served: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `crowdtone GROUP ARGUMENTS...`; returns typer's result."""
    monkeypatch.setenv("CROWDTONE_API_ADDRESS", served.address)
    monkeypatch.setenv("COLUMNS", "200")

    def run(group: str, *arguments: str) -> Any:
        return CliRunner().invoke({"query": query_app, "topics": topics_app}[group], arguments)

    return run


def test_topics_are_loaded_once_listed_and_deleted(crowdtone: Run, tmp_path: Path) -> None:
    file = tmp_path / "topics.json"
    file.write_text(
        json.dumps(
            [
                {"name": "tea", "display_name": "Tea", "keywords": ["tea", "#Tee"]},
                {"name": "coffee", "keywords": ["coffee"]},
            ]
        )
    )
    assert "no topic is tracked" in crowdtone("topics", "list").stdout
    result = crowdtone("topics", "load", str(file))
    assert (result.exit_code, result.stdout) == (0, "tracking 2 new topics: tea, coffee\n")
    answer = json.loads(crowdtone("topics", "load", str(file), "--json").stdout)
    assert answer == {"created": [], "existing": ["tea", "coffee"]}
    assert crowdtone("topics", "create", "milk", "--keyword", "milk", "--keyword", "[bold]").exit_code == 0
    listed = json.loads(crowdtone("topics", "list", "--json").stdout)["topics"]
    assert [(topic["name"], topic["keywords"]) for topic in listed] == [
        ("coffee", ["coffee"]),
        ("milk", ["milk", "[bold]"]),
        ("tea", ["tea", "#Tee"]),
    ]
    assert "[bold]" in crowdtone("topics", "list").stdout
    assert crowdtone("topics", "delete", "milk").exit_code == 0
    gone = crowdtone("topics", "delete", "milk")
    assert gone.exit_code == 1
    assert "'milk'" in gone.stderr
    taken = crowdtone("topics", "create", "tea", "--keyword", "tea")
    assert taken.exit_code == 1
    assert "already" in taken.stderr


@pytest.mark.parametrize(
    "content", ["{", "{}", '["tea"]', '[{"name": "tea", "query": "x"}]', '[{"name": 1, "keywords": ["x"]}]']
)
def test_a_file_that_is_no_list_of_topics_is_refused_whole(
    crowdtone: Run, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "topics.json"
    file.write_text(content)
    result = crowdtone("topics", "load", str(file))
    assert result.exit_code == 2
    assert "topics.json" in result.stderr
    assert json.loads(crowdtone("topics", "list", "--json").stdout) == {"topics": []}


def test_a_trend_is_one_object_or_a_table(crowdtone: Run, rows: Any) -> None:
    rows.topic("tea")
    rows.post("a:1", NOON, Label.POSITIVE, of=("tea",), platform="a")
    rows.post("a:2", NOON, Label.NEGATIVE, of=("tea",), platform="a", language="de")
    rows.post("b:1", NOON + timedelta(hours=1), Label.UNSCORED, of=("tea",), platform="b")
    answer = json.loads(crowdtone("query", "trends", "tea", "--json").stdout)
    empty = {"negative": 0, "neutral": 0, "positive": 0, "unscored": 0, "mean_score": 0.0}
    mixed = {"posts": 2, "negative": 1, "neutral": 0, "positive": 1, "unscored": 0, "mean_score": 0.125}
    assert answer == {
        "topic": "tea",
        "start_time": None,
        "end_time": None,
        "platform": "",
        "language": "",
        "grain": "hour",
        "points": [
            {"bucket_start": "2026-06-13T12:00:00Z"} | mixed,
            {"bucket_start": "2026-06-13T13:00:00Z"} | empty | {"posts": 1, "unscored": 1},
        ],
        "total": mixed | {"posts": 3, "unscored": 1},
    }
    narrow = crowdtone(
        "query", "trends", "tea", "--grain", "day", "--language", "de", "--platform", "a",
        "--since", "2026-06-13", "--until", "2026-06-13T14:00+02:00", "--json",
    )  # fmt: skip
    answer = json.loads(narrow.stdout)
    assert answer["start_time"] == "2026-06-13T00:00:00Z"
    assert answer["end_time"] == "2026-06-13T12:00:00Z"
    assert [point["posts"] for point in answer["points"]] == [1]
    table = crowdtone("query", "trends", "tea").stdout
    assert "2026-06-13 12:00" in table
    assert "▒" * 10 + "█" * 10 in table
    assert "3 posts: 33% negative, 0% neutral, 33% positive, 33% unscored; mean score +0.12" in table
    assert "no posts about tea" in crowdtone("query", "trends", "tea", "--since", "1h").stdout


def test_posts_are_shown_newest_first_with_what_each_part_said(crowdtone: Run, rows: Any) -> None:
    rows.topic("tea")
    for number in range(5):
        rows.post(f"a:{number}", NOON + timedelta(minutes=number), of=("tea",))
    rows.post(
        "a:rich",
        NOON + timedelta(hours=1),
        Label.NEGATIVE,
        text="\x1b[31mred\nalert [bold]",
        transcript="what is heard",
        expected=0b1010,
        modalities={
            "TEXT": {"contribution": -0.5, "absent_reason": ""},
            "AUDIO": {"contribution": 0.0, "absent_reason": "empty file"},
        },
        emotions={"anger": 0.75},
    )
    answer = json.loads(crowdtone("query", "posts", "tea", "--limit", "3", "--json").stdout)
    assert [post["post_id"] for post in answer["posts"]] == ["a:4", "a:3", "a:2"]
    everything = crowdtone("query", "posts", "*", "--label", "negative").stdout
    assert "a:rich" in everything
    assert "\x1b" not in everything
    assert "alert [bold]" in everything
    post = crowdtone("query", "post", "a:rich").stdout
    for part in ("not all its parts", "absent: empty file", "-0.500", "what is heard", "anger 0.75"):
        assert part in post
    answer = json.loads(crowdtone("query", "post", "a:rich", "--json").stdout)
    assert answer["text"] == "\x1b[31mred\nalert [bold]"
    assert (answer["label"], answer["complete"]) == ("negative", False)


def test_alerts_are_a_table_or_one_object(crowdtone: Run, rows: Any) -> None:
    rows.topic("tea")
    rows.alert("tea/1", "tea", NOON)
    rows.alert("tea/2", "tea", NOON + timedelta(hours=1), state=2)
    answer = json.loads(crowdtone("query", "alerts", "tea", "--json").stdout)
    assert [alert["alert_id"] for alert in answer["alerts"]] == ["tea/1"]
    table = crowdtone("query", "alerts", "tea", "--withdrawn").stdout
    assert "mood drop" in table
    assert "withdrawn" in table


def test_live_prints_a_line_per_bucket(crowdtone: Run, rows: Any) -> None:
    rows.topic("tea")
    now = datetime.now(UTC)
    rows.post("a:1", now, of=("tea",))
    result = crowdtone("query", "live", "tea", "--json", "--updates", "1")
    assert json.loads(result.stdout)["points"][0]["posts"] == 1
    result = crowdtone("query", "live", "tea", "--updates", "1")
    assert f"{now:%Y-%m-%d %H:%M}" in result.stdout
    assert "█" * 20 in result.stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("query", "trends", "tea"), 1, "crowdtone topics list"),
        (("query", "trends", "Tea Time"), 1, "filter.topic"),
        (("query", "trends", "*", "--since", "yesterday"), 2, "2d"),
        (("query", "trends", "*", "--since", "999999999w"), 2, "--since"),
        (("query", "trends", "*", "--since", "1h", "--until", "2h"), 1, "after start_time"),
        (("query", "post", "a:1"), 1, "'a:1'"),
        (("query", "live", "tea"), 1, "crowdtone topics list"),
        (("query", "alerts", "tea"), 1, "crowdtone topics list"),
        (("topics", "create", "tea", "--keyword", "#"), 1, "topic.keywords[0]"),
    ],
)
def test_a_refusal_says_what_to_do(
    crowdtone: Run, arguments: tuple[str, ...], exit_code: int, said: str
) -> None:
    result = crowdtone(*arguments)
    assert result.exit_code == exit_code
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_without_an_api_it_says_how_to_start_one() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        result = subprocess.run(
            [sys.executable, "-m", "services.cli", "query", "trends", "tea"],
            env=os.environ | {"CROWDTONE_API_ADDRESS": address},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert result.returncode == 1
    assert f"no API at {address}: start it with `crowdtone run api`" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_token_is_asked_for_by_name(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(token_sha256="0" * 64) as served:
        monkeypatch.setenv("CROWDTONE_API_ADDRESS", served.address)
        assert "CROWDTONE_API_TOKEN" in CliRunner().invoke(topics_app, ["list"]).stderr
        monkeypatch.setenv("CROWDTONE_API_TOKEN", "a-wrong-secret")
        refused = CliRunner().invoke(topics_app, ["list"])
        assert refused.exit_code == 1
        assert "a-wrong-secret" not in refused.output
        monkeypatch.setenv("CROWDTONE_API_TLS_CA_FILE", "/nowhere/ca.pem")
        assert "/nowhere/ca.pem" in CliRunner().invoke(topics_app, ["list"]).stderr
        monkeypatch.setenv("CROWDTONE_API_TIMEOUT_S", "soon")
        assert "CROWDTONE_API_TIMEOUT_S" in CliRunner().invoke(topics_app, ["list"]).stderr
