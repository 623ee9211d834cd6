"""What was derived from what, among the images of one study: which pairs there are to assess."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydicom import Dataset

from medqa.catalogue import Catalogue, Entry
from medqa.dicom.files import header, reading
from medqa.dicom_results.device import MANUFACTURER
from medqa.pairing import Pairing, pair

__all__ = ["is_ours", "pair_within"]


def is_ours(header: Dataset) -> bool:
    """Whether medqa made an object: results are never assessed themselves."""
    names = (header.get("Manufacturer"), header.get("ManufacturerModelName"))
    return MANUFACTURER in [str(name or "").strip() for name in names]


def pair_within(catalogue: Catalogue) -> Pairing:
    """Pair derived images with what they were derived from, all in one folder.

    A candidate names its sources (Source Image Sequence) among the other images, or says that it
    is derived or was compressed with loss (PS3.3 C.7.6.1.1.2, C.7.6.1.1.5) and is nobody's source.
    `medqa.pairing` then finds its reference: by references first, by geometry next. Localisers
    and medqa's own results are left out.

    Parameters
    ----------
    catalogue
        What `medqa.catalogue.look` found.

    Returns
    -------
    The pairs, and what is left over; images that nothing was derived from are `Pairing.missing`.

    Raises
    ------
    ReadError
        A header cannot be read.
    """
    images = [one for one in catalogue.entries if one.kind == "dicom" and not one.localiser]
    headers = {one.names: _header(one.paths[0]) for one in images}
    images = [one for one in images if not is_ours(headers[one.names])]
    candidates = [one for one in images if _is_candidate(one, headers[one.names], images)]
    references = [one for one in images if one not in candidates]
    return pair(
        replace(catalogue, entries=tuple(references), refused=()),
        replace(catalogue, entries=tuple(candidates), refused=()),
    )


def _header(path: Path) -> Dataset:
    with reading(path):
        return header(path)


def _is_candidate(one: Entry, header: Dataset, images: Sequence[Entry]) -> bool:
    others = [other for other in images if other is not one]
    if any(one.sources & set(other.instances) for other in others):
        return True
    says = str(header.get("LossyImageCompression", "")) == "01" or "DERIVED" in str(
        header.get("ImageType", "")
    )
    return says and not any(other.sources & set(one.instances) for other in others)
