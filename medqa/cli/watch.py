"""`medqa watch`: a folder whose sub-folders are jobs."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from medqa.cli.options import Db, SpoolFolder

__all__ = ["watch"]


def watch(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What to watch.")],
    spool: SpoolFolder,
    db: Db = None,
    every: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Between two looks.")
    ] = 2.0,
    quiet: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="SECONDS", help="Without a change, before a folder is complete."
        ),
    ] = 10.0,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Thresholds where the job names none.")
    ] = None,
    *,
    once: Annotated[bool, typer.Option("--once", help="One look, and no more.")] = False,
) -> None:
    """Take each complete sub-folder as a job, and put its result beside it.

    `medqa worker` does the jobs. Exit code 0: stopped, or done once. 1: with --once, folders wait
    because earlier ones of their name lie there still. 2: wrong use.
    """
    from medqa_plugins.watch import watch as run

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    last = run(folder, db, spool, every=every, quiet=quiet, profile=profile, stop=stop, once=once)
    if once:
        typer.echo(
            f"{last.taken} taken, {last.given_back} given back, {last.working} in work, "
            f"{last.blocked} blocked"
        )
        raise typer.Exit(1 if last.blocked else 0)
