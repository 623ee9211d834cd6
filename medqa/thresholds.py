"""Threshold profiles: one TOML file per modality, validated before anything is judged.

A profile says which display the distance is measured under, which network its limits hold for,
how slices are aggregated, and the limits themselves, each with unit, source, date and status.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import tomllib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from medqa.assessment import MEASURE_WORDS, Better, Limit, ProfileRef
from medqa.errors import ProfileError

__all__ = [
    "DisplayWindow",
    "FullRange",
    "Gate",
    "Measures",
    "Percentiles",
    "Profile",
    "Threshold",
    "Voi",
    "Windows",
    "check_backbone",
    "check_modality",
    "for_modality",
    "load",
    "names",
]

SCHEMA_VERSION = 1
_FALLBACK = "default"

Status = Literal["published", "calibrated", "provisional"]
_Text = Annotated[str, Field(min_length=1)]
_Percent = Annotated[float, Field(ge=0.0, le=100.0)]


class _Table(BaseModel):
    """Immutable; no unknown key, no number out of a string, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Metric(_Table):
    """The measure that the limits hold for.

    `guard_band` names the networks that reproduce it and may be used instead, their stated
    relative error kept as a band around each limit.
    """

    name: Literal["lpips"]
    backbone: _Text
    version: _Text
    guard_band: tuple[_Text, ...]


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
    """A validated thresholds file; made by `load` and `for_modality` only."""

    schema_version: Literal[1]
    name: _Text
    version: _Text
    title: _Text
    status: Status
    date: datetime.date
    modalities: tuple[Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,16}$")], ...]
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
        """The file as it is written, comments and all."""
        return self._text

    @property
    def sha256(self) -> str:
        """SHA-256 of the file's bytes, in hex."""
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


def names() -> tuple[str, ...]:
    """Names of the shipped profiles, in alphabetical order."""
    return tuple(sorted(_shipped()))


def load(name_or_path: str) -> Profile:
    """Load a profile.

    Parameters
    ----------
    name_or_path
        What ends in ``.toml`` is the path of a file, anything else the name of a shipped profile.

    Raises
    ------
    ProfileError
        Unknown name, unreadable file, or a file that is no valid profile.
    """
    if name_or_path.endswith(".toml"):
        return _parse(Path(name_or_path), name_or_path)
    shipped = _shipped()
    if name_or_path not in shipped:
        raise ProfileError(
            name_or_path,
            "no shipped profile has this name",
            f"take one of {', '.join(names())}, or the path of a .toml file",
        )
    return _parse(shipped[name_or_path], f"{name_or_path}.toml")


def for_modality(modality: str | None) -> Profile:
    """Load the shipped profile of a modality; ``default`` where none names it.

    Parameters
    ----------
    modality
        DICOM Modality, such as ``CT``.

    Raises
    ------
    ProfileError
        The modality is None or blank: limits would be a guess.
    """
    wanted = (modality or "").strip().upper()
    if not wanted:
        raise ProfileError(
            "profile", "the image does not say its modality", "name a profile with --profile"
        )
    profiles = {name: load(name) for name in names()}
    for profile in profiles.values():
        if wanted in profile.modalities:
            return profile
    return profiles[_FALLBACK]


def check_modality(profile: Profile, modality: str | None) -> None:
    """Refuse a profile for other modalities than the image's, where both are stated.

    Raises
    ------
    ProfileError
        The limits and displays of the profile are not for this kind of image.
    """
    if modality and profile.modalities and modality.strip().upper() not in profile.modalities:
        raise ProfileError(
            profile.source,
            f"is for {', '.join(profile.modalities)}, and the image is {modality}",
            "leave --profile out, or name a profile for this modality or for none",
        )


def check_backbone(
    profile: Profile, backbone: str, version: str, relative_error: float | None
) -> None:
    """Refuse a network that the profile's limits do not hold for.

    A network of the guard band may be of any version, but must state its relative error.

    Raises
    ------
    ProfileError
        It is neither the profile's network, in the profile's version, nor one that reproduces it.
    """
    metric = profile.metric
    if (backbone, version) == (metric.backbone, metric.version):
        return
    if backbone in metric.guard_band and relative_error is not None:
        return
    allowed = " or ".join((f"{metric.backbone} {metric.version}", *metric.guard_band))
    raise ProfileError(
        profile.source,
        f"its limits hold for the network {allowed}, not for {backbone} {version}",
        f"use a profile file whose [metric] names {backbone} {version}",
    )


def _shipped() -> dict[str, Traversable]:
    found = files("medqa_thresholds").iterdir()
    return {file.name.removesuffix(".toml"): file for file in found if file.name.endswith(".toml")}


def _parse(file: Traversable, subject: str) -> Profile:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ProfileError(
            subject, f"cannot be read ({error.strerror})", "check the path and its permissions"
        ) from error
    try:
        text = content.decode("utf-8")
        document: dict[str, Any] = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProfileError(subject, f"is not TOML ({error})", "correct the file") from error
    if document.get("schema_version") != SCHEMA_VERSION:
        raise ProfileError(
            subject,
            f"schema_version must be {SCHEMA_VERSION}, not {document.get('schema_version')}",
            "write the file in this form, or use the medqa version that it was written for",
        )
    try:
        # By way of JSON, where strict validation takes TOML's arrays for tuples.
        profile = Profile.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        reason = ", ".join(_in_words(one) for one in error.errors())
        raise ProfileError(
            subject, reason, "correct the file; the shipped profiles show the form"
        ) from error
    profile._source = subject
    profile._text = text
    profile._sha256 = hashlib.sha256(content).hexdigest()
    return profile


def _in_words(error: ErrorDetails) -> str:
    """Which key is wrong, as it is written in the file, and what is wrong with it."""
    where = list(error["loc"])
    if where[:1] == ["normalise"]:
        del where[1:2]  # the kind, which pydantic inserts into the path
    key = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in where)[1:]
    match error["type"]:
        case "missing":
            return f"{key} is missing"
        case "extra_forbidden":
            return f"{key} is not a key of a profile"
        case "union_tag_not_found" | "union_tag_invalid":
            return f"{key}.kind must be windows, percentiles, voi or full_range"
        case "value_error":
            return f"{key}: {error['ctx']['error']}"
        case _:
            return f"{key}: {error['msg'][:1].lower()}{error['msg'][1:]}"
