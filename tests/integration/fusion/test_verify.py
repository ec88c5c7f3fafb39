from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
import typer
from typer.testing import CliRunner

from services.fusion import cli
from services.fusion.store import PostgresStore
from services.fusion.testing import judged
from services.fusion.verify import verify
from shared import db
from shared.messages import Answer, Label, Modality, Verdict
from shared.settings import PostgresSettings
from shared.testing import NOON, post


@pytest.fixture
def engine(postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    """A database with 40 posts and their trends, and the settings that lead to it."""
    monkeypatch.setenv("CROWDTONE_POSTGRES_URL", postgres.url.get_secret_value())
    engine = db.engine(postgres)
    store = PostgresStore(engine, group="fusion", retry_s=5)
    generations = {0: store.claim([0])[0].generation}
    verdicts = [
        judged(
            0,
            post(f"test:{number}", topics=("lumio",), event_time=NOON + timedelta(minutes=5 * number)),
            {Modality.TEXT: Answer(None, "empty")},
            Verdict(list(Label)[number % 4], (0, 0, 0), 0.25, (), {}, "m@1"),
        )
        for number in range(40)
    ]
    store.write(generations, verdicts, next_offsets={}, now=NOON)
    yield engine
    engine.dispose()


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(cli.verify)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def change(engine: sa.Engine, statement: str) -> None:
    with engine.begin() as connection:
        assert connection.execute(sa.text(statement)).rowcount == 1


def test_what_is_right_holds(engine: sa.Engine) -> None:
    code, output = run()
    assert code == 0
    assert "40 posts against" in output
    assert json.loads(run("--json")[1]) == {
        "holds": True,
        "posts": 40,
        "trends": 2 * (40 + 4 + 1),
        "unlisted_posts": 0,
        "wrong_totals": 0,
        "differences": [],
    }


@pytest.mark.parametrize(
    ("tampering", "differences"),
    [
        ("UPDATE trends SET posts = posts + 1 WHERE topic = 'lumio' AND grain = 3", 1),
        ("UPDATE trends SET score_micro = score_micro - 1 WHERE topic = '*' AND grain = 3", 1),
        ("DELETE FROM trends WHERE topic = '*' AND grain = 1 AND bucket = '2026-06-13 12:05+00'", 1),
        ("INSERT INTO trends VALUES ('ghost', 1, '2026-06-13 12:00+00', 'p', 'en', 0, 0, 0, 0, 0, 0)", 1),
        ("DELETE FROM posts WHERE post_id = 'test:7'", 6),
        ("UPDATE posts SET label = 2 WHERE post_id = 'test:0'", 6),
        ("UPDATE posts SET topics = '{}' WHERE post_id = 'test:0'", 3),
        ("UPDATE posts SET event_time = event_time + interval '1 minute' WHERE post_id = 'test:1'", 4),
        ("DELETE FROM post_days WHERE post_id = 'test:3'", 0),
        ("UPDATE trend_totals SET posts = posts + 1 WHERE topic = 'lumio' AND grain = 3", 0),
        ("DELETE FROM trend_totals WHERE topic = '*' AND grain = 3", 0),
        ("INSERT INTO trend_totals VALUES ('ghost', 1, '2026-06-13 12:00+00', 1, 0, 0, 0, 1, 0)", 0),
    ],
)
def test_what_was_tampered_with_is_found(engine: sa.Engine, tampering: str, differences: int) -> None:
    change(engine, tampering)
    report = verify(engine)
    assert not report.holds
    assert len(report.differences) == differences
    code, output = run("--json")
    assert code == 1
    assert len(json.loads(output)["differences"]) == differences
    code, output = run()
    assert code == 1
    assert "THE TRENDS ARE WRONG" in output


def test_the_totals_follow_whatever_is_done_to_the_trends(engine: sa.Engine) -> None:
    for statement in (
        "UPDATE trends SET posts = posts + 2, score_micro = -score_micro WHERE topic = 'lumio'",
        "UPDATE trends SET platform = 'other', bucket = bucket + interval '1 day' WHERE grain = 2",
        "INSERT INTO trends SELECT 'new', grain, bucket, platform, language, 1, 0, 1, 0, 0, 7 FROM trends "
        "ON CONFLICT DO NOTHING",
        "INSERT INTO trends SELECT * FROM trends WHERE topic = '*' ON CONFLICT "
        "(topic, grain, bucket, platform, language) DO UPDATE SET posts = trends.posts + excluded.posts",
        "DELETE FROM trends WHERE topic = '*' AND grain = 1",
    ):
        with engine.begin() as connection:
            assert connection.execute(sa.text(statement)).rowcount > 0
        assert verify(engine).wrong_totals == 0
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE trends"))
        assert connection.scalar(sa.text("SELECT count(*) FROM trend_totals")) == 0


def test_it_reads_one_snapshot_and_writes_nothing(engine: sa.Engine) -> None:
    """Posts that come while it counts are on neither side of the comparison; no bug can write here."""
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with snapshot.begin() as connection:
        assert connection.scalar(sa.text("SHOW transaction_isolation")) == "repeatable read"
        assert connection.scalar(sa.text("SHOW transaction_read_only")) == "on"
    assert verify(engine).holds
