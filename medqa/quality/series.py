"""From recorded measures to series in time: by device and measure, and patient by patient."""

from __future__ import annotations

import datetime
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import select

from medqa.audit import Store
from medqa.audit.tables import assessments
from medqa.quality.charts import Better
from medqa.quality.record import Measured, QualityRecord, history

__all__ = [
    "Change",
    "History",
    "Point",
    "Series",
    "Subject",
    "changes",
    "distances",
    "gather",
    "series",
]

# Pairs of studies of other patients that say how far two studies of one patient lie apart.
_FEWEST_PAIRS = 10
_Key = tuple[object, ...]


@dataclass(frozen=True)
class Subject:
    """What a series is of.

    Parameters
    ----------
    device
        Its keyed code; None for the assessments, which are of no device.
    device_name
        Manufacturer and model.
    study_type
        Such as ``CT CHEST``; of assessments, modality, profile and network.
    measure, unit, better
        As recorded.
    """

    device: str | None
    device_name: str
    study_type: str
    measure: str
    unit: str
    better: Better


@dataclass(frozen=True)
class Point:
    """One study in a series.

    Parameters
    ----------
    day
        Of its acquisition; of its record, where the file does not say.
    value
        Median of its images.
    images
        How many.
    record
        Id of the first record of it.
    """

    day: datetime.date
    value: float
    images: int
    record: str


@dataclass(frozen=True)
class Series:
    """A measure over time: points by day, those of one day as they were recorded."""

    subject: Subject
    points: tuple[Point, ...]

    @property
    def values(self) -> list[float]:
        """Of all points."""
        return [one.value for one in self.points]

    @property
    def days(self) -> list[float]:
        """When each point was, in days from the beginning of the calendar."""
        return [float(one.day.toordinal()) for one in self.points]


@dataclass(frozen=True)
class Change:
    """A study beside the same patient's study before it, of the same type.

    Parameters
    ----------
    subject
        Of the later study: its device and the measure.
    before, now
        The two studies.
    other_device
        Whether the earlier one was made on another device.
    usual
        How far apart two studies of one patient lie, at most, but for one pair in 370: 3 √2
        within-patient standard deviations (Bland and Altman, BMJ 1996;313:744), of the other
        patients' pairs; None where there are fewer than 10 of these.
    """

    subject: Subject
    before: Point
    now: Point
    other_device: bool
    usual: float | None

    @property
    def unusual(self) -> bool:
        """Whether they lie further apart than usual; False where that is not known."""
        return self.usual is not None and abs(self.now.value - self.before.value) > self.usual


@dataclass(frozen=True)
class History:
    """All that is charted.

    Parameters
    ----------
    series
        By device, study type and measure; and of assessments.
    changes
        Each study of a patient beside the one before it.
    without_device
        How many records name no device, and so stand in no chart.
    """

    series: tuple[Series, ...]
    changes: tuple[Change, ...]
    without_device: int


def gather(store: Store, since: datetime.date | None = None) -> History:
    """Read the record, and order what it holds.

    Parameters
    ----------
    since
        Leave out what was before this day, such as that of a repair, so that the baselines begin
        anew.

    Raises
    ------
    StoreError
        It cannot be read.
    """
    records = [one for one in history(store) if since is None or _day(one) >= since]
    found = *series(records), *distances(store, since)
    without = sum(one.device_hmac is None for one in records)
    return History(found, changes(records), without)


def series(records: Iterable[QualityRecord]) -> tuple[Series, ...]:
    """Series of every device, study type and measure.

    A study counts once a day, by the median of its images: slices of one patient are alike, and
    each by itself would make a chart's limits far too narrow. An image that was measured again
    counts as it was first. Left out is what names no device, and a value that is not defined.

    Parameters
    ----------
    records
        In the order in which they were added.
    """
    points = _points(one for one in records if one.device_hmac is not None)
    return tuple(
        Series(subject, tuple(sorted(studies.values(), key=lambda point: point.day)))
        for subject, studies in points.items()
    )


def distances(store: Store, since: datetime.date | None = None) -> tuple[Series, ...]:
    """Series of the recorded assessments' distances, by modality, profile and network.

    What was superseded by a later record is left out, and what could not be assessed.

    Raises
    ------
    StoreError
        They could not be read.
    """
    corrections = select(assessments.c.supersedes).where(assessments.c.supersedes.is_not(None))
    query = (
        select(assessments.c.record)
        .where(assessments.c.base_lpips_score.is_not(None))
        .where(assessments.c.assessment_id.not_in(corrections))
        .order_by(assessments.c.sequence)
    )
    found: defaultdict[Subject, list[Point]] = defaultdict(list)
    with store.reading() as connection:
        for text in connection.scalars(query):
            record = json.loads(text)
            day = datetime.datetime.fromisoformat(record["created_at"]).date()
            if since is None or day >= since:
                point = Point(day, record["base_lpips_score"], 1, record["assessment_id"])
                found[_assessed(record)].append(point)
    return tuple(
        Series(subject, tuple(sorted(points, key=lambda point: point.day)))
        for subject, points in found.items()
    )


def changes(records: Iterable[QualityRecord]) -> tuple[Change, ...]:
    """Each study beside the same patient's study before it, of the same type, on any device.

    Parameters
    ----------
    records
        In the order in which they were added; those that name no patient are passed over.
    """
    by_patient: defaultdict[str, list[QualityRecord]] = defaultdict(list)
    for record in records:
        if record.image.patient_hmac is not None:
            by_patient[record.image.patient_hmac].append(record)
    pairs: defaultdict[_Key, list[tuple[str, Change]]] = defaultdict(list)
    for patient, own in by_patient.items():
        for change in _pairs(own):
            subject = change.subject
            pairs[subject.study_type, subject.measure, subject.unit].append((patient, change))
    return tuple(
        Change(
            change.subject, change.before, change.now, change.other_device, _usual(group, patient)
        )
        for group in pairs.values()
        for patient, change in group
    )


def _pairs(records: Sequence[QualityRecord]) -> Iterable[Change]:
    """Neighbouring studies of one patient."""
    by_measure: defaultdict[_Key, list[tuple[Point, Subject]]] = defaultdict(list)
    for subject, studies in _points(records).items():
        by_measure[subject.study_type, subject.measure, subject.unit] += [
            (point, subject) for point in studies.values()
        ]
    for group in by_measure.values():
        group.sort(key=lambda one: one[0].day)
        for (before, earlier), (now, subject) in pairwise(group):
            other = earlier.device != subject.device
            yield Change(subject, before, now, other, None)


def _usual(group: Sequence[tuple[str, Change]], patient: str) -> float | None:
    """3 √2 within-patient standard deviations, of the pairs of other patients."""
    squares = [(one.now.value - one.before.value) ** 2 for other, one in group if other != patient]
    if len(squares) < _FEWEST_PAIRS:
        return None
    within = math.sqrt(statistics.fmean(squares) / 2)
    return 3 * math.sqrt(2) * within


def _points(records: Iterable[QualityRecord]) -> dict[Subject, dict[_Key, Point]]:
    """Points by subject and study."""
    values: dict[Subject, dict[_Key, list[float]]] = {}
    first: dict[tuple[Subject, _Key], QualityRecord] = {}
    seen: set[_Key] = set()
    for record in records:
        image = record.image
        once = record.device_hmac, record.study_type, image.study_hmac, image.pixels_sha256
        if (*once, record.acquired_on) in seen:
            continue
        seen.add((*once, record.acquired_on))
        study: _Key = (image.study_hmac or record.quality_id, _day(record))
        for measure in record.measures:
            if measure.value is not None:
                subject = _subject(record, measure)
                values.setdefault(subject, {}).setdefault(study, []).append(measure.value)
                first.setdefault((subject, study), record)
    return {
        subject: {study: _point(found, first[subject, study]) for study, found in studies.items()}
        for subject, studies in values.items()
    }


def _point(values: Sequence[float], record: QualityRecord) -> Point:
    return Point(_day(record), statistics.median(values), len(values), record.quality_id)


def _subject(record: QualityRecord, measure: Measured) -> Subject:
    return Subject(
        device=record.device_hmac,
        # They come from a file's header, and stand in lines of logs and mails.
        device_name=" ".join((record.device or "unnamed device").split()),
        study_type=" ".join(record.study_type.split()),
        measure=measure.name,
        unit=measure.unit,
        better=measure.better,
    )


def _assessed(record: dict[str, Any]) -> Subject:
    """Distances compare only under one display and one network."""
    profile, metric = record["profile"], record["metric"]
    reference = record["inputs"]["reference"]
    modality = (reference and reference["modality"]) or "no modality"
    kind = (
        f"{modality}, profile {profile['name']} {profile['version']}, "
        f"network {metric['backbone']} {metric['version']}"
    )
    return Subject(None, "Assessments", kind, "distance", "LPIPS", "lower")


def _day(record: QualityRecord) -> datetime.date:
    return record.acquired_on or record.created_at.date()
