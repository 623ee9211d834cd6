"""MONAI: medqa as a transform, a metric, Ignite handlers, and an operator for MONAI Deploy.

`AssessQualityd` judges; the others only handle what it found, so that a verdict is made once.
`handlers` needs Ignite, and `deploy` the MONAI Deploy App SDK.
"""

from .metric import VerdictMetric
from .transform import AssessQualityd

__all__ = ["AssessQualityd", "VerdictMetric"]
