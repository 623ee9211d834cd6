"""The node: what arrives is paired and put into the queue, what was judged is sent on.

::

    C-STORE -> spool -> series quiet -> source found (or fetched) -> submit -> ... -> C-STORE

Assessing is the workers' business (`medqa worker`): no network is loaded in this process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from medqa.assessment import Job
from medqa.audit import Store, pseudonym
from medqa.errors import MedqaError, UsageError
from medqa.pairing import Pair
from medqa.queue import Queued, deliver, undelivered
from medqa.queue.jobs import oldest
from medqa.queue.submission import Spool, submit

from . import inbox, pairs
from .calls import fetch, forward
from .inbox import Series
from .receiver import prepare, receiving, start, sweep
from .settings import Peer, Settings

__all__ = ["ORIGIN", "serve"]

ORIGIN = "dicom-node"
_LOG = logging.getLogger("medqa.dicom-node")
_TICK_SECONDS = 1.0
_LONGEST_WAIT = 900.0  # seconds between two tries of what fails again and again
_DAY = 86400.0
_FILES = ("sr.dcm", "summary.dcm", "distance-map.dcm")
_MOST_UNDELIVERED = 1000  # looked at in one turn
_Files = tuple[tuple[str, ...], tuple[str, ...]]  # of a reference and of a candidate


@dataclass
class _Tries:
    """When to try again what failed: after twice the time at each failure."""

    first: float
    due: dict[str, tuple[float, float]] = field(default_factory=dict)

    def is_due(self, name: str) -> bool:
        return name not in self.due or time.monotonic() >= self.due[name][0]

    def failed(self, name: str) -> None:
        wait = self.due[name][1] * 2 if name in self.due else self.first
        wait = min(wait, _LONGEST_WAIT)
        self.due[name] = time.monotonic() + wait, wait

    def later(self, name: str, seconds: float) -> None:
        """Wait for what is under way: that is no failure."""
        self.due[name] = time.monotonic() + seconds, self.first / 2

    def succeeded(self, name: str) -> None:
        self.due.pop(name, None)


def serve(settings: Settings, stop: threading.Event) -> None:
    """Run a node until told to stop. The process is the node's alone (`receiver.prepare`).

    Raises
    ------
    UsageError
        The database, the spool or a certificate cannot be used, or nobody may send.
    OSError
        The port cannot be listened on.
    """
    spool = Spool(settings.spool)
    prepare(spool)
    with Store.open(settings.db) as store:
        server = start(settings, spool, store)
        work = [_every(stop, _Sorting(settings, spool, store))]
        if settings.forward is not None:
            work.append(_every(stop, _Giving(settings, settings.forward, store)))
        _LOG.info("listening")
        try:
            stop.wait()
        finally:
            stop.set()
            server.ae.shutdown()  # what is not acknowledged is sent again
            for thread in work:
                thread.join()


def _every(stop: threading.Event, turn: Callable[[], None]) -> threading.Thread:
    """Take a turn every second, whatever becomes of the one before."""

    def run() -> None:
        while not stop.wait(_TICK_SECONDS):
            _attempt(turn)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _attempt(work: Callable[[], None]) -> bool:
    """Do something; return whether it went well, and log where not, in words that name nobody."""
    try:
        work()
    except MedqaError as error:
        _LOG.error("%s; %s", error.reason, error.mend)
    except Exception as error:  # one damaged object must not keep the others waiting
        _LOG.error("an error of medqa's own (%s); report it", type(error).__name__)
    else:
        return True
    return False


class _Sorting:
    """Deals with every series that is complete."""

    def __init__(self, settings: Settings, spool: Spool, store: Store) -> None:
        self._settings, self._spool, self._store = settings, spool, store
        self._tries = _Tries(max(5.0, settings.quiet_seconds))
        self._known: dict[str, int] = {}  # when a series was dealt with, or tried, and changed
        self._submitted: dict[str, set[_Files]] = {}  # of a series that waits: its pairs
        self._cleaned = 0.0

    def __call__(self) -> None:
        """Look at every series once."""
        quiet = self._settings.quiet_seconds
        for one in list(inbox.series(self._spool)):
            if one.quiet_for() < quiet or inbox.settled(self._spool, one):
                continue
            if self._known.get(one.name) != one.changed:
                self._tries.succeeded(one.name)
                self._submitted.pop(one.name, None)
                self._known[one.name] = one.changed
            if self._tries.is_due(one.name) and not _attempt(partial(self._deal_with, one)):
                self._tries.failed(one.name)
        if time.monotonic() - self._cleaned > _DAY / 24 or not self._cleaned:
            self._cleaned = time.monotonic()
            sweep(self._spool, 10 * self._settings.limits.network_seconds)
            self._purge()

    def _deal_with(self, one: Series) -> None:
        """Submit the derived images of a series, or have their sources fetched."""
        found = pairs.find(self._spool, one, self._settings.quiet_seconds)
        for pair in found.pairs:
            self._submit(one, pair)
        if found.open == "incomplete":
            self._tries.later(one.name, found.wait)
            return
        if found.open is not None:
            _LOG.warning("series %s waits: %s", self._code(one), found.open)
            for missing in found.missing:
                self._fetch(missing)
            self._tries.failed(one.name)
            return
        self._tries.succeeded(one.name)
        self._submitted.pop(one.name, None)
        inbox.mark(self._spool, one)
        self._wake(one)

    def _wake(self, one: Series) -> None:
        """Try at once what waits in the same study: this may be its source."""
        for other in inbox.series(self._spool):
            if other.folder.parent == one.folder.parent:
                self._tries.succeeded(other.name)

    def _submit(self, one: Series, pair: Pair) -> None:
        """Submit a pair, once: a submission reads all of its files."""
        reference, candidate = _files(pair.reference.paths), _files(pair.candidate.paths)
        done = self._submitted.setdefault(one.name, set())
        if (reference, candidate) in done:
            return
        for name in {path.parent.name for path in (*pair.reference.paths, *pair.candidate.paths)}:
            inbox.use(self._spool, name)
        lost = pairs.lossy(pair.candidate) and not pairs.lossy(pair.reference)
        job = Job(
            reference=reference,
            candidate=candidate,
            profile=self._settings.profile,
            task="compression" if lost else "routine",
            origin=ORIGIN,
            correlation_id=self._code(one),
        )
        queued, new = submit(self._store, self._spool, job, self._settings.limits.waiting)
        done.add((reference, candidate))
        if new:
            _LOG.info("job %s: paired by %s", queued.job_id, pair.rule)

    def _purge(self) -> None:
        """Let go of what nobody has needed for long, and no job needs that is yet to be done."""
        before = time.time() - _DAY * self._settings.limits.keep_days
        waiting_since = oldest(self._store)
        if waiting_since is not None:  # by the database's clock, which may differ from this one
            before = min(before, waiting_since - _DAY)
        inbox.purge(self._spool, before)

    def _fetch(self, missing: pairs.Missing) -> None:
        settings = self._settings
        handlers = receiving(settings, self._spool, self._store)
        for peer in settings.peers:
            if fetch(settings, peer, missing.study_uid, missing.instances, handlers):
                return

    def _code(self, one: Series) -> str:
        """Name a series where nobody may learn its UID: under the database's key."""
        return pseudonym(self._store.key, one.name)[:16]


class _Giving:
    """Sends results on until they were taken."""

    def __init__(self, settings: Settings, peer: Peer, store: Store) -> None:
        self._settings, self._peer, self._store = settings, peer, store
        self._tries = _Tries(5.0)

    def __call__(self) -> None:
        """Send the results of every job that is done."""
        for job in undelivered(self._store, ORIGIN, _MOST_UNDELIVERED):
            if not self._tries.is_due(job.job_id):
                continue
            if _attempt(partial(self._give, job)):
                self._tries.succeeded(job.job_id)
            else:
                self._tries.failed(job.job_id)

    def _give(self, job: Queued) -> None:
        folder = Path(job.results or "nowhere") / "dicom"
        files = [folder / name for name in _FILES if (folder / name).is_file()]
        if job.state == "dead":
            _LOG.error("job %s is dead: %s", job.job_id, job.reason)
        elif not files:
            _LOG.error("job %s has no DICOM results", job.job_id)
        elif not forward(self._settings, self._peer, files):
            raise UsageError(job.job_id, f"job {job.job_id} was not taken", "it is sent again")
        deliver(self._store, job.job_id)


def _files(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Paths in the spool by content: a link could lead to another version tomorrow."""
    return tuple(str(path.resolve()) for path in paths)
