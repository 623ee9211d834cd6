"""What is left when a writer is killed, the disk is full, or the server restarts.

`tests/benchmarks/audit.py` does the same at length.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from auditing import assessment, plain

from medqa.audit import Store, verify
from medqa.audit.journal import append
from medqa.errors import StoreError

# Says each id aloud only once it was added, and begins the next at once.
WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from auditing import assessment
from medqa.audit import Store
with Store.open(sys.argv[1]) as store:
    while True:
        one = assessment()
        store.add(one)
        print(one.assessment_id, flush=True)
"""


def start(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", WRITER, url, str(Path(__file__).parents[1])],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_killed_writers_leave_nothing_half_and_lose_nothing(url: str) -> None:
    acknowledged: list[str] = []
    writers = [start(url) for _ in range(4)]
    for number, writer in enumerate(writers):
        assert writer.stdout is not None
        # The first one waits until it writes; each is then killed at another moment of an add.
        acknowledged.append(writer.stdout.readline().strip())
        time.sleep(0.037 * number)
        writer.kill()
        acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
        writer.wait(30)
        writer.stdout.close()
    with Store.open(url) as store:
        store.add(assessment())  # nothing is left locked
        found = verify(store)
    assert found.fault is None
    there = {row[0] for row in plain(url, "SELECT assessment_id FROM assessments")}
    assert set(acknowledged) <= there
    assert found.assessments == len(there)


FILLER = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from auditing import assessment
from medqa.audit import Store
from medqa.errors import StoreError
with Store.open(sys.argv[1]) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    added = 0
    try:
        while True:
            store.add(assessment())
            added += 1
    except StoreError as error:
        print(added, error.reason, sep=";")
"""


def test_a_full_disk_refuses_and_leaves_the_record_whole(sqlite: str) -> None:
    """By the limit of a file's size, which the kernel enforces as it does the disk's."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", FILLER, sqlite, str(Path(__file__).parents[1])],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    added, reason = done.stdout.strip().split(";")
    assert "disk" in reason
    assert int(added) > 0
    with Store.open(sqlite) as store:
        found = verify(store)
        assert found.fault is None
        assert found.assessments == int(added)
        store.add(assessment())  # there is room again
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def _add_and_be_cut_off(store: Store, url: str) -> None:
    with store.writing() as connection:
        append(connection, "assessment", "half-0001", "{}")
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        plain(url, f"SELECT pg_terminate_backend({pid})")
        connection.exec_driver_sql("SELECT 1")


def test_connections_that_the_server_ends_lose_nothing(postgresql: str) -> None:
    with Store.open(postgresql) as store:
        store.add(assessment("record-0002"))
        with pytest.raises(StoreError, match="terminat"):
            _add_and_be_cut_off(store, postgresql)
        store.add(assessment("record-0003"))  # the same store goes on
        found = verify(store)
    assert found.fault is None
    assert found.assessments == 2
