"""`medqa guidelines` and `medqa study anchor`: published ratios, and what they cost real images."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medqa.cli.options import BackboneName, WeightsFolder
from medqa.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medqa.studies.anchored_profile import Anchored
    from medqa.studies.anchors import Spread

__all__ = ["anchor", "guidelines"]


def guidelines(
    modality: Annotated[
        str | None, typer.Option(metavar="NAME", help="DICOM Modality; by default all.")
    ] = None,
) -> None:
    """Show side by side what guidelines accept as the highest ratio of compression.

    Exit code 0: shown. 2: no guideline speaks of the modality.
    """
    from medqa.console import show, table
    from medqa.studies import guidelines as published

    shipped = published.guidelines()
    headings, rows = published.table(shipped, modality)
    if not rows:
        raise UsageError(
            modality, "is in no guideline that medqa knows", "leave --modality out to see all"
        )
    show(table(headings, rows))
    for one in shipped:
        typer.echo(f"{one.name}: {one.title}. {one.note} Source: {one.source}.")


def anchor(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES...", help="DICOM originals: files, or folders of series."),
    ],
    codec: Annotated[str, typer.Option(metavar="NAME", help="j2k, htj2k, jpegls, jpegxl or jpeg.")],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="New profile, ending in .toml; every distance beside."),
    ],
    limits: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Published limits (.toml); by default the shipped ones."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Shipped profile to look through; by default the images' own."
        ),
    ] = None,
    body_part: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Body Part Examined; by default what the images state."),
    ] = None,
    slices: Annotated[
        int, typer.Option(min=1, help="Slices of each image, at most, evenly spread.")
    ] = 4,
    backbone: Annotated[
        BackboneName | None, typer.Option(help="Network; by default the base's.")
    ] = None,
    weights: WeightsFolder = None,
) -> None:
    """Replay published reader limits on real images; write a profile of the distances they cost.

    Exit code 0: written. 2: too few sources, nothing published for these images, or wrong use.
    """
    from medqa import thresholds
    from medqa.compression.codecs import CODECS
    from medqa.console import progress_bar, show, table
    from medqa.lpips import GrayLPIPS
    from medqa.studies import anchored_profile
    from medqa.studies.anchors import body_part_of, check_sources, originals, replay
    from medqa.studies.profile_files import check_new
    from medqa.studies.reader_limits import limits_for

    # Whatever can be refused is refused before the work, not after it.
    check_new(out, ".json")
    if codec not in CODECS:
        raise UsageError(codec, "is no codec that medqa has", f"take one of {', '.join(CODECS)}")
    if base is not None and base not in thresholds.names():
        raise UsageError(base, "is no shipped profile", f"take {', '.join(thresholds.names())}")
    given = originals(images)
    modalities = sorted({one.modality or "unknown" for one in given})
    if len(modalities) > 1 or modalities == ["unknown"]:
        raise UsageError(
            "images", f"are of modality {' and '.join(modalities)}", "give images of one modality"
        )
    part = (body_part or "").strip().upper() or body_part_of(given)
    check_sources(given)
    profile = (
        thresholds.load(base)
        if base is not None
        else thresholds.choose(modalities[0], "routine", part)
    )
    published = limits_for(limits, modalities[0], part, codec)
    network = GrayLPIPS(backbone.value if backbone else profile.metric.backbone, weights)
    ratios = sorted({one.ratio for one in published})
    with progress_bar("compressing images") as advance:
        replayed = replay(
            network, profile, given, CODECS[codec], ratios, slices=slices, progress=advance
        )
    found = anchored_profile.anchored(published, replayed)
    written = anchored_profile.write(
        out,
        profile,
        found,
        images=given,
        replayed=replayed,
        codec=CODECS[codec],
        network=network,
        body_part=part,
        date=datetime.now(UTC).date(),
    )
    show(table(*_rows(found)))
    if part is None:
        typer.echo("Note: not all images say which body part they show: the lowest ratios hold.")
    typer.echo(f"profile: {out} ({written.status}, {found[0].sources.count} sources)")
    typer.echo(f"distances: {out.with_suffix('.json')}")


def _rows(found: Sequence[Anchored]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    headings = ("ratio", "published", "anchors", "reached", "display", "distance: median", "range")
    rows: list[tuple[str, ...]] = []
    for one in found:
        limit = one.limit
        named = (f"{limit.ratio:g}:1", f"{limit.source}: {limit.finding}", limit.anchors or "-")
        reached = f"{one.measured.median:.1f}:1"
        rows.append((*named, reached, "worst", *_words(one.sources)))
        rows += [("", "", "", "", name, *_words(values)) for name, values in one.windows]
    return headings, rows


def _words(values: Spread) -> tuple[str, str]:
    from medqa.studies.anchored_profile import distance_words

    quartiles = (
        f"{distance_words(values.lower_quartile)} to {distance_words(values.upper_quartile)}"
    )
    return (
        f"{distance_words(values.median)} (quartiles {quartiles})",
        f"{distance_words(values.least)} to {distance_words(values.most)}",
    )
