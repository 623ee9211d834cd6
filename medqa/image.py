"""The image and its regions: what every later step works on, whatever the file format was."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "TOLERANCE_VOXELS",
    "Identifiers",
    "Image",
    "Region",
    "VoiLut",
    "Window",
    "voxels_apart",
]

#: Grids coincide where no corner voxel lies further from its counterpart than this: less than
#: anybody can see, more than the rounding of positions that headers write in decimals.
TOLERANCE_VOXELS = 0.1


@dataclass(frozen=True)
class Window:
    """A VOI window in modality values (DICOM PS3.3 C.11.2.1.2).

    Parameters
    ----------
    centre, width
        In the unit of the image's pixels; for a CT, HU.
    function
        DICOM's VOI LUT Function.
    """

    centre: float
    width: float
    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"] = "LINEAR"


@dataclass(frozen=True, eq=False)
class VoiLut:
    """A VOI LUT (DICOM PS3.3 C.11.2.1.1).

    Parameters
    ----------
    first
        The modality value that the first entry belongs to; values below it get the first
        entry, values past the end the last.
    table
        (N,) float32 in [0, 1], larger is brighter.
    """

    first: int
    table: NDArray[np.float32]


@dataclass(frozen=True)
class Identifiers:
    """What names the patient and the study; enters a record only as keyed HMACs."""

    patient_id: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    sop_uids: tuple[str, ...] = ()
    frame_of_reference_uid: str | None = None


@dataclass(frozen=True, eq=False)
class Image:
    """A decoded image, calibrated to modality values, larger is brighter.

    Parameters
    ----------
    pixels
        (slices, rows, columns) of a real integer or float type. Modality values: rescaled,
        MONOCHROME1 turned into MONOCHROME2, colour turned into luminance. A single image has one
        slice; a time series holds its volumes one after another along the first axis.
    source
        What to call it in messages: usually the path it was read from. Never recorded.
    kind
        The format it was read from.
    modality
        DICOM Modality, such as ``CT``; None where the format does not say.
    unit
        Unit of the pixel values: ``HU``, ``BQML`` and so on; ``arbitrary`` where not calibrated.
    value_range
        Lowest and highest value that the stored format can hold, in the unit of the pixels.
        This is "full range" for an ultrasound; None where unbounded (floating point).
    spacing_mm
        Distance between pixel centres along (slice, row, column); None where unknown.
        The first is 0.0 for a single slice.
    affine
        (4, 4) float64 taking array indices (slice, row, column, 1) to patient coordinates in mm,
        axes right-anterior-superior (the convention of NIfTI and MONAI); None where unknown.
    voi
        The display that the file asks for, if it does (the first, where it offers several).
    volumes
        How many volumes a time series holds; `slices` is a multiple of it.
    body_part
        DICOM BodyPartExamined, where given.
    transfer_syntax
        UID of the DICOM transfer syntax it was stored in.
    identifiers
        Patient, study, series and instances.
    file_sha256
        Of a single file, what ``sha256sum`` prints; of a series, the SHA-256 of the files' hex
        digests in slice order, joined by newlines; None for an image built in memory.
    """

    pixels: NDArray[Any]
    source: str = "array"
    kind: Literal["dicom", "nifti", "array"] = "array"
    modality: str | None = None
    unit: str = "arbitrary"
    value_range: tuple[float, float] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    affine: NDArray[np.float64] | None = None
    voi: Window | VoiLut | None = None
    volumes: int = 1
    body_part: str | None = None
    transfer_syntax: str | None = None
    identifiers: Identifiers = field(default=Identifiers(), repr=False)
    file_sha256: str | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        slices, rows, columns = self.pixels.shape
        return slices, rows, columns

    @cached_property
    def pixels_sha256(self) -> str:
        """SHA-256 of shape, type and little-endian values, whatever file they came from."""
        pixels = self.pixels
        little = pixels.dtype.newbyteorder("<")
        digest = hashlib.sha256(f"{pixels.shape} {little.str}\n".encode())
        for one in pixels:
            digest.update(np.ascontiguousarray(one, dtype=little).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Region:
    """A set of pixels of an image that is judged on its own.

    Parameters
    ----------
    kind
        ``pathology`` from a mask, ``annotation`` from an annotation.
    name
        Its type or label in words, such as ``nodule``.
    mask
        (slices, rows, columns) bool, cropped to the bounding box.
    origin
        (slice, row, column) of the bounding box's first voxel in the image.
    """

    kind: Literal["pathology", "annotation"]
    name: str
    mask: NDArray[np.bool_]
    origin: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def crop(
        cls, kind: Literal["pathology", "annotation"], name: str, mask: NDArray[np.bool_]
    ) -> Region:
        """Region of a whole-grid (slices, rows, columns) bool mask that is not empty."""
        low, high = [], []
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            filled = np.flatnonzero(mask.any(axis=others))
            low.append(int(filled[0]))
            high.append(int(filled[-1]) + 1)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        return cls(kind, name, mask[box].copy(), (low[0], low[1], low[2]))

    @property
    def slices(self) -> range:
        """Indices of the image's slices that the bounding box spans."""
        return range(self.origin[0], self.origin[0] + self.mask.shape[0])

    @property
    def size(self) -> int:
        """Number of pixels inside."""
        return int(np.count_nonzero(self.mask))

    def on_slice(self, index: int) -> tuple[slice, slice, NDArray[np.bool_]]:
        """Rows and columns of the bounding box, and the mask inside it, on one slice."""
        rows = slice(self.origin[1], self.origin[1] + self.mask.shape[1])
        columns = slice(self.origin[2], self.origin[2] + self.mask.shape[2])
        return rows, columns, self.mask[index - self.origin[0]]


def voxels_apart(
    one: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, int, int]
) -> float:
    """Return how far the corner voxels of two grids of one shape lie apart, at most, in voxels.

    Parameters
    ----------
    one, other
        (4, 4), taking array indices to patient coordinates.
    shape
        Of one volume.
    """
    corners = np.array(np.meshgrid(*((0, n - 1) for n in shape), [1])).reshape(4, -1)
    return float(np.abs(np.linalg.solve(one, other @ corners) - corners).max())
