"""Trends over all platforms and languages, kept by a trigger on `trends`.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_KEY = "topic, grain, bucket"
_COUNTS = ("posts", "negative", "neutral", "positive", "unscored", "score_micro")
# What a statement changed, as rows to add: new values, and old ones taken back.
_CHANGES = {
    "insert": "SELECT {key}, {plus} FROM added",
    "update": "SELECT {key}, {plus} FROM added UNION ALL SELECT {key}, {minus} FROM removed",
    "delete": "SELECT {key}, {minus} FROM removed",
}


def _add(changes: str) -> str:
    sums = ", ".join(f"sum({name})" for name in _COUNTS)
    return (
        f"INSERT INTO trend_totals AS totals ({_KEY}, {', '.join(_COUNTS)}) "
        f"SELECT {_KEY}, {sums} FROM ({changes}) AS changed GROUP BY {_KEY} ORDER BY {_KEY} "
        f"ON CONFLICT ({_KEY}) DO UPDATE SET "
        + ", ".join(f"{name} = totals.{name} + excluded.{name}" for name in _COUNTS)
    )


def upgrade() -> None:
    op.create_table(
        "trend_totals",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("grain", sa.SmallInteger, primary_key=True),
        sa.Column("bucket", sa.TIMESTAMP(timezone=True), primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _COUNTS),
        postgresql_with={"fillfactor": 70},
    )
    op.execute(_add(f"SELECT {_KEY}, {', '.join(_COUNTS)} FROM trends"))
    for event, changes in _CHANGES.items():
        rows = changes.format(
            key=_KEY, plus=", ".join(_COUNTS), minus=", ".join(f"-{name} AS {name}" for name in _COUNTS)
        )
        op.execute(
            f"CREATE FUNCTION trend_totals_{event}() RETURNS trigger LANGUAGE plpgsql AS $$ "
            # One upsert runs two triggers, for rows inserted and rows updated: without the lock two writers
            # could wait for each other in turn. They share the totals of "*" anyway.
            "BEGIN PERFORM pg_advisory_xact_lock(hashtext('crowdtone trend totals')); "
            f"{_add(rows)}; RETURN NULL; END $$"
        )
        tables = ("NEW TABLE AS added " if event != "delete" else "") + (
            "OLD TABLE AS removed" if event != "insert" else ""
        )
        op.execute(
            f"CREATE TRIGGER trend_totals_{event} AFTER {event.upper()} ON trends REFERENCING {tables} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION trend_totals_{event}()"
        )
    op.execute(
        "CREATE FUNCTION trend_totals_truncate() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN TRUNCATE trend_totals; RETURN NULL; END $$"
    )
    op.execute(
        "CREATE TRIGGER trend_totals_truncate AFTER TRUNCATE ON trends "
        "FOR EACH STATEMENT EXECUTE FUNCTION trend_totals_truncate()"
    )


def downgrade() -> None:
    for event in (*_CHANGES, "truncate"):
        op.execute(f"DROP TRIGGER trend_totals_{event} ON trends")
        op.execute(f"DROP FUNCTION trend_totals_{event}()")
    op.drop_table("trend_totals")
