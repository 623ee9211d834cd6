"""MONAI's tensors, channel first and in the order x, y, z, as medqa's images."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray
from torch import Tensor

from medqa.errors import MismatchError, NotAssessableError, PixelError, RegionError
from medqa.image import Image
from medqa.nifti import Grid, turn_of
from medqa.transforms import same_grid

__all__ = ["image", "image_like", "mask_like"]

_SMALLEST_VOLUME = 1e-6  # of the cell of three unit axes, which is 1 where they are at right angles


def image(given: Any, name: str) -> Image:
    """Return a tensor as an image.

    With the affine of a MetaTensor it is turned, never resampled, as `medqa.read` turns a NIfTI
    file. Without one, or with the identity that MONAI gives to a MetaTensor that was given none,
    x are columns, y rows and z slices, and the position is not known.

    Parameters
    ----------
    given
        (1, X, Y) or (1, X, Y, Z) tensor, MetaTensor or array of modality values.
    name
        What to call it in messages.

    Raises
    ------
    PixelError
        It has another shape, or an affine that places no voxels.
    """
    return _image(given, name, _affine(given))


def image_like(given: Any, name: str, reference: Any) -> Image:
    """`image`, but what is no MetaTensor lies where the reference does.

    Raises
    ------
    PixelError
        As of `image`.
    MismatchError
        The position of only one of two MetaTensors is known.
    """
    expected = _affine(reference)
    if not isinstance(given, MetaTensor):
        return _image(given, name, expected)
    affine = _affine(given)
    if (affine is None) != (expected is None):
        raise MismatchError(
            name,
            "only one of the two has a known position, so one may be the other in a mirror",
            "keep the affine of both",
        )
    return _image(given, name, affine)


def mask_like(given: Any, reference: Any, shown: Image) -> NDArray[np.bool_]:
    """Return a mask of a reference as (slices, rows, columns), True where it is not zero.

    Parameters
    ----------
    given
        (1, X, Y) or (1, X, Y, Z); what is no MetaTensor lies where the reference does.
    reference
        As MONAI has it.
    shown
        The same as an image.

    Raises
    ------
    RegionError
        It has another shape or lies elsewhere.
    """
    try:
        mask = image_like(given, "mask", reference)
    except NotAssessableError as error:
        raise RegionError("mask", error.reason, error.mend) from error
    if not same_grid(shown, mask):
        mend = "bring it to the reference's grid first"
        raise RegionError("mask", "lies on another grid than the reference", mend)
    return cast("NDArray[np.bool_]", np.asarray(mask.pixels) != 0)


def _affine(given: Any) -> NDArray[np.float64] | None:
    """(4, 4) of (x, y, z) to RAS mm; None where the tensor does not know."""
    if not isinstance(given, MetaTensor):
        return None
    own = np.asarray(given.affine.cpu().numpy(), np.float64)
    affine = np.eye(4)
    last = len(own) - 1  # of an image of two dimensions it may be (3, 3)
    affine[:last, :last], affine[:last, 3] = own[:last, :last], own[:last, last]
    if np.array_equal(affine, np.eye(4)):
        return None
    if given.ndim == 3:
        # MONAI's readers leave 1 mm head-wards where a single slice has no third axis.
        across = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = across / max(float(np.linalg.norm(across)), np.finfo(float).tiny)
    return affine


def _image(given: Any, name: str, affine: NDArray[np.float64] | None) -> Image:
    array = _array(given)
    if array.ndim not in (3, 4) or array.shape[0] != 1 or 0 in array.shape:
        raise PixelError(
            name,
            f"is of shape {array.shape}, not one channel of two or three dimensions",
            "give it as (1, X, Y) or (1, X, Y, Z)",
        )
    volume = array[0] if array.ndim == 4 else array[0, ..., None]
    if affine is None:
        return Image(np.ascontiguousarray(volume.transpose()), name)  # (x, y, z) to (z, y, x)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    sound = np.isfinite(affine).all() and sizes.all()
    if not sound or abs(np.linalg.det(affine[:3, :3] / sizes)) < _SMALLEST_VOLUME:
        raise PixelError(name, "has an affine that places no voxels", "mend the step that set it")
    turn = turn_of(Grid(affine, known=True), volume.shape)
    placed = affine @ inv_ornt_aff(turn, volume.shape)
    turned = np.ascontiguousarray(apply_orientation(volume, turn))  # (slices, rows, columns)
    slices, rows, columns = (float(size) for size in np.linalg.norm(placed[:3, :3], axis=0))
    spacing = (slices * (len(turned) > 1), rows, columns)
    return Image(turned, name, spacing_mm=spacing, affine=placed)


def _array(given: Any) -> NDArray[Any]:
    if isinstance(given, MetaTensor):
        given = given.as_tensor()
    if not isinstance(given, Tensor):
        return np.asarray(given)
    if given.dtype in (torch.bfloat16, torch.float16):  # of autocast
        given = given.float()
    return cast("NDArray[Any]", given.detach().cpu().numpy())
