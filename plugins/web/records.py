"""What the review page shows of the record as a whole: approvals, control charts, audit trail."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from medqa.audit import Entry, Store, Verification, verify
from medqa.audit.tables import entries
from medqa.compression.approvals import Approved, listed
from medqa.errors import StoreError
from medqa.quality.alerts import watch
from medqa.quality.charts import BASELINE
from medqa.quality.monitor_page import page
from medqa.quality.series import gather

__all__ = ["Checked", "Line", "Matrix", "Verifier", "charts", "matrix", "trail"]

_LINES = 50
_PATIENCE_SECONDS = 2.0  # for a check before the page is shown without it


@dataclass(frozen=True)
class Matrix:
    """Approvals by modality and codec, the newest first in each cell."""

    modalities: Sequence[str]
    codecs: Sequence[str]
    cells: Mapping[tuple[str, str], Sequence[Approved]]


@dataclass(frozen=True)
class Line:
    """An entry of the audit trail, and what a signature means."""

    entry: Entry
    meaning: str


@dataclass(frozen=True)
class Checked:
    """What is known of the record's wholeness.

    Parameters
    ----------
    found
        The last verification; None before the first has ended.
    at
        When it ended, in UTC.
    newest
        Number of the newest entry, which may be later than the last verified.
    running
        Whether one runs now.
    """

    found: Verification | None
    at: datetime.datetime | None
    newest: int
    running: bool


class Verifier:
    """Verifies the record whenever it has grown, one at a time, aside from the requests."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._found: Verification | None = None
        self._at: datetime.datetime | None = None
        self._upto = -1
        self._thread: threading.Thread | None = None

    def look(self, store: Store) -> Checked:
        """Return what is known; begin to verify where there are newer entries.

        Raises
        ------
        StoreError
            The record cannot be read.
        """
        with store.reading() as connection:
            newest = connection.scalar(select(func.max(entries.c.sequence))) or 0
        with self._guard:
            idle = self._thread is None or not self._thread.is_alive()
            if idle and newest != self._upto:
                self._thread = threading.Thread(target=self._verify, args=(store, newest))
                self._thread.daemon = True
                self._thread.start()
            thread = self._thread
        if thread is not None:
            thread.join(_PATIENCE_SECONDS)
        with self._guard:
            running = thread is not None and thread.is_alive()
            return Checked(self._found, self._at, newest, running)

    def _verify(self, store: Store, newest: int) -> None:
        try:
            found = verify(store)
        except StoreError:
            return  # the next look tries again
        with self._guard:
            self._found, self._at = found, datetime.datetime.now(datetime.UTC)
            self._upto = newest


def matrix(store: Store) -> Matrix:
    """Approvals by modality and codec. Raises StoreError."""
    cells: dict[tuple[str, str], list[Approved]] = {}
    for one in listed(store):
        cells.setdefault((one.approval.scope.modality, one.approval.codec), []).append(one)
    return Matrix(
        sorted({modality for modality, _ in cells}), sorted({codec for _, codec in cells}), cells
    )


def charts(store: Store) -> bytes:
    """HTML page of the control charts. Raises StoreError."""
    found = gather(store)
    return page(found, watch(found.series), BASELINE, datetime.datetime.now(datetime.UTC))


def trail(store: Store, before: int | None) -> tuple[tuple[Line, ...], bool]:
    """Entries of the record, the newest first, and whether there are earlier ones.

    Parameters
    ----------
    before
        Number that all are below; None for the newest.
    """
    query = select(entries).order_by(entries.c.sequence.desc()).limit(_LINES + 1)
    if before is not None:
        query = query.where(entries.c.sequence < before)
    with store.reading() as connection:
        rows = [Entry(*row) for row in connection.execute(query)]
    return tuple(Line(one, _meaning(one)) for one in rows[:_LINES]), len(rows) > _LINES


def _meaning(entry: Entry) -> str:
    if entry.kind != "signature":
        return ""
    try:
        return str(json.loads(entry.body)["meaning"])
    except (ValueError, TypeError, KeyError):
        return "unknown"  # the verification says what is wrong with it
