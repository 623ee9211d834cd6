"""What each measure of an enhancement says of known processing of real images, in Markdown.

``python tests/benchmarks/enhancement.py [methods] [noise] [lesions] [resolution] [cost]``; without
a name, all of them, in about ten minutes on one core. The images lie in ``shared/data`` beside the
project.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import heading
from numpy.typing import NDArray
from scipy import ndimage
from skimage import restoration

from medqa.image import Region
from medqa.quality.areas import Mask, body_of
from medqa.reader import read
from medqa.studies.enhancement.measures import SliceResult, denoising, super_resolution
from medqa.studies.enhancement.preservation import Preservation, preservation
from medqa.studies.enhancement.resolution import lowered, raised
from medqa.studies.enhancement.support import support

Array = NDArray[np.float64]
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SOURCES = {
    "CT abdomen": ("ct/totalsegmentator_dicom", 10),
    "CT liver, noisy": ("ct/liver_3slice_with_SEG/02.dcm", 0),
    "CT head": ("ct/head_series_GE/05.dcm", 0),
    "MR knee": ("mr/uih_t1/00000004.dcm", 0),
}
COLUMNS = (
    "noise_reduction",
    "texture_shift",
    "structure_kept_low",
    "structure_kept_middle",
    "mtf50_ratio",
    "edge_correlation",
    "edge_excess",
    "excess",
)
KINDS = ("added", "removed")


@dataclass(frozen=True)
class Slice:
    pixels: Array
    body: Mask
    spacing_mm: tuple[float, float]
    modality: str | None
    noise: float


def loaded(name: str) -> Slice:
    path, index = SOURCES[name]
    image = read(DATA / path)
    pixels = np.asarray(image.pixels[index], np.float64)
    body = body_of(pixels, image.modality, np.ones(pixels.shape, bool))
    spacing = image.spacing_mm[1:]
    noise = denoising(pixels, pixels, body, spacing, image.modality).values["noise_before"]
    return Slice(pixels, body, spacing, image.modality, noise)


def denoisers(noise: float) -> dict[str, Callable[[Array], Array]]:
    """Give scikit-image's and SciPy's, at the strength that the noise asks for."""
    return {
        "non-local means": lambda x: restoration.denoise_nl_means(
            x, patch_size=5, patch_distance=6, h=0.8 * noise, sigma=noise
        ),
        "wavelet (BayesShrink)": lambda x: restoration.denoise_wavelet(
            x, sigma=noise, wavelet="db2", rescale_sigma=False
        ),
        "total variation": lambda x: (
            restoration.denoise_tv_chambolle((x - x.min()) / np.ptp(x), 1.2 * noise / np.ptp(x))
            * np.ptp(x)
            + x.min()
        ),
        "median, 3 pixels": lambda x: ndimage.median_filter(x, 3),
        "Gaussian, 0.6 pixels": lambda x: ndimage.gaussian_filter(x, 0.6),
        "Gaussian, 2 pixels": lambda x: ndimage.gaussian_filter(x, 2),
    }


def spot(one: Slice, contrast: float, sigma: float = 3.0) -> tuple[Array, Region]:
    """Place a Gaussian lesion in a flat part of the body, and outline it at half its height."""
    steep = ndimage.gaussian_filter(ndimage.gaussian_gradient_magnitude(one.pixels, 2), 6)
    steep[~ndimage.binary_erosion(one.body, iterations=24)] = np.inf
    row, column = np.unravel_index(np.argmin(steep), steep.shape)
    rows, columns = np.mgrid[: steep.shape[0], : steep.shape[1]]
    away = (rows - row) ** 2 + (columns - column) ** 2
    shape = np.exp(-away / (2 * sigma**2))
    return contrast * shape, Region.crop("pathology", "lesion", (shape > 0.5)[None])


def cases(one: Slice) -> Iterator[tuple[str, Array, Array]]:
    """Name, input with a lesion of twice the noise, and candidate."""
    lesion, _ = spot(one, 2 * one.noise)
    rng = np.random.default_rng(1)
    for name, method in denoisers(one.noise).items():
        yield name, one.pixels + lesion, method(one.pixels + lesion)
    means = denoisers(one.noise)["non-local means"](one.pixels)
    yield "lesion erased, then non-local means", one.pixels + lesion, means
    yield "lesion invented after non-local means", one.pixels, means + lesion
    white = 1.5 * one.noise * rng.normal(size=one.pixels.shape)
    yield "perfect: added noise taken away", one.pixels + lesion + white, one.pixels + lesion


def methods() -> None:
    head = (*(one.replace("_", " ") for one in COLUMNS), "added", "removed", "lesion kept")
    for source in SOURCES:
        one = loaded(source)
        _, region = spot(one, 1)
        print(f"\n{source}, {one.noise:.3g} of noise:\n")
        print("| method |", " | ".join(head), "|\n|" + "---|" * (len(head) + 1))
        for name, before, after in cases(one):
            found = denoising(before, after, one.body, one.spacing_mm, one.modality)
            kept = preservation(region, [before], [after], [one.body])
            print(f"| {name} | {' | '.join([*row(found), lesion_words(kept)])} |")


def row(found: SliceResult) -> list[str]:
    values = [f"{found.values[key]:.2f}" if key in found.values else "" for key in COLUMNS]
    for kind in KINDS:
        count, z = (found.values[key] for key in (kind, f"{kind}_z"))
        values.append(f"{count:.0f} (z {z:.0f})" if count else "0")
    return values


def lesion_words(kept: Preservation) -> str:
    if kept.kept is None:
        return f"none before, change z {kept.change_z:.1f}"
    if kept.kept_low is None or kept.kept_high is None:
        return f"{kept.kept:.2f}"
    return f"{kept.kept:.2f} ({kept.kept_low:.2f}–{kept.kept_high:.2f})"


def filtered(white: Array, kind: str) -> Array:
    """White, smoothed, or ramp-filtered noise with more in the middle; SD about 1."""
    side = len(white)
    if kind == "white":
        return white
    if kind == "smoothed":
        return ndimage.gaussian_filter(white, 1, mode="wrap") * 2 * np.sqrt(np.pi)
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    found = np.fft.ifft2(np.fft.fft2(white) * radius * np.exp(-((radius / 0.25) ** 2))).real
    rows, columns = np.mgrid[:side, :side] - side / 2
    middle = np.exp(-(rows**2 + columns**2) / (2 * (side / 5) ** 2))
    return found / found.std() * (1 + 0.8 * middle)


def noise(side: int = 192, fields: int = 1000) -> None:
    """Print how often noise alone is found."""
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[:side, :side] - side / 2
    body = np.hypot(rows, columns) < 0.45 * side
    print("\n| noise | fields | stated | found |\n|---|---|---|---|")
    for kind in ("white", "smoothed", "ramp-filtered, stronger in the middle"):
        counts = {0.01: 0, 0.05: 0}
        for _ in range(fields):
            field = 10 * filtered(rng.normal(size=(side, side)), kind)
            for level in counts:
                counts[level] += bool(support(field, 0 * field, body, level).findings)
        for level, count in counts.items():
            print(f"| {kind} | {fields} | {level:.0%} | {count / fields:.2%} |")


def lesions(repeats: int = 20) -> None:
    """Print the share of invented lesions that are found, by size and contrast."""
    print("\n| source | sigma, pixels | 0.5 noise | 1 | 2 | 3 |\n|---|---|---|---|---|---|")
    rng = np.random.default_rng(3)
    for source in ("CT abdomen", "MR knee"):
        one = loaded(source)
        places = np.argwhere(ndimage.binary_erosion(one.body, iterations=16))
        rows, columns = np.mgrid[: one.pixels.shape[0], : one.pixels.shape[1]]
        denoised = denoisers(one.noise)["non-local means"](one.pixels)
        for sigma in (1.5, 3.0, 6.0):
            cells = []
            for contrast in (0.5, 1, 2, 3):
                hits = 0
                for row_, column in places[rng.integers(len(places), size=repeats)]:
                    away = (rows - row_) ** 2 + (columns - column) ** 2
                    added = contrast * one.noise * np.exp(-away / (2 * sigma**2))
                    found = support(one.pixels, denoised + added, one.body).of("added")
                    hits += any(
                        np.hypot(f.row - row_, f.column - column) < 2 * sigma + 1 for f in found
                    )
                cells.append(f"{hits / repeats:.0%}")
            print(f"| {source} | {sigma:g} | {' | '.join(cells)} |")


def resolution() -> None:
    """Print what is said of candidates of twice the rows and columns."""
    keys = ("inconsistency_in_noise", "sharpness_gain", "new_detail")
    print("\n| source | candidate |", " | ".join(keys), "| added | removed |\n|" + "---|" * 7)
    for source in ("CT abdomen", "MR knee"):
        one = loaded(source)
        half = (one.pixels.shape[0] // 2, one.pixels.shape[1] // 2)
        low = lowered(one.pixels, half)
        body = lowered(one.body.astype(float), half) > 0.5
        lesion, _ = spot(one, 2 * one.noise)
        cubic = raised(low, (one.pixels.shape[0], one.pixels.shape[1]))
        sharp = cubic + 1.5 * (cubic - ndimage.gaussian_filter(cubic, 1))
        for name, high in {
            "the truth": one.pixels,
            "cubic interpolation": cubic,
            "cubic, sharpened (unsharp mask 1.5)": sharp,
            "cubic, blurred (2 pixels)": ndimage.gaussian_filter(cubic, 2),
            "the truth and an invented lesion": one.pixels + lesion,
        }.items():
            found = super_resolution(low, high, body).values
            cells = [f"{found[key]:.2f}" if key in found else "" for key in keys]
            cells += [f"{found[kind]:.0f} (z {found[f'{kind}_z']:.0f})" for kind in KINDS]
            print(f"| {source} | {name} | {' | '.join(cells)} |")


def cost() -> None:
    print("\n| image | rows × columns | time, s |\n|---|---|---|")
    for source in SOURCES:
        one = loaded(source)
        after = denoisers(one.noise)["Gaussian, 2 pixels"](one.pixels)
        times = []
        for _ in range(5):
            start = time.process_time()
            denoising(one.pixels, after, one.body, one.spacing_mm, one.modality)
            times.append(time.process_time() - start)
        size = " × ".join(map(str, one.pixels.shape))
        print(f"| {source} | {size} | {min(times):.2f} |")


if __name__ == "__main__":
    print(heading("Measured on", 1, "numpy", "scipy", "scikit-image"))
    tables = {each.__name__: each for each in (methods, noise, lesions, resolution, cost)}
    for name in sys.argv[1:] or tables:
        tables[name]()
