"""The database's schema: Alembic migrations and the one function that applies them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MIGRATIONS: Final = Path(__file__).with_name("migrations")


def migrate(url: str, revision: str = "head") -> None:
    """Bring the database at `url` to `revision`; does nothing where it is there already.

    url: SQLAlchemy URL (postgresql+psycopg2://...). migrations/env.py reads it as `sqlalchemy.url`.
    Each revision is one transaction, so a failed one leaves the schema at the revision before.
    Raises sqlalchemy.exc.OperationalError when the server cannot be reached.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    # Alembic's options are interpolated like an .ini file: a percent sign in a password has to be doubled.
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(config, revision)
