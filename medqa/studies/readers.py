"""A reader study as a table: which images were judged by whom, and what was measured of them.

One row for each judgment: ``image``, ``reader``, ``judgment`` and either the measured values or
``assessment``, the id of a recorded assessment. The judgments of a table are of one kind: whether
an image is acceptable, or whether a forced choice (2AFC) between it and its original was right.
Errors name the line and the column, never an image, a patient or a reader.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medqa.assessment import MEASURE_WORDS
from medqa.errors import StoreError, UsageError
from medqa.tables import Table, read_table, wrong
from medqa.thresholds import Profile

if TYPE_CHECKING:
    from medqa.assessment import Assessment
    from medqa.audit import Store

__all__ = ["DISTANCE", "JudgedImage", "ReaderStudy", "Rule", "read_study"]

Rule = Literal["majority", "any"]
# What a judgment is: acceptable or not, a score from 1 to 5, or a forced choice right or wrong.
_Scale = Literal["acceptable", "score", "choice"]
#: Name of the column, and of the measure, that holds the LPIPS distance.
DISTANCE = "distance"

_ALWAYS = ("image", "reader", "judgment")
_OPTIONAL = ("patient", "modality", "body_part", "network")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_CODE = re.compile(r"[A-Z0-9_]{1,16}")  # a DICOM code string, as profiles hold it
_WORDS = {
    **dict.fromkeys(("accept", "acceptable", "yes", "1"), 1),
    **dict.fromkeys(("reject", "unacceptable", "no", "0"), 0),
}
_CHOICES = {"right": 1, "wrong": 0}
# Of a forced choice, but not whether it was right; "right" is taken for the answer, not the side.
_SIDES = {"2afc", "a", "b", "left", "first", "second", "reference", "candidate", "original"}
_HIGHEST = 5  # scores run from 1 to this


@dataclass(frozen=True)
class JudgedImage:
    """One image with everything that was measured and judged of it.

    Parameters
    ----------
    values
        Measured value by name: `DISTANCE` or a companion measure.
    judgments
        By reader: 0 (unacceptable) or 1 (acceptable), a score from 1 to 5, or 0 (wrong) or 1
        (right).
    unacceptable
        What the readers say together, by the rule of the study; of a forced choice always False.
    patient
        Whose image it is; images of one patient are not independent.
    """

    values: Mapping[str, float]
    judgments: Mapping[str, int]
    unacceptable: bool
    patient: str
    modality: str | None = None
    body_part: str | None = None


@dataclass(frozen=True)
class ReaderStudy:
    """A table of judgments, read and checked.

    Parameters
    ----------
    readers
        In the order in which the table first names them.
    network
        Name and version that the distances were measured with; None where there are none.
    clustered
        Whether the table tells patients apart; if not, each image counts as another patient's.
    acceptable_from
        Lowest acceptable score; None where the judgments are no scores.
    rule
        When several readers together call an image unacceptable: `majority` of them, where a tie
        counts as unacceptable, or `any` of them.
    recorded
        Whether the values come from recorded assessments.
    sha256
        SHA-256 of the table's file.
    forced_choice
        Whether the judgments say which of two images is the original, and not what is acceptable.
    """

    images: tuple[JudgedImage, ...]
    readers: tuple[str, ...]
    measures: tuple[str, ...]
    network: tuple[str, str] | None
    clustered: bool
    acceptable_from: int | None
    rule: Rule
    recorded: bool
    sha256: str
    forced_choice: bool = False

    def accepts(self, judgment: int) -> bool:
        """Whether a single judgment is one of acceptable."""
        return judgment >= (1 if self.acceptable_from is None else self.acceptable_from)


@dataclass
class _Gathered:
    """Rows of one image while the table is read: its first line, its cells, its judgments."""

    line: int
    cells: dict[str, str]
    judgments: dict[str, tuple[int, int]] = field(default_factory=dict)


def read_study(
    path: Path,
    base: Profile,
    *,
    measures: Sequence[str] = (DISTANCE,),
    acceptable_from: int | None = None,
    rule: Rule = "majority",
    network: str | None = None,
    db: str | None = None,
) -> ReaderStudy:
    """Read a table of judgments, UTF-8, cells separated by commas, decimal points.

    1. The header: no column unknown, none missing.
    2. The rows: every judgment understood, none given twice, one value for each image.
    3. The values: from the table's own columns, or from the recorded assessments.
    4. The readers' judgments of each image combined by the rule.

    Parameters
    ----------
    base
        Profile whose display, aggregate and modalities the values were measured under.
    measures
        `DISTANCE`, companion measures, or both.
    acceptable_from
        For scores from 1 to 5: the lowest that is acceptable.
    network
        Network of the distances where the table does not say it, such as ``alex`` or ``gray 1``.
    db
        Audit database where recorded assessments are looked up, as `medqa.audit.Store` takes it.

    Raises
    ------
    UsageError
        The table cannot be read or used; names the line and the column.
    StoreError
        An assessment is not recorded.
    """
    for name in measures:
        if name != DISTANCE and name not in MEASURE_WORDS:
            known = ", ".join((DISTANCE, *MEASURE_WORDS))
            raise UsageError(name, "is no measure", f"choose from {known}")

    # 1. and 2. Header and rows.
    table = read_table(path)
    scale = _scale(table, acceptable_from)
    gathered = _gather(table, measures, scale)
    if not gathered:
        raise UsageError(path, "holds no judgments", "add a row for each image and reader")

    # 3. Values.
    recorded = "assessment" in next(iter(gathered.values())).cells
    if recorded:
        if network is not None:
            raise UsageError(path, "its assessments say the network", "leave --backbone out")
        facts = _recorded_facts(path, gathered, base, measures, db)
    else:
        facts = _own_facts(path, gathered, base, measures, network)
    clustered = all(one.patient is not None for one in facts.values())

    # 4. One label for each image.
    lowest = 1 if acceptable_from is None else acceptable_from
    images = tuple(
        JudgedImage(
            values=facts[name].values,
            judgments={who: judged for who, (judged, _) in one.judgments.items()},
            unacceptable=scale != "choice"
            and _unacceptable([judged < lowest for judged, _ in one.judgments.values()], rule),
            patient=str(facts[name].patient) if clustered else name,
            modality=facts[name].modality,
            body_part=facts[name].body_part,
        )
        for name, one in gathered.items()
    )
    return ReaderStudy(
        images=images,
        readers=tuple(dict.fromkeys(who for one in gathered.values() for who in one.judgments)),
        measures=tuple(measures),
        network=_one_network(path, facts, gathered) if DISTANCE in measures else None,
        clustered=clustered,
        acceptable_from=acceptable_from,
        rule=rule,
        recorded=recorded,
        sha256=table.sha256,
        forced_choice=scale == "choice",
    )


@dataclass(frozen=True)
class _Facts:
    """What is known of an image beside its judgments."""

    values: Mapping[str, float]
    network: tuple[str, str] | None
    patient: str | None
    modality: str | None
    body_part: str | None


def _check_header(path: Path, names: Sequence[str], measures: Sequence[str]) -> None:
    needed = _ALWAYS + (("assessment",) if "assessment" in names else tuple(measures))
    if missing := [one for one in needed if one not in names]:
        raise UsageError(
            path,
            f"line 1: column {', '.join(missing)} is missing",
            "add it; values come from columns of their own or from assessment",
        )
    # An assessment says all but whose image it is, and even that where it was a DICOM.
    allowed = {*_ALWAYS, *(("assessment", "patient") if "assessment" in names else _OPTIONAL)}
    if "assessment" not in names:
        allowed |= {DISTANCE, *MEASURE_WORDS}
    if unknown := [one for one in names if one not in allowed]:
        reason = f"line 1: column {', '.join(unknown)} is not understood"
        if "assessment" in names and set(unknown) <= {DISTANCE, *_OPTIONAL, *MEASURE_WORDS}:
            reason = f"line 1: column {', '.join(unknown)} stands beside assessment, which says it"
        raise UsageError(path, reason, f"remove it; known are {', '.join(sorted(allowed))}")


def _scale(table: Table, acceptable_from: int | None) -> _Scale:
    """Tell what the judgments of a table are: choices where its first one is."""
    first = table.rows[0].cells.get("judgment", "") if table.rows else ""
    if first.casefold() not in _CHOICES:
        return "acceptable" if acceptable_from is None else "score"
    if acceptable_from is not None:
        reason = "its judgments are forced choices, right or wrong, not scores"
        raise UsageError(table.path, reason, "leave --acceptable-from out")
    return "choice"


def _gather(table: Table, measures: Sequence[str], scale: _Scale) -> dict[str, _Gathered]:
    """Rows by image, in the order of the table."""
    path = table.path
    _check_header(path, table.columns, measures)
    gathered: dict[str, _Gathered] = {}
    for row in table.rows:
        line, cells = row.line, dict(row.cells)
        judgment = _judgment(path, line, cells.pop("judgment"), scale)
        image, who = cells.pop("image"), cells.pop("reader")
        one = gathered.setdefault(image, _Gathered(line, cells))
        for name, cell in cells.items():
            if one.cells[name] != cell:
                reason = f"differs from line {one.line}, which is of the same image"
                raise wrong(path, line, name, reason, "give each image one value")
        if who in one.judgments:
            reason = f"this reader judged this image on line {one.judgments[who][1]} already"
            raise wrong(path, line, "reader", reason, "keep one of the two judgments")
        one.judgments[who] = (judgment, line)
    return gathered


def _judgment(path: Path, line: int, cell: str, scale: _Scale) -> int:
    word = cell.casefold()
    if scale == "choice":
        if word in _CHOICES:
            return _CHOICES[word]
        mend = "write right or wrong in every row"
    elif scale == "acceptable":
        if word in _WORDS:
            return _WORDS[word]
        mend = "write accept or reject, yes or no, 1 or 0"
        if word.isdecimal():
            mend = "for scores from 1 to 5 say which are acceptable: --acceptable-from 3"
    else:
        if word in {str(score) for score in range(1, _HIGHEST + 1)}:
            return int(word)
        mend = f"with --acceptable-from write whole numbers from 1 to {_HIGHEST}"
    reason = f"'{cell[:20]}' is no judgment"
    if word in _SIDES:
        reason = f"'{cell[:20]}' does not say whether a forced choice (2AFC) was right"
        mend = "write right where the reader named the original, wrong where not"
    elif word in (_WORDS if scale == "choice" else _CHOICES):
        reason = "forced choices and other judgments in one table"
        mend = "make one table of each"
    raise wrong(path, line, "judgment", reason, mend)


def _own_facts(
    path: Path,
    gathered: Mapping[str, _Gathered],
    base: Profile,
    measures: Sequence[str],
    network: str | None,
) -> dict[str, _Facts]:
    facts = {}
    for image, one in gathered.items():
        cells, line = one.cells, one.line
        for name in ("modality", "body_part"):
            if name in cells and not _CODE.fullmatch(cells[name]):
                reason = f"'{cells[name][:20]}' is no DICOM code"
                raise wrong(path, line, name, reason, "write it as in the header: CT, HEAD")
        _check_modality(path, line, base, cells.get("modality"))
        stated = cells.get("network", network)
        if "network" in cells and network is not None:
            raise UsageError(path, "it names the networks itself", "leave --backbone out")
        if DISTANCE in measures and stated is None:
            mend = "add a column network, or name it with --backbone"
            raise UsageError(path, "does not say which network measured the distances", mend)
        facts[image] = _Facts(
            values={name: _number(path, line, name, cells[name]) for name in measures},
            network=None if stated is None else _network(path, line, stated),
            patient=cells.get("patient"),
            modality=cells.get("modality"),
            body_part=cells.get("body_part"),
        )
    return facts


def _number(path: Path, line: int, name: str, cell: str) -> float:
    value = float(cell) if _NUMBER.fullmatch(cell) else math.nan
    if not math.isfinite(value):
        mend = "write a number with a decimal point"
        raise wrong(path, line, name, f"'{cell[:20]}' is no number", mend)
    if name == DISTANCE and value < 0.0:
        raise wrong(path, line, name, f"a distance of {cell[:20]}", "it is at least 0")
    return value


def _network(path: Path, line: int, stated: str) -> tuple[str, str]:
    """Name and version: of this medqa where only the name is given."""
    from medqa.weights import BACKBONES

    name, _, version = stated.partition(" ")
    if name not in BACKBONES:
        reason = f"'{stated[:20]}' is no network"
        raise wrong(path, line, "network", reason, f"take one of {', '.join(BACKBONES)}")
    return name, version.strip() or BACKBONES[name].version


def _recorded_facts(
    path: Path,
    gathered: Mapping[str, _Gathered],
    base: Profile,
    measures: Sequence[str],
    db: str | None,
) -> dict[str, _Facts]:
    from medqa.audit import Store, histories

    with Store.open(db, readonly=True) as store:
        found = {
            image: _recorded(path, one.line, one.cells["assessment"], store)
            for image, one in gathered.items()
        }
        beside = histories(store, [one.assessment_id for one in found.values()])
    first: dict[str, int] = {}
    for image, assessment in found.items():
        line = gathered[image].line
        before = first.setdefault(assessment.assessment_id, line)
        if before != line:
            reason = f"is that of line {before}, which is of another image"
            raise wrong(path, line, "assessment", reason, "give each image its own")
    facts = {}
    for image, assessment in found.items():
        line = gathered[image].line
        history = beside.get(assessment.assessment_id)
        if history is None or history.superseded_by is not None:
            state = "is not in the chain" if history is None else "was superseded"
            raise wrong(path, line, "assessment", state, "name the one that holds now")
        facts[image] = _facts_of(path, line, assessment, base, measures, gathered[image].cells)
    return facts


def _recorded(path: Path, line: int, identity: str, store: Store) -> Assessment:
    try:
        return store.get(identity)
    except StoreError as error:
        # The store names the id; which line of the table it is on helps more.
        reason = f"line {line}, column assessment: {error.reason}"
        raise StoreError(path, reason, error.mend) from error


def _facts_of(
    path: Path,
    line: int,
    assessment: Assessment,
    base: Profile,
    measures: Sequence[str],
    cells: Mapping[str, str],
) -> _Facts:
    reference, metric = assessment.inputs.reference, assessment.metric
    if assessment.base_lpips_score is None or reference is None or metric is None:
        mend = "leave the image out, or assess it again"
        raise wrong(path, line, "assessment", "it was not assessable", mend)
    if assessment.profile is None or assessment.profile.sha256 != base.sha256:
        reason = f"it was not measured under the profile {base.name} {base.version} as it is now"
        mend = f"assess again with --profile {base.name}, or name another --base"
        raise wrong(path, line, "assessment", reason, mend)
    _check_modality(path, line, base, reference.modality)
    measured = {**assessment.metrics, DISTANCE: assessment.base_lpips_score}
    values = {}
    for name in measures:
        value = measured.get(name)
        if value is None:
            mend = "leave the image out, or calibrate another measure"
            raise wrong(path, line, "assessment", f"it holds no {name}", mend)
        values[name] = value
    return _Facts(
        values=values,
        network=(metric.backbone, metric.version),
        patient=cells.get("patient", reference.patient_hmac),
        modality=reference.modality,
        body_part=reference.body_part,
    )


def _check_modality(path: Path, line: int, base: Profile, modality: str | None) -> None:
    if modality and base.modalities and modality.strip().upper() not in base.modalities:
        reason = f"{modality[:16]}, and the profile {base.name} is for {', '.join(base.modalities)}"
        mend = "make one table for each modality, or name another --base"
        raise wrong(path, line, "modality", reason, mend)


def _one_network(
    path: Path, facts: Mapping[str, _Facts], gathered: Mapping[str, _Gathered]
) -> tuple[str, str] | None:
    first = next(iter(facts.values())).network
    for image, one in facts.items():
        if one.network != first:
            reason = "another network than on the first lines: their distances do not compare"
            mend = "measure all images with one network"
            raise wrong(path, gathered[image].line, "network", reason, mend)
    return first


def _unacceptable(against: Sequence[bool], rule: Rule) -> bool:
    """Whether the readers together refuse; with a majority rule, a tie refuses (fail closed)."""
    return any(against) if rule == "any" else 2 * sum(against) >= len(against)
