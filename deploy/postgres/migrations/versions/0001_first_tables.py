"""First tables: topics, posts by day, trends, partial posts, offset ledger.

Revision ID: 0001
Revises: none
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_time = sa.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "topics",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("keywords", ARRAY(sa.Text), nullable=False),
        sa.Column("create_time", _time, nullable=False, server_default=sa.func.now()),
    )
    op.create_table(
        "post_days",
        sa.Column("post_id", sa.Text, primary_key=True),
        sa.Column("event_time", _time, nullable=False),
    )
    op.create_table(
        "posts",
        sa.Column("post_id", sa.Text, nullable=False),
        sa.Column("event_time", _time, nullable=False),
        sa.Column("platform", sa.Text, nullable=False),
        sa.Column("language", sa.Text, nullable=False),
        sa.Column("topics", ARRAY(sa.Text), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
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
        sa.Column("expected", sa.SmallInteger, nullable=False),
        sa.Column("answered", sa.SmallInteger, nullable=False),
        sa.Column("used", sa.SmallInteger, nullable=False),
        sa.Column("modalities", JSONB, nullable=False),
        sa.Column("emotions", JSONB, nullable=False),
        sa.Column("transcript", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("classified_time", _time, nullable=False),
        # Time first: newest-first paging reads the index backwards, and an id is looked up with its time.
        sa.PrimaryKeyConstraint("event_time", "post_id"),
        postgresql_partition_by="RANGE (event_time)",
    )
    op.create_table(
        "trends",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("grain", sa.SmallInteger, primary_key=True),
        sa.Column("bucket", _time, primary_key=True),
        sa.Column("platform", sa.Text, primary_key=True),
        sa.Column("language", sa.Text, primary_key=True),
        sa.Column("posts", sa.BigInteger, nullable=False),
        sa.Column("negative", sa.BigInteger, nullable=False),
        sa.Column("neutral", sa.BigInteger, nullable=False),
        sa.Column("positive", sa.BigInteger, nullable=False),
        sa.Column("unscored", sa.BigInteger, nullable=False),
        sa.Column("score_micro", sa.BigInteger, nullable=False),
        postgresql_with={"fillfactor": 70},
    )
    op.create_table(
        "partial_posts",
        sa.Column("post_id", sa.Text, primary_key=True),
        sa.Column("modality", sa.SmallInteger, primary_key=True),
        sa.Column("partition", sa.Integer, nullable=False, index=True),
        sa.Column("closed_time", _time, nullable=False, index=True),
        sa.Column("embedding", BYTEA, nullable=False),
    )
    op.create_table(
        "offset_ledger",
        sa.Column("consumer_group", sa.Text, primary_key=True),
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("update_time", _time, nullable=False, server_default=sa.func.now()),
    )


def downgrade() -> None:
    for name in ("offset_ledger", "partial_posts", "trends", "posts", "post_days", "topics"):
        op.drop_table(name)
