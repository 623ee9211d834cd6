"""Compare: distances of the slices and, inside the distance map, of the regions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medqa.assessment import (
    MEASURE_WORDS,
    Evidence,
    MeasureScore,
    PlaneScore,
    PlanesScore,
    RegionScore,
    Scores,
    SliceScore,
    WindowScore,
)
from medqa.image import Image, Region
from medqa.lpips import Differences, Features, GrayLPIPS
from medqa.metrics import MEASURES
from medqa.metrics.bands import Bands
from medqa.planes import planes
from medqa.transforms import Display, pixels_of

__all__ = ["AGGREGATES", "Stack", "evidence", "score", "score_candidates", "score_planes"]

AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    # Linear interpolation between the two nearest slices (NumPy's default).
    "p95": lambda values: float(np.percentile(values, 95)),
    "max": max,
    "mean": lambda values: float(np.mean(values)),
}

# Pixels shown at a time: eight slices of 512 x 512.
_BATCH_PIXELS = 8 * 512 * 512
# Largest slice whose features are kept for the next candidate: 100 MB by `gray`, and as much again
# for every further display.
_KEPT_PIXELS = 2048 * 2048
# Slices to look at: the worst ones, and the worst of as many regions.
_WORST_SLICES = 3
_WORST_REGIONS = 5


@dataclass(frozen=True)
class _Found:
    """A region's distance on one slice under one display."""

    lpips: float
    slice: int
    window: str


@dataclass(frozen=True)
class _Shown:
    """Slices of both images, (N, 1, rows, columns) in [0, 1], under one display."""

    display: Display
    reference: Tensor
    candidate: Tensor


class Stack(Protocol):
    """Slices of a candidate, made when they are asked for; an array is one too."""

    def __getitem__(self, batch: slice, /) -> NDArray[Any]:
        """(n, rows, columns) modality values of these slices."""
        ...


class _Tally:
    """Everything measured of one candidate so far, batch after batch in order."""

    def __init__(
        self,
        network: GrayLPIPS,
        shape: tuple[int, int, int],
        displays: Sequence[Display],
        regions: Sequence[Region],
        measures: Sequence[str],
    ) -> None:
        self._network, self._shape = network, shape
        self._displays, self._regions, self._names = displays, regions, measures
        self._pathology = [region for region in regions if region.kind == "pathology"]
        self._distances: dict[str, list[float]] = {display.name: [] for display in displays}
        self._companions: dict[str, dict[str, list[float]]] = {
            name: {display.name: [] for display in displays} for name in measures
        }
        self._masked: list[float] = []
        self._found: list[list[_Found]] = [[] for _ in regions]

    def add(self, view: _Shown, differences: Differences, bands: Bands, batch: slice) -> None:
        """Take slices `batch` under one display, compared."""
        window = view.display.name
        self._distances[window] += differences.distance().tolist()
        for name in self._names:
            if name in ("edge_fidelity", "texture_fidelity"):  # what they share is computed once
                found = getattr(bands, name)
            else:
                found = MEASURES[name].function(view.reference, view.candidate)
            self._companions[name][window] += found.tolist()
        if any(_shared(region, batch) for region in self._regions):
            maps = differences.map()[:, 0].cpu().numpy()
            for region, places in zip(self._regions, self._found, strict=True):
                places += _inside(region, maps, batch, window)
        for index in range(self._shape[0])[batch]:
            mask = _union(self._pathology, index, self._shape)
            if mask.any():
                at = slice(index - batch.start, index - batch.start + 1)
                inside = torch.from_numpy(mask)[None, None]
                both = view.reference[at] * inside, view.candidate[at] * inside
                self._masked.append(float(self._network(*both)))

    def scores(self, aggregate: str) -> Scores:
        """Return the scores of all slices, once all were added."""
        windows = tuple(
            WindowScore(
                name=display.name,
                low=display.low,
                high=display.high,
                lpips=AGGREGATES[aggregate](self._distances[display.name]),
            )
            for display in self._displays
        )
        worst = [
            (region.kind, _worst(region, places))
            for region, places in zip(self._regions, self._found, strict=True)
        ]
        return Scores(
            windows=windows,
            slices=tuple(_slice_score(index, self._distances) for index in range(self._shape[0])),
            base_lpips=max(window.lpips for window in windows),
            aggregate=aggregate,
            components=tuple(one for kind, one in worst if kind == "pathology"),
            annotations=tuple(one for kind, one in worst if kind == "annotation"),
            coverage=_coverage(self._pathology, self._shape) if self._pathology else None,
            masked_lpips=max(self._masked) if self._masked else None,
            measures={
                name: _measure_score(name, by_window, aggregate)
                for name, by_window in self._companions.items()
            },
        )


@torch.inference_mode()
def score(
    network: GrayLPIPS,
    reference: Image,
    candidate: Image,
    displays: Sequence[Display],
    regions: Sequence[Region] = (),
    *,
    measures: Sequence[str] = (),
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
    measures
        Companion measures that run, keys of `medqa.metrics.MEASURES`.
    aggregate
        How slices make the image's distance, a key of `AGGREGATES`.
    progress
        Called with the number of slices done since the last call.
    """
    tally = _Tally(network, reference.shape, displays, regions, measures)
    for batch, views in _ahead(reference, candidate, displays, pin=network.device.type == "cuda"):
        for view in views:
            differences = network.compare(view.reference, view.candidate)
            tally.add(view, differences, Bands(view.reference, view.candidate), batch)
        progress(len(range(reference.shape[0])[batch]))
    return tally.scores(aggregate)


@torch.inference_mode()
def score_candidates(
    network: GrayLPIPS,
    reference: Image,
    candidates: Sequence[Stack],
    displays: Sequence[Display],
    regions: Sequence[Region] = (),
    *,
    measures: Sequence[str] = (),
    aggregate: str = "p95",
    progress: Callable[[int], object] = lambda _slices: None,
) -> tuple[Scores, ...]:
    """Measure several candidates of one reference, whose features are computed once.

    One slice is in memory at a time, of each candidate only while it is its turn: a candidate may
    be made when it is asked for. A slice that is the reference's, as displayed, costs nothing and
    has distance 0.

    Parameters
    ----------
    candidates
        Modality values on the grid of the reference: an array of (slices, rows, columns), or
        anything that gives (n, rows, columns) for a slice. Each is asked for every slice once, in
        order; the candidates in turn.

    Others are as of `score`.

    Returns
    -------
    For each candidate what `score` gives, to 1e-5 relative: reference and candidate go through the
    network apart and slice by slice, not in one batch, and so are rounded in another order.
    """
    tallies = [_Tally(network, reference.shape, displays, regions, measures) for _ in candidates]
    for index in range(reference.shape[0]):
        batch = slice(index, index + 1)
        values = reference.pixels[batch]
        padding = None if reference.padding is None else reference.padding[batch]
        one = replace(reference, pixels=values, padding=padding)
        against: dict[str, Callable[[Tensor], tuple[Differences, Bands]]] = {}
        for candidate, tally in zip(candidates, tallies, strict=True):
            both = pixels_of(one, Image(candidate[batch]), slice(None))
            for display in displays:
                view = _Shown(display, *display(*both))
                if display.name not in against:
                    against[display.name] = _against(network, view.reference)
                tally.add(view, *against[display.name](view.candidate), batch)
        progress(1)
    return tuple(tally.scores(aggregate) for tally in tallies)


def _against(
    network: GrayLPIPS, reference: Tensor
) -> Callable[[Tensor], tuple[Differences, Bands]]:
    """Return what compares slices with one of a reference, (1, 1, rows, columns)."""
    # What is kept of a slice is as large as the slice is: of a large one it is computed again,
    # tile by tile.
    keep = reference.shape[2] * reference.shape[3] <= _KEPT_PIXELS
    features: Features | None = None
    bands = Bands(reference, reference)

    def compare(candidate: Tensor) -> tuple[Differences, Bands]:
        nonlocal features
        if not keep or torch.equal(reference, candidate):  # nothing is computed of what is equal
            return network.compare(reference, candidate), Bands(reference, candidate)
        features = features or network.features(reference)
        return network.differences(features, candidate), bands.against(candidate)

    return compare


@torch.inference_mode()
def score_planes(
    network: GrayLPIPS,
    reference: Image,
    candidate: Image,
    displays: Sequence[Display],
    *,
    stride: int,
    aggregate: str = "p95",
) -> PlanesScore:
    """Measure a volume in all three anatomical planes, every `stride` slices.

    Raises
    ------
    MismatchError
        It is no volume of known spacing.
    """
    scores = []
    for plane, (one, other) in planes(reference, candidate, stride).items():
        scored = score(network, one, other, displays, aggregate=aggregate)
        worst = max(scored.windows, key=lambda window: window.lpips)
        scores.append(
            PlaneScore(plane=plane, lpips=worst.lpips, slices=len(scored.slices), window=worst.name)
        )
    mean = float(np.mean([one.lpips for one in scores]))
    return PlanesScore(planes=tuple(scores), mean=mean, stride=stride)


@torch.inference_mode()
def evidence(
    network: GrayLPIPS,
    reference: Image,
    candidate: Image,
    displays: Sequence[Display],
    scores: Scores,
    regions: Sequence[Region] = (),
    gated: Sequence[str] = (),
) -> tuple[Evidence, ...]:
    """Return the slices to look at: the image's worst, then the worst of regions and measures.

    Parameters
    ----------
    gated
        Companion measures that decide, whose worst slices are to be looked at.
    """
    by_name = {display.name: display for display in displays}
    worst_slices = sorted(scores.slices, key=lambda one: -one.lpips)[:_WORST_SLICES]
    worst_regions = sorted((*scores.components, *scores.annotations), key=lambda one: -one.lpips)[
        :_WORST_REGIONS
    ]
    places = [(one.index, one.window) for one in worst_slices]
    places += [(one.slice, one.window) for one in worst_regions]
    places += [
        (one.slice, one.window)
        for name, one in scores.measures.items()
        if name in gated and one.slice is not None and one.window is not None
    ]
    shown = []
    for index, window in dict.fromkeys(places):
        batch = slice(index, index + 1)
        one, other = by_name[window](*pixels_of(reference, candidate, batch))
        differences = network.compare(one, other)
        bands = Bands(one, other)
        masks = [_union([region], index, reference.shape) for region in regions]
        shown.append(
            Evidence(
                index=index,
                window=window,
                reference=one[0, 0].numpy(),
                candidate=other[0, 0].numpy(),
                distance_map=differences.map()[0, 0].cpu().numpy(),
                edge_map=bands.edge_map[0, 0].numpy(),
                texture_map=bands.texture_map[0, 0].numpy(),
                lpips=float(differences.distance()),
                regions=tuple(
                    (region.kind, region.name, mask)
                    for region, mask in zip(regions, masks, strict=True)
                    if mask.any()
                ),
            )
        )
    return tuple(shown)


def _ahead(
    reference: Image, candidate: Image, displays: Sequence[Display], *, pin: bool
) -> Iterator[tuple[slice, list[_Shown]]]:
    """Read and show the next slices while the last ones are compared."""

    def show(batch: slice) -> tuple[slice, list[_Shown]]:
        one, other = pixels_of(reference, candidate, batch)
        views = [_Shown(display, *display(one, other)) for display in displays]
        if pin:  # an accelerator fetches them while it computes
            views = [
                _Shown(view.display, view.reference.pin_memory(), view.candidate.pin_memory())
                for view in views
            ]
        return batch, views

    step = max(1, _BATCH_PIXELS // (reference.shape[1] * reference.shape[2]))
    count = reference.shape[0]
    with ThreadPoolExecutor(1) as reader:
        coming = None
        for start in range(0, count, step):
            ready, coming = coming, reader.submit(show, slice(start, min(start + step, count)))
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def _measure_score(
    name: str, by_window: Mapping[str, Sequence[float]], aggregate: str
) -> MeasureScore:
    """Aggregate towards the bad end, over the slices where the measure is a finite number."""
    sign = -1.0 if MEASURE_WORDS[name][1] == "higher" else 1.0
    worst: MeasureScore | None = None
    for window, values in by_window.items():
        badness = [(sign * one, index) for index, one in enumerate(values) if math.isfinite(one)]
        if not badness:
            continue
        value = sign * AGGREGATES[aggregate]([one for one, _ in badness])
        if worst is None or worst.value is None or sign * value > sign * worst.value:
            worst = MeasureScore(value, max(badness)[1], window)
    if worst is None and any(math.isinf(one) for values in by_window.values() for one in values):
        return MeasureScore(math.inf)  # the ratio of a signal to no noise
    return worst or MeasureScore(None)


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
        code=region.code,
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
