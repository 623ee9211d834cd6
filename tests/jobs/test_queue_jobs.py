"""The queue on both databases: each job exactly once, whatever happens to its worker."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from auditing import assessment, plain
from pydicom.data import get_testdata_file

from medqa.assessment import Job
from medqa.audit import Store, verify
from medqa.errors import StoreError
from medqa.isolation import decode_isolated
from medqa.queue import (
    Leased,
    LeaseLostError,
    QueueFullError,
    counts,
    deliver,
    drop,
    enqueue,
    extend,
    fail,
    finish,
    lease,
    listed,
    retry,
    undelivered,
)
from medqa.queue import jobs as module
from medqa.queue.supervisor import work_many
from medqa.queue.worker import Networks, do
from medqa.thresholds import names

CT = get_testdata_file("CT_small.dcm", download=False)
JOB = Job(
    reference=("a.dcm", "b.dcm"),
    candidate="c",
    masks=("m.nii",),
    plane_stride=3,
    origin="tests",
    correlation_id="17",
)


def let_time_pass(url: str, seconds: float) -> None:
    plain(
        url, "UPDATE jobs SET due_at = due_at - ?, leased_until = leased_until - ?", (seconds,) * 2
    )


def done_by(store: Store, leased: Leased) -> None:
    record = assessment()
    store.add(record, beside=lambda connection: finish(connection, leased, record.assessment_id))


def test_a_job_comes_out_as_it_went_in_and_only_once(url: str) -> None:
    with Store.open(url) as store:
        queued, new = enqueue(store, JOB, "k", "/results/k")
        again, second = enqueue(store, JOB, "k", "/elsewhere")
        assert (new, second) == (True, False)
        assert again == queued
        assert abs(queued.enqueued_at - time.time()) < 5  # the database's clock is this machine's
        leased = lease(store, "one")
        assert leased is not None
        assert (leased.job, leased.results, leased.attempt) == (JOB, "/results/k", 1)
        assert lease(store, "two") is None


def test_the_record_and_the_end_of_the_job_are_one_transaction(url: str) -> None:
    with Store.open(url) as store:
        enqueue(store, JOB, "k")
        leased = lease(store, "one")
        assert leased is not None
        record = assessment()

        def cut_off(connection: Any) -> None:
            finish(connection, leased, record.assessment_id)
            raise RuntimeError("the power fails here")

        with pytest.raises(RuntimeError):
            store.add(record, beside=cut_off)
        assert counts(store)["leased"] == 1
        assert store.list() == ()
        store.add(record, beside=lambda c: finish(c, leased, record.assessment_id))
        assert counts(store) == {"waiting": 0, "leased": 0, "done": 1, "dead": 0}
        assert [one.assessment_id for one in store.list()] == [record.assessment_id]
        # Done stays done: the same images are not assessed twice.
        assert enqueue(store, JOB, "k")[0].state == "done"
    # Paths, which may name a patient, do not outlive the work.
    assert plain(url, "SELECT job FROM jobs") == [(None,)]


def test_a_lost_lease_records_nothing(url: str) -> None:
    with Store.open(url) as store:
        enqueue(store, JOB, "k")
        slow = lease(store, "slow")
        assert slow is not None
        extend(store, slow)
        assert lease(store, "fast") is None
        let_time_pass(url, 61)
        fast = lease(store, "fast")
        assert fast is not None
        assert fast.attempt == 2
        record = assessment()
        with pytest.raises(LeaseLostError):
            store.add(record, beside=lambda c: finish(c, slow, record.assessment_id))
        with pytest.raises(LeaseLostError):
            extend(store, slow)
        with pytest.raises(LeaseLostError):
            fail(store, slow, "whatever")
        assert store.list() == ()
        store.add(record, beside=lambda c: finish(c, fast, record.assessment_id))
        assert len(store.list()) == 1


def test_failures_wait_longer_each_time_and_end_dead(url: str) -> None:
    with Store.open(url) as store:
        queued, _ = enqueue(store, JOB, "k")
        waits = []
        for _ in range(module.MOST_ATTEMPTS):
            while (leased := lease(store, "w")) is None:
                let_time_pass(url, 15)
                waits.append(leased)
            state = fail(store, leased, "no such profile; name another")
        assert state == "dead"
        assert len(waits) == 1 + 4 + 16 + 64  # of 15 seconds each: four times as long each time
        dead = listed(store, "dead")
        assert [one.reason for one in dead] == ["no such profile; name another"]
        assert [one.job_id for one in undelivered(store, "tests")] == [queued.job_id]
        assert retry(store, queued.job_id[:8]).state == "waiting"
        with pytest.raises(StoreError, match="not dead"):
            retry(store, queued.job_id)
        assert drop(store, queued.job_id).job_id == queued.job_id
        with pytest.raises(StoreError, match="no job"):
            drop(store, queued.job_id)


def test_a_job_that_kills_its_workers_ends_dead(url: str) -> None:
    with Store.open(url) as store:
        enqueue(store, JOB, "k")
        for _ in range(module.MOST_ATTEMPTS):
            assert lease(store, "w") is not None
            let_time_pass(url, 61)
        assert lease(store, "w") is None
        assert [one.reason for one in listed(store)] == [
            "its workers died 5 times while they did it"
        ]


def test_a_full_queue_tells_senders_to_wait(url: str) -> None:
    with Store.open(url) as store:
        for number in range(3):
            enqueue(store, JOB, f"k{number}", most=3)
        with pytest.raises(QueueFullError):
            enqueue(store, JOB, "k3", most=3)
        assert enqueue(store, JOB, "k1", most=3)[1] is False  # it is there already
        leased = lease(store, "w")
        assert leased is not None
        done_by(store, leased)
        assert enqueue(store, JOB, "k3", most=3)[1] is True


def test_results_are_delivered_once(url: str) -> None:
    with Store.open(url) as store:
        for number in range(2):
            enqueue(store, JOB, f"k{number}")
            leased = lease(store, "w")
            assert leased is not None
            record = assessment()
            store.add(
                record, beside=lambda c, one=leased, r=record: finish(c, one, r.assessment_id)
            )
        first, second = undelivered(store, "tests")
        assert first.correlation_id == "17"
        assert undelivered(store, "another") == ()
        deliver(store, first.job_id)
        assert undelivered(store, "tests") == (second,)


def test_results_of_a_job_that_was_retried_are_delivered_too(url: str) -> None:
    with Store.open(url) as store:
        enqueue(store, JOB, "k")
        leased = lease(store, "w")
        assert leased is not None
        assert fail(store, leased, "no such profile", final=True) == "dead"
        deliver(store, leased.job_id)
        assert undelivered(store, "tests") == ()
        retry(store, leased.job_id)
        leased = lease(store, "w")
        assert leased is not None
        done_by(store, leased)
        assert [one.state for one in undelivered(store, "tests")] == ["done"]


def test_a_correction_of_what_is_corrected_already_is_dead_at_once(sqlite: str) -> None:
    with Store.open(sqlite) as store:
        store.add(assessment("record-0001"))
        store.add(assessment("record-0002"), supersedes="record-0001")
        job = Job(reference=CT, candidate=CT, supersedes="record-0001")
        enqueue(store, job, "k")
        leased = lease(store, "w")
        assert leased is not None
        assert do(store, leased, Networks(), decode_isolated) == "dead"
        assert "is superseded by record-0002" in str(listed(store)[0].reason)


def test_a_worker_does_a_real_job_and_writes_its_results(url: str, tmp_path: Path) -> None:
    with Store.open(url) as store:
        networks = Networks()
        enqueue(store, Job(reference=CT, candidate=CT, origin="tests"), "k", str(tmp_path / "out"))
        leased = lease(store, "w")
        assert leased is not None
        assert do(store, leased, networks, decode_isolated) == "done"
        (record,) = store.list()
        assert record.verdict == "diagnostic"
        assert record.origin == "tests"
        assert record.inputs.reference is not None
        assert record.inputs.reference.patient_hmac is not None
        out = tmp_path / "out"
        assert (out / "assessment.json").exists()
        assert sorted(one.name for one in (out / "dicom").iterdir()) == [
            "distance-map.dcm",
            "sr.dcm",
            "summary.dcm",
        ]
        # What cannot be read is a record too, and done.
        enqueue(store, Job(reference=CT, candidate="none.dcm"), "l", str(tmp_path / "none"))
        leased = lease(store, "w")
        assert leased is not None
        assert do(store, leased, networks, decode_isolated) == "done"
        assert store.list(1)[0].verdict == "not_assessable"
        # A wrong call is not: nothing was judged, and it would fail again.
        enqueue(store, Job(reference=CT, candidate=CT, profile="nonsense"), "m")
        leased = lease(store, "w")
        assert leased is not None
        assert do(store, leased, networks, decode_isolated) == "dead"
        assert len(store.list()) == 2
        assert [one.reason for one in listed(store, "dead")] == [
            "no shipped profile has this name; take one of " + ", ".join(names()) + ", or the path "
            "of a .toml file"
        ]


def test_workers_empty_the_queue(sqlite: str) -> None:
    with Store.open(sqlite) as store:
        for number in range(6):
            enqueue(store, Job(reference=CT, candidate=CT, origin=str(number)), f"k{number}")
        work_many(sqlite, 2, stop=threading.Event(), until_empty=True)
        assert counts(store)["done"] == 6
        assert sorted(str(one.origin) for one in store.list()) == [str(n) for n in range(6)]


# Leases, takes a while, finishes; killed at any moment of it.
WORKER = """
import random, sys, time
sys.path.insert(0, sys.argv[2])
from auditing import assessment
from medqa.audit import Store
from medqa.queue import LeaseLostError, finish, lease
with Store.open(sys.argv[1]) as store:
    print("ready", flush=True)
    while True:
        leased = lease(store, sys.argv[3], seconds=1.0)
        if leased is None:
            time.sleep(0.05)
            continue
        time.sleep(random.random() * 0.01)
        one = assessment().model_copy(update={"origin": leased.job.origin})
        try:
            store.add(one, beside=lambda c: finish(c, leased, one.assessment_id))
        except LeaseLostError:
            pass
"""


def test_jobs_of_killed_workers_are_done_exactly_once(url: str) -> None:
    """`tests/benchmarks/jobs.py` does the same with 10,000 jobs and eight workers."""
    jobs, rng = 150, random.Random(4)

    def start(number: int) -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", WORKER, url, str(Path(__file__).parents[1]), f"w{number}"],
            stdout=subprocess.PIPE,
            text=True,
        )

    with Store.open(url) as store:
        for number in range(jobs):
            enqueue(store, Job(reference="r", candidate="c", origin=str(number)), f"k{number}")
        workers = [start(number) for number in range(3)]
        try:
            for started in workers:
                assert started.stdout is not None
                started.stdout.readline()
            for _ in range(600):
                if counts(store)["done"] == jobs:
                    break
                time.sleep(0.1)
                if rng.random() < 0.1 and counts(store)["done"] < jobs * 0.8:
                    place = rng.randrange(len(workers))
                    workers[place].kill()
                    workers[place].communicate()
                    workers[place] = start(place)
            assert counts(store)["done"] == jobs
        finally:
            for started in workers:
                started.kill()
                started.communicate()
        assert verify(store).fault is None
        done = Counter(str(one.origin) for one in store.list(10 * jobs))
    assert done == {str(number): 1 for number in range(jobs)}
