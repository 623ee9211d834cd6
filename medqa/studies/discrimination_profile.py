"""Forced choices as a new profile file and its page."""

from __future__ import annotations

import datetime
from pathlib import Path

from medqa.studies.discrimination import Discrimination
from medqa.studies.discrimination_page import page
from medqa.studies.profile_files import LimitRow, limit_tables, place, region_limits
from medqa.studies.readers import ReaderStudy
from medqa.studies.site_profile import check_new, opening, readers_words
from medqa.thresholds import Profile

__all__ = ["discrimination_profile", "write"]


def write(
    out: Path,
    base: Profile,
    study: ReaderStudy,
    found: Discrimination,
    *,
    version: str,
    title: str,
    date: datetime.date,
) -> Profile:
    """Write a profile and beside it its page, both whole or neither, over nothing.

    Parameters are those of `medqa.studies.site_profile.write`.

    Raises
    ------
    UsageError
        One of the files is there, or cannot be written.
    """
    check_new(out)
    text = discrimination_profile(
        base, study, found, name=out.stem, version=version, title=title, date=date
    )
    return place(out, text, ".html", lambda profile: page(profile, base, study, found))


def discrimination_profile(
    base: Profile,
    study: ReaderStudy,
    found: Discrimination,
    *,
    name: str,
    version: str,
    title: str,
    date: datetime.date,
) -> str:
    """Text of the profile.

    *Diagnostic* is the limit. *Screening* is the base's, or the diagnostic one where that is
    looser or where the base's is of another network: forced choices do not say what is
    unacceptable. Regions follow the textbook rule, as no region was judged by itself.
    """
    tables = opening(
        base,
        study,
        name=name,
        version=version,
        title=title,
        status="calibrated",
        date=date,
        caution=_caution(base, study, found),
    )
    limits: dict[str, LimitRow] = {
        "diagnostic": (found.limit, _evidence(study, found), "calibrated", date),
        "screening": _screening(base, study, found, date),
    }
    limits |= region_limits(base, found.limit, date, "no region was judged by itself")
    return "\n\n".join((*tables, *limit_tables(limits))) + "\n"


def _caution(base: Profile, study: ReaderStudy, found: Discrimination) -> str:
    told = [
        f"The diagnostic limit is from forced choices of {readers_words(study)} on "
        f"{len(study.images)} images. It holds for images like those, and no others, and says what "
        "is seen, not what is acceptable."
    ]
    if _keeps_screening(base, study, found):
        status = base.limits.screening.status
        told.append(f"The screening limit is that of {base.name}, {status}.")
    return " ".join((*told, *found.warnings))


def _keeps_screening(base: Profile, study: ReaderStudy, found: Discrimination) -> bool:
    same_network = study.network == (base.metric.backbone, base.metric.version)
    return same_network and base.limits.screening.value > found.limit


def _screening(
    base: Profile, study: ReaderStudy, found: Discrimination, date: datetime.date
) -> LimitRow:
    old = base.limits.screening
    if _keeps_screening(base, study, found):
        return old.value, old.source, old.status, old.date
    why = "is of another network" if old.value > found.limit else "is not above it"
    reason = f"the diagnostic limit, as {old.value:g} of {base.name} {why}"
    return found.limit, f"{reason}: {_evidence(study, found)}", "calibrated", date


def _evidence(study: ReaderStudy, found: Discrimination) -> str:
    """Say what stands behind the limit, and name nobody."""
    sure = f"{100 * found.confidence:.3g} %"
    patients = f" of {found.units} patients" * study.clustered
    network = f", {' '.join(study.network)}" if study.network else ""
    curve = found.curve
    return (
        f"with {sure} confidence, an image within the limit is told from its original in at most "
        f"75 % of forced choices, on average over images like these and these readers (2AFC, "
        f"Weibull function of largest likelihood, guess rate 0.5: alpha {curve.alpha:.4g}, beta "
        f"{curve.slope:.3g}, lapse {curve.lapse:.2g}, 75 % at {curve.threshold:.4g}; percentile "
        f"bootstrap over {'patients' if study.clustered else 'images'}); {found.choices} choices, "
        f"{len(study.images)} images{patients}, {readers_words(study)}{network}"
        f"{', recorded assessments' * study.recorded}; table SHA-256 {study.sha256}"
    )
