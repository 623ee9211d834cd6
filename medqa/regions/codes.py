"""Coded concepts of DICOM items (PS3.3 8.8) to `Code`s."""

from __future__ import annotations

from pydicom import Dataset

from medqa.image import Code

__all__ = ["code_in"]


def code_in(item: Dataset, keyword: str) -> Code | None:
    """First code of a code sequence; None where it is missing or has no value."""
    codes = item.get(keyword)
    if not codes:
        return None
    first = codes[0]
    value = first.get("CodeValue") or first.get("LongCodeValue") or first.get("URNCodeValue")
    if not value:
        return None
    scheme = str(first.get("CodingSchemeDesignator") or "")
    return Code(str(value), scheme, str(first.get("CodeMeaning") or ""))
