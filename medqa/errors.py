"""Every error that medqa raises on purpose.

::

    MedqaError
    ├── UsageError            the call itself is wrong: nothing was judged, nothing is recorded
    │   ├── ProfileError          unknown, invalid or unsuitable thresholds profile
    │   ├── WeightsError          a network's weights are missing or are not the pinned ones
    │   └── StoreError            the audit database cannot be opened, read or written
    │       └── ConflictError         it already holds what this would contradict
    └── NotAssessableError    the input cannot be judged: recorded as `not_assessable`
        ├── ReadError             a file cannot be read as an image
        ├── RegionError           a mask or annotation cannot be used on this image
        ├── MismatchError         reference and candidate do not belong together
        └── PixelError            the pixel values cannot be scored (NaN, constant, too small)
"""

from __future__ import annotations

__all__ = [
    "ConflictError",
    "MedqaError",
    "MismatchError",
    "NotAssessableError",
    "PixelError",
    "ProfileError",
    "ReadError",
    "RegionError",
    "StoreError",
    "UsageError",
    "WeightsError",
]


class MedqaError(Exception):
    """Root of all errors raised on purpose.

    Parameters
    ----------
    subject
        What it is about: a file, a profile, a database URL.
    reason
        What is wrong with it, without a final full stop.
    mend
        What the user can do about it, without a final full stop.
    detail
        A library's own words. Like the subject they may name a patient, so a record holds
        neither: only reason and mend.
    """

    def __init__(self, subject: object, reason: str, mend: str, detail: str = "") -> None:
        super().__init__(subject, reason, mend, detail)
        self.subject = str(subject)
        self.reason = reason
        self.mend = mend
        self.detail = detail

    def __str__(self) -> str:
        """One line: ``subject: reason (detail); mend``."""
        detail = f" ({self.detail[:300]})" if self.detail else ""
        return " ".join(f"{self.subject}: {self.reason}{detail}; {self.mend}".split())


class UsageError(MedqaError):
    """The call is wrong: nothing was judged and nothing is recorded."""


class ProfileError(UsageError):
    """A thresholds profile is unknown, invalid or does not hold for this metric."""


class WeightsError(UsageError):
    """A network's weights are missing or are not the pinned ones."""


class StoreError(UsageError):
    """The audit database cannot be opened, read or written."""


class ConflictError(StoreError):
    """The record already holds what this would contradict; trying again does not help."""


class NotAssessableError(MedqaError):
    """The input cannot be judged; the record says ``not_assessable`` and why."""


class ReadError(NotAssessableError):
    """A file is missing, damaged, or holds no image that can be decoded."""


class RegionError(NotAssessableError):
    """A mask or an annotation is empty, outside the image or on another grid."""


class MismatchError(NotAssessableError):
    """Reference and candidate differ in shape, modality or geometry."""


class PixelError(NotAssessableError):
    """Pixel values that no distance can be computed from."""
