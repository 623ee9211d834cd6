"""What each measure of an enhancement says of known processing of real images.

``python tests/benchmarks/enhancement.py [methods] [noise] [lesions] [resolution] [cost]
[--fields N] [--write PAGE]``; without a name, all of them, in about ten minutes on one core, of
which noise takes two and lesions one and a half. The images lie in ``shared/data`` beside the
project.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import heading
from numpy.typing import NDArray
from scipy import ndimage, stats
from skimage import restoration
from tables import Table, publish

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


def methods() -> list[Table]:
    head = (*(one.replace("_", " ") for one in COLUMNS), "added", "removed", "lesion kept")
    tables = []
    for source in SOURCES:
        one = loaded(source)
        _, region = spot(one, 1)
        rows = []
        for name, before, after in cases(one):
            found = denoising(before, after, one.body, one.spacing_mm, one.modality)
            kept = preservation(region, [before], [after], [one.body])
            rows.append((name, *row(found), lesion_words(kept)))
        tables.append(Table(f"{source}, {one.noise:.3g} of noise", ("method", *head), rows))
    return tables


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


def noise(fields: int = 1000, side: int = 192) -> list[Table]:
    """Say how often noise alone is found."""
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[:side, :side] - side / 2
    body = np.hypot(rows, columns) < 0.45 * side
    cells = []
    for kind in ("white", "smoothed", "ramp-filtered, stronger in the middle"):
        counts = {0.01: 0, 0.05: 0}
        for number in range(fields):
            progress(f"noise, {kind}", number, fields)
            field = 10 * filtered(rng.normal(size=(side, side)), kind)
            for level in counts:
                counts[level] += bool(support(field, 0 * field, body, level).findings)
        for level, count in counts.items():
            most = stats.beta.ppf(0.975, count + 1, fields - count)
            cells.append((kind, f"{level:.0%}", f"{count / fields:.2%}", f"{most:.2%}"))
    title = f"Noise alone, {fields} fields of {side} × {side} pixels of each kind"
    return [Table(title, ("noise", "stated", "found", "at most, with 97.5 %"), cells)]


def lesions(repeats: int = 20) -> list[Table]:
    """Say which share of invented lesions is found, and named as added, by size and contrast."""
    contrasts = (0.5, 1, 2, 3)
    cells = []
    rng = np.random.default_rng(3)
    for source in ("CT abdomen", "MR knee"):
        one = loaded(source)
        places = np.argwhere(ndimage.binary_erosion(one.body, iterations=16))
        rows, columns = np.mgrid[: one.pixels.shape[0], : one.pixels.shape[1]]
        denoised = denoisers(one.noise)["non-local means"](one.pixels)
        for sigma in (1.5, 3.0, 6.0):
            shares = []
            for contrast in contrasts:
                named = []
                for number in range(repeats):
                    progress(f"lesions, {source}, {sigma:g}, {contrast:g}", number, repeats)
                    place = places[rng.integers(len(places))]
                    away = (rows - place[0]) ** 2 + (columns - place[1]) ** 2
                    added = contrast * one.noise * np.exp(-away / (2 * sigma**2))
                    found = support(one.pixels, denoised + added, one.body).findings
                    near = [
                        f.kind
                        for f in found
                        if np.hypot(f.row - place[0], f.column - place[1]) < 2 * sigma + 1
                    ]
                    named.append(near)
                hits, right = (sum(map(bool, named)), sum("added" in one for one in named))
                shares.append(f"{hits / repeats:.0%} ({right / repeats:.0%})")
            cells.append((source, f"{sigma:g}", *shares))
    head = ("image", "sigma, pixels", *(f"{contrast:g}" for contrast in contrasts))
    title = f"Lesions found (and named as added), {repeats} of each size and contrast in noise"
    return [Table(title, head, cells)]


def resolution() -> list[Table]:
    """Say what is said of candidates of twice the rows and columns."""
    keys = ("inconsistency_in_noise", "sharpness_gain", "new_detail")
    rows = []
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
            rows.append((source, name, *cells))
    return [Table("Super-resolution", ("image", "candidate", *keys, *KINDS), rows)]


def cost() -> list[Table]:
    rows = []
    for source in SOURCES:
        one = loaded(source)
        after = denoisers(one.noise)["Gaussian, 2 pixels"](one.pixels)
        times = []
        for _ in range(5):
            start = time.process_time()
            denoising(one.pixels, after, one.body, one.spacing_mm, one.modality)
            times.append(time.process_time() - start)
        size = " × ".join(map(str, one.pixels.shape))
        rows.append((source, size, f"{min(times):.2f}"))
    return [Table("Time of all measures", ("image", "rows × columns", "time, s"), rows)]


def progress(what: str, done: int, total: int) -> None:
    """Say on standard error how far a count is."""
    if done % max(1, total // 10) == 0:
        sys.stderr.write(f"{what}: {done} of {total}\n")


def main() -> None:
    tables = {each.__name__: each for each in (methods, noise, lesions, resolution, cost)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"{', '.join(tables)}; by default all")
    parser.add_argument("--fields", type=int, default=1000, help="of noise, of each kind")
    parser.add_argument("--write", type=Path, help="page that holds the markers")
    given = parser.parse_args()
    found = [
        table
        for name in given.names or tables
        for table in (noise(given.fields) if name == "noise" else tables[name]())
    ]
    what = heading("Measured on", 1, "numpy", "scipy", "scikit-image")
    publish("enhancement", what, found, given.write)


if __name__ == "__main__":
    main()
