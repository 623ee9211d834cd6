"""The side of a DICOM node that calls: sources by C-MOVE or C-GET, results by C-STORE."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)
from pynetdicom import StoragePresentationContexts, build_context, build_role
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from medqa.dicom.files import header

from .receiver import Handler, entity
from .settings import Peer, Settings

__all__ = ["fetch", "forward"]

# Study Root Query/Retrieve Information Model (PS3.4 C.6.2.3).
_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")
_MOVE = UID("1.2.840.10008.5.1.4.1.2.2.2")
_GET = UID("1.2.840.10008.5.1.4.1.2.2.3")
_LOG = logging.getLogger("medqa.dicom-node")
_PENDING = (0xFF00, 0xFF01)  # PS3.4 C.4.1.1.4
_STORED = (0x0000, 0xB000, 0xB006, 0xB007)  # success, and stored with a warning: PS3.4 B.2.3
_PLAIN: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
# Of images that are no video, as archives keep them (PS3.5 10); JPEG 2000 has HTJ2K with it.
_COMPRESSED: list[str | UID] = [
    *(*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes, RLELossless),
]
_MOST_SERIES = 1000  # of a study, that are asked for
_COMMON = [str(one.abstract_syntax) for one in StoragePresentationContexts]
_CONTEXTS = 128  # in one association: PS3.8 9.3.2.2


def fetch(
    settings: Settings,
    peer: Peer,
    study_uid: str,
    instances: Collection[str],
    handlers: Sequence[Handler],
) -> bool:
    """Fetch the series that hold some instances; return whether the peer has sent any.

    The peer is asked which series of the study hold them, as its queries are hierarchical (PS3.4
    C.4.1.3.1.1). Then it sends these by C-MOVE to this node or, where it cannot, by C-GET on the
    association itself.

    Parameters
    ----------
    study_uid
        Of the derived image: its source is looked for in the same study.
    handlers
        What answers the C-STORE of a C-GET.
    """
    with _associated(settings, peer, [build_context(_FIND), build_context(_MOVE)]) as assoc:
        if assoc is None:
            return False
        wanted = list(_series_of(assoc, study_uid, instances))
        moved = [one for one in wanted if _move(assoc, settings.title, study_uid, one[0])]
    if len(moved) == len(wanted):
        return bool(moved)
    got = [_get(settings, peer, study_uid, *one, handlers) for one in wanted if one not in moved]
    return bool(moved) or any(got)


def forward(settings: Settings, peer: Peer, files: Sequence[Path]) -> bool:
    """Send results; return whether the peer has them, but for kinds that it does not know.

    The structured report must be taken. Many archives take no Parametric Map, and asking again
    would not change that.
    """
    headers = [header(path) for path in files]
    contexts = [
        build_context(uid, one.file_meta.TransferSyntaxUID)
        for one in headers
        for uid in [one.SOPClassUID]
    ]
    with _associated(settings, peer, contexts) as assoc:
        if assoc is None:
            return False
        known = {one.abstract_syntax for one in assoc.accepted_contexts}
        for path, found in zip(files, headers, strict=True):
            if found.SOPClassUID not in known:
                _LOG.warning("%s is not taken: its class is not", path.name)
                if found.get("Modality") == "SR":
                    return False
                continue
            status = assoc.send_c_store(path).get("Status")
            if status not in _STORED:
                _LOG.warning("%s was not stored: %s", path.name, _words(status))
                return False
    return True


def _series_of(
    assoc: Association, study_uid: str, instances: Collection[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    """Series of a study that hold some instances, with the SOP classes in each."""
    asked = {"QueryRetrieveLevel": "SERIES", "StudyInstanceUID": study_uid}
    all_series = _found(assoc, asked | {"SeriesInstanceUID": ""})
    for one in all_series[:_MOST_SERIES]:
        uid = str(one.get("SeriesInstanceUID") or "")
        asked = {
            "QueryRetrieveLevel": "IMAGE",
            "StudyInstanceUID": study_uid,
            "SeriesInstanceUID": uid,
            "SOPInstanceUID": "",
            "SOPClassUID": "",
        }
        images = _found(assoc, asked) if uid else []
        if any(image.get("SOPInstanceUID") in instances for image in images):
            yield uid, frozenset(str(image.get("SOPClassUID") or "") for image in images) - {""}


def _found(assoc: Association, asked: dict[str, str]) -> list[Dataset]:
    answers = assoc.send_c_find(_dataset(asked), _FIND) if assoc.is_established else ()
    found = []
    for status, identifier in answers:
        if status.get("Status") in _PENDING and identifier is not None:
            found.append(identifier)
        elif status.get("Status") != 0x0000:
            _LOG.warning("C-FIND failed: %s", _words(status.get("Status")))
    return found


def _move(assoc: Association, title: str, study_uid: str, series_uid: str) -> bool:
    if not any(one.abstract_syntax == _MOVE for one in assoc.accepted_contexts):
        return False
    asked = _series(study_uid, series_uid)
    answers = assoc.send_c_move(asked, title, _MOVE) if assoc.is_established else ()
    return _completed("C-MOVE", [status for status, _ in answers])


def _get(
    settings: Settings,
    peer: Peer,
    study_uid: str,
    series_uid: str,
    classes: frozenset[str],
    handlers: Sequence[Handler],
) -> bool:
    """C-GET, in whichever transfer syntax the peer has each image."""
    wanted = sorted(classes) or _COMMON  # SOP Class UID is an optional key of a query
    wanted = wanted[: _CONTEXTS - 1]
    contexts = [build_context(_GET), *_receivable(wanted)]
    roles = [build_role(UID(uid), scp_role=True) for uid in wanted]
    with _associated(settings, peer, contexts, roles, handlers) as assoc:
        if assoc is None or not any(one.abstract_syntax == _GET for one in assoc.accepted_contexts):
            return False
        answers = assoc.send_c_get(_series(study_uid, series_uid), _GET)
        return _completed("C-GET", [status for status, _ in answers])


def _receivable(classes: Sequence[str]) -> list[PresentationContext]:
    """Contexts to receive classes in: each compressed syntax apart, as far as there is room.

    Of the syntaxes of one context a peer accepts a single one (PS3.8 9.3.3.2), and Orthanc takes
    one that is not compressed. What it holds compressed it then sends only if it can decode it.
    """
    if len(classes) * (1 + len(_COMPRESSED)) >= _CONTEXTS:
        return [build_context(uid, _PLAIN + _COMPRESSED) for uid in classes]
    apart = [[one] for one in _COMPRESSED]
    return [build_context(uid, syntaxes) for uid in classes for syntaxes in (_PLAIN, *apart)]


def _completed(service: str, answers: Sequence[Dataset]) -> bool:
    status = answers[-1].get("Status") if answers else None
    if status != 0x0000:
        _LOG.warning("%s failed: %s", service, _words(status))
    return status == 0x0000


@contextmanager
def _associated(
    settings: Settings,
    peer: Peer,
    contexts: list[PresentationContext],
    roles: Sequence[Any] = (),
    handlers: Sequence[Handler] = (),
) -> Iterator[Association | None]:
    """Open an association for as long as needed; None where the peer cannot be reached."""
    tls = (settings.tls.context(server=False), None) if settings.tls else None
    try:
        assoc = entity(settings).associate(
            peer.host,
            peer.port,
            contexts=contexts,
            ae_title=peer.title,
            ext_neg=list(roles),
            evt_handlers=list(handlers),
            tls_args=tls,  # type: ignore[arg-type]
        )
    except OSError:  # a host that has no address
        assoc = None
    if assoc is None or not assoc.is_established:
        _LOG.warning("a peer cannot be reached, or rejects this node")
        yield None
        return
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


def _series(study_uid: str, series_uid: str) -> Dataset:
    return _dataset(
        {
            "QueryRetrieveLevel": "SERIES",
            "StudyInstanceUID": study_uid,
            "SeriesInstanceUID": series_uid,
        }
    )


def _dataset(values: dict[str, str]) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def _words(status: int | None) -> str:
    return "no answer" if status is None else f"status 0x{status:04X}"
