"""Alembic's entry: connects to `sqlalchemy.url` and compares with shared/tables.py."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from shared.tables import metadata


def run() -> None:
    url = context.config.get_main_option("sqlalchemy.url")
    if url is None:
        raise ValueError("no sqlalchemy.url: call deploy.postgres.migrate(url)")
    engine = sa.create_engine(url, poolclass=sa.NullPool, hide_parameters=True)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
        with context.begin_transaction():
            # Two that start together: the second waits here, and then finds nothing left to do.
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('crowdtone migrations'))"))
            context.run_migrations()


if context.is_offline_mode():
    raise NotImplementedError("migrations are run against a server")
run()
