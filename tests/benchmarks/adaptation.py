"""How many choices does `medqa adapt` need? Simulated readers of damaged real CT.

``python tests/benchmarks/adaptation.py [--studies 20] [--write docs/adapt.md]``; seven minutes.
550 crops of real CT slices, each damaged in five ways: blurred, noisy, of half the resolution,
unevenly lit, quantised in blocks. A reader chooses between two of them at random by a distance of
their own: the original's, or one with other weights. What was adapted is tried on choices about the
crops that were not in the study.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage, special
from tables import Table, publish

import medqa
from medqa.lpips import GrayLPIPS
from medqa.studies.adaptation import adapt
from medqa.studies.observations import Observations, channel_terms

_DATA = Path(__file__).resolve().parents[3] / "shared/data/ct"
_SERIES = {
    "totalsegmentator_dicom/CT*": (40, 400),
    "head_series_GE/*.dcm": (40, 80),
    "liver_3slice_with_SEG/0*.dcm": (40, 400),
}
_DAMAGES = 5
_BLOCK = 8

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Images:
    """What each channel adds to the distance of each damaged crop: (crops, damages, channels)."""

    terms: NDArray[np.float32]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Reader:
    """Whose distance has these multipliers, (channels,), and how surely it decides.

    `slope` is that of the logistic at a usual difference of distances; 0 chooses at random.
    """

    multipliers: Floats
    slope: float


def crops(folder: Path, count: int, side: int) -> Floats:
    """(crops, side, side) in [0, 1], of parts with some contrast."""
    rng = np.random.default_rng(0)
    files = [
        (one, *window) for name, window in _SERIES.items() for one in sorted(folder.glob(name))
    ]
    each = -(-count // len(files))
    found: list[Floats] = []
    for file, centre, width in files:
        pixels = np.asarray(medqa.read(str(file)).pixels)[0].astype(np.float64)
        shown = np.clip((pixels - centre) / width + 0.5, 0.0, 1.0)
        cut: list[Floats] = []
        for _ in range(1000):
            row, column = rng.integers(0, shown.shape[0] - side, 2)
            crop = shown[row : row + side, column : column + side]
            if crop.std() > 0.12:
                cut.append(crop)
            if len(cut) == each:
                break
        found += cut
    return np.stack(found[:count])


def damaged(rng: np.random.Generator, crop: Floats) -> Floats:
    """(5, side, side), each damage of random strength."""
    strength = rng.uniform(0.3, 1.0, _DAMAGES)
    noise = rng.standard_normal((2, *crop.shape))
    half = ndimage.zoom(ndimage.zoom(crop, 0.5, order=1), 2.0, order=1)
    blocks = crop.reshape(len(crop) // _BLOCK, _BLOCK, -1, _BLOCK)
    step = 0.4 * strength[4]
    rounded = np.round(fft.dctn(blocks, axes=(1, 3), norm="ortho") / step) * step
    made = [
        ndimage.gaussian_filter(crop, 1.5 * strength[0]),
        crop + 0.1 * strength[1] * noise[0],
        strength[2] * half + (1.0 - strength[2]) * crop,
        crop + 2.0 * strength[3] * ndimage.gaussian_filter(noise[1], 6.0),
        fft.idctn(rounded, axes=(1, 3), norm="ortho").reshape(crop.shape),
    ]
    return np.clip(np.stack(made), 0.0, 1.0)


def measured(folder: Path, count: int, side: int = 96, backbone: str = "gray") -> Images:
    rng = np.random.default_rng(1)
    network = GrayLPIPS(backbone)
    found = []
    for crop in crops(folder, count, side):
        candidates = torch.from_numpy(damaged(rng, crop)).float()[:, None]
        reference = torch.from_numpy(crop.copy()).float().expand_as(candidates)
        found.append(channel_terms(network, reference, candidates))
    return Images(np.stack(found), tuple(len(head) for head in network.heads))


def structural(images: Images) -> Floats:
    """(channels,) multipliers of a reader who forgives noise and cannot stand lost structure.

    The square of how much more a channel answers to blur, lost resolution and blocks than to
    noise, up to a hundredfold.
    """
    noise = images.terms[:, 1].mean(axis=0, dtype=np.float64)
    structure = images.terms[:, (0, 2, 4)].mean(axis=(0, 1), dtype=np.float64)
    ratio = np.divide(structure, noise, out=np.zeros_like(noise), where=noise > 0.0)
    return np.clip(ratio / np.median(ratio), 0.0, 10.0) ** 2


def finest(images: Images) -> Floats:
    """(channels,) multipliers of a reader who looks at the first tap alone."""
    return np.repeat([1.0] + [0.0] * (len(images.channels) - 1), images.channels)


def study(images: Images, which: NDArray[np.intp], reader: Reader, seed: int) -> Observations:
    """One choice about two damages, drawn at random, of each of these crops."""
    rng = np.random.default_rng(seed)
    pairs = np.array([rng.choice(_DAMAGES, 2, replace=False) for _ in which])
    a, b = (images.terms[which, pairs[:, side]] for side in (0, 1))
    difference = (b - a) @ reader.multipliers
    usual = np.sqrt(np.mean(difference**2))
    chosen = rng.random(len(which)) < special.expit(reader.slope * difference / usual)
    return Observations(a, b, images.channels, chosen * 1.0, np.ones(len(which)), which)


def agreement(observed: Observations, multipliers: Floats) -> float:
    """Share of the choices that fell on the smaller distance."""
    nearer = (observed.b - observed.a) @ multipliers > 0.0
    return float(np.mean(np.where(nearer, observed.share, 1.0 - observed.share)))


@dataclass(frozen=True)
class Simulated:
    """Means over studies; `accepted` is the share of them that was adapted.

    Agreement with fresh choices: of the original, of what was adapted or else the original, and of
    the reader's own distance.
    """

    accepted: float
    original: float
    used: float
    own: float


def simulate(images: Images, reader: Reader, count: int, studies: int) -> Simulated:
    rows = []
    ones = np.ones(images.terms.shape[2])
    for seed in range(studies):
        order = np.random.default_rng((count, seed)).permutation(len(images.terms))
        found = adapt(study(images, order[:count], reader, seed))
        fresh = study(images, order[count:], reader, seed + studies)
        used = found.multipliers if found.better else ones
        rows.append(
            [found.better, *(agreement(fresh, one) for one in (ones, used, reader.multipliers))]
        )
    return Simulated(*np.mean(np.array(rows, float), axis=0).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    given = parser.parse_args()
    images = measured(_DATA, 550)
    ones = np.ones(images.terms.shape[2])
    readers = {
        "first tap alone": finest(images),
        "structure before noise": structural(images),
        "the original": ones,
    }
    rows = []
    for slope, words in ((20.0, "steady"), (6.0, "wavering"), (0.0, "at random")):
        for name, multipliers in readers.items():
            if slope == 0.0 and name != "the original":
                continue
            reader = Reader(multipliers, slope)
            for count in (50, 100, 200, 400):
                one = simulate(images, reader, count, given.studies)
                figures = (one.accepted, one.original, one.used, one.own)
                rows.append(
                    [
                        "–" if slope == 0.0 else name,
                        words,
                        str(count),
                        f"{figures[0]:.0%}",
                        *(f"{figure:.1%}" for figure in figures[1:]),
                    ]
                )
    header = ["distance of the reader", "choice", "choices", "adapted"]
    header += ["original", "after", "reader's own"]
    publish(
        "adaptation",
        f"{given.studies} simulated studies a row, `gray`, one choice of each reference.",
        [Table("Choices agreed with, on fresh images", header, rows)],
        given.write,
    )


if __name__ == "__main__":
    main()
