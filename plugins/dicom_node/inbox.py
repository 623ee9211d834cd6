"""What was received, on disk: by study, series and instance, under digests of their UIDs.

::

    spool/files/<SHA-256 of the file>
    spool/series/<digest of the study>/<of the series>/<of the instance> -> the file
    spool/settled/<digest of the series>    when it was last changed, once it was dealt with

An instance is a link in the folder of its series, so that folder is an image as `medqa.read` takes
it, and the time it was changed is when the last instance came: nothing has to be remembered
elsewhere, and a node that starts again goes on where it stopped. No name comes from outside.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from medqa.dicom.files import header, reading
from medqa.dicom_results.device import MANUFACTURER
from medqa.errors import ReadError, UsageError
from medqa.queue.submission import Spool

__all__ = ["Series", "holders", "is_own", "keep", "mark", "purge", "series", "settled"]

_CHUNK = 2**20


@dataclass(frozen=True)
class Series:
    """A series in the spool.

    Parameters
    ----------
    folder
        Holds its instances.
    changed
        When the last one came: ns since 1970.
    """

    folder: Path
    changed: int

    @property
    def name(self) -> str:
        """Digest that stands for its UID."""
        return self.folder.name

    def quiet_for(self) -> float:
        """Seconds since the last instance came."""
        return time.time() - self.changed / 1e9


def keep(spool: Spool, path: Path) -> bool:
    """Keep a received file, durably; return whether it was: results of medqa's own are not.

    An instance that is there already is replaced where its content differs.

    Raises
    ------
    ReadError
        It is no DICOM object, or has no SOP Instance UID, or another than its sender said.
    UsageError
        The spool cannot be written.
    """
    with reading(path):
        found = header(path)
        uid = str(found.get("SOPInstanceUID") or "")
        stated = str(found.file_meta.get("MediaStorageSOPInstanceUID") or "")
    if not uid or uid != stated:
        mend = "its sender must mend its header"
        raise ReadError(path, "is not the instance that its sender says", mend)
    if is_own(found):
        return False
    content = spool.put(_chunks(path))
    folder = spool.folder / "series" / _digest(found, "StudyInstanceUID")
    folder /= _digest(found, "SeriesInstanceUID")
    _link(folder, _named(uid), content)
    return True


def is_own(found: Dataset) -> bool:
    """Whether an object is a result of medqa's, which must never be assessed again."""
    maker = str(found.get("Manufacturer") or ""), str(found.get("ManufacturerModelName") or "")
    return maker == (MANUFACTURER, MANUFACTURER)


def series(spool: Spool) -> Iterator[Series]:
    """Every series in the spool."""
    for study in _folders(spool.folder / "series"):
        for folder in _folders(study):
            with suppress(FileNotFoundError):
                yield Series(folder, folder.stat().st_mtime_ns)


def holders(spool: Spool, study: Path, uids: Iterable[str]) -> tuple[tuple[Series, ...], bool]:
    """Series that hold any of some instances, and whether all of them are there.

    Parameters
    ----------
    study
        Folder of the study that is looked through first.
    """
    wanted = {_named(uid) for uid in uids}
    others = [one for one in _folders(spool.folder / "series") if one != study]
    found: dict[Path, Series] = {}
    for place in (study, *others):
        for folder in _folders(place):
            held = {name for name in wanted if (folder / name).is_symlink()}
            if held:
                found[folder] = Series(folder, folder.stat().st_mtime_ns)
                wanted -= held
        if not wanted:
            break
    return tuple(found.values()), not wanted


def settled(spool: Spool, one: Series) -> bool:
    """Whether a series was dealt with, and nothing came since."""
    try:
        return (spool.folder / "settled" / one.name).read_text() == str(one.changed)
    except FileNotFoundError:
        return False


def mark(spool: Spool, one: Series) -> None:
    """Note that a series was dealt with; lost with the power, it is dealt with again."""
    folder = spool.folder / "settled"
    folder.mkdir(mode=0o700, exist_ok=True)
    part = folder / f".{uuid.uuid4().hex}"
    part.write_text(str(one.changed))
    part.replace(folder / one.name)


def purge(spool: Spool, before: float) -> None:
    """Delete series that nothing was added to since, and their files that no other series holds.

    Other hosts' files in the same spool stay.

    Parameters
    ----------
    before
        Seconds since 1970.
    """
    let_go: set[str] = set()
    for one in list(series(spool)):
        if one.changed / 1e9 < before:
            let_go |= _contents(one.folder)
            shutil.rmtree(one.folder, ignore_errors=True)
            (spool.folder / "settled" / one.name).unlink(missing_ok=True)
            with suppress(OSError):
                one.folder.parent.rmdir()  # where it was the study's last
    held = {name for one in series(spool) for name in _contents(one.folder)}
    files = spool.folder / "files"
    for name in let_go - held:
        (files / name).unlink(missing_ok=True)
    for part in files.glob(".*.part"):  # of a process that was killed
        with suppress(FileNotFoundError):
            if part.stat().st_mtime < before:
                part.unlink()


def _contents(folder: Path) -> set[str]:
    """Names of the files that a series holds."""
    return {Path(os.readlink(link)).name for link in folder.iterdir() if link.is_symlink()}


def _link(folder: Path, name: str, content: Path) -> None:
    """Put an instance into its series, durably."""
    target = os.path.relpath(content, folder)
    part = folder / f".{uuid.uuid4().hex}"
    try:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for above in (folder.parent, folder.parent.parent):
                _sync(above)
        with suppress(FileNotFoundError):
            if os.readlink(folder / name) == target:
                return  # sent again
        part.symlink_to(target)
        part.replace(folder / name)
        _sync(folder)
    except OSError as error:
        raise UsageError(
            folder, f"cannot be written ({error.strerror})", "check the space on its disk"
        ) from error


def _digest(found: Dataset, keyword: str) -> str:
    return _named(str(found.get(keyword) or ""))


def _named(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(one for one in folder.iterdir() if one.is_dir())
    except FileNotFoundError:
        return []


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
