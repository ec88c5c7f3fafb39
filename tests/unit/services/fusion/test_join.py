"""What arrives when, what comes out: each case is a timeline, one row per event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.fusion.join import Join, Joined
from shared.messages import Answer, EmbeddingBatch, EmbeddingEntry, Modality, Post
from shared.testing import post

TEXT, IMAGE, AUDIO, SPEECH = Modality
GRACE_S = 30.0
NOON_S = 1_781_352_000.0


def vector(value: float = 1) -> Answer:
    return Answer(np.full(2, value, np.float16))


ABSENT = Answer(None, "truncated JPEG")


def posted(name: str) -> Post:
    """`a:TI` is post a, which expects text and image; `a@2:TI` its second form, `a@x:T` its tombstone."""
    form, _, expected = name.partition(":")
    post_id, _, version = form.partition("@")
    return post(
        f"test:{post_id}",
        deleted=version == "x",
        version=0 if version == "x" else int(version or 0),
        expected=frozenset({"T": TEXT, "I": IMAGE, "A": AUDIO, "S": SPEECH}[one] for one in expected),
    )


def batch(modality: Modality, *names: str, answer: Answer | None = None) -> EmbeddingBatch:
    given = vector() if answer is None else answer
    return EmbeddingBatch.of(modality, "m@1", 2, tuple(EmbeddingEntry(posted(name), given) for name in names))


class At(NamedTuple):
    """What arrives `after_s` seconds from noon, and what the join gives out then.

    closed: "a TI" is post a closed with text and image, "a TI?" closed incomplete, "a I+" closed late.
    restart_from: of partition 0, after that.
    """

    after_s: float
    arrives: EmbeddingBatch | None
    closed: Sequence[str]
    restart_from: int | None


TIMELINES: dict[str, list[At]] = {
    "one modality expected: closed at once": [
        At(0, batch(TEXT, "a:T", "b:T"), ["a T", "b T"], 1),
    ],
    "waits for the second modality": [
        At(0, batch(TEXT, "a:TI"), [], 0),
        At(5, batch(IMAGE, "a:TI"), ["a TI"], 2),
    ],
    "in the other order": [
        At(0, batch(IMAGE, "a:TI"), [], 0),
        At(5, batch(TEXT, "a:TI"), ["a TI"], 2),
    ],
    "absent is an answer": [
        At(0, batch(TEXT, "a:TI"), [], 0),
        At(1, batch(IMAGE, "a:TI", answer=ABSENT), ["a Ti"], 2),
    ],
    "grace passes, with nothing arriving": [
        At(0, batch(TEXT, "a:TI"), [], 0),
        At(29, None, [], 0),
        At(30, None, ["a T?"], 1),
        At(31, None, [], 1),
    ],
    "the oldest open post holds the offset, not the newest": [
        At(0, batch(TEXT, "a:TI"), [], 0),
        At(1, batch(TEXT, "b:TI"), [], 0),
        At(2, batch(TEXT, "c:T"), ["c T"], 0),
        At(3, batch(IMAGE, "b:TI"), ["b TI"], 0),
        At(4, batch(IMAGE, "a:TI"), ["a TI"], 5),
    ],
    "part of a record finished: the record is read again": [
        At(0, batch(TEXT, "a:T", "b:TI"), ["a T"], 0),
        At(1, batch(IMAGE, "b:TI"), ["b TI"], 2),
    ],
    "a duplicate while open changes nothing": [
        At(0, batch(TEXT, "a:TI"), [], 0),
        At(1, batch(TEXT, "a:TI"), [], 0),
        At(2, batch(IMAGE, "a:TI"), ["a TI"], 3),
    ],
    "a duplicate inside one record": [
        At(0, batch(TEXT, "a:TI", "a:TI"), [], 0),
        At(1, batch(IMAGE, "a:TI", "a:TI"), ["a TI"], 2),
    ],
    "a vector replaces an absent answer, never the reverse": [
        At(0, batch(IMAGE, "a:TI", answer=ABSENT), [], 0),
        At(1, batch(IMAGE, "a:TI"), [], 0),
        At(2, batch(IMAGE, "a:TI", answer=ABSENT), [], 0),
        At(3, batch(TEXT, "a:TI"), ["a TI"], 4),
    ],
    "a modality nobody expects is passed over": [
        At(0, batch(IMAGE, "a:T"), [], 1),
        At(1, batch(TEXT, "a:TI"), [], 1),
        At(2, batch(SPEECH, "a:TI"), [], 1),
        At(3, batch(IMAGE, "a:TI"), ["a TI"], 4),
    ],
    "replayed after it was complete: waits, then comes out poorer (the store passes it over)": [
        At(0, batch(TEXT, "a:TI"), [], 0),
        At(1, batch(IMAGE, "a:TI"), ["a TI"], 2),
        At(2, batch(TEXT, "a:TI"), [], 2),
        At(32, None, ["a T?"], 3),
    ],
    "a clock set back costs nobody the time already waited": [
        At(0, batch(TEXT, "a:TI"), [], 0),
        At(20, None, [], 0),
        At(-3600, batch(TEXT, "b:TI"), [], 0),
        At(-3590, None, ["a T?"], 1),
        At(-3570, None, ["b T?"], 2),
    ],
    "an edit starts a post again, and what comes of the old form is passed over": [
        At(0, batch(TEXT, "a:TI"), [], 0),
        At(1, batch(TEXT, "b:TI"), [], 0),
        At(2, batch(TEXT, "a@2:TI"), [], 1),
        At(3, batch(IMAGE, "a:TI"), [], 1),
        At(4, batch(IMAGE, "b:TI"), ["b TI"], 2),
        At(31, None, [], 2),
        At(31.5, batch(IMAGE, "a@2:TI"), ["a TI"], 6),
    ],
    "what a later form does not expect is passed over: the open form goes on waiting": [
        At(0, batch(TEXT, "a:TI"), [], 0),
        At(1, batch(AUDIO, "a@2:TI"), [], 0),
        At(2, batch(IMAGE, "a:TI"), ["a TI"], 3),
    ],
    "a deletion closes a post at once, and what comes late waits for nothing": [
        At(0, batch(TEXT, "a:TI"), [], 0),
        At(1, batch(TEXT, "a@x:T", answer=ABSENT), ["a t"], 2),
        At(2, batch(IMAGE, "a:TI"), [], 2),
        At(32, None, ["a I?"], 3),
    ],
    "a clock set forward closes early, and the rest comes as a second round": [
        At(0, batch(TEXT, "a:TI"), [], 0),
        At(7200, None, ["a T?"], 1),
        At(7201, batch(IMAGE, "a:TI"), ["a I+"], 2),
    ],
}


def told(join: Join, now: float) -> list[str]:
    """What closes, written as in `At`; the join is told that what is incomplete was stored."""
    lines = []
    for closed in join.close(now):
        letters = "".join(
            one.name[0] if answer.vector is not None else one.name[0].lower()
            for one, answer in sorted(closed.answers.items())
        )
        mark = "+" if closed.late else "" if closed.complete else "?"
        lines.append(f"{closed.post.post_id.removeprefix('test:')} {letters}{mark}")
        if not closed.complete and not closed.late:
            join.await_rest(closed.partition, closed.post.post_id, now)
    return lines


def started(*, grace_s: float = GRACE_S, late_s: float = 86_400, max_open_posts: int = 1_000) -> Join:
    join = Join(grace_s=grace_s, late_s=late_s, max_open_posts=max_open_posts)
    join.restore(0, {})
    return join


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES.keys())
def test_timeline(timeline: list[At]) -> None:
    join = started()
    offset = 0
    for row in timeline:
        now = NOON_S + row.after_s
        if row.arrives is not None:
            join.add(0, offset, row.arrives, now)
            offset += 1
        assert told(join, now) == row.closed, row
        assert join.finished() == {0: row.restart_from}, row


def test_a_late_part_closes_at_once_until_late_s_has_passed() -> None:
    join = started(late_s=100)
    join.add(0, 0, batch(TEXT, "a:TI", "b:TI"), NOON_S)
    assert told(join, NOON_S + 30) == ["a T?", "b T?"]
    join.add(0, 1, batch(IMAGE, "a:TI"), NOON_S + 60)
    assert told(join, NOON_S + 60) == ["a I+"]
    assert join.expire(NOON_S + 129) == []
    assert join.expire(NOON_S + 130) == ["test:a", "test:b"]
    join.add(0, 2, batch(IMAGE, "b:TI"), NOON_S + 131)
    assert told(join, NOON_S + 131) == []
    assert join.finished() == {0: 2}


def test_waiting_again_starts_the_late_time_again() -> None:
    join = started(late_s=100)
    join.await_rest(0, "test:a", NOON_S)
    join.await_rest(0, "test:b", NOON_S + 10)
    join.await_rest(0, "test:a", NOON_S + 20)
    assert join.expire(NOON_S + 110) == ["test:b"]
    assert join.expire(NOON_S + 120) == ["test:a"]


def test_settled_posts_are_new_again() -> None:
    join = started()
    join.await_rest(0, "test:a", NOON_S)
    join.settle(0, "test:a")
    join.settle(0, "test:a")
    join.add(0, 0, batch(IMAGE, "a:TI"), NOON_S)
    assert told(join, NOON_S) == []


def test_what_a_claim_restores_is_waited_for() -> None:
    join = Join(grace_s=GRACE_S, late_s=100, max_open_posts=10)
    join.restore(0, {"test:a": NOON_S - 60, "test:b": NOON_S - 50})
    join.add(0, 7, batch(IMAGE, "a:TI"), NOON_S)
    assert told(join, NOON_S) == ["a I+"]
    assert join.finished() == {0: 8}
    assert join.expire(NOON_S + 45) == ["test:a"]


def test_a_forgotten_partition_gives_nothing_and_takes_nothing() -> None:
    join = started()
    join.restore(1, {})
    join.add(0, 0, batch(TEXT, "a:TI"), NOON_S)
    join.add(1, 0, batch(TEXT, "b:TI"), NOON_S)
    join.forget(0)
    assert told(join, NOON_S + 30) == ["b T?"]
    assert join.finished() == {1: 1}
    with pytest.raises(KeyError):
        join.add(0, 1, batch(IMAGE, "a:TI"), NOON_S)


def test_a_post_is_known_by_its_bytes_for_as_long_as_it_waits() -> None:
    def arrives(name: str, wire: bytes, partition: int = 0) -> None:
        entry = EmbeddingEntry(posted(name), vector(), wire)
        join.add(partition, 0, EmbeddingBatch.of(TEXT, "m@1", 2, (entry,)), NOON_S)

    join = started()
    join.restore(1, {})
    arrives("a:T", b"needs no more")
    arrives("b:TI", b"edited")
    arrives("b@2:TI", b"edit")
    arrives("c:TI", b"of a partition that is lost", 1)
    assert join.known == {b"edit": posted("b@2:TI"), b"of a partition that is lost": posted("c:TI")}
    join.forget(1)
    assert join.known == {b"edit": posted("b@2:TI")}
    told(join, NOON_S + 30)
    assert join.known == {}
    arrives("d:TI", b"restored over")
    join.restore(0, {})
    assert join.known == {}


def test_too_many_open_posts_close_the_oldest_of_all_partitions() -> None:
    join = started(max_open_posts=3)
    join.restore(1, {})
    join.add(0, 0, batch(TEXT, "a:TI"), NOON_S)
    join.add(1, 0, batch(TEXT, "b:TI"), NOON_S + 1)
    join.add(0, 1, batch(TEXT, "c:TI", "d:TI"), NOON_S + 2)
    join.add(1, 1, batch(TEXT, "e:TI"), NOON_S + 3)
    assert told(join, NOON_S + 3) == ["a T?", "b T?"]
    assert join.open_posts == 3
    assert join.finished() == {0: 1, 1: 1}


def test_too_many_bytes_close_the_oldest_and_a_batch_is_not_kept_for_one_post() -> None:
    join = Join(grace_s=GRACE_S, late_s=100, max_open_posts=1_000, max_open_bytes=50_000)
    join.restore(0, {})
    for offset in range(100):
        big = posted(f"{offset}:TI")
        matrix = np.zeros((500, 384), np.float16)
        entry = EmbeddingEntry(replace(big, text="x" * 3_000), Answer(matrix[7]))
        join.add(0, offset, EmbeddingBatch.of(TEXT, "m@1", 384, (entry,)), NOON_S + offset / 100)
        for closed in join.close(NOON_S + offset / 100):
            vector = closed.answers[TEXT].vector
            assert vector is not None
            assert vector.base is None
        assert join.open_bytes <= 50_000
    assert 5 <= join.open_posts <= 10
    assert told(join, NOON_S + 60)
    assert (join.open_posts, join.open_bytes) == (0, 0)


def test_a_vector_that_was_replaced_in_the_same_turn_is_not_counted_as_held() -> None:
    once, twice = started(), started()
    for join, numbers in ((once, (2,)), (twice, (1, 2))):
        for offset, number in enumerate(numbers):
            join.add(0, offset, batch(TEXT, "a:TI", answer=vector(number)), NOON_S)
        assert join.close(NOON_S) == []
    assert twice.open_bytes == once.open_bytes


def test_memory_is_the_open_and_the_awaited_posts() -> None:
    join = started(max_open_posts=50)
    for offset in range(1_000):
        join.add(0, offset, batch(TEXT, f"{offset}:TI"), NOON_S + offset)
        join.close(NOON_S + offset)
        assert join.open_posts <= GRACE_S
    assert join.awaited_posts == 0
    assert told(join, NOON_S + 2_000) != []
    assert join.open_posts == 0


@pytest.mark.parametrize("in_one_turn", [True, False])
def test_of_two_vectors_and_of_two_reasons_the_newer_stands(in_one_turn: bool) -> None:
    join = started()
    for offset, number in enumerate((1, 2)):
        join.add(0, 2 * offset, batch(TEXT, "a:TIA", answer=vector(number)), NOON_S)
        absent = Answer(None, f"reason {number}")
        join.add(0, 2 * offset + 1, batch(AUDIO, "a:TIA", answer=absent), NOON_S)
        if not in_one_turn:
            assert join.close(NOON_S) == []
    join.close(NOON_S)
    join.add(0, 4, batch(IMAGE, "a:TIA"), NOON_S)
    (closed,) = join.close(NOON_S)
    np.testing.assert_array_equal(closed.answers[TEXT].vector, [2, 2])
    assert closed.answers[AUDIO].absent_reason == "reason 2"


def test_a_record_without_answers_moves_the_offset() -> None:
    join = started()
    join.skip(0, 41)
    assert join.finished() == {0: 42}


@pytest.mark.parametrize(
    ("old", "new", "merged"),
    [
        ({TEXT: vector(1)}, {IMAGE: vector(2)}, {TEXT: 1, IMAGE: 2}),
        ({TEXT: vector(1)}, {TEXT: ABSENT}, {TEXT: 1}),
        ({TEXT: ABSENT}, {TEXT: vector(1)}, {TEXT: 1}),
        ({TEXT: vector(1)}, {TEXT: vector(2)}, {TEXT: 2}),
        ({TEXT: ABSENT}, {TEXT: ABSENT, IMAGE: ABSENT}, {TEXT: None, IMAGE: None}),
        ({}, {}, {}),
    ],
)
def test_merge(
    old: dict[Modality, Answer], new: dict[Modality, Answer], merged: dict[Modality, float | None]
) -> None:
    found = Joined.of(0, post()).after(new).after(old).answers
    assert {
        modality: None if answer.vector is None else float(answer.vector[0])
        for modality, answer in found.items()
    } == merged


answers = st.lists(
    st.tuples(
        st.integers(0, 1),  # partition
        st.sampled_from([TEXT, IMAGE, AUDIO]),
        st.lists(st.sampled_from(["a:T", "b:TI", "c:TIA", "d:TI", "e:TA"]), min_size=1, max_size=3),
        st.integers(0, 12),  # seconds until the next
    ),
    max_size=30,
)


@given(answers, st.integers(1, 6))
def test_nothing_is_held_but_open_posts_and_no_offset_passes_one(
    arriving: list[tuple[int, Modality, list[str], int]], max_open_posts: int
) -> None:
    """A restart reads the first answer of every open post again, and no more than those is in memory."""
    join = Join(grace_s=GRACE_S, late_s=100, max_open_posts=max_open_posts)
    for partition in (0, 1):
        join.restore(partition, {})
    offsets = [0, 0]
    first_heard: dict[tuple[int, str], int] = {}  # of each open post
    unfinished: dict[tuple[int, str], float] = {}  # closed, and not complete -> until when it is waited for
    now = NOON_S

    def close(now: float) -> None:
        for closed in join.close(now):
            place = (closed.partition, closed.post.post_id)
            del first_heard[place]
            if closed.complete or closed.late:
                join.settle(*place)
                unfinished.pop(place, None)
            else:
                join.await_rest(*place, now)
                unfinished[place] = now + 100

    for partition, modality, names, seconds in arriving:
        arrived = batch(modality, *names)
        join.add(partition, offsets[partition], arrived, now)
        for entry in arrived.entries:
            if modality in entry.post.expected:
                first_heard.setdefault((partition, entry.post.post_id), offsets[partition])
        offsets[partition] += 1
        close(now)
        assert join.open_posts == len(first_heard) <= max_open_posts
        assert join.awaited_posts == len(unfinished)
        for each, restart_from in join.finished().items():
            opened = [offset for (where, _), offset in first_heard.items() if where == each]
            assert restart_from == min([*opened, offsets[each]])
        now += seconds
        join.expire(now)
        unfinished = {place: until for place, until in unfinished.items() if until > now}
    close(now + GRACE_S)
    assert join.open_posts == 0
    assert join.finished() == {each: offset for each, offset in enumerate(offsets) if offset}
    join.expire(now + GRACE_S + 100)
    assert join.awaited_posts == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from([TEXT, IMAGE, SPEECH]),
            # Which post and form, and what is said of it: a vector of this number, or none.
            st.lists(
                st.tuples(st.sampled_from(["a:TI", "a@2:TIS", "b:TIS", "c:T", "c@x:T"]), st.integers(-2, 5)),
                min_size=1,
                max_size=4,
            ),
            st.booleans(),  # whether the turn ends here
        ),
        max_size=25,
    )
)
def test_what_closes_is_what_the_answers_say_one_by_one(
    arriving: list[tuple[Modality, list[tuple[str, int]], bool]],
) -> None:
    """Against a join that does one answer at a time, with objects."""
    join = started(grace_s=1_000)
    closed: list[tuple[str, dict[Modality, object]]] = []
    open_posts: dict[str, tuple[Post, dict[Modality, Answer]]] = {}
    expected: list[tuple[str, dict[Modality, object]]] = []

    def said(answers: Mapping[Modality, Answer]) -> dict[Modality, object]:
        return {
            one: (
                answer.absent_reason,
                answer.transcript,
                None if answer.vector is None else answer.vector[0],
            )
            for one, answer in sorted(answers.items())
        }

    def turn() -> None:
        closed.extend((one.post.post_id, said(one.answers)) for one in join.close(NOON_S))
        for post_id, (form, answers) in list(open_posts.items()):
            if form.expected <= answers.keys():
                expected.append((post_id, said(answers)))
                del open_posts[post_id]

    for offset, (modality, answers, ends) in enumerate(arriving):
        heard = "words" if modality is SPEECH else ""
        entries = [
            EmbeddingEntry(posted(name), Answer(None, f"reason {number}", heard))
            if number < 0
            else EmbeddingEntry(posted(name), Answer(np.full(2, number, np.float16), "", heard))
            for name, number in answers
        ]
        join.add(0, offset, EmbeddingBatch.of(modality, "m@1", 2, entries), NOON_S)
        for entry in entries:
            form, post_id = entry.post, entry.post.post_id
            known = open_posts.get(post_id)
            if modality not in form.expected or (known and known[0].rank > form.rank):
                continue
            if known is None or known[0].rank < form.rank:
                open_posts.pop(post_id, None)
                known = open_posts[post_id] = (form, {})
            before = known[1].get(modality)
            if before is None or before.vector is None or entry.answer.vector is not None:
                known[1][modality] = entry.answer
        if ends:
            turn()
    turn()
    assert sorted(closed, key=str) == sorted(expected, key=str)
    assert join.open_posts == len(open_posts)
