"""How the model observer answers where the truth is known, and what codecs cost on real CT.

``python tests/benchmarks/detectability.py [--write docs/detectability.md]``; four minutes on two
cores. The images lie in ``shared/data`` beside the project.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from machine import heading
from numpy.typing import NDArray
from rich.progress import track
from scipy import ndimage
from scipy.stats import norm
from tables import Table, publish

from medqa import thresholds
from medqa.compression.codecs import CODECS, at_ratio
from medqa.lpips import GrayLPIPS
from medqa.studies.compression.stored import StoredImage, read_stored
from medqa.studies.detectability import evaluate, respond
from medqa.studies.detectability_study import detectability_by_ratio
from medqa.studies.intervals import Estimate
from medqa.studies.observer import compare, scores
from medqa.studies.signals import Signal
from medqa.transforms import displays

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
# Files, the lesion, the profile whose displays the distance is measured under.
SOURCES = {
    "chest and abdomen, 4 mm, +12 HU": (
        "ct/totalsegmentator_dicom/CT.*",
        Signal(4, 12),
        "ct-compression",
    ),
    "abdomen, noisy, 4 mm, +20 HU": (
        "ct/liver_3slice_with_SEG/0*.dcm",
        Signal(4, 20),
        "ct-compression",
    ),
    "chest and abdomen, 8 mm, +10 HU": (
        "ct/totalsegmentator_dicom/CT.*",
        Signal(8, 10),
        "ct-compression",
    ),
    "head, 4 mm, +20 HU": ("ct/head_series_GE/*.dcm", Signal(4, 20), "ct-head-compression"),
}
RATIOS = (5, 8, 10, 15, 20, 30)
CHANNELS = 6
STUDIES = 400
_DISTANCE_SLICES = 3


def simulated(places: int, index: float, noise: float, studies: int) -> tuple[float, ...]:
    """Bias of AUC and loss, and how often their intervals hold the truth; in channel space.

    Backgrounds are white and of unit variance, the lesion has detectability `index`; the process
    adds white noise of its own to each patch.
    """
    rng = np.random.default_rng(places)
    lesion = np.zeros(CHANNELS)
    lesion[0] = index
    truth = norm.cdf(index / np.sqrt(2))
    lost = truth - norm.cdf(index / np.sqrt(2 * (1 + noise**2)))
    groups = np.arange(places)
    fold = groups * 10 // places
    rows = []
    for _ in range(studies):
        background = rng.standard_normal((places, CHANNELS))
        seen = np.stack([background, background + lesion])
        after = seen + noise * rng.standard_normal(seen.shape)
        found = compare(scores(seen, fold), scores(after, fold), groups)
        rows.append(
            (
                found.before.value - truth,
                found.before.low <= truth <= found.before.high,
                found.loss.value - lost,
                found.loss.low <= lost <= found.loss.high,
                (found.loss.high - found.loss.low) / 2,
            )
        )
    return tuple(np.mean(rows, axis=0).tolist())


def simulations() -> Table:
    rows = []
    for index in (1.0, 1.5, 2.0):
        for places in track((60, 100, 250, 1000), f"d' {index}", transient=True):
            bias, covered, loss_bias, loss_covered, half = simulated(places, index, 0.5, STUDIES)
            rows.append(
                [
                    f"{index:g} ({norm.cdf(index / np.sqrt(2)):.3f})",
                    str(places),
                    f"{bias:+.4f}",
                    f"{covered:.1%}",
                    f"{loss_bias:+.4f}",
                    f"{loss_covered:.1%}",
                    f"± {half:.3f}",
                ]
            )
    header = ("d' (AUC)", "places", "bias of AUC", "interval holds", "bias of loss")
    header = (*header, "interval of loss holds", "its mean width")
    return Table(f"{STUDIES} simulated studies a row, 6 channels", header, rows)


def _read(pattern: str) -> StoredImage:
    return read_stored(sorted(DATA.glob(pattern)))


def distance(network: GrayLPIPS, profile: str, pattern: str, codec: str, ratio: float) -> float:
    """Median over some slices of the distance under the display where it is largest."""
    stored = _read(pattern)
    shown = displays(thresholds.load(profile), stored.image)
    count = stored.image.shape[0]
    found = []
    for index in np.linspace(0, count - 1, _DISTANCE_SLICES + 2)[1:-1].round().astype(int):
        frame = stored.stored(int(index))
        values = stored.shown(
            int(index), at_ratio(CODECS[codec], frame, stored.samples, ratio).pixels
        )
        pairs = [one(stored.image.pixels[int(index)][None], values[None]) for one in shown]
        found.append(max(float(network(*pair)) for pair in pairs))
    return median(found)


def words(one: Estimate, form: str = ".3f") -> str:
    if one.low is None or one.high is None:
        return f"{one.value:{form}}"
    return f"{one.value:{form}} ({one.low:{form}} to {one.high:{form}})"


def real() -> Iterator[Table]:
    network = GrayLPIPS("gray")
    for name, (pattern, signal, profile) in SOURCES.items():
        rows: list[list[str]] = []
        for codec in ("j2k", "jpegls"):
            found = detectability_by_ratio([partial(_read, pattern)], CODECS[codec], RATIOS, signal)
            for at in found:
                far = distance(network, profile, pattern, codec, at.ratio)
                rows.append(
                    [
                        CODECS[codec].title,
                        f"{at.ratio}:1",
                        words(at.found.after),
                        words(at.found.loss, "+.3f"),
                        f"{far:.4f}",
                    ]
                )
        one = found[0].found
        title = f"{name}: AUC before {words(one.before)}, {one.places} places, by {one.unit}"
        yield Table(title, ("codec", "ratio", "AUC after", "loss", "distance"), rows)


def controls() -> Table:
    processes: dict[str, Callable[[NDArray[np.floating]], NDArray[np.floating]]] = {
        "identity": lambda stack: stack,
        "Gaussian blur, 4 pixels": lambda s: np.rint(ndimage.gaussian_filter(s * 1.0, (0, 4, 4))),
        "median of 11 x 11 pixels": lambda stack: ndimage.median_filter(stack, (1, 11, 11)),
    }
    rows = []
    for name, (pattern, signal, _) in SOURCES.items():
        image = _read(pattern).image
        answers = respond(
            np.asarray(image.pixels),
            lambda stack: [one(stack) for one in processes.values()],
            signal,
            spacing=image.spacing_mm[1:],
            modality="CT",
        )
        losses: Sequence[str] = [words(one.loss, "+.3f") for one in evaluate([answers])]
        rows.append([name, *losses])
    return Table("Controls: loss of AUC", ("images and lesion", *processes), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    given = parser.parse_args()
    tables = [simulations(), controls(), *real()]
    publish("detectability", heading("", 1, "numpy"), tables, given.write)


if __name__ == "__main__":
    main()
