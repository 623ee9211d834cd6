"""An adaptation as a file: the new heads and what stands behind them, never a trunk."""

from __future__ import annotations

import datetime
import json
import os
import uuid
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from medqa._version import __version__
from medqa.errors import UsageError
from medqa.studies.adaptation import Adaptation
from medqa.studies.preferences import Preferences
from medqa.thresholds import Profile
from medqa.weights import (
    ADAPTED_FORM,
    ADAPTED_SUFFIX,
    Weights,
    adapted_version,
    digest,
    load_adapted,
)

__all__ = ["adapted_heads", "check_new", "write"]


def check_new(out: Path) -> None:
    """Refuse to write over a file, before the work.

    Raises
    ------
    UsageError
        It is there, or its name does not end in ``.safetensors``.
    """
    if out.suffix != ADAPTED_SUFFIX:
        reason = f"does not end in {ADAPTED_SUFFIX}, as adapted weights must"
        raise UsageError(out, reason, f"name it site-ct{ADAPTED_SUFFIX}")
    if out.exists():
        raise UsageError(out, "is there already", "name another file: keep what was used")


def adapted_heads(base: Weights, multipliers: NDArray[np.float64]) -> tuple[Tensor, ...]:
    """Multiply the original heads, (channels,) in all, the taps one after another."""
    factors = torch.split(torch.from_numpy(multipliers), [len(head) for head in base.heads])
    return tuple(
        (head.double() * factor).float() for head, factor in zip(base.heads, factors, strict=True)
    )


def write(
    out: Path,
    base: Weights,
    adaptation: Adaptation,
    preferences: Preferences,
    profile: Profile,
    *,
    name: str,
    date: datetime.date,
) -> Weights:
    """Write adapted weights, whole or not at all, over nothing.

    Parameters
    ----------
    base
        Whose heads were adapted.
    profile
        Whose displays the readers looked at.
    name
        Of the new version.

    Returns
    -------
    The weights, as `medqa.weights.find` loads them.

    Raises
    ------
    UsageError
        The adaptation is not better than the original, or the file cannot be written.
    """
    check_new(out)
    if not adaptation.better:
        reason = "predicts the readers no better than the original does"
        raise UsageError(name, reason, "use the original")
    heads = adapted_heads(base, adaptation.multipliers)
    sha256 = digest((*base.trunk, *heads))
    stated = {
        "form": ADAPTED_FORM,
        "backbone": base.backbone,
        "base_version": base.version,
        "base_sha256": base.sha256,
        "trunk_sha256": digest(base.trunk),
        "name": name,
        "version": adapted_version(base.version, name, sha256),
        "sha256": sha256,
        "evidence": json.dumps(_evidence(adaptation, preferences, profile, date)),
    }
    part = out.with_name(f".{uuid.uuid4().hex}{ADAPTED_SUFFIX}")
    try:
        try:
            tensors = {f"head.{tap}": head for tap, head in enumerate(heads)}
            part.write_bytes(save(tensors, stated))
            written = load_adapted(part, base)
            os.link(part, out)  # which, unlike a rename, fails where there is one
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            out,
            f"cannot be written ({error.strerror or error})",
            "name a new file in a folder that you may write to",
        ) from error
    return written


def _evidence(
    adaptation: Adaptation, preferences: Preferences, profile: Profile, date: datetime.date
) -> dict[str, object]:
    """Say what stands behind the weights; name no reader, no patient and no file."""
    found = asdict(adaptation)
    del found["multipliers"]  # the heads hold them
    return {
        "medqa_version": __version__,
        "date": date.isoformat(),
        "table_sha256": preferences.sha256,
        "kind": preferences.kind,
        "judgments": preferences.judgments,
        "readers": preferences.readers,
        "reader_group": preferences.group,
        "profile": f"{profile.name} {profile.version}",
        "profile_sha256": profile.sha256,
        **found,
    }
