"""The queue at length: thousands of jobs, workers killed at random, each job done exactly once.

    python tests/benchmarks/jobs.py [--small] [sqlite] [postgresql]

The work of a job is nothing here, so that the figures are those of the queue and of the record.
PostgreSQL runs in a throw-away cluster, with fsync on.
"""

from __future__ import annotations

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

SMALL = "--small" in sys.argv
JOBS, WORKERS = (400, 4) if SMALL else (10_000, 8)
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


def measure(name: str, url: str) -> None:
    rng = random.Random(1)
    with Store.open(url) as store:
        begin = time.perf_counter()
        for number in range(JOBS):
            job = Job(reference="r", candidate="c", origin=str(number))
            enqueue(store, job, f"k{number}", most=JOBS)
        sent = time.perf_counter() - begin
        begin = time.perf_counter()
        workers = [start(url, number) for number in range(WORKERS)]
        kills, started = 0, WORKERS
        while counts(store)["done"] + counts(store)["dead"] < JOBS:
            time.sleep(rng.expovariate(1 / KILL_EVERY))
            place = rng.randrange(WORKERS)
            workers[place].kill()
            workers[place].wait()
            kills += 1
            workers[place] = start(url, started)
            started += 1
        done = time.perf_counter() - begin
        for worker in workers:
            worker.kill()
            worker.wait()
        state, found = counts(store), verify(store)
        each = Counter(str(one.origin) for one in store.list(2 * JOBS))
    exactly = sum(count == 1 for count in each.values())
    print(
        f"{name}: {JOBS} jobs sent at {JOBS / sent:.0f} a second, done by {WORKERS} workers at "
        f"{JOBS / done:.0f} a second with {kills} of them killed; {state['dead']} dead; "
        f"{exactly} assessed exactly once; chain {'whole' if found.fault is None else found.fault}"
    )


def main() -> None:
    wanted = [one for one in ("sqlite", "postgresql") if one in sys.argv] or [
        "sqlite",
        "postgresql",
    ]
    with tempfile.TemporaryDirectory() as folder:
        if "sqlite" in wanted:
            measure("SQLite", str(Path(folder) / "audit.db"))
    if "postgresql" in wanted:
        with tempfile.TemporaryDirectory() as folder:
            cluster = Cluster(Path(folder))
            try:
                measure("PostgreSQL", cluster.url)
            finally:
                cluster.stop("fast")


if __name__ == "__main__":
    main()
