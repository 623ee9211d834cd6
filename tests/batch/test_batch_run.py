"""A batch from table to results: every pair once, whatever happens on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batching import Here, command, die, make_pairs, pid, pixels_recorded, rows_of, write_csv

from medqa.assessment import Job
from medqa.audit import Store, verify
from medqa.batch.records import recorded
from medqa.batch.run import Done, assess_all, measuring
from medqa.batch.table import PairRow, read_table
from medqa.batch.workers import Processes, Setting
from medqa.identity import Engine, profile_digest, record_id, sources
from medqa.pipeline import run

TEMPLATE = Job(reference="", candidate="", origin="tests")


def setting(tmp_path: Path, store: Store) -> Setting:
    return Setting(
        "gray", None, "float32", "cpu", store.key, str(tmp_path / "out"), "none", "diagnostic"
    )


def batch(rows: Iterator[PairRow], pool: Any, store: Store, tmp_path: Path) -> dict[int, Done]:
    given = setting(tmp_path, store)
    profiles = {None: profile_digest(None), "ultrasound": profile_digest("ultrasound")}
    measured = measuring(pool, given)
    found = list(assess_all(rows, pool, store, given, measured, profiles))
    assert len(found) == len({one.row.number for one in found})
    return {one.row.number: one for one in found}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(str(tmp_path / "a.db")) as opened:
        yield opened


def test_scores_are_those_of_single_runs_and_the_second_time_nothing_is_done(
    tmp_path: Path, store: Store
) -> None:
    table = make_pairs(tmp_path, 3)
    pool = Here()
    first = batch(read_table(table, TEMPLATE).rows, pool, store, tmp_path)
    for row in read_table(table, TEMPLATE).rows:
        alone, mine = run(row.job), first[row.number].assessment
        assert mine is not None
        assert mine.base_lpips_score == alone.base_lpips_score
        assert (mine.verdict, mine.reasons) == (alone.verdict, alone.reasons)
        assert mine.inputs.reference is not None
        assert mine.inputs.reference.study_hmac is not None
    assert [first[n].before for n in (1, 2, 3)] == [False] * 3
    assert len(pool.assessed) == 3
    again = batch(read_table(table, TEMPLATE).rows, pool, store, tmp_path)
    assert len(pool.assessed) == 3
    assert all(again[n].before and again[n].assessment == first[n].assessment for n in again)
    assert verify(store).assessments == 3
    assert verify(store).fault is None


def test_the_same_images_in_two_rows_are_one_record(tmp_path: Path, store: Store) -> None:
    make_pairs(tmp_path, 1)
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "r0.dcm").read_bytes())
    rows = [("reference", "candidate"), ("r0.dcm", "c0.dcm"), ("copy.dcm", "c0.dcm")]
    table = write_csv(tmp_path / "t.csv", rows)
    pool = Here()
    found = batch(read_table(table, TEMPLATE).rows, pool, store, tmp_path)
    assert len(pool.assessed) == 1
    assert found[1].assessment == found[2].assessment
    assert sorted(one.before for one in found.values()) == [False, True]


def test_bad_rows_are_rows_with_a_reason(tmp_path: Path, store: Store) -> None:
    make_pairs(tmp_path, 1)
    (tmp_path / "bad.dcm").write_bytes((tmp_path / "c0.dcm").read_bytes()[:2000])
    rows = [
        ("reference", "candidate", "profile"),
        ("r0.dcm", "bad.dcm", ""),
        ("r0.dcm", "missing.dcm", ""),
        ("r0.dcm", "c0.dcm", "ultrasound"),
        ("r0.dcm", "c0.dcm", ""),
    ]
    table = write_csv(tmp_path / "t.csv", rows)
    found = batch(read_table(table, TEMPLATE).rows, Here(), store, tmp_path)
    damaged, missing, mistaken, good = (found[n] for n in (1, 2, 3, 4))
    assert damaged.assessment is not None
    assert missing.assessment is not None
    assert {damaged.assessment.verdict, missing.assessment.verdict} == {"not_assessable"}
    assert "does not exist" in missing.assessment.reasons[0].text
    assert mistaken.assessment is None  # a profile for ultrasound: the call is wrong
    assert "the image is CT" in mistaken.reason
    assert good.assessment is not None
    assert good.assessment.verdict == "diagnostic"
    batch(read_table(table, TEMPLATE).rows, Here(), store, tmp_path)
    assert verify(store).assessments == 3


def test_what_a_missing_file_left_open_is_assessed_once_it_is_there(
    tmp_path: Path, store: Store
) -> None:
    table = make_pairs(tmp_path, 1)
    content = (tmp_path / "c0.dcm").read_bytes()
    (tmp_path / "c0.dcm").unlink()
    batch(read_table(table, TEMPLATE).rows, Here(), store, tmp_path)
    (tmp_path / "c0.dcm").write_bytes(content)
    found = batch(read_table(table, TEMPLATE).rows, Here(), store, tmp_path)
    assert found[1].assessment is not None
    assert found[1].assessment.verdict == "diagnostic"


def test_a_lost_job_is_redone_once_then_a_row(tmp_path: Path, store: Store) -> None:
    table = make_pairs(tmp_path, 3)
    pool = Here({"c0.dcm": 1, "c1.dcm": 2})
    found = batch(read_table(table, TEMPLATE).rows, pool, store, tmp_path)
    given_up = found[2].assessment
    assert found[1].assessment is not None
    assert found[1].assessment.verdict == "diagnostic"
    assert given_up is not None
    assert given_up.verdict == "not_assessable"
    assert "its worker was ended each time" in given_up.reasons[0].text
    assert sorted(pool.assessed) == ["c0.dcm", "c0.dcm", "c1.dcm", "c1.dcm", "c2.dcm"]
    # A later run may be luckier: it takes the place of the failure, in the record too.
    later = batch(read_table(table, TEMPLATE).rows, Here(), store, tmp_path)
    assert later[2].assessment is not None
    assert later[2].assessment.verdict == "diagnostic"
    assert recorded(store, given_up.assessment_id) == later[2].assessment
    assert verify(store).assessments == 4


def test_a_correction_is_what_a_later_run_finds(tmp_path: Path, store: Store) -> None:
    table = make_pairs(tmp_path, 1)
    first = batch(read_table(table, TEMPLATE).rows, Here(), store, tmp_path)[1].assessment
    assert first is not None
    corrected = first.model_copy(update={"assessment_id": "corrected", "origin": "an expert"})
    store.add(corrected, supersedes=first.assessment_id, reason="looked again")
    again = batch(read_table(table, TEMPLATE).rows, Here(), store, tmp_path)[1]
    assert again.assessment == corrected


def test_what_makes_a_request_another_one(tmp_path: Path) -> None:
    make_pairs(tmp_path, 2)
    job = Job(reference=str(tmp_path / "r0.dcm"), candidate=str(tmp_path / "c0.dcm"))
    engine = Engine("0.1", "gray", "1", "a" * 64, "float32")
    key = bytes(32)

    def identity(job: Job, engine: Engine = engine, profile: str = "p") -> str:
        return record_id(job, sources(job, key), engine, profile)

    mine = identity(job)
    moved = tmp_path / "elsewhere.dcm"
    moved.write_bytes((tmp_path / "c0.dcm").read_bytes())
    same = [replace(job, candidate=str(moved)), replace(job, origin="x", actor="y", device="cuda")]
    assert {identity(one) for one in same} == {mine}
    other = [
        identity(replace(job, candidate=str(tmp_path / "c1.dcm"))),
        identity(replace(job, reference=job.candidate, candidate=job.reference)),
        identity(replace(job, masks=(job.reference,))),
        identity(replace(job, annotations=(job.reference,))),
        identity(replace(job, task="denoising")),
        identity(replace(job, resample=True)),
        identity(replace(job, plane_stride=2)),
        identity(replace(job, require_calibrated=True)),
        identity(job, profile="q"),
        *(identity(job, replace(engine, **{name: "other"})) for name in vars(engine)),
        mine,
    ]
    assert len(set(other)) == len(other)
    absent = sources(replace(job, candidate=str(tmp_path / "DOE^JOHN.dcm")), key)
    assert "DOE" not in str(absent)
    folder = sources(replace(job, reference=str(tmp_path)), key)
    assert len(folder.reference) == 6  # every file of it: two pairs, the table and the copy


def test_a_process_that_is_ended_takes_only_its_own_job_along() -> None:
    with Processes(2) as pool:
        one, other = pool.submit(pid, 0), pool.submit(pid, 0)
        assert len({one.result(), other.result(), os.getpid()}) == 3
        dying, living = pool.submit(die, 0), pool.submit(pid, 0)
        assert isinstance(dying.exception(), BrokenExecutor)
        assert living.result() in (one.result(), other.result())
        # One that ends while it has nothing to do is not noticed at all.
        os.kill(living.result(), signal.SIGKILL)
        time.sleep(0.2)
        pids = {future.result() for future in (pool.submit(pid, 0), pool.submit(pid, 0))}
        assert len(pids) == 2
        assert living.result() not in pids


def test_a_killed_and_a_stopped_batch_go_on_without_loss_or_double(tmp_path: Path) -> None:
    count = 18
    table = make_pairs(tmp_path / "data", count)
    out, db = tmp_path / "out", tmp_path / "a.db"
    call = command(tmp_path, table, "--out", out, "--db", db, "--jobs", 1)
    stops = [(signal.SIGKILL, -signal.SIGKILL, ""), (signal.SIGINT, 130, "medqa: stopped; ")]
    moments = np.random.default_rng(7).uniform(0.05, 0.4, len(stops))
    for (kind, code, words), moment in zip(stops, moments.tolist(), strict=True):
        before = _count(db)
        resume = ["--resume"] if before else []
        with subprocess.Popen([*call, *resume], stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
            while _count(db) == before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(moment)
            process.send_signal(kind)
            _, said = process.communicate()  # its workers have let go of it: they have ended too
        assert process.returncode == code, said
        assert said.startswith(words)
        assert "Traceback" not in said
        assert not (out / "results.csv").exists()
    assert {path.name for path in out.iterdir()} == {".batch", "reports"}
    done = _count(db)
    assert 1 < done < count
    finished = subprocess.run(  # noqa: S603
        [*call, "--resume"], capture_output=True, text=True, check=False, timeout=120
    )
    assert finished.returncode == 1, finished.stderr
    assert f"{done} were on record before" in finished.stdout
    recorded_pairs = pixels_recorded(db)
    assert len(recorded_pairs) == count
    assert set(recorded_pairs.values()) == {1}
    assert [int(row["number"]) for row in rows_of(out)] == list(range(1, count + 1))
    with Store.open(str(db), readonly=True) as store:
        assert verify(store).fault is None


def _count(db: Path) -> int:
    try:
        return sum(pixels_recorded(db).values()) if db.exists() else 0
    except Exception:  # its tables are not made yet
        return 0


def test_workers_that_cannot_live_are_told_before_any_work(tmp_path: Path, store: Store) -> None:
    class Dead(Here):
        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(BrokenExecutor())
            return future

    with pytest.raises(Exception, match="end as soon as they begin"):
        measuring(Dead(), setting(tmp_path, store))
