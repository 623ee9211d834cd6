"""What makes two requests the same: their inputs, their thresholds and the engine, by digest.

The id of a batch's record is made of these. So the database's own rule that an id is there once
keeps any pair from being recorded twice, whoever runs the batch, and how often, and it is looked up
by an index.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medqa.assessment import Job
from medqa.audit import pseudonym
from medqa.errors import ReadError
from medqa.reader import source_digest
from medqa.thresholds import load, names

__all__ = ["Engine", "Sources", "lost_id", "profile_digest", "record_id", "sources"]

_NAMESPACE = uuid.UUID("5f0a1e0c-9c39-4b7e-8b3c-0d7f0c1a6e52")
_PAIR_ENDS = (".hdr", ".hdr.gz", ".img", ".img.gz")  # NIfTI in two files


@dataclass(frozen=True)
class Engine:
    """What measures: two that are equal come to the same result.

    Parameters
    ----------
    medqa
        Version of medqa.
    backbone, version, weights_sha256
        The network.
    precision
        What it computes in.
    """

    medqa: str
    backbone: str
    version: str
    weights_sha256: str
    precision: str


@dataclass(frozen=True)
class Sources:
    """Digests of everything that a job reads; of a folder, of each of its files."""

    reference: tuple[str, ...]
    candidate: tuple[str, ...]
    masks: tuple[tuple[str, ...], ...]
    annotations: tuple[tuple[str, ...], ...]


def sources(job: Job, key: bytes) -> Sources:
    """Read every input of a job once, and return the digests.

    Parameters
    ----------
    key
        A file that cannot be read has no digest; the keyed code of its path stands for it, as the
        path may name the patient.
    """

    def one(given: str | Sequence[str]) -> tuple[str, ...]:
        paths = [given] if isinstance(given, str) else given
        return tuple(sorted(_digest(file, key) for path in paths for file in _files(Path(path))))

    return Sources(
        reference=one(job.reference),
        candidate=one(job.candidate),
        masks=tuple(map(one, job.masks)),
        annotations=tuple(map(one, job.annotations)),
    )


def _files(path: Path) -> Iterable[Path]:
    """Return the files behind a path: all of a folder, without its subfolders; both of a pair."""
    try:
        if path.is_dir():
            return [one for one in path.iterdir() if one.is_file()]
    except OSError:
        return [path]
    end = next((end for end in _PAIR_ENDS if path.name.lower().endswith(end)), None)
    if end is None:
        return [path]
    stem = path.name[: len(path.name) - len(end)]
    beside = (path.with_name(stem + end) for end in _PAIR_ENDS)
    return [path, *(one for one in beside if one != path and one.is_file())]


def _digest(path: Path, key: bytes) -> str:
    try:
        if path.is_file():  # a pipe could keep us waiting for ever
            return source_digest(path)
    except (OSError, ReadError):
        pass
    return f"unreadable {pseudonym(key, str(path))}"


def profile_digest(name: str | None) -> str:
    """SHA-256 of a profile; None, which takes the one of the image, stands for all shipped ones.

    Raises
    ------
    ProfileError
        It cannot be used.
    """
    if name is not None:
        return load(name).ref.sha256
    shipped = "\n".join(load(one).ref.sha256 for one in names())
    return hashlib.sha256(shipped.encode()).hexdigest()


def record_id(job: Job, read: Sources, engine: Engine, profile_sha256: str) -> str:
    """Id of the record of a job: a UUID of version 5, the same for the same request.

    Not in it: where the files lie, who asks, and what the image is wanted for.
    """
    request = {
        "sources": asdict(read),
        "engine": asdict(engine),
        "profile": profile_sha256,
        "task": job.task if job.profile is None else None,
        "resample": job.resample,
        "require_calibrated": job.require_calibrated,
        "plane_stride": job.plane_stride,
    }
    return _named(json.dumps(request, sort_keys=True))


def lost_id(record: str) -> str:
    """Id of the record that a request could not be carried out, which may be mended later."""
    return _named(f"lost {record}")


def _named(text: str) -> str:
    # A version 5 UUID hashes by SHA-1: what it is of is a SHA-256, so nobody can steer it.
    return str(uuid.uuid5(_NAMESPACE, hashlib.sha256(text.encode()).hexdigest()))
