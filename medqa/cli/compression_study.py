"""`medqa study compression`: which ratio of which codec leaves images fit for diagnosis."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medqa.cli.options import BackboneName, Db, User
from medqa.errors import UsageError

if TYPE_CHECKING:
    from medqa.studies.compression.decision import Claim, Decision
    from medqa.studies.compression.planning import Settings
    from medqa.studies.signals import Signal

__all__ = ["compression"]

_CODECS = "j2k,htj2k,jpegls,jpegxl,jpeg"
_RATIOS = "4,6,8,10,15,20,30"


def compression(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="DICOM or NIfTI files, or folders of such."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where table and page go.", show_default=False)
    ],
    profile: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Thresholds; else those for compression of each kind."),
    ] = None,
    codecs: Annotated[str, typer.Option(metavar="NAMES", help="Codecs.")] = _CODECS,
    ratios: Annotated[str, typer.Option(metavar="NUMBERS", help="By the bits stored.")] = _RATIOS,
    masks: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Pathology: files named like their images, or folders."),
    ] = None,
    annotations: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Annotations, in the same way.")
    ] = None,
    guideline: Annotated[
        str, typer.Option(metavar="BODY", help="What caps the ratio: DRG, CAR, FDA or none.")
    ] = "DRG",
    share: Annotated[float, typer.Option(help="Share of images that must stay good.")] = 0.95,
    confidence: Annotated[float, typer.Option(help="How surely.")] = 0.95,
    body_part: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of images whose header names none: CHEST."),
    ] = None,
    detectability: Annotated[
        str | None,
        typer.Option(
            metavar="MM,CONTRAST",
            help="Look for lesions of this width and contrast, in the images' unit: 4,12.",
        ),
    ] = None,
    auc_loss: Annotated[
        float | None,
        typer.Option(metavar="AUC", help="What may be lost of their detectability: 0.02."),
    ] = None,
    override_mammography: Annotated[
        str | None,
        typer.Option(metavar="NAME: REASON", help="Who allows lossy mammograms, and why."),
    ] = None,
    backbone: Annotated[BackboneName, typer.Option(help="Network.")] = BackboneName.gray,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default the cores.")
    ] = None,
    valid_days: Annotated[
        int, typer.Option(min=1, max=3650, help="How long the approvals hold.")
    ] = 365,
    db: Db = None,
    user: User = None,
    *,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the study in the folder.")
    ] = False,
    no_record: Annotated[
        bool, typer.Option("--no-record", help="Propose no approval in the database.")
    ] = False,
) -> None:
    """Compress images in every way, judge each, and propose the highest ratios for approval.

    Exit code 0: at least one codec can be approved for every kind of image. 1: not so. 2: wrong
    use, or no image could be used.
    """
    from contextlib import nullcontext
    from datetime import UTC, datetime
    from functools import partial

    from medqa.audit import Store
    from medqa.compression.approvals import propose
    from medqa.console import progress_bar, show, table
    from medqa.files import write_file
    from medqa.lpips import GrayLPIPS
    from medqa.studies.compression.page import page
    from medqa.studies.compression.pictures import worst_images
    from medqa.studies.compression.planning import plan
    from medqa.studies.compression.runner import answers, begin, sweep
    from medqa.studies.compression.study import approvals_of, conclude, write_tables

    # Whatever can be refused is refused before the work, not after it.
    if find_spec("pyarrow") is None:
        raise UsageError("pyarrow", "is not installed", "pip install 'medqa[export]'")
    lesion = _lesion(detectability, auc_loss)
    settings = _settings(codecs, ratios, profile, backbone.value, body_part, lesion)
    claim = _claim(share, confidence, guideline, auc_loss, override_mammography)
    network = GrayLPIPS(settings.backbone)
    planned = plan(images, settings, masks or (), annotations or ())
    begin(out, planned, resume=resume)
    with nullcontext() if no_record else Store.open(db) as store:
        with progress_bar("images") as progress:
            found = sweep(out, planned, jobs or _cores(), progress)
        write_tables(out, [row for number in sorted(found) for row in found[number].rows])
        study = conclude(planned, found, claim, partial(answers, out))
        now = datetime.now(UTC)
        approvals = approvals_of(study, valid_days, now)
        shown = {
            (one.group.words, one.codec): list(worst_images(study, one, network))
            for one in study.decisions
        }
        if store is not None:
            for approval in approvals:
                propose(store, approval, actor=user)
        content = page(study, approvals, shown, now.date(), recorded=store is not None)
        path = write_file(out / "index.html", content)
        recorded = None if store is None else store.url_for_people
    show(table(("images", "codec", "highest", "why not more"), list(map(_line, study.decisions))))
    typer.echo(f"page: {path}")
    if recorded is not None:
        for approval in approvals:
            typer.echo(f"draft: {approval.approval_id} {approval.codec} in {recorded}")
    raise typer.Exit(0 if study.supported else 1)


def _settings(
    codecs: str,
    ratios: str,
    profile: str | None,
    backbone: str,
    body_part: str | None,
    lesion: Signal | None,
) -> Settings:
    """Raise UsageError where an option means nothing."""
    from medqa import thresholds
    from medqa.studies.compression.planning import Settings, check_settings

    try:
        numbers = sorted({float(one) for one in ratios.split(",")})
    except ValueError:
        raise UsageError(ratios, "is no list of numbers", "write such as 4,8,15") from None
    names = tuple(dict.fromkeys(one.strip() for one in codecs.split(",") if one.strip()))
    settings = Settings(names, tuple(numbers), profile, backbone, body_part, lesion)
    check_settings(settings)
    if profile is not None:
        thresholds.load(profile)
    return settings


def _lesion(given: str | None, auc_loss: float | None) -> Signal | None:
    """Raise UsageError where it is none, or where nobody knows what is not to be lost."""
    from medqa.studies.signals import Signal

    if given is None:
        if auc_loss is not None:
            mend = "add --detectability, such as 4,12"
            raise UsageError("--auc-loss", "does not say of which lesion", mend)
        return None
    try:
        diameter, contrast = map(float, given.split(","))
    except ValueError:
        mend = "write such as 4,12 for 4 mm and 12 HU"
        raise UsageError(given, "is no width and contrast of a lesion", mend) from None
    return Signal(diameter, contrast)


def _claim(
    share: float, confidence: float, guideline: str, auc_loss: float | None, override: str | None
) -> Claim:
    from medqa.studies.compression.decision import Claim, check_claim
    from medqa.studies.guidelines import named

    chosen = None if guideline.strip().casefold() == "none" else named(guideline)
    claim = Claim(share, confidence, chosen, auc_loss, override)
    check_claim(claim)
    return claim


def _cores() -> int:
    import os

    return os.cpu_count() or 1


def _line(one: Decision) -> tuple[str, ...]:
    highest = "none" if one.highest is None else f"{one.highest:g}:1"
    return one.group.words, one.codec, highest, one.why
