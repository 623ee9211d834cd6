"""Names of a mask's labels: tables of ITK-SNAP and 3D Slicer, and the names in a NIfTI header."""

from __future__ import annotations

import gzip
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib

from medqa.errors import RegionError

__all__ = ["label_names"]

_MOST_BYTES = 2**20
_GZIP = b"\x1f\x8b"

# ITK-SNAP label description: index, red, green, blue, opacity, visibility, mesh, "name".
_ITK_SNAP = re.compile(r'\s*(\d{1,5})(?:\s+\d+){3}\s+[\d.]+\s+[01]\s+[01]\s+"(.*)"\s*')
# 3D Slicer colour table: index, name (spaces written as underscores), red, green, blue, opacity.
_SLICER = re.compile(r"\s*(\d{1,5})\s+(\S+)(?:\s+\d+){4}\s*")


def label_names(path: Path) -> dict[int, str]:
    """Names of the labels of a mask in NIfTI or PNG; empty where there are none.

    They come from a table beside the mask with its name up to the extension, such as
    ``brain.label`` beside ``brain.nii.gz``: ``.label`` (ITK-SNAP), ``.ctbl`` (3D Slicer) or
    ``.txt`` (either of them; any other text is passed over). Without one, from a label table in
    the NIfTI header, as TotalSegmentator writes it.

    Raises
    ------
    RegionError
        Several tables, or one that is damaged.
    """
    stem = re.sub(r"\.(nii|hdr|img|png)(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    tables = {}
    for end in (".label", ".ctbl", ".txt"):
        beside = path.with_name(stem + end)
        names = _table(beside, path) if beside.is_file() else None
        if names is not None:
            tables[end] = names
    if len(tables) > 1:
        reason = f"has several label tables beside it ({' and '.join(tables)})"
        raise RegionError(path, reason, "leave the one that holds")
    return tables.popitem()[1] if tables else _in_header(path)


def _table(table: Path, mask: Path) -> dict[int, str] | None:
    """Names in a table; None for a .txt that is none."""
    with table.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    lines = data.decode("utf-8-sig", "replace").splitlines()
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    for pattern in (_ITK_SNAP, _SLICER):
        rows = [match for line in lines if (match := pattern.fullmatch(line))]
        if lines and len(rows) == len(lines) and len(data) <= _MOST_BYTES:
            spaced = "_" if pattern is _SLICER else " "
            return {int(row[1]): row[2].replace(spaced, " ").strip() for row in rows if row[2]}
    if table.suffix == ".txt":
        return None
    reason = f"the {table.suffix} file beside it is no label table"
    raise RegionError(mask, reason, "mend or remove it")


def _in_header(path: Path) -> dict[int, str]:
    """Names in a Caret label table, an extension of a NIfTI header; the last one holds."""
    with path.open("rb") as file:
        head = file.read(_MOST_BYTES)
        if head.startswith(_GZIP):
            file.seek(0)
            with gzip.GzipFile(fileobj=file) as unzipped:
                head = unzipped.read(_MOST_BYTES)
    kind = {b"n+1\0": nib.Nifti1Header, b"n+2\0": nib.Nifti2Header}
    header = kind.get(head[344:348]) or kind.get(head[4:8])
    if header is None:  # a PNG, or header and pixels in two files
        return {}
    names: dict[int, str] = {}
    for extension in header.from_fileobj(io.BytesIO(head)).extensions:
        text = bytes(extension.get_content()) if extension.get_code() == 0 else b""
        if b"<LabelTable>" in text and b"<!" not in text.replace(b"<![CDATA[", b""):
            # Without declarations there is no entity to expand.
            root = ElementTree.fromstring(text.rstrip(b"\0"))  # noqa: S314
            found = ((label.get("Key"), label.text) for label in root.iter("Label"))
            names |= {int(key): text.strip() for key, text in found if key and text}
    return names
