"""What the audit record takes and stands: speed, killed writers, a full disk, a restarted server.

    python tests/benchmarks/audit.py [--small] [sqlite] [postgresql]

Prints the figures of docs/audit.md. PostgreSQL runs in a throw-away cluster, with fsync on.
"""

from __future__ import annotations

import multiprocessing
import os
import pwd
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from auditing import assessment, plain

from medqa.audit import Store, verify
from medqa.errors import StoreError

SMALL = "--small" in sys.argv
PROCESSES, EACH = (4, 25) if SMALL else (8, 500)
RECORDS = 2_000 if SMALL else 100_000
KILLS = 5 if SMALL else 200


class Cluster:
    """A PostgreSQL server of one's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bin = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        self._account: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self._account = {"user": "postgres", "group": "postgres", "extra_groups": []}
            entry = pwd.getpwnam("postgres")
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._run("initdb", "-U", "medqa", "-A", "trust")
        self.start()
        self.url = f"postgresql://medqa@127.0.0.1:{self._port}/postgres"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(  # noqa: S603
            [self._bin / program, "-D", self._folder / "data", *arguments],
            check=True,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            **self._account,
        )

    def start(self) -> None:
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1"
        self._run("pg_ctl", "start", "-w", "-l", str(self._folder / "log"), "-o", options)

    def stop(self, mode: str) -> None:
        self._run("pg_ctl", "stop", "-w", "-m", mode)


def add_many(url: str, count: int) -> None:
    with Store.open(url) as store:
        for _ in range(count):
            store.add(assessment())


def add_until_killed(url: str, pipe: int, patient: bool) -> None:
    """Write each id to the pipe once it was added; `patient` waits while there is no server."""
    store = Store.open(url)
    while True:
        one = assessment()
        try:
            store.add(one)
        except StoreError:
            if not patient:
                raise
            time.sleep(0.05)
            continue
        os.write(pipe, one.assessment_id.encode())


def whole(url: str, acknowledged: set[str]) -> str:
    with Store.open(url, readonly=True) as store:
        found = verify(store)
    there = {row[0] for row in plain(url, "SELECT assessment_id FROM assessments")}
    state = "whole" if found.fault is None else f"BROKEN: {found.fault}"
    return f"{state}, {found.assessments} there, {len(acknowledged - there)} acknowledged lost"


def inserts(url: str) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_many, args=(url, EACH)) for _ in range(PROCESSES)]
    begin = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - begin
    failed = sum(worker.exitcode != 0 for worker in workers)
    rate = PROCESSES * EACH / seconds
    print(f"{PROCESSES} x {EACH}: {rate:.0f} per second, {failed} failed; {whole(url, set())}")
    begin = time.perf_counter()
    count = EACH if SMALL else 200
    add_many(url, count)
    print(f"one process: {count / (time.perf_counter() - begin):.0f} per second")


def verification(url: str) -> None:
    """Fill up in transactions of 500, which `Store.add` cannot, then verify."""
    from medqa.audit.chain import SEARCH_COLUMNS, assessment_body, canonical_json
    from medqa.audit.journal import append
    from medqa.audit.tables import assessments

    with Store.open(url) as store:
        there = len(plain(url, "SELECT 1 FROM assessments"))
        for start in range(there, RECORDS, 500):
            with store.writing() as connection:
                for number in range(start + 1, min(start + 500, RECORDS) + 1):
                    one = assessment()
                    record = canonical_json(one)
                    row: dict[str, Any] = dict.fromkeys(SEARCH_COLUMNS)
                    row |= {"sequence": number, "assessment_id": one.assessment_id}
                    row |= {"verdict": one.verdict, "base_lpips_score": one.base_lpips_score}
                    stored = row | {"created_at": one.created_at.astimezone(UTC), "record": record}
                    connection.execute(assessments.insert().values(**stored))
                    row["created_at"] = "2026-02-28 23:30:00.000000"
                    append(
                        connection, "assessment", one.assessment_id, assessment_body(row, record)
                    )
    with Store.open(url, readonly=True) as store:
        begin = time.perf_counter()
        found = verify(store)
        seconds = time.perf_counter() - begin
    state = "whole" if found.fault is None else str(found.fault)
    print(f"verification of {found.assessments}: {seconds:.1f} s, {state}")


@contextmanager
def writer(url: str, acknowledged: set[str], *, patient: bool = False) -> Iterator[int]:
    reading, writing = os.pipe()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=add_until_killed, args=(url, writing, patient))
    process.start()
    os.close(writing)
    assert process.pid is not None
    acknowledged.add(os.read(reading, 32).decode())
    yield process.pid
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    rest = b""
    while chunk := os.read(reading, 65536):
        rest += chunk
    os.close(reading)
    acknowledged |= {rest[i : i + 32].decode() for i in range(0, len(rest), 32)}


def kills(url: str) -> None:
    acknowledged: set[str] = set()
    for _ in range(KILLS):
        with writer(url, acknowledged):
            time.sleep(random.uniform(0, 0.05))
    print(f"killed {KILLS} times: {len(acknowledged)} acknowledged; {whole(url, acknowledged)}")


def restarts(cluster: Cluster) -> None:
    acknowledged: set[str] = set()
    modes = ["fast", "immediate"] * (1 if SMALL else 5)
    with writer(cluster.url, acknowledged, patient=True):
        for mode in modes:
            time.sleep(0.5)
            cluster.stop(mode)
            cluster.start()
        time.sleep(0.5)
    state = whole(cluster.url, acknowledged)
    print(f"restarted {len(modes)} times: {len(acknowledged)} acknowledged; {state}")


def full_disk(make: Any) -> None:
    """On a small file system; needs root, to mount it."""
    folder = Path(tempfile.mkdtemp(prefix="medqa-full-"))
    size = "256m"  # an empty cluster takes 60
    mounted = subprocess.run(  # noqa: S603
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "none", folder],  # noqa: S607
        check=False,
    )
    if mounted.returncode:
        print("full disk: cannot mount a small file system here")
        return
    cluster = None
    try:
        url, cluster = make(folder)
        Store.open(url).close()
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as stream, suppress(OSError):
            while True:
                stream.write(secrets.token_bytes(4096))
        filler.open("r+b").truncate(max(0, filler.stat().st_size - 1_000_000))
        added, said = set(), ""
        with Store.open(url) as store, suppress(StoreError):
            while len(added) < 20_000:
                one = assessment()
                try:
                    store.add(one)
                except StoreError as error:
                    said = error.reason
                    raise
                added.add(one.assessment_id)
        filler.unlink()
        if cluster is not None:  # PostgreSQL stops where it cannot write its log
            with suppress(subprocess.CalledProcessError):
                cluster.start()
        Store.open(url).close()
        print(f"disk full after {len(added)}: {said!r}; with room again: {whole(url, added)}")
    finally:
        if cluster is not None:
            cluster.stop("immediate")
        subprocess.run(["umount", folder], check=True)  # noqa: S603, S607
        folder.rmdir()


def _cluster_in(folder: Path) -> tuple[str, Cluster]:
    cluster = Cluster(folder)
    return cluster.url, cluster


def main() -> None:
    wanted = [name for name in ("sqlite", "postgresql") if name in sys.argv] or [
        "sqlite",
        "postgresql",
    ]
    if "sqlite" in wanted:
        with tempfile.TemporaryDirectory() as name:
            print("SQLite")
            url = str(Path(name, "audit.db"))
            inserts(url)
            kills(url)
            verification(url)
            full_disk(lambda folder: (str(folder / "audit.db"), None))
    if "postgresql" in wanted:
        with tempfile.TemporaryDirectory() as name:
            print("PostgreSQL")
            cluster = Cluster(Path(name))
            try:
                inserts(cluster.url)
                kills(cluster.url)
                restarts(cluster)
                verification(cluster.url)
            finally:
                cluster.stop("immediate")
        full_disk(_cluster_in)


if __name__ == "__main__":
    main()
