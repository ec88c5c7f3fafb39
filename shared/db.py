"""The one way to reach Postgres: an engine, and a bounded wait for a server that is away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any, Final, TypeVar

import psycopg2
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError
from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_delay, wait_exponential_jitter

from shared.errors import Unavailable
from shared.settings import PostgresSettings

log = logging.getLogger(__name__)
T = TypeVar("T")

# What COPY's text format escapes, the backslash first. Postgres text cannot hold NUL; it becomes the
# replacement character.
_COPY_ESCAPES: Final = {
    "\\": "\\\\",
    "\t": "\\t",
    "\n": "\\n",
    "\r": "\\r",
    "\0": "\ufffd",
}


# A server that vanishes without a word, as a lost machine does, is noticed after 30 s; by the system's own
# keepalive it is after two hours.
_NOTICED: Final = {
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


def engine(
    settings: PostgresSettings,
    *,
    pool_size: int = 2,
    autocommit: bool = False,
    statement_timeout_s: float | None = None,
) -> sa.Engine:
    """A pooled engine. Nothing connects until it is used.

    autocommit: each statement is a transaction of its own, and a connection is used without asking first
    whether it still stands: one round trip a statement instead of four. The caller repeats what fails on a
    stale one.
    statement_timeout_s: the server cancels a longer statement; also how long a connection is waited for.
    """
    limits: dict[str, Any] = {"connect_args": dict(_NOTICED)}
    if statement_timeout_s is not None:
        limits["pool_timeout"] = statement_timeout_s
        limits["connect_args"] |= {
            "connect_timeout": max(1, int(statement_timeout_s)),
            # What must be quick has no time to be compiled first: 43 ms for a trend of 90 days.
            "options": f"-c statement_timeout={int(statement_timeout_s * 1000)} -c jit=off",
        }
    if autocommit:
        limits["isolation_level"] = "AUTOCOMMIT"
        limits["pool_reset_on_return"] = None  # there is never a transaction to end
    return sa.create_engine(
        settings.url.get_secret_value(),
        pool_size=pool_size,
        max_overflow=0,
        pool_pre_ping=not autocommit,
        hide_parameters=True,
        **limits,
    )


def check_answers(engine: sa.Engine) -> None:
    """Whether the server answers now. Raises what SQLAlchemy raises."""
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))


def is_transient(error: BaseException) -> bool:
    """Whether waiting can help: the server is away or restarting, or two transactions collided."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if not isinstance(error, OperationalError):
        return False
    code = getattr(error.orig, "pgcode", None)
    # No code: the connection itself failed. 08: connection, 40: rollback, 53: resources, 57P: shutdown.
    return code is None or code[:2] in {"08", "40", "53"} or code[:3] == "57P"


def retried(work: Callable[[], T], *, retry_s: float, what: str) -> T:
    """`work()` again until it succeeds; `work` is a whole transaction, so that a retry starts from nothing.

    Raises Unavailable when the server stays away for `retry_s`; any other error at once.
    """
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_delay(retry_s),
        wait=wait_exponential_jitter(multiplier=0.1, max=5.0),
        before_sleep=before_sleep_log(log, logging.WARNING),
        reraise=True,
    )
    try:
        return retrying(work)
    except DBAPIError as error:
        if is_transient(error):
            raise Unavailable(f"Postgres stayed away for {retry_s:.0f} s: {what}: {error.orig}") from error
        raise


def rows(
    connection: sa.Connection, statement: str, parameters: Mapping[str, Any], *, prepare: str = ""
) -> Sequence[tuple[Any, ...]]:
    """All rows of one statement in the driver's own style, as the driver gives them.

    For what is asked hundreds of times a second: the work that SQLAlchemy does around a statement costs more
    than the statement. prepare: a PREPARE that the statement EXECUTEs, run once on each connection.
    Raises what SQLAlchemy raises for an ordinary one; the other connections of the pool are left as they are
    where this one has died.
    """
    with _as_sqlalchemy_raises(connection, statement):
        cursor = connection.connection.cursor()
        if prepare and prepare not in connection.info:
            cursor.execute(prepare)
            connection.info[prepare] = True
        cursor.execute(statement, parameters)
        return cursor.fetchall()


def copy_in(connection: sa.Connection, table: str, columns: Sequence[str], lines: Iterable[str]) -> None:
    """Append rows to a table by COPY, inside the connection's transaction.

    lines: of each row the text of its values between tabs; see `copy_texts` and `copy_array`.
    Raises what SQLAlchemy raises for an ordinary statement.
    """
    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
    with _as_sqlalchemy_raises(connection, statement):
        connection.connection.cursor().copy_expert(statement, StringIO("\n".join([*lines, ""])))


@contextmanager
def _as_sqlalchemy_raises(connection: sa.Connection, statement: str) -> Iterator[None]:
    try:
        yield
    except psycopg2.Error as error:
        closed = bool(getattr(connection.connection.dbapi_connection, "closed", True))
        if closed:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statement, None, error, psycopg2.Error, hide_parameters=True, connection_invalidated=closed
        ) from error


def copy_texts(values: Sequence[str]) -> Sequence[str]:
    """The values of a text column, escaped for COPY; what none of them has is told by one search of all."""
    together = "".join(values)
    for character, escaped in _COPY_ESCAPES.items():
        if character in together:
            values = [value.replace(character, escaped) for value in values]
    return values


def copy_array(items: Iterable[str]) -> str:
    """An array as the text of one value; in COPY it is escaped like any other text."""
    quoted = (item.replace("\\", "\\\\").replace('"', '\\"') for item in items)
    return "{" + ",".join(f'"{item}"' for item in quoted) + "}"
