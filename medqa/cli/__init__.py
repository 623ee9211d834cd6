"""The `medqa` command: arguments to `medqa.run`, the outcome to a terminal.

Heavy imports stand inside the functions that need them: `medqa --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from medqa._version import __version__
from medqa.cli.adaptation import adapt
from medqa.cli.anchors import anchor, guidelines
from medqa.cli.assessment import assess
from medqa.cli.audit import audit_app
from medqa.cli.batch import batch
from medqa.cli.calibration import calibrate
from medqa.cli.compression import approvals_app, check_compression, compress
from medqa.cli.compression_study import compression
from medqa.cli.detectability import detectability
from medqa.cli.dicom_node import dicom_node
from medqa.cli.dicomweb import dicomweb
from medqa.cli.enhancement import denoising, super_resolution
from medqa.cli.forwarding import forward
from medqa.cli.images import inspect, pair, render
from medqa.cli.monitoring import gallery_app, monitor
from medqa.cli.options import Db, WeightsFolder
from medqa.cli.orthanc import orthanc
from medqa.cli.profiles import profiles_app
from medqa.cli.quality import qc
from medqa.cli.queue import queue_app, worker
from medqa.cli.serve import keys_app, serve
from medqa.cli.watch import watch
from medqa.cli.weights import weights_app
from medqa.errors import MedqaError

__all__ = ["app", "main"]

_EXAMPLES = """\
Examples:

  medqa assess original.dcm compressed.dcm --out report

  medqa assess series/ denoised_series/ --mask lesion.nii.gz --require diagnostic

  medqa assess t1.nii.gz t1_superresolved.nii.gz --profile mr --json

  medqa pair originals/ compressed/

  medqa batch pairs.csv --out results

  medqa study compression images/ --out study
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
study_app = typer.Typer(
    help="Many comparisons, and the decision that follows.", no_args_is_help=True
)
_COMMANDS: tuple[Callable[..., None], ...] = (
    *(assess, batch, inspect, pair, render, compress, check_compression, guidelines),
    *(qc, monitor, calibrate, adapt),
    *(worker, serve, dicom_node, orthanc, dicomweb, watch),
)
_STUDIES: tuple[Callable[..., None], ...] = (
    compression,
    denoising,
    super_resolution,
    detectability,
    anchor,
)
for command in _COMMANDS:
    app.command()(command)
for command in _STUDIES:
    study_app.command()(command)
audit_app.command("forward")(forward)
app.add_typer(study_app, name="study")
app.add_typer(approvals_app, name="approvals")
app.add_typer(queue_app, name="queue")
app.add_typer(keys_app, name="web-key")
app.add_typer(gallery_app, name="gallery")
app.add_typer(profiles_app, name="profiles")
app.add_typer(weights_app, name="weights")
app.add_typer(audit_app, name="audit")


def main() -> None:
    """Run the command; every error that medqa raises on purpose is one line and exit code 2."""
    try:
        app()
    except MedqaError as error:
        sys.stderr.write(f"medqa: {error}\n")
        raise SystemExit(2) from None


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
