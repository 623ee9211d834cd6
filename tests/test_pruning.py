"""What a spool lets go of: what is old, and nothing that a job, a host or a person needs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from auditing import assessment, plain

from medqa.assessment import Assessment, Job, Verdict
from medqa.audit import Store, sign
from medqa.errors import StoreError
from medqa.queue.jobs import deliver, drop, enqueue, finish, lease
from medqa.queue.kept import kept
from medqa.queue.pruning import KEPT_SECONDS, prune
from medqa.queue.submission import Spool

OLD = time.time() - KEPT_SECONDS - 3600
BEFORE = time.time() - KEPT_SECONDS
_KINDS = ("reference", "candidate", "mask")


class Site:
    """A database and a spool with cases, all of which came long ago."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.db = folder, str(folder / "audit.db")
        self.store, self.spool = store, Spool(folder / "spool")

    def file(self, words: str) -> Path:
        path = self.spool.put([words.encode()])
        age(path)
        return path

    def queue(self, name: str, origin: str = "web") -> Job:
        """A job; its images are called by its name."""
        images = [str(self.file(f"{name} {kind}")) for kind in _KINDS]
        job = Job(images[0], images[1], (images[2],), origin=origin)
        enqueue(self.store, job, name, str(self.spool.results(name)))
        return job

    def case(self, name: str, verdict: Verdict, origin: str = "web") -> Assessment:
        """Assess a job, as a worker would: a record, and results that name its images."""
        job = self.queue(name, origin)
        leased = lease(self.store, "tests")
        assert leased is not None
        made = assessment(verdict=verdict)
        folder = self.spool.results(name)
        folder.mkdir(parents=True)
        images = {side: [Path(str(getattr(job, side))).name] for side in ("reference", "candidate")}
        (folder / "review.json").write_text(json.dumps({**images, "maps": [], "outlines": []}))
        assert kept(folder) is not None
        self.store.add(made, beside=lambda one: finish(one, leased, made.assessment_id))
        age(folder)
        return made

    def prune(self) -> int:
        return prune(self.store, self.spool, BEFORE, ["web"])

    def left(self) -> tuple[set[str], set[str]]:
        """Results, and the words of the files."""
        results = {one.name for one in (self.spool.folder / "results").glob("[!.]*")}
        return results, {one.read_text() for one in (self.spool.folder / "files").glob("[!.]*")}


def age(path: Path) -> None:
    os.utime(path, (OLD, OLD))


def pair(name: str) -> set[str]:
    return {f"{name} reference", f"{name} candidate"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("MEDQA_KEY", "ab" * 32)
    with Store.open(str(tmp_path / "audit.db")) as store:
        yield Site(tmp_path, store)


def test_what_nobody_needs_goes_with_its_images(site: Site) -> None:
    site.case("good", "diagnostic")
    assert site.prune() == 4  # a folder, two images and a mask
    assert site.left() == (set(), set())
    assert site.prune() == 0
    assert len(site.store.list()) == 1  # the record stays


def test_a_case_that_waits_for_a_person_keeps_its_images_until_he_has_decided(site: Site) -> None:
    case = site.case("bad", "unsuitable")
    site.prune()
    assert site.left() == ({"bad"}, pair("bad"))  # a mask is in no picture
    sign(site.store, case.assessment_id, "reviewed", "Seen; decided nothing.", actor="dr")
    assert site.prune() == 0
    sign(site.store, case.assessment_id, "rejected", "Smeared.", actor="dr")
    assert site.prune() == 3
    assert site.left() == (set(), set())


def test_what_a_later_record_corrects_waits_no_more(site: Site) -> None:
    case = site.case("bad", "expert_review")
    site.store.add(assessment(), supersedes=case.assessment_id, reason="a wrong window")
    assert site.prune() == 4


def test_a_job_that_is_not_done_keeps_all_its_files(site: Site) -> None:
    words = {f"{name} {kind}" for name in ("dead", "leased", "waiting") for kind in _KINDS}
    for name in ("dead", "leased", "waiting"):
        site.queue(name)
    plain(site.db, "UPDATE jobs SET state = key")
    assert site.prune() == 0
    assert site.left()[1] == words
    drop(site.store, plain(site.db, "SELECT job_id FROM jobs WHERE key = 'dead'")[0][0])
    assert site.prune() == 3
    assert not any(one.startswith("dead") for one in site.left()[1])


def test_results_stay_until_their_host_has_come_for_them(site: Site) -> None:
    site.case("node", "diagnostic", "dicom-node")
    assert site.prune() == 1  # the mask
    assert site.left() == ({"node"}, pair("node"))
    deliver(site.store, plain(site.db, "SELECT job_id FROM jobs")[0][0])
    assert site.prune() == 3


def test_what_came_lately_stays_and_keeps_its_images(site: Site) -> None:
    site.case("late", "diagnostic")
    os.utime(site.spool.results("late"))
    site.spool.put([b"just came"])
    assert site.prune() == 1  # the mask
    assert site.left() == ({"late"}, {*pair("late"), "just came"})


def test_what_came_again_is_new(site: Site) -> None:
    site.case("good", "diagnostic")
    site.spool.put([b"good reference"])
    site.prune()
    assert site.left() == (set(), {"good reference"})


def test_half_written_files_go_once_they_are_old(site: Site) -> None:
    site.file("a file of nobody")
    folder = site.spool.folder
    old = folder / "files" / ".tmp1.part", folder / "results" / ".key.0123.part"
    for part in (*old, folder / "files" / ".new.part"):
        part.parent.mkdir(exist_ok=True)
        if "results" in part.parts:
            part.mkdir()
            (part / "report.html").write_text("half")
        else:
            part.write_text("half")
    for part in old:
        age(part)
    assert site.prune() == 3
    assert site.left() == (set(), set())
    assert [one.name for one in folder.rglob("*.part")] == [".new.part"]


def test_what_is_not_ours_stays(site: Site) -> None:
    stranger = site.spool.results("made-for-another-database")
    stranger.mkdir(parents=True)
    age(stranger)
    linked = site.file("of the node")
    series = site.spool.folder / "series" / "study" / "series"
    series.mkdir(parents=True)
    (series / "instance").symlink_to(os.path.relpath(linked, series))
    assert site.prune() == 0
    assert site.left() == ({stranger.name}, {"of the node"})
    assert prune(site.store, Spool(site.folder / "nothing-yet"), BEFORE) == 0


def test_where_the_database_cannot_be_read_nothing_goes(site: Site) -> None:
    site.case("good", "diagnostic")
    before = site.left()
    plain(site.db, "DROP TABLE jobs")
    with pytest.raises(StoreError):
        site.prune()
    assert site.left() == before
