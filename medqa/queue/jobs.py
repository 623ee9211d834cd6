"""Jobs in the audit database: enqueued once, leased to one worker at a time, done exactly once.

::

    waiting --lease--> leased --finish--> done --deliver--> (its host has the results)
       ^                 |
       |                 +--fail, or the lease runs out--> waiting, later; at the end: dead
       +--------------------------retry------------------------------------------+

A job is done in the same transaction that adds its record: neither can be there without the
other. A worker whose lease ran out cannot finish: its transaction is undone, its record with it.
Any number of workers on any number of machines share a PostgreSQL database; an SQLite file serves
one machine.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import TypeAdapter
from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from medqa.assessment import Job
from medqa.audit import Store
from medqa.audit.tables import jobs
from medqa.errors import StoreError

__all__ = [
    "LEASE_SECONDS",
    "MOST_ATTEMPTS",
    "MOST_WAITING",
    "LeaseLostError",
    "Leased",
    "QueueFullError",
    "Queued",
    "State",
    "counts",
    "deliver",
    "drop",
    "enqueue",
    "extend",
    "fail",
    "finish",
    "found",
    "lease",
    "listed",
    "oldest",
    "retry",
    "undelivered",
    "unfinished",
]

State = Literal["waiting", "leased", "done", "dead"]
#: How long a worker has a job before another may take it; a worker that lives extends it.
LEASE_SECONDS = 60.0
#: How often a job is tried before it is dead.
MOST_ATTEMPTS = 5
#: How many jobs may wait; then senders are told to wait.
MOST_WAITING = 10_000
_BACK_OFF = 15.0  # seconds after the first failure; four times as many after each further one
_PREFIX_LENGTH = 8
_BATCH = 500  # ids in a query: databases bound them
_JOB = TypeAdapter(Job)
_UNFINISHED = ("waiting", "leased")


class QueueFullError(StoreError):
    """As many jobs wait as may; the sender is to try again later."""


class LeaseLostError(StoreError):
    """The job is another worker's by now, or was dropped; nothing was recorded."""


@dataclass(frozen=True)
class Leased:
    """A job that this worker does now.

    Parameters
    ----------
    job_id
        Its id.
    job
        What to do.
    results
        Folder that its report and DICOM objects go to; None writes none.
    attempt
        1 at the first try.
    worker
        Who does it.
    """

    job_id: str
    job: Job
    results: str | None
    attempt: int
    worker: str


@dataclass(frozen=True)
class Queued:
    """A job as it stands in the queue.

    Parameters
    ----------
    state
        Where it stands.
    origin, correlation_id
        Who asked, and that host's own id for it.
    attempts
        How often it was begun.
    reason
        Why it failed last.
    enqueued_at, finished_at
        Seconds since 1970, by the database's clock.
    assessment_id
        Its record, once it is done.
    results
        Folder of its report and DICOM objects.
    """

    job_id: str
    state: State
    origin: str | None
    correlation_id: str | None
    attempts: int
    reason: str | None
    enqueued_at: float
    finished_at: float | None
    assessment_id: str | None
    results: str | None


def enqueue(
    store: Store, job: Job, key: str, results: str | None = None, most: int = MOST_WAITING
) -> tuple[Queued, bool]:
    """Add a job, durably, unless it is there already.

    Parameters
    ----------
    key
        Idempotency key: the same for the same images, regions, thresholds and engine.
    results
        Folder for its report and DICOM objects.
    most
        How many jobs may wait.

    Returns
    -------
    The job as it stands in the queue, and whether it is new.

    Raises
    ------
    QueueFullError
        As many wait as may.
    StoreError
        The database cannot be written.
    """
    with store.changing() as connection:
        found = connection.execute(_shown().where(jobs.c.key == key)).first()
        if found is not None:
            return Queued(*found), False
        if _count_unfinished(connection) >= most:
            raise QueueFullError(
                store.url_for_people, f"{most} jobs wait already", "send it again later"
            )
        moment = _now(connection)
        row = {
            "job_id": str(uuid.uuid4()),
            "key": key,
            "state": "waiting",
            "job": _JOB.dump_json(job).decode(),
            "origin": job.origin,
            "correlation_id": job.correlation_id,
            "results": results,
            "attempts": 0,
            "enqueued_at": moment,
            "due_at": moment,
        }
        try:
            with connection.begin_nested():
                connection.execute(insert(jobs).values(**row))
            new = True
        except IntegrityError:  # another sender was first, since we looked
            new = False
        return Queued(*connection.execute(_shown().where(jobs.c.key == key)).one()), new


def lease(store: Store, worker: str, seconds: float = LEASE_SECONDS) -> Leased | None:
    """Take the job that is due the longest; None where there is none.

    A job whose worker died comes back here, before the others, once its lease has run out. One
    that was tried as often as may be is dead instead.

    Raises
    ------
    StoreError
        The database cannot be written.
    """
    while True:
        with store.changing() as connection:
            moment = _now(connection)
            query = (
                select(jobs.c.job_id, jobs.c.job, jobs.c.results, jobs.c.attempts)
                .order_by(jobs.c.due_at)
                .limit(1)
                .with_for_update(skip_locked=True)  # on SQLite, the transaction is alone anyway
            )
            # One after the other: of an OR, databases sort all that wait to find the first.
            run_out = and_(jobs.c.state == "leased", jobs.c.leased_until < moment)
            waiting = and_(jobs.c.state == "waiting", jobs.c.due_at <= moment)
            row = connection.execute(query.where(run_out)).first()
            if row is None:
                row = connection.execute(query.where(waiting)).first()
            if row is None:
                return None
            if row.attempts >= MOST_ATTEMPTS:
                words = f"its workers died {row.attempts} times while they did it"
                _set(connection, row.job_id, state="dead", reason=words, finished_at=moment)
                continue
            _set(
                connection,
                row.job_id,
                state="leased",
                worker=worker,
                attempts=row.attempts + 1,
                leased_until=moment + seconds,
            )
        job = _JOB.validate_json(row.job)
        return Leased(row.job_id, job, row.results, row.attempts + 1, worker)


def extend(store: Store, leased: Leased, seconds: float = LEASE_SECONDS) -> None:
    """Say that the worker is alive.

    Raises
    ------
    LeaseLostError
        The job is another worker's by now.
    StoreError
        The database cannot be written.
    """
    with store.changing() as connection:
        until = _now(connection) + seconds
        _set_mine(connection, leased, leased_until=until)


def finish(connection: Connection, leased: Leased, assessment_id: str) -> None:
    """Mark a job as done, in the transaction that adds its record.

    Raises
    ------
    LeaseLostError
        The job is another worker's by now, and the transaction must not stand.
    """
    _set_mine(
        connection,
        leased,
        state="done",
        job=None,  # its paths are nobody's business any more
        reason=None,
        assessment_id=assessment_id,
        finished_at=_now(connection),
    )


def fail(store: Store, leased: Leased, reason: str, *, final: bool = False) -> State:
    """Put a job back that could not be done: tried again later, or dead at the last attempt.

    Parameters
    ----------
    reason
        Why, in words that name no patient.
    final
        It would fail again: it is dead at once.

    Raises
    ------
    LeaseLostError
        The job is another worker's by now.
    """
    with store.changing() as connection:
        moment = _now(connection)
        if final or leased.attempt >= MOST_ATTEMPTS:
            _set_mine(connection, leased, state="dead", reason=reason, finished_at=moment)
            return "dead"
        later = moment + _BACK_OFF * 4 ** (leased.attempt - 1)
        _set_mine(connection, leased, state="waiting", reason=reason, due_at=later)
        return "waiting"


def retry(store: Store, job_id: str) -> Queued:
    """Let a dead job wait again, from its first attempt.

    Raises
    ------
    StoreError
        There is no such job, or it is not dead.
    """
    with store.changing() as connection:
        found = _find(connection, job_id)
        if found.state != "dead":
            raise StoreError(job_id, f"is {found.state}, not dead", "retry dead jobs only")
        moment = _now(connection)
        again = {"state": "waiting", "attempts": 0, "due_at": moment, "delivered_at": None}
        _set(connection, found.job_id, **again)
        return _find(connection, found.job_id)


def drop(store: Store, job_id: str) -> Queued:
    """Take a job out of the queue that is not done; what is done stays.

    Raises
    ------
    StoreError
        There is no such job, or it is done.
    """
    with store.changing() as connection:
        found = _find(connection, job_id)
        if found.state == "done":
            raise StoreError(job_id, "is done", "drop jobs that are waiting or dead")
        connection.execute(jobs.delete().where(jobs.c.job_id == found.job_id))
        return found


def listed(store: Store, state: State | None = None, limit: int = 50) -> tuple[Queued, ...]:
    """Jobs, the newest first.

    Raises
    ------
    StoreError
        The database cannot be read.
    """
    query = _shown().order_by(jobs.c.enqueued_at.desc()).limit(limit)
    if state is not None:
        query = query.where(jobs.c.state == state)
    with store.reading() as connection:
        return tuple(Queued(*row) for row in connection.execute(query))


def counts(store: Store) -> dict[State, int]:
    """How many jobs are in each state.

    Raises
    ------
    StoreError
        The database cannot be read.
    """
    query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    with store.reading() as connection:
        found = {row[0]: row[1] for row in connection.execute(query)}
    return {state: found.get(state, 0) for state in ("waiting", "leased", "done", "dead")}


def unfinished(store: Store) -> int:
    """How many jobs wait or are being done; fast however many are done.

    Raises
    ------
    StoreError
        The database cannot be read.
    """
    with store.reading() as connection:
        return _count_unfinished(connection)


def oldest(store: Store) -> float | None:
    """When the job was sent that has waited longest, in seconds since 1970; None without any.

    Raises
    ------
    StoreError
        The database cannot be read.
    """
    query = select(func.min(jobs.c.enqueued_at)).where(jobs.c.state.in_(_UNFINISHED))
    with store.reading() as connection:
        return cast(float | None, connection.scalar(query))


def found(store: Store, job_ids: Sequence[str]) -> dict[str, Queued]:
    """Return jobs by id, as far as they are there.

    Raises
    ------
    StoreError
        The database cannot be read.
    """
    known: dict[str, Queued] = {}
    with store.reading() as connection:
        for start in range(0, len(job_ids), _BATCH):
            some = job_ids[start : start + _BATCH]
            rows = connection.execute(_shown().where(jobs.c.job_id.in_(some)))
            known |= {row.job_id: Queued(*row) for row in rows}
    return known


def undelivered(store: Store, origin: str, limit: int = 100) -> tuple[Queued, ...]:
    """Jobs of a host that are done or dead and whose results it does not have, oldest first.

    Raises
    ------
    StoreError
        The database cannot be read.
    """
    query = (
        _shown()
        .where(jobs.c.origin == origin, jobs.c.state.in_(("done", "dead")))
        .where(jobs.c.delivered_at.is_(None))
        .order_by(jobs.c.finished_at)
        .limit(limit)
    )
    with store.reading() as connection:
        return tuple(Queued(*row) for row in connection.execute(query))


def deliver(store: Store, job_id: str) -> None:
    """Note that the host has the results of a job; it is not among the undelivered any more.

    Raises
    ------
    StoreError
        The database cannot be written.
    """
    with store.changing() as connection:
        _set(connection, job_id, delivered_at=_now(connection))


def _count_unfinished(connection: Connection) -> int:
    query = select(func.count()).where(jobs.c.state.in_(_UNFINISHED))
    return int(connection.execute(query).scalar_one())


def _shown() -> Select[Any]:
    return select(
        jobs.c.job_id,
        jobs.c.state,
        jobs.c.origin,
        jobs.c.correlation_id,
        jobs.c.attempts,
        jobs.c.reason,
        jobs.c.enqueued_at,
        jobs.c.finished_at,
        jobs.c.assessment_id,
        jobs.c.results,
    )


def _find(connection: Connection, job_id: str) -> Queued:
    begins = func.substr(jobs.c.job_id, 1, len(job_id)) == job_id
    found = connection.execute(_shown().where(begins).limit(2)).all()
    if len(job_id) < _PREFIX_LENGTH or len(found) != 1:
        reason = "is the beginning of more than one job" if len(found) == 2 else "is no job"
        raise StoreError(job_id, reason, f"give {_PREFIX_LENGTH} characters of its id or more")
    return Queued(*found[0])


def _set(connection: Connection, job_id: str, **values: object) -> None:
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**values))


def _set_mine(connection: Connection, leased: Leased, **values: object) -> None:
    """Change a job only while it is leased to this worker at this attempt."""
    mine = and_(
        jobs.c.job_id == leased.job_id,
        jobs.c.state == "leased",
        jobs.c.worker == leased.worker,
        jobs.c.attempts == leased.attempt,
    )
    if connection.execute(update(jobs).where(mine).values(**values)).rowcount != 1:
        raise LeaseLostError(
            leased.job_id, "is another worker's by now, or was dropped", "nothing was recorded"
        )


def _now(connection: Connection) -> float:
    """Seconds since 1970, by the database's clock."""
    clock: ColumnElement[Any] = (
        func.extract("epoch", func.clock_timestamp())
        if connection.dialect.name == "postgresql"
        else literal_column("(julianday('now') - 2440587.5) * 86400.0")
    )
    return float(cast(float, connection.scalar(select(clock))))
