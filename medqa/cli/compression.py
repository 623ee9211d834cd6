"""`medqa compress`, `medqa check-compression`, `medqa approvals`: compression under an approval."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medqa.cli.options import Db, User, WeightsFolder
from medqa.errors import MedqaError, StoreError, UsageError

if TYPE_CHECKING:
    from medqa.compression.approvals import Approved
    from medqa.compression.compress import Compressed
    from medqa.compression.stored import Checked

__all__ = ["approvals_app", "check_compression", "compress"]

approvals_app = typer.Typer(help="Approvals of lossy compression.", no_args_is_help=True)


def compress(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="DICOM file, or folder of DICOM files.")
    ],
    target: Annotated[str, typer.Argument(metavar="OUT", help="New file, or folder.")],
    approval: Annotated[
        str, typer.Option(metavar="ID", help="Approval to compress under, or the beginning of it.")
    ],
    mask: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Pathology that must be preserved. Repeatable."),
    ] = None,
    annotations: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Regions that must be preserved. Repeatable."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The approval's profile, where it is not shipped."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The approval's network, where it is adapted weights."),
    ] = None,
    weights: WeightsFolder = None,
    db: Db = None,
    user: User = None,
) -> None:
    """Compress images as strongly as the approval and each image itself allow, or not at all.

    Exit code 0: all were written. 1: of one, no setting keeps it diagnostic. 2: one is outside the
    approval or cannot be read, or wrong use. Nothing is written of an image that is refused.
    """
    from medqa.audit import Store
    from medqa.compression import approvals
    from medqa.compression.compress import compress as compress_one
    from medqa.compression.compress import prepare
    from medqa.console import show, table
    from medqa.lpips import GrayLPIPS

    pairs = _pairs(Path(source), Path(target))
    rows: list[tuple[str, ...]] = []
    refused: list[MedqaError] = []
    with Store.open(db) as store:
        approved = approvals.get(store, approval)
        metric = approved.approval.metric
        network = GrayLPIPS(backbone or metric.backbone, weights, precision=metric.precision)
        rules = prepare(approved, profile, network)
        for one, new in pairs:
            try:
                done = compress_one(
                    one,
                    new,
                    rules,
                    store,
                    masks=mask or (),
                    annotations=annotations or (),
                    actor=user,
                )
            except StoreError:
                raise
            except MedqaError as error:  # one bad file never ends the run
                refused.append(error)
                continue
            rows.append(_row(one, done))
    if rows:
        headings = ("image", "written", "of bits stored", "of bits allocated", "distance", "record")
        show(table(headings, rows))
    for line in refused:
        sys.stderr.write(f"medqa: {line}\n")
    unwritten = any(row[1] == _NOTHING for row in rows)
    raise typer.Exit(2 if refused else 1 if unwritten else 0)


_NOTHING = "nothing: no setting within the approval keeps it diagnostic"


def _row(one: Path, done: Compressed | None) -> tuple[str, ...]:
    label = "/".join(one.absolute().parts[-2:])  # in a series, file names repeat
    if done is None:
        return (label, _NOTHING, "-", "-", "-", "-")
    stream = done.stream
    setting = stream.setting
    return (
        label,
        "without loss: no larger" if setting is None else f"setting {setting:.4g}",
        f"{stream.ratio_stored:.2f}:1",
        f"{stream.ratio_allocated:.2f}:1",
        f"{done.assessment.base_lpips_score:.4f}",
        done.assessment.assessment_id[:8],
    )


def _pairs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """List what to compress, and where to; in a folder, what is no DICOM image is passed over."""
    if not source.is_dir():
        return [(source, target)]
    if target.exists() and not target.is_dir():
        raise UsageError(target, "is no folder", "name one for a folder of images")
    found = [
        one for one in _files([str(source)]) if target.absolute() not in one.absolute().parents
    ]
    if not found:
        raise UsageError(source, "holds no DICOM image", "name another folder")
    return [(one, target / one.relative_to(source)) for one in found]


def _files(given: Sequence[str]) -> list[Path]:
    """List files that were named, and the DICOM images below folders."""
    from medqa.dicom.files import header, is_dicom, is_image, reading

    found: list[Path] = []
    for one in map(Path, given):
        if not one.is_dir():
            found.append(one)
            continue
        for path in sorted(below for below in one.rglob("*") if below.is_file()):
            try:
                with reading(path), path.open("rb") as file:
                    wanted = is_dicom(file.read(132)) and is_image(header(path))
            except MedqaError:
                wanted = True  # damaged: to be refused where it is read, not to go missing
            if wanted:
                found.append(path)
    return found


def check_compression(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Stored DICOM objects, or folders.")
    ],
    approval: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Approval to hold them against; by default the one that fits each."
        ),
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Compare each with its original, somewhere below here."),
    ] = None,
    weights: WeightsFolder = None,
    db: Db = None,
) -> None:
    """Hold stored objects against what they declare of their compression, and their approval.

    Exit code 0: nothing is wrong. 1: something is. 2: an object cannot be read, or wrong use.
    """
    from medqa.audit import Store
    from medqa.compression import approvals
    from medqa.compression.stored import check_stored
    from medqa.console import show, table

    with Store.open(db, readonly=True) as store:
        known = (approvals.get(store, approval),) if approval else approvals.listed(store)
    checked: list[Checked] = []
    refused: list[MedqaError] = []
    for path in _files(files):
        try:
            checked.append(check_stored(path, known, named=approval is not None))
        except MedqaError as error:
            refused.append(error)
    found = [(one, list(one.faults)) for one in checked]
    if original is not None:
        refused += _compare(found, original, weights)
    if found:
        headings = (
            *("object", "kind", "codec", "of bits stored", "of bits allocated", "declared"),
            *("approved", "finding"),
        )
        show(table(headings, [_checked_row(*one) for one in found]))
    for line in refused:
        sys.stderr.write(f"medqa: {line}\n")
    raise typer.Exit(2 if refused else int(any(faults for _, faults in found)))


def _compare(
    found: list[tuple[Checked, list[str]]], original: Path, weights: Path | None
) -> list[MedqaError]:
    """Compare objects with their originals, and add what is wrong; return what could not be."""
    from medqa.compression.stored import against_original, originals_in
    from medqa.lpips import GrayLPIPS

    originals = originals_in(original)
    networks: dict[str, GrayLPIPS] = {}
    refused: list[MedqaError] = []
    for one, faults in found:
        if one.approved is None or not one.lossy:
            continue
        approval = one.approved.approval
        try:
            name = approval.metric.backbone
            if name not in networks:
                networks[name] = GrayLPIPS(name, weights)
            wrong = against_original(one.path, originals, approval, networks[name])
        except MedqaError as error:
            refused.append(error)
            continue
        if wrong is not None:
            faults.append(wrong)
    return refused


def _checked_row(one: Checked, faults: list[str]) -> tuple[str, ...]:
    measured = one.measured
    approval = None if one.approved is None else one.approved.approval
    return (
        "/".join(one.path.absolute().parts[-2:]),
        " ".join(filter(None, (one.modality, one.body_part))),
        one.codec or "-",
        f"{measured.ratio_of_stored_bits:.2f}:1" if measured else "-",
        f"{measured.ratio_of_allocated_bits:.2f}:1" if measured else "-",
        f"{one.declared:g}:1" if one.declared else "-",
        f"{approval.highest_ratio:g}:1 by {approval.approval_id[:8]}" if approval else "-",
        "; ".join(faults) or ("good" if one.lossy else "no loss"),
    )


@approvals_app.command("list")
def approvals_list(db: Db = None) -> None:
    """List the approvals, newest first, with what became of them."""
    from medqa.audit import Store
    from medqa.compression.approvals import listed
    from medqa.console import show, table

    with Store.open(db, readonly=True) as store:
        found = listed(store)
    rows = [
        (
            one.approval.approval_id[:8],
            f"{one.approval.created_at:%Y-%m-%d}",
            one.approval.scope.modality,
            one.approval.scope.body_part or "any",
            one.approval.codec,
            f"{one.approval.highest_ratio:g}:1",
            one.approval.profile.name,
            str(one.approval.expires_on),
            _state(one),
        )
        for one in found
    ]
    headings = (
        *("approval", "made", "modality", "body part", "codec", "up to", "profile", "ends"),
        "state",
    )
    show(table(headings, rows))


def _state(one: Approved) -> str:
    by = [given.actor for given in one.signatures if given.meaning == one.status]
    return f"{one.status} by {by[-1]}" if by else one.status


@approvals_app.command("show")
def approvals_show(
    approval_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of an approval, or the beginning of it.")
    ],
    db: Db = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record.")] = False,
) -> None:
    """Show one approval: its scope, its evidence, its end, and who signed it."""
    from medqa.audit import Store
    from medqa.compression.approvals import get
    from medqa.console import show, table

    with Store.open(db, readonly=True) as store:
        found = get(store, approval_id)
    approval = found.approval
    if as_json:
        typer.echo(approval.model_dump_json(indent=2))
        return
    for line in _lines(found):
        typer.echo(line)
    rows = [
        (
            f"{one.ratio:g}:1",
            f"{one.measured:.2f}:1",
            f"{one.share.good} of {one.share.images}",
            f"{one.share.lower:.1%}",
            f"{one.median_distance:.4f}",
            f"{one.worst_distance:.4f}",
            "-" if one.auc_loss is None else f"{one.auc_loss:.3f}",
        )
        for one in approval.evidence
    ]
    headings = ("ratio", "reached", "good", "at least", "median", "worst distance", "AUC lost")
    show(table(headings, rows))


def _lines(found: Approved) -> list[str]:
    approval, scope = found.approval, found.approval.scope
    lines = [
        f"{approval.approval_id}: {found.status}",
        f"{scope.modality}, {scope.body_part or 'any body part'}, "
        f"{', '.join(scope.devices) or 'any device'}",
        f"{approval.codec} ({approval.codec_version}) up to {approval.highest_ratio:g}:1 of the "
        "bits stored",
        f"judged by profile {approval.profile.name} {approval.profile.version}, network "
        f"{approval.metric.backbone} {approval.metric.version}: {approval.required_share:.0%} of "
        f"the images must stay diagnostic, with {approval.confidence:.0%} confidence",
        f"ends after {approval.expires_on}, or earlier by: {'; '.join(approval.voided_by) or '-'}",
    ]
    if approval.guideline is not None:
        guideline = approval.guideline
        lines.append(
            f"{guideline.body} accepts up to {guideline.highest_ratio:g}:1 ({guideline.source})"
        )
    if approval.lesion is not None:
        most = approval.highest_auc_loss
        gate = "decides nothing" if most is None else f"may lose {most:g} of its AUC"
        lines.append(f"{approval.lesion}: a model observer {gate}")
    if approval.overridden is not None:
        lines.append(f"OVERRIDDEN: {approval.overridden}")
    lines += [
        f"{one.meaning} {one.recorded_at} by {one.actor} (account {one.account}): {one.comment}"
        for one in found.signatures
    ]
    return lines
