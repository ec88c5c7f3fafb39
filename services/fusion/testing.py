"""A store in memory and a classifier without a model, with the behaviour of the real ones.

tests/integration/fusion compares the store with PostgresStore, so that it stays honest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from services.fusion.join import Answers, Joined
from services.fusion.revision import Outcome, Scored, Standing, Written, counted, fullest, revise
from services.fusion.store import Claim
from services.fusion.trends import ZERO, Counts, Key, deltas
from services.fusion.verdicts import Verdicts
from shared.errors import Fenced
from shared.messages import Label, Modality, ModalityWeight, Post, Vector, Verdict

DIMENSION: Final = 4


@dataclass(frozen=True, slots=True)
class FakeClassifier:
    """Judges by the sum of what it is given; the same posts one by one or together give the same verdicts."""

    model_version: str = "fake@1"
    encoders: Mapping[Modality, str] = field(default_factory=dict)

    @property
    def dimensions(self) -> Mapping[Modality, int]:
        return dict.fromkeys(Modality, DIMENSION)

    def classify(self, posts: Sequence[Mapping[Modality, Vector]]) -> Verdicts:
        return verdicts_of([self._verdict(post) for post in posts], self.model_version)

    def _verdict(self, post: Mapping[Modality, Vector]) -> Verdict:
        if not post:
            return Verdict(Label.UNSCORED, (0.0, 0.0, 0.0), 0.0, (), {}, self.model_version)
        total = sum(float(vector.sum()) for vector in post.values())
        label = Label(1 + int(total) % 3)
        sure = tuple(1.0 if one == label else 0.0 for one in (Label.NEGATIVE, Label.NEUTRAL, Label.POSITIVE))
        score = sure[2] - sure[0]
        weights = tuple(ModalityWeight(modality, score / len(post)) for modality in sorted(post))
        return Verdict(
            label, (sure[0], sure[1], sure[2]), score, weights, {"joy": sure[2]}, self.model_version
        )


def verdicts_of(verdicts: Sequence[Verdict], model_version: str) -> Verdicts:
    """The columns of these verdicts, whose emotions have the same names where they have any."""
    weights = [[one for one in verdict.modalities if not one.absent_reason] for verdict in verdicts]
    return Verdicts(
        [verdict.label for verdict in verdicts],
        [verdict.probabilities for verdict in verdicts],
        [verdict.score for verdict in verdicts],
        [tuple(weight.modality for weight in some) for some in weights],
        [[weight.contribution for weight in some] for some in weights],
        tuple({name: None for verdict in verdicts for name in verdict.emotions}),
        [list(verdict.emotions.values()) for verdict in verdicts],
        model_version,
    )


def judged(partition: int, post: Post, answers: Answers, verdict: Verdict) -> Scored:
    """A post by itself with this verdict on it."""
    joined = Joined.of(partition, post).after(answers)
    return Scored(joined, verdicts_of([verdict], verdict.model_version), 0)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of `posts`."""

    scored: Scored
    standing: Standing


class MemoryStore:
    """services.fusion.store.PostgresStore, in dictionaries."""

    def __init__(self) -> None:
        self.days: dict[str, datetime] = {}
        self.posts: dict[str, Row] = {}
        self.deleted: dict[str, Standing] = {}
        self.trends: dict[Key, Counts] = {}
        self.kept: dict[str, Joined] = {}
        self.closed_s: dict[str, float] = {}
        self.generations: dict[int, int] = defaultdict(int)
        self.next_offsets: dict[int, int] = defaultdict(int)

    def claim(self, partitions: Iterable[int]) -> dict[int, Claim]:
        claims = {}
        for partition in partitions:
            self.generations[partition] += 1
            awaited = [
                (closed_s, post_id)
                for post_id, closed_s in self.closed_s.items()
                if self.kept[post_id].partition == partition
            ]
            claims[partition] = Claim(
                self.generations[partition],
                self.next_offsets[partition],
                {post_id: closed_s for closed_s, post_id in sorted(awaited)},
            )
        return claims

    def parts(self, versions: Mapping[str, int]) -> dict[str, Answers]:
        return {
            post_id: self.kept[post_id].answers
            for post_id, version in versions.items()
            if post_id in self.kept and self.kept[post_id].post.version == version
        }

    def write(
        self,
        generations: Mapping[int, int],
        verdicts: Sequence[Scored],
        *,
        next_offsets: Mapping[int, int],
        expired: Sequence[str] = (),
        now: datetime,
    ) -> list[Written]:
        partitions = {*next_offsets, *(scored.joined.partition for scored in verdicts)}
        stale = frozenset(one for one in partitions if self.generations[one] != generations[one])
        if stale:
            raise Fenced(stale)
        for post_id in expired:
            self._drop_parts(post_id)
        written = [self._store(scored, now) for scored in fullest(verdicts)]
        self.next_offsets.update(next_offsets)
        return written

    def _store(self, scored: Scored, now: datetime) -> Written:
        post_id = scored.post.post_id
        event_time = self.days.setdefault(post_id, scored.post.event_time)
        joined = replace(scored.joined, post=replace(scored.post, event_time=event_time))
        scored = replace(scored, joined=joined)
        row = self.posts.get(post_id)
        standing = row.standing if row else self.deleted.get(post_id)
        written = revise(standing, scored, now)
        if written.outcome is Outcome.POORER:
            return written
        if standing and scored.post.rank != standing.sentiment.post.rank:
            self._drop_parts(post_id)
        if written.outcome is Outcome.WRITTEN:
            stands = Standing(joined.used, joined.answered, written.sentiment)
            if scored.post.deleted:
                self.posts.pop(post_id, None)
                self.deleted[post_id] = stands
            else:
                self.posts[post_id] = Row(scored, stands)
            retracted = [counted(row.standing.sentiment)] if row else []
            added = [] if scored.post.deleted else [counted(written.sentiment)]
            for key, change in deltas(added, retracted).items():
                kept = self.trends.get(key, ZERO)
                total = Counts(*(a + b for a, b in zip(kept, change, strict=True)))
                if total.posts == 0:
                    del self.trends[key]
                else:
                    self.trends[key] = total
        if joined.complete:
            self._drop_parts(post_id)
        else:
            kept_before = self.kept[post_id].answers if post_id in self.kept else {}
            self.kept[post_id] = Joined.of(joined.partition, joined.post).after(kept_before | joined.answers)
            self.closed_s[post_id] = now.timestamp()
        return written

    def _drop_parts(self, post_id: str) -> None:
        self.kept.pop(post_id, None)
        self.closed_s.pop(post_id, None)
