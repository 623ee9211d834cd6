"""NIfTI-1 and NIfTI-2 files to an `Image`, sliced as acquired and turned as on a display.

Sources: nifti1.h and nifti2.h of the NIfTI Data Format Working Group, whose names of fields stand
in the comments.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.quaternions import quat2mat
from numpy.typing import NDArray

from medqa.dicom.pixels import luminance
from medqa.errors import ReadError
from medqa.image import TOLERANCE_VOXELS, Image, Window, changed, gather, voxels_apart
from medqa.limits import limits
from medqa.nifti_files import (
    DAMAGED,
    TRUNCATED,
    digest,
    ended,
    format_of,
    head,
    header_path,
    most_bytes,
    opened,
    overlong,
    unpack,
)

__all__ = ["Grid", "is_nifti", "read_nifti", "turn_of"]

#: How much larger a voxel is along one axis than along both others where slices were acquired
#: across that axis. The root of two: no ratio of round sizes is so near to it that the rounding
#: of a header would decide.
_THICK = math.sqrt(2)

#: Which way slices, rows and columns run, by the axis (right, anterior, superior) that the slices
#: lie across: the patient's left on the right and the head up; in a sagittal slice the face to
#: the left. Slices follow one another as those of a DICOM series do, along columns x rows.
_DISPLAY = ("RIP", "PIL", "SPL")

_COLOURS = (128, 2304)  # datatype: RGB24, RGBA32
_NUMBERS = (2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280)  # 8 to 64 bits, integer and floating point
_REFUSED = {
    1: ("1-bit pixels", "save them as 8-bit integers"),
    32: ("complex numbers", "save the magnitude"),
    1536: ("128-bit floating point", "save 32-bit floating point"),
    1792: ("complex numbers", "save the magnitude"),
    2048: ("complex numbers", "save the magnitude"),
}
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown, metre, millimetre, micrometre
_ALIGNED = 2  # qform_code, sform_code: up to this one, positions are in the patient
_TEMPLATE = 5  # the last code that means something
# What no image of a patient exceeds: a damaged header gives sizes of any order of magnitude.
_VOXEL_MM = (1e-6, 1e4)
_POSITION_MM = 1e6
_SMALLEST_VOLUME = 0.01  # of the cell of three unit axes, which is 1 where they are at right angles


@dataclass(frozen=True, eq=False)
class _Layout:
    """What a header says of the pixels.

    `shape` is (x, y, z, volumes); `offset` is that of the first pixel in its file; a value is the
    stored one times `slope` plus `inter`.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    inter: float

    @property
    def size(self) -> int:
        """Bytes of all pixels."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie.

    `affine` takes (x, y, z) to RAS mm; where the position is not `known`, by the sizes alone.
    """

    affine: NDArray[np.float64]
    known: bool
    sized: bool = True


def is_nifti(path: Path) -> bool:
    """Whether a file holds NIfTI, by its content; an .img is judged by the .hdr beside it.

    True also for its relatives Analyze 7.5 and MGH, which `read_nifti` refuses by name.
    """
    return format_of(head(header_path(path))) is not None


def read_nifti(path: Path) -> Image:
    """Read a NIfTI file.

    The array is flipped and transposed, never resampled, to (slice, row, column). Slices lie
    across the axis along which voxels are clearly the largest, and are axial where there is no
    such axis. They look as on a display; the affine stays in RAS mm. Integers keep their type
    where the header does not scale them; everything else becomes float32.

    Of a large file that is not compressed and holds its slices one after another, a slice is read
    when it is asked for. Of any other large file, the whole array stays in memory in the type in
    which it was stored, and a slice is scaled when it is asked for.

    Raises
    ------
    ReadError
        The file is damaged, contradicts itself, is too large, or holds no image of two, three or
        four dimensions.
    """
    try:
        paths, header, before = opened(path)
        layout = _layout(header, path)
        grid = _grid(header, layout.shape[:3], path)
        turn = turn_of(grid, layout.shape[:3])
        x, y, z, volumes = layout.shape
        count = (x, y, z)[int(np.flatnonzero(turn[:, 0] == 0)[0])]
        _check_slices(count * volumes, x * y * z // count, path)
        stored = _stored(layout, paths[-1], turn)
        pixels = gather(
            lambda index: _values(stored(index), layout, path), count * volumes, str(path)
        )
        if digest(paths) != before:
            raise changed(path)
    except (OSError, EOFError, zlib.error, MemoryError) as cause:
        detail = str(cause) or type(cause).__name__
        raise ReadError(path, "cannot be read as NIfTI", TRUNCATED, detail) from cause
    affine = grid.affine @ inv_ornt_aff(turn, (x, y, z))
    sizes = [float(size) for size in np.linalg.norm(affine[:3, :3], axis=0)]
    return Image(
        pixels=pixels,
        source=str(path),
        kind="nifti",
        value_range=_value_range(layout),
        spacing_mm=(sizes[0] * (count > 1), sizes[1], sizes[2]) if grid.sized else None,
        affine=affine if grid.known else None,
        voi=_display(header, layout),
        volumes=volumes,
        file_sha256=before,
    )


def _layout(header: Any, path: Path) -> _Layout:
    """Read what the header says of the pixels; refuse what cannot be shown or is too large."""
    count, *sizes = header["dim"].tolist()
    if not 2 <= count <= 7 or math.prod(sizes[4:count]) != 1:
        reason = f"has {count} dimensions {tuple(sizes[: max(count, 0)])}"
        raise ReadError(path, reason, "give an image of two, three or four dimensions")
    x, y, z, volumes = (*sizes[:count], 1, 1)[:4]
    if min(x, y, z, volumes) < 1:
        raise ReadError(path, f"is empty, of shape {(x, y, z, volumes)}", "give an image")
    code = int(header["datatype"])
    if code not in _NUMBERS + _COLOURS:
        what, mend = _REFUSED.get(code, (f"pixels of unknown data type {code}", DAMAGED))
        raise ReadError(path, f"holds {what}", mend)
    dtype = header.get_data_dtype()
    if header["bitpix"] not in (0, 8 * dtype.itemsize):  # some writers leave it 0
        reason = f"says {header['bitpix']} bits a pixel and a data type of {8 * dtype.itemsize}"
        raise ReadError(path, reason, DAMAGED)
    slope, inter = _scaling(header, path) if code in _NUMBERS else (1.0, 0.0)
    layout = _Layout((x, y, z, volumes), dtype, int(header["vox_offset"]), slope, inter)
    most = limits().image_bytes
    if layout.offset + layout.size > most:
        claimed = (layout.offset + layout.size) / 2**30
        reason = f"claims {claimed:.3g} GiB of pixels, more than the {most / 2**30:.3g} allowed"
        mend = "give fewer volumes, or set MEDQA_MAX_IMAGE_GIB; else its header is wrong"
        raise ReadError(path, reason, mend)
    _check_scale(layout, path)
    return layout


def _scaling(header: Any, path: Path) -> tuple[float, float]:
    """scl_slope and scl_inter; 1 and 0 where the slope is 0, or NaN as nibabel writes it."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise ReadError(path, f"scales its pixels by {slope} and {inter}", DAMAGED)
    return slope, inter


def _check_scale(layout: _Layout, path: Path) -> None:
    """Refuse integers whose scaled values single precision cannot hold or tell apart."""
    ends = _value_range(layout)
    if ends is None or (layout.slope, layout.inter) == (1.0, 0.0):
        return
    largest = max(map(abs, ends))
    single = np.finfo(np.float32)
    step = largest * float(single.eps) / 2  # between neighbours near the largest value
    if largest > float(single.max) or (layout.dtype.itemsize <= 2 and abs(layout.slope) < step):
        reason = f"scales its pixels by {layout.slope:g} and {layout.inter:g}, beyond what 32-bit "
        reason += "floating point can hold or tell apart"
        raise ReadError(path, reason, "save it with values nearer to 0")


def _grid(header: Any, shape: tuple[int, int, int], path: Path) -> Grid:
    """Where the voxels lie, from the transform that gives the geometry of the patient."""
    unit = _MM.get(int(header["xyzt_units"]) & 7)
    if unit is None:
        raise ReadError(path, "gives lengths in an unknown unit", DAMAGED)
    to_mm = np.diag([unit, unit, unit, 1.0])
    with np.errstate(all="ignore"):  # what overflows is refused as not finite
        affine = _affine(header, shape, to_mm, path)
        if affine is not None:
            _check_affine(affine, path)
            return Grid(affine, known=True)
        sizes = _sizes(header, shape)
        if not (np.isfinite(sizes).all() and (sizes >= 0).all()):
            raise ReadError(path, "has a voxel size that is negative or no number", DAMAGED)
        sized = bool(sizes.all())
        # Taken to run left, anterior and superior, as nibabel takes it.
        affine = to_mm @ np.diag([-1.0, 1.0, 1.0, 1.0] * np.append(sizes if sized else [1] * 3, 1))
        _check_affine(affine, path)
        return Grid(affine, known=False, sized=sized)


def _affine(
    header: Any, shape: tuple[int, int, int], to_mm: NDArray[np.float64], path: Path
) -> NDArray[np.float64] | None:
    """(4, 4) of (x, y, z) to RAS mm; None where none is set.

    The sform, as nibabel and SPM take it; but the qform where the sform leads to a template and
    the qform stays in the patient. With both in one space they must agree.
    """
    q_code, s_code = int(header["qform_code"]), int(header["sform_code"])
    if not (0 <= q_code <= _TEMPLATE and 0 <= s_code <= _TEMPLATE):
        reason = f"has coordinates of unknown meaning (qform {q_code}, sform {s_code})"
        raise ReadError(path, reason, DAMAGED)
    sform = to_mm @ np.asarray(header.get_sform(), np.float64)
    if q_code == 0:
        return sform if s_code else None
    qform = to_mm @ _qform(header, shape, path)
    if s_code == 0 or q_code <= _ALIGNED < s_code:
        return qform
    if q_code == s_code:
        for one in (qform, sform):
            _check_affine(one, path)
        off = voxels_apart(_without_shear(sform), qform, shape)
        if not off < TOLERANCE_VOXELS:
            reason = f"has a qform and an sform, both of code {s_code}, that lie {off:.2g} voxels "
            raise ReadError(path, reason + "apart", "find out which is right, and drop the other")
    return sform


def _qform(header: Any, shape: tuple[int, int, int], path: Path) -> NDArray[np.float64]:
    """(4, 4) of the quaternion (nifti1.h, method 2)."""
    b, c, d = (float(header[f"quatern_{axis}"]) for axis in "bcd")
    rest = 1 - (b * b + c * c + d * d)
    sign = float(header["pixdim"][0])
    sizes = _sizes(header, shape)
    # Rounded to 32 bits, a half turn may come out longer than 1.
    if not (rest > -1e-4 and sign in (-1, 0, 1) and (sizes >= 0).all()):
        raise ReadError(path, "has a qform that is no rotation and voxel size", DAMAGED)
    affine = np.eye(4)
    affine[:3, :3] = quat2mat([math.sqrt(max(rest, 0.0)), b, c, d]) * sizes
    affine[:3, 2] *= sign or 1
    affine[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return affine


def _sizes(header: Any, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """(3,) pixdim; along an axis of one voxel, for which some writers give none, 1 instead of 0."""
    sizes = np.asarray(header["pixdim"][1:4], np.float64)
    return np.where((sizes == 0) & (np.array(shape) == 1), 1.0, sizes)


def _without_shear(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nearest that a qform, which has no shear, can say (of a CT with gantry tilt)."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / sizes)
    rigid = affine.copy()
    rigid[:3, :3] = left @ right * sizes
    return rigid


def _check_affine(affine: NDArray[np.float64], path: Path) -> None:
    """Refuse what places no patient's voxels."""
    reason = "has an affine that places no voxels: "
    if not np.isfinite(affine).all():
        raise ReadError(path, reason + "it holds values that are no numbers", DAMAGED)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((sizes > _VOXEL_MM[0]) & (sizes < _VOXEL_MM[1])).all():
        given = " x ".join(f"{size:g}" for size in sizes)
        raise ReadError(path, f"{reason}they would measure {given} mm", DAMAGED)
    if abs(np.linalg.det(affine[:3, :3] / sizes)) < _SMALLEST_VOLUME:
        raise ReadError(path, reason + "its axes lie in one plane", DAMAGED)
    if np.abs(affine[:3, 3]).max() > _POSITION_MM:
        raise ReadError(path, reason + "they would lie outside the room", DAMAGED)


def turn_of(grid: Grid, shape: tuple[int, int, int]) -> NDArray[Any]:
    """Orientation that takes (x, y, z) to (slice, row, column)."""
    nearest = io_orientation(grid.affine)
    thick = _thick(grid, shape)
    across = 2 if thick is None else int(nearest[thick, 0])
    return np.asarray(ornt_transform(nearest, axcodes2ornt(_DISPLAY[across])))


def _thick(grid: Grid, shape: tuple[int, int, int]) -> int | None:
    """Axis of the array that slices were acquired across, where there is clearly one.

    The only axis with a single voxel; else the one with clearly the largest. dim_info says it
    too, but most programs drop it, and then a file and what was made from it would be cut in two
    ways. Where the position is unknown, sizes often are lost with it, and only the shape counts.
    """
    single = [axis for axis in range(3) if shape[axis] == 1]
    if len(single) == 1:
        return single[0]
    sizes = np.linalg.norm(grid.affine[:3, :3], axis=0)
    *_, second, largest = np.argsort(sizes)
    return int(largest) if grid.known and sizes[largest] >= _THICK * sizes[second] else None


def _check_slices(count: int, size: int, path: Path) -> None:
    """Refuse more slices, or larger ones, than can be worked through."""
    most = limits()
    if count > most.frames or size > most.frame_pixels:
        reason = f"claims {count} slices of {size} pixels, more than {most.frames} or "
        reason += f"{most.frame_pixels}"
        raise ReadError(path, reason, "give a part of it; if it has fewer, its header is wrong")


def _stored(layout: _Layout, path: Path, turn: NDArray[Any]) -> Callable[[int], NDArray[Any]]:
    """Return what reads a slice as it is stored, turned: (rows, columns)."""
    x, y, z, _ = layout.shape
    most, end = most_bytes(path), layout.offset + layout.size
    length = path.stat().st_size if most is None else most
    if length < end:
        raise ended(path, length, end)
    if most is None and length > end:
        raise overlong(path)
    if most is not None or turn[2, 0] != 0:
        _check_whole(layout, path)
        data = unpack(path, layout.offset, layout.size).view(layout.dtype)
        # (x, y, z, volumes) to (slices, rows, columns, volumes)
        whole = apply_orientation(data.reshape(layout.shape, order="F"), turn)

        def kept(index: int) -> NDArray[Any]:
            volume, place = divmod(index, len(whole))
            one: NDArray[Any] = whole[place, :, :, volume]
            return one

        return kept
    size = x * y * layout.dtype.itemsize

    def read(index: int) -> NDArray[Any]:
        volume, place = divmod(index, z)
        place = volume * z + (z - 1 - place if turn[2, 1] < 0 else place)
        with path.open("rb") as file:
            file.seek(layout.offset + place * size)
            data = file.read(size)
        if len(data) < size:
            raise ReadError(path, f"ends in slice {index + 1}", TRUNCATED)
        # (x, y, 1) to (1, rows, columns)
        plane = np.frombuffer(data, layout.dtype).reshape((x, y, 1), order="F")
        turned: NDArray[Any] = apply_orientation(plane, turn)[0]
        return turned

    return read


def _check_whole(layout: _Layout, path: Path) -> None:
    """Refuse pixels that have to stay in memory as a whole, and are too many for that."""
    most = limits().file_bytes
    if layout.size > most:
        reason = f"holds {layout.size / 2**30:.3g} GiB of pixels that have to be in memory as a "
        reason += f"whole, more than the {most / 2**30:.3g} allowed"
        mend = "save it uncompressed, slice after slice, or set MEDQA_MAX_FILE_GIB"
        raise ReadError(path, reason, mend)


def _value_range(layout: _Layout) -> tuple[float, float] | None:
    """Lowest and highest value that the stored format can hold; None for floating point."""
    if layout.dtype.names is not None:
        return 0.0, 255.0
    if layout.dtype.kind == "f":
        return None
    ends = np.iinfo(layout.dtype)
    low, high = sorted(v * layout.slope + layout.inter for v in (int(ends.min), int(ends.max)))
    return low, high


def _values(stored: NDArray[Any], layout: _Layout, path: Path) -> NDArray[Any]:
    """Scale a slice as the header says."""
    if stored.dtype.names is not None:  # RGB or RGBA: three or four uint8 fields
        colours = np.stack([stored[name] for name in stored.dtype.names[:3]], axis=-1)
        return luminance(colours, 255)
    if stored.dtype.kind in "iu" and (layout.slope, layout.inter) == (1.0, 0.0):
        if stored.dtype == np.uint64 and stored.max() > np.iinfo(np.int64).max:
            # Tensors have no larger integers.
            reason, mend = "holds integers beyond 2^63", "save it as 32-bit floating point"
            raise ReadError(path, reason, mend)
        native = stored.dtype.newbyteorder("=")
        return stored.astype(np.int64 if native == np.uint64 else native)
    # What is not finite is refused when it is scored.
    with np.errstate(over="ignore", invalid="ignore"):
        return (stored.astype(np.float64) * layout.slope + layout.inter).astype(np.float32)


def _display(header: Any, layout: _Layout) -> Window | None:
    """Return the display that the file asks for: black up to cal_min, white from cal_max on."""
    low, high = float(header["cal_min"]), float(header["cal_max"])
    if layout.dtype.names is not None or not (high > low and math.isfinite(high - low)):
        return None
    return Window(low + (high - low) / 2, high - low, "LINEAR_EXACT")
