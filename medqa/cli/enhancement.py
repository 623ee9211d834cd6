"""`medqa study denoising` and `super-resolution`: whether these methods may be used."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medqa.cli.options import Db, Device, NoRecord, User, WeightsFolder
from medqa.errors import UsageError

if TYPE_CHECKING:
    from medqa.studies.enhancement.cases import Cases
    from medqa.studies.enhancement.study import Study

__all__ = ["denoising", "super_resolution"]

_Table = Annotated[
    Path | None,
    typer.Option(metavar="CSV", help="Cases as a table, in place of folders; see the manual."),
]
_Mask = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE", help="Lesions of a single image. Repeatable; else --table."),
]
_Annotations = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE", help="Annotated lesions of a single image. Repeatable."),
]
_Profile = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="Thresholds; by default those of each image."),
]
_Backbone = Annotated[
    str, typer.Option(metavar="gray|alex|squeeze|vgg|FILE", help="Network of the distance.")
]
_Out = Annotated[Path, typer.Option(metavar="DIR", help="Write pages and results here.")]
_Jobs = Annotated[int, typer.Option(min=1, metavar="N", help="Worker processes.")]
_Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where a study in this folder ended.")
]


def denoising(
    out: _Out,
    noisy: Annotated[
        str | None, typer.Option(metavar="PATH", help="Noisy images: folder or file.")
    ] = None,
    denoised: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="What a method made of them. Repeatable."),
    ] = None,
    clean: Annotated[
        str | None, typer.Option(metavar="PATH", help="Clean references, where there are any.")
    ] = None,
    table: _Table = None,
    mask: _Mask = None,
    annotations: _Annotations = None,
    profile: _Profile = None,
    backbone: _Backbone = "gray",
    device: Device = "auto",
    jobs: _Jobs = 1,
    db: Db = None,
    weights: WeightsFolder = None,
    user: User = None,
    *,
    resume: _Resume = False,
    no_record: NoRecord = False,
) -> None:
    """Judge denoising methods: what they took away, what they added, and which is best.

    Exit code 0: a method is acceptable on every case. 1: none is. 2: it could not be judged, or
    wrong use.
    """
    cases = _cases("denoising", noisy, denoised, clean, table, mask, annotations)
    _study(cases, out, profile, backbone, device, jobs, db, weights, user, resume, no_record)


def super_resolution(
    out: _Out,
    low: Annotated[
        str | None, typer.Option(metavar="PATH", help="Low-resolution images: folder or file.")
    ] = None,
    super_: Annotated[
        list[str] | None,
        typer.Option(
            "--super", metavar="NAME=PATH", help="What a method made of them. Repeatable."
        ),
    ] = None,
    high: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="High-resolution references, where there are any."),
    ] = None,
    table: _Table = None,
    mask: _Mask = None,
    annotations: _Annotations = None,
    profile: _Profile = None,
    backbone: _Backbone = "gray",
    device: Device = "auto",
    jobs: _Jobs = 1,
    db: Db = None,
    weights: WeightsFolder = None,
    user: User = None,
    *,
    resume: _Resume = False,
    no_record: NoRecord = False,
) -> None:
    """Judge super-resolution methods: whether they stay true to their input, and which is best.

    Exit code 0: a method is acceptable on every case. 1: none is. 2: it could not be judged, or
    wrong use.
    """
    cases = _cases("super-resolution", low, super_, high, table, mask, annotations)
    _study(cases, out, profile, backbone, device, jobs, db, weights, user, resume, no_record)


def _cases(
    task: Literal["denoising", "super-resolution"],
    before: str | None,
    after: Sequence[str] | None,
    reference: str | None,
    table: Path | None,
    masks: Sequence[str] | None,
    annotations: Sequence[str] | None,
) -> Cases:
    from medqa.studies.enhancement.cases import COLUMNS, from_folders, from_table

    one, other, _ = COLUMNS[task]
    if table is not None:
        if before or after or reference or masks or annotations:
            raise UsageError(table, "says what to compare itself", "leave the other paths out")
        return from_table(task, table)
    if not before or not after:
        mend = f"give --{one} and at least one --{other} NAME=PATH, or --table"
        raise UsageError(f"study {task}", "nothing to compare", mend)
    methods: dict[str, str] = {}
    for given in after:
        name, sign, path = given.partition("=")
        if not (sign and name.strip() and path):
            raise UsageError(given, "is not NAME=PATH", "name each method, as in nlm=FOLDER")
        if name.strip() in methods:
            raise UsageError(name, "names two methods", "give each a name of its own")
        methods[name.strip()] = path
    return from_folders(task, before, methods, reference, masks or (), annotations or ())


def _study(
    cases: Cases,
    out: Path,
    profile: str | None,
    backbone: str,
    device: str,
    jobs: int,
    db: str | None,
    weights: Path | None,
    user: str | None,
    resume: bool,
    no_record: bool,
) -> None:
    """Run a study, write its pages, and end the command."""
    from medqa import thresholds
    from medqa.audit import Store
    from medqa.console import progress_bar
    from medqa.lpips import GrayLPIPS
    from medqa.report import prepare_folder
    from medqa.studies.enhancement.page import write_pages
    from medqa.studies.enhancement.study import run, setting_for, write_results

    # Whatever can be refused is refused before the work, not after it.
    if profile is not None:
        thresholds.load(profile)
    GrayLPIPS(backbone, weights)
    prepare_folder(out)
    with nullcontext() if no_record else Store.open(db) as store:
        setting = setting_for(
            cases,
            profile=profile,
            backbone=backbone,
            weights=None if weights is None else str(weights),
            device=device,
            pseudonyms=None if store is None else store.key,
        )
        with progress_bar("evaluating cases") as bar:
            study = run(
                cases, setting, out, store, jobs=jobs, resume=resume, actor=user, progress=bar
            )
        recorded = None if store is None else store.url_for_people
    write_results(study, out)
    page = write_pages(study, out)
    _show(study)
    typer.echo(f"page: {page}")
    typer.echo(f"results: {out / 'results.csv'}")
    if recorded is not None and cases.referenced:
        typer.echo(f"records: {recorded}")
    raise typer.Exit(study.code)


def _show(study: Study) -> None:
    """Print the decision, the methods in words, and what could not be judged."""
    from medqa.studies.enhancement.page import decision, method_words

    typer.echo(decision(study))
    for method in study.methods:
        typer.echo(f"{method.name}: {method_words(method)}")
    for method in study.methods:
        for row in method.rows:
            for line in row.unjudged:
                sys.stderr.write(f"medqa: case {row.number} ({row.name}), {method.name}: {line}\n")
    for line in study.cases.left:
        sys.stderr.write(f"medqa: {line}\n")
