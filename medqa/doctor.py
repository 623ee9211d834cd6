"""What works on this machine and what does not."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from pydicom.uid import (
    JPEG2000,
    UID,
    HTJ2KLossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medqa._version import __version__
from medqa.audit import Store
from medqa.dicom.codecs import codec_of
from medqa.errors import MedqaError
from medqa.metrics import MEASURES, unavailable
from medqa.weights import BACKBONES, find, locate

__all__ = ["Finding", "examine"]

_PACKAGES = ("torch", "monai", "pydicom", "nibabel", "numpy", "sqlalchemy", "torchvision")
_JPEG_XL = "1.2.840.10008.1.2.4.110"  # PS3.6 A of 2024d, which pydicom does not name yet
_SYNTAXES = (
    RLELossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000,
    HTJ2KLossless,
    _JPEG_XL,
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `fatal` where the main job cannot be done without it."""

    part: str
    state: Literal["works", "missing", "fails"]
    detail: str
    fatal: bool = False


def examine(db: str | None = None, weights: str | Path | None = None) -> list[Finding]:
    """Look at versions, networks, codecs and the audit database."""
    measures = [_measure(name) for name in MEASURES if unavailable(name)]
    return [*_versions(), _device(), *_networks(weights), *measures, *_codecs(), _database(db)]


def _versions() -> Iterator[Finding]:
    yield Finding("medqa", "works", f"{__version__}, Python {platform.python_version()}")
    for name in _PACKAGES:
        yield Finding(name, "works", metadata.version(name))


def _device() -> Finding:
    if torch.cuda.is_available():
        return Finding("device", "works", f"cuda: {torch.cuda.get_device_name()}")
    return Finding("device", "works", f"cpu, {torch.get_num_threads()} threads; no accelerator")


def _measure(name: str) -> Finding:
    return Finding(f"measure {name}", "missing", str(unavailable(name)))


def _networks(weights: str | Path | None) -> Iterator[Finding]:
    for name in BACKBONES:
        place = locate(name, weights)
        if place is None:
            yield Finding(
                f"network {name}", "missing", "downloaded at first use, or: medqa weights import"
            )
            continue
        try:
            find(name, weights)
        except MedqaError as error:
            yield Finding(f"network {name}", "fails", str(error), fatal=name == "gray")
        else:
            yield Finding(f"network {name}", "works", str(place))


def _codecs() -> Iterator[Finding]:
    for uid in map(UID, _SYNTAXES):
        codec = codec_of(uid)
        name = "JPEG XL" if uid == _JPEG_XL else uid.name
        yield Finding(name, "works" if codec else "missing", f"by {codec}" if codec else "")


def _database(db: str | None) -> Finding:
    try:
        with Store.open(db) as store:
            return Finding("audit database", "works", store.url_for_people)
    except MedqaError as error:
        return Finding("audit database", "fails", str(error), fatal=True)
