"""The image and its regions: what every later step works on, whatever the file format was."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from medqa.errors import ReadError

__all__ = [
    "KEPT_BYTES",
    "TOLERANCE_VOXELS",
    "Code",
    "Identifiers",
    "Image",
    "Region",
    "Slices",
    "Survey",
    "VoiLut",
    "Window",
    "changed",
    "gather",
    "voxels_apart",
]

#: Largest image, in bytes, whose decoded pixels are kept: 512 slices of 512 x 512 int16. The slices
#: of a larger one are decoded each time they are asked for.
KEPT_BYTES = 256 * 2**20

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
    """What names the patient and the study; enters a record only as keyed HMACs.

    Parameters
    ----------
    sop_uids
        Of each file in slice order; of a multi-frame file, its own alone.
    frames
        Number, from 1, of each slice's frame in its multi-frame file; () where each slice is a
        file of its own.
    device
        Manufacturer, model, serial number and station: one device.
    """

    patient_id: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    sop_uids: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()
    frame_of_reference_uid: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Code:
    """A coded concept (DICOM PS3.3 8.8), such as ``(4147007, SCT, "Mass")``."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Survey:
    """What takes a look at every pixel.

    Parameters
    ----------
    shape, dtype
        Of the pixels.
    sha256
        Of shape, type and little-endian values.
    minimum, maximum
        Of all pixels; NaN where one is NaN.
    not_finite
        How many pixels are NaN or infinite.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    sha256: str
    minimum: float
    maximum: float
    not_finite: int


class _Surveyor:
    """Makes a `Survey` of slices that are shown to it one by one, in order."""

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
        self._shape, self._dtype = shape, dtype
        self._little = dtype.newbyteorder("<")
        self._digest = hashlib.sha256(f"{shape} {self._little.str}\n".encode())
        self._ends: list[Any] = []
        self._not_finite = 0

    def add(self, one: NDArray[Any]) -> None:
        """Take the next (rows, columns)."""
        self._digest.update(np.ascontiguousarray(one, self._little).data)
        self._ends += [one.min(), one.max()]
        if one.dtype.kind == "f":
            self._not_finite += one.size - int(np.count_nonzero(np.isfinite(one)))

    def survey(self) -> Survey:
        """Return what was found in the slices so far."""
        ends = np.array(self._ends, self._dtype)
        return Survey(
            shape=self._shape,
            dtype=self._dtype,
            sha256=self._digest.hexdigest(),
            minimum=ends.min().item(),
            maximum=ends.max().item(),
            not_finite=self._not_finite,
        )


@dataclass(frozen=True, eq=False)
class Slices:
    """Pixels that are decoded when they are asked for: (slices, rows, columns), as an array.

    Holds no pixels and no state, so several threads may ask at the same time.

    Parameters
    ----------
    decode
        Takes the index of a slice and returns its (rows, columns), of a type that can be cast to
        the survey's without loss. Called from any thread.
    source
        What to call it in messages.
    survey
        Of all slices.
    digests
        SHA-256 of each slice's values. What was surveyed is what is compared: a slice that
        decodes to anything else raises ReadError.
    """

    decode: Callable[[int], NDArray[Any]]
    source: str
    survey: Survey
    digests: tuple[bytes, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        return self.survey.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""
        return self.survey.dtype

    @property
    def ndim(self) -> int:
        """Three."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Memory that the whole would take, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    @overload
    def __getitem__(self, index: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> NDArray[Any]: ...
    def __getitem__(self, index: int | slice) -> NDArray[Any]:
        """One slice, (rows, columns), or several, (n, rows, columns): a new array each time."""
        if not isinstance(index, slice):
            return self._decoded(range(len(self))[operator.index(index)])
        indices = range(len(self))[index]
        pixels: NDArray[Any] = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for out, one in zip(pixels, indices, strict=True):
            out[...] = self._decoded(one)
        return pixels

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self._decoded(index) for index in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All of it, in memory."""
        if copy is False:
            raise ValueError("slices that are decoded when asked for are always a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def _decoded(self, index: int) -> NDArray[Any]:
        try:
            one = np.ascontiguousarray(self.decode(index), self.dtype)
        except (OSError, ReadError) as cause:  # it could be decoded when it was surveyed
            raise changed(self.source, str(cause)) from cause
        if one.shape != self.shape[1:] or _digest(one) != self.digests[index]:
            raise changed(self.source)
        return one


def changed(source: object, detail: str = "") -> ReadError:
    """Return the error for a file that is no longer what it was when it was read first."""
    mend = "leave the files alone until the comparison is done, and repeat it"
    return ReadError(source, "changed while it was being compared", mend, detail)


def gather(decode: Callable[[int], NDArray[Any]], count: int, source: str) -> NDArray[Any] | Slices:
    """Decode every slice, and keep them up to `KEPT_BYTES`.

    Parameters
    ----------
    decode
        As of `Slices`.
    count
        How many slices there are; they have one shape.
    source
        As of `Slices`.

    Returns
    -------
    (slices, rows, columns) of the smallest type that holds the values of every slice.
    """
    first = decode(0)
    dtype = first.dtype
    while True:
        gathered = _gathered(decode, first, count, dtype, source)
        if not isinstance(gathered, np.dtype):
            return gathered
        dtype = gathered


def _gathered(
    decode: Callable[[int], NDArray[Any]],
    first: NDArray[Any],
    count: int,
    dtype: np.dtype[Any],
    source: str,
) -> NDArray[Any] | Slices | np.dtype[Any]:
    """Gather slices as one type; where a slice needs a wider one, return that instead.

    The type is part of the digest and known only after the last slice. Nearly always the first
    slice has it; else the digest is begun again.
    """
    shape = (count, *first.shape)
    keep = math.prod(shape) * dtype.itemsize <= KEPT_BYTES
    kept: NDArray[Any] = np.empty(shape if keep else 0, dtype)
    surveyor = _Surveyor((count, first.shape[0], first.shape[1]), dtype)
    digests = []
    for index in range(count):
        one = decode(index) if index else first
        if one.shape != first.shape:
            raise ReadError(source, "slices have different sizes", "give one stack of slices")
        wider = np.result_type(dtype, one.dtype)
        if wider != dtype:
            return wider
        if keep:
            kept[index] = one
        else:
            one = np.ascontiguousarray(one, dtype)
            surveyor.add(one)
            digests.append(_digest(one))
    return kept if keep else Slices(decode, source, surveyor.survey(), tuple(digests))


def _digest(one: NDArray[Any]) -> bytes:
    return hashlib.sha256(one.data).digest()


@dataclass(frozen=True, eq=False)
class Image:
    """A decoded image, calibrated to modality values, larger is brighter.

    Parameters
    ----------
    pixels
        (slices, rows, columns) of a real integer or float type. Modality values: rescaled,
        MONOCHROME1 turned into MONOCHROME2, colour turned into luminance. A single image has one
        slice; a time series holds its volumes one after another along the first axis. A large
        image that was read from a file is no array but `Slices`, which decode what is asked for;
        ``numpy.asarray`` makes an array of either.
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
    padding
        (slices, 2), lowest and highest value of the pixels of a slice that are no image (DICOM
        Pixel Padding, PS3.3 C.7.5.1.1.2), in the values of `pixels`; NaN where a slice has none;
        None where no slice has any.
    suv_factor
        What turns the pixels of a PET into standardised uptake values by body weight, in g/ml;
        None where the file does not tell.
    volumes
        How many volumes a time series holds; `slices` is a multiple of it.
    body_part
        DICOM BodyPartExamined, where given.
    device
        DICOM Manufacturer and Manufacturer's Model Name, where given.
    transfer_syntax
        UID of the DICOM transfer syntax it was stored in.
    identifiers
        Patient, study, series and instances.
    file_sha256
        Of a single file, what ``sha256sum`` prints; of a series, the SHA-256 of the files' hex
        digests in slice order, joined by newlines; None for an image built in memory.
    """

    pixels: NDArray[Any] | Slices
    source: str = "array"
    kind: Literal["dicom", "nifti", "array"] = "array"
    modality: str | None = None
    unit: str = "arbitrary"
    value_range: tuple[float, float] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    affine: NDArray[np.float64] | None = None
    voi: Window | VoiLut | None = None
    padding: NDArray[np.float64] | None = None
    suv_factor: float | None = None
    volumes: int = 1
    body_part: str | None = None
    device: str | None = None
    transfer_syntax: str | None = None
    identifiers: Identifiers = field(default=Identifiers(), repr=False)
    file_sha256: str | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        slices, rows, columns = self.pixels.shape
        return slices, rows, columns

    @cached_property
    def survey(self) -> Survey:
        """What takes a look at every pixel: digest, ends, and how many are not finite."""
        pixels = self.pixels
        if isinstance(pixels, Slices):
            return pixels.survey
        surveyor = _Surveyor(self.shape, pixels.dtype)
        for one in pixels:
            surveyor.add(one)
        return surveyor.survey()

    def is_padding(self, pixels: NDArray[Any], batch: slice) -> NDArray[np.bool_] | None:
        """Where slices `batch`, decoded as `pixels`, are no image; None where they all are."""
        if self.padding is None:
            return None
        low, high = np.moveaxis(self.padding[batch], -1, 0)[..., None, None]
        inside: NDArray[np.bool_] = (pixels >= low) & (pixels <= high)
        return inside if inside.any() else None

    @property
    def pixels_sha256(self) -> str:
        """SHA-256 of shape, type and little-endian values, whatever file they came from."""
        return self.survey.sha256


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
    code
        What it is, coded, where its file says so.
    """

    kind: Literal["pathology", "annotation"]
    name: str
    mask: NDArray[np.bool_]
    origin: tuple[int, int, int] = (0, 0, 0)
    code: Code | None = None

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
