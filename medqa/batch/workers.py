"""What a worker does, and worker processes on this machine.

A worker reads, compares and judges; it writes reports, but never to the database.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar

from medqa._version import __version__
from medqa.assessment import Assessment, Job, Level
from medqa.errors import UsageError, WeightsError
from medqa.identity import Engine, Sources, sources

if TYPE_CHECKING:
    from medqa.lpips import GrayLPIPS

__all__ = [
    "Outcome",
    "Pool",
    "Processes",
    "Reports",
    "Setting",
    "assess",
    "engine",
    "identify",
    "report_path",
    "write_report",
]

P = ParamSpec("P")
T = TypeVar("T")
Reports = Literal["all", "failed", "none"]


@dataclass(frozen=True)
class Setting:
    """What all jobs of a batch have in common; it travels to every worker.

    Parameters
    ----------
    backbone, weights, precision, device
        The network, the folder of its weights, what it computes in, and where.
    key
        Key of the pseudonyms.
    out
        Folder of the batch; workers on other machines must see the same folder under this path.
    reports
        Which reports have pictures: of all pairs, or of those that fail; ``none`` writes none.
    require
        Level that a pair must meet.
    """

    backbone: str
    weights: str | None
    precision: str
    device: str
    key: bytes
    out: str
    reports: Reports
    require: Level


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Parameters
    ----------
    engine
        What measured.
    record
        The assessment as JSON; None where nothing was judged.
    reason
        Why nothing was judged.
    mendable
        Whether that lies in the call (a profile that is not for the image), so that nothing is to
        be recorded; else something broke, which is.
    """

    engine: Engine
    record: str | None
    reason: str = ""
    mendable: bool = False


def engine(setting: Setting) -> Engine:
    """Load the network, and say what measures here.

    Raises
    ------
    UsageError
        It cannot be loaded.
    """
    network = _network(setting)
    weights = network.weights
    return Engine(
        medqa=__version__,
        backbone=weights.backbone,
        version=weights.version,
        weights_sha256=weights.sha256,
        precision=str(network.dtype).removeprefix("torch."),
    )


def identify(setting: Setting, job: Job) -> Sources:
    """Return the digests of what a job reads."""
    return sources(job, setting.key)


def assess(setting: Setting, job: Job, record_id: str) -> Outcome:
    """Do a job and write its report; the record is left to the caller.

    Raises
    ------
    UsageError
        The network or the reports' folder cannot be used: no job can be done.
    """
    from medqa.pipeline import judge_job

    measured, network = engine(setting), _network(setting)
    try:
        done = judge_job(job, setting.key, network=network)
    except WeightsError:
        raise
    except UsageError as error:
        return Outcome(measured, None, f"{error.reason}; {error.mend}", mendable=True)
    except MemoryError:
        return Outcome(measured, None, "the memory did not suffice; allow each worker more")
    except Exception as error:  # whatever a library makes of one image must not end the others
        reason = f"a library failed ({type(error).__name__}); report it with the image"
        return Outcome(measured, None, reason)
    assessment = done.model_copy(update={"assessment_id": record_id})
    write_report(assessment, setting)
    return Outcome(measured, assessment.model_dump_json())


def write_report(assessment: Assessment, setting: Setting) -> None:
    """Write the report of a pair, with pictures where the setting asks for them.

    Raises
    ------
    UsageError
        It cannot be written.
    """
    from medqa.report import write

    if setting.reports == "none":
        return
    if setting.reports == "failed" and assessment.meets(setting.require):
        assessment = Assessment.model_validate(assessment.model_dump())  # without its pictures
    write(assessment, Path(setting.out, report_path(assessment.assessment_id)).parent)


def report_path(record_id: str) -> str:
    """Path of a report below the batch's folder; no folder holds more than 1/256 of them."""
    return f"reports/{record_id[:2]}/{record_id}/report.html"


@cache
def _network(setting: Setting) -> GrayLPIPS:
    """Load the network once in each process."""
    import torch

    from medqa.lpips import GrayLPIPS, choose_device

    torch.set_num_threads(1)  # a process for each core beats threads: nothing is shared
    device = choose_device(setting.device)
    weights = None if setting.weights is None else Path(setting.weights)
    return GrayLPIPS(setting.backbone, weights, precision=setting.precision, device=device)


# The pool -----------------------------------------------------------------------------------------


class Pool(Protocol):
    """Where jobs are done: processes here, or a cluster.

    `slots` is how many jobs it takes at once, `tries` how often a job is given to it before it
    is given up, and `lost` what a job's future raises where its worker ended.
    """

    tries: int
    lost: tuple[type[BaseException], ...]

    @property
    def slots(self) -> int: ...  # noqa: D102

    def submit(  # noqa: D102
        self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]: ...


class Processes:
    """Worker processes; a context manager.

    Each is an executor of its own: where a process is ended, by the system or by a codec, exactly
    the job that it had is known, and no other one suffers.
    """

    tries = 2
    lost: tuple[type[BaseException], ...] = (BrokenExecutor,)

    def __init__(self, count: int) -> None:
        self._context = multiprocessing.get_context("spawn")  # torch does not survive a fork
        self._watched, self._alive = self._context.Pipe(duplex=False)
        self._executors = [self._executor() for _ in range(count)]
        self._running: dict[int, Future[Any]] = {}

    @property
    def slots(self) -> int:
        """How many jobs are done at once."""
        return len(self._executors)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Give a job to a free process; the caller keeps to `slots`."""
        free = next(
            n for n in range(self.slots) if n not in self._running or self._running[n].done()
        )
        last = self._running.get(free)
        if last is not None and isinstance(last.exception(), BrokenExecutor):
            self._executors[free].shutdown(wait=False)
            self._executors[free] = self._executor()
        try:
            future = self._executors[free].submit(function, *args, **kwargs)
        except BrokenExecutor:  # its process ended while it had nothing to do
            self._executors[free] = self._executor()
            future = self._executors[free].submit(function, *args, **kwargs)
        self._running[free] = future
        return future

    def _executor(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1, mp_context=self._context, initializer=_begin, initargs=(self._watched,)
        )

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._alive.close()  # what they were doing is not wanted any more
        for executor in self._executors:
            executor.shutdown(wait=True, cancel_futures=True)
        self._alive.close()
        self._watched.close()


def _begin(watched: Connection) -> None:
    """Set a worker process up: it ends when its parent does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_follow, args=(watched,), daemon=True).start()


def _follow(watched: Connection) -> None:
    # Nothing is ever sent: the other end is closed by the parent, or by its death.
    watched.poll(None)
    os._exit(1)
