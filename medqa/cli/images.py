"""`medqa inspect`, `pair` and `render`: what medqa makes of files, without comparing them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from medqa.errors import MedqaError

__all__ = ["inspect", "pair", "render"]


def pair(
    reference: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER_A", help="Folder of references.", exists=True, file_okay=False
        ),
    ],
    candidate: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER_B", help="Folder of candidates.", exists=True, file_okay=False
        ),
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show which image of FOLDER_B belongs to which of FOLDER_A. Nothing is compared.

    Exit code 0: all are paired one to one. 1: something is missing or ambiguous. 2: wrong use.
    """
    from medqa.catalogue import look
    from medqa.console import show, table
    from medqa.folders import as_record, label, leftover
    from medqa.pairing import pair as find_pairs

    ours, theirs = look(reference), look(candidate)
    found, refused = find_pairs(ours, theirs), (*ours.refused, *theirs.refused)
    if as_json:
        typer.echo(json.dumps(as_record(found, refused), indent=2))
    else:
        rows = [(label(one.reference), label(one.candidate), one.rule) for one in found.pairs]
        show(table(("reference", "candidate", "paired by"), rows))
        for line in leftover(found, refused):
            typer.echo(line)
    raise typer.Exit(0 if found.complete and found.pairs and not refused else 1)


def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files or folders.")],
    *,
    identifiers: Annotated[
        bool, typer.Option("--identifiers", help="Show names, numbers and UIDs of patients too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show what medqa understands of each image: geometry, pixels, display, compression.

    Exit code 0: every one is an image. 2: one is not.
    """
    from dataclasses import asdict

    from medqa import inspection
    from medqa.console import show
    from medqa.inspection_text import panel

    found, refused = [], []
    for name in files:
        try:
            images, errors = inspection.inspect(name, identifiers=identifiers)
        except MedqaError as error:
            images, errors = [], [error]
        found += images
        refused += errors
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        for image in found:
            show(panel(image))
    for one in refused:
        sys.stderr.write(f"medqa: {one}\n")
    raise typer.Exit(2 if refused else 0)


def render(
    file: Annotated[str, typer.Argument(metavar="FILE", help="DICOM file, folder or NIfTI.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PNG", help="Picture to write.")],
    frame: Annotated[
        int | None, typer.Option(metavar="N", help="Slice, from 0; by default the middle one.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="C,W|file|N|NAME",
            help="Centre and width, a window of the file, or a display of the profile; by default "
            "the first of these.",
        ),
    ] = None,
) -> None:
    """Write a slice as a picture, as it is compared."""
    from medqa.rendering import render_file

    render_file(file, frame, window, out)
