"""The step of fusion: embeddings in, verdicts out; what is published or committed was stored before.

Knows the join, a classifier and a store; no Kafka, no clock, no torch, no SQL.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from services.fusion.join import Answers, Join, Joined
from services.fusion.revision import Outcome, Scored, Written
from services.fusion.store import Claim
from services.fusion.verdicts import Verdicts
from shared import codec, metrics, topics
from shared.errors import Fenced, InvalidMessage, Unavailable
from shared.messages import (
    EmbeddingBatch,
    Label,
    Modality,
    Output,
    Record,
    Result,
    TopicPartition,
    Vector,
    same_model,
)

log = logging.getLogger(__name__)

SERVICE: Final = "fusion"

FENCED_S: Final = 30.0
"""A partition lost to another process goes quiet once the group has told us. One that is still read from
after this long is ours after all, and its claim was taken by a process that has gone: start over."""


class Classifier(Protocol):
    """The fusion model, as the step sees it.

    dimensions: length of the vectors it takes, for the modalities it knows.
    encoders: model version of the encoder whose vectors it was trained on, where that is known.
    """

    @property
    def dimensions(self) -> Mapping[Modality, int]: ...

    @property
    def encoders(self) -> Mapping[Modality, str]: ...

    def classify(self, posts: Sequence[Mapping[Modality, Vector]]) -> Verdicts:
        """One verdict per post, from the vectors there are; UNSCORED where there are none."""
        ...


class Store(Protocol):
    """The tables, as the step sees them; services.fusion.store.PostgresStore tells what each promises."""

    def claim(self, partitions: Iterable[int]) -> dict[int, Claim]: ...
    def parts(self, versions: Mapping[str, int]) -> dict[str, Answers]: ...
    def write(
        self,
        generations: Mapping[int, int],
        verdicts: Sequence[Scored],
        *,
        next_offsets: Mapping[int, int],
        expired: Sequence[str] = (),
        now: datetime,
    ) -> list[Written]: ...


class Fusion:
    """Joins, classifies and stores the posts of the partitions this process has claimed."""

    def __init__(self, join: Join, classifier: Classifier, store: Store) -> None:
        self._join = join
        self._classifier = classifier
        self._store = store
        self._generations: dict[int, int] = {}
        self._fenced_s: dict[int, float] = {}
        # Finished by the turn before, so published and acknowledged by now; and as the ledger has it.
        self._published: dict[int, int] = {}
        self._ledger: dict[int, int] = {}

    def rebalanced(
        self, revoked: frozenset[TopicPartition], assigned: frozenset[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        """Drop what was taken away, claim what was given (shared.kafka.Rebalanced).

        Returns where to start reading each partition given.
        """
        for _, partition in revoked | assigned:
            self._drop(partition)
            self._fenced_s.pop(partition, None)
        if not assigned:
            return {}
        claims = self._store.claim(partition for _, partition in assigned)
        for partition, claim in claims.items():
            self._join.restore(partition, claim.awaited)
            self._generations[partition] = claim.generation
            self._ledger[partition] = claim.next_offset
        return {assignment: claims[assignment.partition].next_offset for assignment in assigned}

    def step(self, records: Sequence[Record], now: float) -> Result:
        """One turn of the loop (shared.messages.Step)."""
        time = datetime.fromtimestamp(now, UTC)
        dead_letters: list[Output] = []
        for record in records:
            if record.partition not in self._generations:
                self._check_fenced(record.partition, now)
                continue
            try:
                batch = self._decoded(record)
            except InvalidMessage as error:
                dead_letters.append(codec.dead_letter(record, service=SERVICE, reason=str(error), time=time))
                self._join.skip(record.partition, record.offset)
                continue
            self._join.add(record.partition, record.offset, batch, now)
        closed = self._with_kept_parts(self._join.close(now))
        written = self._write(self._scored(closed), self._join.expire(now), now, time)
        self._follow(written, now)
        metrics.OPEN_POSTS.labels(SERVICE).set(self._join.open_posts)
        finished = {
            partition: offset
            for partition, offset in self._join.finished().items()
            if offset != self._published.get(partition, self._ledger[partition])
        }
        self._published.update(finished)
        return Result(
            outputs=[*dead_letters, *codec.encode_sentiments(item.sentiment for item in written)],
            finished={
                TopicPartition(topics.EMBEDDINGS.name, partition): offset
                for partition, offset in finished.items()
            },
            posts=len(written),
        )

    def _decoded(self, record: Record) -> EmbeddingBatch:
        """Raises InvalidMessage for what is not a batch, or not one this model can take."""
        batch = codec.decode_embeddings(record.value, self._join.known)
        dimension = self._classifier.dimensions.get(batch.modality)
        if dimension is None:
            raise InvalidMessage(f"this fusion model knows no {batch.modality.name.lower()}")
        if batch.dimension != dimension and len(batch.vectors):
            raise InvalidMessage(
                f"{batch.modality.name.lower()} vectors of {batch.model_version} have {batch.dimension} "
                f"values; this fusion model takes {dimension}"
            )
        trained_on = self._classifier.encoders.get(batch.modality, batch.model_version)
        if not same_model(batch.model_version, trained_on):
            raise InvalidMessage(
                f"{batch.modality.name.lower()} vectors of {batch.model_version}; "
                f"this fusion model was trained on those of {trained_on}"
            )
        return batch

    def _with_kept_parts(self, closed: Sequence[Joined]) -> Sequence[Joined]:
        """Join what came late with the parts kept since the post was closed the first time."""
        late = {
            item.post.post_id: item.post.version for item in closed if item.late and not item.post.deleted
        }
        if not late:
            return closed
        kept = self._store.parts(late)
        return [
            item.after(self._usable(kept.get(item.post.post_id, {}))) if item.late else item
            for item in closed
        ]

    def _usable(self, kept: Answers) -> Answers:
        """Kept answers without the vectors that another fusion model took."""
        dimensions = self._classifier.dimensions
        return {
            modality: answer
            for modality, answer in kept.items()
            if answer.vector is None or len(answer.vector) == dimensions.get(modality)
        }

    def _scored(self, closed: Sequence[Joined]) -> list[Scored]:
        if not closed:
            return []
        verdicts = self._classifier.classify([item.vectors for item in closed])
        return [Scored(item, verdicts, row) for row, item in enumerate(closed)]

    def _write(
        self, verdicts: Sequence[Scored], expired: Sequence[str], now: float, time: datetime
    ) -> list[Written]:
        """Store the verdicts of the partitions that are still ours, and where a restart may read from."""
        while True:
            moved = {
                partition: offset
                for partition, offset in self._published.items()
                if offset != self._ledger[partition]
            }
            if not (verdicts or moved or expired):
                return []
            try:
                written = self._store.write(
                    self._generations, verdicts, next_offsets=moved, expired=expired, now=time
                )
            except Fenced as error:
                log.warning("%s; dropped what was open of them", error)
                for partition in error.partitions:
                    self._drop(partition)
                    self._fenced_s[partition] = now
                verdicts = [scored for scored in verdicts if scored.joined.partition in self._generations]
                continue
            self._ledger.update(moved)
            return written

    def _follow(self, written: Sequence[Written], now: float) -> None:
        """Tell the join of which posts the rest is waited for, as the store does, and count the verdicts."""
        poorer, new = Outcome.POORER, Outcome.WRITTEN
        labels: list[Label] = []
        for item in written:
            outcome, joined = item.outcome, item.scored.joined
            if outcome is poorer:
                continue
            if outcome is new and not joined.post.deleted:
                labels.append(item.scored.label)
            if joined.complete:
                self._join.settle(joined.partition, joined.post.post_id)
            else:
                self._join.await_rest(joined.partition, joined.post.post_id, now)
        for label, count in Counter(labels).items():
            metrics.VERDICTS.labels(label.name.lower()).inc(count)

    def _drop(self, partition: int) -> None:
        self._join.forget(partition)
        for known in (self._generations, self._published, self._ledger):
            known.pop(partition, None)

    def _check_fenced(self, partition: int, now: float) -> None:
        if now - self._fenced_s.setdefault(partition, now) > FENCED_S:
            raise Unavailable(
                f"another process claimed partition {partition}, yet the broker still gives it to this one"
            )
