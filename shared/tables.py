"""The Postgres tables, as SQLAlchemy Core sees them. Migrations in deploy/postgres/migrations make them.

Counts and sums only, as integers, so that a verdict can be added and taken back exactly: scores are kept in
millionths (`score_micro`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB

MICRO: Final = 1_000_000
"""Millionths in one: the unit of `score_micro`."""

ALL_POSTS: Final = "*"
"""The topic every post counts for, besides those it matched."""

metadata = sa.MetaData()
_time = sa.TIMESTAMP(timezone=True)


class Grain(IntEnum):
    """Width of a trend bucket; the values are those of the proto."""

    MINUTE = 1
    HOUR = 2
    DAY = 3


# What is tracked. Written by the api, read by ingest.
topics = sa.Table(
    "topics",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("keywords", ARRAY(sa.Text), nullable=False),
    sa.Column("create_time", _time, nullable=False, server_default=sa.func.now()),
)

# One row per post, whichever day its row is in: makes `post_id` unique across the partitions of `posts`.
post_days = sa.Table(
    "post_days",
    metadata,
    sa.Column("post_id", sa.Text, primary_key=True),
    sa.Column("event_time", _time, nullable=False),
)

# A post and its current verdict. Range-partitioned by day (UTC) of event_time: posts_YYYYMMDD. Written by
# fusion. Look one up by post_id through post_days, which knows its event_time; the key's order serves paging.
posts = sa.Table(
    "posts",
    metadata,
    sa.Column("post_id", sa.Text, nullable=False),
    sa.Column("event_time", _time, nullable=False),
    sa.Column("platform", sa.Text, nullable=False),
    sa.Column("language", sa.Text, nullable=False),
    sa.Column("topics", ARRAY(sa.Text), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    # [{"kind": 2, "sha256": "...", "mime_type": "...", "size_bytes": 1, "source_url": ""}]
    sa.Column("media", JSONB, nullable=False),
    sa.Column("author_hash", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("ingest_time", _time, nullable=False),
    sa.Column("traceparent", sa.Text, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("label", sa.SmallInteger, nullable=False),
    sa.Column("negative", sa.Double, nullable=False),
    sa.Column("neutral", sa.Double, nullable=False),
    sa.Column("positive", sa.Double, nullable=False),
    sa.Column("score_micro", sa.Integer, nullable=False),
    # Bit (1 << modality) for each modality: which were waited for, which were answered (with a vector or with
    # why there is none), whose vectors the verdict rests on. Complete when `expected` is within `answered`.
    sa.Column("expected", sa.SmallInteger, nullable=False),
    sa.Column("answered", sa.SmallInteger, nullable=False),
    sa.Column("used", sa.SmallInteger, nullable=False),
    # {"TEXT": {"contribution": 0.4, "absent_reason": ""}, ...}
    sa.Column("modalities", JSONB, nullable=False),
    # {"joy": 0.7, ...}
    sa.Column("emotions", JSONB, nullable=False),
    sa.Column("transcript", sa.Text, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("classified_time", _time, nullable=False),
    # When its author wrote this form of it, in microseconds since the epoch; 0 for the first.
    sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
    sa.PrimaryKeyConstraint("event_time", "post_id"),
    postgresql_partition_by="RANGE (event_time)",
)


def _counts() -> list[sa.Column[int]]:
    """What is counted in a bucket."""
    names = ("posts", "negative", "neutral", "positive", "unscored", "score_micro")
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


# How people felt: one row per bucket and dimension values. Written by fusion, in the posts' transaction.
trends = sa.Table(
    "trends",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("grain", sa.SmallInteger, primary_key=True),
    sa.Column("bucket", _time, primary_key=True),
    sa.Column("platform", sa.Text, primary_key=True),
    sa.Column("language", sa.Text, primary_key=True),
    *_counts(),
    # Counters are updated in place: the room lets an update stay on its page and leave the index alone.
    postgresql_with={"fillfactor": 70},
)

# The same over all platforms and languages: one row for a bucket instead of one for each pair of them. A
# trigger on `trends` keeps it, in the statement that changes them. A bucket whose posts were all taken back
# stays, at 0.
trend_totals = sa.Table(
    "trend_totals",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("grain", sa.SmallInteger, primary_key=True),
    sa.Column("bucket", _time, primary_key=True),
    *_counts(),
    postgresql_with={"fillfactor": 70},
)

# Answers of posts that were closed with parts missing, until the rest comes or `late_s` has passed.
partial_posts = sa.Table(
    "partial_posts",
    metadata,
    sa.Column("post_id", sa.Text, primary_key=True),
    sa.Column("modality", sa.SmallInteger, primary_key=True),
    sa.Column("partition", sa.Integer, nullable=False, index=True),
    sa.Column("closed_time", _time, nullable=False, index=True),
    # One crowdtone.v1.EmbeddingBatch with this one entry.
    sa.Column("embedding", BYTEA, nullable=False),
)

# Posts deleted at the source, so that nothing that comes late brings one back: what each was counted for, and
# nothing of what it said. Written by fusion.
deleted_posts = sa.Table(
    "deleted_posts",
    metadata,
    sa.Column("post_id", sa.Text, primary_key=True),
    sa.Column("platform", sa.Text, nullable=False),
    sa.Column("language", sa.Text, nullable=False),
    sa.Column("topics", ARRAY(sa.Text), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("delete_time", _time, nullable=False),
)

# Where each partition is to be read from after a restart (what lies before is in the tables and published),
# and who may write for it: a writer with an older generation than the row's has lost it and is refused.
offset_ledger = sa.Table(
    "offset_ledger",
    metadata,
    sa.Column("consumer_group", sa.Text, primary_key=True),
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("update_time", _time, nullable=False, server_default=sa.func.now()),
)

# What the alerts service found. Derived from `trends`, and made again from them if lost.
alerts = sa.Table(
    "alerts",
    metadata,
    # "<topic>/<start of the window>/<kind>"
    sa.Column("alert_id", sa.Text, primary_key=True),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("window_start", _time, nullable=False),
    sa.Column("window_s", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("value", sa.Double, nullable=False),
    sa.Column("baseline", sa.Double, nullable=False),
    sa.Column("deviation", sa.Double, nullable=False),
    sa.Column("posts", sa.BigInteger, nullable=False),
    sa.Column("baseline_posts", sa.BigInteger, nullable=False),
    # Numbers of the proto: 1 active, 2 withdrawn.
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    # The last revision that the topic `alerts` has; what is higher is still to be published.
    sa.Column("published_revision", sa.Integer, nullable=False),
    sa.Column("update_time", _time, nullable=False),
    sa.Index("alerts_by_topic", "topic", "window_start"),
    sa.Index("alerts_by_time", "window_start", "alert_id"),
    sa.Index("alerts_unpublished", "topic", postgresql_where=sa.text("published_revision < revision")),
)
