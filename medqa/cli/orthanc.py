"""`medqa orthanc`: derived series in an Orthanc are assessed as they arrive."""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from medqa.cli.options import Db, TaskName

__all__ = ["orthanc"]


def orthanc(
    url: Annotated[str, typer.Argument(metavar="URL", help="Such as http://127.0.0.1:8042.")],
    spool: Annotated[
        Path | None,
        typer.Option(
            envvar="MEDQA_SPOOL",
            show_envvar=True,
            metavar="DIR",
            help="Where images and results lie, as the workers see it too; by default in the "
            "user's data folder.",
        ),
    ] = None,
    db: Db = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="Thresholds; by default those of the image and the task."
        ),
    ] = None,
    task: Annotated[
        TaskName, typer.Option(help="What was done to the images, where no profile is named.")
    ] = TaskName.routine,
    every: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Between two looks at Orthanc.")
    ] = 10.0,
    wake: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, metavar="PORT", help="On this machine, where orthanc.lua may call."
        ),
    ] = None,
    *,
    backlog: Annotated[
        bool,
        typer.Option("--backlog", help="At the first start, take what Orthanc holds already, too."),
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Look once, and stop.")] = False,
) -> None:
    """Assess derived series in an Orthanc against their sources, and write the verdicts back.

    User and password come from MEDQA_ORTHANC_USER and MEDQA_ORTHANC_PASSWORD. The assessing is
    done by medqa worker.

    Exit code 0: stopped, or looked once. 2: wrong use; with --once, also where Orthanc or the
    database cannot be reached.
    """
    from medqa.audit import Store
    from medqa.audit.files import data_folder
    from medqa.errors import UsageError
    from medqa.thresholds import load

    try:
        from medqa_plugins.orthanc import Orthanc, follow, listening, opened
        from medqa_plugins.orthanc import once as look
    except ModuleNotFoundError as error:
        raise UsageError("httpx", "is not installed", "pip install 'medqa[orthanc]'") from error

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    if profile is not None:
        load(profile)  # refuse at once what no job could use
    user, password = (os.environ.get(f"MEDQA_ORTHANC_{name}") for name in ("USER", "PASSWORD"))
    with ExitStack() as stack:
        server = stack.enter_context(Orthanc(url, (user, password or "") if user else None))
        store = stack.enter_context(Store.open(db))
        ready = opened(
            server, store, spool or data_folder() / "spool", profile=profile, task=task.value
        )
        stack.enter_context(ready.state)
        if once:
            look(ready, backlog=backlog)
            return
        stop, call = threading.Event(), threading.Event()

        def told(*_: object) -> None:
            stop.set()
            call.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, told)
        if wake is not None:
            stack.enter_context(listening(wake, call))
        follow(ready, every, call, stop, backlog=backlog)
