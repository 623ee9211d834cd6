"""`medqa weights`: the networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medqa.cli.options import WeightsFolder

__all__ = ["weights_app"]

weights_app = typer.Typer(help="Networks and their weights.", no_args_is_help=True)


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
