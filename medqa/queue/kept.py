"""What stays of a job for people to look at: its images in the spool, its maps, its outlines.

A record holds no path and no pixel. Beside the report of a job that is done, ``review.json`` names
its images by the SHA-256 that the spool keeps them under, and ``maps.npz`` holds the distance maps
of the slices that the report shows. Nothing here is needed to judge, or to prove what was judged.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from skimage.measure import find_contours

from medqa.assessment import Assessment, Evidence, ImageInput, Job
from medqa.dicom.files import header, reading
from medqa.dicom.geometry import arrange, order_of, plane
from medqa.errors import ReadError
from medqa.files import write_file

__all__ = ["MAPS_BYTES", "Kept", "KeptMap", "Outline", "kept", "kept_map", "write_kept"]

#: Room for the maps of a job, as they are before compression; the worst slices come first.
MAPS_BYTES = 64 * 2**20
_NAMES = "review.json", "maps.npz"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class KeptMap:
    """A slice whose distance map is kept.

    Parameters
    ----------
    slice
        Its index.
    window
        Name of the display that the map is of.
    """

    slice: int
    window: str


@dataclass(frozen=True)
class Outline:
    """The border of a region on one slice.

    Parameters
    ----------
    slice
        Its index.
    kind, name
        Of the region.
    lpips
        Distance of the region where it is worst; None where the record does not say which it is.
    paths
        Each (x1, y1, x2, y2 …) in pixels; the middle of the first pixel is 0, 0.
    """

    slice: int
    kind: Literal["pathology", "annotation"]
    name: str
    lpips: float | None
    paths: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Kept:
    """What stays of a job.

    Parameters
    ----------
    reference, candidate
        SHA-256 of the files, under which the spool keeps them: one file, or one for each slice, in
        order. Empty where the files lie outside the spool.
    maps
        The slices with a map, worst first.
    outlines
        Of the regions on these slices.
    """

    reference: tuple[_Digest, ...]
    candidate: tuple[_Digest, ...]
    maps: tuple[KeptMap, ...]
    outlines: tuple[Outline, ...]


_KEPT = TypeAdapter(Kept)


def write_kept(assessment: Assessment, job: Job, folder: Path, files: Path) -> None:
    """Write what stays of a job into its folder of results.

    Parameters
    ----------
    assessment
        With its evidence.
    folder
        Of the results.
    files
        Where the spool keeps what it received.

    Raises
    ------
    UsageError
        It cannot be written.
    """
    scored = bool(assessment.slices)
    shown: dict[int, Evidence] = {}
    for one in assessment.evidence:  # worst first: of several displays of a slice, the worst
        shown.setdefault(one.index, one)
    room = MAPS_BYTES
    maps = []
    for one in shown.values():
        room -= 2 * one.distance_map.size
        if room >= 0:
            maps.append(one)
    what = Kept(
        reference=_ordered(job.reference, files, assessment.inputs.reference) if scored else (),
        candidate=_ordered(job.candidate, files, assessment.inputs.candidate) if scored else (),
        maps=tuple(KeptMap(one.index, one.window) for one in maps),
        outlines=tuple(outline for one in shown.values() for outline in _outlines(assessment, one)),
    )
    write_file(folder / _NAMES[0], _KEPT.dump_json(what))
    # Half precision, a relative error of 0.0005: the figures that decide are in the record.
    arrays = {f"map{one.index}": one.distance_map.astype(np.float16) for one in maps}
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **arrays)
    write_file(folder / _NAMES[1], packed.getvalue())


def kept(folder: Path) -> Kept | None:
    """Read what stays of a job from its folder of results; None where nothing does.

    Raises
    ------
    ReadError
        It is not what `write_kept` writes.
    """
    try:
        return _KEPT.validate_json((folder / _NAMES[0]).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ReadError(
            folder, "what was kept of the job cannot be read", "assess again"
        ) from error


def kept_map(folder: Path, index: int) -> NDArray[np.float16]:
    """(rows, columns) distance map of a slice that has one.

    Raises
    ------
    ReadError
        There is none, or it cannot be read.
    """
    with reading(folder), np.load(folder / _NAMES[1], allow_pickle=False) as arrays:
        found: NDArray[np.float16] = arrays[f"map{index}"]
        return found


def _ordered(
    given: str | Sequence[str], files: Path, recorded: ImageInput | None
) -> tuple[str, ...]:
    """Digests of an image's files in the order of its slices; () where one is not in the spool."""
    paths = [Path(one) for one in ([given] if isinstance(given, str) else given)]
    if any(one.parent != files or not _DIGEST.fullmatch(one.name) for one in paths):
        return ()
    if len(paths) > 1:
        names = tuple(one.name for one in paths)
        for guess in (names, names[::-1]):  # by instance number, mostly: then no header is read
            digest = hashlib.sha256("\n".join(guess).encode()).hexdigest()
            if recorded is not None and digest == recorded.file_sha256:
                return guess
        with reading(files):
            headers = [header(one) for one in paths]
            planes, orders = [plane(ds, 0) for ds in headers], [order_of(ds, 0) for ds in headers]
            paths = [paths[index] for index in arrange(planes, orders, files)[0]]
    return tuple(one.name for one in paths)


def _outlines(assessment: Assessment, shown: Evidence) -> list[Outline]:
    found = []
    for kind, name, mask in shown.regions:
        if mask.any():
            # A border of zeros closes the outline of what reaches the edge of the image.
            contours = find_contours(np.pad(mask, 1).astype(np.float32), 0.5)
            paths = tuple(
                tuple(round(float(value) - 1.0, 1) for value in one[:, ::-1].ravel())
                for one in contours
            )
            lpips = _distance(assessment, kind, name, shown.index, mask)
            found.append(Outline(shown.index, _kind(kind), name, lpips, paths))
    return found


def _kind(kind: str) -> Literal["pathology", "annotation"]:
    return "pathology" if kind == "pathology" else "annotation"


def _distance(
    assessment: Assessment, kind: str, name: str, index: int, mask: NDArray[np.bool_]
) -> float | None:
    """Distance of a region: of the only one of its name, or of the one that lies there."""
    pathology = assessment.pathology_preservation
    scored = (
        [(one.name, one.lpips, one.slice, one.bbox) for one in pathology.components]
        if kind == "pathology" and pathology is not None
        else [
            (one.annotation_type, one.lpips_score, one.slice, one.bbox)
            for one in assessment.annotation_preservation
        ]
    )
    called = [one for one in scored if one[0] == name]
    if len(called) != 1:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        called = [one for one in called if one[2:] == (index, box)]
    return called[0][1] if len(called) == 1 else None
