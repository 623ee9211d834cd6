"""`medqa audit`: look at the record, check it, sign in it, take it along."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medqa.cli.options import Db, Device, User, WeightsFolder

if TYPE_CHECKING:
    from medqa.audit import History, Verification

__all__ = ["audit_app"]

audit_app = typer.Typer(help="The recorded assessments.", no_args_is_help=True)


class MeaningName(StrEnum):
    """What a signature stands for."""

    reviewed = "reviewed"
    approved = "approved"
    rejected = "rejected"


class FormatName(StrEnum):
    """What an export is written in."""

    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"


AssessmentId = Annotated[
    str, typer.Argument(metavar="ID", help="Id of an assessment, or the beginning of it.")
]
SignedId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Id of an assessment or an approval, or the beginning of it."
    ),
]
SigningKey = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Private key, Ed25519 in PEM; else MEDQA_SIGNING_KEY, else signing.key in the user's "
        "data folder, made at first use.",
    ),
]


@audit_app.command("list")
def audit_list(
    db: Db = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 20,
    about: Annotated[
        str | None,
        typer.Option(metavar="IDENTIFIER", help="Of this Patient ID or UID, under any key."),
    ] = None,
) -> None:
    """List the latest assessments, newest first."""
    from medqa.audit import Store, histories
    from medqa.console import show, table

    with Store.open(db, readonly=True) as store:
        found = store.list(limit) if about is None else store.about(about)[:limit]
        beside = histories(store, [one.assessment_id for one in found])
    rows = [
        (
            one.assessment_id[:8],
            f"{one.created_at:%Y-%m-%d %H:%M} UTC",
            (one.inputs.reference and one.inputs.reference.modality) or "-",
            one.profile.name if one.profile else "-",
            "-" if one.base_lpips_score is None else f"{one.base_lpips_score:.4f}",
            one.verdict,
            _state(beside.get(one.assessment_id)),
        )
        for one in found
    ]
    headings = ("assessment", "time", "modality", "profile", "distance", "verdict", "since")
    show(table(headings, rows))


def _state(history: History | None) -> str:
    """Say in few words what became of an assessment: superseded, or its latest signature."""
    if history is None:
        return "NOT IN THE CHAIN"
    if history.superseded_by is not None:
        return f"superseded by {history.superseded_by[:8]}"
    if history.signatures:
        last = history.signatures[-1]
        return f"{last.meaning} by {last.actor}"
    return ""


@audit_app.command("show")
def audit_show(
    assessment_id: AssessmentId,
    db: Db = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record.")] = False,
) -> None:
    """Show one assessment, and what was recorded about it since."""
    from medqa.audit import Store, histories
    from medqa.console import panel, show

    with Store.open(db, readonly=True) as store:
        assessment = store.get(assessment_id)
        beside = histories(store, [assessment.assessment_id])
    if as_json:
        typer.echo(assessment.model_dump_json(indent=2))
        return
    show(panel(assessment))
    for line in _history_lines(beside.get(assessment.assessment_id)):
        typer.echo(line)


def _history_lines(history: History | None) -> list[str]:
    if history is None:
        return ["NOT IN THE CHAIN: run medqa audit verify"]
    entry = history.entry
    lines = [
        f"recorded {entry.recorded_at} by {entry.actor} (account {entry.account}), "
        f"entry {entry.sequence}, digest {entry.sha256}"
    ]
    if history.supersedes is not None:
        lines.append(f"supersedes {history.supersedes}: {entry.reason or 'no reason was given'}")
    lines += [
        f"{one.meaning} {one.recorded_at} by {one.actor} (account {one.account}): {one.comment}"
        + ("" if one.signed_sha256 == entry.sha256 else " — OF ANOTHER RECORD THAN THIS")
        for one in history.signatures
    ]
    if history.superseded_by is not None:
        lines.append(f"SUPERSEDED by {history.superseded_by}")
    return lines


@audit_app.command("verify")
def audit_verify(
    db: Db = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Checkpoint that was kept elsewhere.")
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Public key, in PEM, that it must be signed with."),
    ] = None,
) -> None:
    """Check that nothing was changed, removed, inserted or moved; name the first entry that was.

    Exit code 0: whole. 1: not whole. 2: wrong use, or it cannot be read.
    """
    from medqa.audit import Store, verify
    from medqa.audit.checkpoints import read_checkpoint
    from medqa.audit.keys import public_key as read_public_key

    if public_key is not None and checkpoint is None:
        raise typer.BadParameter("it is for a checkpoint: give --checkpoint too")
    kept = None if checkpoint is None else read_checkpoint(checkpoint)
    named = None if public_key is None else read_public_key(public_key)
    with Store.open(db, readonly=True) as store:
        found = verify(store, kept, named)
        where = store.url_for_people
    for line in _verification_lines(found, where):
        typer.echo(line)
    if found.fault is None and kept is None:
        typer.echo(
            "Without a checkpoint, entries taken from the end and a chain made anew go unnoticed."
        )
    elif found.fault is None and kept is not None:
        typer.echo(f"Checkpoint of {kept.made_at}, entry {kept.sequence}: as signed.")
        if named is None:
            typer.echo(
                "Its signature was checked with the key that it names itself, which proves "
                f"little: {kept.public_key}. Name the key you trust with --public-key."
            )
    raise typer.Exit(0 if found.fault is None else 1)


def _verification_lines(found: Verification, where: str) -> list[str]:
    counts = f"{found.entries} entries, {found.assessments} assessments, {found.signatures} "
    if found.fault is None:
        return [f"WHOLE: {where}: {counts}signatures. Last digest {found.sha256}"]
    fault = found.fault
    place = "outside the chain" if fault.sequence is None else f"entry {fault.sequence}"
    about = f", record {fault.assessment_id}" if fault.assessment_id else ""
    return [
        f"NOT WHOLE: {where}: {place}{about}: {fault.what}",
        f"Good before it: {counts}signatures.",
    ]


@audit_app.command("checkpoint")
def audit_checkpoint(
    out: Annotated[Path, typer.Option(metavar="FILE", help="New file to write it to.")],
    db: Db = None,
    key: SigningKey = None,
) -> None:
    """Verify the record, and sign where its chain stands. Keep the file where others cannot write.

    Exit code 0: written. 2: the record is not whole, or wrong use.
    """
    from medqa.audit import Store
    from medqa.audit.checkpoints import write_checkpoint
    from medqa.audit.keys import signing_key
    from medqa.audit.verification import make_checkpoint

    private = signing_key(key)
    with Store.open(db, readonly=True) as store:
        made = make_checkpoint(store, private)
    write_checkpoint(made, out)
    typer.echo(f"{out}: entry {made.sequence}, digest {made.sha256}, key {made.public_key}")


@audit_app.command("public-key")
def audit_public_key(key: SigningKey = None) -> None:
    """Print the public key of the checkpoints, in PEM, for those who verify them."""
    from medqa.audit.keys import public_pem, signing_key

    typer.echo(public_pem(signing_key(key).public_key()), nl=False)


@audit_app.command("sign")
def audit_sign(
    assessment_id: SignedId,
    meaning: Annotated[MeaningName, typer.Option(help="What the signature stands for.")],
    comment: Annotated[
        str, typer.Option(metavar="TEXT", help="Why; name no patient, it cannot be removed.")
    ],
    db: Db = None,
    user: User = None,
) -> None:
    """Sign an assessment or an approval off."""
    from medqa.audit import Store, sign

    with Store.open(db) as store:
        entry = sign(store, assessment_id, meaning.value, comment, actor=user)
    typer.echo(
        f"{entry.assessment_id}: {meaning.value} by {entry.actor} (account {entry.account}) at "
        f"{entry.recorded_at}, entry {entry.sequence}"
    )


@audit_app.command("export")
def audit_export(
    out: Annotated[Path, typer.Option(metavar="FILE", help="New file to write.")],
    db: Db = None,
    form: Annotated[FormatName, typer.Option("--format", help="Format.")] = FormatName.jsonl,
    since: Annotated[
        datetime | None, typer.Option(help="Only what was recorded since then, in UTC.")
    ] = None,
) -> None:
    """Write the chain and its assessments to a file; nothing is removed."""
    from medqa.audit import Store, export

    moment = None if since is None else f"{since.replace(tzinfo=UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    with Store.open(db, readonly=True) as store:
        count = export(store, out, form.value, moment)
    typer.echo(f"{out}: {count} entries")


@audit_app.command("rerun")
def audit_rerun(
    assessment_id: AssessmentId,
    reference: Annotated[str, typer.Option(metavar="PATH", help="The reference of then.")],
    candidate: Annotated[str, typer.Option(metavar="PATH", help="The candidate of then.")],
    mask: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="The masks of then. Repeatable.")
    ] = None,
    annotations: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="The annotations. Repeatable.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="The profile of then.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(metavar="FILE", help="The adapted weights of then, if any.")
    ] = None,
    db: Db = None,
    weights: WeightsFolder = None,
    device: Device = "auto",
    *,
    resample: Annotated[
        bool, typer.Option("--resample", help="It was brought to the reference's grid then.")
    ] = False,
) -> None:
    """Repeat an assessment from its inputs, and say whether it comes out again.

    Exit code 0: it does. 1: it does not. 2: not the inputs of then, or wrong use.
    """
    from medqa.audit import Store
    from medqa.rerun import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, rerun

    with Store.open(db, readonly=True) as store:
        recorded = store.get(assessment_id)
    found = rerun(
        recorded,
        reference,
        candidate,
        masks=mask or (),
        annotations=annotations or (),
        profile=profile,
        backbone=backbone,
        weights=weights,
        device=device,
        resample=resample,
    )
    if recorded.medqa_version != found.again.medqa_version:
        typer.echo(f"medqa {recorded.medqa_version} then, {found.again.medqa_version} now")
    for line in found.differences:
        typer.echo(line)
    words = {
        (True, True): "REPRODUCED: bit for bit",
        (False, True): f"REPRODUCED: within {RELATIVE_TOLERANCE} of each value, or "
        f"{ABSOLUTE_TOLERANCE}",
        (False, False): "NOT REPRODUCED",
    }
    typer.echo(words[found.exact, found.reproduces])
    raise typer.Exit(0 if found.reproduces else 1)


@audit_app.command("rotate-key")
def audit_rotate_key() -> None:
    """Make a new key for the identifiers of coming records; earlier ones stay, to look up by."""
    from medqa.audit.keys import rotate_pseudonym_key

    typer.echo(f"new key in {rotate_pseudonym_key()}: give it to every host of this database")


@audit_app.command("grants")
def audit_grants(
    reader: Annotated[str, typer.Option(metavar="ROLE", help="May read.")] = "medqa_reader",
    writer: Annotated[str, typer.Option(metavar="ROLE", help="May add too.")] = "medqa_writer",
    reviewer: Annotated[
        str, typer.Option(metavar="ROLE", help="May add and sign too.")
    ] = "medqa_reviewer",
) -> None:
    """Print the SQL that gives roles of PostgreSQL their rights; its owner runs it."""
    from medqa.audit.roles import grants

    typer.echo(grants(reader, writer, reviewer), nl=False)
