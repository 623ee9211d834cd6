"""What the tests of regions share."""

from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from medqa.image import Image, Region


def paint(regions: tuple[Region, ...], reference: Image) -> NDArray[np.bool_]:
    """Put regions back onto the whole grid."""
    whole = np.zeros(reference.shape, bool)
    for region in regions:
        for index in region.slices:
            rows, columns, mask = region.on_slice(index)
            whole[index, rows, columns] |= mask
    return whole


def labelled(regions: tuple[Region, ...], name: str) -> tuple[Region, ...]:
    """Parts of one label or segment."""
    return tuple(
        r for r in regions if r.name == name or r.name.removeprefix(f"{name} ").isdecimal()
    )


def image(*shape: int, **fields: Any) -> Image:
    """Image of this shape, all zeros."""
    return Image(np.zeros(shape, np.int16), **fields)


def sitk_image(data: NDArray[Any], affine: NDArray[np.float64]) -> SimpleITK.Image:
    """Wrap (slices, rows, columns) with an affine to RAS mm of (slice, row, column)."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine[:, [2, 1, 0, 3]]
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    wrapped = SimpleITK.GetImageFromArray(data)
    wrapped.SetSpacing(spacing.tolist())
    wrapped.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    wrapped.SetOrigin(lps[:3, 3].tolist())
    return wrapped


def by_sitk(
    data: NDArray[Any], affine: NDArray[np.float64], reference: Image
) -> NDArray[np.uint16]:
    """Labels on the reference's grid, nearest neighbour, 0 outside."""
    assert reference.affine is not None
    moved = SimpleITK.Resample(
        sitk_image(data, affine),
        sitk_image(np.zeros(reference.shape, np.uint8), reference.affine),
        SimpleITK.Transform(),
        SimpleITK.sitkNearestNeighbor,
        0.0,
    )
    return np.asarray(SimpleITK.GetArrayFromImage(moved), np.uint16)
