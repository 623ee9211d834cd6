"""`medqa profiles`: the thresholds."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["profiles_app"]

profiles_app = typer.Typer(help="Thresholds of modalities and tasks.", no_args_is_help=True)
Profile = Annotated[
    str, typer.Argument(metavar="NAME|FILE", help="Name of a shipped profile, or a .toml file.")
]


@profiles_app.command("list")
def profiles_list() -> None:
    """List the shipped profiles."""
    from medqa import thresholds
    from medqa.console import show, table

    rows = []
    for name in thresholds.names():
        profile = thresholds.load(name)
        parts = f" ({', '.join(profile.body_parts)})" if profile.body_parts else ""
        limits = profile.limits
        rows.append(
            (
                name,
                (", ".join(profile.modalities) or "any other") + parts,
                profile.task,
                f"{limits.diagnostic.value:g}",
                f"{limits.screening.value:g}",
                f"{limits.pathology.value:g}",
                profile.status,
            )
        )
    names = ("profile", "images", "task", "diagnostic", "screening", "pathology", "status")
    show(table(names, rows))


@profiles_app.command("show")
def profiles_show(name: Profile) -> None:
    """Print a profile: its displays and its limits with their sources."""
    from medqa import thresholds

    typer.echo(thresholds.load(name).text, nl=False)


@profiles_app.command("check")
def profiles_check(name: Profile) -> None:
    """Check a profile. Exit code 0: it is valid. 2: it is not."""
    from medqa import thresholds

    profile = thresholds.load(name)
    typer.echo(f"{profile.name} {profile.version} ({profile.status}) is valid: {profile.sha256}")


@profiles_app.command("diff")
def profiles_diff(one: Profile, other: Profile) -> None:
    """Show where two profiles differ. Exit code 0: nowhere. 1: they differ."""
    from medqa import thresholds
    from medqa.console import show, table

    found = thresholds.differences(thresholds.load(one), thresholds.load(other))
    rows = [
        (key, *("-" if value is None else str(value) for value in pair))
        for key, pair in found.items()
    ]
    show(table(("key", one, other), rows))
    raise typer.Exit(1 if found else 0)
