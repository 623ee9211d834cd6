"""Pruning a spool: what came long ago goes, unless a job, a host or a person still needs it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import select

from medqa.assessment import Job
from medqa.audit import Store, histories
from medqa.audit.tables import assessments, jobs
from medqa.errors import ReadError
from medqa.queue.kept import kept
from medqa.queue.submission import Spool

__all__ = ["KEPT_SECONDS", "prune"]

#: How long results and images stay that nobody needs any more: 14 days.
KEPT_SECONDS = 14 * 24 * 3600.0
_BATCH = 500  # keys in a query: databases bound them
_DECISIONS = ("approved", "rejected")
_JOB = TypeAdapter(Job)


def prune(store: Store, spool: Spool, before: float, answered: Collection[str] = ()) -> int:
    """Delete results, received files and half-written ones that are older, and needed no more.

    Needed are the results of a job that is not done, or whose host has not come for them; those of
    a case that waits for a person, and its images: not diagnostic, neither approved nor rejected,
    and not superseded. Files are needed that a job names which is not done, or results that stay,
    or a series of the DICOM node. Results that no job of this database made are left alone.

    Parameters
    ----------
    store
        The database that every host of this spool uses.
    before
        Seconds since 1970.
    answered
        Origins of jobs that are answered by the record: their results are given back to no host.

    Returns
    -------
    How many folders and files were deleted.

    Raises
    ------
    StoreError
        The database cannot be read: nothing was deleted.
    """
    results = list(_old(spool.folder / "results", before))
    spent = _spent(store, [one.name for one in results], answered)
    old = list(_old(spool.folder / "files", before))
    named = _of_jobs(store) if old else set()
    gone = sum(_remove(one, before) for one in results if one.name in spent)
    if old:
        named |= _of_results(spool) | _of_series(spool)
    gone += sum(_remove(one, before) for one in old if one.name not in named)
    return gone + sum(_remove(one, before) for one in _parts(spool, before))


def _spent(store: Store, keys: Sequence[str], answered: Collection[str]) -> set[str]:
    """Return those of these jobs' keys whose results nobody needs."""
    found: set[str] = set()
    for start in range(0, len(keys), _BATCH):
        query = (
            select(
                jobs.c.key,
                jobs.c.origin,
                jobs.c.delivered_at,
                jobs.c.assessment_id,
                assessments.c.verdict,
            )
            .join(assessments, assessments.c.assessment_id == jobs.c.assessment_id)
            .where(jobs.c.key.in_(keys[start : start + _BATCH]), jobs.c.state == "done")
        )
        with store.reading() as connection:
            rows = [
                row
                for row in connection.execute(query)
                if row.delivered_at is not None or row.origin in answered
            ]
        waiting = _waiting(store, rows)
        found |= {row.key for row in rows if row.assessment_id not in waiting}
    return found


def _waiting(store: Store, rows: Sequence[Any]) -> set[str]:
    """Return the ids of those that a person must still decide."""
    doubtful = [one.assessment_id for one in rows if one.verdict != "diagnostic"]
    return {
        name
        for name, history in histories(store, doubtful).items()
        if history.superseded_by is None
        and not any(one.meaning in _DECISIONS for one in history.signatures)
    }


def _of_jobs(store: Store) -> set[str]:
    """Return the names of the files of jobs that are not done."""
    query = select(jobs.c.job).where(jobs.c.state != "done", jobs.c.job.is_not(None))
    with store.reading() as connection:
        found = [_JOB.validate_json(one) for one in connection.scalars(query)]
    named: set[str] = set()
    for job in found:
        for given in (job.reference, job.candidate, job.masks, job.annotations):
            named |= {Path(one).name for one in ((given,) if isinstance(given, str) else given)}
    return named


def _of_results(spool: Spool) -> set[str]:
    """Return the names of the images of results that stay."""
    named: set[str] = set()
    for folder in _entries(spool.folder / "results"):
        with suppress(ReadError):  # then the review page cannot show them either
            left = kept(folder)
            named |= set() if left is None else {*left.reference, *left.candidate}
    return named


def _of_series(spool: Spool) -> set[str]:
    """Return the names of the files that series of the DICOM node link to; it deletes these."""
    links = (spool.folder / "series").glob("*/*/*")
    return {Path(os.readlink(one)).name for one in links if one.is_symlink()}


def _parts(spool: Spool, before: float) -> Iterator[Path]:
    """Yield what killed processes left half-written."""
    for name in ("files", "results"):
        found = _old(spool.folder / name, before, hidden=True)
        yield from (one for one in found if one.suffix == ".part")


def _old(folder: Path, before: float, *, hidden: bool = False) -> Iterator[Path]:
    for one in _entries(folder, hidden=hidden):
        if _is_old(one, before):
            yield one


def _is_old(path: Path, before: float) -> bool:
    try:
        return path.lstat().st_mtime < before
    except FileNotFoundError:
        return False


def _entries(folder: Path, *, hidden: bool = False) -> Iterator[Path]:
    try:
        found = list(folder.iterdir())
    except FileNotFoundError:
        return
    yield from (one for one in found if one.name.startswith(".") is hidden)


def _remove(path: Path, before: float) -> bool:
    """Delete a file or a folder, unless it came again meanwhile; a folder as a whole or not."""
    if not _is_old(path, before):
        return False
    with suppress(OSError):
        if not path.is_dir():
            path.unlink()
            return True
        aside = path.with_name(f".{path.name.strip('.')}.part")  # it may be read right now
        path.replace(aside)
        shutil.rmtree(aside, ignore_errors=True)
        return True
    return False
