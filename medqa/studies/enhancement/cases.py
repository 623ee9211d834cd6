"""What is compared with what: the input of each case, what each method made of it, the reference.

From folders, images are paired by their headers and names (`medqa.pairing`); a table says it
itself. What has no counterpart stays in the study, with the reason: nothing is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from medqa.errors import UsageError
from medqa.folders import Choice, Given, choose, label, leftover
from medqa.tables import Row, Table, read_table, wrong

__all__ = ["COLUMNS", "Case", "Cases", "Task", "from_folders", "from_table"]

Task = Literal["denoising", "super-resolution"]

#: Of each task: columns of a table that hold the input, a method's output, and the reference.
COLUMNS: dict[Task, tuple[str, str, str]] = {
    "denoising": ("noisy", "denoised", "clean"),
    "super-resolution": ("low", "super", "high"),
}
_MAY_BE_EMPTY = ("case", "mask", "annotations")
_NO_OUTPUT = "nothing in the folder of this method belongs to this image"
_NO_REFERENCE = "nothing in the folder of references belongs to this image"


@dataclass(frozen=True)
class Case:
    """One input and what became of it.

    Parameters
    ----------
    number
        From 1.
    name
        What its user calls it: from the table, or by its file. Never on a page.
    input
        The image before.
    outputs
        By method, the image after.
    reference
        The clean or high-resolution image; None where there is none.
    masks, annotations
        Lesions, on the grid of the reference where there is one, else of the input.
    group
        What it counts as in the statistics, with others of the same name; empty: by its series.
    missing
        By method, why there is no output.
    no_reference
        Why the reference is missing, where the study has references; else empty.
    """

    number: int
    name: str
    input: Given
    outputs: Mapping[str, Given]
    reference: Given | None = None
    masks: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    group: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    no_reference: str = ""


@dataclass(frozen=True)
class Cases:
    """All cases of a study.

    Parameters
    ----------
    task
        What the methods do.
    methods
        Their names, in the order given.
    cases
        In order.
    referenced
        Whether the study has references.
    left
        A line for each image that is in no case, and each damaged file: they may belong to one.
    """

    task: Task
    methods: tuple[str, ...]
    cases: tuple[Case, ...]
    referenced: bool
    left: tuple[str, ...] = ()


def from_folders(
    task: Task,
    before: str,
    methods: Mapping[str, str],
    reference: str | None = None,
    masks: Sequence[str] = (),
    annotations: Sequence[str] = (),
) -> Cases:
    """Find the cases of folders, or of single files.

    Parameters
    ----------
    before
        Folder or file of the inputs.
    methods
        By name, the folder or file of what each made.
    reference
        Folder or file of clean or high-resolution images.
    masks, annotations
        Region files, of a study of one case only.

    Raises
    ------
    UsageError
        What belongs together is ambiguous, nothing does, or there are several cases for one mask.
    ReadError
        A folder cannot be read.
    """
    choices = {name: choose(before, after) for name, after in methods.items()}
    references = None if reference is None else choose(before, reference)
    everything = [*choices.values(), *([references] if references else [])]
    named: dict[Given, str] = {}
    for choice in everything:
        named |= _names(choice)
    outputs = {name: dict(choice.given) for name, choice in choices.items()}
    clean = dict(references.given) if references else {}
    cases = tuple(
        Case(
            number=number,
            name=name,
            input=given,
            outputs={method: made[given] for method, made in outputs.items() if given in made},
            reference=clean.get(given),
            masks=tuple(masks),
            annotations=tuple(annotations),
            missing={method: _NO_OUTPUT for method, made in outputs.items() if given not in made},
            no_reference=_NO_REFERENCE if references and given not in clean else "",
        )
        for number, (given, name) in enumerate(sorted(named.items(), key=_order), start=1)
    )
    if len(cases) > 1 and (masks or annotations):
        mend = "name the masks of each in a table with --table"
        raise UsageError(before, f"holds {len(cases)} images for one mask or annotation", mend)
    left = dict.fromkeys(line for choice in everything for line in _left(choice))
    return Cases(task, tuple(methods), cases, references is not None, tuple(left))


def _order(pair: tuple[Given, str]) -> tuple[str, ...]:
    given = pair[0]
    return (given,) if isinstance(given, str) else given


def _names(choice: Choice) -> dict[Given, str]:
    """Name of each input that a choice knows."""
    found: dict[Given, str] = {}
    if choice.pairing is not None:
        entries = [*(one.reference for one in choice.pairing.pairs), *choice.pairing.missing]
        found = {tuple(map(str, one.paths)): label(one) for one in entries}
    for given, _ in choice.given:
        found.setdefault(given, Path(given if isinstance(given, str) else given[0]).name)
    return found


def _left(choice: Choice) -> list[str]:
    """Lines about images without an input, and damaged files; the others are rows."""
    if choice.pairing is None:
        return [str(one) for one in choice.refused]
    return leftover(replace(choice.pairing, pairs=(), missing=()), choice.refused)


def from_table(task: Task, path: Path) -> Cases:
    """Read the cases of a table.

    Columns: ``image`` (any name), ``method``, the input (``noisy`` or ``low``), the output
    (``denoised`` or ``super``); if wanted the reference (``clean`` or ``high``), ``mask``,
    ``annotations`` (several files with semicolons between them) and ``case``: images of one case,
    such as slices of a volume or series of a patient, count as one in the statistics. Paths are
    relative to the table.

    Raises
    ------
    UsageError
        It cannot be read, a column is missing or unknown, or two rows contradict each other.
    """
    before, after, clean = COLUMNS[task]
    table = read_table(path, (*_MAY_BE_EMPTY, clean))
    needed = ("image", "method", before, after)
    if lacking := [one for one in needed if one not in table.columns]:
        raise UsageError(path, f"line 1: no column {', '.join(lacking)}", "add it")
    if unknown := sorted({*table.columns} - {*needed, *_MAY_BE_EMPTY, clean}):
        mend = f"take {', '.join((*needed, clean, *_MAY_BE_EMPTY))}"
        raise UsageError(path, f"line 1: unknown column {', '.join(unknown)}", mend)
    if not table.rows:
        raise UsageError(path, "holds no rows", "add a row for each image and method")
    rows: dict[str, dict[str, Row]] = {}
    for row in table.rows:
        methods = rows.setdefault(row.cells["image"], {})
        _check(table, row, methods, (before, clean))
        methods[row.cells["method"]] = row
    names = tuple(dict.fromkeys(row.cells["method"] for row in table.rows))
    cases = tuple(
        _case(task, path.parent, number, image, names, methods)
        for number, (image, methods) in enumerate(rows.items(), start=1)
    )
    referenced = any(case.reference is not None for case in cases)
    if referenced:
        cases = tuple(
            case if case.reference else replace(case, no_reference="the table names no reference")
            for case in cases
        )
    return Cases(task, names, cases, referenced)


def _check(table: Table, row: Row, methods: Mapping[str, Row], shared: Sequence[str]) -> None:
    """Refuse a row that contradicts an earlier one of its image."""
    if row.cells["method"] in methods:
        mend = "keep one; give slices of a volume names of their own and the same case"
        raise wrong(table.path, row.line, "method", "this image has this method already", mend)
    for first in list(methods.values())[:1]:
        for name in (*shared, *_MAY_BE_EMPTY):
            if row.cells.get(name) != first.cells.get(name):
                reason = f"differs from line {first.line}, which has the same image"
                raise wrong(table.path, row.line, name, reason, "make both the same")


def _case(
    task: Task,
    folder: Path,
    number: int,
    image: str,
    names: Sequence[str],
    methods: Mapping[str, Row],
) -> Case:
    before, after, clean = COLUMNS[task]
    cells = next(iter(methods.values())).cells

    def files(column: str) -> tuple[str, ...]:
        given = cells.get(column, "").split(";")
        return tuple(str(folder / one.strip()) for one in given if one.strip())

    return Case(
        number=number,
        name=image,
        input=str(folder / cells[before]),
        outputs={name: str(folder / row.cells[after]) for name, row in methods.items()},
        reference=next(iter(files(clean)), None),
        masks=files("mask"),
        annotations=files("annotations"),
        group=cells.get("case", ""),
        missing={
            name: "the table has no row of this method" for name in names if name not in methods
        },
    )
