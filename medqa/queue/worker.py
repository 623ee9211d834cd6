"""A worker: does the queue's jobs, one after another, until it is told to stop."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from medqa.assessment import Assessment, Job
from medqa.audit import Store
from medqa.decoder import Decoder
from medqa.dicom_results import write_dicom
from medqa.errors import ConflictError, MedqaError, StoreError
from medqa.image import Image
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
from medqa.queue.kept import write_kept
from medqa.queue.supervisor import IDLE_SECONDS
from medqa.reader import dicom_files
from medqa.report import write

__all__ = ["Networks", "do", "work"]

_LOG = logging.getLogger("medqa.worker")
_TROUBLE_SECONDS = 5.0  # before the next try where the database cannot be reached


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


#: Reads an image of a file, a folder or files, as `medqa.read` does.
Reads = Callable[[str | tuple[str, ...]], Image]


def do(store: Store, leased: Leased, networks: Networks, read: Reads) -> State | None:
    """Do a job: read, assess, write its results, and record it; return its state then.

    None where the job turned out to be another worker's: nothing was recorded.

    Raises
    ------
    StoreError
        The database cannot be reached: the job comes back when its lease has run out.
    """
    job = leased.job
    try:
        with _alive(store, leased):
            assessment = judge_job(job, store.key, network=networks(job), read=read)
            if leased.results is not None:
                with _results(assessment, job, Path(leased.results)):
                    extend(store, leased)  # no results over those of whoever has the job now
            store.add(
                assessment,
                supersedes=job.supersedes,
                reason=job.reason,
                actor=job.actor,
                beside=lambda connection: finish(connection, leased, assessment.assessment_id),
            )
    except LeaseLostError:
        _LOG.warning("job %s: its lease was lost", leased.job_id)
        return None
    except MedqaError as error:
        if isinstance(error, StoreError) and not isinstance(error, ConflictError):
            raise
        # Neither subject nor detail, which may name a patient.
        _LOG.error("job %s: %s; %s", leased.job_id, error.reason, error.mend)
        return fail(store, leased, f"{error.reason}; {error.mend}", final=True)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        _LOG.error("job %s: %s in %s", leased.job_id, type(error).__name__, where)
        words = f"an error of medqa's own ({type(error).__name__} in {where}); report it"
        return fail(store, leased, words)
    return "done"


def work(
    url: str | None,
    weights: Path | None,
    stop: Event,
    *,
    until_empty: bool = False,
    idle_seconds: float = IDLE_SECONDS,
) -> None:
    """Do jobs, one after another, until told to stop or alone: the body of a worker's process."""
    # Seconds, which whoever waits for the first job should not wait for.
    import monai.transforms  # noqa: F401
    import piq  # type: ignore[import-untyped] # noqa: F401

    torch.set_num_threads(1)  # one processor for each worker
    name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    networks = Networks(weights)
    parent = parent_process()

    def told() -> bool:
        return stop.is_set() or (parent is not None and not parent.is_alive())

    while not told():
        try:
            with Store.open(url) as store, Decoder() as read:
                while not told():
                    leased = lease(store, name)
                    if leased is not None:
                        do(store, leased, networks, read)
                    elif until_empty:
                        return
                    else:
                        stop.wait(idle_seconds)
        except StoreError as error:
            _LOG.error("the database: %s; %s", error.reason, error.mend)
            stop.wait(_TROUBLE_SECONDS)


@contextmanager
def _results(assessment: Assessment, job: Job, folder: Path) -> Iterator[None]:
    """Write report, record and DICOM objects; in place, over an earlier try's, at the end."""
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        write(assessment, part)
        reference = [] if assessment.inputs.reference is None else dicom_files(job.reference)
        if reference:
            candidate = [] if assessment.inputs.candidate is None else dicom_files(job.candidate)
            write_dicom(assessment, reference, candidate, part / "dicom")
        write_kept(assessment, job, part, folder.parent.parent / "files")
        yield
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
                _LOG.warning("the database: %s; %s", error.reason, error.mend)

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()
