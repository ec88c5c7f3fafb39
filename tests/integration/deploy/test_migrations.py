from __future__ import annotations

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from deploy.postgres import migrate
from shared.settings import PostgresSettings
from shared.tables import metadata


def differences(url: str) -> list[object]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        days = set(
            connection.scalars(sa.text("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'"))
        )
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "include_object": lambda item, name, kind, reflected, other: (
                    not (kind == "table" and name in days)
                ),
            },
        )
        return list(compare_metadata(context, metadata))


def test_migrations_make_the_tables_that_the_code_knows(postgres: PostgresSettings) -> None:
    url = postgres.url.get_secret_value()
    assert differences(url) == []
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE trends DROP COLUMN unscored"))
    assert differences(url) != []


def test_down_and_up_again(postgres: PostgresSettings) -> None:
    from alembic import command
    from alembic.config import Config

    from deploy.postgres import MIGRATIONS

    url = postgres.url.get_secret_value()
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.downgrade(config, "base")
    assert differences(url) != []
    migrate(url)
    assert differences(url) == []
