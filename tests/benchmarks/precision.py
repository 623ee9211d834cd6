"""Error of the distance in reduced precision, on real images in JPEG 2000.

``python tests/benchmarks/precision.py [--write docs/performance.md]``. The images lie in
``shared/data`` beside the project: of every source that `gray` is tested on, slices evenly spread.
`MEDQA_WEIGHTS` names the folder of the official trunks.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import torch
from machine import heading
from rich.progress import track
from tables import Table, publish
from torch import Tensor

from medqa.lpips import GrayLPIPS
from medqa.training.sources import pictures

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

_NETWORKS = ("gray", "alex", "squeeze")
_LEVELS = (30, 40, 50, 60, 70)  # PSNR in dB that the encoder aims at
_SIDE = 512
_BITS = 12
_RANGES = ((0, 1e-4), (1e-4, 5e-4), (5e-4, 5e-3), (5e-3, 5e-2), (5e-2, 2))

Distance = Callable[[Tensor, Tensor], Tensor]


def pairs(per_source: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield real slices, (1, 1, rows, columns) in [0, 1], each with itself decoded."""
    sources = defaultdict(list)
    for picture in pictures(DATA, "test"):
        sources[picture.source].append(picture.pixels)
    top = 2**_BITS - 1
    for found in sources.values():
        for at in np.unique(np.linspace(0, len(found) - 1, per_source).round().astype(int)):
            pixels = _centre((top * found[at]).round().astype(np.uint16))
            for level in _LEVELS:
                coded = imagecodecs.jpeg2k_encode(pixels, level=level, bitspersample=_BITS)
                decoded = imagecodecs.jpeg2k_decode(coded)
                one, other = (
                    torch.from_numpy(image.astype(np.float32) / top)[None, None].clamp(0, 1)
                    for image in (pixels, decoded)
                )
                yield one, other


def _centre(pixels: np.ndarray) -> np.ndarray:
    starts = [max(0, (n - _SIDE) // 2) for n in pixels.shape]
    rows, columns = (slice(start, start + _SIDE) for start in starts)
    return pixels[rows, columns]


def each_by_itself(network: GrayLPIPS) -> Distance:
    """Run a network of reduced precision on both images; compare their features in float32."""

    def taps(images: Tensor) -> Iterator[Tensor]:
        for stage in network.stages:
            images = stage(images)
            tap = images.float()
            yield tap / (torch.linalg.vector_norm(tap, dim=1, keepdim=True) + 1e-10)

    def distance(one: Tensor, other: Tensor) -> Tensor:
        squares = ((a - b).square() for a, b in zip(taps(one), taps(other), strict=True))
        means = [
            (square * head.float().view(-1, 1, 1)).sum(dim=1).mean()
            for square, head in zip(squares, network.heads, strict=True)
        ]
        return torch.stack(means).sum()

    return distance


def errors(backbone: str, images: Sequence[tuple[Tensor, Tensor]]) -> Iterator[list[str]]:
    """Yield a row of the table for each range of distances."""
    exact = GrayLPIPS(backbone).double()
    low = GrayLPIPS(backbone, precision="bfloat16")
    ways: dict[str, Distance] = {
        "bfloat16, each image by itself": each_by_itself(low),
        "bfloat16": low,
        "float16": GrayLPIPS(backbone, precision="float16"),
        "float32": GrayLPIPS(backbone),
    }
    truth = []
    found: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for one, other in track(images, backbone, transient=True):
            true = float(exact(one.double(), other.double()))
            if true == 0:  # decoded without a loss
                continue
            truth.append(true)
            for name, way in ways.items():
                found[name].append(abs(float(way(one, other)) / true - 1))
    for start, end in _RANGES:
        inside = [index for index, true in enumerate(truth) if start <= true < end]
        if not inside:
            continue
        cells = []
        for values in found.values():
            chosen = np.array(values)[inside]
            cells.append(f"{_percent(chosen.mean())} / {_percent(chosen.max())}")
        yield [backbone, f"{start:g} to {end:g}", str(len(inside)), *cells]


def _percent(error: float) -> str:
    return f"{100 * error:.2g} %" if error < 1 else f"{100 * error:.0f} %"


_HEADER = (
    "network",
    "distance",
    "pairs",
    "bfloat16, each image by itself",
    "bfloat16",
    "float16",
    "float32",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=_NETWORKS, choices=_NETWORKS)
    parser.add_argument("--per-source", type=int, default=3)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    given = parser.parse_args()
    images = list(pairs(given.per_source))
    rows = [row for backbone in given.backbones for row in errors(backbone, images)]
    title = (
        "Relative error of the distance against float64, mean / greatest: "
        f"JPEG 2000 at {', '.join(map(str, _LEVELS))} dB"
    )
    publish(
        "precision",
        heading("Real images.", torch.get_num_threads(), "torch", "imagecodecs", "medqa"),
        [Table(title, _HEADER, rows)],
        given.write,
    )


if __name__ == "__main__":
    main()
