"""`medqa calibrate`: limits of a site's own from its readers' judgments."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medqa.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from medqa.studies.calibration import Calibration
    from medqa.studies.discrimination import Discrimination
    from medqa.studies.intervals import Estimate

# What is claimed of refused images; a forced choice refuses none.
_OF_ACCEPTANCE = ("unacceptable_when", "miss_rate", "miss_weight")

__all__ = ["calibrate"]


class RuleName(StrEnum):
    """When several readers together call an image unacceptable."""

    majority = "majority"
    any = "any"


def calibrate(
    context: typer.Context,
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="CSV: image, reader, judgment and distance.")
    ],
    base: Annotated[
        str, typer.Option(metavar="NAME", help="Shipped profile that was measured with.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="New profile, ending in .toml; the page beside it.")
    ],
    measure: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="distance, or a companion measure. Repeatable."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Network, where the table does not say it."),
    ] = None,
    acceptable_from: Annotated[
        int | None,
        typer.Option(min=2, max=5, help="Judgments are scores from 1 to 5: lowest acceptable."),
    ] = None,
    unacceptable_when: Annotated[
        RuleName, typer.Option(help="How many readers must refuse; a tie is a majority.")
    ] = RuleName.majority,
    miss_rate: Annotated[
        float, typer.Option(help="Largest share of unacceptable images that may pass.")
    ] = 0.05,
    confidence: Annotated[float, typer.Option(help="How surely.")] = 0.95,
    miss_weight: Annotated[
        float, typer.Option(help="What a miss weighs in the screening limit; a false alarm is 1.")
    ] = 2.0,
    profile_version: Annotated[
        str | None, typer.Option("--profile-version", help="By default the date.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="By default the base's.")] = None,
    db: Annotated[
        str | None,
        typer.Option(
            "--db",
            envvar="MEDQA_DB",
            show_envvar=True,
            metavar="URL",
            help="Audit database, where the table names recorded assessments.",
        ),
    ] = None,
) -> None:
    """Set limits from readers' judgments; write a new profile.

    From judgments of what is acceptable: limits with a guaranteed miss rate. From forced choices
    (right or wrong): the distance up to which images are hardly told from their originals.

    Exit code 0: written. 2: the judgments cannot support the claim, or wrong use.
    """
    from medqa import thresholds
    from medqa.console import show
    from medqa.studies.calibration import Claim
    from medqa.studies.calibration import calibrate as calibrate_measure
    from medqa.studies.discrimination import discriminate
    from medqa.studies.discrimination_profile import write as write_choices
    from medqa.studies.readers import DISTANCE, read_study
    from medqa.studies.site_profile import check_new, write

    # Whatever can be refused is refused before the work, not after it.
    check_new(out)
    claim = Claim(miss_rate, confidence, miss_weight)
    if base not in thresholds.names():
        raise UsageError(base, "is no shipped profile", f"take {', '.join(thresholds.names())}")
    extended = thresholds.load(base)
    study = read_study(
        table,
        extended,
        measures=tuple(dict.fromkeys(measure or (DISTANCE,))),
        acceptable_from=acceptable_from,
        rule=unacceptable_when.value,
        network=backbone,
        db=db,
    )
    today = datetime.now(UTC).date()
    version = profile_version or today.isoformat()
    title = title or f"{extended.title}, calibrated"
    if study.forced_choice:
        _check_given(context)
        choices = discriminate(study, claim.confidence)
        profile = write_choices(
            out, extended, study, choices, version=version, title=title, date=today
        )
        shown, warnings = _of_choices(choices), choices.warnings
    else:
        found = [calibrate_measure(study, name, claim) for name in study.measures]
        profile = write(out, extended, study, found, version=version, title=title, date=today)
        shown = _of_acceptance(found)
        warnings = tuple(warning for one in found for warning in one.warnings)
    show(shown)
    for warning in dict.fromkeys(warnings):
        typer.echo(f"Note: {warning}")
    typer.echo(f"profile: {out} ({profile.status})")
    typer.echo(f"page: {out.with_suffix('.html')}")


def _check_given(context: typer.Context) -> None:
    """Refuse options that would change nothing."""
    for name in _OF_ACCEPTANCE:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise UsageError(option, "says nothing of forced choices", "leave it out")


def _of_choices(found: Discrimination) -> Table:
    from medqa.console import table

    headings = ("measure", "limit", "75 % right at", "right within the limit", "choices")
    within = "–" if found.within is None else _words(found.within, "{:.1%}")
    threshold = f"{found.curve.threshold:.3g}"
    return table(
        headings, [("distance", f"{found.limit:g}", threshold, within, str(found.choices))]
    )


def _of_acceptance(found: Sequence[Calibration]) -> Table:
    from medqa.console import table

    headings = ("measure", "AUC", "limit", "value", "unacceptable pass", "acceptable pass")
    return table(headings, [row for one in found for row in _rows(one)])


def _rows(one: Calibration) -> list[tuple[str, ...]]:
    points = (("guaranteed", one.guaranteed), ("weighted Youden", one.youden))
    return [
        (
            one.measure,
            _words(one.auc, "{:.3f}"),
            name,
            f"{point.limit:g}",
            _words(point.missed, "{:.1%}"),
            _words(point.passed, "{:.1%}"),
        )
        for name, point in points
    ]


def _words(estimate: Estimate, form: str) -> str:
    value = form.format(estimate.value)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({form.format(estimate.low)} to {form.format(estimate.high)})"
