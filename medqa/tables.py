"""Tables that people make: CSV in UTF-8, checked line by line, so that an error names its place."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medqa.errors import UsageError

__all__ = ["Row", "Table", "read_table", "wrong"]


@dataclass(frozen=True)
class Row:
    """Cells by column, without the spaces around them, and the line they are on."""

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A table as it was read.

    Parameters
    ----------
    path
        Its file.
    columns
        Their names, in order.
    rows
        Without those that are blank.
    sha256
        SHA-256 of the file.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    sha256: str


def read_table(path: Path, may_be_empty: Collection[str] = ()) -> Table:
    """Read a table: UTF-8, a header, cells separated by commas, decimal points.

    Parameters
    ----------
    may_be_empty
        Columns that need no value in every row.

    Raises
    ------
    UsageError
        It cannot be read, or a row is not right; names the line and the column, never a cell.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(path, f"cannot be read ({error.strerror})", "check the path") from error
    except UnicodeDecodeError as error:
        raise UsageError(path, "is not UTF-8 text", "save it as CSV in UTF-8") from error
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: tuple[str, ...] = ()
    rows: list[Row] = []
    try:
        columns = _columns(path, next(lines, []))
        rows.extend(
            _row(path, lines.line_num, columns, given, may_be_empty) for given in lines if given
        )
    except csv.Error as error:
        raise wrong(path, lines.line_num, None, f"is not CSV ({error})", "correct it") from error
    return Table(path, columns, tuple(rows), hashlib.sha256(content).hexdigest())


def wrong(path: Path, line: int, column: str | None, reason: str, mend: str) -> UsageError:
    """Return the error about a place in a table."""
    where = f"line {line}" if column is None else f"line {line}, column {column}"
    return UsageError(path, f"{where}: {reason}", mend)


def _columns(path: Path, header: Sequence[str]) -> tuple[str, ...]:
    names = tuple(one.strip() for one in header)
    if len(names) == 1 and ";" in names[0]:
        reason = "its cells are separated by semicolons"
        raise UsageError(path, reason, "save it with commas and decimal points")
    if len(set(names)) < len(names):
        raise UsageError(path, "line 1: two columns have the same name", "rename one of them")
    return names


def _row(
    path: Path, line: int, columns: Sequence[str], given: Sequence[str], empty: Collection[str]
) -> Row:
    if len(given) != len(columns):
        reason = f"{len(given)} cells, not {len(columns)}"
        raise wrong(path, line, None, reason, "quote cells with commas")
    cells = {name: cell.strip() for name, cell in zip(columns, given, strict=True)}
    for name, cell in cells.items():
        if not cell and name not in empty:
            raise wrong(path, line, name, "is empty", "fill it in, or remove the row")
    return Row(line, cells)
