"""DICOMweb: find derived series on a server, fetch them, and store the results back.

QIDO-RS finds (PS3.18 10.6), WADO-RS fetches (10.4), STOW-RS stores (10.5). One round does all
three, and keeps what it has to know in the spool and in the queue, so that it can be run again and
again, by a timer or in a loop: what was done is not done twice. A series that has grown since is
fetched and judged again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medqa.assessment import Job
from medqa.audit import Store, pseudonym
from medqa.catalogue import Catalogue, Entry, look
from medqa.derivation import is_ours, pair_within
from medqa.dicom.files import header, is_dicom, reading
from medqa.errors import MedqaError, ReadError, UsageError
from medqa.files import write_file
from medqa.pairing import Pair, pair
from medqa.queue import QueueFullError, deliver, undelivered

from .dicomweb_server import Series, Server, ServerError, checked

if TYPE_CHECKING:
    from medqa.queue.submission import Spool

__all__ = ["ORIGIN", "Round", "compare", "give_back", "search"]

ORIGIN = "dicomweb"
_LOG = logging.getLogger("medqa.dicomweb")
_MOST_RESULTS = 10_000
_NO_IMAGES = frozenset(
    ["SR", "SEG", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "DOC", "AU", "ECG", "M3D"]
)


@dataclass(frozen=True)
class Round:
    """What one round came to.

    Parameters
    ----------
    new
        Jobs put into the queue.
    known
        Jobs that were there already.
    refused
        Studies or pairs that could not be fetched or paired; the next round tries again.
    """

    new: int = 0
    known: int = 0
    refused: int = 0

    def __add__(self, other: Round) -> Round:
        return Round(self.new + other.new, self.known + other.known, self.refused + other.refused)


def compare(
    server: Server,
    store: Store,
    spool: Spool,
    reference: str,
    candidate: str,
    profile: str | None = None,
) -> Round:
    """Fetch two series and put their comparison into the queue.

    Parameters
    ----------
    reference, candidate
        Series Instance UIDs.
    profile
        Thresholds, as of `medqa.Job`.

    Raises
    ------
    UsageError
        The server has no such series or does not answer, or they hold no one pair of images.
    """
    ours, theirs = server.series(reference), server.series(candidate)
    if ours == theirs:
        raise UsageError("series", "are the same", "name the reference and the candidate")
    with tempfile.TemporaryDirectory() as folder:
        mine = _headers(server, [ours], Path(folder, "reference"))
        its = _headers(server, [theirs], Path(folder, "candidate"))
        if len(mine.entries) == len(its.entries) == 1:
            found: Sequence[Pair] = (Pair(mine.entries[0], its.entries[0], "as given"),)
        else:
            pairing = pair(mine, its)
            found = () if pairing.ambiguous else pairing.pairs
    if len(found) != 1:
        raise UsageError(
            "series", "hold no one pair of images", "see what they hold, and give others"
        )
    return _submit(server, store, spool, found[0], [ours, theirs], profile)


def search(
    server: Server,
    store: Store,
    spool: Spool,
    *,
    study: str | None = None,
    since: date | None = None,
    profile: str | None = None,
) -> Round:
    """Find derived series with their sources, and put what is new into the queue.

    A study whose series have not changed since it was searched is passed over.

    Parameters
    ----------
    study
        Study Instance UID; None for all studies since a date.
    since
        Study Date from which on.

    Raises
    ------
    ServerError
        The server does not answer, or refuses.
    QueueFullError
        As many jobs wait as may.
    """
    studies = [checked(study)] if study is not None else server.studies(since)
    total = Round()
    for uid in studies:
        try:
            total += _study(server, store, spool, uid, profile)
        except (QueueFullError, ServerError):
            raise
        except MedqaError as error:
            _LOG.error("a study is passed over: %s; %s", error.reason, error.mend)
            total += Round(refused=1)
    return total


def _study(server: Server, store: Store, spool: Spool, uid: str, profile: str | None) -> Round:
    series = [one for modality, one in server.series_of(uid) if modality not in _NO_IMAGES]
    mark = _mark(spool, server, series)
    if len(series) < 2 or mark.exists():
        return Round()
    with tempfile.TemporaryDirectory() as folder:
        catalogue = _headers(server, series, Path(folder))
        if catalogue.refused:
            raise catalogue.refused[0]
        found = pair_within(catalogue)
    total = Round()
    for one in found.pairs:
        total += _submit(server, store, spool, one, series, profile)
    if found.ambiguous:
        _LOG.warning("%d groups of series cannot be paired without doubt", len(found.ambiguous))
        total += Round(refused=len(found.ambiguous))
    if total.refused == 0:
        write_file(mark, b"")
    return total


def _mark(spool: Spool, server: Server, series: Iterable[Series]) -> Path:
    """File that says that these series, with these numbers of instances, were searched."""
    what = [server.url, sorted((one.study, one.uid, one.instances) for one in series)]
    name = hashlib.sha256(json.dumps(what).encode()).hexdigest()
    return spool.folder / "dicomweb" / name


def _headers(server: Server, series: Iterable[Series], folder: Path) -> Catalogue:
    """Catalogue of series by their headers alone: no pixel is fetched."""
    folder.mkdir(exist_ok=True)
    number = 0
    for one in series:
        for ds in server.metadata(one):
            number += 1
            if is_ours(ds):
                continue
            with reading("metadata"):
                _write_header(ds, folder / f"{number}")
    return look(folder)


def _write_header(ds: Dataset, path: Path) -> None:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        ds.pop(keyword, None)  # it was not fetched
    ds.save_as(path, enforce_file_format=True)


def _submit(
    server: Server,
    store: Store,
    spool: Spool,
    found: Pair,
    series: Iterable[Series],
    profile: str | None,
) -> Round:
    """Fetch both images of a pair and put their job into the queue."""
    from medqa.queue.submission import submit

    by_uid = {one.uid: one for one in series}
    job = Job(
        reference=_image(_fetched(server, spool, by_uid, found.reference)),
        candidate=_image(_fetched(server, spool, by_uid, found.candidate)),
        profile=profile,
        origin=ORIGIN,
        correlation_id=_code(store, server, found.candidate.series_uid or ""),
    )
    queued, new = submit(store, spool, job)
    _LOG.info("job %s is %s", queued.job_id, "new" if new else queued.state)
    return Round(new=1) if new else Round(known=1)


def _fetched(
    server: Server, spool: Spool, series: Mapping[str, Series], entry: Entry
) -> tuple[str, ...]:
    """Files of an image in the spool, each whole and of that image."""
    one = series.get(entry.series_uid or "")
    if one is None:
        raise ReadError("series", "is not the one that was asked for", "check the server")
    found: dict[str, str] = {}
    for content in server.instances(one):
        if not is_dicom(content[:132]):
            raise ReadError("instance", "is not DICOM", "check the server")
        path = spool.put([content])
        with reading(path):
            ds = header(path)
        if ds.get("SeriesInstanceUID") != one.uid:
            raise ReadError(path, "is of another series than was asked for", "check the server")
        found[str(ds.get("SOPInstanceUID"))] = str(path)
    missing = sum(uid not in found for uid in entry.instances)
    if missing or len(found) != one.instances:
        mend = "it may still be arriving: the next round tries again"
        raise ReadError("series", "was not fetched whole", mend)
    return tuple(found[uid] for uid in entry.instances)


def _image(files: tuple[str, ...]) -> str | tuple[str, ...]:
    return files[0] if len(files) == 1 else files


def _code(store: Store, server: Server, series: str = "") -> str:
    """Our id of a request: codes, under the record's key, of the server and of the series."""
    place = pseudonym(store.key, server.url)[:16]
    return f"{place}-{pseudonym(store.key, series)[:32]}" if series else place


def give_back(server: Server, store: Store) -> tuple[int, int]:
    """Store the results of finished jobs on the server that their images came from.

    The objects have the same UIDs each time: a server that has them already keeps one of each.

    Returns
    -------
    How many jobs' results were stored, and how many were not, as the server refused them or as
    there are none.

    Raises
    ------
    ServerError
        The server does not answer.
    """
    stored = refused = 0
    place = _code(store, server)
    for one in undelivered(store, ORIGIN, _MOST_RESULTS):
        if not (one.correlation_id or "").startswith(f"{place}-"):
            continue  # of another server
        objects = sorted(Path(one.results or "", "dicom").glob("*.dcm")) if one.results else []
        if one.state == "dead" or not objects:
            _LOG.error("job %s has no results to store", one.job_id)
            refused += 1
        elif not server.store(objects):
            _LOG.error("the server refuses results of job %s; tried again", one.job_id)
            refused += 1
            continue
        else:
            stored += 1
        deliver(store, one.job_id)
    return stored, refused
