"""Small trained denoisers, because a network's own damage is not like a filter's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn

from medqa.training.distortions import noise
from medqa.training.sources import Picture

__all__ = ["Denoiser", "Recipe", "train"]


@dataclass(frozen=True)
class Recipe:
    """How one denoiser differs from the next."""

    width: int
    depth: int
    loss: str
    strength: float
    seed: int


class Denoiser:
    """A residual convolutional network, as a function of an image and a strength.

    The strength scales the noise that is taken away, from none (0) to a little too much (1).
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    @torch.inference_mode()
    def __call__(
        self, x: NDArray[np.floating], strength: float, _rng: Generator
    ) -> NDArray[np.floating]:
        """Denoise a (rows, columns) image in [0, 1]."""
        residual = self._network(torch.from_numpy(x).float()[None, None])[0, 0].numpy()
        return np.asarray(x - 1.2 * strength * residual)


def train(recipe: Recipe, pictures: Sequence[Picture], steps: int = 400) -> Denoiser:
    """Train one denoiser on the pictures of a split."""
    rng = np.random.default_rng(recipe.seed)
    torch.manual_seed(recipe.seed)
    layers: list[nn.Module] = [nn.Conv2d(1, recipe.width, 3, padding=1), nn.ReLU()]
    for _ in range(recipe.depth - 2):
        layers += [nn.Conv2d(recipe.width, recipe.width, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Conv2d(recipe.width, 1, 3, padding=1))
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(steps):
        clean = np.stack(
            [_patch(pictures[int(rng.integers(len(pictures)))].pixels, 48, rng) for _ in range(16)]
        )
        noisy = np.stack([noise(one, rng.uniform(0.3, 1) * recipe.strength, rng) for one in clean])
        x, y = (torch.from_numpy(images).float()[:, None] for images in (noisy, clean))
        loss = _loss(recipe.loss, x - network(x), y)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        optimiser.step()
    return Denoiser(network.eval())


def _loss(name: str, output: Tensor, target: Tensor) -> Tensor:
    if name == "l2":
        return F.mse_loss(output, target)
    loss = F.l1_loss(output, target)
    if name == "edges":  # gradients weigh as much as values
        for axis in (2, 3):
            loss = loss + F.l1_loss(output.diff(dim=axis), target.diff(dim=axis))
    return loss


def _patch(pixels: NDArray[np.float32], size: int, rng: Generator) -> NDArray[np.float32]:
    row, column = (int(rng.integers(n - size + 1)) for n in pixels.shape)
    return pixels[row : row + size, column : column + size]
