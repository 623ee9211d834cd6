"""The course of a batch: identify, look up, assess, record, and hand on a row."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medqa.assessment import Assessment
from medqa.audit import Store
from medqa.batch.records import lost, record, recorded
from medqa.batch.table import PairRow
from medqa.batch.workers import (
    Outcome,
    Pool,
    Setting,
    assess,
    engine,
    identify,
    report_path,
    write_report,
)
from medqa.errors import UsageError
from medqa.identity import Engine, Sources, record_id

__all__ = ["Done", "assess_all", "measuring"]


@dataclass(frozen=True)
class Done:
    """What became of a pair.

    Parameters
    ----------
    row
        The pair.
    assessment
        Its record; None where nothing was judged and nothing recorded.
    before
        Whether it was on record before, from an earlier run or another row with the same images.
    reason
        Why nothing was judged.
    """

    row: PairRow
    assessment: Assessment | None
    before: bool = False
    reason: str = ""


@dataclass
class _Task:
    """A pair on its way: without an id it is still to be identified."""

    row: PairRow
    id: str | None = None
    tries: int = 0


def measuring(pool: Pool, setting: Setting) -> Engine:
    """Load the network in a worker, and return what measures: proof that workers work.

    Raises
    ------
    UsageError
        The network cannot be loaded, or no worker lives.
    """
    try:
        return pool.submit(engine, setting).result()
    except pool.lost as error:
        raise UsageError(
            "workers", "end as soon as they begin", "allow them more memory, or start fewer"
        ) from error


def assess_all(
    rows: Iterator[PairRow],
    pool: Pool,
    store: Store,
    setting: Setting,
    measured: Engine,
    profiles: Mapping[str | None, str],
) -> Iterator[Done]:
    """Assess every pair that is not on record yet; record each before it is handed on.

    Parameters
    ----------
    rows
        The pairs; taken as workers come free, so that their number does not matter.
    measured
        What measures.
    profiles
        Digest of each profile that a job may name.

    Yields
    ------
    Each pair once, in the order in which they are done.

    Raises
    ------
    UsageError
        The database, the network or the folder cannot be used any more. What was recorded is safe.
    """
    course = _Course(pool, store, setting, measured, profiles)
    while True:
        course.fill(rows)
        if not course.running:
            return
        finished, _ = wait(course.running, return_when=FIRST_COMPLETED)
        for future in finished:
            yield from course.finish(future)


class _Course:
    """What is under way."""

    def __init__(
        self,
        pool: Pool,
        store: Store,
        setting: Setting,
        measured: Engine,
        profiles: Mapping[str | None, str],
    ) -> None:
        self._pool, self._store, self._setting = pool, store, setting
        self._measured, self._profiles = measured, profiles
        self._todo: deque[_Task] = deque()
        self._same: dict[str, list[PairRow]] = {}  # rows that wait for the one under way
        self.running: dict[Future[Any], _Task] = {}

    def fill(self, rows: Iterator[PairRow]) -> None:
        """Give the pool what it can take."""
        while len(self.running) < self._pool.slots:
            if self._todo:
                task = self._todo.popleft()
            elif (row := next(rows, None)) is not None:
                task = _Task(row)
            else:
                return
            job = task.row.job
            future: Future[Any]
            if task.id is None:
                future = self._pool.submit(identify, self._setting, job)
            else:
                future = self._pool.submit(assess, self._setting, job, task.id)
            self.running[future] = task

    def finish(self, future: Future[Any]) -> Iterator[Done]:
        """Take up what a worker has done, and yield the pairs that are through."""
        task = self.running.pop(future)
        try:
            answer = future.result()
        except CancelledError as error:
            raise UsageError(
                "workers", "were taken away", "start them again, and go on with --resume"
            ) from error
        except self._pool.lost:
            task.tries += 1
            if task.tries < self._pool.tries:
                self._todo.appendleft(task)
                return
            reason = "its worker was ended each time; allow each worker more memory"
            answer = Outcome(self._measured, None, reason)
        if isinstance(answer, Sources):
            yield from self._identified(task, answer)
        else:
            yield from self._assessed(task, answer)

    def _identified(self, task: _Task, read: Sources) -> Iterator[Done]:
        job = task.row.job
        task.id = record_id(job, read, self._measured, self._profiles[job.profile])
        if task.id in self._same:
            self._same[task.id].append(task.row)
        elif (found := recorded(self._store, task.id)) is not None:
            if not Path(self._setting.out, report_path(found.assessment_id)).exists():
                write_report(found, self._setting)
            yield Done(task.row, found, before=True)
        else:
            self._same[task.id] = []
            self._todo.append(task)

    def _assessed(self, task: _Task, outcome: Outcome) -> Iterator[Done]:
        if outcome.engine != self._measured:
            raise UsageError(
                "workers", "differ in medqa or network", "install the same on all of them"
            )
        assessment = None
        if outcome.record is not None:
            assessment = Assessment.model_validate_json(outcome.record)
        elif task.id is not None and not outcome.mendable:
            reason = f"Both images: {outcome.reason}"
            assessment = lost(task.row.job, task.id, self._measured, reason)
            write_report(assessment, self._setting)
        if assessment is not None:  # the record first, the row after it
            assessment = record(self._store, assessment, task.row.job.actor)
        yield Done(task.row, assessment, reason=outcome.reason)
        for row in self._same.pop(task.id, []) if task.id else []:
            yield Done(row, assessment, before=True, reason=outcome.reason)
