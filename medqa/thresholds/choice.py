"""Which profile is for an image, and whether it may be used."""

from __future__ import annotations

from medqa.errors import ProfileError
from medqa.thresholds.files import load, names
from medqa.thresholds.profile import Profile, Task

__all__ = ["check_backbone", "check_calibrated", "check_modality", "choose", "differences"]

_FALLBACK = "default"


def choose(modality: str | None, task: Task = "routine", body_part: str | None = None) -> Profile:
    """Load the shipped profile for an image and a task.

    Parameters
    ----------
    modality
        DICOM Modality, such as ``CT``. For routine checks, ``default`` serves those that no
        profile names; for another task nothing does.
    task
        What was done to the image.
    body_part
        DICOM Body Part Examined. A profile that names it goes before one for every part.

    Raises
    ------
    ProfileError
        The modality is None or blank, or no profile is for this task: limits would be a guess.
    """
    wanted, part = ((one or "").strip().upper() for one in (modality, body_part))
    if not wanted:
        raise ProfileError(
            "profile", "the image does not say its modality", "name a profile with --profile"
        )
    profiles = [one for one in map(load, names()) if one.task == task]
    fitting = [
        one
        for one in profiles
        if wanted in one.modalities and (not one.body_parts or part in one.body_parts)
    ]
    if fitting:
        return max(fitting, key=lambda one: len(one.body_parts) > 0)
    if task == "routine":
        return load(_FALLBACK)
    known = ", ".join(sorted({modality for one in profiles for modality in one.modalities}))
    raise ProfileError(
        "profile",
        f"no shipped profile is for {task} of {wanted}" + (f", only of {known}" if known else ""),
        "name a profile with --profile",
    )


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


def check_calibrated(profile: Profile) -> None:
    """Refuse a profile whose limits rest on no study and no readings at a site.

    Raises
    ------
    ProfileError
        Its status is provisional.
    """
    if profile.status == "provisional":
        raise ProfileError(
            profile.source,
            "its limits are provisional, and calibrated ones are required",
            "name a calibrated profile, or leave --require-calibrated out",
        )


def differences(one: Profile, other: Profile) -> dict[str, tuple[object, object]]:
    """Where two profiles differ: key, such as ``limits.diagnostic.value``, and both values.

    A key that only one of them has is None in the other. Items of an array are counted from 1.
    """
    first, second = (_flat(profile.model_dump(mode="json")) for profile in (one, other))
    keys = dict.fromkeys((*first, *second))
    pairs = {key: (first.get(key), second.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flat(value: object, key: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        items = [(f"{key}.{name}" if key else name, one) for name, one in value.items()]
    elif isinstance(value, list):
        items = [(f"{key}[{place}]", one) for place, one in enumerate(value, start=1)]
    else:
        return {key: value}
    return {name: one for path, part in items for name, one in _flat(part, path).items()}


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
