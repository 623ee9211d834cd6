"""`medqa assess`: one pair, or every pair of two folders."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medqa.cli.options import (
    Backbone,
    Db,
    Device,
    LevelName,
    NoRecord,
    Precision,
    PrecisionName,
    Require,
    RequireCalibrated,
    TaskName,
    User,
    WeightsFolder,
)
from medqa.errors import UsageError

if TYPE_CHECKING:
    from medqa.assessment import Assessment, Job
    from medqa.audit import Store
    from medqa.folders import Choice
    from medqa.lpips import GrayLPIPS

__all__ = ["assess"]


def assess(
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="DICOM file, folder of series, or NIfTI.")
    ],
    candidate: Annotated[
        str, typer.Argument(metavar="CANDIDATE", help="The processed image, in the same forms.")
    ],
    mask: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Pathology: NIfTI, PNG, DICOM SEG, or any form of --annotations. Repeatable.",
        ),
    ] = None,
    annotations: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Annotated regions: JSON, CSV, COCO, LabelMe, RTSTRUCT, SR, presentation state, "
            "or any form of --mask. Repeatable.",
        ),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(metavar="N", help="Series of REFERENCE, by number or the end of its UID."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="Thresholds; by default those of the image and the task."
        ),
    ] = None,
    task: Annotated[
        TaskName, typer.Option(help="What was done to the image, where no profile is named.")
    ] = TaskName.routine,
    backbone: Backbone = "gray",
    precision: Precision = PrecisionName.float32,
    device: Device = "auto",
    planes: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Compare a volume in all three planes too, every N slices."
        ),
    ] = None,
    require: Require = LevelName.diagnostic,
    db: Db = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write record, report and pictures here.")
    ] = None,
    dicom: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the results as DICOM objects here."),
    ] = None,
    weights: WeightsFolder = None,
    user: User = None,
    supersedes: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Recorded assessment that this one corrects."),
    ] = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why it is corrected.")] = None,
    *,
    require_calibrated: RequireCalibrated = False,
    resample: Annotated[
        bool, typer.Option("--resample", help="Bring CANDIDATE to the grid of REFERENCE.")
    ] = False,
    no_record: NoRecord = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the record.")] = False,
) -> None:
    """Judge whether CANDIDATE may be read in place of REFERENCE.

    Of two folders that hold several images, each pair is judged that `medqa pair` finds.

    Exit code 0: the required level is met. 1: it is not, or an image has no counterpart. 2: not
    assessable, or wrong use. Of several pairs, the highest.
    """
    from medqa.assessment import Job
    from medqa.audit import Store
    from medqa.folders import choose
    from medqa.lpips import GrayLPIPS, choose_device
    from medqa.report import prepare_folder

    # Whatever can be refused is refused before the work, not after it.
    choice = choose(reference, candidate, series)
    if len(choice.given) > 1 and (mask or annotations):
        mend = "choose one image of it with --series"
        raise UsageError(reference, "holds several images for one mask or annotation", mend)
    if supersedes and (no_record or len(choice.given) > 1):
        raise UsageError(supersedes, "is corrected by one recorded assessment", "give one pair")
    jobs = [
        Job(
            reference=ours,
            candidate=theirs,
            masks=tuple(mask or ()),
            annotations=tuple(annotations or ()),
            profile=profile,
            task=task.value,
            require_calibrated=require_calibrated,
            backbone=backbone,
            precision=precision.value,
            device=device,
            resample=resample,
            plane_stride=planes,
            origin="medqa assess",
            actor=user,
            supersedes=supersedes,
            reason=reason,
        )
        for ours, theirs in choice.given
    ]
    for folder in (out, dicom):
        if folder is not None:
            prepare_folder(folder)
    if dicom is not None:
        _check_dicom(jobs)
    with nullcontext() if no_record else Store.open(db) as store:
        network = GrayLPIPS(
            backbone, weights, precision=precision.value, device=choose_device(device)
        )
        several = choice.pairing is not None
        folders = {
            job: dicom / f"{number:03d}" if several else dicom
            for number, job in enumerate(jobs, start=1)
            if dicom is not None
        }
        run = partial(_run, store=store, network=network, dicom=folders)
        where = None if store is None else store.url_for_people
        if several:
            code = _assess_each(jobs, choice, run, require, out, as_json=as_json)
        else:
            code = _assess_one(run(jobs[0]), require, out, where, as_json=as_json)
    raise typer.Exit(code)


def _check_dicom(jobs: Sequence[Job]) -> None:
    """Refuse references that a DICOM object cannot refer to, where they can be read at all."""
    from medqa.reader import dicom_files

    for job in jobs:
        subject = job.reference if isinstance(job.reference, str) else job.reference[0]
        if Path(subject).exists() and not dicom_files(job.reference):
            raise UsageError(
                subject, "is not DICOM, so no DICOM object can refer to it", "leave --dicom out"
            )


def _run(
    job: Job, store: Store | None, network: GrayLPIPS, dicom: Mapping[Job, Path]
) -> Assessment:
    """Run a job under a progress bar, which shows on terminals only and not for single images."""
    from medqa.console import progress_bar
    from medqa.pipeline import run

    with progress_bar() as bar:
        assessment = run(job, store, network=network, progress=bar)
    read = assessment.inputs
    if job in dicom and read.reference is not None:
        from medqa.dicom_results import write_dicom
        from medqa.reader import dicom_files

        candidate = [] if read.candidate is None else dicom_files(job.candidate)
        write_dicom(assessment, dicom_files(job.reference), candidate, dicom[job])
    return assessment


def _assess_one(
    assessment: Assessment,
    require: LevelName,
    out: Path | None,
    recorded: str | None,
    *,
    as_json: bool,
) -> int:
    """Show one assessment; return the exit code."""
    from medqa.report import write

    report = None if out is None else write(assessment, out)
    if as_json:
        typer.echo(assessment.model_dump_json(indent=2))
    if assessment.failure is not None:
        raise assessment.failure
    if not as_json:
        from medqa.console import panel, show

        show(panel(assessment, report=report, recorded=recorded))
    return _code(assessment, require)


def _code(assessment: Assessment, require: LevelName) -> int:
    if assessment.verdict == "not_assessable":
        return 2
    return 0 if assessment.meets(require.value) else 1


def _assess_each(
    jobs: Sequence[Job],
    choice: Choice,
    run: Callable[[Job], Assessment],
    require: LevelName,
    out: Path | None,
    *,
    as_json: bool,
) -> int:
    """Assess every pair and show a table; return the highest exit code."""
    from medqa.console import show, table
    from medqa.folders import assess_pairs, label, leftover, write_index

    pairing = choice.pairing
    if pairing is None:
        raise TypeError("without a pairing there are no pairs")
    judged = []
    for one in assess_pairs(jobs, pairing.pairs, run, out):
        judged.append(one)
        if sys.stderr.isatty():
            typer.echo(f"pair {len(judged)} of {len(jobs)}: {one.assessment.verdict}", err=True)
    page = None if out is None else write_index(judged, out)
    if as_json:
        typer.echo(json.dumps([one.assessment.model_dump(mode="json") for one in judged], indent=2))
    else:
        rows = [
            (
                str(number),
                label(one.pair.reference),
                label(one.pair.candidate),
                one.pair.rule,
                "-" if (d := one.assessment.base_lpips_score) is None else f"{d:.4f}",
                one.assessment.verdict,
            )
            for number, one in enumerate(judged, start=1)
        ]
        show(table(("pair", "reference", "candidate", "paired by", "distance", "verdict"), rows))
        if page is not None:
            typer.echo(f"reports: {page}")
    codes = [_code(one.assessment, require) for one in judged]
    failures = (one.failure for one in judged if one.failure is not None)
    for line in (*map(str, failures), *leftover(pairing, choice.refused)):
        typer.echo(f"medqa: {line}", err=True)
    return max(*codes, 0 if pairing.complete else 1, 2 if choice.refused else 0)
