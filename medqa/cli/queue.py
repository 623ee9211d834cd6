"""`medqa worker` and `medqa queue`: jobs that hosts have sent."""

from __future__ import annotations

import logging
import signal
import threading
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from medqa.cli.options import Db, WeightsFolder

__all__ = ["queue_app", "worker"]

queue_app = typer.Typer(help="Jobs that hosts have sent.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of a job, or the beginning of it.")]


class StateName(StrEnum):
    """Where a job stands."""

    waiting = "waiting"
    leased = "leased"
    done = "done"
    dead = "dead"


def worker(
    db: Db = None,
    weights: WeightsFolder = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many at a time; all processors.")
    ] = None,
    *,
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="Stop once no job is due.")
    ] = False,
) -> None:
    """Do the jobs of the queue until stopped; each worker is a process that keeps its network.

    Exit code 0: stopped, or nothing left to do. 2: wrong use.
    """
    import os

    from medqa.audit import Store
    from medqa.queue.supervisor import work_many

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    with Store.open(db):  # refuse at once what no worker could use
        pass
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    work_many(db, jobs or os.cpu_count() or 1, weights, stop=stop, until_empty=until_empty)


@queue_app.command("list")
def queue_list(
    db: Db = None,
    state: Annotated[StateName | None, typer.Option(help="Only these.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 20,
) -> None:
    """Show how many jobs there are, and the newest.

    Exit code 0: none is dead. 1: some are.
    """
    from medqa.audit import Store
    from medqa.console import show, table
    from medqa.queue import counts, listed

    with Store.open(db, readonly=True) as store:
        found = listed(store, None if state is None else state.value, limit)
        number = counts(store)
    rows = [
        (
            one.job_id[:8],
            f"{datetime.fromtimestamp(one.enqueued_at, UTC):%Y-%m-%d %H:%M:%S} UTC",
            one.origin or "-",
            one.state,
            str(one.attempts),
            one.assessment_id[:8] if one.assessment_id else "-",
            one.reason or "",
        )
        for one in found
    ]
    show(table(("job", "sent", "from", "state", "tries", "assessment", "reason"), rows))
    typer.echo(", ".join(f"{count} {name}" for name, count in number.items()))
    raise typer.Exit(1 if number["dead"] else 0)


@queue_app.command("retry")
def queue_retry(job_id: JobId, db: Db = None) -> None:
    """Let a dead job wait again."""
    from medqa.audit import Store
    from medqa.queue import retry

    with Store.open(db) as store:
        typer.echo(f"job {retry(store, job_id).job_id} waits again")


@queue_app.command("drop")
def queue_drop(job_id: JobId, db: Db = None) -> None:
    """Take a job out of the queue that is not done."""
    from medqa.audit import Store
    from medqa.queue import drop

    with Store.open(db) as store:
        typer.echo(f"job {drop(store, job_id).job_id} is out of the queue")
