"""How edge and texture fidelity answer to known damage of real images, as tables in Markdown.

``python tests/benchmarks/bands.py [compression] [damage] [settings] [regions] [cost]``; without a
name, all of them, in about half an hour on one core. The images lie in ``shared/data`` beside the
project.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import scipy.ndimage as ndi
import torch
from numpy.typing import NDArray
from openjpeg.utils import decode, encode_array
from PIL import Image as Pillow
from scipy.stats import spearmanr
from skimage import restoration
from torch import Tensor

import medqa
from medqa import metrics
from medqa.lpips import GrayLPIPS
from medqa.metrics import bands
from medqa.thresholds import load
from medqa.transforms import displays

Array = NDArray[np.float32]
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

# Profile, files, slices of each file; every source is another scanner, study or repository.
SOURCES = (
    ("ct", "ct/totalsegmentator_dicom/CT.*", 4),
    ("ct", "ct/liver_3slice_with_SEG/0*.dcm", 3),
    ("ct", "ct/head_series_GE/*.dcm", 4),
    ("ct", "ct/ct_with_RTSTRUCT/ct_*.dcm", 2),
    ("ct", "ct/misc/693_UNCI.dcm", 1),
    ("ct", "ts/ct_all_syntaxes/CT1_J2KR", 1),
    ("ct", "ts/ct_all_syntaxes/CT2_J2KR", 1),
    ("mr", "mr/siemens/MR.*", 4),
    ("mr", "mr/uih_t1/*.dcm", 4),
    ("mr", "mr/misc/MR2_J2KR.dcm", 1),
    ("mr", "mr/misc/examples_overlay.dcm", 1),
    ("mr", "mr/transfer_syntax_set/1.dcm", 1),
    ("mr", "mr/siemens_epi/epi_*.dcm", 2),
    ("mr", "mr/nifti/FLAIR.nii.gz", 3),
    ("xray", "xr/cr_mono1/RG1_JLSN.dcm", 1),
    ("xray", "xr/cr_mono1/RG3_J2KR.dcm", 1),
    ("xray", "xr/cr_mono2/RG2_JLSL.dcm", 1),
    ("xray", "xr/modality_lut/CR-ModalitySequenceLUT.dcm", 1),
    ("xray", "xr/cxr_png/0*.png", 2),
    ("xray", "xr/cxr_tb_boxes/*.png", 3),
    ("xray", "xa/jpeg_baseline_8bit.dcm", 2),
    ("mammography", "mg/GH133.dcm", 1),
    ("ultrasound", "us/US1_UNCR.dcm", 1),
    ("ultrasound", "us/examples_palette.dcm", 1),
    ("ultrasound", "us/GH364.dcm", 1),
    ("ultrasound", "us/examples_ybr_color.dcm", 2),
    ("ultrasound", "us/US-YBR_FULL_422-EVRLE.dcm", 1),
    ("ultrasound", "us/OBXXXX1A_rle_2frame.dcm", 1),
    ("nuclear", "pt/GH184.dcm", 1),
    ("nuclear", "pt/GH610.dcm", 1),
    ("nuclear", "nm/JPEG2000_UNC.dcm", 1),
)
RATIOS = (5, 7, 8, 10, 15, 20, 30)
MEASURES = ("edge_fidelity", "texture_fidelity")
# Proposed limits: edge and texture fidelity at least; diagnostic, screening.
LIMITS = {
    "ct": ((0.95, 0.90), (0.90, 0.80)),
    "mr": ((0.93, 0.90), (0.90, 0.80)),
    "xray": ((0.87, 0.90), (0.84, 0.80)),
    "mammography": ((0.95, 0.90), (0.90, 0.80)),
    "ultrasound": ((0.97, 0.90), (0.95, 0.80)),
    "nuclear": ((0.93, 0.90), (0.88, 0.80)),
}


@dataclass(frozen=True)
class Slice:
    """One slice: its profile, stored integers, and how a reader sees an array like it."""

    profile: str
    stored: NDArray[np.uint16]
    show: Callable[[Array, Array], list[tuple[Tensor, Tensor]]]

    def shown(self) -> Array:
        """Return the first display, for damage that is graded in parts of the display's range."""
        first, _ = self.show(self.stored.astype(np.float32), self.stored.astype(np.float32))[0]
        return first[0, 0].numpy()


def slices() -> Iterator[Slice]:
    for profile, pattern, count in SOURCES:
        paths = sorted(DATA.glob(pattern))
        if not paths:
            raise SystemExit(f"{DATA} holds no {pattern}")
        pairs = [(path, index) for path in paths for index in range(_depth(path))]
        inner = np.linspace(0, len(pairs) - 1, count + 2)[1:-1] if count > 1 else [len(pairs) // 2]
        for path, index in (pairs[round(one)] for one in inner):
            yield _slice(profile, path, index)


def _depth(path: Path) -> int:
    return 1 if path.suffix == ".png" else medqa.read(path).shape[0]


def _slice(profile: str, path: Path, index: int) -> Slice:
    if path.suffix == ".png":
        stored = np.asarray(Pillow.open(path).convert("L")).astype(np.uint16)
        low, high = np.percentile(stored, [0.5, 99.5])

        def show(*pair: Array) -> list[tuple[Tensor, Tensor]]:
            one, other = (np.clip((x - low) / (high - low), 0, 1) for x in pair)
            return [(_tensor(one), _tensor(other))]

        return Slice(profile, stored, show)
    image = medqa.read(path)
    values = np.asarray(image.pixels[index])
    if image.unit == "HU":
        values = np.clip(values, -1024, 3071)
    offset = float(values.min())
    # What PET measures are real numbers in a unit of any size: stored in 12 bits.
    step = float(np.ptp(values)) / 4095 if image.modality == "PT" else 1.0
    ways = displays(load(profile), image)

    def show_all(*pair: Array) -> list[tuple[Tensor, Tensor]]:
        one, other = ((x * step + offset).astype(np.float32)[None] for x in pair)
        return [way(one, other) for way in ways]

    return Slice(profile, np.round((values - offset) / step).astype(np.uint16), show_all)


def _tensor(x: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))[None, None]


def jpeg2000(stored: NDArray[np.uint16], ratio: float) -> Array:
    """JPEG 2000 (9/7) at a ratio of the bits that the slice's range needs; below 1: lossless."""
    bits = max(8, int(stored.max()).bit_length())
    ratios = [ratio] if ratio > 1 else None
    kind = np.uint8 if bits == 8 else np.uint16
    coded = encode_array(
        stored.astype(kind), bits_stored=bits, compression_ratios=ratios, use_mct=False
    )
    if ratio > 1 and not 0.9 < bits * stored.size / (8 * len(coded)) / ratio < 1.6:
        got = bits * stored.size / (8 * len(coded))
        print(f"asked for {ratio}:1, got {got:.1f}:1", file=sys.stderr)
    return np.asarray(decode(coded)).astype(np.float32)


# --- Tables ---------------------------------------------------------------------------------------


def compression() -> None:
    """Median (5th percentile) of the slices, each under its worst display."""
    found: dict[tuple[str, float], list[tuple[float, ...]]] = defaultdict(list)
    for one in slices():
        reference = one.stored.astype(np.float32)
        for ratio in (0, *RATIOS):
            pairs = one.show(reference, jpeg2000(one.stored, ratio))
            values = [measured(*pair) for pair in pairs]
            found[one.profile, ratio].append(tuple(np.nanmin(values, axis=0)))
    for place, measure in enumerate(MEASURES):
        rows = []
        for profile in dict.fromkeys(profile for profile, _ in found):
            cells = [np.array(found[profile, ratio])[:, place] for ratio in (0, *RATIOS)]
            rows.append([f"{profile} ({len(cells[0])})", *map(_spread, cells)])
        table(measure, ["profile (slices)", "lossless", *(f"{r}:1" for r in RATIOS)], rows)
    rows = []
    for profile, limits in LIMITS.items():
        cells = []
        for ratio in (0, *RATIOS):
            values = np.array(found[profile, ratio])
            cells.append(", ".join(f"{100 * _met(values, limit).mean():.0f}" for limit in limits))
        rows.append([profile, *cells])
    head = ["profile", "lossless", *(f"{r}:1" for r in RATIOS)]
    table("percent of slices that meet both limits: diagnostic, screening", head, rows)


def _blend(x: Array, other: Array, weight: float) -> Array:
    return x + weight * (other - x)


def _grain(x: Array, rng: np.random.Generator) -> Array:
    noise = ndi.gaussian_filter(rng.standard_normal(x.shape), 1.0)
    return noise / noise.std()


def _met(values: NDArray[np.float64], limits: tuple[float, float]) -> NDArray[np.bool_]:
    """Of (slices, 2) values, which meet both limits; what is undefined has none to meet."""
    return np.array((values >= limits).all(axis=1)[np.isfinite(values).all(axis=1)])


Damage = Callable[[Array, float, np.random.Generator], Array]
# Kind: what it does to a displayed image, and five strengths.
DAMAGE: dict[str, tuple[Damage, tuple[float, ...]]] = {
    "blur, sigma in pixels": (lambda x, s, _: ndi.gaussian_filter(x, s), (0.3, 0.5, 0.8, 1.2, 2)),
    "white noise, standard deviation": (
        lambda x, s, rng: x + s * rng.standard_normal(x.shape),
        (0.005, 0.01, 0.02, 0.04, 0.08),
    ),
    "grainy noise, standard deviation": (
        lambda x, s, rng: x + s * _grain(x, rng),
        (0.005, 0.01, 0.02, 0.04, 0.08),
    ),
    "median 3 x 3, weight": (
        lambda x, s, _: _blend(x, ndi.median_filter(x, 3), s),
        (0.2, 0.4, 0.6, 0.8, 1),
    ),
    "non-local means, h": (
        lambda x, s, _: restoration.denoise_nl_means(x, 5, 5, h=s, fast_mode=True),
        (0.01, 0.02, 0.04, 0.08, 0.16),
    ),
    "total variation, weight": (
        lambda x, s, _: restoration.denoise_tv_chambolle(x, s, max_num_iter=60),
        (0.01, 0.02, 0.05, 0.1, 0.2),
    ),
    "wavelet shrinkage, sigma": (
        lambda x, s, _: restoration.denoise_wavelet(
            x, sigma=s, wavelet="db2", rescale_sigma=True
        ),
        (0.005, 0.01, 0.02, 0.04, 0.08),
    ),
    "shift, pixels": (
        lambda x, s, _: ndi.shift(x, (0, s), order=3, mode="nearest"),
        (0.1, 0.25, 0.5, 1, 2),
    ),
    "enlarged by, percent": (
        lambda x, s, _: ndi.affine_transform(
            x, [1 / (1 + s / 100)] * 2, np.array(x.shape) / 2 * s / (100 + s), order=3,
            mode="nearest",
        ),
        (0.1, 0.2, 0.5, 1, 2),
    ),
    "contrast lost, part": (
        lambda x, s, _: 0.5 + (1 - s) * (x - 0.5),
        (0.05, 0.1, 0.2, 0.4, 0.8),
    ),
    "window level moved, part of width": (
        lambda x, s, _: np.clip(x + s, 0, 1),
        (0.02, 0.05, 0.1, 0.2, 0.4),
    ),
    "gamma": (lambda x, s, _: np.clip(x, 0, 1) ** s, (1.1, 1.25, 1.5, 2, 3)),
}  # fmt: skip
# What the settings are compared on: the damage that must cost, at every step more.
GRADED = tuple(DAMAGE)[:8]
SIDE = 512


def crops() -> Iterator[tuple[str, Array, Slice]]:
    """The middle of each slice, in its first display."""
    for one in slices():
        x = one.shown()
        top, left = (max(0, (n - SIDE) // 2) for n in x.shape)
        part = x[top : top + SIDE, left : left + SIDE].astype(np.float64)
        if part.std() > 0.02:
            yield one.profile, part, one


def damaged(x: Array, kind: str) -> list[Array]:
    act, strengths = DAMAGE[kind]
    # The same noise at every strength, so that only the strength differs.
    return [np.clip(act(x, s, np.random.default_rng(0)), 0, 1) for s in strengths]


def damage() -> None:
    """Median over slices at each strength, and how surely more damage gives a lower value."""
    found: dict[tuple[str, str], list[NDArray[np.float64]]] = defaultdict(list)
    for profile, x, _ in crops():
        for kind in DAMAGE:
            values = [measured(_tensor(x), _tensor(y)) for y in damaged(x, kind)]
            found[kind, profile].append(np.array(values))
    profiles = list(dict.fromkeys(profile for _, profile in found))
    for place, measure in enumerate(MEASURES):
        rows = []
        for kind, (_, strengths) in DAMAGE.items():
            cells = []
            for profile in profiles:
                values = np.array(found[kind, profile])[:, :, place]
                cells.append(" ".join(f"{v:.2f}" for v in np.nanmedian(values, axis=0)))
            everything = np.concatenate([found[kind, profile] for profile in profiles])
            monotone = np.mean([_spearman(v) for v in everything[:, :, place]])
            steps = " ".join(f"{s:g}" for s in strengths)
            rows.append([kind, steps, *cells, f"{monotone:.2f}"])
        table(measure, ["damage", "strengths", *profiles, "Spearman"], rows)
    rows = []
    for kind, (_, strengths) in DAMAGE.items():
        cells = []
        for profile in profiles:
            values = np.array(found[kind, profile])
            last = []
            for limit in LIMITS[profile]:
                met = [_met(values[:, step], limit).mean() >= 0.5 for step in range(len(strengths))]
                kept = met.index(False) if False in met else len(met)
                last.append(f"{strengths[kept - 1]:g}" if kept else "none")
            cells.append(", ".join(last))
        rows.append([kind, " ".join(f"{s:g}" for s in strengths), *cells])
    head = "strongest damage at which half the slices meet both limits: diagnostic, screening"
    table(head, ["damage", "strengths", *profiles], rows)


SETTINGS: dict[str, dict[str, float]] = {
    "as shipped": {"_BAND_SIGMA": 0.8},
    "sigmas x 0.75": {"_BAND_SIGMA": 0.6, "_EDGE_SIGMA": 1.5, "_LOCAL_SIGMA": 3.0},
    "sigmas x 1.5": {"_BAND_SIGMA": 1.2, "_EDGE_SIGMA": 3.0, "_LOCAL_SIGMA": 6.0},
    "sigmas x 2": {"_BAND_SIGMA": 1.6, "_EDGE_SIGMA": 4.0, "_LOCAL_SIGMA": 8.0},
    "sigmas x 4": {"_BAND_SIGMA": 3.2, "_EDGE_SIGMA": 8.0, "_LOCAL_SIGMA": 16.0},
    "body above 0.02": {"_BODY_LEVEL": 0.02},
    "body above 0.16": {"_BODY_LEVEL": 0.16},
    "edges 5 %": {"_EDGE_SHARE": 0.05},
    "edges 30 %": {"_EDGE_SHARE": 0.30},
}


def settings() -> None:
    """Other settings: do they rank graded damage, and part accepted from refused compression?"""
    ranks: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    ratios: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for profile, x, one in crops():
        graded = [damaged(x, kind) for kind in GRADED]
        stored = one.stored.astype(np.float32)
        coded = [one.show(stored, jpeg2000(one.stored, ratio))[0] for ratio in (8, 30)]
        for name, constants in SETTINGS.items():
            with patch.multiple(bands, **constants):
                for steps in graded:
                    values = np.array([measured(_tensor(x), _tensor(y)) for y in steps])
                    ranks[name, profile].append([_spearman(v) for v in values.T])
                values = np.array([measured(*pair) for pair in coded])
                ratios[name, profile].append(list(values.ravel()))
    profiles = list(dict.fromkeys(profile for _, profile in ranks))
    for place, measure in enumerate(MEASURES):
        rows = []
        for name in SETTINGS:
            cells = []
            for profile in profiles:
                rank = np.nanmean(np.array(ranks[name, profile])[:, place])
                eight, thirty = np.nanmedian(
                    np.array(ratios[name, profile])[:, [place, place + 2]], axis=0
                )
                cells.append(f"{rank:.2f}; {eight:.2f}, {thirty:.2f}")
            rows.append([name, *cells])
        head = f"{measure}: mean Spearman; median at 8:1, at 30:1"
        table(head, ["settings", *profiles], rows)


def regions() -> None:
    """A disc of 30 pixels' radius in the body, smoothed away from its centre outwards."""
    radii = (3, 6, 12, 20, 30)
    inside: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    whole: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    rng = np.random.default_rng(0)
    for profile, x, _ in crops():
        level = ndi.gaussian_filter(x, 8)
        level[:40] = level[-40:] = level[:, :40] = level[:, -40:] = 0
        places = np.argwhere(level > 0.3)
        if not len(places):
            continue
        row, column = places[rng.integers(len(places))]
        rows, columns = np.ogrid[: x.shape[0], : x.shape[1]]
        distance = np.hypot(rows - row, columns - column)
        mask = torch.from_numpy(distance < 30)[None, None]
        steps = [
            x + np.clip(radius + 0.5 - distance, 0, 1) * (ndi.gaussian_filter(x, 3) - x)
            for radius in radii
        ]
        inside[profile].append(np.array([measured(_tensor(x), _tensor(y), mask) for y in steps]))
        whole[profile].append(np.array([measured(_tensor(x), _tensor(y)) for y in steps]))
    for place, measure in enumerate(MEASURES):
        rows_ = []
        for profile in inside:
            cells = [
                " ".join(
                    f"{v:.3f}" for v in np.nanmedian(np.array(found[profile]), axis=0)[:, place]
                )
                for found in (inside, whole)
            ]
            rows_.append([f"{profile} ({len(inside[profile])})", *cells])
        names = " ".join(map(str, radii))
        table(measure, ["profile", f"inside a mask; radius {names}", "whole image"], rows_)


def cost() -> None:
    """Every measure of one 512 x 512 pair beside the network, on one core."""
    torch.set_num_threads(1)
    one = next(slices())
    reference = one.stored.astype(np.float32)
    pair = one.show(reference, jpeg2000(one.stored, 8))[0]
    network = GrayLPIPS("gray")
    ways: dict[str, Callable[[], object]] = {
        "gray": lambda: network(*pair),
        "edges and texture": lambda: measured(*pair),
        "the same, of another candidate": lambda: values_of(kept.against(pair[1])),
    }
    for name, one_measure in metrics.MEASURES.items():
        if metrics.unavailable(name) is None:
            ways[name] = partial(one_measure.function, *pair)
    kept = bands.Bands(pair[0], pair[0])
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for _ in range(25):  # in turns, so that a busy moment falls on all alike
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                taken[name].append(1000 * (time.perf_counter() - start))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    rows = [
        [name, f"{min(taken[name]):.1f}", f"{median:.1f}", f"{median / medians['gray']:.2f}"]
        for name, median in medians.items()
    ]
    table("milliseconds", ["", "fastest", "median", "times gray"], rows)


def measured(one: Tensor, other: Tensor, mask: Tensor | None = None) -> tuple[float, float]:
    return values_of(bands.Bands(one, other, mask=mask))


def values_of(found: bands.Bands) -> tuple[float, float]:
    return float(found.edge_fidelity), float(found.texture_fidelity)


def _spearman(values: NDArray[np.float64]) -> float:
    """Of a measure with the strength: -1 where each step costs; 0 where nothing changes."""
    values = values.round(6)
    if len(set(values)) == 1:
        return 0.0
    return float(spearmanr(range(len(values)), values).statistic)


def _spread(values: NDArray[np.float64]) -> str:
    return f"{np.nanmedian(values):.3f} ({np.nanpercentile(values, 5):.3f})"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |", flush=True)


TABLES = {one.__name__: one for one in (compression, damage, settings, regions, cost)}

if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        TABLES[name]()
