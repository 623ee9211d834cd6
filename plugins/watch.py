"""Watch folder: each sub-folder is a job, and its result appears beside it.

::

    NAME            arrives, and counts once it is complete
    NAME.claimed    was taken, by renaming: one watcher only can
    NAME.result     what came of it: put there by renaming, whole
    NAME.done       the input, afterwards

Files are copied into the spool before the job enters the queue, so that a producer who changes
them later, or takes them away, changes nothing. A watcher keeps nothing in memory that it could
not find again: what is claimed and has no result is submitted again, which the queue knows by the
contents and does not do twice. It may be killed at any moment, and any number may watch one folder.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medqa.assessment import Job
from medqa.audit import Store
from medqa.errors import MedqaError, StoreError, UsageError
from medqa.files import write_file
from medqa.limits import limits
from medqa.queue import QueueFullError, deliver, found, retry

from .watch_manifest import BadFolderError, State, Wanted, snapshot, wanted

if TYPE_CHECKING:
    from medqa.queue.submission import Spool

__all__ = ["ORIGIN", "Round", "Watcher", "watch"]

ORIGIN = "watch"
_LOG = logging.getLogger("medqa.watch")
_CLAIMED, _RESULT, _DONE = ".claimed", ".result", ".done"
_OURS = (_CLAIMED, _RESULT, _DONE)
_COMPLETE = ".complete"
_BUSY = (".lock", ".processing", ".error")  # mercure's: written to, worked on, failed
_PART = ".part"
_STALE_PART_SECONDS = 3600.0  # a result that nobody finishes any more
_ADOPT_SECONDS = 60.0  # before a folder is submitted that another watcher claimed
_CHUNK = 2**20
_KEPT_APART = ("review.json", "maps.npz")  # of the review page, not of the report


class _LaterError(Exception):
    """A folder cannot be submitted now; the next round tries again."""


@dataclass(frozen=True)
class Round:
    """What one round came to.

    Parameters
    ----------
    taken
        Folders claimed.
    given_back
        Results and errors put beside their folders.
    working
        Folders claimed whose result is not there yet.
    blocked
        Folders that wait because an earlier one of their name has not been taken away.
    """

    taken: int
    given_back: int
    working: int
    blocked: int


class Watcher:
    """What a watcher remembers from one round to the next; all of it may be forgotten.

    Parameters
    ----------
    folder
        What is watched.
    store, spool
        Where jobs go.
    quiet
        Seconds without a change after which a folder without ``.complete`` is complete.
    profile
        Thresholds for folders that name none, as of `medqa.Job`.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        spool: Spool,
        *,
        quiet: float,
        profile: str | None = None,
    ) -> None:
        self._folder, self._store, self._spool = folder, store, spool
        self._quiet, self._profile = quiet, profile
        self._seen: dict[str, tuple[State, float]] = {}
        self._jobs: dict[str, str] = {}  # job ids by the name of a claimed folder
        self._found: dict[str, float] = {}  # when a claimed folder was first seen
        self._blocked: set[str] = set()
        self._first = True
        _sweep(folder)

    def round(self) -> Round:
        """Take what is complete, submit it, and give back what is done.

        Raises
        ------
        StoreError
            The database cannot be used: nothing is lost, the next round goes on.
        """
        taken = self._take()
        self._submit(taken)
        self._first = False
        given_back = self._give_back()
        claimed = len(self._claimed())
        return Round(len(taken), given_back, claimed, len(self._blocked))

    def _take(self) -> list[str]:
        entries = list(os.scandir(self._folder))
        names = {one.name for one in entries}
        folders = sorted(one.name for one in entries if one.is_dir(follow_symlinks=False))
        mine = [one for one in folders if not one.startswith(".") and not one.endswith(_OURS)]
        self._seen = {name: one for name, one in self._seen.items() if name in names}
        blocked = {one for one in mine if names & {one + end for end in _OURS}}
        if blocked - self._blocked:
            _LOG.warning("%d folders wait: take their earlier results away", len(blocked))
        self._blocked = blocked
        return [name for name in mine if name not in blocked and self._claim(name)]

    def _claim(self, name: str) -> bool:
        path = self._folder / name
        try:
            if not self._complete(path):
                return False
            os.rename(path, self._folder / (name + _CLAIMED))
        except OSError:  # another watcher has it, or it was taken away
            return False
        self._seen.pop(name, None)
        return True

    def _complete(self, path: Path) -> bool:
        """Whether nothing more comes: said by a file, or unchanged for a while."""
        if any((path / name).exists() for name in _BUSY):
            self._seen.pop(path.name, None)
            return False
        if (path / _COMPLETE).exists():
            return True
        try:
            now = snapshot(path)
        except BadFolderError:
            now = {}  # its content does not matter: it becomes an error
        else:
            if not now:
                return False
        before, since = self._seen.get(path.name, ({}, time.monotonic()))
        if path.name not in self._seen or before != now:
            since = time.monotonic()
        self._seen[path.name] = now, since
        return time.monotonic() - since >= self._quiet

    def _claimed(self) -> list[str]:
        """Names of the folders that are claimed, without the ending."""
        found = (one for one in os.scandir(self._folder) if one.is_dir(follow_symlinks=False))
        names = (one.name for one in found if not one.name.startswith("."))
        return sorted(one.removesuffix(_CLAIMED) for one in names if one.endswith(_CLAIMED))

    def _submit(self, taken: Iterable[str]) -> None:
        """Put what is claimed into the queue: what was taken now, and what nobody else did."""
        claimed, now = self._claimed(), time.monotonic()
        self._jobs = {name: one for name, one in self._jobs.items() if name in claimed}
        self._found = {name: self._found.get(name, now) for name in claimed}
        for name in claimed:
            mine = name in taken or self._first or now - self._found[name] >= _ADOPT_SECONDS
            if name in self._jobs or not mine:
                continue
            if (self._folder / (name + _RESULT)).exists():  # killed just before its end
                self._end(name)
                continue
            try:
                self._jobs[name] = self._submitted(self._folder / (name + _CLAIMED))
            except QueueFullError:
                _LOG.warning("the queue is full; folders wait")
                self._found[name] = float("-inf")
                return
            except StoreError:
                self._found[name] = float("-inf")
                raise
            except _LaterError as error:
                self._found[name] = float("-inf")
                _LOG.warning("a folder waits: %s", error)
            except MedqaError as error:
                _LOG.error("a folder cannot be used: %s; %s", error.reason, error.mend)
                self._refuse(name, error.reason, error.mend)

    def _submitted(self, path: Path) -> str:
        from medqa.queue.submission import submit

        try:
            snapshot(path)
            asked = wanted(path)
        except OSError as error:
            raise _LaterError(f"it cannot be read ({error.strerror})") from error
        job = self._job(path, asked)
        queued, new = submit(self._store, self._spool, job)
        _LOG.info("job %s is %s", queued.job_id, "new" if new else queued.state)
        if queued.state == "dead":  # given again: tried again
            retry(self._store, queued.job_id)
        return queued.job_id

    def _job(self, path: Path, asked: Wanted) -> Job:
        """Copy what a folder asks for into the spool, and make a job of it."""

        def kept(files: Iterable[Path]) -> tuple[str, ...]:
            return tuple(str(self._keep(path, one.relative_to(path))) for one in files)

        return Job(
            reference=_image(kept(asked.reference)),
            candidate=_image(kept(asked.candidate)),
            masks=kept(asked.masks),
            annotations=kept(asked.annotations),
            profile=asked.profile or self._profile,
            task=asked.task or "routine",
            origin=ORIGIN,
            correlation_id=str(uuid.uuid4()),  # a folder's name may be a patient's
        )

    def _keep(self, root: Path, name: Path) -> Path:
        try:
            with os.fdopen(_open(root, name), "rb") as file:
                if os.fstat(file.fileno()).st_size > limits().file_bytes:
                    raise BadFolderError(name, "holds a file that is too large", "split it")
                return self._spool.put(iter(lambda: file.read(_CHUNK), b""))
        except OSError as error:
            raise _LaterError(f"a file cannot be read ({error.strerror})") from error
        except BadFolderError:
            raise
        except MedqaError as error:  # no space: not the folder's fault
            raise _LaterError(f"the spool {error.reason}") from error

    def _give_back(self) -> int:
        """Put results beside the folders whose jobs have ended."""
        ended = found(self._store, sorted(set(self._jobs.values())))
        given = 0
        for name, job_id in list(self._jobs.items()):
            one = ended.get(job_id)
            if one is None:
                self._refuse(name, "was taken out of the queue", "give the folder again")
            elif one.state == "dead":
                self._refuse(name, one.reason or "failed", "mend this, and give the folder again")
            elif one.state != "done":
                continue
            elif one.results is None or not Path(one.results).is_dir():
                words = f"is judged (assessment {one.assessment_id}), but the report is gone"
                self._refuse(name, words, "see medqa audit show")
            else:
                self._put(name, _files(Path(one.results)))
            given += 1
            if one is not None and one.origin == ORIGIN:
                deliver(self._store, job_id)
        return given

    def _refuse(self, name: str, reason: str, mend: str) -> None:
        content = json.dumps({"reason": reason, "mend": mend}, indent=2) + "\n"
        self._put(name, [("error.json", content.encode())])

    def _put(self, name: str, files: Iterable[tuple[str, bytes]]) -> None:
        """Put a result in its place, whole; nobody's is ever replaced."""
        part = self._folder / f".{uuid.uuid4().hex}{_PART}"
        try:
            for inside, content in files:
                write_file(part / inside, content)
            os.rename(part, self._folder / (name + _RESULT))
        except OSError:
            if not (self._folder / (name + _RESULT)).is_dir():
                raise
            # Another watcher was first.
        except UsageError as error:
            raise OSError(errno.EIO, error.reason) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._end(name)

    def _end(self, name: str) -> None:
        try:
            os.rename(self._folder / (name + _CLAIMED), self._folder / (name + _DONE))
        except OSError as error:  # another watcher did, or somebody has the name taken
            _LOG.debug("a folder stays claimed: %s", error.strerror)
        self._jobs.pop(name, None)


def watch(
    folder: Path,
    db: str | None,
    spool: Path,
    *,
    every: float,
    quiet: float,
    profile: str | None = None,
    stop: threading.Event,
    once: bool = False,
) -> Round:
    """Watch a folder until told to stop.

    Parameters
    ----------
    folder
        Must be there.
    db
        The audit database, as `Store.open` takes it.
    spool
        Folder for copies of the images and for results; workers reach it by the same path.
    every
        Seconds between two rounds.
    quiet, profile
        As of `Watcher`.
    once
        One round, after waiting `quiet` seconds, and no more.

    Returns
    -------
    What the last round came to.

    Raises
    ------
    StoreError
        The database cannot be opened at the start.
    UsageError
        The folder cannot be watched.
    """
    from medqa.queue.submission import Spool

    _check(folder)
    with Store.open(db) as store:
        watcher = Watcher(folder, store, Spool(spool.absolute()), quiet=quiet, profile=profile)
        last = Round(0, 0, 0, 0)
        while True:
            try:
                last = watcher.round()
                if once:
                    # Folders without a sign of completeness have to be seen twice.
                    stop.wait(quiet)
                    again = watcher.round()
                    return Round(
                        last.taken + again.taken,
                        last.given_back + again.given_back,
                        again.working,
                        again.blocked,
                    )
            except StoreError as error:
                if once:
                    raise
                _LOG.error("%s", error)
            except OSError as error:  # a share that is away for a while
                if once:
                    raise BadFolderError(
                        folder, f"cannot be read or written ({error.strerror})", "check it"
                    ) from error
                _LOG.error("the folder cannot be read or written (%s)", error.strerror)
            if stop.wait(every):
                return last


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise BadFolderError(folder, "is not a folder", "make it, or check the path")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise BadFolderError(folder, "cannot be written", "results go beside the jobs: allow it")


def _open(root: Path, name: Path) -> int:
    """Open a file below a folder, following no link on the way.

    Raises
    ------
    OSError
        It is not there, or there is a link by now.
    BadFolderError
        It is not a regular file.
    """
    place = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in name.parts[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            inner = os.open(part, flags, dir_fd=place)
            os.close(place)
            place = inner
        # A pipe that is not read would keep us waiting for ever.
        file = os.open(name.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
    finally:
        os.close(place)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise BadFolderError(name, "holds a special file", "put the files themselves into it")
    return file


def _image(files: tuple[str, ...]) -> str | tuple[str, ...]:
    return files[0] if len(files) == 1 else files


def _files(results: Path) -> Iterator[tuple[str, bytes]]:
    """Report and DICOM objects of a job, one after another."""
    for path in sorted(results.rglob("*")):
        if path.is_file() and path.name not in _KEPT_APART:
            yield path.relative_to(results).as_posix(), path.read_bytes()


def _sweep(folder: Path) -> None:
    """Remove results that a watcher was writing when it was killed."""
    for one in folder.glob(f".*{_PART}"):
        try:
            if time.time() - one.stat().st_mtime > _STALE_PART_SECONDS:
                shutil.rmtree(one)
        except OSError:
            _LOG.debug("a part stays")
