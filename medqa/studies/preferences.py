"""Preferences as a table: which of two candidates of one reference readers would rather read.

Either forced choices, one row each: ``reference``, ``a``, ``b``, ``preferred``; or ratings, one
row for each candidate: ``reference``, ``candidate``, ``rating``. Paths are relative to the table.
Errors name the line and the column, never an image, a patient or a reader.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from medqa.errors import UsageError
from medqa.tables import Row, read_table, wrong

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
    table = read_table(path)

    # 1. Header.
    header = table.columns
    _check_header(path, header)
    kind: Kind = "choices" if "preferred" in header else "ratings"
    if group is not None and "group" not in header:
        raise UsageError(path, "line 1: column group is missing", "add it, or leave --group out")

    # 2. Rows.
    every = (_resolved(path, row) for row in table.rows)
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
        sha256=table.sha256,
    )


def _check_header(path: Path, names: Sequence[str]) -> None:
    both = {*_COLUMNS["choices"], *_COLUMNS["ratings"], *_OPTIONAL}
    if unknown := [one for one in names if one not in both]:
        reason = f"line 1: column {', '.join(unknown)} is not understood"
        raise UsageError(path, reason, f"remove it; known are {', '.join(sorted(both))}")
    for columns in _COLUMNS.values():
        if {*names} - {*_OPTIONAL} == {*columns}:
            return
    choices, ratings = (", ".join(columns) for columns in _COLUMNS.values())
    raise UsageError(
        path,
        "line 1: holds the columns neither of choices nor of ratings",
        f"give {choices} or {ratings}",
    )


def _resolved(path: Path, row: Row) -> Row:
    """Paths relative to the table; one spelling for one file, so that a repetition is found."""
    cells = dict(row.cells)
    for name in {"reference", "a", "b", "candidate"} & cells.keys():
        if "\0" in cells[name]:
            raise wrong(path, row.line, name, "is no path", "name a file")
        cells[name] = os.path.normpath(path.parent / cells[name])
    return Row(row.line, cells)


def _check_once(path: Path, rows: Sequence[Row], kind: Kind) -> None:
    first: dict[tuple[object, ...], int] = {}
    for row in rows:
        shown = [row.cells[name] for name in _COLUMNS[kind][1:-1]]
        if kind == "choices" and shown[0] == shown[1]:
            raise wrong(path, row.line, "b", "is the same file as a", "give two candidates")
        judged = (row.cells.get("reader"), row.cells["reference"], *sorted(shown))
        before = first.setdefault(judged, row.line)
        if before != row.line:
            mend = "keep one of the two; several readers are told apart by a column reader"
            raise wrong(path, row.line, None, f"judged on line {before} already", mend)


def _check_patients(path: Path, rows: Sequence[Row]) -> None:
    first: dict[str, Row] = {}
    for row in rows:
        before = first.setdefault(row.cells["reference"], row)
        if before.cells.get("patient") != row.cells.get("patient"):
            reason = f"differs from line {before.line}, which is of the same reference"
            raise wrong(path, row.line, "patient", reason, "give each reference one patient")


def _choices(path: Path, rows: Sequence[Row]) -> Iterator[Preference]:
    for row in rows:
        cell = row.cells["preferred"]
        share = {"a": 1.0, "b": 0.0}.get(cell.casefold(), _number(cell))
        if not 0.0 <= share <= 1.0:  # NaN is not either
            mend = "write a or b, or the share of choices that fell on a, from 0 to 1"
            raise wrong(path, row.line, "preferred", f"'{cell[:20]}' is no choice", mend)
        yield _preference(row, row.cells["a"], row.cells["b"], share, 1.0)


def _rated(path: Path, rows: Sequence[Row]) -> Iterator[Preference]:
    sets: dict[tuple[str | None, str], list[tuple[float, Row]]] = {}
    for row in rows:
        rating = _number(row.cells["rating"])
        if not math.isfinite(rating):
            reason = f"'{row.cells['rating'][:20]}' is no number"
            raise wrong(path, row.line, "rating", reason, "write a number; higher is better")
        judged = row.cells.get("reader"), row.cells["reference"]
        sets.setdefault(judged, []).append((rating, row))
    for rated in sets.values():
        for (one, row), (other, second) in combinations(rated, 2):
            if one != other:
                a, b = row.cells["candidate"], second.cells["candidate"]
                yield _preference(row, a, b, float(one > other), 2.0 / len(rated))


def _preference(row: Row, a: str, b: str, share: float, weight: float) -> Preference:
    patient = row.cells.get("patient")
    return Preference(Path(row.cells["reference"]), Path(a), Path(b), share, weight, patient)


def _number(cell: str) -> float:
    return float(cell) if _NUMBER.fullmatch(cell) else math.nan
