"""Preferences as a table: which of two candidates of one reference readers would rather read.

Either forced choices, one row each: ``reference``, ``a``, ``b``, ``preferred``; or ratings, one
row for each candidate: ``reference``, ``candidate``, ``rating``. Paths are relative to the table.
Errors name the line and the column, never an image, a patient or a reader.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from medqa.errors import UsageError

__all__ = ["Preference", "Preferences", "read_preferences"]

Kind = Literal["choices", "ratings"]
_COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "choices": ("reference", "a", "b", "preferred"),
    "ratings": ("reference", "candidate", "rating"),
}
_OPTIONAL = ("reader", "group", "patient")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Preference:
    """What was said of two candidates of one reference.

    Parameters
    ----------
    share
        Share of the choices that fell on `a`, in [0, 1].
    weight
        How much it counts; a single choice counts 1.
    patient
        Whose images they are; None where the table does not say.
    """

    reference: Path
    a: Path
    b: Path
    share: float
    weight: float
    patient: str | None


@dataclass(frozen=True)
class Preferences:
    """A table of preferences, read and checked.

    Parameters
    ----------
    judgments
        How many rows were used: choices, or ratings.
    readers
        How many readers the table tells apart; 0 where it does not say.
    group
        The group of readers whose judgments alone were used; None for all.
    clustered
        Whether the table tells patients apart.
    sha256
        SHA-256 of the table's file.
    """

    pairs: tuple[Preference, ...]
    kind: Kind
    judgments: int
    readers: int
    group: str | None
    clustered: bool
    sha256: str


@dataclass(frozen=True)
class _Row:
    """Cells by column, and the line they are on."""

    line: int
    cells: Mapping[str, str]


def read_preferences(path: Path, *, group: str | None = None) -> Preferences:
    """Read a table of preferences, UTF-8, cells separated by commas, decimal points.

    1. The header: choices or ratings, no column unknown, none missing.
    2. The rows of the group.
    3. No judgment given twice, no reference of two patients.
    4. Choices as they are; ratings as all pairs of candidates within one reference and reader.
       Two equal ratings state no preference. Of n ratings the pairs weigh 2/n each, n - 1 in all:
       as many comparisons as put n candidates in order.

    Parameters
    ----------
    group
        Use only the judgments of this group of readers.

    Raises
    ------
    UsageError
        The table cannot be read or used; names the line and the column.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(path, f"cannot be read ({error.strerror})", "check the path") from error
    except UnicodeDecodeError as error:
        raise UsageError(path, "is not UTF-8 text", "save it as CSV in UTF-8") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)

    # 1. Header.
    header = _header(path, next(_guarded(path, rows), []))
    kind: Kind = "choices" if "preferred" in header else "ratings"
    if group is not None and "group" not in header:
        raise UsageError(path, "line 1: column group is missing", "add it, or leave --group out")

    # 2. Rows.
    every = [_row(path, rows.line_num, header, cells) for cells in _guarded(path, rows) if cells]
    chosen = [row for row in every if group is None or row.cells["group"] == group]
    if not chosen:
        reason = "holds no judgments" if group is None else "holds no judgments of this group"
        raise UsageError(path, reason, "add a row for each judgment")

    # 3. Each judgment once.
    _check_once(path, chosen, kind)
    _check_patients(path, chosen)

    # 4. Pairs.
    found = _choices(path, chosen) if kind == "choices" else _rated(path, chosen)
    pairs = tuple(found)
    if not pairs:
        reason = "no two candidates of one reference have different ratings by one reader"
        raise UsageError(path, reason, "rate several candidates of each reference")
    return Preferences(
        pairs=pairs,
        kind=kind,
        judgments=len(chosen),
        readers=len({row.cells["reader"] for row in chosen}) if "reader" in header else 0,
        group=group,
        clustered="patient" in header,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _guarded(path: Path, rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yield rows until they end; say so where they are no CSV."""
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UsageError(path, f"is not CSV ({error})", "correct it") from error
        if row is None:
            return
        yield row


def _header(path: Path, header: Sequence[str]) -> tuple[str, ...]:
    names = tuple(one.strip() for one in header)
    if len(names) == 1 and ";" in names[0]:
        reason = "its cells are separated by semicolons"
        raise UsageError(path, reason, "save it with commas and decimal points")
    if len(set(names)) < len(names):
        raise UsageError(path, "line 1: two columns have the same name", "rename one of them")
    both = {*_COLUMNS["choices"], *_COLUMNS["ratings"], *_OPTIONAL}
    if unknown := [one for one in names if one not in both]:
        reason = f"line 1: column {', '.join(unknown)} is not understood"
        raise UsageError(path, reason, f"remove it; known are {', '.join(sorted(both))}")
    for columns in _COLUMNS.values():
        if {*names} - {*_OPTIONAL} == {*columns}:
            return names
    choices, ratings = (", ".join(columns) for columns in _COLUMNS.values())
    raise UsageError(
        path,
        "line 1: holds the columns neither of choices nor of ratings",
        f"give {choices} or {ratings}",
    )


def _row(path: Path, line: int, header: Sequence[str], row: Sequence[str]) -> _Row:
    if len(row) != len(header):
        reason = f"{len(row)} cells, not {len(header)}"
        raise _wrong(path, line, None, reason, "quote cells with commas")
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    for name, cell in cells.items():
        if not cell:
            raise _wrong(path, line, name, "is empty", "fill it in, or remove the row")
    for name in {"reference", "a", "b", "candidate"} & cells.keys():
        if "\0" in cells[name]:
            raise _wrong(path, line, name, "is no path", "name a file")
        # One spelling for one file, so that a judgment given twice is found.
        cells[name] = os.path.normpath(path.parent / cells[name])
    return _Row(line, cells)


def _check_once(path: Path, rows: Sequence[_Row], kind: Kind) -> None:
    first: dict[tuple[object, ...], int] = {}
    for row in rows:
        shown = [row.cells[name] for name in _COLUMNS[kind][1:-1]]
        if kind == "choices" and shown[0] == shown[1]:
            raise _wrong(path, row.line, "b", "is the same file as a", "give two candidates")
        judged = (row.cells.get("reader"), row.cells["reference"], *sorted(shown))
        before = first.setdefault(judged, row.line)
        if before != row.line:
            mend = "keep one of the two; several readers are told apart by a column reader"
            raise _wrong(path, row.line, None, f"judged on line {before} already", mend)


def _check_patients(path: Path, rows: Sequence[_Row]) -> None:
    first: dict[str, _Row] = {}
    for row in rows:
        before = first.setdefault(row.cells["reference"], row)
        if before.cells.get("patient") != row.cells.get("patient"):
            reason = f"differs from line {before.line}, which is of the same reference"
            raise _wrong(path, row.line, "patient", reason, "give each reference one patient")


def _choices(path: Path, rows: Sequence[_Row]) -> Iterator[Preference]:
    for row in rows:
        cell = row.cells["preferred"]
        share = {"a": 1.0, "b": 0.0}.get(cell.casefold(), _number(cell))
        if not 0.0 <= share <= 1.0:  # NaN is not either
            mend = "write a or b, or the share of choices that fell on a, from 0 to 1"
            raise _wrong(path, row.line, "preferred", f"'{cell[:20]}' is no choice", mend)
        yield _preference(row, row.cells["a"], row.cells["b"], share, 1.0)


def _rated(path: Path, rows: Sequence[_Row]) -> Iterator[Preference]:
    sets: dict[tuple[str | None, str], list[tuple[float, _Row]]] = {}
    for row in rows:
        rating = _number(row.cells["rating"])
        if not math.isfinite(rating):
            reason = f"'{row.cells['rating'][:20]}' is no number"
            raise _wrong(path, row.line, "rating", reason, "write a number; higher is better")
        judged = row.cells.get("reader"), row.cells["reference"]
        sets.setdefault(judged, []).append((rating, row))
    for rated in sets.values():
        for (one, row), (other, second) in combinations(rated, 2):
            if one != other:
                a, b = row.cells["candidate"], second.cells["candidate"]
                yield _preference(row, a, b, float(one > other), 2.0 / len(rated))


def _preference(row: _Row, a: str, b: str, share: float, weight: float) -> Preference:
    patient = row.cells.get("patient")
    return Preference(Path(row.cells["reference"]), Path(a), Path(b), share, weight, patient)


def _number(cell: str) -> float:
    return float(cell) if _NUMBER.fullmatch(cell) else math.nan


def _wrong(path: Path, line: int, column: str | None, reason: str, mend: str) -> UsageError:
    where = f"line {line}" if column is None else f"line {line}, column {column}"
    return UsageError(path, f"{where}: {reason}", mend)
