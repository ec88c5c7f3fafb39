"""`crowdtone ingest erase` on real servers: a tombstone for each post of one author, and of nobody else."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from services.fusion.revision import Scored
from services.fusion.store import PostgresStore
from services.fusion.testing import FakeClassifier, judged
from services.fusion.verify import verify
from services.ingest.cli import app
from services.ingest.intake import author_hash
from shared import codec, db
from shared.kafka import read_all
from shared.messages import Answer, Modality, Post
from shared.settings import KafkaSettings, PostgresSettings
from shared.testing import NOON, post

KEY = "a key of the test's own"
VECTOR = np.ones(4, np.float16)


def scored(one: Post) -> Scored:
    answer = Answer(None, "deleted at the source") if one.deleted else Answer(VECTOR)
    (verdict,) = FakeClassifier().classify([{} if one.deleted else {Modality.TEXT: VECTOR}])
    return judged(0, one, {Modality.TEXT: answer}, verdict)


def test_an_author_is_erased(
    kafka: KafkaSettings, postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROWDTONE_KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("CROWDTONE_KAFKA_TOPIC_PREFIX", kafka.topic_prefix)
    monkeypatch.setenv("CROWDTONE_POSTGRES_URL", postgres.url.get_secret_value())
    monkeypatch.setenv("CROWDTONE_AUTHOR_KEY", KEY)
    engine = db.engine(postgres)
    store = PostgresStore(engine, group="fusion", retry_s=5)
    authors = [("x", "ann"), ("x", "bob"), ("mastodon", "ann"), ("x", "")]
    posts = [
        post(f"{platform}:{author}-{n}", author_hash=author_hash(KEY.encode(), platform, author))
        for platform, author in authors
        for n in range(700 if author == "ann" else 3)
    ]
    generation = {0: store.claim([0])[0].generation}
    store.write(generation, [scored(one) for one in posts], next_offsets={}, now=NOON)

    def erase(*words: str) -> str:
        result = CliRunner().invoke(app, ["erase", *words])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert CliRunner().invoke(app, ["erase", "x", "", "--yes"]).exit_code == 2, "not the authorless"
    assert "0 posts" in erase("x", "carol")
    assert "700 posts" in erase("X", "ann", "--dry-run")
    assert list(read_all(kafka, "posts")) == []
    assert "700 posts" in erase("x", "ann", "--yes")
    tombstones = [codec.decode_post(record.value) for record in read_all(kafka, "posts")]
    assert {one.post_id for one in tombstones} == {f"x:ann-{n}" for n in range(700)}
    assert all(one.deleted and not one.text and not one.author_hash for one in tombstones)
    store.write(generation, [scored(one) for one in tombstones], next_offsets={}, now=NOON)
    report = verify(engine)
    assert (report.holds, report.posts) == (True, len(posts) - 700)
    assert "0 posts" in erase("x", "ann")
    engine.dispose()
