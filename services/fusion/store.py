"""Verdicts into Postgres: the post, what it changes in the trends, and the offset ledger, in one transaction.

So each post counts exactly once, whatever crashes and however often a record is read again. Knows no Kafka.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import compress
from operator import not_
from typing import Any, Final

import sqlalchemy as sa

from services.fusion.join import Answers
from services.fusion.revision import (
    Outcome,
    Scored,
    Standing,
    Written,
    counted,
    counted_new,
    fullest,
    retraction,
    revise,
)
from services.fusion.rows import POST_COLUMNS, TREND_COLUMNS, posts_lines, trends_lines
from services.fusion.trends import Counts, Key, deltas
from shared import codec, tables, topics
from shared.db import copy_array, copy_in, retried
from shared.errors import Fenced
from shared.messages import (
    Answer,
    EmbeddingBatch,
    EmbeddingEntry,
    Label,
    Modality,
    ModalityWeight,
    Post,
    PostSentiment,
    Verdict,
    value,
)

log = logging.getLogger(__name__)

POST_KEY: Final = ("event_time", "post_id")

_CLAIM = sa.text("""
    INSERT INTO offset_ledger (consumer_group, topic, partition, next_offset, generation)
    SELECT :group, :topic, claimed, 0, 1 FROM unnest(CAST(:partitions AS int[])) AS claimed ORDER BY claimed
    ON CONFLICT (consumer_group, topic, partition)
    DO UPDATE SET generation = offset_ledger.generation + 1, update_time = now()
    RETURNING partition, generation, next_offset
""")
_AWAITED = sa.text("""
    SELECT partition, post_id, max(closed_time) AS closed_time FROM partial_posts
    WHERE partition = ANY(:partitions) GROUP BY partition, post_id ORDER BY closed_time
""")
_LOCK_LEDGER = sa.text("""
    SELECT partition, generation FROM offset_ledger
    WHERE consumer_group = :group AND topic = :topic AND partition = ANY(:partitions)
    ORDER BY partition FOR UPDATE
""")
_MOVE_LEDGER = sa.text("""
    UPDATE offset_ledger SET next_offset = moved.next_offset, update_time = now()
    FROM unnest(CAST(:partitions AS int[]), CAST(:offsets AS bigint[])) AS moved (partition, next_offset)
    WHERE consumer_group = :group AND topic = :topic AND offset_ledger.partition = moved.partition
""")
_PARTS = sa.text("SELECT embedding FROM partial_posts WHERE post_id = ANY(:ids)")
_KEEP_PARTS = sa.text("""
    INSERT INTO partial_posts (post_id, modality, partition, closed_time, embedding)
    SELECT * FROM unnest(
        CAST(:ids AS text[]), CAST(:modalities AS smallint[]), CAST(:partitions AS int[]),
        CAST(:times AS timestamptz[]), CAST(:embeddings AS bytea[]))
    ON CONFLICT (post_id, modality) DO UPDATE SET
        partition = excluded.partition, closed_time = excluded.closed_time, embedding = excluded.embedding
""")
_DROP_PARTS = sa.text("DELETE FROM partial_posts WHERE post_id = ANY(:ids)")
_NEW_DAYS = sa.text("""
    INSERT INTO post_days (post_id, event_time)
    SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:times AS timestamptz[]))
    ON CONFLICT (post_id) DO NOTHING
""")
# LATERAL with FOR UPDATE cannot be flattened: one look-up in one day's index per post, always.
_STANDING = sa.text("""
    SELECT day.post_id, day.event_time, post.*
    FROM post_days AS day LEFT JOIN LATERAL (
        SELECT revision, expected, answered, used, topics, platform, language, label,
            negative, neutral, positive, score_micro, modalities, emotions, model_version, classified_time,
            transcript, version
        FROM posts WHERE posts.event_time = day.event_time AND posts.post_id = day.post_id
        FOR UPDATE
    ) AS post ON true
    WHERE day.post_id = ANY(:ids) ORDER BY day.post_id
""")
_DELETED = sa.text("""
    SELECT post_id, platform, language, topics, revision, delete_time FROM deleted_posts
    WHERE post_id = ANY(:ids)
""")
# The times are all its rows' own, so that only their days are looked into.
_DELETE_POSTS = sa.text("DELETE FROM posts WHERE event_time = ANY(:times) AND post_id = ANY(:ids)")
_KEEP_DELETED = sa.text("""
    INSERT INTO deleted_posts (post_id, platform, language, topics, revision, delete_time)
    VALUES (:post_id, :platform, :language, CAST(:topics AS text[]), :revision, :delete_time)
    ON CONFLICT (post_id) DO NOTHING
""")
_STAGE = sa.text("""
    CREATE TEMPORARY TABLE IF NOT EXISTS staged_posts (LIKE posts) ON COMMIT DELETE ROWS;
    CREATE TEMPORARY TABLE IF NOT EXISTS staged_trends (LIKE trends) ON COMMIT DELETE ROWS;
""")
_UPSERT_POSTS = sa.text(
    f"INSERT INTO posts ({', '.join(POST_COLUMNS)}) SELECT {', '.join(POST_COLUMNS)} FROM staged_posts "
    f"ON CONFLICT ({', '.join(POST_KEY)}) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in POST_COLUMNS if name not in POST_KEY)
)
# In key order: writers take the rows they share in the same order, so they never wait for each other in turn.
_ADD_TRENDS = sa.text(
    f"INSERT INTO trends ({', '.join(TREND_COLUMNS)}) SELECT {', '.join(TREND_COLUMNS)} FROM staged_trends "
    f"ORDER BY {', '.join(Key._fields)} ON CONFLICT ({', '.join(Key._fields)}) DO UPDATE SET "
    + ", ".join(f"{name} = trends.{name} + excluded.{name}" for name in Counts._fields)
)
_DROP_EMPTY_TRENDS = sa.text(
    "DELETE FROM trends USING staged_trends AS staged WHERE trends.posts = 0 AND staged.posts < 0 AND "
    + " AND ".join(f"trends.{name} = staged.{name}" for name in Key._fields)
)


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write for a partition, until another process claims it.

    next_offset: where to read from; all before it is in the tables and was published. 0 at first.
    awaited: ids of posts stored with parts missing -> when, in seconds since the epoch, oldest first.
    """

    generation: int
    next_offset: int
    awaited: Mapping[str, float]


@value
class _Known:
    """What the tables hold of a post: when it happened, and the verdict that stands, if any."""

    event_time: datetime
    standing: Standing | None = None


class PostgresStore:
    """The tables fusion writes. Every method is one transaction, tried again while Postgres is away.

    Raises Unavailable when it stays away for `retry_s`.
    """

    def __init__(self, engine: sa.Engine, *, group: str, retry_s: float) -> None:
        self._engine = engine
        self._ledger = {"group": group, "topic": topics.EMBEDDINGS.name}
        self._retry_s = retry_s
        self._days: set[date] = set()

    def claim(self, partitions: Iterable[int]) -> dict[int, Claim]:
        """Take over partitions: whoever had them is refused from now on; a write under way is waited for."""
        numbers = sorted(partitions)
        return retried(lambda: self._claim(numbers), retry_s=self._retry_s, what="claim partitions")

    def _claim(self, partitions: list[int]) -> dict[int, Claim]:
        with self._engine.begin() as connection:
            claimed = connection.execute(_CLAIM, {**self._ledger, "partitions": partitions}).all()
            awaited: dict[int, dict[str, float]] = defaultdict(dict)
            for partition, post_id, closed in connection.execute(_AWAITED, {"partitions": partitions}):
                awaited[partition][post_id] = closed.timestamp()
        return {
            row.partition: Claim(row.generation, row.next_offset, awaited[row.partition]) for row in claimed
        }

    def parts(self, versions: Mapping[str, int]) -> dict[str, Answers]:
        """The answers kept for posts that were stored with parts missing; nothing for others.

        versions: of each post (`Post.version`); what was kept of another version of it is left out.
        """
        return retried(lambda: self._parts(versions), retry_s=self._retry_s, what="read partial posts")

    def _parts(self, versions: Mapping[str, int]) -> dict[str, Answers]:
        kept: dict[str, dict[Modality, Answer]] = defaultdict(dict)
        with self._engine.begin() as connection:
            for (embedding,) in connection.execute(_PARTS, {"ids": sorted(versions)}):
                batch = codec.decode_embeddings(bytes(embedding))
                entry = batch.entries[0]
                if entry.post.version == versions[entry.post.post_id]:
                    kept[entry.post.post_id][batch.modality] = entry.answer
        return dict(kept)

    def write(
        self,
        generations: Mapping[int, int],
        verdicts: Sequence[Scored],
        *,
        next_offsets: Mapping[int, int],
        expired: Sequence[str] = (),
        now: datetime,
    ) -> list[Written]:
        """Store verdicts with all that follows from them; at most one per post, the fullest.

        generations: what `claim` gave, for every partition of `verdicts` and `next_offsets`.
        next_offsets: where a restart may read from, once this is committed.
        expired: posts whose missing parts are not waited for any longer: their kept parts go.
        now: when the verdicts were made.
        Returns what became of each, in order of post id, with the event time that stands: the first heard of.
        Raises Fenced, with nothing written, when a partition was claimed by another process meanwhile.
        """
        return retried(
            lambda: self._write(generations, fullest(verdicts), next_offsets, expired, now),
            retry_s=self._retry_s,
            what="write verdicts",
        )

    def _write(
        self,
        generations: Mapping[int, int],
        verdicts: Sequence[Scored],
        next_offsets: Mapping[int, int],
        expired: Sequence[str],
        now: datetime,
    ) -> list[Written]:
        with self._engine.begin() as connection:
            self._check_claims(
                connection, generations, {*next_offsets, *(scored.joined.partition for scored in verdicts)}
            )
            known = _known(connection, verdicts)
            written = [_revised(scored, known[scored.post.post_id], now) for scored in verdicts]
            fresh = [item for item in written if item.outcome is Outcome.WRITTEN]
            if fresh:
                stand = [item for item in fresh if not item.scored.post.deleted]
                self._ensure_days({item.scored.post.event_time.date() for item in stand})
                replaced = [known[item.scored.post.post_id].standing for item in fresh]
                changes = deltas(
                    counted_new(stand),
                    [counted(standing.sentiment) for standing in replaced if standing is not None],
                )
                # A post that is new to `post_days` has no row, so it needs no upsert and no table between.
                new = [known[item.scored.post.post_id].standing is None for item in stand]
                lines = posts_lines(stand)
                copy_in(connection, "posts", POST_COLUMNS, compress(lines, new))
                connection.execute(_STAGE)
                if not all(new):
                    copy_in(connection, "staged_posts", POST_COLUMNS, compress(lines, map(not_, new)))
                    connection.execute(_UPSERT_POSTS)
                copy_in(connection, "staged_trends", TREND_COLUMNS, trends_lines(changes))
                _delete(connection, [item for item in fresh if item.scored.post.deleted])
            _keep_parts(connection, written, known, expired, now)
            if next_offsets:
                moved = {"partitions": list(next_offsets), "offsets": list(next_offsets.values())}
                connection.execute(_MOVE_LEDGER, {**self._ledger, **moved})
            if fresh:
                # Last: writers of other partitions share these rows and wait from here to the commit.
                connection.execute(_ADD_TRENDS)
                if any(counts.posts < 0 for counts in changes.values()):
                    connection.execute(_DROP_EMPTY_TRENDS)
        return written

    def _check_claims(
        self, connection: sa.Connection, generations: Mapping[int, int], partitions: set[int]
    ) -> None:
        rows = connection.execute(_LOCK_LEDGER, {**self._ledger, "partitions": sorted(partitions)})
        current: dict[int, int] = {row.partition: row.generation for row in rows}
        stale = frozenset(
            partition for partition in partitions if current.get(partition) != generations[partition]
        )
        if stale:
            raise Fenced(stale)

    def _ensure_days(self, days: set[date]) -> None:
        """Create the partitions of `posts` for these days (UTC), on a connection of its own: commits at once.

        A table is made, then attached: unlike CREATE .. PARTITION OF, that shuts out no reader and no writer.
        """
        missing = sorted(days - self._days)
        if not missing:
            return
        with self._engine.begin() as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('crowdtone days of posts'))"))
            for day in missing:
                name = f"posts_{day.isoformat().replace('-', '')}"
                if connection.scalar(sa.text("SELECT to_regclass(:name)"), {"name": name}) is not None:
                    continue
                start = f"'{_midnight(day)}'"
                end = "MAXVALUE" if day == date.max else f"'{_midnight(day + timedelta(days=1))}'"
                connection.execute(
                    sa.text(
                        f"CREATE TABLE {name} (LIKE posts INCLUDING DEFAULTS INCLUDING CONSTRAINTS); "
                        f"ALTER TABLE posts ATTACH PARTITION {name} FOR VALUES FROM ({start}) TO ({end})"
                    )
                )
        self._days.update(missing)


def _midnight(day: date) -> str:
    return datetime.combine(day, time(), UTC).isoformat()


def _known(connection: sa.Connection, verdicts: Sequence[Scored]) -> dict[str, _Known]:
    """What the tables hold of each post; a post they have never seen is entered with its event time."""
    if not verdicts:
        return {}
    posts = {scored.post.post_id: scored.post for scored in verdicts}
    known = {post.post_id: _Known(post.event_time) for post in posts.values()}
    days = {
        "ids": copy_array(posts),
        "times": copy_array(post.event_time.isoformat() for post in posts.values()),
    }
    if connection.execute(_NEW_DAYS, days).rowcount == len(posts):
        return known
    without: list[str] = []
    for row in connection.execute(_STANDING, {"ids": list(posts)}):
        event_time = row.event_time.astimezone(UTC)
        if row.revision is None:
            known[row.post_id] = _Known(event_time)
            without.append(row.post_id)
        else:
            known[row.post_id] = _Known(event_time, _standing(row, posts[row.post_id], event_time))
    for row in connection.execute(_DELETED, {"ids": without}) if without else ():
        event_time = known[row.post_id].event_time
        post = Post(
            row.post_id, row.platform, event_time, event_time, language=row.language, topics=tuple(row.topics)
        )
        deleted = retraction(post, row.revision, row.delete_time.astimezone(UTC))
        known[row.post_id] = _Known(event_time, Standing(0, 0, deleted))
    return known


def _delete(connection: sa.Connection, items: Collection[Written]) -> None:
    """Take the rows of deleted posts away, and note what they were counted for."""
    if not items:
        return
    posts = [item.sentiment.post for item in items]
    gone = {"times": [post.event_time for post in posts], "ids": [post.post_id for post in posts]}
    connection.execute(_DELETE_POSTS, gone)
    connection.execute(
        _KEEP_DELETED,
        [
            {
                "post_id": item.sentiment.post.post_id,
                "platform": item.sentiment.post.platform,
                "language": item.sentiment.post.language,
                "topics": list(item.sentiment.post.topics),
                "revision": item.sentiment.revision,
                "delete_time": item.sentiment.classified_time,
            }
            for item in items
        ],
    )


def _standing(row: sa.Row[Any], post: Post, event_time: datetime) -> Standing:
    verdict = Verdict(
        label=Label(row.label),
        probabilities=(row.negative, row.neutral, row.positive),
        score=row.score_micro / tables.MICRO,
        # JSONB keeps keys in an order of its own.
        modalities=tuple(
            ModalityWeight(modality, weight["contribution"], weight["absent_reason"])
            for modality in Modality
            if (weight := row.modalities.get(modality.name)) is not None
        ),
        emotions=row.emotions,
        model_version=row.model_version,
    )
    sentiment = PostSentiment(
        post=replace(
            post,
            event_time=event_time,
            topics=tuple(row.topics),
            platform=row.platform,
            language=row.language,
            version=row.version,
            deleted=False,
        ),
        revision=row.revision,
        verdict=verdict,
        complete=row.expected & ~row.answered == 0,
        classified_time=row.classified_time.astimezone(UTC),
        transcript=row.transcript,
    )
    return Standing(row.used, row.answered, sentiment)


def _revised(scored: Scored, known: _Known, now: datetime) -> Written:
    if known.event_time != scored.post.event_time:
        post = replace(scored.post, event_time=known.event_time)
        scored = replace(scored, joined=replace(scored.joined, post=post))
    return revise(known.standing, scored, now)


def _keep_parts(
    connection: sa.Connection,
    written: Sequence[Written],
    known: Mapping[str, _Known],
    expired: Sequence[str],
    now: datetime,
) -> None:
    """Keep the answers of posts stored incomplete, for when the rest comes; drop those of no more use."""
    done = [
        item.scored.post.post_id
        for item in written
        if item.outcome is not Outcome.POORER
        and known[item.scored.post.post_id].standing is not None
        # Parts of an older form are of no more use either.
        and (item.scored.joined.complete or _another_form(item, known))
    ]
    if done or expired:
        connection.execute(_DROP_PARTS, {"ids": [*done, *expired]})
    parts = [
        (joined.post.post_id, int(modality), joined.partition, now, _part(joined.post, modality, answer))
        for joined in (item.scored.joined for item in written if item.outcome is not Outcome.POORER)
        if not joined.complete
        for modality, answer in joined.answers.items()
    ]
    if parts:
        names = ("ids", "modalities", "partitions", "times", "embeddings")
        columns = [list(column) for column in zip(*parts, strict=True)]
        connection.execute(_KEEP_PARTS, dict(zip(names, columns, strict=True)))


def _another_form(item: Written, known: Mapping[str, _Known]) -> bool:
    standing = known[item.scored.post.post_id].standing
    return standing is not None and standing.sentiment.post.rank != item.scored.post.rank


def _part(post: Post, modality: Modality, answer: Answer) -> bytes:
    """One answer as an EmbeddingBatch of one entry. Which version of the encoder gave it is not kept."""
    dimension = 1 if answer.vector is None else len(answer.vector)
    batch = EmbeddingBatch.of(modality, "", dimension, (EmbeddingEntry(post, answer),))
    return codec.encode_embeddings(batch, partition=0, service="fusion", id="", time=post.event_time).value
