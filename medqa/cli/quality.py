"""`medqa qc`: the technical quality of images, without a reference."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medqa.cli.options import Db, NoRecord, User
from medqa.errors import NotAssessableError, UsageError

if TYPE_CHECKING:
    from medqa.quality.page import Examined

__all__ = ["qc"]

_COMMON = ("noise", "contrast", "sharpness", "entropy", "clipping", "summary")


def qc(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="DICOM files, folders of one series, or NIfTI."),
    ],
    regions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Two regions of one image, signal and background, in any form of "
            "`medqa assess --annotations`.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a page for each image here.")
    ] = None,
    db: Db = None,
    user: User = None,
    *,
    no_record: NoRecord = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the records.")] = False,
) -> None:
    """Measure the technical quality of images: noise, sharpness, contrast and what else applies.

    Nothing is judged. Exit code 0: every image was measured. 2: one cannot be read, or wrong use.
    """
    import json

    from medqa.audit import Store
    from medqa.console import show, table
    from medqa.quality import record as records
    from medqa.report import prepare_folder

    # Whatever can be refused is refused before the work, not after it.
    if regions is not None and len(files) > 1:
        raise UsageError(regions, "marks one image", "give one image with --regions")
    if out is not None:
        prepare_folder(out)
    done, refused = [], []
    with nullcontext() if no_record else Store.open(db) as store:
        key = None if store is None else store.key
        for number, file in enumerate(files, start=1):
            try:
                one = _examined(file, number, regions, out, key)
            except NotAssessableError as error:
                refused.append(error)
                continue
            if store is not None:
                records.add(store, one.record, actor=user)
            done.append(one)
        recorded = None if store is None else store.url_for_people
    pages = _pages(done, out)
    if as_json:
        typer.echo(json.dumps([one.record.model_dump(mode="json") for one in done], indent=2))
    elif done:
        show(table(*(_each(done) if len(files) > 1 else _all(done[0]))))
        if pages is not None:
            typer.echo(f"page: {pages}")
        if recorded is not None:
            ids = done[0].record.quality_id if len(done) == 1 else f"{len(done)} records"
            typer.echo(f"record: {ids} in {recorded}")
    for line in refused:
        sys.stderr.write(f"medqa: {line}\n")
    raise typer.Exit(2 if refused else 0)


def _examined(
    file: str, number: int, regions: str | None, out: Path | None, key: bytes | None
) -> Examined:
    """Measure one image and write its page."""
    from medqa.quality.examine import examine, header_of, record_of
    from medqa.quality.page import Examined, write_page
    from medqa.reader import read
    from medqa.regions import read_annotations

    image = read(file)
    header = header_of(file)
    marked = () if regions is None else read_annotations(regions, image)
    examination = examine(image, header, marked)
    record = record_of(examination, header, key)
    label = "/".join(Path(file).absolute().parts[-2:])  # in a series, file names repeat
    one = Examined(label, record, f"{number:03d}.html")
    if out is not None:
        write_page(out / one.page, one.label, record, examination)
    return one


def _pages(done: Sequence[Examined], out: Path | None) -> Path | None:
    """Write the page of the group where there is one; return the page to begin with."""
    from medqa.quality.page import write_group

    if out is None or not done:
        return None
    return write_group(out / "index.html", done) if len(done) > 1 else out / done[0].page


def _all(one: Examined) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows of one image: everything that was measured."""
    from medqa.quality.page import value_words

    rows: list[tuple[str, ...]] = [
        (m.name, value_words(m.value, m.unit), m.better, m.detail or "")
        for m in one.record.measures
    ]
    return (one.record.study_type, "value", "better", "where, or why not"), rows


def _each(done: Sequence[Examined]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows of several images: what every modality has."""
    from medqa.quality.page import value_words

    rows = []
    for one in done:
        found = {m.name: value_words(m.value, m.unit) for m in one.record.measures}
        rows.append((one.label, one.record.study_type, *(found[name] for name in _COMMON)))
    return ("image", "study type", *_COMMON), rows
