"""What a threshold profile holds.

Which display the distance is measured under, which network its limits hold for, how slices are
aggregated, and the limits themselves, each with unit, source, date and status.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from medqa.assessment import MEASURE_WORDS, Better, Limit, ProfileRef, Task

__all__ = [
    "DisplayWindow",
    "FullRange",
    "Gate",
    "Limits",
    "Measures",
    "Percentiles",
    "Profile",
    "Status",
    "Task",
    "Threshold",
    "Voi",
    "Windows",
]

Status = Literal["published", "calibrated", "provisional"]
_Text = Annotated[str, Field(min_length=1)]
_Code = Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,16}$")]  # a DICOM code string, without blanks
_Percent = Annotated[float, Field(ge=0.0, le=100.0)]


class _Table(BaseModel):
    """Immutable; no unknown key, no number out of a string, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Metric(_Table):
    """The measure that the limits hold for.

    `guard_band` names the networks that reproduce it and may be used instead, their stated
    relative error kept as a band around each limit. `relative_error` states a larger one, where a
    network is less exact near these limits than elsewhere.
    """

    name: Literal["lpips"]
    backbone: _Text
    version: _Text
    guard_band: tuple[_Text, ...]
    relative_error: dict[str, Annotated[float, Field(gt=0.0, lt=1.0)]] = {}


class DisplayWindow(_Table):
    """A window in the unit of its table."""

    name: _Text
    centre: float
    width: float = Field(gt=0.0)


class Windows(_Table):
    """Fixed windows; the image is scored under each, and the worst counts."""

    kind: Literal["windows"]
    unit: _Text
    source: _Text
    windows: tuple[DisplayWindow, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Windows:
        given = [window.name for window in self.windows]
        if len(set(given)) < len(given):
            raise ValueError("two windows have the same name")
        return self


class _PercentileRange(_Table):
    """Percentiles of the reference's pixels that are shown black and white."""

    unit: _Text
    source: _Text
    lower: _Percent
    upper: _Percent

    @model_validator(mode="after")
    def _ascending(self) -> _PercentileRange:
        if not self.lower < self.upper:
            raise ValueError(f"lower ({self.lower}) must be below upper ({self.upper})")
        return self


class Percentiles(_PercentileRange):
    """From one percentile of the reference to another."""

    kind: Literal["percentiles"]


class Voi(_PercentileRange):
    """The reference's VOI LUT or window; its percentiles where it has neither."""

    kind: Literal["voi"]


class FullRange(_Table):
    """The range of the stored format."""

    kind: Literal["full_range"]


Normalise = Annotated[Windows | Percentiles | Voi | FullRange, Field(discriminator="kind")]


class Geometry(_Table):
    """What may be done to a candidate on another grid."""

    resample: bool


class Aggregate(_Table):
    """How slices make one distance (`p95`: 95th percentile), and regions another."""

    slices: Literal["p95", "max", "mean"]
    regions: Literal["max"]


class Threshold(_Table):
    """One limit: a distance up to it, itself included, passes."""

    value: float = Field(gt=0.0)
    unit: Literal["LPIPS"]
    source: _Text
    date: datetime.date
    status: Status


class Limits(_Table):
    """The four limits of a profile."""

    diagnostic: Threshold
    screening: Threshold
    pathology: Threshold
    annotation: Threshold

    @model_validator(mode="after")
    def _ordered(self) -> Limits:
        diagnostic, screening = self.diagnostic.value, self.screening.value
        if diagnostic > screening:
            raise ValueError(f"diagnostic ({diagnostic}) must not be above screening ({screening})")
        if self.pathology.value > diagnostic:
            raise ValueError(
                f"pathology ({self.pathology.value}) must not be above diagnostic ({diagnostic})"
            )
        return self


class Gate(_Table):
    """A companion measure that decides too: what it must reach, itself included."""

    measure: _Text
    diagnostic: float
    screening: float
    source: _Text
    date: datetime.date
    status: Status

    @property
    def better(self) -> Better:
        """Which direction passes."""
        return MEASURE_WORDS[self.measure][1]

    @model_validator(mode="after")
    def _ordered(self) -> Gate:
        _check_measure(self.measure)
        strict, loose = self.diagnostic, self.screening
        if strict < loose if self.better == "higher" else strict > loose:
            raise ValueError(f"diagnostic ({strict}) must not be looser than screening ({loose})")
        return self


class Measures(_Table):
    """Which companion measures run, and which of them decide beside the distance."""

    run: tuple[_Text, ...]
    gates: tuple[Gate, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> Measures:
        for name in self.run:
            _check_measure(name)
        gated = [gate.measure for gate in self.gates]
        if len(set(gated)) < len(gated):
            raise ValueError("two gates are of the same measure")
        if missing := sorted(set(gated) - set(self.run)):
            raise ValueError(f"{', '.join(missing)} decides, so run must name it")
        return self


def _check_measure(name: str) -> None:
    if name not in MEASURE_WORDS:
        raise ValueError(f"{name} is no measure; choose from {', '.join(MEASURE_WORDS)}")


class Profile(_Table):
    """A validated thresholds file; made by `load` and `choose` only."""

    schema_version: Literal[1]
    name: _Text
    version: _Text
    title: _Text
    status: Status
    date: datetime.date
    modalities: tuple[_Code, ...]
    extends: _Text | None = None
    task: Task = "routine"
    body_parts: tuple[_Code, ...] = ()
    caution: _Text | None = None
    metric: Metric
    normalise: Normalise
    geometry: Geometry
    aggregate: Aggregate
    limits: Limits
    measures: Measures

    # Private, so that a file cannot state them about itself.
    _source: str = PrivateAttr(default="")
    _text: str = PrivateAttr(default="")
    _sha256: str = PrivateAttr(default="")

    @property
    def source(self) -> str:
        """The file it was read from, for messages."""
        return self._source

    @property
    def text(self) -> str:
        """The file as it is written, comments and all; after it, those that it extends."""
        return self._text

    @property
    def sha256(self) -> str:
        """SHA-256 of the file's bytes; where it extends others, of all their digests in hex.

        From the file itself to the last that is extended, joined by newlines.
        """
        return self._sha256

    @property
    def ref(self) -> ProfileRef:
        """The profile as it is named in a record."""
        return ProfileRef(
            name=self.name,
            version=self.version,
            sha256=self.sha256,
            status=self.status,
            caution=self.caution,
        )

    @property
    def limit_records(self) -> tuple[Limit, ...]:
        """The limits as they stand in a record: of the distance, then of the companions."""
        distance = [
            Limit(
                name=name,
                value=limit.value,
                unit=limit.unit,
                source=limit.source,
                date=limit.date.isoformat(),
                status=limit.status,
            )
            for name, limit in self.limits
        ]
        companions = [
            Limit(
                name=f"{gate.measure} {level}",
                value=getattr(gate, level),
                bound="at_least" if gate.better == "higher" else "at_most",
                unit=gate.measure,
                source=gate.source,
                date=gate.date.isoformat(),
                status=gate.status,
            )
            for gate in self.measures.gates
            for level in ("diagnostic", "screening")
        ]
        return (*distance, *companions)
