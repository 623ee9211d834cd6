"""The queue at length: thousands of jobs, workers killed at random, each job done exactly once.

    python tests/benchmarks/jobs.py [--jobs 10000] [--workers 8] [sqlite] [postgresql]

The work of a job is nothing here, so that the figures are those of the queue and of the record.
PostgreSQL runs in a throw-away cluster, with fsync on.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from audit import Cluster

from medqa.assessment import Job
from medqa.audit import Store, verify
from medqa.queue import counts, enqueue

KILL_EVERY = 5.0  # seconds, on average: a worker takes some to start

WORKER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from auditing import assessment
from medqa.audit import Store
from medqa.queue import LeaseLostError, finish, lease
with Store.open(sys.argv[1]) as store:
    while True:
        leased = lease(store, sys.argv[3], seconds=5.0)
        if leased is None:
            time.sleep(0.1)
            continue
        one = assessment().model_copy(update={"origin": leased.job.origin})
        try:
            store.add(one, beside=lambda c: finish(c, leased, one.assessment_id))
        except LeaseLostError:
            pass
"""


def start(url: str, number: int) -> subprocess.Popen[bytes]:
    beside = str(Path(__file__).resolve().parents[1])
    return subprocess.Popen([sys.executable, "-c", WORKER, url, beside, f"w{number}"])  # noqa: S603


def send(store: Store, jobs: int) -> float:
    """Put so many jobs into the queue; return the seconds that took."""
    begin = time.perf_counter()
    for number in range(jobs):
        job = Job(reference="r", candidate="c", origin=str(number))
        enqueue(store, job, f"k{number}", most=jobs)
    return time.perf_counter() - begin


def done(store: Store, url: str, jobs: int, most: int) -> tuple[float, int]:
    """Have them done by workers that are killed at random; return the seconds, and the kills."""
    rng = random.Random(1)
    begin = time.perf_counter()
    workers = [start(url, number) for number in range(most)]
    kills = 0
    next_kill = begin + rng.expovariate(1 / KILL_EVERY)
    try:
        while (state := counts(store))["done"] + state["dead"] < jobs:
            time.sleep(0.5)  # to count is work for the database too
            if time.perf_counter() >= next_kill:
                place = rng.randrange(most)
                workers[place].kill()
                workers[place].wait()
                workers[place] = start(url, most + kills)
                kills += 1
                next_kill = time.perf_counter() + rng.expovariate(1 / KILL_EVERY)
        return time.perf_counter() - begin, kills
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def measure(name: str, url: str, jobs: int, workers: int) -> None:
    with Store.open(url) as store:
        sent = send(store, jobs)
        seconds, kills = done(store, url, jobs, workers)
        state, found = counts(store), verify(store)
        each = Counter(str(one.origin) for one in store.list(2 * jobs))
    exactly = sum(count == 1 for count in each.values())
    print(
        f"{name}: {jobs} jobs sent at {jobs / sent:.0f} a second, done by {workers} workers at "
        f"{jobs / seconds:.0f} a second ({sent + seconds:.0f} s together) with {kills} of them "
        f"killed; {state['dead']} dead; {exactly} assessed exactly once; "
        f"chain {'whole' if found.fault is None else found.fault}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("databases", nargs="*", default=["sqlite", "postgresql"])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=8)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if "sqlite" in asked.databases:
            measure("SQLite", str(Path(folder) / "audit.db"), asked.jobs, asked.workers)
    if "postgresql" in asked.databases:
        with tempfile.TemporaryDirectory() as folder:
            cluster = Cluster(Path(folder))
            try:
                measure("PostgreSQL", cluster.url, asked.jobs, asked.workers)
            finally:
                cluster.stop("fast")


if __name__ == "__main__":
    main()
