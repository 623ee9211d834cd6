"""Workers: processes that do the queue's jobs until they are told to stop."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from medqa.assessment import Assessment, Job
from medqa.audit import Store
from medqa.dicom_results import write_dicom
from medqa.errors import MedqaError, StoreError
from medqa.lpips import GrayLPIPS, choose_device
from medqa.pipeline import judge_job
from medqa.queue.jobs import (
    LEASE_SECONDS,
    Leased,
    LeaseLostError,
    State,
    extend,
    fail,
    finish,
    lease,
)
from medqa.reader import dicom_files
from medqa.report import write

__all__ = ["do", "work", "work_many"]

_LOG = logging.getLogger("medqa.worker")
_IDLE_SECONDS = 1.0  # between two looks at an empty queue
_TROUBLE_SECONDS = 5.0  # before the next try where the database cannot be reached
_RESTART_SECONDS = 1.0  # before a worker that died is replaced


class Networks:
    """The networks that a worker has loaded: one for each that jobs have asked for."""

    def __init__(self, weights: Path | None = None) -> None:
        self._weights = weights
        self._loaded: dict[tuple[str, str, str], GrayLPIPS] = {}

    def __call__(self, job: Job) -> GrayLPIPS:
        """Return the job's network."""
        name = job.backbone, job.precision, choose_device(job.device)
        if name not in self._loaded:
            backbone, precision, device = name
            network = GrayLPIPS(backbone, self._weights, precision=precision, device=device)
            self._loaded[name] = network
        return self._loaded[name]


def do(store: Store, leased: Leased, networks: Networks) -> State | None:
    """Do a job: assess, write its results, and record it; return its state then.

    None where the job turned out to be another worker's: nothing was recorded.

    Raises
    ------
    StoreError
        The database cannot be reached: the job comes back when its lease has run out.
    """
    job = leased.job
    try:
        with _alive(store, leased):
            assessment = judge_job(job, store.key, network=networks(job))
            if leased.results is not None:
                _write_results(assessment, job, Path(leased.results))
            store.add(
                assessment,
                supersedes=job.supersedes,
                reason=job.reason,
                actor=job.actor,
                beside=lambda connection: finish(connection, leased, assessment.assessment_id),
            )
    except LeaseLostError as error:
        _LOG.warning("%s", error)
        return None
    except StoreError:
        raise
    except MedqaError as error:
        _LOG.error("%s", error)
        return fail(store, leased, f"{error.reason}; {error.mend}")
    except Exception as error:
        _LOG.exception("job %s", leased.job_id)
        return fail(store, leased, f"an error of medqa's own ({type(error).__name__}); report it")
    return "done"


def work(url: str | None, weights: Path | None, stop: Event, *, until_empty: bool = False) -> None:
    """Do jobs, one after another, until told to stop: the body of a worker's process."""
    torch.set_num_threads(1)  # one processor for each worker
    name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    networks = Networks(weights)
    while not stop.is_set():
        try:
            with Store.open(url) as store:
                while not stop.is_set():
                    leased = lease(store, name)
                    if leased is not None:
                        do(store, leased, networks)
                    elif until_empty:
                        return
                    else:
                        stop.wait(_IDLE_SECONDS)
        except StoreError as error:
            _LOG.error("%s", error)
            stop.wait(_TROUBLE_SECONDS)


def work_many(
    url: str | None,
    count: int,
    weights: Path | None = None,
    *,
    stop: threading.Event,
    until_empty: bool = False,
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
    """
    context = get_context("spawn")  # a forked torch can hang
    told = context.Event()

    def start() -> BaseProcess:
        process = context.Process(
            target=work, args=(url, weights, told), kwargs={"until_empty": until_empty}
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


def _write_results(assessment: Assessment, job: Job, folder: Path) -> None:
    """Write report, record and DICOM objects; a folder of an earlier try is replaced."""
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        write(assessment, part)
        reference = [] if assessment.inputs.reference is None else dicom_files(job.reference)
        if reference:
            candidate = [] if assessment.inputs.candidate is None else dicom_files(job.candidate)
            write_dicom(assessment, reference, candidate, part / "dicom")
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _alive(store: Store, leased: Leased) -> Iterator[None]:
    """Extend the lease again and again while the work lasts."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(LEASE_SECONDS / 3):
            try:
                extend(store, leased)
            except LeaseLostError:
                return  # the end of the work finds out too
            except StoreError as error:
                _LOG.warning("%s", error)

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()
