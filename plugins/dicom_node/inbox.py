"""What was received, on disk: by study, series and instance, under digests of their UIDs.

::

    spool/files/<SHA-256 of the file>
    spool/series/<digest of the study>/<of the series>/<of the instance> -> the file
    spool/settled/<digest of the series>    when it was last changed, once it was dealt with
    spool/used/<digest of the series>       changed when a job last needed it, or it was sent again

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

from medqa.derivation import is_ours
from medqa.dicom.files import header, reading
from medqa.errors import ReadError, UsageError
from medqa.queue.submission import Spool

__all__ = ["Series", "holders", "keep", "mark", "purge", "series", "settled", "use"]

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
    if is_ours(found):
        return False
    content = spool.put(_chunks(path))
    folder = spool.folder / "series" / _digest(found, "StudyInstanceUID")
    folder /= _digest(found, "SeriesInstanceUID")
    if not _link(folder, _named(uid), content):
        use(spool, folder.name)  # sent again
    return True


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


def use(spool: Spool, name: str) -> None:
    """Note that a series was needed now; lost with the power, it counts from what came last.

    Parameters
    ----------
    name
        Of its folder.
    """
    folder = spool.folder / "used"
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / name).touch(mode=0o600)


def purge(spool: Spool, before: float) -> None:
    """Delete series that nobody needed and nothing was added to since, and their files.

    Files that another series holds stay, and so do other hosts' in the same spool.

    Parameters
    ----------
    before
        Seconds since 1970.
    """
    let_go: set[str] = set()
    for one in list(series(spool)):
        if max(one.changed / 1e9, _used(spool, one)) < before:
            let_go |= _contents(one.folder)
            shutil.rmtree(one.folder, ignore_errors=True)
            for notes in ("settled", "used"):
                (spool.folder / notes / one.name).unlink(missing_ok=True)
            with suppress(OSError):
                one.folder.parent.rmdir()  # where it was the study's last
    held = {name for one in series(spool) for name in _contents(one.folder)}
    files = spool.folder / "files"
    # What was put there again since is another host's; parts are of a process that was killed.
    for path in (*(files / name for name in let_go - held), *files.glob(".*.part")):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                path.unlink()


def _used(spool: Spool, one: Series) -> float:
    """When a series was needed last: seconds since 1970, 0 where it never was."""
    try:
        return (spool.folder / "used" / one.name).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _contents(folder: Path) -> set[str]:
    """Names of the files that a series holds."""
    return {Path(os.readlink(link)).name for link in folder.iterdir() if link.is_symlink()}


def _link(folder: Path, name: str, content: Path) -> bool:
    """Put an instance into its series, durably; return whether that changed anything."""
    target = os.path.relpath(content, folder)
    part = folder / f".{uuid.uuid4().hex}"
    try:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for above in (folder.parent, folder.parent.parent):
                _sync(above)
        with suppress(FileNotFoundError):
            if os.readlink(folder / name) == target:
                return False
        part.symlink_to(target)
        part.replace(folder / name)
        _sync(folder)
    except OSError as error:
        raise UsageError(
            folder, f"cannot be written ({error.strerror})", "check the space on its disk"
        ) from error
    return True


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
