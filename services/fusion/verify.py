"""The trends recomputed from the posts, and where they differ: the proof that each post counts once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import sqlalchemy as sa

from services.fusion.trends import Counts, Key
from shared.tables import Grain

# Independent of the arithmetic that keeps the trends: counted by Postgres from the posts alone.
_RECOUNT: Final = """
    WITH minutes AS (
        SELECT topic, date_trunc('minute', event_time, 'UTC') AS bucket, platform, language,
            count(*) AS posts,
            count(*) FILTER (WHERE label = 1) AS negative,
            count(*) FILTER (WHERE label = 2) AS neutral,
            count(*) FILTER (WHERE label = 3) AS positive,
            count(*) FILTER (WHERE label = 4) AS unscored,
            coalesce(sum(score_micro) FILTER (WHERE label <> 4), 0) AS score_micro
        FROM posts CROSS JOIN LATERAL (SELECT '*' UNION SELECT unnest(topics)) AS counted (topic)
        GROUP BY topic, bucket, platform, language
    ), recount AS (
        SELECT topic, grain, date_trunc(unit, bucket, 'UTC') AS bucket, platform, language,
            sum(posts) AS posts, sum(negative) AS negative, sum(neutral) AS neutral,
            sum(positive) AS positive, sum(unscored) AS unscored, sum(score_micro) AS score_micro
        FROM minutes CROSS JOIN (
            VALUES (1::smallint, 'minute'), (2::smallint, 'hour'), (3::smallint, 'day')
        ) AS grains (grain, unit)
        GROUP BY topic, grain, date_trunc(unit, bucket, 'UTC'), platform, language
    )
"""
_DIFFERENCES: Final = sa.text(
    _RECOUNT
    + f"SELECT {', '.join(Key._fields)}, "
    + ", ".join(f"trends.{name} AS kept_{name}, recount.{name} AS counted_{name}" for name in Counts._fields)
    + f" FROM recount FULL JOIN trends USING ({', '.join(Key._fields)}) WHERE "
    + " OR ".join(f"trends.{name} IS DISTINCT FROM recount.{name}" for name in Counts._fields)
    + f" ORDER BY {', '.join(Key._fields)} LIMIT :most"
)
_TOTALS: Final = sa.text(
    """
    SELECT (SELECT count(*) FROM posts) AS posts, (SELECT count(*) FROM trends) AS trends,
        (SELECT count(*) FROM posts LEFT JOIN post_days USING (post_id, event_time)
         WHERE post_days.post_id IS NULL) AS unlisted_posts,
        (SELECT count(*) FROM (SELECT topic, grain, bucket, """
    + ", ".join(f"sum({name}) AS {name}" for name in Counts._fields)
    + """ FROM trends GROUP BY topic, grain, bucket) AS summed
         FULL JOIN trend_totals AS totals USING (topic, grain, bucket) WHERE """
    + " OR ".join(f"coalesce(totals.{name}, 0) <> coalesce(summed.{name}, 0)" for name in Counts._fields)
    + ") AS wrong_totals"
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of `trends` that is not what the posts say. None where there is no such row."""

    key: Key
    kept: Counts | None
    counted: Counts | None


@dataclass(frozen=True, slots=True)
class Report:
    """What was compared, and what differs.

    unlisted_posts: posts whose id is not listed with their time, so that the same id might be there twice.
    wrong_totals: rows of `trend_totals` that are not the sums of their rows of `trends`.
    """

    posts: int
    trends: int
    unlisted_posts: int
    wrong_totals: int
    differences: tuple[Difference, ...]

    @property
    def holds(self) -> bool:
        return not (self.differences or self.unlisted_posts or self.wrong_totals)


def verify(engine: sa.Engine, *, most: int = 1_000) -> Report:
    """Recompute all trends of all grains from the posts, in one snapshot that disturbs nobody.

    most: how many differences are reported at most.
    """
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with snapshot.begin() as connection:
        totals = connection.execute(_TOTALS).one()
        rows = connection.execute(_DIFFERENCES, {"most": most}).all()
    return Report(
        totals.posts,
        totals.trends,
        totals.unlisted_posts,
        totals.wrong_totals,
        tuple(_difference(row) for row in rows),
    )


def _difference(row: sa.Row[tuple[object, ...]]) -> Difference:
    values = row._mapping
    bucket: datetime = values["bucket"]
    key = Key(
        values["topic"],
        Grain(values["grain"]),
        bucket.astimezone(UTC),
        values["platform"],
        values["language"],
    )
    return Difference(key, _counts(values, "kept"), _counts(values, "counted"))


def _counts(values: sa.RowMapping, side: str) -> Counts | None:
    if values[f"{side}_posts"] is None:
        return None
    return Counts(*(int(values[f"{side}_{name}"]) for name in Counts._fields))
