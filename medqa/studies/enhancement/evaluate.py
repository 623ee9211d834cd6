"""One case: read its images once, measure every method, and choose what to look at."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medqa._version import __version__
from medqa.assessment import Assessment, Job
from medqa.errors import MedqaError, MismatchError, ProfileError, RegionError
from medqa.folders import Given
from medqa.image import Image, Region
from medqa.lpips import SMALLEST_SIDE, GrayLPIPS, choose_device
from medqa.pipeline import judge_job
from medqa.quality.areas import Mask, UndefinedError, body_of
from medqa.reader import read, source_digest
from medqa.regions import read_annotations, read_mask
from medqa.scoring import score
from medqa.studies.enhancement.cases import Case, Task
from medqa.studies.enhancement.consistency import consistency, through_plane
from medqa.studies.enhancement.measures import SliceResult, denoising, super_resolution
from medqa.studies.enhancement.preservation import preservation
from medqa.studies.enhancement.resolution import lowered, preserved, raised
from medqa.studies.enhancement.rows import COUNTS, LEAST_KEPT, Lesion, Outcome, Row
from medqa.studies.enhancement.views import Slice, draw
from medqa.thresholds import Profile, choose, load
from medqa.transforms import check_pixels, displays, match, pixels_of

__all__ = ["Setting", "evaluate", "key_of"]

_SAME_FIELD = 0.5  # pixels of the input by which the edges of both fields of view may differ
_BEYOND_NOISE = 3.0  # standard errors
_LARGEST = ("added_z", "added_share", "removed_z", "removed_share")


@dataclass(frozen=True)
class Setting:
    """What all cases of a study have in common; it travels to every worker.

    Parameters
    ----------
    task
        What the methods do.
    level
        Chance, at most, that a structure is called unsupported falsely, on one case.
    profile
        Name or path of a thresholds profile; None takes the one of each image.
    backbone, weights, device
        The network, the folder of its weights, and where it runs.
    pseudonyms
        Key of the pseudonyms in records; None leaves identifiers out.
    """

    task: Task
    level: float
    profile: str | None = None
    backbone: str = "gray"
    weights: str | None = None
    device: str = "auto"
    pseudonyms: bytes | None = None


@dataclass(frozen=True, eq=False)
class _Pair:
    """An input and an output, slice by slice.

    Parameters
    ----------
    before, after
        On one grid, or of super-resolution `after` on a finer one of the same slices.
    modality
        Of the input, or of the profile where the format does not say.
    """

    before: Image
    after: Image
    modality: str | None

    def __getitem__(self, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64], Mask]:
        batch = slice(index, index + 1)
        if self.before.shape == self.after.shape:
            one, other = pixels_of(self.before, self.after, batch)
        else:
            one, other = pixels_of(self.before, self.before, batch)[0], self.after.pixels[batch]
        first, second = one[0].astype(np.float64), other[0].astype(np.float64)
        padding = self.before.is_padding(self.before.pixels[batch], batch)
        inside = np.ones(first.shape, np.bool_) if padding is None else ~padding[0]
        try:
            return first, second, body_of(first, self.modality, inside)
        except UndefinedError:
            return first, second, np.zeros(first.shape, np.bool_)

    def on_input_grid(self, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64], Mask]:
        """Return the same with the output brought to the input's grid."""
        first, second, body = self[index]
        return first, lowered(second, (first.shape[0], first.shape[1])), body


@dataclass(frozen=True, eq=False)
class _Loaded:
    """What the methods of a case share."""

    case: Case
    setting: Setting
    network: GrayLPIPS
    profile: Profile
    before: Image
    reference: Image | None
    distance_before: float | None
    regions: tuple[Region, ...]


def key_of(case: Case, setting: Setting) -> str:
    """SHA-256 of all that a case's outcome depends on: files, setting, version.

    A file that cannot be read has no digest, and gets one when it is mended.
    """
    digest = hashlib.sha256()
    profile = load(setting.profile).ref.sha256 if setting.profile else None
    known = replace(setting, profile=profile, device="", weights=None, pseudonyms=None)
    digest.update(f"{__version__}\n{known}\n{case}\n".encode())
    given = [case.input, *case.outputs.values(), *([case.reference] if case.reference else [])]
    for one in (*given, *case.masks, *case.annotations):
        for path in _files(one):
            try:
                found = source_digest(path)
            except MedqaError:
                found = "unreadable"
            digest.update(f"{path.name} {found}\n".encode())
    return digest.hexdigest()


def _files(given: Given) -> list[Path]:
    paths = [Path(one) for one in ([given] if isinstance(given, str) else given)]
    return [
        file
        for path in paths
        for file in (
            sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
        )
    ]


def evaluate(case: Case, setting: Setting) -> Outcome:
    """Measure a case; what cannot be judged becomes a row that says why."""
    key = key_of(case, setting)
    try:
        loaded = _load(case, setting)
    except MedqaError as error:
        rows = [_failed(case, method, error) for method in (*case.outputs, *case.missing)]
        return Outcome(key=key, rows=tuple(rows))
    rows, pictures = [], {}
    for method, given in case.outputs.items():
        try:
            row, shown = _measured(loaded, method, given)
        except MedqaError as error:
            row = _failed(case, method, error, loaded.before)
        except UndefinedError as error:
            row = _row(case, method, loaded.before, failure=str(error))
        except Exception as error:  # whatever a library makes of one image must not end the others
            reason = f"a library failed ({type(error).__name__}: {error})"
            row = _row(case, method, loaded.before, failure=reason[:300])
        else:
            pictures[method] = draw(shown)
        rows.append(row)
    rows += [
        _row(case, method, loaded.before, failure=reason) for method, reason in case.missing.items()
    ]
    return Outcome(key=key, rows=tuple(rows), pictures=pictures)


def _row(case: Case, method: str, before: Image | None, **given: object) -> Row:
    series = before.identifiers.series_uid if before is not None else None
    # Only to group by: a digest, as the UID may lead to the patient.
    own = hashlib.sha256((series or f"{case.number} {case.name}").encode()).hexdigest()[:12]
    return Row.model_validate(
        {
            "number": case.number,
            "case": case.group or own,
            "name": case.name,
            "method": method,
            "modality": before and before.modality,
            "slices": before.shape[0] if before is not None else 0,
            **given,
        }
    )


def _failed(case: Case, method: str, error: MedqaError, before: Image | None = None) -> Row:
    return _row(case, method, before, failure=f"{error.reason}; {error.mend}")


def _load(case: Case, setting: Setting) -> _Loaded:
    if case.no_reference:
        mend = "give one, or leave this image out"
        raise MismatchError(case.name, case.no_reference, mend)
    before = read(case.input)
    check_pixels(before, SMALLEST_SIDE // (2 if setting.task == "super-resolution" else 1))
    reference = None if case.reference is None else read(case.reference)
    judged = before if reference is None else reference
    profile = _profile(setting, judged)
    network = _network(setting.backbone, setting.weights, setting.device)
    regions = [
        *(one for path in case.masks for one in read_mask(path, judged)),
        *(one for path in case.annotations for one in read_annotations(path, judged)),
    ]
    apart = None
    if reference is not None:
        check_pixels(reference, SMALLEST_SIDE)
        if setting.task == "denoising":
            beside = match(reference, before, resample=False)
        else:
            _check_field(before, reference)
            beside = _raised(before, reference.shape)
        apart = _distance(network, profile, reference, beside)
    return _Loaded(case, setting, network, profile, before, reference, apart, tuple(regions))


def _profile(setting: Setting, image: Image) -> Profile:
    """Return the profile named, or of the task; where none is shipped, the routine one."""
    if setting.profile is not None:
        return load(setting.profile)
    try:
        return choose(image.modality, setting.task, image.body_part)
    except ProfileError:
        return choose(image.modality, "routine", image.body_part)


@cache
def _network(backbone: str, weights: str | None, device: str) -> GrayLPIPS:
    """Load the network once in each process."""
    folder = None if weights is None else Path(weights)
    return GrayLPIPS(backbone, folder, device=choose_device(device))


def _distance(network: GrayLPIPS, profile: Profile, one: Image, other: Image) -> float:
    shown = displays(profile, one)
    return score(network, one, other, shown, aggregate=profile.aggregate.slices).base_lpips


def _raised(low: Image, shape: tuple[int, int, int]) -> Image:
    """Interpolate an image: what a reader gets without super-resolution."""
    fine = [raised(one.astype(np.float64), shape[1:]) for one in np.asarray(low.pixels)]
    pixels = np.stack(fine).astype(np.float32)
    return replace(low, pixels=pixels, padding=None, affine=None, spacing_mm=None)


def _check_field(low: Image, high: Image) -> None:
    """Refuse an output of other slices, or of another field of view."""
    mend = "give the image that was made from this input"
    if low.shape[0] != high.shape[0] or min(np.subtract(high.shape, low.shape)) < 0:
        reason = f"is {high.shape} pixels of slices, rows and columns, its input {low.shape}"
        raise MismatchError(high.source, reason, f"{mend}; slices cannot be added in between")
    if low.affine is None or high.affine is None:
        return
    ends = np.array(np.meshgrid([0], [-0.5, 1], [-0.5, 1])).reshape(3, -1)

    def corners(image: Image) -> NDArray[np.float64]:
        last = np.array(image.shape)[:, None] - 0.5
        places = np.where(ends == 1, last, ends)
        found: NDArray[np.float64] = image.affine @ np.vstack([places, np.ones(places.shape[1])])
        return found

    apart = np.linalg.solve(low.affine, corners(high) - corners(low))[1:3]
    if np.abs(apart).max() > _SAME_FIELD:
        raise MismatchError(high.source, "shows another field of view than its input", mend)


def _measured(loaded: _Loaded, method: str, given: Given) -> tuple[Row, Slice]:
    case, setting = loaded.case, loaded.setting
    after = read(given)
    check_pixels(after, SMALLEST_SIDE)
    before = loaded.before
    if setting.task == "denoising":
        after = match(before, after, resample=False)
        plain = before
    else:
        _check_field(before, after)
        plain = _raised(before, after.shape)
    assessment = _assessment(loaded, given)
    only = loaded.profile.modalities if len(loaded.profile.modalities) == 1 else (None,)
    pair = _Pair(before, after, before.modality or only[0])
    results: dict[int, SliceResult] = {}
    changes = consistency(through_plane(_each(pair, results, setting)))
    values, undefined = _summed(results)
    values["detail_preservation"] = preserved(
        _distance(loaded.network, loaded.profile, plain, after)
    )
    if changes is not None:
        values |= {"flicker": changes.flicker, "uneven_slices": float(len(changes.outliers))}
        if changes.correlation is not None:
            values["through_plane"] = changes.correlation
    values |= _beside_reference(assessment, loaded.distance_before)
    row = _row(
        case,
        method,
        before,
        task=setting.task,
        profile=f"{loaded.profile.name} {loaded.profile.version}",
        values=values,
        undefined=undefined,
        lesions=_lesions(loaded, after, pair),
        assessment=assessment and Assessment.model_validate(assessment.model_dump()),
    )
    return row, _to_look_at(loaded, pair, plain, results, assessment)


def _assessment(loaded: _Loaded, given: Given) -> Assessment | None:
    """Assess the output against the reference, for the record."""
    case, setting = loaded.case, loaded.setting
    if case.reference is None:
        return None
    job = Job(
        reference=case.reference,
        candidate=given,
        masks=case.masks,
        annotations=case.annotations,
        profile=setting.profile or loaded.profile.name,
        backbone=setting.backbone,
        device=setting.device,
        origin=f"medqa study {setting.task}",
    )
    return judge_job(job, setting.pseudonyms, network=loaded.network)


def _each(
    pair: _Pair, results: dict[int, SliceResult], setting: Setting
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64], Mask]]:
    """Go through the slices once; what is measured on each goes into `results`."""
    slices = pair.before.shape[0]
    level = setting.level / slices
    spacing = pair.before.spacing_mm
    for index in range(slices):
        first, second, body = pair[index]
        if body.any() and setting.task == "denoising":
            in_plane = None if spacing is None else spacing[1:]
            results[index] = denoising(first, second, body, in_plane, pair.modality, level)
        elif body.any():
            results[index] = super_resolution(first, second, body, level)
        if second.shape != first.shape:
            second = lowered(second, (first.shape[0], first.shape[1]))
        yield first, second, body


def _summed(results: dict[int, SliceResult]) -> tuple[dict[str, float], dict[str, str]]:
    """Values of the image: medians over its slices, of findings their number and the worst."""
    found: dict[str, list[float]] = {}
    undefined: dict[str, str] = {}
    for result in results.values():
        for key, value in result.values.items():
            found.setdefault(key, []).append(value)
        undefined |= result.reasons
    if not results:
        return {}, {"added": "no body stands out from the background"}
    how: dict[str, Callable[[list[float]], float]] = {
        **dict.fromkeys(COUNTS, sum),
        **dict.fromkeys(_LARGEST, max),
    }
    values = {key: float(how.get(key, np.median)(many)) for key, many in found.items()}
    return values, {key: reason for key, reason in undefined.items() if key not in values}


def _beside_reference(assessment: Assessment | None, before: float | None) -> dict[str, float]:
    if assessment is None or assessment.base_lpips_score is None:
        return {}
    values = {name: one for name, one in assessment.metrics.items() if one is not None}
    values["distance"] = assessment.base_lpips_score
    if before:
        values["improvement"] = 1 - assessment.base_lpips_score / before
    return values


def _lesions(loaded: _Loaded, after: Image, pair: _Pair) -> list[Lesion]:
    """Measure each region: of the reference where there is one, else of the input."""
    compared = pair
    if loaded.reference is not None:
        compared = _Pair(
            loaded.reference, match(loaded.reference, after, resample=False), pair.modality
        )
    return [_lesion(region, loaded.regions, compared) for region in loaded.regions]


def _lesion(region: Region, regions: Sequence[Region], pair: _Pair) -> Lesion:
    slices = [pair.on_input_grid(index) for index in region.slices]
    before, after, bodies = (list(one) for one in zip(*slices, strict=True))
    others = np.zeros((len(bodies), *bodies[0].shape), np.bool_)
    for other in regions:
        for at, index in enumerate(region.slices):
            if other is not region and index in other.slices:
                rows, columns, mask = other.on_slice(index)
                others[at, rows, columns] |= mask
    for at, index in enumerate(region.slices):
        rows, columns, mask = region.on_slice(index)
        others[at, rows, columns] &= ~mask
    size = {"name": region.name, "pixels": region.size}
    try:
        found = preservation(region, before, after, bodies, others)
    except RegionError as error:
        return Lesion.model_validate({**size, "reason": error.reason})
    if found.kept is None:
        return Lesion.model_validate({**size, "reason": ""})  # not to be seen before either
    by_noise = found.change_z is not None and abs(found.change_z) <= _BEYOND_NOISE
    return Lesion(
        name=region.name,
        pixels=region.size,
        kept=found.kept,
        low=found.kept_low,
        high=found.kept_high,
        preserved=found.kept >= LEAST_KEPT or by_noise,
    )


def _to_look_at(
    loaded: _Loaded,
    pair: _Pair,
    plain: Image,
    results: dict[int, SliceResult],
    assessment: Assessment | None,
) -> Slice:
    """Choose the slice with the strongest unsupported structure, else the worst one."""
    added = {i: one.values.get("added_z", 0.0) for i, one in results.items()}
    taken = {
        i: one.values.get("excess", one.values.get("inconsistency", 0.0))
        for i, one in results.items()
    }
    evidence = assessment.evidence[0] if assessment is not None and assessment.evidence else None
    if added and max(added.values()) > 0:
        index, why = max(added, key=lambda i: added[i]), "strongest unsupported structure"
    elif evidence is not None:
        index, why = evidence.index, "farthest from the reference"
    elif taken:
        index, why = max(taken, key=lambda i: taken[i]), "least like noise in what was changed"
    else:
        index, why = pair.before.shape[0] // 2, "the middle"
    shown = displays(loaded.profile, loaded.reference or pair.before)
    named = {one.name: one for one in shown}
    display = named.get(evidence.window, shown[0]) if evidence is not None else shown[0]
    first, second, body = pair.on_input_grid(index)
    batch = slice(index, index + 1)
    reference = loaded.reference
    return Slice(
        index=index,
        why=why,
        many=pair.before.shape[0] > 1,
        display=display,
        plain=pixels_of(plain, plain, batch)[0],
        after=pair.after.pixels[batch],
        reference=None if reference is None else reference.pixels[batch],
        on_grid=(first, second),
        body=body,
        support=results[index].support if index in results else None,
        regions=tuple(
            (one.kind, one.name, _whole(one, index, (reference or pair.before).shape))
            for one in loaded.regions
            if index in one.slices
        ),
        spacing_mm=(reference or pair.before).spacing_mm,
    )


def _whole(region: Region, index: int, shape: tuple[int, int, int]) -> Mask:
    mask = np.zeros(shape[1:], np.bool_)
    rows, columns, inside = region.on_slice(index)
    mask[rows, columns] = inside
    return mask
