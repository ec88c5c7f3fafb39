"""The join: answers come in, one modality after another, and whole posts come out.

A post is open from its first answer until every expected modality has answered or `grace_s` has passed.
Of a post that was edited or deleted meanwhile, only the latest form is waited for.
What the join holds is the open posts, and the ids of posts that were closed with parts missing.
Pure: no clock, no Kafka, no database.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from operator import itemgetter
from sys import getsizeof
from typing import Final

from shared.messages import Answer, EmbeddingBatch, Modality, Post, value

Answers = Mapping[Modality, Answer]

OPEN_POST_BYTES: Final = 2_000
"""What an open post takes besides its words and vectors: 1,640 bytes with two answers, by the resident memory
of 25,000 open posts."""


@value
class Closed:
    """A post with the answers that came for it.

    late: it was closed before with parts missing: merge these answers with the ones kept then.
    """

    partition: int
    post: Post
    answers: Answers
    late: bool

    @property
    def complete(self) -> bool:
        return self.post.expected <= self.answers.keys()


def merge(old: Answers, new: Answers) -> dict[Modality, Answer]:
    """Both together. An absent answer never replaces a vector; of two vectors the newer stands."""
    merged = dict(old)
    for modality, answer in new.items():
        _take_in(merged, modality, answer)
    return merged


def _take_in(answers: dict[Modality, Answer], modality: Modality, answer: Answer) -> None:
    known = answers.get(modality)
    if known is None or answer.vector is not None or known.vector is None:
        answers[modality] = answer


@dataclass(slots=True)
class _Open:
    post: Post
    first_offset: int
    due_s: float
    late: bool
    size_bytes: int
    answers: dict[Modality, Answer]
    # The post as it came; see `Join.known`.
    wire: bytes


@dataclass(slots=True)
class _Partition:
    next_offset: int | None = None
    # Of the open posts, about.
    size_bytes: int = 0
    # In order of arrival, so in order of first offset and of due time too.
    open: dict[str, _Open] = field(default_factory=dict)
    # Vectors of this turn that are views of their batches' matrices; `close` lets go of them.
    views: list[tuple[_Open, Modality, Answer]] = field(default_factory=list)
    # Open posts with nothing left to wait for.
    ready: dict[str, _Open] = field(default_factory=dict)
    # Ids of posts closed with parts missing (which are kept elsewhere) -> when to stop waiting, Unix seconds.
    awaited: dict[str, float] = field(default_factory=dict)


class Join:
    """The open posts of the partitions this process owns."""

    def __init__(
        self, *, grace_s: float, late_s: float, max_open_posts: int, max_open_bytes: int = 512 * 1024 * 1024
    ) -> None:
        self._grace_s = grace_s
        self._late_s = late_s
        self._max_open_posts = max_open_posts
        self._max_open_bytes = max_open_bytes
        self._partitions: dict[int, _Partition] = {}
        self._known: dict[bytes, Post] = {}
        self._now_s: float | None = None
        self._elapsed_s = 0.0

    def restore(self, partition: int, awaited: Mapping[str, float]) -> None:
        """Start on a partition with nothing open.

        awaited: ids of its posts that were closed with parts missing -> when (Unix seconds), oldest first.
        """
        self.forget(partition)
        waiting = {post_id: closed_s + self._late_s for post_id, closed_s in awaited.items()}
        self._partitions[partition] = _Partition(awaited=waiting)

    def forget(self, partition: int) -> None:
        """Drop all that is known of a partition: it is another process's now."""
        state = self._partitions.pop(partition, _Partition())
        for waiting in state.open.values():
            self._known.pop(waiting.wire, None)

    @property
    def known(self) -> Mapping[bytes, Post]:
        """Open posts that wait for more, by the bytes they came in: the same bytes are the same post."""
        return self._known

    def skip(self, partition: int, offset: int) -> None:
        """Note a record that holds no answers."""
        self._partitions[partition].next_offset = offset + 1

    def add(self, partition: int, offset: int, batch: EmbeddingBatch, now: float) -> None:
        """Take in one record's answers; duplicates and any order do no harm.

        An answer for a modality its post does not expect is passed over.
        Raises KeyError for a partition that was not restored.
        """
        due_s = self._tick(now) + self._grace_s
        modality = batch.modality
        state = self._partitions[partition]
        state.next_offset = offset + 1
        opened, awaited, ready, views = state.open, state.awaited, state.ready, state.views
        for entry in batch.entries:
            post, answer = entry.post, entry.answer
            waiting = opened.get(post.post_id)
            if waiting is not None and waiting.post is not post and waiting.post.rank != post.rank:
                if waiting.post.rank > post.rank or modality not in post.expected:
                    continue
                # What was heard of an older form is of no more use, so a restart need not read it again.
                self._remove(state, waiting)
                ready.pop(post.post_id, None)
                waiting = None
            if waiting is None:
                if modality not in post.expected:
                    continue
                wire = entry.wire
                size = OPEN_POST_BYTES + getsizeof(post.text) + len(wire)
                waiting = _Open(post, offset, due_s, post.post_id in awaited, size, {modality: answer}, wire)
                opened[post.post_id] = waiting
                state.size_bytes += size
                if len(post.expected) > 1:
                    self._known[wire] = post
            elif modality in waiting.post.expected:
                _take_in(waiting.answers, modality, answer)
            else:
                continue
            if waiting.late or len(waiting.answers) == len(waiting.post.expected):
                ready[post.post_id] = waiting
            elif answer.vector is not None:
                views.append((waiting, modality, answer))

    def close(self, now: float) -> list[Closed]:
        """Take out what has nothing left to wait for, or has waited `grace_s`, or is too much to hold."""
        elapsed_s = self._tick(now)
        closed = []
        for partition, state in self._partitions.items():
            closed += [self._take(partition, state, waiting) for waiting in state.ready.values()]
            state.ready.clear()
            overdue = list(takewhile(lambda waiting: waiting.due_s <= elapsed_s, state.open.values()))
            closed += [self._take(partition, state, waiting) for waiting in overdue]
            _own_vectors(state)
        surplus = list(self._surplus())
        return closed + [
            self._take(partition, self._partitions[partition], waiting) for partition, waiting in surplus
        ]

    def _surplus(self) -> Iterator[tuple[int, _Open]]:
        """The oldest of what is more than may be held, in number or in bytes."""
        posts, size = self.open_posts - self._max_open_posts, self.open_bytes - self._max_open_bytes
        if posts <= 0 and size <= 0:
            return
        oldest_first = heapq.merge(
            *(_by_age(partition, state) for partition, state in self._partitions.items()), key=itemgetter(0)
        )
        for _, partition, waiting in oldest_first:
            if posts <= 0 and size <= 0:
                return
            yield partition, waiting
            posts, size = posts - 1, size - waiting.size_bytes

    def await_rest(self, partition: int, post_id: str, now: float) -> None:
        """A post was stored with parts missing: what comes for it within `late_s` closes it again at once."""
        awaited = self._partitions[partition].awaited
        awaited.pop(post_id, None)  # to the end: `expire` reads from the front
        awaited[post_id] = now + self._late_s

    def settle(self, partition: int, post_id: str) -> None:
        """Nothing more is expected of this post."""
        self._partitions[partition].awaited.pop(post_id, None)

    def expire(self, now: float) -> list[str]:
        """Give up on the posts whose missing parts did not come within `late_s`; their ids."""
        expired = []
        for state in self._partitions.values():
            old = [post_id for post_id, _ in takewhile(lambda item: item[1] <= now, state.awaited.items())]
            for post_id in old:
                del state.awaited[post_id]
            expired += old
        return expired

    def finished(self) -> dict[int, int]:
        """Per partition, where a restart must read from: the oldest open post's first answer, or the end."""
        return {
            partition: next((waiting.first_offset for waiting in state.open.values()), state.next_offset)
            for partition, state in self._partitions.items()
            if state.next_offset is not None
        }

    @property
    def open_posts(self) -> int:
        return sum(len(state.open) for state in self._partitions.values())

    @property
    def open_bytes(self) -> int:
        """About."""
        return sum(state.size_bytes for state in self._partitions.values())

    @property
    def awaited_posts(self) -> int:
        return sum(len(state.awaited) for state in self._partitions.values())

    def _take(self, partition: int, state: _Partition, waiting: _Open) -> Closed:
        self._remove(state, waiting)
        return Closed(partition, waiting.post, waiting.answers, waiting.late)

    def _remove(self, state: _Partition, waiting: _Open) -> None:
        del state.open[waiting.post.post_id]
        state.size_bytes -= waiting.size_bytes
        self._known.pop(waiting.wire, None)

    def _tick(self, now: float) -> float:
        """Seconds that passed since the first call. A clock set back costs nobody the time already waited."""
        if self._now_s is not None:
            self._elapsed_s += max(0.0, now - self._now_s)
        self._now_s = now
        return self._elapsed_s


def _by_age(partition: int, state: _Partition) -> Iterator[tuple[float, int, _Open]]:
    return ((waiting.due_s, partition, waiting) for waiting in state.open.values())


def _own_vectors(state: _Partition) -> None:
    """Copy the vectors of posts that stay open: a view would keep its whole batch in memory for as long."""
    for waiting, modality, answer in state.views:
        vector = answer.vector
        if (
            vector is not None
            and state.open.get(waiting.post.post_id) is waiting
            and waiting.answers[modality] is answer
        ):
            own = vector.copy()
            waiting.answers[modality] = replace(answer, vector=own)
            waiting.size_bytes += own.nbytes
            state.size_bytes += own.nbytes
    state.views.clear()
