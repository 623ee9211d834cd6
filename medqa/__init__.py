"""Decide whether a processed medical image may still be read.

>>> import medqa
>>> reference = medqa.read("reference.dcm")     # doctest: +SKIP
>>> candidate = medqa.read("candidate.dcm")     # doctest: +SKIP
>>> medqa.assess(reference, candidate).verdict  # doctest: +SKIP
'diagnostic'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from medqa._version import __version__

if TYPE_CHECKING:
    from medqa.assessment import Assessment, Job
    from medqa.audit import Store
    from medqa.errors import MedqaError, NotAssessableError, UsageError
    from medqa.image import Code, Image, Region
    from medqa.lpips import Features, GrayLPIPS
    from medqa.pipeline import assess, run
    from medqa.reader import read

__all__ = [
    "Assessment",
    "Code",
    "Features",
    "GrayLPIPS",
    "Image",
    "Job",
    "MedqaError",
    "NotAssessableError",
    "Region",
    "Store",
    "UsageError",
    "__version__",
    "assess",
    "read",
    "run",
]

_HOMES = {
    "Assessment": "assessment",
    "Code": "image",
    "Features": "lpips",
    "GrayLPIPS": "lpips",
    "Image": "image",
    "Job": "assessment",
    "MedqaError": "errors",
    "NotAssessableError": "errors",
    "Region": "image",
    "Store": "audit",
    "UsageError": "errors",
    "assess": "pipeline",
    "read": "reader",
    "run": "pipeline",
}


def __getattr__(name: str) -> Any:
    # Imported when first used: torch and MONAI take seconds, `medqa --help` must not.
    if name not in _HOMES:
        raise AttributeError(f"module 'medqa' has no attribute {name!r}")
    return getattr(importlib.import_module(f"medqa.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
