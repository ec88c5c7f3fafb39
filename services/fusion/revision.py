"""Which verdict of a post stands: of its latest form the fullest one, never the reverse. Pure.

A form is a post as it was first written, or after an edit, or deleted: see `Post.rank`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum, auto
from typing import Final

from services.fusion.join import Joined
from services.fusion.trends import Counted
from services.fusion.verdicts import Verdicts
from shared.messages import Label, Modality, ModalityWeight, Post, PostSentiment, Verdict, value
from shared.tables import MICRO

NO_ANSWER: Final = "no answer in time"


@value
class Scored:
    """A post with the answers that came for it, and what the model made of them: a row of `verdicts`."""

    joined: Joined
    verdicts: Verdicts
    row: int

    @property
    def post(self) -> Post:
        return self.joined.post

    @property
    def label(self) -> Label:
        return self.verdicts.labels[self.row]

    @property
    def verdict(self) -> Verdict:
        """With one entry for each modality expected: what it contributed, or why it did not."""
        verdict = self.verdicts[self.row]
        if len(verdict.modalities) == len(self.post.expected):
            return verdict  # nothing is missing
        contributed = {weight.modality: weight for weight in verdict.modalities}
        weights = [
            contributed.get(modality) or ModalityWeight(modality, 0.0, self._absent_reason(modality))
            for modality in sorted(self.post.expected)
        ]
        return replace(verdict, modalities=tuple(weights))

    def _absent_reason(self, modality: Modality) -> str:
        if not self.joined.answered >> modality & 1:
            return NO_ANSWER
        return self.joined.absent.get(modality, "")

    def sentiment(self, revision: int, now: datetime) -> PostSentiment:
        """As it is published."""
        joined = self.joined
        if joined.post.deleted:
            return retraction(joined.post, revision, now)
        return PostSentiment(joined.post, revision, self.verdict, joined.complete, now, joined.transcript)


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

    revision, time: of the verdict `scored` where that stands now.
    other: what stands instead of it.
    """

    scored: Scored
    outcome: Outcome
    revision: int
    time: datetime
    other: PostSentiment | None = None

    @property
    def sentiment(self) -> PostSentiment:
        """What stands now, whatever the outcome. It is published every time: a replay may be the sign that a
        crash came between storing and publishing."""
        return self.other or self.scored.sentiment(self.revision, self.time)


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
        return Written(scored, Outcome.WRITTEN, 1, now)
    outcome = _compare(standing, scored)
    known = standing.sentiment
    if outcome is not Outcome.WRITTEN:
        return Written(scored, outcome, known.revision, known.classified_time, known)
    revision = known.revision + 1
    # A deletion says nothing of what the post was counted for; what stands does.
    gone = retraction(known.post, revision, now) if scored.post.deleted else None
    return Written(scored, outcome, revision, now, gone)


def _compare(standing: Standing, scored: Scored) -> Outcome:
    joined, known = scored.joined, standing.sentiment.post
    if joined.post.rank != known.rank:
        return Outcome.WRITTEN if joined.post.rank > known.rank else Outcome.POORER
    if known.deleted:
        return Outcome.SAME
    if joined.used != standing.used:
        return Outcome.WRITTEN if _within(standing.used, joined.used) else Outcome.POORER
    if joined.answered != standing.answered:
        return Outcome.WRITTEN if _within(standing.answered, joined.answered) else Outcome.POORER
    same = scored.verdicts.model_version == standing.sentiment.verdict.model_version
    return Outcome.SAME if same else Outcome.WRITTEN


def counted(sentiment: PostSentiment) -> Counted:
    """What the trends count of it."""
    return _counted(sentiment.post, sentiment.verdict.label, sentiment.verdict.score)


def counted_new(items: Iterable[Written]) -> Iterator[Counted]:
    """The same of verdicts that stand now, which need not be made for it."""
    for item in items:
        verdicts, row = item.scored.verdicts, item.scored.row
        yield _counted(item.scored.joined.post, verdicts.labels[row], verdicts.scores[row])


def _counted(post: Post, label: Label, score: float) -> Counted:
    return Counted(post.event_time, post.topics, post.platform, post.language, label, score_micro(score))


def score_micro(score: float) -> int:
    return round(score * MICRO)


def fullest(verdicts: Iterable[Scored]) -> list[Scored]:
    """One verdict per post, of its latest form the best informed, in order of post id."""
    best: dict[str, Scored] = {}
    for scored in verdicts:
        post_id = scored.joined.post.post_id
        known = best.get(post_id)
        if known is None or _over(scored.joined, known.joined):
            best[post_id] = scored
    return [best[post_id] for post_id in sorted(best)]


def _over(joined: Joined, known: Joined) -> bool:
    if joined.post.rank != known.post.rank:
        return joined.post.rank > known.post.rank
    return _within(known.used, joined.used)


def _within(some: int, all_: int) -> bool:
    return some & ~all_ == 0
