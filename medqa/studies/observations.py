"""Preferences as a network sees them: how much every channel adds to each candidate's distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medqa.image import Image
from medqa.lpips import SMALLEST_SIDE, GrayLPIPS
from medqa.reader import read
from medqa.studies.preferences import Preference, Preferences
from medqa.thresholds import Profile, check_modality
from medqa.transforms import Display, check_pixels, displays, match, pixels_of

__all__ = ["Observations", "channel_terms", "observe"]


@dataclass(frozen=True, eq=False)
class Observations:
    """Judged pairs of candidates, one row each.

    Parameters
    ----------
    a, b
        (pairs, channels) float32, at least 0: what each channel of every tap, the taps one after
        another, adds to the distance of the candidate. A row's sum is the distance.
    channels
        Channels of each tap.
    share
        (pairs,) share of choices that fell on `a`, in [0, 1].
    weight
        (pairs,) how much each counts.
    cluster
        (pairs,) of one number where they are not independent: of one patient, or one reference.
    clustered
        Whether patients were told apart.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    channels: tuple[int, ...]
    share: NDArray[np.float64]
    weight: NDArray[np.float64]
    cluster: NDArray[np.intp]
    clustered: bool = True

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.share)

    def taken(self, rows: NDArray[np.intp]) -> Observations:
        """Return some of the pairs."""
        return Observations(
            self.a[rows],
            self.b[rows],
            self.channels,
            self.share[rows],
            self.weight[rows],
            self.cluster[rows],
            self.clustered,
        )


def observe(
    network: GrayLPIPS,
    preferences: Preferences,
    profile: Profile,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> Observations:
    """Read every judged image once, and measure it.

    A distance is the mean over slices and the profile's displays, because that of a preference has
    to be linear in the weights: not the worst of them, as in a verdict.

    Parameters
    ----------
    network
        In float32. The features of one slice are kept whole: no image goes through in tiles.
    profile
        Whose displays the readers looked at; its limits are not used.
    progress
        Called with the references done and their number.

    Raises
    ------
    NotAssessableError
        An image cannot be read or compared.
    ProfileError
        The profile is for another modality.
    """
    by_reference: dict[Path, list[Preference]] = {}
    for pair in preferences.pairs:
        by_reference.setdefault(pair.reference, []).append(pair)
    measured: dict[tuple[Path, Path], NDArray[np.float32]] = {}
    pixels: dict[Path, str] = {}
    for done, (path, pairs) in enumerate(by_reference.items(), start=1):
        reference = read(str(path))
        pixels[path] = reference.pixels_sha256
        check_modality(profile, reference.modality)
        check_pixels(reference, SMALLEST_SIDE)
        shown = displays(profile, reference)
        for candidate in dict.fromkeys(one for pair in pairs for one in (pair.a, pair.b)):
            image = read(str(candidate))
            check_pixels(image, SMALLEST_SIDE)
            moved = match(reference, image, resample=profile.geometry.resample)
            measured[path, candidate] = _measured(network, reference, moved, shown)
        progress(done, len(by_reference))
    # Two files that hold one image are one reference.
    whose = [pair.patient or pixels[pair.reference] for pair in preferences.pairs]
    number = {one: index for index, one in enumerate(dict.fromkeys(whose))}
    return Observations(
        a=np.stack([measured[pair.reference, pair.a] for pair in preferences.pairs]),
        b=np.stack([measured[pair.reference, pair.b] for pair in preferences.pairs]),
        channels=tuple(len(head) for head in network.weights.heads),
        share=np.array([pair.share for pair in preferences.pairs]),
        weight=np.array([pair.weight for pair in preferences.pairs]),
        cluster=np.array([number[one] for one in whose]),
        clustered=preferences.clustered,
    )


def _measured(
    network: GrayLPIPS, reference: Image, candidate: Image, shown: Sequence[Display]
) -> NDArray[np.float32]:
    """(channels,) of one candidate: mean over slices and displays."""
    total = np.zeros(sum(len(head) for head in network.weights.heads))
    count = reference.shape[0]
    for index in range(count):
        pixels = pixels_of(reference, candidate, slice(index, index + 1))
        for display in shown:
            total += channel_terms(network, *display(*pixels))[0]
    return (total / (count * len(shown))).astype(np.float32)


@torch.inference_mode()
def channel_terms(
    network: GrayLPIPS, reference: torch.Tensor, candidate: torch.Tensor
) -> NDArray[np.float32]:
    """Return what each channel adds to the distances of two batches.

    Parameters
    ----------
    reference, candidate
        (N, 1, H, W) in [0, 1].

    Returns
    -------
    (N, channels), at least 0: weight times the spatial mean of the squared difference of the
    unit-normalised features, the taps one after another. The sum over channels is the distance.

    Raises
    ------
    PixelError
        As `GrayLPIPS.forward`.
    """
    taps = zip(
        network.features(reference).kept,
        network.features(candidate).kept,
        network.heads,
        strict=True,
    )
    terms = [head * (one - other).square().mean(dim=(2, 3)) for one, other, head in taps]
    found: NDArray[np.float32] = torch.cat(terms, dim=1).cpu().numpy()
    return found
