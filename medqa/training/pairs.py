"""Groups of one reference and twelve candidates, with the teacher's distance maps.

Ranking close candidates of one reference is what users do, so groups are the unit of training:
twelve families at one reference, one family at twelve strengths, twelve denoisers of one noisy
image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndi
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from medqa.lpips import GrayLPIPS
from medqa.training.distortions import DENOISERS, FAMILIES, Distortion, noise
from medqa.training.sources import Picture

__all__ = ["CANDIDATES", "Group", "draw_group", "tap_maps"]

CANDIDATES = 12
_SIDE = 160


@dataclass(frozen=True)
class Group:
    """One reference and its candidates.

    Parameters
    ----------
    reference
        (side, side) uint16, 65535 is white.
    candidates
        (12, side, side) uint16.
    families
        The family of damage of each candidate.
    """

    reference: NDArray[np.uint16]
    candidates: NDArray[np.uint16]
    families: tuple[str, ...]


def draw_group(
    pictures: Sequence[Picture], denoisers: Mapping[str, Distortion], rng: Generator
) -> Group:
    """Draw a patch and damage it twelve times.

    Parameters
    ----------
    denoisers
        Trained ones, beside the filters of `medqa.training.distortions`.
    """
    clean = _reference(pictures, rng)
    kind = rng.choice(["families", "strengths", "denoisers"], p=[0.45, 0.2, 0.35])
    reference, made = clean, []
    if kind == "families":
        chosen = [str(name) for name in rng.choice(list(FAMILIES), CANDIDATES, replace=False)]
        made = [(name, FAMILIES[name](clean, rng.random(), rng)) for name in chosen]
        if rng.random() < 0.3:  # two kinds of damage, one after the other
            made = [
                (
                    name,
                    FAMILIES[str(rng.choice(list(FAMILIES)))](
                        np.clip(x, 0, 1), rng.random() / 2, rng
                    ),
                )
                for name, x in made
            ]
    elif kind == "strengths":
        name = str(rng.choice(list(FAMILIES)))
        made = [(name, FAMILIES[name](clean, rng.random(), rng)) for _ in range(CANDIDATES)]
    else:
        noisy = np.clip(noise(clean, rng.uniform(0.3, 0.95), rng), 0, 1)
        if rng.random() < 0.3:  # no clean image is at hand: the noisy one is the reference
            reference = noisy
        functions = {**{name: FAMILIES[name] for name in DENOISERS}, **denoisers}
        for _ in range(CANDIDATES):
            name = str(rng.choice(list(functions)))
            made.append((name, functions[name](noisy, rng.random(), rng)))
    return Group(
        _stored(reference), np.stack([_stored(x) for _, x in made]), tuple(n for n, _ in made)
    )


def tap_maps(network: GrayLPIPS, reference: Tensor, candidates: Tensor) -> list[Tensor]:
    """Return the maps of every tap before upsampling.

    Parameters
    ----------
    reference
        (G, H, W) in [0, 1].
    candidates
        (G, K, H, W) in [0, 1].

    Returns
    -------
    Per tap (G, K, h, w).
    """
    groups, count, rows, columns = candidates.shape
    images = torch.cat([reference[:, None], candidates], dim=1).view(-1, 1, rows, columns)
    maps = []
    for tap, head in zip(network.encode(images), network.heads, strict=True):
        both = tap.view(groups, count + 1, *tap.shape[1:])  # (G, 1 + K, C, h, w)
        squared = (both[:, 1:] - both[:, :1]).square()
        maps.append(torch.einsum("gkchw,c->gkhw", squared, head))
    return maps


def _reference(pictures: Sequence[Picture], rng: Generator) -> NDArray[np.float32]:
    """Draw a patch that is not air, flipped, sometimes zoomed or under another tone curve."""
    # By modality first, so that long series do not drown single images.
    modalities = sorted({picture.modality for picture in pictures})
    modality = modalities[rng.choice(len(modalities), p=_SHARES[: len(modalities)])]
    of_modality = [picture for picture in pictures if picture.modality == modality]
    sources = sorted({picture.source for picture in of_modality})
    source = sources[rng.integers(len(sources))]
    of_source = [picture for picture in of_modality if picture.source == source]
    for _ in range(20):
        pixels = of_source[rng.integers(len(of_source))].pixels
        if rng.random() < 0.3 or min(pixels.shape) < _SIDE:
            factor = max(float(np.exp(rng.uniform(-0.7, 0.5))), (_SIDE + 1) / min(pixels.shape))
            pixels = np.clip(ndi.zoom(pixels, factor, order=1), 0, 1)
        row, column = (int(rng.integers(n - _SIDE + 1)) for n in pixels.shape)
        patch = pixels[row : row + _SIDE, column : column + _SIDE]
        if patch.std() > 0.03:
            break
    patch = np.rot90(patch, int(rng.integers(4)))
    patch = patch[:, ::-1] if rng.random() < 0.5 else patch
    if rng.random() < 0.2:
        patch = patch ** np.float32(np.exp(rng.uniform(-0.5, 0.5)))
    return np.ascontiguousarray(patch)


# Of CT, MR, NM, US, XR in alphabetical order.
_SHARES = (0.3, 0.3, 0.04, 0.14, 0.22)


def _stored(x: NDArray[np.floating]) -> NDArray[np.uint16]:
    return np.round(np.clip(x, 0, 1) * 65535).astype(np.uint16)
