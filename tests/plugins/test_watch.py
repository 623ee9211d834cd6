"""A watch folder with real images, a real queue and a real worker."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from auditing import plain
from pydicom.uid import generate_uid

from medqa.audit import Store
from medqa.files import write_file
from medqa.isolation import decode_isolated
from medqa.queue import counts, deliver, enqueue, lease, listed
from medqa.queue.submission import Spool
from medqa.queue.worker import Networks, do
from medqa_plugins.watch import Watcher, watch
from medqa_plugins.watch_manifest import BadFolderError, snapshot, wanted

Case = Callable[..., Path]


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def case(shared_data: Path, inbox: Path) -> Case:
    """Make a job folder of a real CT series of three slices, and a noisy copy of it."""

    def make(name: str, seed: int = 0, form: str = "two", complete: bool = True) -> Path:
        folder = inbox / name
        one, other = {
            "two": ("reference", "candidate"),
            "mercure": ("", ""),
            "monai": ("dcm/study/original", "dcm/study/derived"),
        }[form]
        for number in (1, 2, 3):
            source = shared_data / "ct" / "small_series_torchio" / f"IMG000{number}.dcm"
            ds = pydicom.dcmread(source)
            (folder / one).mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / one / f"{number}.dcm")
            derive(ds, seed + number)
            (folder / other).mkdir(parents=True, exist_ok=True)
            ds.save_as(folder / other / f"derived{number}.dcm")
        if complete:
            (folder / ".complete").touch()
        return folder

    return make


SERIES = generate_uid(entropy_srcs=["derived"])


def derive(ds: pydicom.Dataset, seed: int) -> None:
    """Add noise, and say so as PS3.3 C.7.6.1.1.4 wants it."""
    source = pydicom.Dataset()
    source.ReferencedSOPClassUID = ds.SOPClassUID
    source.ReferencedSOPInstanceUID = ds.SOPInstanceUID
    ds.SourceImageSequence = [source]
    ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    noise = np.random.default_rng(seed).integers(-3, 4, ds.pixel_array.shape)
    ds.PixelData = (ds.pixel_array + noise).astype(ds.pixel_array.dtype).tobytes()
    ds.SeriesInstanceUID = SERIES
    ds.SOPInstanceUID = generate_uid(entropy_srcs=[ds.SOPInstanceUID, str(seed)])
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID


def assess_all(url: str) -> int:
    """Do what waits, as `medqa worker` does."""
    done, networks = 0, Networks()
    with Store.open(url) as store:
        while (leased := lease(store, "tests")) is not None:
            do(store, leased, networks, decode_isolated)
            done += 1
    return done


def finish_all(url: str) -> int:
    """End every job without assessing: the watcher cannot tell."""
    done = 0
    for job_id, results in plain(url, "SELECT job_id, results FROM jobs WHERE state = 'waiting'"):
        folder = Path(results)
        (folder / "dicom").mkdir(parents=True)
        (folder / "assessment.json").write_text(json.dumps({"job": job_id}))
        (folder / "dicom" / "sr.dcm").write_bytes(b"sr")
        plain(
            url,
            "UPDATE jobs SET state = 'done', finished_at = 1, assessment_id = 'a' WHERE job_id = ?",
            (job_id,),
        )
        done += 1
    return done


def one_round(inbox: Path, url: str, **options: Any) -> Any:
    """A watcher that forgets everything, as after a restart."""
    with Store.open(url) as store:
        return Watcher(inbox, store, Spool(inbox.parent / "spool"), quiet=0, **options).round()


def names(inbox: Path) -> list[str]:
    return sorted(one.name for one in inbox.iterdir())


def error(inbox: Path, name: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((inbox / f"{name}.result" / "error.json").read_text())
    assert set(found) == {"reason", "mend"}
    return found


@pytest.mark.parametrize("form", ["two", "mercure", "monai"])
def test_a_folder_becomes_a_result(form: str, case: Case, inbox: Path, url: str) -> None:
    folder = case("meier", form=form)
    if form == "mercure":
        (folder / "1.tags").write_text('{"Modality": "CT"}')
        (folder / "task.json").write_text(json.dumps(MERCURE))
    if form == "monai":
        (folder / "payload.json").write_text('{"payload_id": "1", "files": []}')
    taken = one_round(inbox, url)
    assert (taken.taken, taken.working) == (1, 1)
    assert names(inbox) == ["meier.claimed"]
    assert assess_all(url) == 1
    assert one_round(inbox, url).given_back == 1
    assert names(inbox) == ["meier.done", "meier.result"]
    result = inbox / "meier.result"
    record = json.loads((result / "assessment.json").read_text())
    assert record["verdict"] != "not_assessable"
    assert record["origin"] == "watch"
    assert len(record["slices"]) == 3
    assert b"<html" in (result / "report.html").read_bytes()
    report = pydicom.dcmread(result / "dicom" / "sr.dcm")
    assert report.Manufacturer == "medqa"
    # Nothing happens to what is finished.
    assert one_round(inbox, url).taken == 0
    with Store.open(url) as store:
        assert counts(store)["done"] == 1
        assert len(store.list()) == 1


MERCURE = {
    "info": {"action": "process", "uid": "1.2", "uid_type": "study", "mrn": "1", "acc": "2"},
    "id": "3f6f",
    "dispatch": {},
    "process": [
        {"module_name": "denoise", "settings": {"strength": 3}, "retain_input_images": True},
        {"module_name": "medqa", "settings": {"profile": "ct"}, "retain_input_images": True},
    ],
    "study": {"study_uid": "1.2", "complete_trigger": "timeout"},
}


def test_our_own_manifest(case: Case, shared_data: Path) -> None:
    folder = case("case")
    shutil.copy(shared_data / "ct" / "totalsegmentator_nifti" / "example_seg.nii.gz", folder)
    manifest = {
        "reference": "reference",
        "candidate": ["candidate/derived1.dcm", "candidate/derived3.dcm"],
        "masks": ["example_seg.nii.gz"],
        "profile": "ct",
        "task": "denoising",
    }
    (folder / "medqa.json").write_text(json.dumps(manifest))
    asked = wanted(folder)
    assert [one.name for one in asked.reference] == ["1.dcm", "2.dcm", "3.dcm"]
    assert [one.name for one in asked.candidate] == ["derived1.dcm", "derived3.dcm"]
    assert [one.name for one in asked.masks] == ["example_seg.nii.gz"]
    assert (asked.profile, asked.task) == ("ct", "denoising")


GOOD = {"reference": "reference", "candidate": "candidate"}


@pytest.mark.parametrize(
    "manifest",
    [
        GOOD | {"candidate": "../other/candidate"},
        GOOD | {"candidate": "candidate/../../other"},
        GOOD | {"candidate": "/etc/passwd"},
        GOOD | {"masks": ["..\\..\\x"]},
        GOOD | {"masks": ["/etc/passwd"]},
        GOOD | {"annotations": ["../x.json"]},
        GOOD | {"reference": ""},
        GOOD | {"reference": "."},
        GOOD | {"reference": "a\0b"},
        GOOD | {"reference": []},
        GOOD | {"reference": 3},
        GOOD | {"reference": {"path": "reference"}},
        GOOD | {"reference": None},
        GOOD | {"profile": "/etc/x.toml"},
        GOOD | {"profile": "../x.toml"},
        GOOD | {"task": "anything"},
        GOOD | {"Hans Meier": 1},
        GOOD | {"masks": ["x"] * 101},
        {"reference": "reference"},
        [],
        "reference",
    ],
)
def test_manifests_that_ask_for_what_is_not_theirs(
    manifest: Any, case: Case, inbox: Path, sqlite: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = case("case")
    shutil.copytree(folder, inbox.parent / "other")
    (folder / "medqa.json").write_text(json.dumps(manifest))
    one_round(inbox, sqlite)
    assert names(inbox) == ["case.done", "case.result"]
    assert "medqa.json" in error(inbox, "case")["reason"]
    assert "Meier" not in str(error(inbox, "case")) + caplog.text
    with Store.open(sqlite) as store:
        assert listed(store) == ()


@pytest.mark.parametrize(
    "content", [b"{" * 100_000, b"[" * 500_000, b" " * (2**20 + 1), b"\xff\xfe", b"{}", b""]
)
@pytest.mark.parametrize("name", ["medqa.json", "task.json"])
def test_manifests_that_are_none(
    name: str, content: bytes, case: Case, inbox: Path, sqlite: str
) -> None:
    (case("case") / name).write_bytes(content)
    one_round(inbox, sqlite)
    assert name in error(inbox, "case")["reason"] or "manifest" in error(inbox, "case")["reason"]


def test_links_and_pipes_are_refused(case: Case, inbox: Path, sqlite: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.dcm"
    shutil.copy(case("whole") / "reference" / "1.dcm", secret)
    (case("file") / "reference" / "4.dcm").symlink_to(secret)
    linked = case("folder")
    shutil.move(linked / "candidate", tmp_path / "elsewhere")
    (linked / "candidate").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(case("pipe") / "reference" / "4.dcm")
    (inbox / "itself").symlink_to(tmp_path / "elsewhere")
    one_round(inbox, sqlite)
    for name in ("file", "folder", "pipe"):
        assert "link or a special file" in error(inbox, name)["reason"]
    assert (inbox / "itself").is_symlink()  # never looked into
    assert "whole.claimed" in names(inbox)


def test_a_file_swapped_for_a_link_is_not_read(case: Case, inbox: Path, sqlite: str) -> None:
    """A link made after the folder was looked at: the producer is quicker than the watcher."""
    folder = case("case")
    asked = wanted(folder)
    shutil.move(folder / "reference", inbox.parent / "moved")
    (folder / "reference").symlink_to(inbox.parent / "moved")
    with Store.open(sqlite) as store:
        watcher = Watcher(inbox, store, Spool(inbox.parent / "spool"), quiet=0)
        with pytest.raises(Exception, match="a file cannot be read"):
            watcher._job(folder, asked)


def test_what_is_incomplete_waits(case: Case, inbox: Path, sqlite: str) -> None:
    folder = case("case", complete=False)
    with Store.open(sqlite) as store:
        watcher = Watcher(inbox, store, Spool(inbox.parent / "spool"), quiet=0.5)
        assert watcher.round().taken == 0
        time.sleep(0.6)
        (folder / "candidate" / "more.txt").write_text("still coming")
        assert watcher.round().taken == 0  # it changed
        (folder / ".lock").touch()
        time.sleep(0.6)
        assert watcher.round().taken == 0  # mercure writes
        (folder / ".lock").unlink()
        watcher.round()
        time.sleep(0.6)
        assert watcher.round().taken == 1
        (inbox / "empty").mkdir()
        time.sleep(0.6)
        assert watcher.round().taken == 0


def test_results_are_never_overwritten(case: Case, inbox: Path, sqlite: str) -> None:
    case("case")
    one_round(inbox, sqlite)
    finish_all(sqlite)
    one_round(inbox, sqlite)
    before = (inbox / "case.result" / "assessment.json").read_bytes()
    case("case", seed=5)
    blocked = one_round(inbox, sqlite)
    assert (blocked.taken, blocked.blocked) == (0, 1)
    assert (inbox / "case.result" / "assessment.json").read_bytes() == before
    for end in (".result", ".done"):
        shutil.move(inbox / f"case{end}", inbox.parent / f"old{end}")
    assert one_round(inbox, sqlite).taken == 1
    finish_all(sqlite)
    assert one_round(inbox, sqlite).given_back == 1
    assert (inbox / "case.result" / "assessment.json").read_bytes() != before


def test_the_same_images_twice_are_one_job_and_two_results(
    case: Case, inbox: Path, sqlite: str
) -> None:
    case("one")
    case("two")
    one_round(inbox, sqlite)
    assert finish_all(sqlite) == 1
    assert one_round(inbox, sqlite).given_back == 2
    results = [(inbox / f"{one}.result" / "assessment.json").read_bytes() for one in ("one", "two")]
    assert results[0] == results[1]
    case("three")  # long after
    assert one_round(inbox, sqlite).given_back == 1


def test_a_dead_job_is_an_error_beside_its_folder(case: Case, inbox: Path, sqlite: str) -> None:
    case("case")
    one_round(inbox, sqlite)
    plain(sqlite, "UPDATE jobs SET state = 'dead', reason = 'no memory; buy some', finished_at = 1")
    with Store.open(sqlite) as store:
        watcher = Watcher(inbox, store, Spool(inbox.parent / "spool"), quiet=0)
        assert watcher.round().working == 1  # given again, it is tried again
        assert counts(store)["waiting"] == 1
        plain(sqlite, "UPDATE jobs SET state = 'dead', finished_at = 1")
        assert watcher.round().given_back == 1
    assert error(inbox, "case")["reason"] == "no memory; buy some"


def test_damaged_and_doubtful_folders_say_what_is_wrong(
    case: Case, inbox: Path, sqlite: str
) -> None:
    (case("damaged") / "candidate" / "4.dcm").write_bytes(b"not DICOM")
    shutil.rmtree(case("lonely", form="monai") / "dcm" / "study" / "derived")
    shutil.rmtree(case("hollow") / "candidate")
    (inbox / "hollow" / "candidate").mkdir()
    (inbox / "hollow" / "candidate" / "read.me").write_text("nothing here")
    (case("odd") / "medqa.json").write_text(json.dumps(GOOD | {"profile": "no-such"}))
    one_round(inbox, sqlite)
    assert "not DICOM" in error(inbox, "damaged")["reason"]
    assert "derived image" in error(inbox, "lonely")["reason"]
    assert "no image" in error(inbox, "hollow")["reason"]
    assert "no shipped profile" in error(inbox, "odd")["reason"]


def test_our_own_results_are_no_candidates(case: Case, inbox: Path, url: str) -> None:
    """A folder that somebody put our results back into."""
    case("case")
    one_round(inbox, url)
    assess_all(url)
    one_round(inbox, url)
    folder = case("again", form="monai")
    shutil.copytree(inbox / "case.result" / "dicom", folder / "dcm" / "study" / "results")
    found = wanted(folder)
    assert {one.name for one in found.candidate} == {f"derived{n}.dcm" for n in (1, 2, 3)}
    assert {one.parent.name for one in found.reference} == {"original"}


def test_many_watchers_take_each_folder_once(case: Case, inbox: Path, url: str) -> None:
    for number in range(6):
        case(f"case{number:02d}", seed=10 * number)
    total: list[int] = []

    def run() -> None:
        with Store.open(url) as store:
            watcher = Watcher(inbox, store, Spool(inbox.parent / "spool"), quiet=0)
            total.append(sum(watcher.round().taken for _ in range(3)))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(total) == 6
    assert len(total) == 3
    assert finish_all(url) == 6
    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(total) == 6
    expected = [f"case{n:02d}.{end}" for n in range(6) for end in ("done", "result")]
    assert names(inbox) == sorted(expected)
    jobs = [
        json.loads((inbox / f"case{n:02d}.result" / "assessment.json").read_text())["job"]
        for n in range(6)
    ]
    assert len(set(jobs)) == 6


WATCH = """
import sys, threading
from pathlib import Path
from medqa_plugins.watch import watch
inbox, db, spool = sys.argv[1:]
watch(Path(inbox), db, Path(spool), every=0.05, quiet=0, stop=threading.Event())
"""


def expect_all_done(inbox: Path, url: str, count: int) -> None:
    """Each folder has its own result and each job is there once."""
    expected = [f"case{n}.{end}" for n in range(count) for end in ("done", "result")]
    assert [one for one in names(inbox) if not one.startswith(".")] == sorted(expected)
    found = [
        json.loads((inbox / f"case{n}.result" / "assessment.json").read_text())["job"]
        for n in range(count)
    ]
    assert sorted(found) == sorted(row[0] for row in plain(url, "SELECT job_id FROM jobs"))
    assert all((inbox / f"case{n}.result" / "dicom" / "sr.dcm").exists() for n in range(count))


def test_killed_at_any_moment_nothing_is_lost_or_doubled(
    case: Case, inbox: Path, sqlite: str
) -> None:
    chance, count = random.Random(7), 5
    for number in range(count):
        case(f"case{number}", seed=10 * number)
    with Store.open(sqlite):
        pass
    arguments = [sys.executable, "-c", WATCH, str(inbox), sqlite, str(inbox.parent / "spool")]
    for _ in range(3):
        process = subprocess.Popen(arguments)  # noqa: S603 - our own
        before, end = names(inbox), time.monotonic() + 30
        # Starting takes seconds: what counts is the time after it has begun to work.
        while names(inbox) == before and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        finish_all(sqlite)
        if not (inbox / f"case{count - 1}").exists() and not any(inbox.glob("*.claimed")):
            break
    for _ in range(2):
        one_round(inbox, sqlite)
        finish_all(sqlite)
    one_round(inbox, sqlite)
    expect_all_done(inbox, sqlite, count)


class Killed(BaseException):
    """No `except Exception` sees it."""


@pytest.mark.parametrize("late", [False, True])
def test_killed_at_every_step_nothing_is_lost_or_doubled(
    late: bool, case: Case, inbox: Path, sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, or after, each change that a watcher makes to the world."""
    steps = 0
    left = [0]

    def fragile(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and not late:
                raise Killed
            given = function(*arguments, **options) if left[0] >= 0 else None
            if left[0] == 0:
                raise Killed
            return given  # after its death it does nothing more

        return run

    changes = [
        ("medqa_plugins.watch.os.rename", os.rename),
        ("medqa_plugins.watch.shutil.rmtree", shutil.rmtree),
        ("medqa_plugins.watch.write_file", write_file),
        ("medqa_plugins.watch.deliver", deliver),
        ("medqa.queue.submission.enqueue", enqueue),
        ("medqa.queue.submission.os.replace", os.replace),
    ]
    case("case0")
    for step in range(1, 40):
        with monkeypatch.context() as patch:
            for name, function in changes:
                patch.setattr(name, fragile(function))
            left[0] = step
            try:
                one_round(inbox, sqlite)
                finish_all(sqlite)
                one_round(inbox, sqlite)
            except Killed:
                steps += 1
        one_round(inbox, sqlite)
        finish_all(sqlite)
        one_round(inbox, sqlite)
        expect_all_done(inbox, sqlite, 1)
        if left[0] > 0:
            break
        plain(sqlite, "DELETE FROM jobs")
        shutil.rmtree(inbox.parent / "spool")
        for one in list(inbox.iterdir()):
            shutil.rmtree(one)
        case("case0")
    assert 10 < steps < 39


def test_the_loop_stops_and_once_waits_for_quiet(case: Case, inbox: Path, sqlite: str) -> None:
    case("case", complete=False)
    stop = threading.Event()
    spool = inbox.parent / "spool"
    last = watch(inbox, sqlite, spool, every=0.1, quiet=0.2, stop=stop, once=True)
    assert (last.taken, last.working) == (1, 1)
    stop.set()
    assert watch(inbox, sqlite, spool, every=0.1, quiet=0.2, stop=stop).working == 1
    with pytest.raises(BadFolderError, match="not a folder"):
        watch(inbox / "none", sqlite, spool, every=1, quiet=1, stop=stop)


def test_logs_name_nobody(
    case: Case, inbox: Path, sqlite: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="medqa.watch")
    (case("meier^hans") / "candidate" / "meier.dcm").write_bytes(b"no")
    case("mueller^eva")
    one_round(inbox, sqlite)
    finish_all(sqlite)
    one_round(inbox, sqlite)
    assert "is new" in caplog.text
    assert "cannot be used" in caplog.text
    assert "meier" not in caplog.text.lower()
    assert "mueller" not in caplog.text.lower()
    kept = plain(sqlite, "SELECT job, correlation_id FROM jobs")
    assert "mueller" not in str(kept).lower()


def test_too_many_files_are_refused(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medqa_plugins.watch_manifest.MAX_FILES", 3)
    for number in range(4):
        (inbox / f"{number}").touch()
    with pytest.raises(BadFolderError, match="more than is read"):
        snapshot(inbox)


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys, medqa_plugins.watch, medqa_plugins.dicomweb; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own
