"""What becomes of a case under a method: one row, its measures, and whether it is acceptable."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from medqa.assessment import MEASURE_WORDS, Assessment
from medqa.studies.enhancement.cases import Task
from medqa.studies.enhancement.measures import DENOISING, SUPER_RESOLUTION, Definition

__all__ = [
    "COUNTS",
    "HEADLINES",
    "LEAST_KEPT",
    "Lesion",
    "Outcome",
    "Pictures",
    "Row",
    "definitions",
]

#: Share of a lesion's contrast below which it counts as lost, if noise does not explain the loss.
LEAST_KEPT = 0.8

#: Measures that are numbers of findings: they add up over slices and over cases.
COUNTS = ("added", "removed")

_LPIPS = "LPIPS, Zhang et al. 2018"

_REFERENCE: tuple[Definition, ...] = (
    Definition("distance", "perceptual distance from the reference", "", "lower", _LPIPS),
    Definition(
        "improvement", "distance taken away, 1 - after / before", "", "higher", "medqa, of LPIPS"
    ),
    *(
        Definition(name, words, "", better, "medqa companion measures")
        for name, (words, better) in MEASURE_WORDS.items()
    ),
)
_INPUT: tuple[Definition, ...] = (
    Definition(
        "detail_preservation", "detail of the input kept, 1 / (1 + LPIPS)", "", "neither", _LPIPS
    ),
)
_VOLUME: tuple[Definition, ...] = (
    Definition(
        "flicker", "change of brightness from slice to slice, over the noise", "", "lower", "medqa"
    ),
    Definition(
        "uneven_slices", "slices that stand out from their neighbours", "", "lower", "medqa"
    ),
    Definition(
        "through_plane", "correlation of the residual between slices", "", "neither", "medqa"
    ),
)

#: Measures that the order of methods rests on, with a reference and without. With one: the three
#: whose added ranks follow radiologists best (see the project's facts on a public CT reader study).
HEADLINES: Mapping[tuple[Task, bool], tuple[str, ...]] = {
    ("denoising", True): ("distance", "edge_fidelity", "texture_fidelity"),
    ("super-resolution", True): ("distance", "edge_fidelity", "texture_fidelity"),
    ("denoising", False): ("noise_reduction", "excess", "structure_kept_high"),
    ("super-resolution", False): ("inconsistency_in_noise", "sharpness_gain"),
}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Lesion(_Model):
    """A lesion before and after; `preserved` is None where that cannot be told."""

    name: str
    pixels: int
    kept: float | None = None
    low: float | None = None
    high: float | None = None
    preserved: bool | None = None
    reason: str = ""


class Pictures(_Model):
    """The slice to look at: title of each picture, and the picture as a ``data:`` URI."""

    slice: int
    window: str
    aspect: str
    views: tuple[tuple[str, str], ...]
    why: str


class Row(_Model):
    """One case under one method."""

    number: int
    case: str
    """What it counts as in the statistics."""
    name: str
    method: str
    task: Task = "denoising"
    modality: str | None = None
    profile: str | None = None
    slices: int = 0
    values: Mapping[str, float] = {}
    """By key of the definitions."""
    undefined: Mapping[str, str] = {}
    """Measures that are not defined here, and why."""
    lesions: tuple[Lesion, ...] = ()
    assessment: Assessment | None = None
    """Against the reference."""
    failure: str | None = None
    """Why it could not be judged."""

    @property
    def wrong(self) -> tuple[str, ...]:
        """What is not acceptable, in words; empty where nothing is."""
        found = []
        if self.assessment is not None and self.assessment.verdict in (
            "expert_review",
            "unsuitable",
        ):
            found.append(self.assessment.reasons[0].text)
        if added := int(self.values.get("added", 0)):
            found.append(f"{_count(added, 'structure')} that the input does not support")
        # Beside a reference the verdict says whether that matters; without one nothing else does.
        if self.task == "denoising" and self.assessment is None and self.values.get("removed"):
            found.append(f"{_count(int(self.values['removed']), 'structure')} of the input lost")
        if lost := sum(one.preserved is False for one in self.lesions):
            found.append(f"{_count(lost, 'lesion')} lost")
        return tuple(found)

    @property
    def unjudged(self) -> tuple[str, ...]:
        """What could not be judged, in words; empty where everything was."""
        found = [] if self.failure is None else [self.failure]
        if self.failure is None and "added" not in self.values:
            reason = self.undefined.get("added", "not measured")
            found.append(f"unsupported structure could not be looked for: {reason}")
        if self.assessment is None:
            found += [
                f"lesion {one.name}: {one.reason}"
                for one in self.lesions
                if one.preserved is None and one.reason
            ]
        elif self.assessment.verdict == "not_assessable":
            found.append(self.assessment.reasons[0].text)
        return tuple(found)

    @property
    def acceptable(self) -> bool:
        """Whether everything was judged and nothing is wrong."""
        return not (self.wrong or self.unjudged)


class Outcome(_Model):
    """What a worker hands back: the rows of a case, and pictures by method."""

    key: str
    """SHA-256 of everything that went in: the same key, the same outcome."""
    rows: tuple[Row, ...]
    pictures: Mapping[str, Pictures] = {}


def definitions(task: Task, *, referenced: bool) -> tuple[tuple[str, tuple[Definition, ...]], ...]:
    """Every measure of a study, in groups with a heading."""
    own = DENOISING if task == "denoising" else SUPER_RESOLUTION
    support = tuple(one for one in own if one.key.partition("_")[0] in COUNTS)
    support = tuple(one for one in support if one.key != "removed_sd")
    groups: list[tuple[str, tuple[Definition, ...]]] = [
        ("Beside the input", (*_INPUT, *(one for one in own if one not in support))),
        ("Beyond the noise of the input", support),
        ("From slice to slice", _VOLUME),
    ]
    if referenced:
        groups.insert(0, ("Beside the reference", _REFERENCE))
    return tuple(groups)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
