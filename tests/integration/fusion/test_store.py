"""The real tables: exact trends, replay, fuller and poorer, fencing, days, parts; the fake beside them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.crowdtone.v1 import events_pb2
from services.fusion.revision import Outcome, Scored, Written, counted
from services.fusion.store import PostgresStore
from services.fusion.testing import FakeClassifier, MemoryStore, judged
from services.fusion.trends import Counts, Key, deltas
from services.fusion.verify import verify
from shared import codec, db
from shared.errors import Fenced, Unavailable
from shared.messages import (
    Answer,
    Media,
    Modality,
    ModalityWeight,
    Post,
    Vector,
)
from shared.settings import PostgresSettings
from shared.tables import Grain
from shared.testing import NOON, post

TEXT, IMAGE, AUDIO, SPEECH = Modality
NOW = NOON + timedelta(minutes=1)
ABSENT = Answer(None, "truncated JPEG")


def vector(value: float = 1) -> Answer:
    return Answer(np.full(4, value, np.float16))


def scored(
    one: Post, answers: Mapping[Modality, Answer], *, partition: int = 0, model_version: str = "fake@1"
) -> Scored:
    vectors: dict[Modality, Vector] = {
        modality: answer.vector for modality, answer in answers.items() if answer.vector is not None
    }
    (verdict,) = FakeClassifier(model_version).classify([vectors])
    return judged(partition, one, answers, verdict)


DELETED = Answer(None, "deleted at the source")


def gone(post_id: str, **changes: Any) -> Post:
    """A tombstone; nobody knows when what it deletes was posted."""
    return post(post_id, text="", deleted=True, event_time=NOW, **changes)


BOTH = post("test:both", expected=frozenset({TEXT, IMAGE}), topics=("lumio",))
TEXT_ONLY = scored(BOTH, {TEXT: vector(1)})
FULL_ANSWERS = {TEXT: vector(1), IMAGE: vector(2)}
FULL = scored(BOTH, FULL_ANSWERS)


@pytest.fixture
def engine(postgres: PostgresSettings) -> Iterator[sa.Engine]:
    engine = db.engine(postgres)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: sa.Engine) -> PostgresStore:
    return PostgresStore(engine, group="fusion", retry_s=5)


def rows(engine: sa.Engine, statement: str) -> list[sa.Row[Any]]:
    with engine.connect() as connection:
        return list(connection.execute(sa.text(statement)).all())


def trends(engine: sa.Engine) -> dict[Key, Counts]:
    found = {}
    for row in rows(engine, "SELECT * FROM trends"):
        values = row._mapping
        bucket = row.bucket.astimezone(UTC)
        key = Key(row.topic, Grain(row.grain), bucket, row.platform, row.language)
        found[key] = Counts(*(values[name] for name in Counts._fields))
    return found


def everything(engine: sa.Engine) -> list[list[sa.Row[Any]]]:
    """All that fusion writes but for the ledger."""
    return [
        rows(engine, f"SELECT * FROM {name} ORDER BY 1, 2, 3")
        for name in ("posts", "trends", "partial_posts")
    ] + [rows(engine, "SELECT * FROM post_days ORDER BY 1")]


def written_to(
    store: PostgresStore, *verdicts: Scored, now: datetime = NOW, expired: Sequence[str] = ()
) -> list[Written]:
    """Claims and writes, as a restarted process would."""
    claims = store.claim({verdict.joined.partition for verdict in verdicts} | {0})
    generations = {partition: claim.generation for partition, claim in claims.items()}
    return store.write(generations, verdicts, next_offsets={}, expired=expired, now=now)


def outcomes(items: Sequence[Written]) -> list[tuple[str, Outcome, int]]:
    return [(item.scored.post.post_id, item.outcome, item.sentiment.revision) for item in items]


def test_a_verdict_is_kept_whole(store: PostgresStore, engine: sa.Engine) -> None:
    nasty = "tab\t backslash \\ quote \" ' brace {} newline\n\r \\N \\. \0 emoji 😀 ‮ bidi"
    one = post(
        "test:nasty",
        text=nasty,
        topics=('quo"te', "back\\slash", "comma,", "NULL", "ünï"),
        media=(Media(IMAGE, "a" * 64, "image/\0png", 7, 'https://x/"\\'),),
        expected=frozenset({TEXT, SPEECH}),
        url="https://x/\\",
        author_hash="h",
        traceparent="00-1-2-01",
        event_time=NOON + timedelta(microseconds=123_456),
    )
    answers = {
        TEXT: Answer(None, "bad\0reason"),
        SPEECH: Answer(vector(3).vector, transcript="I\tsaid \\n no"),
    }
    verdict = scored(one, answers)
    weights = (ModalityWeight(TEXT, 0.0, "bad\0reason"), ModalityWeight(SPEECH, 1 / 3))
    verdict = judged(0, one, answers, replace(verdict.verdict, modalities=weights))
    (item,) = written_to(store, verdict)
    assert (item.outcome, item.sentiment.revision) == (Outcome.WRITTEN, 1)
    (row,) = rows(engine, "SELECT * FROM posts")
    assert row.text == nasty.replace("\0", "\ufffd")
    assert row.topics == list(one.topics)
    assert row.media == [
        {
            "kind": 2,
            "sha256": "a" * 64,
            "mime_type": "image/\ufffdpng",
            "size_bytes": 7,
            "source_url": 'https://x/"\\',
        }
    ]
    assert row.modalities == {
        "TEXT": {"contribution": 0.0, "absent_reason": "bad\ufffdreason"},
        "SPEECH": {"contribution": 1 / 3, "absent_reason": ""},
    }
    assert (row.event_time, row.url, row.transcript) == (one.event_time, one.url, "I\tsaid \\n no")
    assert (row.expected, row.answered, row.used) == (0b10010, 0b10010, 0b10000)
    # What stands is read back as it was written.
    (again,) = written_to(store, verdict, now=NOW + timedelta(hours=1))
    assert again.outcome is Outcome.SAME
    assert again.sentiment.verdict.probabilities == item.sentiment.verdict.probabilities
    assert again.sentiment.verdict.score == item.sentiment.verdict.score
    assert again.sentiment.classified_time == NOW
    assert again.sentiment.complete


def test_trends_are_exact_and_replay_changes_nothing(store: PostgresStore, engine: sa.Engine) -> None:
    verdicts = [
        scored(
            post(
                f"test:{number}",
                event_time=NOON + timedelta(seconds=37 * number),
                topics=("lumio", "metro")[: number % 3],
                language=("en", "de")[number % 2],
            ),
            {TEXT: vector(number % 4)},
            partition=number % 2,
        )
        for number in range(300)
    ]
    first = written_to(store, *verdicts)
    assert trends(engine) == deltas([counted(item.sentiment) for item in first])
    before = everything(engine)
    for some in (verdicts, verdicts[100:200], verdicts[::-7]):
        again = written_to(store, *some, now=NOW + timedelta(days=1))
        assert {item.outcome for item in again} == {Outcome.SAME}
        assert everything(engine) == before
    assert verify(engine).holds


def test_a_fuller_verdict_replaces_a_poorer_one_and_never_the_reverse(
    store: PostgresStore, engine: sa.Engine
) -> None:
    assert outcomes(written_to(store, TEXT_ONLY)) == [("test:both", Outcome.WRITTEN, 1)]
    assert store.parts({"test:both": 0})["test:both"].keys() == {TEXT}
    (full,) = written_to(store, FULL)
    assert outcomes([full]) == [("test:both", Outcome.WRITTEN, 2)]
    assert store.parts({"test:both": 0}) == {}
    before = everything(engine)
    (poorer,) = written_to(store, TEXT_ONLY)
    assert outcomes([poorer]) == [("test:both", Outcome.POORER, 2)]
    assert poorer.sentiment == full.sentiment
    assert everything(engine) == before
    assert trends(engine) == deltas([counted(full.sentiment)])
    assert verify(engine).holds


def test_another_model_judges_again(store: PostgresStore, engine: sa.Engine) -> None:
    written_to(store, FULL)
    newer = scored(BOTH, FULL_ANSWERS, model_version="fake@2")
    assert outcomes(written_to(store, newer)) == [("test:both", Outcome.WRITTEN, 2)]
    assert outcomes(written_to(store, newer)) == [("test:both", Outcome.SAME, 2)]
    assert verify(engine).holds


EDITED = post("test:both", expected=BOTH.expected, topics=("metro",), text="on second thoughts", version=10)


def test_an_edit_replaces_the_verdict_in_the_bucket_of_its_post(
    store: PostgresStore, engine: sa.Engine
) -> None:
    written_to(store, FULL)
    moved = replace(EDITED, event_time=NOON + timedelta(days=3))
    (edit,) = written_to(store, scored(moved, {TEXT: vector(2)}))
    assert outcomes([edit]) == [("test:both", Outcome.WRITTEN, 2)]
    assert edit.sentiment.post.event_time == BOTH.event_time
    (row,) = rows(engine, "SELECT * FROM posts")
    assert (row.text, row.version, row.topics) == ("on second thoughts", 10, ["metro"])
    assert {key.topic for key in trends(engine)} == {"*", "metro"}
    assert store.parts({"test:both": 10})["test:both"].keys() == {TEXT}
    before = everything(engine)
    assert outcomes(written_to(store, FULL)) == [("test:both", Outcome.POORER, 2)]
    assert everything(engine) == before
    assert outcomes(written_to(store, scored(EDITED, FULL_ANSWERS))) == [("test:both", Outcome.WRITTEN, 3)]
    assert store.parts({"test:both": 10}) == {}
    assert verify(engine).holds


def test_parts_of_an_older_form_are_not_kept_beside_those_of_a_newer(store: PostgresStore) -> None:
    written_to(store, TEXT_ONLY)
    written_to(store, scored(EDITED, {IMAGE: vector(2)}))
    assert store.parts({"test:both": 10})["test:both"].keys() == {IMAGE}
    assert store.parts({"test:both": 0}) == {}


def test_a_deleted_post_leaves_nothing_of_what_it_said_and_does_not_come_back(
    store: PostgresStore, engine: sa.Engine
) -> None:
    secret = replace(BOTH, text="a secret", author_hash="hash-of-me", url="https://x/me")
    written_to(store, scored(secret, {TEXT: vector(1)}), scored(post("test:other"), {TEXT: vector(1)}))
    tombstone = scored(gone("test:both"), {TEXT: DELETED})
    (item,) = written_to(store, tombstone)
    assert outcomes([item]) == [("test:both", Outcome.WRITTEN, 2)]
    published = codec.sentiment_to_proto(item.sentiment)
    assert (published.deleted, published.label) == (True, events_pb2.LABEL_UNSCORED)
    assert list(published.topics) == ["lumio"], "whoever shows this topic must look again"
    assert item.sentiment.post.event_time == BOTH.event_time
    assert {key.topic for key in trends(engine)} == {"*"}
    assert verify(engine).posts == 1
    left = repr(everything(engine)) + repr(rows(engine, "SELECT * FROM deleted_posts"))
    assert "secret" not in left
    assert "of-me" not in left
    assert store.parts({"test:both": 0}) == {}
    before = everything(engine)
    late = [FULL, TEXT_ONLY, scored(EDITED, FULL_ANSWERS)]
    for one in late:
        assert outcomes(written_to(store, one)) == [("test:both", Outcome.POORER, 2)]
    (again,) = written_to(store, tombstone, now=NOW + timedelta(hours=1))
    assert (again.outcome, codec.sentiment_to_proto(again.sentiment)) == (Outcome.SAME, published)
    assert everything(engine) == before
    assert verify(engine).holds


def test_a_deletion_that_comes_first_keeps_its_post_out(store: PostgresStore, engine: sa.Engine) -> None:
    assert outcomes(written_to(store, scored(gone("test:both"), {TEXT: DELETED}))) == [
        ("test:both", Outcome.WRITTEN, 1)
    ]
    assert outcomes(written_to(store, FULL)) == [("test:both", Outcome.POORER, 1)]
    assert trends(engine) == {}
    assert verify(engine).posts == 0


def test_the_latest_form_of_one_write_stands(store: PostgresStore) -> None:
    (item,) = written_to(store, scored(EDITED, {TEXT: vector(1)}), FULL)
    assert item.scored.post.version == 10
    (item,) = written_to(store, scored(gone("test:both"), {TEXT: DELETED}), scored(EDITED, FULL_ANSWERS))
    assert item.sentiment.post.deleted


def test_the_fullest_of_one_write_stands(store: PostgresStore) -> None:
    assert outcomes(written_to(store, FULL, TEXT_ONLY)) == [("test:both", Outcome.WRITTEN, 1)]


def test_retraction_takes_rows_away(store: PostgresStore, engine: sa.Engine) -> None:
    """A fuller verdict that comes with other topics: the old ones keep nothing of it."""
    written_to(store, TEXT_ONLY)
    moved = post("test:both", expected=BOTH.expected, topics=("metro",), language="de")
    written_to(store, scored(moved, FULL_ANSWERS))
    assert {(key.topic, key.language) for key in trends(engine)} == {("*", "de"), ("metro", "de")}
    assert verify(engine).holds


def test_days_across_midnight_and_the_first_event_time_wins(store: PostgresStore, engine: sa.Engine) -> None:
    late = datetime(2026, 6, 13, 23, 59, 59, 999_999, UTC)
    early = datetime(2026, 6, 14, tzinfo=UTC)
    written_to(
        store,
        scored(post("test:late", event_time=late), {TEXT: vector()}),
        scored(post("test:early", event_time=early), {TEXT: vector()}),
        scored(post("test:both", event_time=late, expected=BOTH.expected), {TEXT: vector()}),
    )
    # The same post again, fuller, said to be of another day.
    (item,) = written_to(
        store, scored(post("test:both", event_time=early, expected=BOTH.expected), FULL_ANSWERS)
    )
    assert item.sentiment.post.event_time == late
    days = rows(engine, "SELECT tableoid::regclass::text, post_id FROM posts ORDER BY 1, 2")
    assert [tuple(row) for row in days] == [
        ("posts_20260613", "test:both"),
        ("posts_20260613", "test:late"),
        ("posts_20260614", "test:early"),
    ]
    counts = {key.bucket: value.posts for key, value in trends(engine).items() if key.grain is Grain.DAY}
    assert counts == {late.replace(hour=0, minute=0, second=0, microsecond=0): 2, early: 1}
    assert verify(engine).holds


@pytest.mark.parametrize(
    "time",
    [datetime(1, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, 23, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)],
)
def test_any_day_has_a_place(store: PostgresStore, engine: sa.Engine, time: datetime) -> None:
    written_to(store, scored(post(event_time=time), {TEXT: vector()}))
    assert verify(engine).holds
    assert rows(engine, "SELECT count(*) FROM posts")[0][0] == 1


def test_two_processes_make_the_same_day_at_once(postgres: PostgresSettings, engine: sa.Engine) -> None:
    claims = PostgresStore(engine, group="fusion", retry_s=5).claim(range(4))
    generations = {partition: claim.generation for partition, claim in claims.items()}
    failures: list[BaseException] = []

    def write(partition: int) -> None:
        own = db.engine(postgres)
        try:
            PostgresStore(own, group="fusion", retry_s=5).write(
                generations,
                [
                    scored(
                        post(f"test:{partition}-{number}", event_time=NOON + timedelta(days=number % 5)),
                        {TEXT: vector(number)},
                        partition=partition,
                    )
                    for number in range(200)
                ],
                next_offsets={partition: 1},
                now=NOW,
            )
        except BaseException as error:
            failures.append(error)
        finally:
            own.dispose()

    threads = [threading.Thread(target=write, args=(partition,)) for partition in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    report = verify(engine)
    assert (report.holds, report.posts) == (True, 800)


def test_a_claim_fences_whoever_had_the_partition(store: PostgresStore, engine: sa.Engine) -> None:
    old = {partition: claim.generation for partition, claim in store.claim([0, 1]).items()}
    assert old == {0: 1, 1: 1}
    store.write(old, [TEXT_ONLY], next_offsets={0: 5, 1: 7}, now=NOW)
    claim = store.claim([0])[0]
    assert (claim.generation, claim.next_offset) == (2, 5)
    assert claim.awaited == {"test:both": NOW.timestamp()}
    before = everything(engine)
    other = scored(post("test:other"), {TEXT: vector()}, partition=1)
    with pytest.raises(Fenced) as refused:
        store.write(old, [FULL, other], next_offsets={1: 9}, now=NOW)
    assert refused.value.partitions == {0}
    assert everything(engine) == before
    assert store.claim([1])[1].next_offset == 7
    with pytest.raises(Fenced):
        store.write(old, [], next_offsets={0: 6}, now=NOW)
    assert store.claim([2])[2].next_offset == 0


def test_a_claim_waits_for_the_write_under_way(postgres: PostgresSettings, store: PostgresStore) -> None:
    """So that it reads the offset that write leaves behind."""
    store.claim([0])
    holder = db.engine(postgres)
    claimed: list[int] = []
    with holder.connect() as connection:
        connection.execute(sa.text("SELECT * FROM offset_ledger FOR UPDATE"))
        connection.execute(sa.text("UPDATE offset_ledger SET next_offset = 42"))
        claim = threading.Thread(target=lambda: claimed.append(store.claim([0])[0].next_offset))
        claim.start()
        claim.join(timeout=0.5)
        assert claim.is_alive()
        connection.commit()
        claim.join()
    holder.dispose()
    assert claimed == [42]


def test_parts_wait_until_they_expire(store: PostgresStore, engine: sa.Engine) -> None:
    three = post("test:three", expected=frozenset({TEXT, IMAGE, SPEECH}))
    heard = Answer(vector(2).vector, transcript="no")
    written_to(store, scored(three, {TEXT: vector(1), IMAGE: ABSENT}))
    written_to(store, scored(three, {TEXT: vector(1), IMAGE: ABSENT, SPEECH: heard}))
    assert store.parts({"test:three": 0}) == {}
    written_to(store, scored(post("test:2", expected=three.expected), {SPEECH: heard, IMAGE: ABSENT}))
    parts = store.parts({"test:2": 0, "test:unknown": 0})
    assert parts.keys() == {"test:2"}
    assert parts["test:2"][IMAGE] == ABSENT
    speech = parts["test:2"][SPEECH]
    assert speech.transcript == "no"
    assert speech.vector is not None
    np.testing.assert_array_equal(speech.vector, np.full(4, 2, np.float16))
    assert speech.vector.dtype == np.float16
    written_to(store, expired=["test:2"])
    assert store.parts({"test:2": 0}) == {}
    assert rows(engine, "SELECT count(*) FROM partial_posts")[0][0] == 0


def test_a_write_that_is_cut_off_leaves_nothing(store: PostgresStore, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE trends ADD CONSTRAINT no CHECK (topic <> 'lumio')"))
    with pytest.raises(sa.exc.IntegrityError):
        written_to(store, TEXT_ONLY)
    assert [len(table) for table in everything(engine)] == [0, 0, 0, 0]


def test_a_server_that_stays_away_is_unavailable() -> None:
    away = PostgresSettings(url="postgresql+psycopg2://nobody@127.0.0.1:9/none")
    store = PostgresStore(db.engine(away), group="fusion", retry_s=0.2)
    with pytest.raises(Unavailable, match="claim partitions"):
        store.claim([0])


def test_a_connection_cut_during_a_write_is_made_again(store: PostgresStore, engine: sa.Engine) -> None:
    written_to(store, TEXT_ONLY)
    claims = store.claim([0])
    with engine.connect() as connection:
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    items = store.write({0: claims[0].generation}, [FULL], next_offsets={}, now=NOW)
    assert outcomes(items) == [("test:both", Outcome.WRITTEN, 2)]


answer = st.one_of(st.just(ABSENT), st.integers(0, 5).map(vector))
verdict = st.builds(
    lambda number, answers, topics, version, form: scored(
        gone(f"test:{number}", topics=tuple(sorted(topics)))
        if form < 0
        else post(
            f"test:{number}",
            expected=frozenset({TEXT, IMAGE, AUDIO}),
            topics=tuple(sorted(topics)),
            event_time=NOON + timedelta(hours=8 * number),
            version=form,
        ),
        {TEXT: DELETED} if form < 0 else answers,
        partition=number % 2,
        model_version=f"fake@{version}",
    ),
    st.integers(0, 3),
    st.dictionaries(st.sampled_from([TEXT, IMAGE, AUDIO]), answer, min_size=1),
    st.sets(st.sampled_from(["lumio", "metro"])),
    st.integers(1, 2),
    st.sampled_from([0, 0, 0, 10, -1]),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.lists(verdict, max_size=5), st.integers(0, 3)), max_size=6))
def test_the_fake_store_does_what_postgres_does(
    engine: sa.Engine, writes: list[tuple[list[Scored], int]]
) -> None:
    """Same outcomes, trends, parts and claims: what the properties of fusion show holds of the real one."""
    with engine.begin() as connection:
        connection.execute(
            sa.text("TRUNCATE posts, post_days, deleted_posts, trends, partial_posts, offset_ledger")
        )
    real, fake = PostgresStore(engine, group="fusion", retry_s=5), MemoryStore()
    for turn, (verdicts, expired) in enumerate(writes):
        claims = real.claim([0, 1])
        assert claims == fake.claim([0, 1])
        generations = {partition: claim.generation for partition, claim in claims.items()}
        now = NOW + timedelta(seconds=turn)
        results: list[list[tuple[Outcome, events_pb2.PostSentiment]]] = []
        for store in (real, fake):
            items = store.write(
                generations, verdicts, next_offsets={0: turn}, expired=[f"test:{expired}"], now=now
            )
            results.append([(item.outcome, codec.sentiment_to_proto(item.sentiment)) for item in items])
        assert results[0] == results[1]
        for version in (0, 10):
            ids = {f"test:{number}": version for number in range(4)}
            assert _shape(real.parts(ids)) == _shape(fake.parts(ids))
    assert trends(engine) == fake.trends
    assert verify(engine).holds


def _shape(parts: Mapping[str, Mapping[Modality, Answer]]) -> object:
    return {
        (post_id, modality): (None if one.vector is None else one.vector.tolist(), one.absent_reason)
        for post_id, answers in parts.items()
        for modality, one in answers.items()
    }
