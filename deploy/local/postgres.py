"""PostgreSQL from Debian's package as a process of ours, never Debian's own cluster.

PostgreSQL refuses to run as root, so root starts it as the package's `postgres` user. Knows nothing of the
schema.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploy.local.process import wait_reaped
from deploy.local.state import Failed, write_private

if TYPE_CHECKING:
    from psycopg2.extensions import connection

MIN_VERSION: Final = 15
USER: Final = "postgres"
INSTALLED: Final = Path("/usr/lib/postgresql")
REAP_TIMEOUT_S: Final = 15.0


def bin_dir(data: Path) -> Path:
    """The server's programs: the version that made `data`, else the newest one installed.

    Raises Failed when there is none from 15 on.
    """
    installed = {
        int(folder.name): folder / "bin"
        for folder in INSTALLED.glob("[0-9]*")
        if (folder / "bin" / "postgres").exists() and int(folder.name) >= MIN_VERSION
    }
    made_by = data / "PG_VERSION"
    if made_by.exists():
        version = int(made_by.read_text())
        if version not in installed:
            raise Failed(
                f"PostgreSQL {version} made {data} and is not installed: apt-get install postgresql-{version}"
            )
        return installed[version]
    if not installed:
        raise Failed(f"no PostgreSQL {MIN_VERSION} or later in {INSTALLED}: apt-get install postgresql")
    return installed[max(installed)]


def _unprivileged(directory: Path) -> list[str]:
    """What to put before a command so that it does not run as root; nothing where we are not root."""
    if os.geteuid() != 0:
        return []
    try:
        pwd.getpwnam(USER)
    except KeyError:
        raise Failed(f"PostgreSQL does not run as root, and there is no user {USER!r} to run it as") from None
    drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]
    if subprocess.run([*drop, "--", "test", "-x", str(directory)], check=False).returncode == 0:
        return [*drop, "--"]
    # A checkout in /root or another private folder: let this process pass through what is closed to its user.
    return [*drop, "--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--"]


def prepare(directory: Path, password: str) -> None:
    """Create the cluster the first time, with one superuser, `crowdtone`, who needs the password.

    Raises Failed when PostgreSQL is missing or initdb fails.
    """
    folder = (directory / "postgres").resolve()
    data = folder / "data"
    if (data / "PG_VERSION").exists():
        lock = data / "postmaster.pid"
        if lock.exists():
            # A killed postmaster that nobody has reaped yet still looks alive to the next one.
            wait_reaped(int(lock.read_text().split("\n", 1)[0]), REAP_TIMEOUT_S)
        return
    programs = bin_dir(data)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(data, ignore_errors=True)  # left by an initdb that was interrupted
    password_file = folder / "password"
    write_private(password_file, password + "\n")
    if os.geteuid() == 0:
        for path in (folder, password_file):
            shutil.chown(path, USER, USER)
    initdb = subprocess.run(
        [
            *_unprivileged(folder),
            *(str(programs / "initdb"), "--pgdata", str(data), "--username=crowdtone"),
            *("--pwfile", str(password_file), "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"),
            "--no-instructions",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    password_file.unlink()
    if initdb.returncode != 0:
        shutil.rmtree(data, ignore_errors=True)
        raise Failed(f"initdb could not create {data}:\n{initdb.stdout}{initdb.stderr}")


def command(directory: Path, port: int) -> list[str]:
    folder = (directory / "postgres").resolve()
    data = folder / "data"
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",  # Debian's default folder may be missing or another cluster's
        "shared_buffers": "128MB",
        "max_connections": "100",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] %q%a ",
        "max_wal_size": "1GB",
    }
    flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
    return [*_unprivileged(folder), str(bin_dir(data) / "postgres"), "-D", str(data), *flags]


def answers(port: int, password: str, timeout_s: int = 2) -> None:
    """Log in and run a query. Raises OSError with the reason when that does not work."""
    with _connect(port, password, timeout_s) as session, session.cursor() as cursor:
        cursor.execute("SELECT 1")


def create_database(port: int, password: str, name: str, template: str | None = None) -> None:
    """Create a database unless it exists; `template` is a database to copy, which nobody may be using."""
    from psycopg2 import sql

    with _connect(port, password, 10) as session:
        session.autocommit = True
        with session.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            if cursor.fetchone() is None:
                cursor.execute(
                    sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                        sql.Identifier(name), sql.Identifier(template or "template0")
                    )
                )


def drop_database(port: int, password: str, name: str) -> None:
    """Drop a database with whoever is still connected to it."""
    from psycopg2 import sql

    with _connect(port, password, 10) as session:
        session.autocommit = True
        with session.cursor() as cursor:
            cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def _connect(port: int, password: str, timeout_s: int) -> Iterator[connection]:
    import psycopg2

    try:
        session = psycopg2.connect(
            host="127.0.0.1",
            port=port,
            user="crowdtone",
            password=password,
            dbname="postgres",
            connect_timeout=timeout_s,
        )
    except psycopg2.OperationalError as error:
        raise OSError(str(error).strip()) from error
    try:
        yield session
    finally:
        session.close()
