"""Threshold profiles: one TOML file per modality and task.

`load` reads one by name or path, `choose` finds the shipped one for an image and a task.
"""

from medqa.thresholds.choice import (
    check_backbone,
    check_calibrated,
    check_modality,
    choose,
    differences,
)
from medqa.thresholds.files import SCHEMA_VERSION, load, names
from medqa.thresholds.profile import (
    DisplayWindow,
    FullRange,
    Gate,
    Limits,
    Measures,
    Percentiles,
    Profile,
    Status,
    Task,
    Threshold,
    Voi,
    Windows,
)

__all__ = [
    "SCHEMA_VERSION",
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
    "check_backbone",
    "check_calibrated",
    "check_modality",
    "choose",
    "differences",
    "load",
    "names",
]
