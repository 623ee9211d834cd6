"""Which pairs a batch is of: the rows of a table, or the images of two folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from medqa.assessment import Job, Task
from medqa.catalogue import Entry, look
from medqa.errors import UsageError
from medqa.folders import choose, label, leftover
from medqa.pairing import pair

__all__ = ["COLUMNS", "PairRow", "Pairs", "from_folders", "read_table"]

#: Columns that a table may have; the first two it must.
COLUMNS = ("reference", "candidate", "mask", "annotations", "profile", "task", "name")
_REQUIRED = COLUMNS[:2]
_PATHS = COLUMNS[:4]
_SEPARATOR = ";"  # between several masks or annotation files of one pair
_BATCH = 1000


@dataclass(frozen=True)
class PairRow:
    """One pair to assess.

    Parameters
    ----------
    number
        Counted from 1, in the order of the table or of the references.
    name
        What to call it on pages; empty where the table does not say. It should name no patient.
    reference, candidate
        As the table has them, or the image as the folder holds it.
    job
        What is to be done, with paths that do not depend on the working directory.
    """

    number: int
    name: str
    reference: str
    candidate: str
    job: Job


@dataclass(frozen=True)
class Pairs:
    """The pairs of a batch.

    Parameters
    ----------
    count
        How many there are.
    rows
        Each pair, once; made one by one, so that a long table does not fill the memory.
    profiles
        Every profile that a row names, as `medqa.thresholds.load` takes it.
    left
        A line for each image of two folders that is in no pair, and each damaged file.
    damaged
        Whether a file of the folders should be an image and is not.
    """

    count: int
    rows: Iterator[PairRow]
    profiles: tuple[str, ...]
    left: tuple[str, ...] = ()
    damaged: bool = False


def read_table(path: Path, template: Job) -> Pairs:
    """Read the pairs of a table.

    Parameters
    ----------
    path
        ``.csv`` (UTF-8, commas, a first row of names) or ``.parquet``, with the columns of
        `COLUMNS`. Paths are relative to the table's folder; several masks or annotation files of
        a pair stand in one cell with semicolons between them.
    template
        What holds where the table says nothing: its profile, task and settings.

    Raises
    ------
    UsageError
        It cannot be read, has a column that is not known (a mask in a column that nobody reads
        would go unscored unnoticed), or a row names no image or no such task. Nothing is assessed.
    """
    table = _arrow(path)
    if unknown := sorted(set(table.column_names) - set(COLUMNS)):
        raise _wrong(path, f"has columns that mean nothing here: {', '.join(unknown)}")
    if missing := [name for name in _REQUIRED if name not in table.column_names]:
        raise _wrong(path, f"has no column {' and '.join(missing)}")
    if len(set(table.column_names)) < len(table.column_names):
        raise _wrong(path, "has a column twice")
    if table.num_rows == 0:
        raise UsageError(path, "names no pair", "give a row for each pair")
    _check_cells(path, table)
    folder = path.absolute().parent
    named = {_profile(folder, one) for one in _distinct(table, "profile")}
    profiles = tuple(sorted({*named, *filter(None, [template.profile])}))
    return Pairs(table.num_rows, _rows(table, folder, template), profiles)


def from_folders(reference: str, candidate: str, template: Job) -> Pairs:
    """Pair the images of two folders, as `medqa pair` does.

    Images in no pair, and damaged files, are reported in `Pairs.left` and keep none from being
    assessed.

    Raises
    ------
    UsageError
        There is no image or no pair.
    ReadError
        A folder cannot be read.
    """
    found = pair(ours := look(reference), theirs := look(candidate))
    profiles = tuple(filter(None, [template.profile]))
    for folder, one in ((reference, ours), (candidate, theirs)):
        if not one.entries:
            raise UsageError(folder, "holds no image that can be read", "name another folder")
    if not found.pairs:
        # One image on each side is a pair whatever the headers say; all else is refused with words.
        (mine, its), *_ = choose(reference, candidate).given
        job = replace(template, reference=mine, candidate=its)
        return Pairs(1, iter([PairRow(1, "", reference, candidate, job)]), profiles)
    rows = (
        PairRow(
            number,
            "",
            label(one.reference),
            label(one.candidate),
            replace(template, reference=_files(one.reference), candidate=_files(one.candidate)),
        )
        for number, one in enumerate(found.pairs, start=1)
    )
    refused = (*ours.refused, *theirs.refused)
    left = tuple(leftover(found, refused))
    return Pairs(len(found.pairs), rows, profiles, left, damaged=bool(refused))


def _files(entry: Entry) -> tuple[str, ...]:
    return tuple(str(path.absolute()) for path in entry.paths)


def _arrow(path: Path) -> Any:
    """Return the table as Arrow has it, every cell of a CSV as text."""
    import pyarrow
    from pyarrow import csv, parquet

    try:
        if path.suffix.lower() == ".parquet":
            return parquet.read_table(path)
        if path.suffix.lower() != ".csv":
            raise UsageError(path, "is no table", "give a .csv or .parquet, or two folders")
        types = dict.fromkeys(COLUMNS, pyarrow.string())
        options = csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
        return csv.read_csv(path, convert_options=options)
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        words = " ".join(str(error).split())
        raise UsageError(path, "cannot be read as a table", "check the file", words) from error


def _check_cells(path: Path, table: Any) -> None:
    """Refuse a table with a cell that cannot be meant, and name its row."""
    from pyarrow import compute, types

    for name in table.column_names:
        kind = table.schema.field(name).type
        listed = name in ("mask", "annotations") and types.is_list(kind)
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)):
            if not (listed and types.is_string(kind.value_type)):
                raise _wrong(path, f"has a column {name} that is not text")
        elif name in _REQUIRED:
            empty = compute.fill_null(compute.equal(table[name].cast("string"), ""), True)
            if (row := compute.index(empty, True).as_py()) >= 0:
                raise UsageError(path, f"row {row + 1} names no {name}", "fill it in")
    known = get_args(Task)
    for task in _distinct(table, "task"):
        if task not in known:
            raise UsageError(path, f"'{task}' is no task", f"take one of {', '.join(known)}")


def _distinct(table: Any, name: str) -> list[str]:
    if name not in table.column_names:
        return []
    return sorted(str(one) for one in table[name].unique().to_pylist() if one)


def _wrong(path: Path, reason: str) -> UsageError:
    return UsageError(path, reason, f"name the columns {', '.join(COLUMNS)}; the first two needed")


def _rows(table: Any, folder: Path, template: Job) -> Iterator[PairRow]:
    number = 0
    for batch in table.to_batches(max_chunksize=_BATCH):
        for cells in batch.to_pylist():
            number += 1
            given = {name: cells.get(name) or "" for name in COLUMNS}
            several = {name: _several(folder, given[name]) for name in _PATHS[2:]}
            job = replace(
                template,
                reference=str(folder / given["reference"]),
                candidate=str(folder / given["candidate"]),
                masks=several["mask"],
                annotations=several["annotations"],
                profile=_profile(folder, given["profile"]) or template.profile,
                task=cast(Task, given["task"] or template.task),
            )
            yield PairRow(number, given["name"], given["reference"], given["candidate"], job)


def _several(folder: Path, cell: str | Sequence[str]) -> tuple[str, ...]:
    """Return the paths of a cell: text with semicolons, or a list where Parquet has one."""
    parts = cell.split(_SEPARATOR) if isinstance(cell, str) else cell
    return tuple(str(folder / part.strip()) for part in parts if part and part.strip())


def _profile(folder: Path, name: str) -> str:
    """Return a profile as it is loaded: a file is relative to the table too."""
    return str(folder / name) if name.endswith(".toml") else name
