"""Which image a derived one was made from: by what it refers to, else by where it lies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from medqa.catalogue import Catalogue, Entry, look
from medqa.dicom.files import header, reading
from medqa.pairing import Pair, pair
from medqa.queue.submission import Spool

from . import inbox
from .inbox import Series

__all__ = ["Finding", "Missing", "find", "lossy"]


Open = Literal["no source", "ambiguous", "incomplete", "damaged"]


@dataclass(frozen=True)
class Missing:
    """Instances that a derived image names as its sources, and that are not all here."""

    study_uid: str
    instances: frozenset[str]


@dataclass(frozen=True)
class Finding:
    """What a series is to this node.

    Parameters
    ----------
    pairs
        Its derived images, each with its source.
    missing
        Sources to fetch.
    open
        Why an image of the series is in no pair, though it is derived; None where none is.
    wait
        Seconds until a source that is arriving can be complete.
    """

    pairs: tuple[Pair, ...] = ()
    missing: tuple[Missing, ...] = ()
    open: Open | None = None
    wait: float = 0.0


def find(spool: Spool, one: Series, quiet_seconds: float) -> Finding:
    """Find the sources of the derived images of a series.

    An image that names its sources is paired with these alone, once all of them are here and
    their series are complete. One that names none is paired within its study, with images that
    are not derived themselves.

    Raises
    ------
    MedqaError
        The spool cannot be read.
    """
    found = look(one.folder, series_only=True)
    if found.refused:  # a slice of it would be lost unnoticed
        return Finding(open="damaged")
    pairs: list[Pair] = []
    missing: list[Missing] = []
    why: Open | None = None
    wait = 0.0
    for entry in found.entries:
        if not _is_derived(entry):
            continue
        references: Iterable[Series]
        if entry.sources:
            references, complete = inbox.holders(spool, one.folder.parent, entry.sources)
            if not complete:
                if entry.study_uid:
                    missing.append(Missing(entry.study_uid, entry.sources))
                why = "no source"
                continue
        else:
            references = [
                other for other in inbox.series(spool) if other.folder.parent == one.folder.parent
            ]
        references = [other for other in references if other.name != one.name]
        rest = max((quiet_seconds - other.quiet_for() for other in references), default=0.0)
        if rest > 0:
            why, wait = "incomplete", max(wait, rest)
            continue
        entries = [
            image
            for other in references
            for image in look(other.folder, series_only=True).entries
            if entry.sources or not _is_derived(image)
        ]
        result = pair(_catalogue(one, entries), _catalogue(one, [entry]))
        pairs += result.pairs
        if not result.pairs:
            why = "ambiguous" if result.ambiguous else "no source"
    return Finding(tuple(pairs), tuple(missing), why, wait)


def lossy(entry: Entry) -> bool:
    """Whether an image says that it was compressed with loss (PS3.3 C.7.6.1.1.5)."""
    with reading(entry.paths[0]):
        return str(header(entry.paths[0]).get("LossyImageCompression") or "") == "01"


def _is_derived(entry: Entry) -> bool:
    """Whether an image was made from another (PS3.3 C.7.6.1.1.2), or compressed with loss."""
    if entry.sources:
        return True
    with reading(entry.paths[0]):
        found = header(entry.paths[0])
        kind = found.get("ImageType") or []
        first = kind if isinstance(kind, str) else next(iter(kind), "")
        described = found.get("DerivationDescription") or found.get("DerivationCodeSequence")
    return first == "DERIVED" or bool(described) or lossy(entry)


def _catalogue(one: Series, entries: Iterable[Entry]) -> Catalogue:
    return Catalogue(one.folder, tuple(entries))
