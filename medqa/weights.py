"""Weights of the networks: where they lie, and whether they are what they claim to be.

`gray` ships with medqa. The trunks of `alex`, `squeeze` and `vgg` are torchvision's
``IMAGENET1K_V1``; their linear heads are LPIPS v0.1's, which come with torchmetrics. Nothing is
unpickled beyond plain tensors, and nothing is used whose digest is not the pinned one.

A file of adapted heads, which `medqa.studies.adaptation` writes, holds no trunk: it is loaded onto
the trunk that it was fitted on, as another version of that network.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources, util
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from urllib.error import URLError

import torch
from platformdirs import user_data_path
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medqa.errors import WeightsError

__all__ = [
    "ADAPTED_FORM",
    "ADAPTED_SUFFIX",
    "BACKBONES",
    "Backbone",
    "Weights",
    "adapted_version",
    "digest",
    "find",
    "import_folder",
    "load_adapted",
    "load_gray",
    "locate",
]


@dataclass(frozen=True)
class Backbone:
    """A network as pinned.

    Parameters
    ----------
    version
        Of the network and its heads together, as it stands in a record.
    smallest_side
        Pixels that an image must have along both axes.
    files
        Names that its trunk goes by: torchvision's checkpoint first.
    trunk_sha256
        `digest` of the trunk's tensors; None where only the whole file is pinned.
    file_sha256
        Of torchvision's checkpoint, for a trunk without `trunk_sha256`.
    heads_sha256
        `digest` of the linear heads.
    """

    version: str
    smallest_side: int
    files: tuple[str, ...] = ()
    trunk_sha256: str | None = None
    file_sha256: str | None = None
    heads_sha256: str | None = None


BACKBONES: Mapping[str, Backbone] = MappingProxyType(
    {
        "gray": Backbone("1", smallest_side=31),
        "alex": Backbone(
            "0.1",
            smallest_side=31,
            files=("alexnet-owt-7be5be79.pth", "alexnet_features.safetensors"),
            trunk_sha256="2e13bc27c58d5bfdb2ce67e44e0b4ea097484a55e1ab5f3003c777cb86497cb4",
            heads_sha256="0bee0f7e9f34cf46c61523bfe59ecfbf62aebda01c3c45ce54f75e6d4b135191",
        ),
        "squeeze": Backbone(
            "0.1",
            smallest_side=17,
            files=("squeezenet1_1-b8a52dc0.pth", "squeezenet1_1_features.safetensors"),
            trunk_sha256="a8643cf6ae9b07227a4f0022e86d65a3bb5c920f8cabad56a902557ad014c070",
            heads_sha256="770d17bd4933c617cbef2ccca4bfa15682bf2ec17466f7c7324efca496c32a36",
        ),
        "vgg": Backbone(
            "0.1",
            smallest_side=16,
            files=("vgg16-397923af.pth",),
            file_sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            heads_sha256="0aab556b688d114fbebe347aacbe8c79c818679498d5d8f3daa7f5532beeb980",
        ),
    }
)


#: What the path of a file of adapted heads ends in, and how the file names its form.
ADAPTED_SUFFIX = ".safetensors"
ADAPTED_FORM = "medqa adapted heads 1"

_GRAY = resources.files("medqa.models") / "gray.safetensors"
_ADAPTED_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_ADAPTED_BYTES = 2**20  # a hundred times what the heads of any network take


@dataclass(frozen=True, eq=False)
class Weights:
    """The tensors of a network, checked.

    Parameters
    ----------
    trunk
        Weight and bias of every convolution, in the order of the network.
    heads
        One (C,) non-negative vector per tap.
    sha256
        `digest` of trunk and heads.
    relative_error, region_relative_error
        Stated errors of an image's and of a region's distance towards those of the network that
        it reproduces; None for an original.
    """

    backbone: str
    version: str
    trunk: tuple[Tensor, ...]
    heads: tuple[Tensor, ...]
    sha256: str
    relative_error: float | None = None
    region_relative_error: float | None = None


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of shapes and little-endian float32 values, in order."""
    total = hashlib.sha256()
    for tensor in tensors:
        values = tensor.detach().cpu().contiguous().numpy().astype("<f4")
        total.update(f"{values.shape}\n".encode())
        total.update(values.tobytes())
    return total.hexdigest()


def find(backbone: str, folder: str | Path | None = None) -> Weights:
    """Find, load and check the weights of a network.

    Parameters
    ----------
    backbone
        A key of `BACKBONES`, or the path of a file of adapted heads, ending in ``.safetensors``.
    folder
        Where to look for a trunk, and nowhere else. None takes ``MEDQA_WEIGHTS``; without that
        the folder of `import_folder`, then torchvision's cache, then torchvision's download.

    Raises
    ------
    WeightsError
        They are nowhere, cannot be read, or are not the pinned ones; of adapted heads, not those
        that were fitted, or not on this trunk.
    """
    if backbone.endswith(ADAPTED_SUFFIX):
        return load_adapted(Path(backbone), folder)
    if backbone == "gray":
        with resources.as_file(_GRAY) as shipped:
            return load_gray(shipped)
    pinned = BACKBONES[backbone]
    path = _trunk_path(backbone, folder)
    trunk = _load_trunk(path, pinned)
    heads = _load_heads(backbone)
    return Weights(backbone, pinned.version, trunk, heads, digest((*trunk, *heads)))


def locate(backbone: str, folder: str | Path | None = None) -> Path | None:
    """Return where the weights lie that `find` would load, or None where it would download."""
    if backbone == "gray":
        return Path(str(_GRAY))
    names = BACKBONES[backbone].files
    named = folder or os.environ.get("MEDQA_WEIGHTS")
    places = (Path(named),) if named else (_imported(), _cache())
    return next((path for place in places if (path := _first_file(place, names))), None)


def load_gray(path: Path) -> Weights:
    """Load a network in the form that `medqa.training` writes.

    Raises
    ------
    WeightsError
        The file cannot be read, or its tensors are not those that it was written with.
    """
    mend = "reinstall medqa, or train it again"
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata(), sorted(file.keys())
            trunk = tuple(file.get_tensor(name) for name in names if name.startswith("trunk."))
            heads = tuple(file.get_tensor(name) for name in names if name.startswith("head."))
        version, stated = metadata["version"], metadata["sha256"]
        errors = float(metadata["relative_error"]), float(metadata["region_relative_error"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as cause:
        raise WeightsError(path, "cannot be read as weights", mend) from cause
    sha256 = digest((*trunk, *heads))
    if sha256 != stated:
        raise WeightsError(path, "its tensors are not those that it was written with", mend)
    return Weights("gray", version, trunk, heads, sha256, *errors)


def adapted_version(base_version: str, name: str, sha256: str) -> str:
    """Version of an adapted network, such as ``0.1+site-ct.3f2a91bc``.

    It ends in the first digits of the digest of its tensors, so that a profile that names the
    version holds for these weights alone, however often a site adapts under one name.

    Raises
    ------
    WeightsError
        The name is none.
    """
    if not _ADAPTED_NAME.fullmatch(name) or len(name) > 32:
        raise WeightsError(
            name[:40],
            "is no name for an adapted network",
            "use up to 32 small letters and digits, with single hyphens between, such as site-ct",
        )
    return f"{base_version}+{name}.{sha256[:8]}"


def load_adapted(path: Path, base: Weights | str | Path | None = None) -> Weights:
    """Load adapted heads onto the trunk that they were fitted on.

    Parameters
    ----------
    base
        The original network, or where to look for its trunk, as `find` does.

    Returns
    -------
    A version of the original's network. It states no relative error: what was measured of the
    original does not hold for it.

    Raises
    ------
    WeightsError
        The file cannot be read, is none of adapted heads, or was fitted on another trunk.
    """
    mend = "use the file that medqa adapt wrote, or adapt again"
    try:
        if path.stat().st_size > _ADAPTED_BYTES:
            raise WeightsError(path, "is too large for adapted heads", mend)
        with safe_open(path, framework="pt") as file:
            stated = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError) as cause:
        raise WeightsError(path, "cannot be read as weights", mend) from cause
    backbone = stated.get("backbone", "")
    if stated.get("form") != ADAPTED_FORM or backbone not in BACKBONES:
        raise WeightsError(path, "is no file of adapted heads", mend)
    if not isinstance(base, Weights):
        base = find(backbone, base)
    fitted_on = tuple(map(stated.get, ("backbone", "base_version", "trunk_sha256")))
    if fitted_on != (base.backbone, base.version, digest(base.trunk)):
        reason = f"was fitted on another network than {base.backbone} {base.version} as it is here"
        raise WeightsError(path, reason, "adapt again")
    heads = tuple(tensors.pop(f"head.{tap}", torch.empty(0)) for tap in range(len(base.heads)))
    # Of nothing but zeros, every distance would be 0, and everything would pass.
    if tensors or not all(map(_is_head, heads, base.heads)) or not any(map(torch.any, heads)):
        reason = "its tensors are not one finite, non-negative weight for each channel"
        raise WeightsError(path, reason, mend)
    sha256 = digest((*base.trunk, *heads))
    version = adapted_version(base.version, stated.get("name", ""), sha256)
    if (stated.get("sha256"), stated.get("version")) != (sha256, version):
        raise WeightsError(path, "its tensors are not those that it was written with", mend)
    return Weights(backbone, version, base.trunk, heads, sha256)


def _is_head(head: Tensor, original: Tensor) -> bool:
    return (
        head.dtype == torch.float32
        and head.shape == original.shape
        and bool(((head >= 0) & head.isfinite()).all())
    )


def import_folder(folder: str | Path) -> dict[str, Path]:
    """Check every official trunk in a folder and copy it to where `find` looks.

    Returns
    -------
    The copies by network; a network whose file is not in the folder is left out.

    Raises
    ------
    WeightsError
        The folder holds none, or one that is not the pinned one (nothing is copied then).
    """
    found: dict[str, Path] = {}
    for backbone, pinned in BACKBONES.items():
        if path := _first_file(Path(folder), pinned.files):
            _load_trunk(path, pinned)
            found[backbone] = path
    if not found:
        names = ", ".join(name for pinned in BACKBONES.values() for name in pinned.files)
        raise WeightsError(folder, "holds no weights that medqa knows", f"put one of {names} there")
    target = _imported()
    target.mkdir(parents=True, exist_ok=True)
    for path in found.values():
        temporary = target / f".{path.name}.part"
        shutil.copyfile(path, temporary)
        temporary.replace(target / path.name)
    return {backbone: target / path.name for backbone, path in found.items()}


def _imported() -> Path:
    return user_data_path("medqa", appauthor=False) / "weights"


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _first_file(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _trunk_path(backbone: str, folder: str | Path | None) -> Path:
    if path := locate(backbone, folder):
        return path
    names = BACKBONES[backbone].files
    if named := folder or os.environ.get("MEDQA_WEIGHTS"):
        raise WeightsError(
            named, f"holds no weights of network {backbone}", f"put {' or '.join(names)} there"
        )
    target = _cache() / names[0]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        url = f"https://download.pytorch.org/models/{names[0]}"
        torch.hub.download_url_to_file(url, str(target), progress=False)
    except (URLError, OSError) as error:
        raise WeightsError(
            f"network {backbone}",
            f"its weights are not on this machine and cannot be downloaded ({error})",
            f"bring {names[0]} and run: medqa weights import FOLDER",
        ) from error
    return target


def _load_trunk(path: Path, pinned: Backbone) -> tuple[Tensor, ...]:
    mend = f"replace it with torchvision's {pinned.files[0]}"
    if pinned.trunk_sha256 is None and _file_sha256(path) != pinned.file_sha256:
        raise WeightsError(path, "is not the pinned file", mend)
    tensors = _read(path, mend)
    # torchvision's checkpoints hold the classifier too, which LPIPS does not use.
    named = {
        name.removeprefix("features."): t for name, t in tensors.items() if "classifier" not in name
    }
    try:
        trunk = tuple(named[name] for name in sorted(named, key=_position))
    except (ValueError, KeyError) as error:
        raise WeightsError(path, "holds other tensors than the trunk's", mend) from error
    if pinned.trunk_sha256 is not None and digest(trunk) != pinned.trunk_sha256:
        raise WeightsError(path, "its tensors are not the pinned ones", mend)
    return trunk


def _position(name: str) -> tuple[int, int, int]:
    """Where a tensor such as ``3.squeeze.weight`` stands in torchvision's order."""
    index, *module, kind = name.split(".")
    order = {"": 0, "squeeze": 0, "expand1x1": 1, "expand3x3": 2}
    return int(index), order["".join(module)], ("weight", "bias").index(kind)


def _load_heads(backbone: str) -> tuple[Tensor, ...]:
    spec = util.find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        raise WeightsError("torchmetrics", "is not installed", "run: pip install torchmetrics")
    path = Path(spec.origin).parent / "functional/image/lpips_models" / f"{backbone}.pth"
    mend = "reinstall torchmetrics"
    tensors = _read(path, mend)
    heads = tuple(tensors[name].flatten() for name in sorted(tensors))
    if digest(heads) != BACKBONES[backbone].heads_sha256:
        raise WeightsError(path, "its tensors are not the pinned ones", mend)
    return heads


def _read(path: Path, mend: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise WeightsError(path, "holds more than tensors, or none", mend) from error
    # What zipfile, safetensors and torch's own checks raise; all mean the same here.
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise WeightsError(path, "cannot be read as weights", mend) from error
    return {str(name): tensor.float() for name, tensor in loaded.items()}


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
