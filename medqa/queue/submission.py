"""Submission: how a host hands over what it received."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from safetensors import safe_open

from medqa._version import __version__
from medqa.assessment import Job
from medqa.audit import Store
from medqa.errors import UsageError
from medqa.identity import Engine, profile_digest, record_id, sources
from medqa.queue.jobs import MOST_WAITING, Queued, enqueue

__all__ = ["Spool", "submit"]


@dataclass(frozen=True)
class Spool:
    """Folder where a host keeps what it received, and finds what came of it.

    Parameters
    ----------
    folder
        Made where it is missing, for its owner only. ``files`` holds what was received, by
        digest; ``results`` a folder for each job that is done.
    """

    folder: Path

    def put(self, chunks: Iterable[bytes]) -> Path:
        """Keep a file, durably: whole or not at all, named by its SHA-256, and once.

        Raises
        ------
        UsageError
            It cannot be written, as on a full disk: it must not be acknowledged.
        """
        folder = self.folder / "files"
        digest = hashlib.sha256()
        part = ""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
            with os.fdopen(handle, "wb") as stream:
                for chunk in chunks:
                    digest.update(chunk)
                    stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
            kept = folder / digest.hexdigest()
            os.replace(part, kept)
            _sync(folder)  # the name is on disk only with its folder
        except OSError as error:
            raise UsageError(
                folder, f"cannot be written ({error.strerror})", "check the space on its disk"
            ) from error
        finally:
            if part:
                Path(part).unlink(missing_ok=True)
        return kept

    def results(self, key: str) -> Path:
        """Folder of what came of a job."""
        return self.folder / "results" / key


def submit(store: Store, spool: Spool, job: Job, most: int = MOST_WAITING) -> tuple[Queued, bool]:
    """Put a job into the queue, unless the same work is there already.

    Parameters
    ----------
    job
        Its files lie in the spool, or stay where they are until it is done.
    most
        How many jobs may wait.

    Returns
    -------
    The job as it stands in the queue, and whether it is new.

    Raises
    ------
    QueueFullError
        As many wait as may: the sender is to try again later.
    UsageError
        The profile or the weights cannot be used, or the database cannot be written.
    """
    key = record_id(job, sources(job, store.key), _engine(job), profile_digest(job.profile))
    return enqueue(store, job, key, str(spool.results(key)), most)


def _engine(job: Job) -> Engine:
    """Say what will measure; without torch where it is the network that medqa ships."""
    if job.backbone == "gray":
        shipped = resources.files("medqa.models") / "gray.safetensors"
        with resources.as_file(shipped) as path, safe_open(path, framework="np") as file:
            stated = file.metadata()  # the worker checks the tensors against it
        return Engine(__version__, "gray", stated["version"], stated["sha256"], job.precision)
    from medqa.weights import find

    network = find(job.backbone)
    return Engine(__version__, network.backbone, network.version, network.sha256, job.precision)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
