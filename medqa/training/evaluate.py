"""How closely `gray` follows LPIPS-alex, on sources it never saw, at native resolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.stats import spearmanr

from medqa.lpips import GrayLPIPS
from medqa.training.denoisers import Recipe
from medqa.training.denoisers import train as train_denoiser
from medqa.training.distortions import DENOISERS, FAMILIES, Distortion, noise
from medqa.training.sources import Picture

__all__ = ["Comparison", "compare", "summarise", "table"]

#: Denoisers that `medqa.training.train.RECIPES` does not hold: other widths, losses and seeds.
RECIPES = (
    Recipe(width=20, depth=5, loss="l1", strength=0.7, seed=101),
    Recipe(width=14, depth=4, loss="l2", strength=0.9, seed=102),
    Recipe(width=16, depth=5, loss="edges", strength=0.8, seed=103),
)

_CANDIDATES = 12


@dataclass(frozen=True)
class Comparison:
    """One pair as both networks see it, whole and inside a box of it."""

    source: str
    modality: str
    family: str
    group: int
    alex: float
    gray: float
    alex_region: float
    gray_region: float


def compare(
    gray: GrayLPIPS,
    alex: GrayLPIPS,
    pictures: Sequence[Picture],
    *,
    per_source: int = 6,
    side: int = 512,
    seed: int = 1,
) -> Iterator[Comparison]:
    """Damage pictures of the test split in every family, and denoise them in twelve ways.

    Some pictures of each source, cut to side x side around their middle at native resolution, are
    each damaged by every family at two strengths (group -1), and one noisy copy of each by twelve
    denoisers (its own group number).
    """
    trained: dict[str, Distortion] = {
        f"network {recipe.seed}": train_denoiser(recipe, pictures) for recipe in RECIPES
    }
    denoisers = {**{name: FAMILIES[name] for name in DENOISERS}, **trained}
    for number, picture in enumerate(_chosen(pictures, per_source)):
        rng = np.random.default_rng((seed, number))
        clean = _middle(picture.pixels, side)
        for family, distort in FAMILIES.items():
            for _ in range(2):
                damaged = distort(clean, rng.random(), rng)
                values = _measure(gray, alex, clean, damaged, rng)
                yield Comparison(picture.source, picture.modality, family, -1, *values)
        noisy = np.clip(noise(clean, rng.uniform(0.4, 0.9), rng), 0, 1)
        chosen = rng.choice(list(denoisers), _CANDIDATES)
        for name in chosen:
            denoised = denoisers[str(name)](noisy, rng.random(), rng)
            values = _measure(gray, alex, clean, denoised, rng)
            yield Comparison(picture.source, picture.modality, "denoised", number, *values)


def summarise(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Return the figures of the model card.

    Spearman's rho over all single-family pairs, by modality and by family; the relative error
    ``|gray - alex| / alex``, its median and 95th percentile, also among distances of 0.0005 to
    0.05; the error that `gray` states of itself, the 95th percentile among distances of 0.04 to
    0.4, where limits lie, of images and of boxes of 16 to 64 pixels in them; and the mean rho
    within groups of twelve denoised versions of one noisy image.
    """
    single = [one for one in comparisons if one.group < 0]
    figures = {"pairs": float(len(single)), "spearman": _rho(single)}
    for key in ("modality", "family"):
        for name in sorted({getattr(one, key) for one in single}):
            figures[f"spearman {key} {name}"] = _rho(
                [one for one in single if getattr(one, key) == name]
            )
    groups = sorted({one.group for one in comparisons if one.group >= 0})
    within = [_rho([one for one in comparisons if one.group == group]) for group in groups]
    figures["groups"] = float(len(groups))
    figures["spearman within twelve denoised"] = float(np.mean(within))
    figures["spearman within twelve denoised, lowest"] = float(np.min(within))
    # Below 1e-5 nothing differs that 16 bits can store.
    errors = {one: abs(one.gray - one.alex) / one.alex for one in comparisons if one.alex > 1e-5}
    faint = [error for one, error in errors.items() if 5e-4 <= one.alex <= 0.05]
    for name, values in (("", list(errors.values())), (", alex 0.0005 to 0.05", faint)):
        figures[f"median relative error{name}"] = float(np.median(values))
        figures[f"95th percentile of relative error{name}"] = float(np.percentile(values, 95))
    # What the verdict keeps as a guard band: the error where the limits lie.
    near = [error for one, error in errors.items() if 0.04 <= one.alex <= 0.4]
    figures["stated relative error"] = round(float(np.percentile(near, 95)), 3)
    inside = [
        abs(one.gray_region - one.alex_region) / one.alex_region
        for one in comparisons
        if 0.04 <= one.alex_region <= 0.4
    ]
    figures["stated relative error of regions"] = round(float(np.percentile(inside, 95)), 3)
    return figures


def table(figures: Mapping[str, float]) -> str:
    """Return figures as a Markdown table."""
    rows = [f"| {name.replace('spearman', 'ρ')} | {value:.4g} |" for name, value in figures.items()]
    return "\n".join(["| figure | value |", "|---|---|", *rows, ""])


def _rho(comparisons: Sequence[Comparison]) -> float:
    return float(
        spearmanr([one.alex for one in comparisons], [one.gray for one in comparisons]).statistic
    )


def _measure(
    gray: GrayLPIPS,
    alex: GrayLPIPS,
    clean: NDArray[np.floating],
    damaged: NDArray[np.floating],
    rng: Generator,
) -> tuple[float, float, float, float]:
    """Distances by alex and by gray, of the pair and inside a box where it is damaged most."""
    pair = [torch.from_numpy(np.clip(x, 0, 1)).float()[None, None] for x in (clean, damaged)]
    with torch.inference_mode():
        differences = [network.compare(*pair) for network in (alex, gray)]
        whole = [float(one.distance()) for one in differences]
        maps = [one.map()[0, 0] for one in differences]
    # Around a pixel drawn by its damage: where lesions are masked, damage is what matters.
    damage = (pair[0] - pair[1]).abs().double().numpy().ravel() + 1e-12
    row, column = divmod(int(rng.choice(damage.size, p=damage / damage.sum())), clean.shape[1])
    half = int(rng.integers(8, 33))
    box = tuple(slice(max(0, at - half), at + half) for at in (row, column))
    return whole[0], whole[1], float(maps[0][box].mean()), float(maps[1][box].mean())


def _chosen(pictures: Sequence[Picture], per_source: int) -> list[Picture]:
    """Pick some pictures of each source, evenly spread."""
    by_source = {
        source: [one for one in pictures if one.source == source]
        for source in dict.fromkeys(picture.source for picture in pictures)
    }
    return [
        found[int(index)]
        for found in by_source.values()
        for index in np.unique(np.linspace(0, len(found) - 1, per_source).round())
    ]


def _middle(pixels: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    starts = [max(0, (n - side) // 2) for n in pixels.shape]
    rows, columns = (slice(start, start + side) for start in starts)
    return np.ascontiguousarray(pixels[rows, columns])
