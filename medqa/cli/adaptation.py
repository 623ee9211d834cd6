"""`medqa adapt`: layer weights of a site's own from its readers' preferences."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medqa.cli.options import BackboneName, Device, WeightsFolder

if TYPE_CHECKING:
    from medqa.studies.adaptation import Adaptation
    from medqa.studies.intervals import Estimate

__all__ = ["adapt"]


def adapt(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="CSV: reference, a, b, preferred; or reference, candidate, rating.",
        ),
    ],
    profile: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Whose displays the readers looked at.")
    ],
    name: Annotated[str, typer.Option(help="Of the new version, such as site-ct.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="New weights, ending in .safetensors.")],
    backbone: Annotated[
        BackboneName, typer.Option(help="Network to start from.")
    ] = BackboneName.gray,
    group: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only the judgments of this group of readers."),
    ] = None,
    device: Device = "auto",
    weights: WeightsFolder = None,
) -> None:
    """Refit a network's layer weights to what readers prefer; write them as a new version.

    Exit code 0: written. 1: on images that were not fitted on, the new weights are not better,
    and nothing is written. 2: too few judgments, or wrong use.
    """
    from medqa import thresholds
    from medqa.console import progress_bar, show
    from medqa.console import table as console_table
    from medqa.lpips import GrayLPIPS, choose_device
    from medqa.studies import adaptation
    from medqa.studies.adapted_weights import check_new, write
    from medqa.studies.observations import observe
    from medqa.studies.preferences import read_preferences
    from medqa.weights import adapted_version

    # Whatever can be refused is refused before the work, not after it.
    check_new(out)
    adapted_version("", name, "")
    displayed = thresholds.load(profile)
    preferences = read_preferences(table, group=group)
    network = GrayLPIPS(backbone.value, weights, device=choose_device(device))
    with progress_bar("measuring references") as bar:
        observed = observe(network, preferences, displayed, bar)
    found = adaptation.adapt(observed)
    show(console_table(("out of sample", "original", "adapted", "gain (95 %)"), _rows(found)))
    for warning in found.warnings:
        typer.echo(f"Note: {warning}")
    if not found.better:
        typer.echo("not written: a gain is not surely above 0, so the original stays")
        raise typer.Exit(1)
    today = datetime.now(UTC).date()
    written = write(out, network.weights, found, preferences, displayed, name=name, date=today)
    typer.echo(f"weights: {out}")
    typer.echo(f"network: {written.backbone} {written.version}, SHA-256 {written.sha256}")
    typer.echo("No shipped limit holds for it: use it with a profile whose [metric] names it.")


def _rows(found: Adaptation) -> list[tuple[str, ...]]:
    score = (f"{found.original_score:.1%}", f"{found.score:.1%}", _words(found.score_gain, ".1%"))
    loss = (
        f"{found.original_log_loss:.3f}",
        f"{found.log_loss:.3f}",
        _words(found.log_loss_gain, ".3f"),
    )
    return [("choices agreed with", *score), ("log loss", *loss)]


def _words(gain: Estimate, form: str) -> str:
    low, high = (float("nan") if end is None else end for end in (gain.low, gain.high))
    return f"{gain.value:+{form}} ({low:+{form}} to {high:+{form}})"
