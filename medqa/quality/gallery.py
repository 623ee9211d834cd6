"""Reference galleries: what images of a study type usually look like to the network.

Of each reference the features are kept, not the pixels: for every channel of every tap, mean and
standard deviation over the image. The distance of two images is

    Σ over taps and channels of  w · ((mean − mean')² + (std − std')²),

with w the weights of the LPIPS head. Where features lie in the image is lost: that makes two
different patients comparable, and it is why this is *not* LPIPS. It is never larger than the LPIPS
distance of the same two images (E(f − g)² ≥ (E f − E g)² + (σf − σg)²), mostly far smaller. It is
0 for images that have the same features, whatever their arrangement.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from scipy.spatial.distance import cdist, pdist, squareform
from torch import Tensor

from medqa.audit.files import data_folder
from medqa.errors import UsageError
from medqa.files import write_file
from medqa.lpips import SMALLEST_SIDE, GrayLPIPS
from medqa.reader import read
from medqa.thresholds import choose, load
from medqa.transforms import check_pixels, displays, pixels_of
from medqa.weights import Weights, digest

__all__ = [
    "FEWEST",
    "TEXTBOOK_LIMIT",
    "Comparison",
    "Embedding",
    "Gallery",
    "add",
    "compare",
    "default_folder",
    "default_network",
    "distances",
    "embed",
    "load_all",
    "pool",
]

#: Acceptable until a gallery has a limit of its own. It was meant for LPIPS, so it stops only what
#: is grossly wrong.
TEXTBOOK_LIMIT = 0.3
#: References that a gallery needs for a limit of its own: of fewer, no 95th percentile is known.
FEWEST = 20
_PERCENTILE = 95
# Slices of a volume, evenly spaced, that stand for all of it.
_SLICES = 9
_FORMAT, _TENSOR = "1", "features"


@dataclass(frozen=True, eq=False)
class Embedding:
    """Features of an image.

    Parameters
    ----------
    values
        (D,) float32; the squared Euclidean distance of two is the distance of the images.
    display
        How the image was shown to the network.
    network
        Name, version and digest of the network.
    pixels_sha256
        Of the image.
    """

    values: NDArray[np.float32]
    display: str
    network: str
    pixels_sha256: str


@dataclass(frozen=True, eq=False)
class Gallery:
    """References of a study type, all by one network.

    Parameters
    ----------
    embeddings
        (N, D) float32.
    displays
        How the references were shown.
    limit
        95th percentile of the references' distances to the nearest other one; None of fewer than
        `FEWEST` references. Of images like the references, about 5 % lie beyond it.
    """

    study_type: str
    network: str
    displays: tuple[str, ...]
    embeddings: NDArray[np.float32]
    pixels_sha256: tuple[str, ...]
    limit: float | None


@dataclass(frozen=True)
class Comparison:
    """An image beside a gallery; 0 is identical to a reference, lower is nearer.

    Parameters
    ----------
    nearest, mean
        Distance to the nearest reference, and mean distance to all.
    limit, limit_source
        What `nearest` is held against, and where that comes from.
    within
        Whether `nearest` is at most the limit.
    note
        What to know about it; empty where there is nothing.
    """

    study_type: str
    references: int
    nearest: float
    mean: float
    limit: float
    limit_source: str
    within: bool
    note: str


def default_folder() -> Path:
    """Folder of the galleries in the user's data folder."""
    return data_folder() / "gallery"


def default_network() -> GrayLPIPS:
    """Return the network that ships with medqa."""
    return GrayLPIPS("gray")


def embed(path: str | Path, network: GrayLPIPS, profile: str | None = None) -> Embedding:
    """Features of an image in a file.

    Parameters
    ----------
    profile
        Whose first display is used; None takes the one for the image's modality and body part.

    Raises
    ------
    ReadError, PixelError
        It cannot be read, or nothing could be seen on it.
    UsageError
        There is no such profile, or none for the image.
    """
    image = read(path)
    check_pixels(image, SMALLEST_SIDE)
    rules = load(profile) if profile else choose(image.modality, "routine", image.body_part)
    display = displays(rules, image)[0]
    count = image.shape[0]
    chosen = np.unique(np.linspace(0, count - 1, min(count, _SLICES)).round().astype(int))
    shown = (display(*pixels_of(image, image, slice(i, i + 1)))[0] for i in map(int, chosen))
    return Embedding(
        values=pool([network.features(one).kept for one in shown], list(network.heads)),
        display=f"{rules.name}, {display.name}",
        network=_words(network.weights),
        pixels_sha256=image.pixels_sha256,
    )


def pool(slices: Sequence[Sequence[Tensor]], heads: Sequence[Tensor]) -> NDArray[np.float32]:
    """Mean and standard deviation of each channel, times the root of its weight.

    Parameters
    ----------
    slices
        Of each slice the taps, (1, C, h, w) of unit vectors, as `GrayLPIPS.features` keeps them.
    heads
        Of each tap the (C,) weights.

    Returns
    -------
    (D,) float32, D twice the number of channels of all taps.
    """
    parts = []
    for maps, head in zip(zip(*slices, strict=True), heads, strict=True):
        # (slices, C): every slice has as many positions, so means of means are means
        means = torch.stack([one.double().mean(dim=(0, 2, 3)) for one in maps])
        squares = torch.stack([one.double().square().mean(dim=(0, 2, 3)) for one in maps])
        mean = means.mean(dim=0)
        deviation = (squares.mean(dim=0) - mean.square()).clamp_min(0).sqrt()
        parts += [head.sqrt() * mean, head.sqrt() * deviation]
    values: NDArray[np.float32] = torch.cat(parts).float().cpu().numpy()
    return values


def add(folder: Path, study_type: str, embedding: Embedding) -> bool:
    """Keep an image's features as a reference; False where the same image is there already.

    Each reference is a file of its own, which appears whole or not at all, so that several
    processes may add.

    Raises
    ------
    UsageError
        The study type is blank, the gallery is of another network, or it cannot be written.
    """
    name = " ".join(study_type.split())
    if not name or not name.isprintable():
        raise UsageError("study type", "is blank", "name one, such as CT CHEST")
    place = folder / _slug(name)
    if found := next(iter(sorted(place.glob("*.safetensors"))), None):
        _same_network(name, _load(found)[1].network, embedding.network)
    file = place / f"{embedding.pixels_sha256}.safetensors"
    if file.exists():
        return False
    tensor = torch.from_numpy(embedding.values)
    content = save(
        {_TENSOR: tensor},
        {
            "format": _FORMAT,
            "study_type": name,
            "network": embedding.network,
            "display": embedding.display,
            "pixels_sha256": embedding.pixels_sha256,
            "sha256": digest([tensor]),
        },
    )
    write_file(file, content)
    return True


def load_all(folder: Path, study_type: str | None = None) -> tuple[Gallery, ...]:
    """Galleries of a folder by name; of one study type, only that one.

    Raises
    ------
    UsageError
        There is none, or a reference is damaged or of another network than the others.
    """
    places = sorted(place for place in folder.glob("*") if place.is_dir())
    if study_type is not None:
        places = [folder / _slug(" ".join(study_type.split()))]
    found = [
        _gallery([_load(file) for file in files])
        for place in places
        if (files := sorted(place.glob("*.safetensors")))
    ]
    if not found:
        what = study_type or folder
        raise UsageError(what, "has no reference gallery", "add images with medqa gallery add")
    return tuple(sorted(found, key=lambda one: one.study_type))


def compare(gallery: Gallery, embedding: Embedding) -> Comparison:
    """Hold an image against the references of a gallery.

    The image itself, where it is among them, is left out.

    Raises
    ------
    UsageError
        It was embedded by another network, or the gallery holds nothing else than it.
    """
    _same_network(gallery.study_type, gallery.network, embedding.network)
    others = np.array([one != embedding.pixels_sha256 for one in gallery.pixels_sha256])
    if not others.any():
        mend = "add other references"
        raise UsageError(gallery.study_type, "holds only this image itself", mend)
    away = distances(embedding.values, gallery.embeddings[others])
    limit, source = gallery.limit, f"95 % of {len(gallery.embeddings)} references"
    if limit is None:
        limit, source = TEXTBOOK_LIMIT, f"textbook; its own needs {FEWEST} references"
    notes = []
    if not others.all():
        notes.append("it is a reference itself, and left out")
    if embedding.display not in gallery.displays:
        notes.append(f"shown as {embedding.display}, the references as {gallery.displays[0]}")
    nearest = float(away.min())
    return Comparison(
        study_type=gallery.study_type,
        references=len(away),
        nearest=nearest,
        mean=float(away.mean()),
        limit=limit,
        limit_source=source,
        within=nearest <= limit,
        note="; ".join(notes),
    )


def distances(values: NDArray[np.float32], references: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) distances of a (D,) embedding to (N, D) others; 0 is identical."""
    away: NDArray[np.float64] = cdist(values[None], references, "sqeuclidean")[0]
    return away


def _gallery(loaded: Sequence[tuple[str, Embedding]]) -> Gallery:
    study_type, first = loaded[0]
    for _, one in loaded:
        _same_network(study_type, first.network, one.network)
    values = np.stack([one.values for _, one in loaded])
    limit = None
    if len(values) >= FEWEST:
        between = squareform(pdist(values, "sqeuclidean"))
        np.fill_diagonal(between, np.inf)
        limit = float(np.percentile(between.min(axis=1), _PERCENTILE))
    return Gallery(
        study_type=study_type,
        network=first.network,
        displays=tuple(sorted({one.display for _, one in loaded})),
        embeddings=values,
        pixels_sha256=tuple(one.pixels_sha256 for _, one in loaded),
        limit=limit,
    )


def _load(file: Path) -> tuple[str, Embedding]:
    """Study type and features of a reference."""
    mend = "remove it, and add the image again"
    try:
        with safe_open(file, framework="pt") as opened:
            said, tensor = opened.metadata(), opened.get_tensor(_TENSOR)
        version, stated, study_type = said["format"], said["sha256"], said["study_type"]
        embedding = Embedding(
            tensor.numpy(), said["display"], said["network"], said["pixels_sha256"]
        )
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise UsageError(file, "cannot be read as a reference", mend) from error
    if version != _FORMAT or digest([tensor]) != stated or tensor.ndim != 1:
        raise UsageError(file, "is not as it was written", mend)
    return study_type, embedding


def _same_network(study_type: str, one: str, other: str) -> None:
    if one != other:
        raise UsageError(
            study_type,
            f"its gallery is of the network {one[:16]}…, and this image was seen by {other[:16]}…",
            "make the gallery anew: features of two networks do not compare",
        )


def _words(weights: Weights) -> str:
    return f"{weights.backbone} {weights.version} {weights.sha256}"


def _slug(study_type: str) -> str:
    """Name of a folder: readable, and one for each study type."""
    readable = re.sub(r"[^a-z0-9]+", "-", study_type.lower()).strip("-")[:40]
    return f"{readable}-{hashlib.sha256(study_type.casefold().encode()).hexdigest()[:8]}"
