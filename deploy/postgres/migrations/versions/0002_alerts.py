"""Alerts.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_time = sa.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "alerts",
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
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("published_revision", sa.Integer, nullable=False),
        sa.Column("update_time", _time, nullable=False),
    )
    op.create_index("alerts_by_topic", "alerts", ["topic", "window_start"])
    op.create_index("alerts_by_time", "alerts", ["window_start", "alert_id"])
    op.create_index(
        "alerts_unpublished",
        "alerts",
        ["topic"],
        postgresql_where=sa.text("published_revision < revision"),
    )


def downgrade() -> None:
    op.drop_table("alerts")
