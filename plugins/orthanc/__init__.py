"""Orthanc: derived series in an archive are assessed, and the verdicts written back beside them.

A process of its own, which uses Orthanc's REST API and nothing else of it; no torch either, as the
workers assess. ``orthanc.lua`` is an optional hook for Orthanc that only wakes it.
"""

from .rest import Orthanc, OrthancError
from .rounds import LABEL, METADATA, Plugin, follow, once, opened
from .wake import listening

__all__ = [
    "LABEL",
    "METADATA",
    "Orthanc",
    "OrthancError",
    "Plugin",
    "follow",
    "listening",
    "once",
    "opened",
]
