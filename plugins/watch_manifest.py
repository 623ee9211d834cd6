"""What a job folder of the watch folder asks for, by its manifest or by how it is laid out.

A producer of manifests is not trusted: whatever it names lies inside its own folder, and nothing
in that folder is a link.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from medqa.assessment import Task
from medqa.catalogue import MAX_DEPTH, MAX_FILES, look, select
from medqa.derivation import pair_within
from medqa.dicom.files import is_dicom
from medqa.errors import UsageError
from medqa.folders import choose
from medqa.limits import limits
from medqa.nifti_files import format_of, head
from medqa.pairing import Pairing

__all__ = ["OWN", "BadFolderError", "State", "Wanted", "snapshot", "wanted"]

#: medqa's own manifest, and mercure's.
OWN, MERCURE = "medqa.json", "task.json"
_MANIFEST_BYTES = 2**20
_INPUTS = ("input", "dcm")  # MONAI Deploy: input folder of an application; DICOM of a payload
_MERCURE_MODULE = "medqa"

State = dict[str, tuple[int, int]]
"""Size and time of change of each file of a folder, by its path below it."""


class BadFolderError(UsageError):
    """A job folder cannot become a job; it gets an error instead of a result."""


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or set("\\\0") & set(name):
        raise ValueError("is not a path inside the folder")
    return str(path)


_Path = Annotated[str, StringConstraints(max_length=1024), AfterValidator(_inside)]
_Paths = Annotated[tuple[_Path, ...], Field(max_length=MAX_FILES, min_length=1)]
_Regions = Annotated[tuple[_Path, ...], Field(max_length=100)]
# A shipped profile: a path could lead out of the folder.
_Profile = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class _Settings(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    profile: _Profile | None = None
    task: Task | None = None


class _Own(_Settings):
    reference: _Path | _Paths
    candidate: _Path | _Paths
    masks: _Regions = ()
    annotations: _Regions = ()


class _Module(BaseModel):
    """What mercure says of one module; of others' fields there are many, in every version more."""

    module_name: str = ""
    settings: dict[str, Any] = {}


class _Task(BaseModel):
    id: str
    info: dict[str, Any]
    process: list[_Module] | _Module = []


@dataclass(frozen=True)
class Wanted:
    """What a folder asks for.

    Parameters
    ----------
    reference, candidate, masks, annotations
        Files below the folder.
    profile, task
        As of `medqa.Job`; None where the folder does not say.
    """

    reference: tuple[Path, ...]
    candidate: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    annotations: tuple[Path, ...] = ()
    profile: str | None = None
    task: Task | None = None


def snapshot(folder: Path) -> State:
    """Look at every file of a job folder, without reading one.

    Raises
    ------
    BadFolderError
        It holds a link or what is neither file nor folder, or more than is read.
    OSError
        It is gone, or cannot be read.
    """
    found: State = {}
    total = 0
    for name, entry in _walk(folder, PurePosixPath()):
        about = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(about.st_mode):
            continue
        if not stat.S_ISREG(about.st_mode):
            raise BadFolderError(
                folder, "holds a link or a special file", "put the files themselves into it"
            )
        found[str(name)] = (about.st_size, about.st_mtime_ns)
        total += about.st_size
        if len(found) > MAX_FILES or total > 2 * limits().image_bytes:
            raise BadFolderError(folder, "holds more than is read", "give one pair of images")
    return found


def _walk(folder: Path, below: PurePosixPath) -> Iterator[tuple[PurePosixPath, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = below / entry.name
            yield name, entry
            if entry.is_dir(follow_symlinks=False):
                if len(name.parts) > MAX_DEPTH:
                    raise BadFolderError(folder, "is too deep", "use fewer subfolders")
                yield from _walk(folder / entry.name, name)


def wanted(folder: Path) -> Wanted:
    """Find out what a job folder asks for; no pixel is decoded.

    Parameters
    ----------
    folder
        Complete, and looked at by `snapshot`: it holds no link.

    Raises
    ------
    BadFolderError
        Its manifest is wrong, or what to compare cannot be told.
    ReadError
        An image in it is damaged.
    """
    if (folder / OWN).exists():
        return _own(folder)
    settings = _mercure(folder) if (folder / MERCURE).exists() else _Settings()
    if (folder / "reference").is_dir() and (folder / "candidate").is_dir():
        images = _chosen(folder / "reference", folder / "candidate")
    else:
        inputs = [folder / name for name in _INPUTS if (folder / name).is_dir()]
        images = _derived(inputs[0] if inputs else folder)
    return Wanted(*images, profile=settings.profile, task=settings.task)


def _own(folder: Path) -> Wanted:
    try:
        manifest = _Own.model_validate_json(_content(folder / OWN))
    except ValidationError as error:
        raise _bad(folder / OWN, error) from None
    reference, candidate = manifest.reference, manifest.candidate
    if isinstance(reference, str) and isinstance(candidate, str):
        images = _chosen(_there(folder, reference), _there(folder, candidate))
    else:
        images = _each(folder, reference), _each(folder, candidate)
    return Wanted(
        *images,
        masks=tuple(_file(folder, one) for one in manifest.masks),
        annotations=tuple(_file(folder, one) for one in manifest.annotations),
        profile=manifest.profile,
        task=manifest.task,
    )


def _mercure(folder: Path) -> _Settings:
    """Return the settings of the module called medqa, or of the only one, in mercure's task."""
    try:
        process = _Task.model_validate_json(_content(folder / MERCURE)).process
        modules = process if isinstance(process, list) else [process]
        if len(modules) > 1:
            modules = [one for one in modules if one.module_name == _MERCURE_MODULE]
        return _Settings.model_validate(modules[0].settings) if modules else _Settings()
    except ValidationError as error:
        raise _bad(folder / MERCURE, error) from None


def _content(manifest: Path) -> bytes:
    with manifest.open("rb") as file:
        content = file.read(_MANIFEST_BYTES + 1)
    if len(content) > _MANIFEST_BYTES:
        raise BadFolderError(manifest, "the manifest is larger than 1 MiB", "make it smaller")
    return content


def _bad(manifest: Path, error: ValidationError) -> BadFolderError:
    """Name the field that is wrong, never what the producer wrote."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    known = {*_Own.model_fields, *_Task.model_fields, *_Module.model_fields}
    place = first["loc"][0] if first["loc"] else None
    field = f"field {place}" if place in known else "a field" if place else "the whole"
    kind = "is unknown" if first["type"] == "extra_forbidden" else "is missing or wrong"
    return BadFolderError(
        manifest,
        f"{manifest.name} cannot be used: {field} {kind}",
        "paths lie inside the folder and use forward slashes; profile is a shipped one; task is "
        f"one of {', '.join(get_args(Task))}",
    )


def _there(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.exists():
        raise BadFolderError(path, "the manifest names what is not there", "put it there first")
    return path


def _file(folder: Path, name: str) -> Path:
    path = _there(folder, name)
    if not path.is_file():
        raise BadFolderError(path, "the manifest names a folder, not a file", "name the file")
    return path


def _each(folder: Path, given: str | tuple[str, ...]) -> tuple[Path, ...]:
    """Files of one image, given one by one, or as its file or folder."""
    if isinstance(given, tuple):
        return tuple(_file(folder, one) for one in given)
    path = _there(folder, given)
    return select(look(path)).paths if path.is_dir() else (path,)


def _chosen(reference: Path, candidate: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Files of the one pair of images that two paths hold."""
    choice = choose(str(reference), str(candidate))
    if choice.refused:  # a damaged slice must not go missing unnoticed
        raise choice.refused[0]
    if len(choice.given) != 1:
        raise BadFolderError(
            reference, f"holds {len(choice.given)} pairs", "give each a folder of its own"
        )
    mine, its = (
        (Path(one),) if isinstance(one, str) else tuple(map(Path, one)) for one in choice.given[0]
    )
    for path in (*mine, *its):
        _check_single(path)
    return mine, its


def _check_single(path: Path) -> None:
    """Refuse what is no image in one file."""
    if path.is_dir():
        raise BadFolderError(path, "holds no image", "put DICOM or NIfTI files into it")
    with path.open("rb") as file:
        start = file.read(132)
    if not is_dicom(start) and format_of(head(path)) == "NIfTI pair":
        raise BadFolderError(path, "is a NIfTI image in two files", "convert it to .nii.gz")


def _derived(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Files of the one derived image of a folder, and of its source."""
    catalogue = look(folder)
    if catalogue.refused:
        raise catalogue.refused[0]
    found = pair_within(catalogue)
    if len(found.pairs) != 1 or found.ambiguous:
        mend = "name them in medqa.json, or put them into reference and candidate"
        raise BadFolderError(folder, _words(found), mend)
    return found.pairs[0].reference.paths, found.pairs[0].candidate.paths


def _words(found: Pairing) -> str:
    if found.ambiguous:
        return "holds images that cannot be paired without doubt"
    if found.pairs:
        return f"holds {len(found.pairs)} pairs of an image and what was derived from it"
    return "holds no image with its derived image"
