"""What the tests of enhancement share: parts of real CT slices, noisy, denoised, painted on."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import PIL.Image
import pydicom
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian
from scipy import ndimage
from skimage.restoration import denoise_nl_means

NOISE_HU = 20.0
LESION_HU = 120.0
# Where each cut-out begins, within the body, and where its lesion is in it.
SOURCES = {
    "a": ("ct/liver_3slice_with_SEG/01.dcm", (180, 120)),
    "b": ("ct/ct_with_RTSTRUCT/ct_1.dcm", (190, 190)),
}
SIDE = 128
LESION = (64, 64)
PAINTED = (30, 90)


def write_slice(ds: pydicom.Dataset, hu: NDArray[np.floating], path: Path) -> None:
    """Write a slice under the header of another, whatever its size."""
    made = copy.deepcopy(ds)
    for keyword in ("PixelPaddingValue", "SmallestImagePixelValue", "LargestImagePixelValue"):
        if keyword in made:
            delattr(made, keyword)
    made.RescaleSlope, made.RescaleIntercept = 1, 0
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
    made.Rows, made.Columns = hu.shape
    made.PixelData = np.rint(hu).astype(np.int16).tobytes()
    made["PixelData"].VR = "OW"
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)


def disc(centre: tuple[int, int], radius: float, side: int = SIDE) -> NDArray[np.bool_]:
    rows, columns = np.indices((side, side))
    inside: NDArray[np.bool_] = np.hypot(rows - centre[0], columns - centre[1]) <= radius
    return inside


def write_mask(path: Path) -> Path:
    PIL.Image.fromarray(np.where(disc(LESION, 4), 255, 0).astype(np.uint8)).save(path)
    return path


def cut_out(shared_data: Path, name: str) -> tuple[pydicom.Dataset, NDArray[np.float64]]:
    file, (row, column) = SOURCES[name]
    ds = pydicom.dcmread(shared_data / file)
    hu = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    return ds, hu[row : row + SIDE, column : column + SIDE].astype(np.float64)


def write_denoising(shared_data: Path, folder: Path) -> None:
    """Write noisy, clean and denoised cut-outs, each with a lesion, into folders by method.

    ``nlm`` is non-local means, ``smooth`` takes the texture with the noise, ``painter`` is nlm with
    a second lesion that is not there, ``eraser`` is nlm without the lesion that is.
    """
    rng = np.random.default_rng(7)
    for name in SOURCES:
        ds, hu = cut_out(shared_data, name)
        # The scan's own noise is none of the truth.
        clean = denoise_nl_means(hu, patch_size=5, patch_distance=5, h=15.0)
        clean = clean + LESION_HU * ndimage.gaussian_filter(disc(LESION, 4).astype(float), 0.7)
        noisy = clean + rng.normal(0, NOISE_HU, clean.shape)
        nlm = denoise_nl_means(
            noisy, patch_size=5, patch_distance=6, h=0.6 * NOISE_HU, sigma=NOISE_HU
        )
        painted = nlm + LESION_HU * ndimage.gaussian_filter(disc(PAINTED, 4).astype(float), 0.7)
        ring = disc(LESION, 9) & ~disc(LESION, 7)
        erased = np.where(disc(LESION, 6.5), nlm[ring].mean(), nlm)
        smooth = ndimage.gaussian_filter(noisy, 2.5)
        made = {"clean": clean, "noisy": noisy, "nlm": nlm, "smooth": smooth}
        for method, image in (made | {"painter": painted, "eraser": erased}).items():
            write_slice(ds, image, folder / method / f"{name}.dcm")
