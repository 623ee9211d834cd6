"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Backbone",
    "BackboneName",
    "Db",
    "Device",
    "LevelName",
    "NoRecord",
    "Precision",
    "PrecisionName",
    "Require",
    "RequireCalibrated",
    "SpoolFolder",
    "TaskName",
    "User",
    "WeightsFolder",
]


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


class TaskName(StrEnum):
    """What was done to the image."""

    routine = "routine"
    compression = "compression"
    denoising = "denoising"
    super_resolution = "super-resolution"


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
SpoolFolder = Annotated[
    Path,
    typer.Option(
        "--spool",
        envvar="MEDQA_SPOOL",
        show_envvar=True,
        metavar="DIR",
        help="For the images that come in, and results; workers reach it by the same path.",
    ),
]
User = Annotated[
    str | None,
    typer.Option(
        "--user",
        envvar="MEDQA_USER",
        show_envvar=True,
        metavar="NAME",
        help="Who asks, for the record; by default the user of the operating system.",
    ),
]
Backbone = Annotated[
    str,
    typer.Option(
        "--backbone",
        metavar="gray|alex|squeeze|vgg|FILE",
        help="Network, or weights that adapt wrote.",
    ),
]
Precision = Annotated[
    PrecisionName, typer.Option("--precision", help="What the network computes in.")
]
Device = Annotated[
    str, typer.Option("--device", metavar="auto|cpu|cuda", help="Where the network runs.")
]
Require = Annotated[LevelName, typer.Option("--require", help="Level that exit code 0 stands for.")]
RequireCalibrated = Annotated[
    bool, typer.Option("--require-calibrated", help="Refuse provisional limits.")
]
NoRecord = Annotated[bool, typer.Option("--no-record", help="Leave no record in the database.")]
