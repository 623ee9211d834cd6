"""The two databases of the tests: SQLite, and PostgreSQL in a throw-away cluster, if installed."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

__all__ = ["plain", "postgresql", "server", "sqlite", "url"]


def plain(url: str, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """What anybody with the database's own client could do: no code of medqa takes part."""
    if "://" not in url:
        with closing(sqlite3.connect(url, isolation_level=None)) as connection:
            return connection.execute(statement, values).fetchall()
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.replace("?", "%s"), values or None)
        return list(cursor.fetchall()) if cursor.description else []


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL, without a database, of a PostgreSQL cluster that lives as long as the tests."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        reason = "no PostgreSQL server under /usr/lib/postgresql (apt-get install postgresql)"
        if os.environ.get("MEDQA_REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    # PostgreSQL refuses to run as root.
    account: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []}
    account = account if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="medqa-pg-") as name:
        folder = Path(name)
        password = folder / "password"
        password.write_text("only-here")
        if account:
            for path in (folder, password):
                os.chown(path, *_ids("postgres"))

        def run(program: str, *arguments: str) -> None:
            subprocess.run(  # noqa: S603 - a program of the system's own
                [found[-1].with_name(program), "-D", folder / "data", *arguments],
                check=True,
                cwd=folder,
                stdout=subprocess.DEVNULL,
                timeout=120,
                **account,
            )

        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        run("initdb", "-U", "medqa", "-A", "scram-sha-256", "--pwfile", str(password), "-N")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", options)
        url = f"postgresql://medqa:only-here@127.0.0.1:{port}"
        try:
            plain(f"{url}/postgres", "CREATE DATABASE audit ENCODING 'UTF8' TEMPLATE template0")
            yield url
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate")


def _ids(user: str) -> tuple[int, int]:
    import pwd  # not on Windows

    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


@pytest.fixture
def postgresql(server: str) -> str:
    """URL of a PostgreSQL database, blank again for each test."""
    url = f"{server}/audit"
    plain(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = 'audit' AND pid <> pg_backend_pid()",
    )
    # A database of its own for each test would cost a second to make and half of one to remove.
    plain(url, "DROP SCHEMA public CASCADE")
    plain(url, "CREATE SCHEMA public AUTHORIZATION pg_database_owner")
    plain(url, "GRANT USAGE ON SCHEMA public TO PUBLIC")
    return url


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    """Path of an SQLite file that is not there yet."""
    return str(tmp_path / "new" / "audit.db")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))
