"""The `medqa` command: arguments to `medqa.run`, the outcome to a terminal.

Heavy imports stand inside the functions that need them: `medqa --help` answers at once.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from medqa._version import __version__
from medqa.errors import MedqaError

if TYPE_CHECKING:
    from medqa.assessment import Assessment, Job
    from medqa.audit import Store
    from medqa.lpips import GrayLPIPS

__all__ = ["app", "main"]

_EXAMPLES = """\
Examples:

  medqa assess original.dcm compressed.dcm --out report

  medqa assess series/ denoised_series/ --mask lesion.nii.gz --require diagnostic

  medqa assess t1.nii.gz t1_superresolved.nii.gz --profile mr --json
"""

_CONTEXT = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    help="May this processed medical image still be read?",
    epilog=_EXAMPLES.replace("\n\n", "\n\n\b\n"),
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=_CONTEXT,
)
profiles_app = typer.Typer(help="Thresholds of the modalities.", no_args_is_help=True)
weights_app = typer.Typer(help="Networks and their weights.", no_args_is_help=True)
audit_app = typer.Typer(help="The recorded assessments.", no_args_is_help=True)
app.add_typer(profiles_app, name="profiles")
app.add_typer(weights_app, name="weights")
app.add_typer(audit_app, name="audit")


class BackboneName(StrEnum):
    """The networks, named here because importing them takes seconds."""

    gray = "gray"
    alex = "alex"
    squeeze = "squeeze"
    vgg = "vgg"


class PrecisionName(StrEnum):
    """What a network computes in; checked before torch is loaded."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class LevelName(StrEnum):
    """What the image is wanted for."""

    diagnostic = "diagnostic"
    screening = "screening"


Db = Annotated[
    str | None,
    typer.Option(
        "--db",
        envvar="MEDQA_DB",
        show_envvar=True,
        metavar="URL",
        help="Audit database: path of an SQLite file, or postgresql://…",
    ),
]
WeightsFolder = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        envvar="MEDQA_WEIGHTS",
        show_envvar=True,
        metavar="DIR",
        help="Folder that holds the official networks' weights.",
    ),
]


def main() -> None:
    """Run the command; every error that medqa raises on purpose is one line and exit code 2."""
    try:
        app()
    except MedqaError as error:
        _fail(error)


def _fail(error: MedqaError) -> NoReturn:
    sys.stderr.write(f"medqa: {error}\n")
    raise SystemExit(2)


def _version(*, value: bool) -> None:
    if value:
        typer.echo(f"medqa {__version__}")
        raise typer.Exit


@app.callback()
def _medqa(
    context: typer.Context,
    *,
    version: Annotated[  # noqa: ARG001 (its callback has done the work)
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Show the help where no command is given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def assess(
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="DICOM file, folder of one series, or NIfTI.")
    ],
    candidate: Annotated[
        str, typer.Argument(metavar="CANDIDATE", help="The processed image, in the same forms.")
    ],
    mask: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Pathology: NIfTI, PNG or DICOM SEG. Repeatable."),
    ] = None,
    annotations: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Annotated boxes, JSON. Repeatable."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Thresholds; by default those of the modality."),
    ] = None,
    backbone: Annotated[BackboneName, typer.Option(help="Network.")] = BackboneName.gray,
    precision: Annotated[
        PrecisionName, typer.Option(help="What the network computes in.")
    ] = PrecisionName.float32,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where the network runs.")
    ] = "auto",
    planes: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Compare a volume in all three planes too, every N slices."
        ),
    ] = None,
    require: Annotated[
        LevelName, typer.Option(help="Level that exit code 0 stands for.")
    ] = LevelName.diagnostic,
    db: Db = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write record, report and pictures here.")
    ] = None,
    weights: WeightsFolder = None,
    *,
    resample: Annotated[
        bool, typer.Option("--resample", help="Bring CANDIDATE to the grid of REFERENCE.")
    ] = False,
    no_record: Annotated[
        bool, typer.Option("--no-record", help="Leave no record in the database.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the record.")] = False,
) -> None:
    """Judge whether CANDIDATE may be read in place of REFERENCE.

    Exit code 0: the required level is met. 1: it is not. 2: not assessable, or wrong use.
    """
    from medqa.assessment import Job
    from medqa.audit import Store
    from medqa.lpips import GrayLPIPS, choose_device
    from medqa.report import prepare_folder, write

    job = Job(
        reference=reference,
        candidate=candidate,
        masks=tuple(mask or ()),
        annotations=tuple(annotations or ()),
        profile=profile,
        backbone=backbone.value,
        precision=precision.value,
        device=device,
        resample=resample,
        plane_stride=planes,
        origin="medqa assess",
    )
    # Whatever can be refused is refused before the work, not after it.
    if out is not None:
        prepare_folder(out)
    with nullcontext() if no_record else Store.open(db) as store:
        network = GrayLPIPS(
            backbone.value, weights, precision=precision.value, device=choose_device(device)
        )
        assessment = _run(job, store, network)
        where = None if store is None else store.url_for_people
    report = None if out is None else write(assessment, out)
    if as_json:
        typer.echo(assessment.model_dump_json(indent=2))
    if assessment.failure is not None:
        _fail(assessment.failure)
    if not as_json:
        from medqa.console import panel, show

        show(panel(assessment, report=report, recorded=where))
    raise typer.Exit(0 if assessment.meets(require.value) else 1)


def _run(job: Job, store: Store | None, network: GrayLPIPS) -> Assessment:
    """Run a job under a progress bar, which shows on terminals only and not for single images."""
    from medqa.console import progress_bar
    from medqa.pipeline import run

    with progress_bar() as bar:
        return run(job, store, network=network, progress=bar)


@profiles_app.command("list")
def profiles_list() -> None:
    """List the shipped profiles."""
    from medqa import thresholds
    from medqa.console import show, table

    rows = []
    for name in thresholds.names():
        profile = thresholds.load(name)
        limits = profile.limits
        rows.append(
            (
                name,
                ", ".join(profile.modalities) or "any other",
                f"{limits.diagnostic.value:.2f}",
                f"{limits.screening.value:.2f}",
                f"{limits.pathology.value:.3f}",
                profile.status,
            )
        )
    show(table(("profile", "modalities", "diagnostic", "screening", "pathology", "status"), rows))


@profiles_app.command("show")
def profiles_show(
    name: Annotated[str, typer.Argument(help="Name of a shipped profile, or a .toml file.")],
) -> None:
    """Print a profile: its displays and its limits with their sources."""
    from medqa import thresholds

    typer.echo(thresholds.load(name).text, nl=False)


@weights_app.command("list")
def weights_list(weights: WeightsFolder = None) -> None:
    """List the networks and where their weights lie."""
    from medqa.console import show, table
    from medqa.weights import BACKBONES, locate

    rows = []
    for name, pinned in BACKBONES.items():
        place = locate(name, weights)
        rows.append((name, pinned.version, str(place or "not on this machine")))
    show(table(("network", "version", "weights"), rows))


@weights_app.command("verify")
def weights_verify(weights: WeightsFolder = None) -> None:
    """Check the weights on this machine against the pinned digests."""
    from medqa.console import show, table
    from medqa.errors import WeightsError
    from medqa.weights import BACKBONES, find, locate

    rows, wrong = [], False
    for name in BACKBONES:
        if locate(name, weights) is None:
            rows.append((name, "not on this machine", ""))
            continue
        try:
            rows.append((name, "as pinned", find(name, weights).sha256))
        except WeightsError as error:
            wrong = True
            rows.append((name, "WRONG", str(error)))
    show(table(("network", "weights", "SHA-256 of the tensors"), rows))
    raise typer.Exit(2 if wrong else 0)


@weights_app.command("import")
def weights_import(
    folder: Annotated[Path, typer.Argument(help="Folder with torchvision's checkpoints.")],
) -> None:
    """Check the official weights in FOLDER and copy them to where medqa looks."""
    from medqa.weights import import_folder

    for name, path in import_folder(folder).items():
        typer.echo(f"{name}: {path}")


@audit_app.command("list")
def audit_list(
    db: Db = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 20,
) -> None:
    """List the latest assessments, newest first."""
    from medqa.audit import Store
    from medqa.console import show, table

    with Store.open(db) as store:
        rows = [
            (
                one.assessment_id[:8],
                f"{one.created_at:%Y-%m-%d %H:%M} UTC",
                (one.inputs.reference and one.inputs.reference.modality) or "-",
                one.profile.name if one.profile else "-",
                "-" if one.base_lpips_score is None else f"{one.base_lpips_score:.4f}",
                one.verdict,
            )
            for one in store.list(limit)
        ]
    show(table(("assessment", "time", "modality", "profile", "distance", "verdict"), rows))


@audit_app.command("show")
def audit_show(
    assessment_id: Annotated[str, typer.Argument(help="Its id, or the beginning of it.")],
    db: Db = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record.")] = False,
) -> None:
    """Show one assessment."""
    from medqa.audit import Store
    from medqa.console import panel, show

    with Store.open(db) as store:
        assessment = store.get(assessment_id)
    if as_json:
        typer.echo(assessment.model_dump_json(indent=2))
    else:
        show(panel(assessment))


@app.command()
def doctor(db: Db = None, weights: WeightsFolder = None) -> None:
    """Show what works on this machine and what does not.

    Exit code 0: the main job can be done. 2: it cannot.
    """
    from medqa.console import show, table
    from medqa.doctor import examine

    findings = examine(db, weights)
    show(table(("part", "state", "detail"), [(f.part, f.state, f.detail) for f in findings]))
    raise typer.Exit(2 if any(finding.fatal for finding in findings) else 0)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pages go.")] = Path("demo"),
) -> None:
    """Judge damaged copies of real images that come with pydicom, and write pages to look at."""
    from medqa.demo import run_demo

    run_demo(out)
