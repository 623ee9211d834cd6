"""One round after another: read what is new, look at the studies it belongs to, give results back.

What was read is noted with what is to be done about it, so that this process, Orthanc and the
machine may stop at any moment.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from pydicom import dcmread

from medqa.assessment import Assessment, Job, Task, Verdict
from medqa.audit import Store
from medqa.catalogue import Catalogue, Entry, look
from medqa.errors import StoreError, UsageError
from medqa.pairing import RULES, pair
from medqa.queue import Queued, deliver, listed, undelivered
from medqa.queue.jobs import MOST_WAITING
from medqa.queue.submission import Spool, submit

from .rest import Orthanc, OrthancError
from .series import Series, digest, needed, read_series
from .state import State

__all__ = ["LABEL", "METADATA", "Plugin", "follow", "once", "opened"]

_LOG = logging.getLogger("medqa.orthanc")
_ORIGIN = "orthanc"
#: Number of the series' metadata that holds the verdict and the assessment's id; Orthanc leaves
#: those from 1024 to its users.
METADATA = 4870
#: What the series' label begins with, where this version of Orthanc has labels.
LABEL = "medqa-"
_CHANGES = 1000  # read at a time
_MOST_FAILURES = 5
_KEPT_SECONDS = 14 * 86_400  # images, for people to look at
_BACK_OFF = 15.0  # seconds after the first failure; four times as many after each further one
# Rules that go by what the header refers to: these may name a derived image as the source too.
_REFERRING = {rule.name for rule in RULES[:3]}
# A verdict that is missing is the worst; of the images of one series, the worst counts.
_WORST_FIRST = (None, "not_assessable", "unsuitable", "expert_review", "diagnostic")


@dataclass(frozen=True)
class Plugin:
    """What a round needs.

    Parameters
    ----------
    orthanc
        The server.
    store
        Audit database and queue.
    spool
        Where images and results lie; no other host's.
    state
        Where the plugin stands.
    profile, task
        As `medqa.Job` has them.
    """

    orthanc: Orthanc
    store: Store
    spool: Spool
    state: State
    profile: str | None = None
    task: Task = "routine"


def opened(
    orthanc: Orthanc,
    store: Store,
    folder: Path,
    *,
    profile: str | None = None,
    task: Task = "routine",
) -> Plugin:
    """Make ready; the plugin's ``state`` is to be closed in the end.

    Parameters
    ----------
    folder
        Its subfolder ``orthanc`` becomes the spool.

    Raises
    ------
    UsageError
        Another process uses this spool, or it cannot be written.
    """
    spool = Spool(folder / "orthanc")
    return Plugin(orthanc, store, spool, State(spool.folder / "state.db"), profile, task)


def follow(
    plugin: Plugin,
    every: float,
    wake: threading.Event,
    stop: threading.Event,
    *,
    backlog: bool = False,
) -> None:
    """Do round after round until told to stop; trouble is logged, and tried again.

    Parameters
    ----------
    every
        Seconds between two rounds.
    wake
        Set to begin the next one at once, also by whoever sets `stop`.
    """
    while not stop.is_set():
        wake.clear()
        try:
            once(plugin, backlog=backlog)
        except UsageError as error:  # of Orthanc, the database, the queue, the disk, the profile
            _LOG.error("%s", error)
        wake.wait(every)


def once(plugin: Plugin, *, backlog: bool = False) -> None:
    """Do a round.

    Parameters
    ----------
    backlog
        At the first start, take what Orthanc holds already, too.

    Raises
    ------
    OrthancError
        Orthanc cannot be reached. As with all errors, what is left is done in the next round.
    StoreError
        The database cannot be reached, or the queue is full.
    UsageError
        The profile or the weights cannot be used.
    """
    if _read_changes(plugin, backlog=backlog):
        _look_for_sources(plugin)
    # First, so that a study whose job is done is free to be looked at.
    _give_back_all(plugin)
    for study in plugin.state.open():
        try:
            _examine(plugin, study)
        except OrthancError as error:
            plugin.orthanc.get("/system")  # raises where it is not about this study
            _put_off(plugin, study, error.reason)
        except UsageError:  # as with a full queue or disk
            raise
        except Exception as error:  # its words may name the patient
            _put_off(plugin, study, type(error).__name__)
    _clean_up(plugin)


def _put_off(plugin: Plugin, study: str, reason: str) -> None:
    """Look at a study later: an odd one must not keep the others waiting."""
    failures = plugin.state.failed(study, _BACK_OFF)
    _LOG.error("a study cannot be looked at (%s), try %d", reason, failures)
    if failures >= _MOST_FAILURES:
        plugin.state.close(study)


def _read_changes(plugin: Plugin, *, backlog: bool) -> bool:
    """Open every study that an instance arrived in since the last time; return if any did."""
    orthanc, state = plugin.orthanc, plugin.state
    last = int((orthanc.get("/changes", last="") or {"Last": 0})["Last"])
    since = state.since
    if since is None:
        since = 0 if backlog else last
        state.advance(since, ())
    elif since > last:
        _LOG.warning("Orthanc has another database than before: all of it is looked at")
        since = 0
    any_new = False
    study_of: dict[str, str | None] = {}  # by instance
    while True:
        page = orthanc.get("/changes", since=since, limit=_CHANGES)
        instances = [one["ID"] for one in page["Changes"] if one["ChangeType"] == "NewInstance"]
        for instance in instances:
            if instance not in study_of:
                series = orthanc.get(f"/instances/{instance}/series")  # None: deleted meanwhile
                found = series["Instances"] if series else (instance,)
                study_of |= dict.fromkeys(found, series and series["ParentStudy"])
        studies = {study_of[instance] for instance in instances} - {None}
        since = int(page["Last"])
        state.advance(since, [study for study in studies if study is not None])
        any_new = any_new or bool(studies)
        if page["Done"]:
            return any_new


def _look_for_sources(plugin: Plugin) -> None:
    """Open the studies whose missing source has arrived, in whatever study."""
    for study, source in plugin.state.lacking():
        if plugin.orthanc.lookup(source) is not None:
            plugin.state.reopen(study)


def _examine(plugin: Plugin, study: str) -> None:
    """Submit what is derived in a study; leave it open while that has to wait."""
    orthanc, state = plugin.orthanc, plugin.state
    found = orthanc.get(f"/studies/{study}/series")
    if found is None:  # deleted
        state.close(study)
        return
    if not all(one["IsStable"] for one in found):
        return
    images = [image for one in found if (image := read_series(orthanc, one)) is not None]
    wanted, lacking = needed(orthanc, images)
    content = digest(wanted)
    if not wanted or state.seen(study) == content:
        state.close(study, source=lacking)
        return
    if state.busy(study) and not _lost_jobs(plugin, study):
        return  # what is submitted now may supersede what that says
    _submit_all(plugin, study, wanted)
    state.close(study, content, lacking)


def _lost_jobs(plugin: Plugin, study: str) -> bool:
    """Whether the study's jobs were dropped from the queue, so that nothing is to be expected."""
    there = {one.job_id for one in listed(plugin.store, "waiting", MOST_WAITING)}
    there |= {one.job_id for one in listed(plugin.store, "leased", MOST_WAITING)}
    there |= {one.job_id for one in undelivered(plugin.store, _ORIGIN, MOST_WAITING)}
    plugin.state.keep_jobs(study, there)
    return not plugin.state.busy(study)


def _submit_all(plugin: Plugin, study: str, wanted: Sequence[Series]) -> None:
    """Fetch the series, pair each derived image with its source, and submit what was not yet."""
    state, spool = plugin.state, plugin.spool
    derived = {one.series for one in wanted if one.derived}
    with tempfile.TemporaryDirectory(dir=spool.folder, prefix="look-") as name:
        kept = {}
        for one in wanted:
            (Path(name) / one.series).mkdir()
            for instance, _ in one.files:
                path = spool.put(plugin.orthanc.instance(instance))
                state.need(study, [path.name])
                link = Path(name) / one.series / f"{instance}.dcm"
                link.symlink_to(path.resolve())
                kept[link] = path.resolve()
        catalogue = look(name)
        if catalogue.refused:
            _LOG.warning("%d files of a study cannot be read", len(catalogue.refused))
        entries = catalogue.entries
        for candidate in (one for one in entries if _home(one) in derived and not one.localiser):
            reference = _source(candidate, catalogue, derived)
            if reference is None:
                _LOG.warning(
                    "a derived series of %d slices: its source is not known", candidate.grid.slices
                )
                continue
            image = _home(candidate) + (f"/{candidate.part}" if candidate.part else "")
            earlier = state.assessed(image)
            job = Job(
                reference=tuple(str(kept[path]) for path in reference.paths),
                candidate=tuple(str(kept[path]) for path in candidate.paths),
                profile=plugin.profile,
                task=plugin.task,
                origin=_ORIGIN,
                correlation_id=image,
                supersedes=earlier,
                reason=earlier and "the series in Orthanc has changed since",
            )
            state.expect(image, study)  # first, so that its results are known as ours
            queued, new = submit(plugin.store, spool, job)
            if queued.origin == _ORIGIN:  # else the very same files came another way
                state.submitted(queued.job_id, study, image)
            _LOG.info("job %s is %s", queued.job_id, "new" if new else queued.state)


def _home(entry: Entry) -> str:
    """Orthanc's id of the series that an image is of."""
    return entry.names[0].split("/")[0]


def _source(candidate: Entry, catalogue: Catalogue, derived: set[str]) -> Entry | None:
    """Return the image that a candidate was derived from, if that is beyond doubt.

    First by what its header refers to, which may be a derived image; then among the images that are
    not derived. Each candidate is paired alone: one source may have several.
    """
    alone = replace(catalogue, entries=(candidate,))
    others = tuple(one for one in catalogue.entries if _home(one) != _home(candidate))
    found = pair(replace(catalogue, entries=others), alone).pairs
    if found and found[0].rule in _REFERRING:
        return found[0].reference
    originals = tuple(one for one in others if _home(one) not in derived)
    found = pair(replace(catalogue, entries=originals), alone).pairs
    return found[0].reference if found else None


def _give_back_all(plugin: Plugin) -> None:
    """Bring Orthanc the results of every job that is done or dead."""
    for job in undelivered(plugin.store, _ORIGIN, MOST_WAITING):
        study = plugin.state.study_of(job.correlation_id or "")
        if study is None:  # another Orthanc's, by another process
            continue
        try:
            _give_back(plugin, job, study)
        except StoreError:
            raise
        except (UsageError, OSError) as error:
            if isinstance(error, OrthancError):
                plugin.orthanc.get("/system")  # raises where it is not about these results
            reason = error.reason if isinstance(error, UsageError) else error.strerror
            _LOG.error("the results of job %s cannot be given back: %s", job.job_id, reason)


def _give_back(plugin: Plugin, job: Queued, study: str) -> None:
    """Upload results, and mark the series; may be done again, and is after being killed within."""
    orthanc, state = plugin.orthanc, plugin.state
    image = job.correlation_id or ""
    series = image.partition("/")[0]
    there = orthanc.get(f"/series/{series}") is not None
    verdict: Verdict | None = None
    if job.assessment_id is not None:
        verdict = plugin.store.get(job.assessment_id).verdict
        for content in _results(job) if there else ():
            uid = str(
                dcmread(BytesIO(content), specific_tags=["StudyInstanceUID"]).StudyInstanceUID
            )
            # A study that was deleted would come back, with nothing else in it.
            if orthanc.lookup(uid, "Study") is not None:
                orthanc.upload(content)
    else:
        _LOG.error("job %s is dead: see medqa queue list", job.job_id)
    state.given_back(job.job_id, study, image, job.assessment_id, verdict)
    if there:
        _mark(plugin, series)
    deliver(plugin.store, job.job_id)


def _results(job: Queued) -> Iterator[bytes]:
    """Yield the DICOM objects of a job; none where its reference is no DICOM image.

    Raises
    ------
    UsageError
        They are not here, or are another assessment's.
    """
    folder = Path(job.results or "")
    try:
        record = (folder / "assessment.json").read_bytes()
    except OSError as error:
        mend = "workers and medqa orthanc must share the spool folder"
        raise UsageError(folder, "the results are not in it", mend) from error
    if Assessment.model_validate_json(record).assessment_id != job.assessment_id:
        # Of a worker that had lost its lease, and wrote its results when the record was there.
        raise UsageError(folder, "holds the results of another assessment", "see medqa audit")
    for path in sorted((folder / "dicom").glob("*.dcm")):
        yield path.read_bytes()


def _mark(plugin: Plugin, series: str) -> None:
    """Set metadata and label of a series to the worst verdict of its images."""
    verdicts = plugin.state.verdicts(series).values()
    verdict, assessment_id = min(verdicts, key=lambda one: _WORST_FIRST.index(one[0]))
    plugin.orthanc.mark(series, METADATA, f"{verdict or 'failed'} {assessment_id or ''}".strip())
    plugin.orthanc.label(series, LABEL, (verdict or "failed").replace("_", "-"))


def _clean_up(plugin: Plugin) -> None:
    """Remove old images from the spool that no job needs any more; results stay.

    Until they are old, the review pages show them.
    """
    old = time.time() - _KEPT_SECONDS
    for name in plugin.state.spent():
        path = plugin.spool.folder / "files" / name
        with suppress(FileNotFoundError):
            if path.stat().st_mtime > old:
                continue
            path.unlink()
        plugin.state.forget(name)
