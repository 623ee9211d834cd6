"""The real images that `gray` is trained and tested on, split by source."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from medqa.errors import UsageError
from medqa.reader import read

__all__ = ["Picture", "pictures"]

# A volume's slices are alike: this many, evenly spread, stand for it.
_SLICES = 24


@dataclass(frozen=True)
class Picture:
    """One displayed slice: (rows, columns) float32 in [0, 1]."""

    source: str
    modality: str
    pixels: NDArray[np.float32]


def pictures(data: Path, split: str) -> list[Picture]:
    """Return every displayed slice of the sources of a split, ``train`` or ``test``.

    Raises
    ------
    UsageError
        A source's files are not in the data folder.
    """
    table = tomllib.loads((resources.files(__package__) / "sources.toml").read_text("utf-8"))
    found: list[Picture] = []
    for source in table["source"]:
        if source["split"] != split:
            continue
        files = sorted(path for pattern in source["files"] for path in data.glob(pattern))
        if not files:
            raise UsageError(data, f"holds no {source['files'][0]}", "give the folder of images")
        for path in files:
            for values in _slices(path):
                found += [
                    Picture(source["name"], source["modality"], shown)
                    for shown in _displays(values, source)
                    # Slices of air teach nothing and have no distance worth ranking.
                    if shown.std() > 0.02
                ]
    return found


def _slices(path: Path) -> Iterator[NDArray[np.float32]]:
    if path.suffix in (".png", ".jpg"):
        yield np.asarray(Pillow.open(path).convert("L"), dtype=np.float32)
        return
    pixels = read(path).pixels
    chosen = np.unique(np.linspace(0, len(pixels) - 1, min(_SLICES, len(pixels))).round())
    for index in chosen.astype(int):
        yield pixels[index].astype(np.float32)


def _displays(values: NDArray[np.float32], source: dict[str, Any]) -> Iterator[NDArray[np.float32]]:
    ranges = [source["range"]] if "range" in source else []
    ranges += [
        (centre - width / 2, centre + width / 2) for centre, width in source.get("windows", [])
    ]
    if "percentiles" in source:
        ranges.append(np.percentile(values, source["percentiles"]))
    for low, high in ranges:
        if high > low:
            yield np.clip((values - low) / (high - low), 0, 1).astype(np.float32)
