"""Anchored limits as a new profile, and all the distances behind them as JSON beside it."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medqa._version import __version__
from medqa.compression.codecs import Codec, version
from medqa.errors import UsageError
from medqa.lpips import GrayLPIPS
from medqa.studies.anchors import Original, Replayed, Spread, of_sources, spread
from medqa.studies.profile_files import LimitRow, limit_tables, lines, place, region_limits
from medqa.studies.reader_limits import ReaderLimit
from medqa.thresholds import SCHEMA_VERSION, Profile

__all__ = ["Anchored", "anchored", "distance_words", "limit_value", "profile_text", "write"]

# Relative error of networks that imitate another at distances as small as these limits: the 95th
# percentile that tests/benchmarks/anchors.py measures is 36 %, and 42 % of the smallest.
_ERROR = {"gray": 0.5}


@dataclass(frozen=True)
class Anchored:
    """What a published limit corresponds to on the images.

    Parameters
    ----------
    limit
        The published limit.
    measured
        Ratios that were reached.
    sources
        Distances of the sources, each under the worst display of every slice.
    slices
        Distances of all slices, under the worst display.
    windows
        Name of each display, and the distances of the sources under it.
    """

    limit: ReaderLimit
    measured: Spread
    sources: Spread
    slices: Spread
    windows: tuple[tuple[str, Spread], ...]


def anchored(limits: Sequence[ReaderLimit], replayed: Sequence[Replayed]) -> tuple[Anchored, ...]:
    """Sum up for each published limit what was measured at its ratio."""
    found = []
    for limit in limits:
        here = [one for one in replayed if one.ratio == limit.ratio]
        # Images of different series may be shown differently: by the window of each.
        names = dict.fromkeys(name for one in here for name, _ in one.distances)
        common = [name for name in names if all(name in dict(one.distances) for one in here)]
        found.append(
            Anchored(
                limit=limit,
                measured=spread([one.measured for one in here]),
                sources=spread(of_sources(here, limit.ratio)),
                slices=spread([one.worst for one in here]),
                windows=tuple(
                    (name, spread(of_sources(here, limit.ratio, name))) for name in common
                ),
            )
        )
    return tuple(found)


def limit_value(median: float) -> float:
    """Return a limit of two digits: rounded down, so that it never passes more than it says."""
    step = 10.0 ** (math.floor(math.log10(median)) - 1)
    # What is a whole number of steps but for the last bit stays one.
    return float(f"{math.floor(median / step + 1e-9) * step:.2g}")


def distance_words(value: float) -> str:
    """Return a distance in four decimals, or five where it is small."""
    return f"{value:.4f}" if value >= 0.001 else f"{value:.5f}"


def write(
    out: Path,
    base: Profile,
    found: Sequence[Anchored],
    *,
    images: Sequence[Original],
    replayed: Sequence[Replayed],
    codec: Codec,
    network: GrayLPIPS,
    body_part: str | None,
    date: datetime.date,
) -> Profile:
    """Write the profile, and beside it, ending in ``.json``, every distance.

    Parameters
    ----------
    out
        Path of the profile, ending in ``.toml``; its stem becomes the profile's name.
        `medqa.studies.profile_files.check_new` comes first.
    base
        Shipped profile that it extends, under whose displays was measured.

    Returns
    -------
    The profile, as `medqa.thresholds.load` reads it.

    Raises
    ------
    UsageError
        A file is there or cannot be written, or an anchoring ratio cost nothing.
    """
    text = profile_text(
        base, found, name=out.stem, codec=codec, network=network, body_part=body_part, date=date
    )

    def evidence(profile: Profile) -> bytes:
        weights = network.weights
        document = {
            "profile": profile.name,
            "profile_sha256": profile.sha256,
            "base": base.name,
            "base_sha256": base.sha256,
            "medqa_version": __version__,
            "codec": codec.name,
            "codec_version": version(codec),
            "network": {"backbone": weights.backbone, "version": weights.version},
            "weights_sha256": weights.sha256,
            "body_part": body_part,
            "limits": [_summary(one) for one in found],
            "images": [
                {
                    "image": number,
                    "device": one.device,
                    "modality": one.modality,
                    "body_part": one.body_part,
                    "slices": len(one.places),
                    "files_sha256": list(one.sha256),
                }
                for number, one in enumerate(images, start=1)
            ],
            "distances": [{**asdict(one), "distances": dict(one.distances)} for one in replayed],
        }
        return json.dumps(document, indent=1, ensure_ascii=False).encode()

    return place(out, text, ".json", evidence)


def _summary(one: Anchored) -> dict[str, object]:
    return {
        **asdict(one.limit),
        "measured_ratio": asdict(one.measured),
        "sources": asdict(one.sources),
        "slices": asdict(one.slices),
        "windows": {name: asdict(values) for name, values in one.windows},
    }


def profile_text(
    base: Profile,
    found: Sequence[Anchored],
    *,
    name: str,
    codec: Codec,
    network: GrayLPIPS,
    body_part: str | None,
    date: datetime.date,
) -> str:
    """Text of the profile.

    *Diagnostic* and *screening* are the medians of the sources at the ratios that anchor them;
    without one for screening, or with one that costs less, screening is the diagnostic limit. The
    worst slice counts, and no region is held to more than the base or the textbook rule asks.

    Raises
    ------
    UsageError
        The ratio that anchors *diagnostic* cost nothing.
    """
    by_level = {one.limit.anchors: one for one in found}
    diagnostic = by_level["diagnostic"]
    screening = by_level.get("screening", diagnostic)
    if diagnostic.sources.median <= 0:
        raise UsageError(
            diagnostic.limit.source,
            f"{codec.title} reaches {diagnostic.limit.ratio:g}:1 without loss on these images",
            "give images that cost something at this ratio, or a higher published one",
        )
    if screening.sources.median < diagnostic.sources.median:
        screening = diagnostic
    values = {
        level: (
            limit_value(one.sources.median),
            _source(one, codec, base, body_part),
            "provisional",
            date,
        )
        for level, one in (("diagnostic", diagnostic), ("screening", screening))
    }
    limits: dict[str, LimitRow] = dict(values)
    limits |= region_limits(base, values["diagnostic"][0], date, "no region was looked at")
    parts: dict[str, object] = {}
    if body_part is not None and not base.body_parts:
        parts["body_parts"] = [body_part]
    tables = [
        lines(
            schema_version=SCHEMA_VERSION,
            extends=base.name,
            name=name,
            version=date.isoformat(),
            title=f"{base.title}: compression by {codec.title}",
            status="provisional",
            date=date,
            task="compression",
            **parts,
            caution=_caution(diagnostic),
        )
    ]
    weights = network.weights
    if (weights.backbone, weights.version) != (base.metric.backbone, base.metric.version):
        # Nobody measured how near the networks that imitate the base's are to this one.
        table = lines(backbone=weights.backbone, version=weights.version, guard_band=[])
        tables.append(f"[metric]\n{table}")
    elif near := {one: _ERROR[one] for one in base.metric.guard_band if one in _ERROR}:
        tables.append(f"[metric.relative_error]\n{lines(**near)}")
    tables.append(f"[aggregate]\n{lines(slices='max')}")
    return "\n\n".join([*tables, *limit_tables(limits)]) + "\n"


def _caution(one: Anchored) -> str:
    apart = ""
    if one.sources.least > 0:
        times = one.sources.most / one.sources.least
        apart = f"; at one ratio these sources differ by a factor of {times:.2g}"
    return (
        f"The limits are the median distances of {one.sources.count} sources of real images at "
        f"ratios that were published{apart}. Not a reader study of these limits."
    )


def _source(one: Anchored, codec: Codec, base: Profile, body_part: str | None) -> str:
    of = one.sources
    spread_words = (
        f"{distance_words(of.median)} (quartiles {distance_words(of.lower_quartile)} to "
        f"{distance_words(of.upper_quartile)}, {distance_words(of.least)} to "
        f"{distance_words(of.most)})"
    )
    part = f" --body-part {body_part}" if body_part else ""
    return (
        f"{one.limit.source}: {one.limit.finding} at {one.limit.ratio:g}:1, where {codec.title} "
        f"({version(codec)}) costs the median of {one.sources.count} sources {spread_words}; "
        f"medqa study anchor --codec {codec.name} --base {base.name}{part}"
    )
