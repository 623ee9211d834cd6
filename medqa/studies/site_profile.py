"""A calibration as a new profile file and its page."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from medqa.studies import profile_files
from medqa.studies.calibration import Calibration
from medqa.studies.calibration_page import page
from medqa.studies.profile_files import LimitRow, limit_tables, lines, place, region_limits
from medqa.studies.readers import DISTANCE, ReaderStudy
from medqa.thresholds import SCHEMA_VERSION, Gate, Profile, Status

__all__ = ["check_new", "opening", "readers_words", "site_profile", "write"]


def check_new(out: Path) -> None:
    """Refuse to write over a profile or its page, before hours of work.

    Raises
    ------
    UsageError
        One of them is there, or the name does not end in ``.toml``.
    """
    profile_files.check_new(out, ".html")


def write(
    out: Path,
    base: Profile,
    study: ReaderStudy,
    calibrations: Sequence[Calibration],
    *,
    version: str,
    title: str,
    date: datetime.date,
) -> Profile:
    """Write a profile and beside it its page, both whole or neither, over nothing.

    Parameters
    ----------
    out
        Path of the profile, ending in ``.toml``; its stem becomes the profile's name, and the
        page is beside it, ending in ``.html``.
    base
        Shipped profile that it extends, which the study was read with.

    Returns
    -------
    The profile, as `medqa.thresholds.load` reads it.

    Raises
    ------
    UsageError
        One of the files is there, or cannot be written.
    """
    check_new(out)
    text = site_profile(
        base, study, calibrations, name=out.stem, version=version, title=title, date=date
    )
    return place(out, text, ".html", lambda profile: page(profile, base, study, calibrations))


def site_profile(
    base: Profile,
    study: ReaderStudy,
    calibrations: Sequence[Calibration],
    *,
    name: str,
    version: str,
    title: str,
    date: datetime.date,
) -> str:
    """Text of the profile.

    *Diagnostic* is the guaranteed limit. *Screening* is the weighted Youden limit, or the
    diagnostic one where that is looser: what lies between them goes to an expert. The readers
    judged whole images, so the limits of regions are never loosened by them: the textbook rule
    from the new diagnostic limit, or the base's limit where that is stricter. The profile is
    `calibrated` where its distance is, else it stays what its base is.
    """
    by_measure = {one.measure: one for one in calibrations}
    distance = by_measure.get(DISTANCE)
    tables = opening(
        base,
        study,
        name=name,
        version=version,
        title=title,
        status="calibrated" if distance else base.status,
        date=date,
        caution=_caution(base, study, calibrations),
    )
    gated = [one for one in calibrations if one.measure != DISTANCE]
    if gated:
        tables += _measures(base, study, gated, date)
    if distance is not None:
        tables += _limits(base, study, distance, date)
    return "\n\n".join(tables) + "\n"


def opening(
    base: Profile,
    study: ReaderStudy,
    *,
    name: str,
    version: str,
    title: str,
    status: Status,
    date: datetime.date,
    caution: str,
) -> list[str]:
    """First tables of the profile: what it is, and the network where it is not the base's."""
    first = lines(
        schema_version=SCHEMA_VERSION,
        extends=base.name,
        name=name,
        version=version,
        title=title,
        status=status,
        date=date,
        **_kinds(base, study),
        caution=caution,
    )
    if not study.network or study.network == (base.metric.backbone, base.metric.version):
        return [first]
    backbone, network_version = study.network
    # No study of the networks that imitate the base's says how near they are to this one.
    return [first, f"[metric]\n{lines(backbone=backbone, version=network_version, guard_band=[])}"]


def _kinds(base: Profile, study: ReaderStudy) -> dict[str, object]:
    """Modalities and body parts of the judged images, where all of them state one."""
    found: dict[str, object] = {}
    modalities = {one.modality for one in study.images}
    if not base.modalities and None not in modalities:
        found["modalities"] = sorted(map(str, modalities))
    parts = {one.body_part for one in study.images}
    if None not in parts:
        found["body_parts"] = sorted(map(str, parts))
    return found


def _caution(base: Profile, study: ReaderStudy, calibrations: Sequence[Calibration]) -> str:
    what = " and ".join(one.measure.replace("_", " ") for one in calibrations)
    told = [
        f"The limits on {what} are from {len(study.images)} images judged by "
        f"{readers_words(study)}. They hold for images like those, and no others."
    ]
    told += dict.fromkeys(warning for one in calibrations for warning in one.warnings)
    if base.caution and all(one.measure != DISTANCE for one in calibrations):
        told.append(f"Of the distance: {base.caution.strip()}")
    return " ".join(told)


def _measures(
    base: Profile, study: ReaderStudy, gated: Sequence[Calibration], date: datetime.date
) -> list[str]:
    """Every gate anew: an array of the base is replaced whole."""
    gates = {gate.measure: gate for gate in base.measures.gates}
    for one in gated:
        loosest = max if one.better == "lower" else min
        gates[one.measure] = Gate(
            measure=one.measure,
            diagnostic=one.guaranteed.limit,
            screening=loosest(one.guaranteed.limit, one.youden.limit),
            source=f"{_guarantee(study, one)}; screening: {_youden(study, one)}",
            date=date,
            status="calibrated",
        )
    run = list(dict.fromkeys((*base.measures.run, *gates)))
    tables = (lines(**gate.model_dump()) for gate in gates.values())
    return [
        f"[measures]\n{lines(run=run)}",
        *(f"[[measures.gates]]\n{table}" for table in tables),
    ]


def _limits(base: Profile, study: ReaderStudy, one: Calibration, date: datetime.date) -> list[str]:
    diagnostic = one.guaranteed.limit
    screening = (one.youden.limit, f"{_youden(study, one)}", "calibrated", date)
    if one.youden.limit < diagnostic:
        reason = f"the diagnostic limit, as this is stricter: {_youden(study, one)}"
        screening = (diagnostic, reason, "calibrated", date)
    limits: dict[str, LimitRow] = {
        "diagnostic": (diagnostic, _guarantee(study, one), "calibrated", date),
        "screening": screening,
    }
    limits |= region_limits(base, diagnostic, date, "no region was judged by itself")
    return limit_tables(limits)


def _guarantee(study: ReaderStudy, one: Calibration) -> str:
    claim, passed = one.claim, one.guaranteed.passed
    who = "patients with unacceptable images" if study.clustered else "unacceptable images"
    return (
        f"at most {_percent(claim.miss_rate)} of {who} pass with {_percent(claim.confidence)} "
        f"confidence (order statistic {one.rank} of {one.units}, Wilks 1941); "
        f"{_percent(passed.value)} of acceptable images pass "
        f"({_interval(passed.low, passed.high)}); {_evidence(study)}"
    )


def _youden(study: ReaderStudy, one: Calibration) -> str:
    return (
        f"largest weighted Youden index, a miss weighing {one.claim.miss_weight:g} "
        f"(Kowalik-Urbaniak 2014): {one.youden.limit:g}, which "
        f"{_percent(one.youden.missed.value)} of unacceptable images pass; {_evidence(study)}"
    )


def _evidence(study: ReaderStudy) -> str:
    """Say what stands behind a limit, and name nobody."""
    unacceptable = sum(one.unacceptable for one in study.images)
    patients = f" of {len({one.patient for one in study.images})} patients" * study.clustered
    scores = f", scores from {study.acceptable_from} acceptable" * bool(study.acceptable_from)
    rule = "any of them refuses" if study.rule == "any" else "half of them or more refuse"
    network = f", {' '.join(study.network)}" if study.network else ""
    return (
        f"{len(study.images)} images{patients}, {unacceptable} unacceptable, {readers_words(study)}"
        f"{scores}, unacceptable where {rule}{network}"
        f"{', recorded assessments' * study.recorded}; table SHA-256 {study.sha256}"
    )


def readers_words(study: ReaderStudy) -> str:
    """How many readers."""
    return f"{len(study.readers)} reader{'s' * (len(study.readers) != 1)}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "no interval"
    return f"{_percent(low)} to {_percent(high)}"
