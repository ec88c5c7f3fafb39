"""Which verdict of a post stands: of its latest form the fullest one, never the reverse. Pure.

A form is a post as it was first written, or after an edit, or deleted: see `Post.rank`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from functools import cache

from services.fusion.join import Answers
from services.fusion.trends import Counted
from shared.messages import Label, Modality, Post, PostSentiment, Verdict, value
from shared.tables import MICRO


@value
class Scored:
    """A post, the answers that came for it, and what the model made of them.

    verdict.modalities: one entry for each modality that was expected.
    """

    partition: int
    post: Post
    answers: Answers
    verdict: Verdict

    @property
    def answered(self) -> int:
        return mask(self.answers)

    @property
    def used(self) -> int:
        return mask([modality for modality, answer in self.answers.items() if answer.vector is not None])

    @property
    def complete(self) -> bool:
        return self.post.expected <= self.answers.keys()

    @property
    def transcript(self) -> str:
        speech = self.answers.get(Modality.SPEECH)
        return "" if speech is None else speech.transcript

    def sentiment(self, revision: int, now: datetime) -> PostSentiment:
        """As it is published."""
        if self.post.deleted:
            return retraction(self.post, revision, now)
        return PostSentiment(self.post, revision, self.verdict, self.complete, now, self.transcript)


@dataclass(frozen=True, slots=True)
class Standing:
    """The verdict the table holds, and what it rests on (bits, see `mask`), or that the post was deleted."""

    used: int
    answered: int
    sentiment: PostSentiment


class Outcome(Enum):
    """What became of a verdict."""

    WRITTEN = auto()
    """It stands now."""
    SAME = auto()
    """It stood already: a replay."""
    POORER = auto()
    """A better informed one stands, or one of a later form of the post."""


@value
class Written:
    """A verdict after its transaction.

    sentiment: what stands now, whatever the outcome. It is published every time: a replay may be the sign
    that a crash came between storing and publishing.
    """

    scored: Scored
    outcome: Outcome
    sentiment: PostSentiment


def mask(modalities: Iterable[Modality]) -> int:
    """Bit (1 << modality) for each."""
    bits = 0
    for modality in modalities:
        bits |= 1 << modality
    return bits


@cache
def expected_mask(expected: frozenset[Modality]) -> int:
    """`mask` of what a post expects: one of few sets."""
    return mask(expected)


def retraction(post: Post, revision: int, now: datetime) -> PostSentiment:
    """What is published of a deleted post: what it was counted for, and nothing of what it said."""
    rest = Post(
        post_id=post.post_id,
        platform=post.platform,
        event_time=post.event_time,
        ingest_time=post.event_time,
        language=post.language,
        topics=post.topics,
        deleted=True,
    )
    verdict = Verdict(Label.UNSCORED, (0.0, 0.0, 0.0), 0.0, (), {}, "")
    return PostSentiment(rest, revision, verdict, complete=True, classified_time=now)


def revise(standing: Standing | None, scored: Scored, now: datetime) -> Written:
    """What is to become of a verdict made `now`, given the one that stands."""
    if standing is None:
        return Written(scored, Outcome.WRITTEN, scored.sentiment(1, now))
    outcome = _compare(standing, scored)
    if outcome is not Outcome.WRITTEN:
        return Written(scored, outcome, standing.sentiment)
    revision = standing.sentiment.revision + 1
    if scored.post.deleted:  # it says nothing of what it was counted for; what stands does
        return Written(scored, outcome, retraction(standing.sentiment.post, revision, now))
    return Written(scored, outcome, scored.sentiment(revision, now))


def _compare(standing: Standing, scored: Scored) -> Outcome:
    known = standing.sentiment.post
    if scored.post.rank != known.rank:
        return Outcome.WRITTEN if scored.post.rank > known.rank else Outcome.POORER
    if known.deleted:
        return Outcome.SAME
    if scored.used != standing.used:
        return Outcome.WRITTEN if _within(standing.used, scored.used) else Outcome.POORER
    if scored.answered != standing.answered:
        return Outcome.WRITTEN if _within(standing.answered, scored.answered) else Outcome.POORER
    known_version = standing.sentiment.verdict.model_version
    return Outcome.SAME if scored.verdict.model_version == known_version else Outcome.WRITTEN


def counted(sentiment: PostSentiment) -> Counted:
    """What the trends count of it."""
    post, verdict = sentiment.post, sentiment.verdict
    micro = score_micro(verdict.score)
    return Counted(post.event_time, post.topics, post.platform, post.language, verdict.label, micro)


def score_micro(score: float) -> int:
    return round(score * MICRO)


def fullest(verdicts: Iterable[Scored]) -> list[Scored]:
    """One verdict per post, of its latest form the best informed, in order of post id."""
    best: dict[str, Scored] = {}
    for scored in verdicts:
        known = best.get(scored.post.post_id)
        if known is None or _over(scored, known):
            best[scored.post.post_id] = scored
    return [best[post_id] for post_id in sorted(best)]


def _over(scored: Scored, known: Scored) -> bool:
    if scored.post.rank != known.post.rank:
        return scored.post.rank > known.post.rank
    return _within(known.used, scored.used)


def _within(some: int, all_: int) -> bool:
    return some & ~all_ == 0
