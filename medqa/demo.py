"""The demonstration: real images, damaged on the spot, each judged by the whole pipeline.

The images are examples that come inside pydicom's wheel, so nothing is downloaded. Everything is
written below one folder: the DICOM files in ``inputs``, a report for each comparison, an index
page and an audit database.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000, JPEG2000Lossless, generate_uid
from rich.console import Console, Group
from rich.progress import track
from rich.text import Text
from scipy import ndimage

from medqa.assessment import MEASURE_WORDS, Assessment, Job
from medqa.audit import Store
from medqa.console import show, table
from medqa.dicom.files import reading
from medqa.dicom.pixels import COLOURS, frames
from medqa.errors import UsageError
from medqa.lpips import GrayLPIPS
from medqa.pipeline import run
from medqa.report import IndexRow, index, prepare_folder, write

__all__ = ["run_demo"]

# Stored values of all frames: (frames, rows, columns), of colour (frames, rows, columns, 3).
Pixels = NDArray[Any]
Process = Callable[[Pixels], Pixels]

# The samples are public and the record stays in the demo's folder: no secret is needed, and the
# user's own key is neither made nor used.
_KEY = hashlib.sha256(b"medqa demo").digest()

_TITLE = "medqa demonstration: real images, damaged on purpose"
_INTRODUCTION = (
    "The references are examples that come with pydicom. Each candidate was made from one of "
    "them just now, as its name says; ratios are of the stored bits. What is outlined stands "
    "for a finding: it was marked by hand for this demonstration, on a lesion or normal anatomy."
)


@dataclass(frozen=True)
class _Ellipse:
    """A place on the anatomy, in pixels: centre and half axes."""

    row: int
    column: int
    half_rows: int
    half_columns: int

    def mask(self, rows: int, columns: int) -> NDArray[np.bool_]:
        row, column = np.ogrid[:rows, :columns]
        down = (row - self.row) / self.half_rows
        along = (column - self.column) / self.half_columns
        inside: NDArray[np.bool_] = down**2 + along**2 <= 1.0
        return inside


@dataclass(frozen=True)
class _Case:
    """A candidate: what is done to the reference, and which regions are judged.

    Parameters
    ----------
    name
        Of its files.
    label
        What was done, in words.
    process
        What is done to the pixels; they keep their shape, type and range.
    ratio
        JPEG 2000 afterwards, to this ratio of the stored bits; 1 is lossless, None is not at all.
    pathology
        Place of the pathology mask.
    annotation
        An entry of the annotation file.
    """

    name: str
    label: str
    process: Process = np.copy
    ratio: int | None = None
    pathology: _Ellipse | None = None
    annotation: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Example:
    """A reference and its candidates."""

    name: str
    title: str
    file: str
    cases: tuple[_Case, ...]


def run_demo(out: Path) -> None:
    """Make the candidates, judge and record them, and write reports and an index page.

    Parameters
    ----------
    out
        Folder for everything; made where it does not exist. Files of an earlier run are replaced,
        the record of this one is added to its database, and nothing else is touched.

    Raises
    ------
    NotAssessableError
        A comparison could not be judged; the pages are written all the same.
    UsageError
        The folder cannot be written, or pydicom came without its examples.
    """
    prepare_folder(out)
    console = Console(stderr=True)
    pairs = [(example, case) for example in _EXAMPLES for case in example.cases]
    rows: list[IndexRow] = []
    with Store.open(str(out / "audit.db")) as store:
        store.key = _KEY
        network = GrayLPIPS()
        for example, case in track(
            pairs, "judging", console=console, transient=True, disable=not console.is_terminal
        ):
            assessment = run(_job(example, case, out), store, network=network)
            report = write(assessment, out / example.name / case.name)
            where = report.relative_to(out).as_posix()
            rows.append(IndexRow(case.label, example.title, assessment, where))
    page = index(rows, out / "index.html", title=_TITLE, introduction=_INTRODUCTION)
    show(
        Group(
            table(("image", "candidate", "verdict", "distance / limit", "part"), _lines(rows)),
            Text(f"pages:  {page}\nrecord: {out / 'audit.db'}\nfiles:  {out / 'inputs'}"),
        )
    )
    for row in rows:
        if row.assessment.failure is not None:
            raise row.assessment.failure


def _job(example: _Example, case: _Case, out: Path) -> Job:
    """Write the files of a comparison and name them."""
    folder = out / "inputs" / example.name
    reference = folder / "reference.dcm"
    candidate, mask, annotations = (
        folder / f"{case.name}{ending}" for ending in (".dcm", "-mask.png", "-annotations.json")
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_path(example.file), reference)
        ds = _derived(reference, case)
        ds.save_as(candidate, enforce_file_format=True)
        if case.pathology:
            inside = case.pathology.mask(ds.Rows, ds.Columns)
            PIL.Image.fromarray(inside).save(mask)
        if case.annotation:
            annotations.write_text(json.dumps({"annotations": [case.annotation]}), "utf-8")
    except OSError as error:
        raise UsageError(
            folder,
            f"the images cannot be written here ({error.strerror or error})",
            "name a folder that you may write to and that has space",
        ) from error
    return Job(
        str(reference),
        str(candidate),
        masks=(str(mask),) if case.pathology else (),
        annotations=(str(annotations),) if case.annotation else (),
        origin="medqa demo",
        correlation_id=f"{example.name}/{case.name}",
    )


def _path(file: str) -> Path:
    found = get_testdata_file(file, download=False)
    if found is None:
        raise UsageError(
            "pydicom", f"its example {file} is missing", "pip install --force-reinstall pydicom"
        )
    return Path(str(found))


def _derived(reference: Path, case: _Case) -> Dataset:
    """Candidate as a DICOM object of its own that names its source (PS3.3 C.7.6.1.1.2, C.12.4)."""
    with reading(reference):
        ds = dcmread(reference)
        source = Dataset()
        source.ReferencedSOPClassUID = ds.SOPClassUID
        source.ReferencedSOPInstanceUID = ds.SOPInstanceUID
        pixels = case.process(np.stack(list(frames(ds, reference))))
        ds.set_pixel_data(
            pixels if len(pixels) > 1 else pixels[0],
            "RGB" if ds.PhotometricInterpretation in COLOURS else "MONOCHROME2",
            ds.BitsStored,
        )
        if case.ratio == 1:
            ds.compress(JPEG2000Lossless)
        elif case.ratio is not None:
            ds.compress(JPEG2000, j2k_cr=[case.ratio])
            ds.LossyImageCompression = "01"
        ds.SeriesInstanceUID = generate_uid()
        ds.ImageType = ["DERIVED", *list(ds.ImageType)[1:]]
        ds.SourceImageSequence = [source]
        ds.DerivationDescription = case.label
    return ds


def _stored(values: NDArray[np.floating], like: Pixels) -> Pixels:
    """Round to the type and range of the stored values."""
    rounded: Pixels = np.clip(np.rint(values), like.min(), like.max()).astype(like.dtype)
    return rounded


def _median(size: int) -> Process:
    def process(pixels: Pixels) -> Pixels:
        result: Pixels = ndimage.median_filter(pixels, (1, size, size, 1)[: pixels.ndim])
        return result

    return process


def _noise(sigma: float) -> Process:
    """White noise, the same in every channel of a colour; the same at every run."""

    def process(pixels: Pixels) -> Pixels:
        shape = (*pixels.shape[:3], 1)[: pixels.ndim]
        return _stored(pixels + np.random.default_rng(0).normal(0.0, sigma, shape), pixels)

    return process


def _blurred(pixels: Pixels, sigma: float) -> NDArray[np.float64]:
    result: NDArray[np.float64] = ndimage.gaussian_filter(
        pixels.astype(np.float64), (0.0, sigma, sigma, 0.0)[: pixels.ndim]
    )
    return result


def _paint_over(place: _Ellipse) -> Process:
    """Smooth a place away: fill it from around it, with a soft border that gives nothing away."""
    sigma = min(place.half_rows, place.half_columns) / 2.0

    def process(pixels: Pixels) -> Pixels:
        axes = (None, ..., None)[: pixels.ndim - 1]
        inside = place.mask(*pixels.shape[1:3])[axes].astype(np.float64)
        # Mean of the surroundings alone, weighted by nearness: a normalised convolution.
        outside = 1.0 - inside
        filled = _blurred(pixels * outside, sigma) / _blurred(outside, sigma)
        share = _blurred(inside, 1.5)
        return _stored(pixels + share * (filled - pixels), pixels)

    return process


def _blur_frame(frame: int, sigma: float) -> Process:
    def process(pixels: Pixels) -> Pixels:
        result = pixels.copy()
        result[frame] = _stored(_blurred(pixels[frame : frame + 1], sigma), pixels)[0]
        return result

    return process


def _lines(rows: Sequence[IndexRow]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    last = ""
    for row in rows:
        a = row.assessment
        limits = {limit.name: limit.value for limit in a.limits}
        distance = (
            "-"
            if a.base_lpips_score is None
            else f"{a.base_lpips_score:.4f} / {limits['diagnostic']:.3f}"
        )
        title = row.group if row.group != last else ""
        last = row.group
        lines.append((title, row.label, a.verdict.replace("_", " "), distance, _parts(a, limits)))
    return lines


def _parts(a: Assessment, limits: dict[str, float]) -> str:
    judged = [
        (one.annotation_type, one.lpips_score, limits["annotation"], one.preserved)
        for one in a.annotation_preservation
    ]
    if (p := a.pathology_preservation) is not None:
        judged.append(("pathology", p.pathology_lpips, limits["pathology"], p.pathology_preserved))
    parts = [
        f"{name} {'' if kept else 'NOT '}preserved: {value:.4f} / {limit:.3f}"
        for name, value, limit, kept in judged
    ]
    parts += [
        f"{MEASURE_WORDS[gate.measure][0]} NOT met: "
        f"{'undefined' if gate.value is None else f'{gate.value:.4f}'} / "
        f"{limits[f'{gate.measure} diagnostic']:.3f}"
        for gate in a.gates
        if not gate.diagnostic
    ]
    # A slice is named among the reasons only where it is not within the screening limit.
    parts += [
        f"{one.place}: {one.value:.4f} / {one.limit:.3f}"
        for one in a.reasons
        if (one.place or "").startswith("slice ")
    ]
    return "\n".join(parts)


_PETROUS_BONE = _Ellipse(280, 352, 14, 14)
_LESION = _Ellipse(131, 141, 32, 30)
_VESSELS = _Ellipse(217, 455, 14, 24)

_EXAMPLES = (
    _Example(
        "ct-head",
        "CT of the head",
        "J2K_pixelrep_mismatch.dcm",
        (
            _Case("copy", "Lossless copy", ratio=1),
            # 5:1 is the highest ratio of the German consensus for CT of the brain (DRG 2008).
            _Case("jpeg2000-5", "JPEG 2000, 5:1", ratio=5),
            _Case("jpeg2000-100", "JPEG 2000, 100:1", ratio=100),
            _Case("denoised", "Denoised: median of 3 × 3 pixels", _median(3)),
            _Case("noisy", "Noise of 25 HU added, as at a lower dose", _noise(25.0)),
            _Case(
                "patch",
                "Left petrous bone painted over",
                _paint_over(_PETROUS_BONE),
                pathology=_PETROUS_BONE,
            ),
            _Case(
                "annotated",
                "JPEG 2000, 30:1, fourth ventricle annotated",
                ratio=30,
                annotation={"type": "fourth ventricle", "bbox": [215, 300, 290, 350]},
            ),
        ),
    ),
    _Example(
        "mr-liver",
        "MR of the liver, with a lesion",
        "examples_overlay.dcm",
        (
            _Case("copy", "Lossless copy", ratio=1),
            _Case("jpeg2000-7", "JPEG 2000, 7:1", ratio=7),  # DRG 2008, MR
            _Case("jpeg2000-100", "JPEG 2000, 100:1", ratio=100),
            _Case("denoised", "Denoised: median of 3 × 3 pixels", _median(3)),
            _Case("patch", "Lesion painted over", _paint_over(_LESION), pathology=_LESION),
        ),
    ),
    _Example(
        "us-lymph-node",
        "Ultrasound of a lymph node",
        "examples_jpeg2k.dcm",
        (
            _Case("copy", "Lossless copy", ratio=1),
            _Case("jpeg2000-12", "JPEG 2000, 12:1", ratio=12),  # CAR 2008, ultrasound
            _Case("jpeg2000-100", "JPEG 2000, 100:1", ratio=100),
            _Case("denoised", "Speckle filter: median of 5 × 5 pixels", _median(5)),
            _Case("patch", "Vessels painted over", _paint_over(_VESSELS), pathology=_VESSELS),
        ),
    ),
    _Example(
        "us-heart",
        "Ultrasound clip of the heart, 30 frames",
        "examples_ybr_color.dcm",
        (
            _Case("copy", "Lossless copy", ratio=1),
            _Case("jpeg2000-12", "JPEG 2000, 12:1", ratio=12),
            _Case("jpeg2000-100", "JPEG 2000, 100:1", ratio=100),
            _Case(
                "denoised",
                "Speckle filter: median of 3 × 3 pixels, valve annotated",
                _median(3),
                annotation={"type": "mitral valve", "bbox": [145, 112, 195, 145], "slice": 15},
            ),
            _Case("one-frame", "One of the 30 frames blurred", _blur_frame(12, 3.0)),
        ),
    ),
)
