"""Slices for the viewer: read from the spool when they are asked for, as plain numbers.

A series is not read as a whole: each slice of it is a file of its own, found by the digest under
which the spool keeps it. What is shown is what was assessed: the digests are held against the
record, and every file against its digest.

A worker has read every file that is shown here, in a process with limits, or there would be no
record to show. That is not enough to read it in this one: what takes a worker's child a minute or
4 GiB may not take them of everybody's service, damage to memory that harmed nothing there may end
this process, and the libraries may have been updated since. So a reader of its own is forked here
too (`medqa.decoder`), and this process sees plain numbers.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medqa.assessment import Assessment, ImageInput
from medqa.decoder import Decoder
from medqa.errors import MismatchError, ReadError
from medqa.image import TOLERANCE_VOXELS, Image, voxels_apart
from medqa.queue.kept import Kept, kept, kept_map
from medqa.reader import source_digest
from medqa.report import number, scale_top

__all__ = ["Case", "Images", "Plane", "Side", "case", "map_slice", "shown_as", "slice_of"]

Side = Literal["reference", "candidate"]
_KEEP_BYTES = 256 * 2**20  # in memory
_MAPPED_BYTES = 8 * 2**30  # on the disk: large images are mapped from unnamed files
_LOCKS = 16
_TYPES = ("uint8", "int16", "uint16", "float32")


@dataclass(frozen=True)
class Case:
    """An assessment with what is left to look at.

    Parameters
    ----------
    assessment
        The record.
    folder
        Of its results; None where no host's job made it.
    kept
        What stays of its job.
    why_not
        Why there are no images to show, in words; empty where there are.
    """

    assessment: Assessment
    folder: Path | None
    kept: Kept | None
    why_not: str

    @property
    def stem(self) -> str:
        """What an ETag begins with: a digest of what this case shows."""
        return hashlib.sha256(self.assessment.assessment_id.encode()).hexdigest()[:24]


@dataclass(frozen=True, eq=False)
class Plane:
    """A slice as numbers: (rows, columns) of one of four little-endian types."""

    pixels: NDArray[np.generic]

    @property
    def type(self) -> str:
        """``uint8``, ``int16``, ``uint16`` or ``float32``."""
        return self.pixels.dtype.name

    @property
    def content(self) -> bytes:
        """The values, row by row."""
        little = self.pixels.dtype.newbyteorder("<")
        return np.ascontiguousarray(self.pixels, little).tobytes()


class Images:
    """Images that were read last, up to a number of bytes; used by many threads at a time.

    The two that were read last stay, whatever their size: a viewer shows two.
    """

    def __init__(self, most: int = _KEEP_BYTES) -> None:
        self._most = most
        self._decoder = Decoder()
        self._images: OrderedDict[Path, Image] = OrderedDict()
        self._guard = threading.Lock()
        # Two threads that want one file: the second waits, and finds it read.
        self._reading = [threading.Lock() for _ in range(_LOCKS)]

    def get(self, path: Path) -> Image:
        """Image of a file of the spool, which is named by its digest.

        Raises
        ------
        ReadError
            It is gone, is not what it was, or cannot be read.
        """
        with self._reading[hash(path.name) % _LOCKS]:
            with self._guard:
                if (found := self._images.get(path)) is not None:
                    self._images.move_to_end(path)
                    return found
            if source_digest(path) != path.name:  # before anything of it is decoded
                raise ReadError(path, "is not what it was when it was assessed", "assess it again")
            image = self._decoder(path)
            with self._guard:
                self._images[path] = image
                self._let_go(np.memmap, _MAPPED_BYTES)
                self._let_go(np.ndarray, self._most)
            return image

    def _let_go(self, kind: type[NDArray[Any]], most: int) -> None:
        """Forget the images of a kind that were not looked at the longest."""
        sizes = {
            path: image.pixels.nbytes
            for path, image in self._images.items()
            if type(image.pixels) is kind
        }
        held = sum(sizes.values())
        for path in [*sizes][:-2]:
            if held <= most:
                break
            held -= sizes[path]
            del self._images[path]


def case(assessment: Assessment, folder: Path | None) -> Case:
    """Find out what is left of an assessment to look at.

    Parameters
    ----------
    folder
        Of its results, as its job says.

    Raises
    ------
    ReadError
        What was kept cannot be read.
    """
    if folder is None:
        return Case(assessment, None, None, "it was not sent by a host, so nothing of it was kept")
    found = kept(folder)
    if found is None:
        return Case(assessment, folder, None, "its folder of results is gone")
    return Case(assessment, folder, found, _why_not(assessment, folder, found))


def slice_of(images: Images, shown: Case, side: Side, index: int) -> Plane:
    """One slice of an image, in modality values.

    Raises
    ------
    ReadError
        There is none, its file is gone or is not what was assessed.
    MismatchError
        The candidate lies on another grid than the reference.
    """
    count = _count(shown)
    if shown.why_not or shown.kept is None or not 0 <= index < count:
        raise ReadError("slice", shown.why_not or "there is none of this number", "choose another")
    _check_grid(images, shown, 0)
    if count > 1:
        _check_grid(images, shown, count - 1)
    image, at = _place(images, shown, side, index)
    return Plane(_plain(np.asarray(image.pixels[at])))


def map_slice(shown: Case, index: int) -> Plane:
    """Distance map of a slice whose map was kept.

    Raises
    ------
    ReadError
        It was not.
    """
    if shown.kept is None or shown.folder is None:
        raise ReadError("map", shown.why_not, "assess it again")
    if index not in {one.slice for one in shown.kept.maps}:
        raise ReadError("map", "was not kept for this slice", "choose one of the worst slices")
    return Plane(kept_map(shown.folder, index).astype(np.float32))


def shown_as(shown: Case) -> dict[str, Any]:
    """Return what the script of the viewer needs to know of a case, as JSON can hold it."""
    a, left = shown.assessment, shown.kept
    reference = a.inputs.reference
    assert reference is not None  # noqa: S101 - there are images to show
    assert left is not None  # noqa: S101
    limits = {limit.name: limit.value for limit in a.limits}
    return {
        "id": a.assessment_id,
        "shape": reference.shape,
        "unit": "" if reference.unit == "arbitrary" else reference.unit,
        "spacing": (reference.spacing_mm or (0.0, 1.0, 1.0))[1:],
        "windows": [
            {"name": one.name, "low": one.low, "high": one.high}
            for one in a.windows
            if one.low is not None and one.high is not None
        ],
        "distances": [one.lpips for one in a.slices],
        "worst": max(a.slices, key=lambda one: one.lpips).index,
        "limits": {name: limits[name] for name in ("diagnostic", "screening") if name in limits},
        "top": scale_top(a.limits),
        "maps": {one.slice: one.window for one in left.maps},
        "outlines": [
            {
                "slice": one.slice,
                "kind": one.kind,
                "label": one.name + ("" if one.lpips is None else f" {number(one.lpips)}"),
                "paths": one.paths,
            }
            for one in left.outlines
        ],
    }


def _place(images: Images, shown: Case, side: Side, index: int) -> tuple[Image, int]:
    names = () if shown.kept is None else getattr(shown.kept, side)
    assert shown.folder is not None  # noqa: S101 - what was kept lies in a folder
    stacked = len(names) > 1
    image = images.get(shown.folder.parent.parent / "files" / names[index if stacked else 0])
    at = 0 if stacked else index
    if at >= image.shape[0]:
        raise ReadError("slice", "there is none of this number", "choose another")
    return image, at


def _check_grid(images: Images, shown: Case, index: int) -> None:
    """Two images that are laid over each other must be of one grid, as they were when assessed."""
    one, other = (_place(images, shown, side, index)[0] for side in ("reference", "candidate"))
    apart = one.shape[1:] != other.shape[1:]
    if not apart and one.shape == other.shape and one.affine is not None is not other.affine:
        assert other.affine is not None  # noqa: S101 - for mypy
        apart = voxels_apart(one.affine, other.affine, one.shape) >= TOLERANCE_VOXELS
    if apart:
        reason = "was brought to the reference's grid to be assessed, and is not kept like that"
        raise MismatchError("candidate", reason, "see its report for the worst slices")


def _why_not(assessment: Assessment, folder: Path, found: Kept) -> str:
    inputs = assessment.inputs
    if not assessment.slices or inputs.reference is None or inputs.candidate is None:
        return "nothing was compared"
    if not (found.reference and found.candidate):
        return "its images were not in the spool"
    if not (
        _is_recorded(found.reference, inputs.reference)
        and _is_recorded(found.candidate, inputs.candidate)
    ):
        return "the images that were kept are not those of the record"
    if inputs.reference.shape != inputs.candidate.shape:
        return "the candidate was brought to the reference's grid to be assessed"
    files = folder.parent.parent / "files"
    names = (*found.reference, *found.candidate)
    if not all((files / name).is_file() for name in names):
        return "its images are no longer in the spool"
    return ""


def _is_recorded(names: tuple[str, ...], image: ImageInput) -> bool:
    joined = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return image.file_sha256 == (joined if len(names) > 1 else names[0])


def _count(shown: Case) -> int:
    reference = shown.assessment.inputs.reference
    return 0 if reference is None else reference.shape[0]


def _plain(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Pixels of a type that a browser has; 64-bit values lose what no display can show."""
    return pixels if pixels.dtype.name in _TYPES else _narrow(pixels)


def _narrow(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    if pixels.dtype.kind in "iub":
        low, high = int(pixels.min()), int(pixels.max())
        for name in _TYPES[:3]:
            ends = np.iinfo(name)
            if ends.min <= low and high <= ends.max:
                return pixels.astype(name)
    return pixels.astype(np.float32)
