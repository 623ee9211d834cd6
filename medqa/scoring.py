"""Compare: distances of the slices and, inside the distance map, of the regions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medqa.assessment import Evidence, RegionScore, Scores, SliceScore, WindowScore
from medqa.image import Image, Region
from medqa.lpips import GrayLPIPS
from medqa.metrics import MEASURES
from medqa.transforms import Display

__all__ = ["AGGREGATES", "evidence", "score"]

AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    # Linear interpolation between the two nearest slices (NumPy's default).
    "p95": lambda values: float(np.percentile(values, 95)),
    "max": max,
    "mean": lambda values: float(np.mean(values)),
}

# Pixels encoded at a time: eight slices of 512 x 512.
_BATCH_PIXELS = 8 * 512 * 512
# Slices to look at: the worst ones, and the worst of as many regions.
_WORST_SLICES = 3
_WORST_REGIONS = 5


@dataclass(frozen=True)
class _Found:
    """A region's distance on one slice under one display."""

    lpips: float
    slice: int
    window: str


@torch.inference_mode()
def score(
    network: GrayLPIPS,
    reference: Image,
    candidate: Image,
    displays: Sequence[Display],
    regions: Sequence[Region] = (),
    *,
    aggregate: str = "p95",
    progress: Callable[[int], object] = lambda _slices: None,
) -> Scores:
    """Measure every slice and region under every display.

    Parameters
    ----------
    network
        What measures the distance.
    reference, candidate
        On the same grid.
    displays
        Each is scored by itself, and the worst decides.
    regions
        On the grid of the images. A region's distance is the mean of the distance map inside it,
        so that its surroundings stay real; over slices and displays, its worst.
    aggregate
        How slices make the image's distance, a key of `AGGREGATES`.
    progress
        Called with the number of slices done since the last call.
    """
    slices = range(reference.shape[0])
    pathology = [region for region in regions if region.kind == "pathology"]
    distances: dict[str, list[float]] = {display.name: [] for display in displays}
    measures: dict[str, list[float]] = {name: [] for name in MEASURES}
    masked: list[float] = []
    found: list[list[_Found]] = [[] for _ in regions]

    for batch in _batches(slices, reference.shape):
        for display in displays:
            one, other = display(reference.pixels[batch], candidate.pixels[batch])
            features = network.features(one), network.features(other)
            distances[display.name] += network.distance(*features).tolist()
            for name, measure in MEASURES.items():
                measures[name] += measure.function(one, other).tolist()
            if any(_shared(region, batch) for region in regions):
                maps = network.map(*features)[:, 0].numpy()
                for region, places in zip(regions, found, strict=True):
                    places += _inside(region, maps, batch, display.name)
            for index in slices[batch]:
                mask = _union(pathology, index, reference.shape)
                if mask.any():
                    at = index - batch.start
                    inside = torch.from_numpy(mask)[None, None]
                    masked.append(
                        float(network(one[at : at + 1] * inside, other[at : at + 1] * inside))
                    )
        progress(len(slices[batch]))

    windows = tuple(
        WindowScore(
            name=display.name,
            low=display.low,
            high=display.high,
            lpips=AGGREGATES[aggregate](distances[display.name]),
        )
        for display in displays
    )
    worst = [_worst(region, places) for region, places in zip(regions, found, strict=True)]
    return Scores(
        windows=windows,
        slices=tuple(_slice_score(index, distances) for index in slices),
        base_lpips=max(window.lpips for window in windows),
        aggregate=aggregate,
        components=tuple(
            one for one, region in zip(worst, regions, strict=True) if region.kind == "pathology"
        ),
        annotations=tuple(
            one for one, region in zip(worst, regions, strict=True) if region.kind == "annotation"
        ),
        coverage=_coverage(pathology, reference.shape) if pathology else None,
        masked_lpips=max(masked) if masked else None,
        metrics={name: _finite(min(values)) for name, values in measures.items()},
    )


@torch.inference_mode()
def evidence(
    network: GrayLPIPS,
    reference: Image,
    candidate: Image,
    displays: Sequence[Display],
    scores: Scores,
    regions: Sequence[Region] = (),
) -> tuple[Evidence, ...]:
    """Return the slices to look at, worst first: of the image, then of the worst regions."""
    by_name = {display.name: display for display in displays}
    worst_slices = sorted(scores.slices, key=lambda one: -one.lpips)[:_WORST_SLICES]
    worst_regions = sorted((*scores.components, *scores.annotations), key=lambda one: -one.lpips)[
        :_WORST_REGIONS
    ]
    places = [(one.index, one.window) for one in worst_slices]
    places += [(one.slice, one.window) for one in worst_regions]
    shown = []
    for index, window in dict.fromkeys(places):
        batch = slice(index, index + 1)
        one, other = by_name[window](reference.pixels[batch], candidate.pixels[batch])
        features = network.features(one), network.features(other)
        masks = [_union([region], index, reference.shape) for region in regions]
        shown.append(
            Evidence(
                index=index,
                window=window,
                reference=one[0, 0].numpy(),
                candidate=other[0, 0].numpy(),
                distance_map=network.map(*features)[0, 0].numpy(),
                lpips=float(network.distance(*features)),
                regions=tuple(
                    (region.kind, region.name, mask)
                    for region, mask in zip(regions, masks, strict=True)
                    if mask.any()
                ),
            )
        )
    return tuple(shown)


def _batches(slices: range, shape: tuple[int, int, int]) -> Iterator[slice]:
    step = max(1, _BATCH_PIXELS // (shape[1] * shape[2]))
    for start in slices[::step]:
        yield slice(start, min(start + step, len(slices)))


def _shared(region: Region, batch: slice) -> range:
    """Slices of the batch that the region's bounding box spans; empty where there are none."""
    return range(max(region.slices.start, batch.start), min(region.slices.stop, batch.stop))


def _inside(
    region: Region, maps: NDArray[np.float32], batch: slice, window: str
) -> Iterator[_Found]:
    """Mean of the maps, (n, rows, columns), inside the region, for each slice that it touches."""
    for index in _shared(region, batch):
        rows, columns, mask = region.on_slice(index)
        if mask.any():
            values = maps[index - batch.start, rows, columns][mask]
            # In double precision: a region may hold a million pixels.
            yield _Found(float(values.mean(dtype=np.float64)), index, window)


def _worst(region: Region, places: Sequence[_Found]) -> RegionScore:
    worst = max(places, key=lambda place: place.lpips)
    rows, columns, mask = region.on_slice(worst.slice)
    inside_rows, inside_columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return RegionScore(
        name=region.name,
        lpips=worst.lpips,
        slice=worst.slice,
        window=worst.window,
        pixels=region.size,
        bbox=(
            columns.start + int(inside_columns[0]),
            rows.start + int(inside_rows[0]),
            columns.start + int(inside_columns[-1]) + 1,
            rows.start + int(inside_rows[-1]) + 1,
        ),
    )


def _union(regions: Sequence[Region], index: int, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    union = np.zeros(shape[1:], dtype=np.bool_)
    for region in regions:
        if index in region.slices:
            rows, columns, mask = region.on_slice(index)
            union[rows, columns] |= mask
    return union


def _coverage(pathology: Sequence[Region], shape: tuple[int, int, int]) -> float:
    """Share of the pixels of the touched slices that lie inside."""
    touched = sorted({index for region in pathology for index in region.slices})
    inside = [int(_union(pathology, index, shape).sum()) for index in touched]
    return sum(inside) / (sum(count > 0 for count in inside) * shape[1] * shape[2])


def _slice_score(index: int, distances: dict[str, list[float]]) -> SliceScore:
    window = max(distances, key=lambda name: distances[name][index])
    return SliceScore(index=index, lpips=distances[window][index], window=window)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
