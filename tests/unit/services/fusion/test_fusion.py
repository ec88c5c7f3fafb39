"""The step: dead letters, late parts, fencing; and nothing lost or counted twice, whatever happens when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from services.fusion.fusion import FENCED_S, Fusion
from services.fusion.join import Join, mask
from services.fusion.revision import counted
from services.fusion.testing import DIMENSION, FakeClassifier, MemoryStore
from services.fusion.trends import deltas
from shared import codec
from shared.errors import Unavailable
from shared.messages import (
    INT8,
    Answer,
    EmbeddingBatch,
    EmbeddingEntry,
    Label,
    Modality,
    Output,
    Post,
    PostSentiment,
    Record,
    Result,
    TopicPartition,
)
from shared.testing import NOON, post

TEXT, IMAGE, AUDIO, SPEECH = Modality
GRACE_S = 30.0
NOON_S = NOON.timestamp()


def vector(value: float = 1, dimension: int = DIMENSION) -> Answer:
    return Answer(np.full(dimension, value, np.float16))


def record(
    offset: int,
    modality: Modality,
    *entries: tuple[Post, Answer],
    partition: int = 0,
    dimension: int = DIMENSION,
    model_version: str = "encoder@1",
) -> Record:
    batch = EmbeddingBatch.of(
        modality, model_version, dimension, tuple(EmbeddingEntry(post, answer) for post, answer in entries)
    )
    output = codec.encode_embeddings(
        batch, partition=partition, service="text_encoder", id=f"{partition}/{offset}", time=NOON
    )
    return Record("embeddings", partition, offset, output.key, output.value, output.headers)


def fusion(store: MemoryStore, *partitions: int, classifier: FakeClassifier | None = None) -> Fusion:
    step = Fusion(
        Join(grace_s=GRACE_S, late_s=86_400, max_open_posts=1_000), classifier or FakeClassifier(), store
    )
    step.rebalanced(frozenset(), assigned(*partitions))
    return step


def assigned(*partitions: int) -> frozenset[TopicPartition]:
    return frozenset(TopicPartition("embeddings", partition) for partition in partitions)


def published(result: Result) -> list[tuple[str, int, bool]]:
    """Post, revision and whether it is complete, of each sentiment."""
    sentiments = [
        codec.decode_sentiment(output.value) for output in result.outputs if output.topic == "sentiments"
    ]
    return [(sentiment.post_id, sentiment.revision, sentiment.complete) for sentiment in sentiments]


BOTH = post("test:both", expected=frozenset({TEXT, IMAGE}), topics=("lumio",))


def test_a_complete_post_is_stored_and_published() -> None:
    store = MemoryStore()
    step = fusion(store, 0)
    result = step.step([record(0, TEXT, (BOTH, vector(1)))], NOON_S)
    assert (result.outputs, result.finished, result.posts) == ([], {}, 0)
    result = step.step([record(1, IMAGE, (BOTH, vector(2)))], NOON_S + 1)
    assert published(result) == [("test:both", 1, True)]
    assert result.finished == {TopicPartition("embeddings", 0): 2}
    assert result.posts == 1
    assert store.next_offsets[0] == 0  # not yet: nobody has said that the verdict was published
    assert step.step([], NOON_S + 2).outputs == []
    assert store.next_offsets[0] == 2


def test_each_expected_modality_is_explained() -> None:
    wanted = post("test:all", expected=frozenset(Modality))
    step = fusion(MemoryStore(), 0)
    step.step(
        [
            record(0, TEXT, (wanted, vector(2))),
            record(1, IMAGE, (wanted, Answer(None, "truncated JPEG"))),
            record(2, SPEECH, (wanted, replace(vector(1), transcript="never again"))),
        ],
        NOON_S,
    )
    (output,) = step.step([], NOON_S + GRACE_S).outputs
    sentiment = codec.decode_sentiment(output.value)
    assert {Modality(one.modality): one.absent_reason for one in sentiment.modalities} == {
        TEXT: "",
        IMAGE: "truncated JPEG",
        AUDIO: "no answer in time",
        SPEECH: "",
    }
    assert sum(one.contribution for one in sentiment.modalities) == pytest.approx(sentiment.score)
    assert sentiment.transcript == "never again"
    assert not sentiment.complete


def test_nothing_to_judge_is_unscored() -> None:
    store = MemoryStore()
    result = fusion(store, 0).step([record(0, TEXT, (post(), Answer(None, "empty text")))], NOON_S)
    assert published(result) == [("test:1", 1, True)]
    assert {counts.unscored for counts in store.trends.values()} == {1}


def test_a_late_part_makes_a_new_revision_even_after_a_restart() -> None:
    store = MemoryStore()
    step = fusion(store, 0)
    step.step([record(0, TEXT, (BOTH, vector(1)))], NOON_S)
    assert published(step.step([], NOON_S + GRACE_S)) == [("test:both", 1, False)]
    step = fusion(store, 0)
    result = step.step([record(1, IMAGE, (BOTH, vector(1)))], NOON_S + 1_000)
    assert published(result) == [("test:both", 2, True)]
    assert store.posts["test:both"].scored.joined.used == mask({TEXT, IMAGE})
    assert store.kept == {}


def test_a_late_part_cut_off_before_it_was_published_is_published_after_the_restart() -> None:
    store = MemoryStore()
    step = fusion(store, 0)
    step.step([record(0, TEXT, (BOTH, vector(1)))], NOON_S)
    step.step([], NOON_S + GRACE_S)
    step.step([], NOON_S + GRACE_S + 1)
    late = record(1, IMAGE, (BOTH, vector(1)))
    step.step([late], NOON_S + 100)  # stored; the process is killed before its outputs are written
    assert store.next_offsets[0] == 1
    step = fusion(store, 0)
    assert published(step.step([late], NOON_S + 200)) == []  # its first part is behind the ledger
    assert published(step.step([], NOON_S + 200 + GRACE_S)) == [("test:both", 2, True)]


def test_kept_vectors_of_another_width_are_not_used() -> None:
    @dataclass(frozen=True, slots=True)
    class Wider(FakeClassifier):
        @property
        def dimensions(self) -> dict[Modality, int]:
            return {TEXT: DIMENSION + 1, IMAGE: DIMENSION}

    store = MemoryStore()
    step = fusion(store, 0)
    step.step([record(0, TEXT, (BOTH, vector(1)))], NOON_S)
    step.step([], NOON_S + GRACE_S)
    step = fusion(store, 0, classifier=Wider("fake@2"))
    result = step.step([record(1, IMAGE, (BOTH, vector(1)))], NOON_S + 100)
    assert published(result) == [("test:both", 1, False)]  # what stands, for the new one is no better
    assert store.posts["test:both"].scored.joined.used == mask({TEXT})


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Record("embeddings", 0, 0, None, b"\xff\xff"), "not an EmbeddingBatch"),
        (
            record(0, TEXT, (post(), vector(1, dimension=7)), dimension=7),
            "text vectors of encoder@1 have 7 values; this fusion model takes 4",
        ),
    ],
    ids=["garbage", "wrong width"],
)
def test_what_cannot_be_used_is_a_dead_letter_and_its_neighbours_are_scored(bad: Record, reason: str) -> None:
    result = fusion(MemoryStore(), 0).step([bad, record(1, TEXT, (post(), vector(1)))], NOON_S)
    letter = result.outputs[0]
    assert letter.topic == "embeddings.dlq"
    assert letter.value == bad.value
    assert reason in dict(letter.headers)["reason"].decode()
    assert published(result) == [("test:1", 1, True)]
    assert result.finished == {TopicPartition("embeddings", 0): 2}


def test_vectors_of_another_encoder_than_the_model_was_trained_on_are_dead_letters() -> None:
    classifier = FakeClassifier(encoders={TEXT: "encoder@0"})
    result = fusion(MemoryStore(), 0, classifier=classifier).step(
        [record(0, TEXT, (post(), vector(1)))], NOON_S
    )
    assert [dict(output.headers)["reason"] for output in result.outputs] == [
        b"text vectors of encoder@1; this fusion model was trained on those of encoder@0"
    ]


def test_vectors_of_the_same_encoder_in_int8_are_taken() -> None:
    classifier = FakeClassifier(encoders={TEXT: "encoder@1"})
    batch = record(0, TEXT, (post(), vector(1)), model_version=f"encoder@1{INT8}")
    assert published(fusion(MemoryStore(), 0, classifier=classifier).step([batch], NOON_S)) == [
        ("test:1", 1, True)
    ]


def test_absent_answers_have_no_width_to_be_wrong() -> None:
    result = fusion(MemoryStore(), 0).step(
        [record(0, TEXT, (post(), Answer(None, "empty")), dimension=7)], NOON_S
    )
    assert published(result) == [("test:1", 1, True)]


def test_a_modality_the_model_does_not_know_is_a_dead_letter() -> None:
    @dataclass(frozen=True, slots=True)
    class TextOnly(FakeClassifier):
        @property
        def dimensions(self) -> dict[Modality, int]:
            return {TEXT: DIMENSION}

    result = fusion(MemoryStore(), 0, classifier=TextOnly()).step(
        [record(0, IMAGE, (BOTH, vector(1)))], NOON_S
    )
    assert [dict(output.headers)["reason"] for output in result.outputs] == [
        b"this fusion model knows no image"
    ]


def test_a_fenced_partition_is_dropped_and_the_others_go_on() -> None:
    store = MemoryStore()
    zombie = fusion(store, 0, 1)
    store.claim([0])
    records = [record(5, TEXT, (post("test:a"), vector(1)))]
    records.append(record(7, TEXT, (post("test:b"), vector(1)), partition=1))
    result = zombie.step(records, NOON_S)
    assert published(result) == [("test:b", 1, True)]
    assert result.finished == {TopicPartition("embeddings", 1): 8}
    assert set(store.posts) == {"test:b"}
    again = zombie.step([record(6, TEXT, (post("test:c"), vector(1)))], NOON_S + 1)
    assert (again.outputs, again.finished) == ([], {})


def test_a_partition_that_is_ours_after_all_is_started_over() -> None:
    store = MemoryStore()
    step = fusion(store, 0)
    store.claim([0])  # by a process that is gone
    step.step([record(0, TEXT, (post(), vector(1)))], NOON_S)
    step.step([record(1, TEXT, (post(), vector(1)))], NOON_S + FENCED_S)
    with pytest.raises(Unavailable, match="partition 0"):
        step.step([record(2, TEXT, (post(), vector(1)))], NOON_S + FENCED_S + 1)


def test_how_long_a_partition_has_been_lost_counts_anew_after_a_rebalance() -> None:
    store = MemoryStore()
    step = fusion(store, 0)
    store.claim([0])
    step.step([record(0, TEXT, (post(), vector(1)))], NOON_S)
    step.rebalanced(assigned(0), frozenset())
    late_s = NOON_S + 2 * FENCED_S
    assert step.step([record(1, TEXT, (post(), vector(1)))], late_s).outputs == []
    with pytest.raises(Unavailable, match="partition 0"):
        step.step([record(2, TEXT, (post(), vector(1)))], late_s + FENCED_S + 1)


def test_a_deletion_is_no_verdict_in_the_count_by_label() -> None:
    def labelled() -> list[float]:
        name = "crowdtone_verdicts_total"
        return [
            REGISTRY.get_sample_value(name, {"label": label}) or 0.0 for label in ("negative", "unscored")
        ]

    step = fusion(MemoryStore(), 0)
    negative, unscored = labelled()
    step.step([record(0, TEXT, (post(), vector(0)))], NOON_S)
    step.step([record(1, TEXT, (post(deleted=True, text=""), Answer(None, "deleted")))], NOON_S + 1)
    assert labelled() == [negative + 1, unscored]


def test_a_partition_given_back_starts_where_the_ledger_says() -> None:
    store = MemoryStore()
    step = fusion(store, 0, 1)
    step.step([record(0, TEXT, (post(), vector(1))), record(1, TEXT, (BOTH, vector(1)))], NOON_S)
    step.step([], NOON_S + 1)
    starts = step.rebalanced(assigned(0, 1), assigned(0))
    assert starts == {TopicPartition("embeddings", 0): 1}
    result = step.step([record(1, TEXT, (BOTH, vector(1))), record(2, IMAGE, (BOTH, vector(1)))], NOON_S + 2)
    assert published(result) == [("test:both", 1, True)]


# The property: a log of answers in any order, and any number of crashes, replays, pauses and thieves.

PARTITIONS = 2


@dataclass
class World:
    """Two partitions of `embeddings`, the tables, one process that reads them, and what it has published."""

    log: dict[int, list[Record]]
    store: MemoryStore = field(default_factory=MemoryStore)
    now: float = NOON_S
    process: Fusion = field(init=False)
    position: dict[int, int] = field(init=False)
    answers: dict[int, list[tuple[int, Post, Modality, Answer]]] = field(init=False)
    # How far each partition was ever read.
    read: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    sentiments: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.answers = {partition: _answers(records) for partition, records in self.log.items()}
        self.start()

    def start(self) -> None:
        self.process = Fusion(
            Join(grace_s=GRACE_S, late_s=86_400, max_open_posts=4), FakeClassifier(), self.store
        )
        self.assign()

    def assign(self) -> None:
        partitions = assigned(*self.log)
        starts = self.process.rebalanced(partitions, partitions)
        self.position = {partition.partition: offset for partition, offset in starts.items()}

    def turn(self, *records: int, lost: bool = False) -> None:
        """Read up to so many records of each partition. lost: what was stored is not published."""
        polled = []
        for partition, count in enumerate(records):
            at = self.position[partition]
            polled += self.log[partition][at : at + count]
            self.position[partition] += count
            self.read[partition] = max(self.read[partition], self.position[partition])
        result = self.process.step(polled, self.now)
        if not lost:
            self.publish(result.outputs)
        self.check()

    def publish(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            assert output.topic == "sentiments"
            sentiment = codec.decode_sentiment(output.value)
            standing = self.standing(sentiment.post_id)
            assert sentiment == codec.sentiment_to_proto(standing), "only what stands is published"
            self.sentiments[sentiment.post_id] = sentiment.revision

    def standing(self, post_id: str) -> PostSentiment:
        deleted = self.store.deleted.get(post_id)
        return deleted.sentiment if deleted else self.store.posts[post_id].standing.sentiment

    def check(self) -> None:
        """What holds after every turn."""
        assert self.store.trends == deltas(
            [counted(row.standing.sentiment) for row in self.store.posts.values()]
        )
        assert not self.store.deleted.keys() & (self.store.posts.keys() | self.store.kept.keys())
        for partition, answers in self.answers.items():
            for offset, one, modality, answer in answers:
                post_id = one.post_id
                if offset >= self.store.next_offsets[partition]:
                    continue
                if self.latest_read(partition, post_id) > one.rank:
                    continue  # of an older form nothing is needed any more
                assert self.standing(post_id).post.rank == one.rank
                assert post_id in self.sentiments, "the ledger has passed a verdict that is not published"
                if one.deleted:
                    continue
                joined = self.store.posts[post_id].scored.joined
                assert modality in joined.answers, "the ledger has passed an answer that is not stored"
                if answer.vector is not None:
                    assert modality in joined.vectors

    def latest_read(self, partition: int, post_id: str) -> tuple[bool, int]:
        """Rank of the latest form of a post that any process has read."""
        return max(
            one.rank
            for offset, one, _, _ in self.answers[partition]
            if one.post_id == post_id and offset < self.read[partition]
        )


def _answers(records: list[Record]) -> list[tuple[int, Post, Modality, Answer]]:
    """Offset, post, modality and answer, for all that is expected."""
    return [
        (one.offset, entry.post, batch.modality, entry.answer)
        for one in records
        for batch in [codec.decode_embeddings(one.value)]
        for entry in batch.entries
        if batch.modality in entry.post.expected
    ]


@st.composite
def logs(draw: st.DrawFn) -> dict[int, list[Record]]:
    """Every expected answer of some posts and their edits at least once, in any order, any batches, some
    repeated, and some deletions anywhere among them."""
    log: dict[int, list[Record]] = {}
    for partition in range(PARTITIONS):
        posts = [
            post(
                f"test:{partition}-{number}",
                event_time=datetime.fromtimestamp(NOON_S + 43_199 + number * 0.7, UTC),  # about midnight
                expected=frozenset({TEXT, *draw(st.sets(st.sampled_from([IMAGE, AUDIO, SPEECH])))}),
                topics=tuple(draw(st.sets(st.sampled_from(["lumio", "metro"])))),
                version=version,
            )
            for number in range(draw(st.integers(0, 4)))
            for version in sorted({0, *draw(st.sets(st.sampled_from([10, 20]), max_size=1))})
        ]
        ids = sorted({one.post_id for one in posts})
        deleted = draw(st.sets(st.sampled_from(ids), max_size=2)) if ids else set()
        posts += [post(post_id, text="", deleted=True) for post_id in sorted(deleted)]
        answers = {
            (one.post_id, one.rank, modality): Answer(None, "deleted at the source")
            if one.deleted
            else draw(st.one_of(st.just(Answer(None, "broken")), st.integers(0, 9).map(vector)))
            for one in posts
            for modality in sorted(one.expected)
        }
        waiting = [(one, modality) for one in posts for modality in sorted(one.expected)]
        waiting += draw(st.lists(st.sampled_from(waiting), max_size=6)) if waiting else []
        waiting = draw(st.permutations(waiting))
        records: list[Record] = []
        while waiting:
            modality = waiting[0][1]
            size = draw(st.integers(1, 3))
            taken = [pair for pair in waiting if pair[1] is modality][:size]
            for pair in taken:
                waiting.remove(pair)
            entries = [(one, answers[one.post_id, one.rank, modality]) for one, _ in taken]
            records.append(record(len(records), modality, *entries, partition=partition))
        log[partition] = records
    return log


def actions() -> st.SearchStrategy[list[tuple[str, int, int]]]:
    counts = st.integers(0, 3)
    kinds = st.sampled_from(["read", "read", "read", "wait", "crash", "cut off", "reassigned", "thief"])
    return st.lists(st.tuples(kinds, counts, counts), max_size=20)


@settings(max_examples=150, deadline=None)
@given(logs(), actions())
def test_any_order_and_any_accident_end_in_the_same_tables(
    log: dict[int, list[Record]], events: list[tuple[str, int, int]]
) -> None:
    world = World(log)
    for kind, one, other in events:
        if kind == "read":
            world.turn(one, other)
        elif kind == "wait":
            world.now += GRACE_S / 2 * (1 + one)
            world.turn(0, 0)
        elif kind == "crash":
            world.start()
        elif kind == "cut off":  # killed after the transaction, before its verdicts were published
            world.turn(one, other, lost=True)
            world.start()
        elif kind == "reassigned":
            world.assign()
        else:  # a zombie reads on although the partitions are another's
            zombie, world_position = world.process, dict(world.position)
            world.start()
            for partition in world.log:
                stale = log[partition][world_position[partition] :][: one + other]
                assert zombie.step(stale, world.now).outputs == []
    while any(world.position[partition] < len(records) for partition, records in log.items()):
        world.turn(2, 2)
    world.now += GRACE_S
    world.turn(0, 0)
    world.turn(0, 0)

    all_answers = [one for answers in world.answers.values() for one in answers]
    latest: dict[str, tuple[bool, int]] = {}
    for _, form, _, _ in all_answers:
        latest[form.post_id] = max(form.rank, latest.get(form.post_id, form.rank))
    expected: dict[str, dict[Modality, Answer]] = defaultdict(dict)
    for _, form, modality, answer in all_answers:
        if form.rank == latest[form.post_id] and not form.deleted:
            known = expected[form.post_id].get(modality)
            if known is None or known.vector is None or answer.vector is not None:
                expected[form.post_id][modality] = answer
    assert set(world.store.posts) == set(expected)
    assert set(world.store.deleted) == {post_id for post_id, (deleted, _) in latest.items() if deleted}
    for post_id, gone in world.store.deleted.items():
        assert world.sentiments[post_id] == gone.sentiment.revision, "the deletion was published"
    for post_id, parts in expected.items():
        row = world.store.posts[post_id]
        assert row.scored.joined.complete
        assert row.scored.post.rank == latest[post_id]
        assert row.scored.joined.answers.keys() == parts.keys()
        vectors = {one: part.vector for one, part in parts.items() if part.vector is not None}
        assert row.scored.verdict.label is FakeClassifier().classify([vectors])[0].label
        assert (row.scored.verdict.label is Label.UNSCORED) == (not vectors)
        assert world.sentiments[post_id] == row.standing.sentiment.revision, "the last verdict was published"
    assert world.store.kept == {}
    assert dict(world.store.next_offsets) == {
        partition: len(records) for partition, records in log.items() if records
    } | {partition: 0 for partition, records in log.items() if not records}
