"""The join: answers come in, one modality after another, and whole posts come out.

A post is open from its first answer until every expected modality has answered or `grace_s` has passed.
Of a post that was edited or deleted meanwhile, only the latest form is waited for.
What the join holds is the open posts, and the ids of posts that were closed with parts missing.
Pure: no clock, no Kafka, no database.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, takewhile
from operator import attrgetter
from typing import Final, Self

from shared.messages import Answer, EmbeddingBatch, Modality, Post, Vector

Answers = Mapping[Modality, Answer]

OPEN_POST_BYTES: Final = 2_000
"""What an open post takes besides its words and vectors: 1,640 bytes with two answers, by the resident memory
of 25,000 open posts."""


_SPEECH: Final = Modality.SPEECH
_BIT: Final = {modality: 1 << modality for modality in Modality}


@dataclass(slots=True)
class Joined:
    """A post and the answers that came for it: a vector of a modality, or why there is none.

    expected, used, answered: bits (`mask`) of the modalities it waits for, of those with a vector, and of
    those with any answer.
    transcript: the words heard.
    late: it was closed before with parts missing: merge these answers with the ones kept then.
    The rest is the join's own: when it opened, until when it waits, about how much it takes, and the post as
    it came; see `Join.known`.
    """

    partition: int
    post: Post
    expected: int
    late: bool = False
    vectors: dict[Modality, Vector] = field(default_factory=dict)
    absent: dict[Modality, str] = field(default_factory=dict)
    transcript: str = ""
    used: int = 0
    answered: int = 0
    first_offset: int = 0
    due_s: float = 0.0
    size_bytes: int = 0
    wire: bytes = b""

    @classmethod
    def of(cls, partition: int, post: Post, late: bool = False) -> Self:
        """Before any answer."""
        return cls(partition, post, expected_mask(post.expected), late)

    @property
    def complete(self) -> bool:
        return self.expected & ~self.answered == 0

    @property
    def answers(self) -> dict[Modality, Answer]:
        """As they are kept."""
        heard = {Modality.SPEECH: self.transcript}
        found = {one: Answer(vector, "", heard.get(one, "")) for one, vector in self.vectors.items()}
        return found | {one: Answer(None, reason, heard.get(one, "")) for one, reason in self.absent.items()}

    def take(self, modality: Modality, vector: Vector | None, absent_reason: str, transcript: str) -> None:
        """Note an answer. An absent one never replaces a vector; of two vectors the newer stands."""
        if vector is not None:
            self.vectors[modality] = vector
            self.used |= _BIT[modality]
            if self.absent:
                self.absent.pop(modality, None)
        elif modality in self.vectors:
            return
        else:
            self.absent[modality] = absent_reason
        self.answered |= _BIT[modality]
        if modality is _SPEECH:
            self.transcript = transcript

    def after(self, kept: Answers) -> Joined:
        """The same post, with the answers kept from before as if they had come first."""
        both = Joined.of(self.partition, self.post, self.late)
        for modality, answer in chain(kept.items(), self.answers.items()):
            both.take(modality, answer.vector, answer.absent_reason, answer.transcript)
        return both


def mask(modalities: Iterable[Modality]) -> int:
    """Bit (1 << modality) for each."""
    return sum(map(_BIT.__getitem__, set(modalities)))


@cache
def expected_mask(expected: frozenset[Modality]) -> int:
    """`mask` of what a post expects: one of few sets."""
    return mask(expected)


@dataclass(slots=True)
class _Partition:
    next_offset: int | None = None
    # Of the open posts, about.
    size_bytes: int = 0
    # In order of arrival, so in order of first offset and of due time too.
    open: dict[str, Joined] = field(default_factory=dict)
    # Vectors of this turn that are views of their batches' matrices; `close` lets go of them.
    views: list[tuple[Joined, Modality, Vector]] = field(default_factory=list)
    # Open posts with nothing left to wait for.
    ready: dict[str, Joined] = field(default_factory=dict)
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
        bit = _BIT[modality]
        rows = iter(batch.vectors)
        for post, absent_reason, transcript, wire in zip(
            batch.posts, batch.absent_reasons, batch.transcripts, batch.wires, strict=True
        ):
            vector = None if absent_reason else next(rows)
            expected = expected_mask(post.expected)
            if not expected & bit:
                continue
            post_id = post.post_id
            waiting = opened.get(post_id)
            if waiting is not None and waiting.post is not post and waiting.post.rank != post.rank:
                if waiting.post.rank > post.rank:
                    continue
                # What was heard of an older form is of no more use, so a restart need not read it again.
                self._remove(state, waiting)
                ready.pop(post_id, None)
                waiting = None
            if waiting is None:
                late = post_id in awaited
                size = OPEN_POST_BYTES + post.text.__sizeof__() + len(wire)
                waiting = Joined(partition, post, expected, late, {}, {}, "", 0, 0, offset, due_s, size, wire)
                opened[post_id] = waiting
                state.size_bytes += size
                if expected != bit:
                    self._known[wire] = post
            waiting.take(modality, vector, absent_reason, transcript)
            if waiting.answered == expected or waiting.late:
                ready[post_id] = waiting
            elif vector is not None:
                views.append((waiting, modality, vector))

    def close(self, now: float) -> list[Joined]:
        """Take out what has nothing left to wait for, or has waited `grace_s`, or is too much to hold."""
        elapsed_s = self._tick(now)
        closed: list[Joined] = []
        for state in self._partitions.values():
            ready = list(state.ready.values())
            state.ready.clear()
            for waiting in ready:
                self._remove(state, waiting)
            overdue = list(takewhile(lambda waiting: waiting.due_s <= elapsed_s, state.open.values()))
            for waiting in overdue:
                self._remove(state, waiting)
            closed += ready
            closed += overdue
            _own_vectors(state)
        surplus = list(self._surplus())
        for waiting in surplus:
            self._remove(self._partitions[waiting.partition], waiting)
        return closed + surplus

    def _surplus(self) -> Iterator[Joined]:
        """The oldest of what is more than may be held, in number or in bytes."""
        posts, size = self.open_posts - self._max_open_posts, self.open_bytes - self._max_open_bytes
        if posts <= 0 and size <= 0:
            return
        oldest_first = heapq.merge(
            *(state.open.values() for state in self._partitions.values()), key=attrgetter("due_s")
        )
        for waiting in oldest_first:
            if posts <= 0 and size <= 0:
                return
            yield waiting
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

    def _remove(self, state: _Partition, waiting: Joined) -> None:
        del state.open[waiting.post.post_id]
        state.size_bytes -= waiting.size_bytes
        self._known.pop(waiting.wire, None)

    def _tick(self, now: float) -> float:
        """Seconds that passed since the first call. A clock set back costs nobody the time already waited."""
        if self._now_s is not None:
            self._elapsed_s += max(0.0, now - self._now_s)
        self._now_s = now
        return self._elapsed_s


def _own_vectors(state: _Partition) -> None:
    """Copy the vectors of posts that stay open: a view would keep its whole batch in memory for as long."""
    for waiting, modality, vector in state.views:
        if state.open.get(waiting.post.post_id) is waiting and waiting.vectors.get(modality) is vector:
            waiting.vectors[modality] = own = vector.copy()
            waiting.size_bytes += own.nbytes
            state.size_bytes += own.nbytes
    state.views.clear()
