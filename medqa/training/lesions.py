"""Whether the score inside a mask sees that a small lesion was erased, or invented.

A lesion is added to a real picture, and both are processed alike. With the lesion as reference,
the processed picture without it has lost it (*removed*), and the one with it has not; without the
lesion as reference, the processed picture with it has invented it (*inserted*). The area under the
ROC curve (AUC) of a score is how often a damaged pair scores above an untouched one: 1 always,
0.5 as often as a coin would.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy.ndimage as ndi
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from medqa import thresholds
from medqa.errors import UsageError
from medqa.lpips import GrayLPIPS
from medqa.metrics.bands import Bands
from medqa.training.distortions import FAMILIES
from medqa.training.sources import Picture

__all__ = [
    "AREAS",
    "CONTRASTS",
    "Lesion",
    "Trial",
    "Wins",
    "draw_lesion",
    "report",
    "trials",
    "update",
    "wins",
]

#: Areas of the lesions, as shares of the picture.
AREAS = (0.0005, 0.002, 0.01)
#: Their contrasts, as shares of the display's range; darker as often as brighter.
CONTRASTS = (0.02, 0.04, 0.08)

#: Families of mild processing: what it is drawn from, and between which strengths.
_PROCESSES: Mapping[str, tuple[tuple[str, ...], float, float]] = {
    "JPEG 2000": (("jpeg2000",), 0.0, 0.2),
    "denoising": (("nlm", "total_variation", "wavelet"), 0.1, 0.35),
    "blur": (("blur",), 0.1, 0.4),
    "noise": (("white_noise",), 0.2, 0.45),
}

# Anatomy, as in `medqa.metrics.bands`: where the smoothed picture is not black.
_BODY_SIGMA = 4.0
_BODY_LEVEL = 0.08
# Full contrast up to 0.7 of the radius, half at the radius, none from 1.3.
_EDGE = 0.3

_MARKERS = "<!-- lesions: begin -->", "<!-- lesions: end -->"
_RESAMPLES = 2000
# A bootstrap over fewer pictures says nothing.
_FEWEST_PICTURES = 5

Array = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Lesion:
    """A soft-edged ellipse.

    Parameters
    ----------
    contrast
        Of its middle, in shares of the display's range; negative is darker.
    weight
        (rows, columns) in [0, 1]: the share of the contrast that each pixel takes.
    """

    contrast: float
    weight: Array

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(rows, columns): where at least half the contrast is."""
        return self.weight >= 0.5

    def into(self, image: Array) -> Array:
        """Return an image with the lesion in it."""
        return image + self.contrast * self.weight


@dataclass(frozen=True)
class Trial:
    """One lesion in one scenario: the scores of the damaged pair and of the untouched one.

    Parameters
    ----------
    picture
        Which picture it lies in, by the place in the list.
    scenario
        ``removed`` or ``inserted``.
    damaged, untouched
        By the name of the score. All rise with the damage. NaN where a score is undefined.
    """

    picture: int
    modality: str
    process: str
    scenario: str
    area: float
    contrast: float
    damaged: Mapping[str, float]
    untouched: Mapping[str, float]


def draw_lesion(image: Array, area: float, contrast: float, rng: Generator) -> Lesion | None:
    """Draw an ellipse, where the anatomy has room for it and its contrast does not saturate.

    Parameters
    ----------
    image
        (rows, columns) in [0, 1].
    area
        Of its mask, as a share of the image.
    contrast
        In shares of the display's range; the sign is drawn.

    Returns
    -------
    None where there is no such place.
    """
    radius = np.sqrt(area * image.size / np.pi)
    stretch, angle = np.exp(rng.uniform(-0.3, 0.3)), rng.uniform(0, np.pi)
    half = int(np.ceil((1 + _EDGE) * radius * max(stretch, 1 / stretch)))
    # Over the square that holds it; what lies outside the image is no place for it.
    size = {"size": 2 * half + 1, "mode": "constant"}
    room = ndi.minimum_filter(_body(image).astype(np.uint8), **size) > 0
    low = ndi.minimum_filter(image, **size)
    high = ndi.maximum_filter(image, **size)
    for signed in contrast * rng.permutation([-1.0, 1.0]):
        places = np.argwhere(room & (low + min(signed, 0) >= 0) & (high + max(signed, 0) <= 1))
        if len(places):
            row, column = places[rng.integers(len(places))]
            rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
            along = (rows - row) * np.sin(angle) + (columns - column) * np.cos(angle)
            across = (rows - row) * np.cos(angle) - (columns - column) * np.sin(angle)
            distance = np.hypot(along / stretch, across * stretch) / radius
            return Lesion(float(signed), np.clip((1 + _EDGE - distance) / (2 * _EDGE), 0, 1))
    return None


def trials(
    networks: Mapping[str, GrayLPIPS],
    pictures: Sequence[Picture],
    *,
    visits: int = 6,
    side: int = 256,
    seed: int = 0,
) -> Iterator[Trial]:
    """Visit pictures, put lesions of every area and contrast there one by one, and score them.

    Each modality is visited as often under each process. Its sources take turns; the picture is
    drawn, and so is the place, where side x side pixels are cut out at native resolution.
    """
    modalities = sorted({picture.modality for picture in pictures})
    kinds = itertools.product(enumerate(modalities), enumerate(_PROCESSES), range(visits))
    for (which, modality), (turn, process), visit in kinds:
        rng = np.random.default_rng((seed, which, turn, visit))
        of_modality = [at for at, one in enumerate(pictures) if one.modality == modality]
        sources = sorted({pictures[at].source for at in of_modality})
        source = sources[(turn * visits + visit) % len(sources)]
        at = int(rng.choice([at for at in of_modality if pictures[at].source == source]))
        clean = _cut(pictures[at].pixels, side, rng)
        processed = _processing(process, rng)
        drawn = [
            (area, contrast, lesion)
            for area in AREAS
            for contrast in CONTRASTS
            if (lesion := draw_lesion(clean, area, contrast, rng))
        ]
        if not drawn:
            continue
        scores = _scores(networks, clean, [lesion for _, _, lesion in drawn], processed)
        for scenario, (damaged, untouched) in scores.items():
            for number, (area, contrast, _) in enumerate(drawn):
                yield Trial(
                    at,
                    modality,
                    process,
                    scenario,
                    area,
                    contrast,
                    {name: float(values[number]) for name, values in damaged.items()},
                    {name: float(values[number]) for name, values in untouched.items()},
                )


def _body(image: Array) -> NDArray[np.bool_]:
    return ndi.gaussian_filter(image, _BODY_SIGMA) > _BODY_LEVEL


def _cut(pixels: NDArray[np.float32], side: int, rng: Generator) -> Array:
    """Cut a square out around a pixel of the anatomy; a smaller picture is taken whole."""
    places = np.argwhere(_body(pixels))
    starts = [
        min(max(0, at - side // 2), max(0, size - side))
        for at, size in zip(places[rng.integers(len(places))], pixels.shape, strict=True)
    ]
    rows, columns = (slice(start, start + side) for start in starts)
    return pixels[rows, columns].astype(np.float64)


def _processing(process: str, rng: Generator) -> Callable[[Array], Array]:
    """Draw one processing that does the same, noise included, to every image."""
    families, gentle, strong = _PROCESSES[process]
    distort = FAMILIES[str(rng.choice(families))]
    strength, seed = rng.uniform(gentle, strong), int(rng.integers(2**32))
    return lambda x: np.clip(distort(x, strength, np.random.default_rng(seed)), 0, 1)


_Scores = dict[str, Tensor]


@torch.inference_mode()
def _scores(
    networks: Mapping[str, GrayLPIPS],
    image: Array,
    lesions: Sequence[Lesion],
    process: Callable[[Array], Array],
) -> dict[str, tuple[_Scores, _Scores]]:
    """Score the damaged and the untouched pairs of either scenario; (n,) for n lesions."""
    diseased = [lesion.into(image) for lesion in lesions]
    healthy, healthy_copy, sick, sick_copy = (
        torch.from_numpy(np.stack(images))[:, None].float().clamp(0, 1)
        for images in ([image], [process(image)], diseased, [process(one) for one in diseased])
    )
    masks = torch.from_numpy(np.stack([lesion.mask for lesion in lesions]))[:, None]
    pairs = {
        "removed": ((sick, healthy_copy), (sick, sick_copy)),
        "inserted": ((healthy, sick_copy), (healthy, healthy_copy)),
    }
    found = {
        scenario: [
            _simple(reference.expand_as(sick), candidate.expand_as(sick), masks)
            for reference, candidate in both
        ]
        for scenario, both in pairs.items()
    }
    for name, network in networks.items():
        copies = torch.cat([healthy_copy, sick_copy])
        of_healthy = network.differences(network.features(healthy), copies).map()
        # A distance is the same both ways: what serves all lesions is encoded once.
        lost = network.differences(network.features(healthy_copy), sick).map()
        kept = network.compare(sick, sick_copy).map()
        maps = {"removed": (lost, kept), "inserted": (of_healthy[1:], of_healthy[:1])}
        for scenario, both in maps.items():
            for scores, one in zip(found[scenario], both, strict=True):
                scores[name] = _inside(one, masks)
    return {scenario: (damaged, untouched) for scenario, (damaged, untouched) in found.items()}


def _simple(reference: Tensor, candidate: Tensor, masks: Tensor) -> _Scores:
    """Return what needs no network."""
    difference = candidate - reference
    bands = Bands(reference, candidate, mask=masks)
    return {
        "mean change": _inside(difference, masks).abs(),
        "absolute change": _inside(difference.abs(), masks),
        "edges lost": 1 - bands.edge_fidelity,
        "texture lost": 1 - bands.texture_fidelity,
    }


def _inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Means of (n, 1, h, w) maps, or of one map, inside n masks."""
    return (maps * masks).sum(dim=(1, 2, 3)) / masks.sum(dim=(1, 2, 3))


@dataclass(frozen=True, eq=False)
class Wins:
    """How often damaged pairs of one picture score above untouched ones of another.

    Parameters
    ----------
    won, compared
        (pictures, pictures): the comparisons won, a draw as half, and all of them.
    """

    won: Array
    compared: Array

    @property
    def auc(self) -> float:
        """The area under the ROC curve; NaN without a comparison."""
        if not self.compared.any():
            return float("nan")
        return float(self.won.sum() / self.compared.sum())

    def resampled(self, draws: Array) -> Array:
        """Return the AUC of samples of the pictures.

        Parameters
        ----------
        draws
            (samples, pictures): how often each picture is in each sample. Its copies are not
            compared with each other: they are alike, which would raise the AUC.
        """
        twins = draws * (draws - 1)
        won, compared = (
            np.einsum("sp,pq,sq->s", draws, one, draws, optimize=True) - twins @ one.diagonal()
            for one in (self.won, self.compared)
        )
        return won / compared


def wins(of: Sequence[Trial], score: str) -> Wins:
    """Compare the damaged pairs with the untouched ones of their modality, process and scenario.

    Trials whose score is undefined are left out.
    """
    number = {picture: at for at, picture in enumerate(sorted({one.picture for one in of}))}
    won, compared = np.zeros((2, len(number), len(number)))
    strata = itertools.groupby(sorted(of, key=_stratum), key=_stratum)
    for _, grouped in strata:
        stratum = list(grouped)
        damaged = np.array([one.damaged[score] for one in stratum])
        untouched = np.array([one.untouched[score] for one in stratum])
        defined = np.isfinite(damaged) & np.isfinite(untouched)
        damaged, untouched = damaged[defined, None], untouched[None, defined]
        pictures = np.array([number[one.picture] for one in stratum])[defined]
        into = np.ix_(pictures, pictures)
        np.add.at(won, into, (damaged > untouched) + 0.5 * (damaged == untouched))
        np.add.at(compared, into, 1)
    return Wins(won, compared)


def _stratum(trial: Trial) -> tuple[str, str, str]:
    return trial.modality, trial.process, trial.scenario


def report(of: Sequence[Trial]) -> str:
    """Return the tables of `docs/lesions.md`.

    AUCs with 95 % intervals by a bootstrap over pictures, which draws the same pictures for both
    networks; and the shares of pairs beyond the pathology limit of the shipped profiles.
    """
    size = _grouped(of, lambda one: f"{one.contrast:.0%}, {one.area:.2%}")
    return "\n".join(
        (
            *_table("lesions", {"all": of, **_grouped(of, lambda one: one.scenario)}),
            *_table("modality", _grouped(of, lambda one: one.modality)),
            *_table("processing", _grouped(of, lambda one: one.process)),
            *_table("contrast, area", size),
            *_table(
                "modality, processing", _grouped(of, lambda one: f"{one.modality}, {one.process}")
            ),
            *_beyond(size),
        )
    )


def update(page: str, tables: str) -> str:
    """Return a page with its tables, which stand between two markers, replaced.

    Raises
    ------
    UsageError
        The page has no markers.
    """
    before, begin, rest = page.partition(_MARKERS[0])
    _, end, after = rest.partition(_MARKERS[1])
    if not begin or not end:
        raise UsageError("page", "has no place for the tables", f"write {' and '.join(_MARKERS)}")
    return f"{before}{begin}\n\n{tables}\n{end}{after}"


def _grouped(of: Sequence[Trial], key: Callable[[Trial], str]) -> dict[str, list[Trial]]:
    groups: dict[str, list[Trial]] = {}
    for one in of:
        groups.setdefault(key(one), []).append(one)
    return groups


_SIMPLE = ("mean change", "absolute change", "edges lost", "texture lost")
_KINDS = ("damaged", "untouched")


def _table(title: str, groups: Mapping[str, Sequence[Trial]]) -> Iterator[str]:
    """Rows of AUCs, one for each group."""
    networks = ("gray", "alex", "gray − alex", "gray, one picture")
    titles = (title, "pairs", "pictures", *networks, *_SIMPLE)
    yield from _head(titles)
    for name, some in groups.items():
        gray, alex = (wins(some, network) for network in ("gray", "alex"))
        pictures = len(gray.won)
        # The same draws in every table.
        rng = np.random.default_rng(0)
        draws = rng.multinomial(pictures, np.full(pictures, 1 / pictures), _RESAMPLES).astype(float)
        sampled = [one.resampled(draws) for one in (gray, alex)]
        yield _row(
            name,
            len(some),
            pictures,
            _interval(gray.auc, sampled[0], pictures),
            _interval(alex.auc, sampled[1], pictures),
            _interval(gray.auc - alex.auc, sampled[0] - sampled[1], pictures, "+z.3f"),
            f"{np.mean([one.damaged['gray'] > one.untouched['gray'] for one in some]):.0%}",
            *(_figure(wins(some, score).auc) for score in _SIMPLE),
        )
    yield ""


def _beyond(groups: Mapping[str, Sequence[Trial]]) -> Iterator[str]:
    """Rows of shares of pairs beyond the shipped limits."""
    columns = [f"{network} {kind}" for network in ("gray", "alex") for kind in _KINDS]
    yield from _head(("contrast, area", "pairs", *columns))
    for name, some in groups.items():
        shares = [
            np.mean([getattr(one, kind)[network] > _limit(one.modality) for one in some])
            for network in ("gray", "alex")
            for kind in _KINDS
        ]
        yield _row(name, len(some), *(f"{share:.0%}" for share in shares))
    yield ""


@cache
def _limit(modality: str) -> float:
    # The sources call all projection radiography XR, which is no DICOM modality.
    profile = thresholds.choose({"XR": "DX"}.get(modality, modality))
    return profile.limits.pathology.value


def _head(titles: Sequence[str]) -> Iterator[str]:
    yield _row(*titles)
    yield "|---|" + "---:|" * (len(titles) - 1)


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _interval(value: float, sampled: Array, pictures: int, form: str = ".2f") -> str:
    if pictures < _FEWEST_PICTURES:
        return _figure(value, form)
    low, high = (_figure(float(end), form) for end in np.percentile(sampled, [2.5, 97.5]))
    return f"{_figure(value, form)} ({low} to {high})"


def _figure(value: float, form: str = ".2f") -> str:
    return "–" if np.isnan(value) else format(value, form).replace("-", "−")
