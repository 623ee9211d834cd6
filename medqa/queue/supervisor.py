"""Keeps workers running: processes of their own, so that one that dies harms nothing else.

Here no network is loaded, and torch is not either: a service can keep workers beside it.
"""

from __future__ import annotations

import logging
import threading
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

__all__ = ["IDLE_SECONDS", "work_many"]

#: Between two looks at an empty queue.
IDLE_SECONDS = 1.0
_LOG = logging.getLogger("medqa.worker")
_RESTART_SECONDS = 1.0  # before a worker that died is replaced


def work_many(
    url: str | None,
    count: int,
    weights: Path | None = None,
    *,
    stop: threading.Event,
    until_empty: bool = False,
    idle_seconds: float = IDLE_SECONDS,
) -> None:
    """Keep so many workers running until told to stop; each finishes the job that it has begun.

    A worker that dies, of a damaged file or for want of memory, is replaced; its job comes back
    when its lease has run out.

    Parameters
    ----------
    url
        The audit database, as `medqa.audit.Store.open` takes it.
    weights
        Folder of the official networks' weights.
    until_empty
        Stop by itself once no job is due.
    idle_seconds
        Between two looks at an empty queue.
    """
    context = get_context("spawn")  # a forked torch can hang
    told = context.Event()

    def start() -> BaseProcess:
        process = context.Process(
            target=_work,
            args=(url, weights, told),
            kwargs={"until_empty": until_empty, "idle_seconds": idle_seconds},
        )
        process.start()
        return process

    running = [start() for _ in range(count)]
    try:
        while running and not stop.wait(_RESTART_SECONDS):
            for place, process in enumerate(list(running)):
                if process.is_alive():
                    continue
                if process.exitcode == 0 and until_empty:
                    running.remove(process)
                else:
                    _LOG.error("a worker died (%s) and is replaced", process.exitcode)
                    running[place] = start()
    finally:
        told.set()
        for process in running:
            process.join()


def _work(
    url: str | None, weights: Path | None, stop: Event, *, until_empty: bool, idle_seconds: float
) -> None:
    """Be a worker: what it needs is imported in its own process."""
    from medqa.queue.worker import work

    work(url, weights, stop, until_empty=until_empty, idle_seconds=idle_seconds)
