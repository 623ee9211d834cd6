"""Which distances published limits of the compression ratio correspond to on real images.

``python tests/benchmarks/anchors.py [--write docs/compression.md]``; five minutes on one core.
The images lie in ``shared/data`` beside the project; `MEDQA_WEIGHTS` names the folder of the
official trunks. Each source is another scanner or collection and was never compressed lossily as
far as its header tells. The distances are those of `medqa study anchor`, over more ratios, and
with both networks.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from machine import heading
from numpy.typing import NDArray
from PIL import Image as Pillow
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from rich.progress import track
from tables import Table, publish

from medqa.compression.codecs import CODECS, version
from medqa.lpips import GrayLPIPS
from medqa.studies.anchored_profile import distance_words as distance
from medqa.studies.anchors import Replayed, Spread, of_sources, originals, replay, spread
from medqa.studies.reader_limits import limits_for
from medqa.thresholds import load

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SHOWN = (5, 8, 10, 15, 20, 30)
# Distances near the limits for compression, where the error of `gray` decides.
NEAR = (0.0005, 0.001, 0.003, 0.01)
BAND = 0.5  # that the profiles state for it


@dataclass(frozen=True)
class Kind:
    """Images of one profile: modality and body part by which limits are chosen, and where."""

    profile: str
    modality: str
    body_part: str
    places: tuple[str, ...]


KINDS = (
    Kind(
        "ct",
        "CT",
        "TRUNK",
        (
            "ct/totalsegmentator_dicom",
            "ct/liver_3slice_with_SEG",
            "ts/ct_all_syntaxes/CT1_J2KR",
            "ts/ct_all_syntaxes/CTImage.dcm",
            "malformed/TOSHIBA_J2K_SIZ0_PixRep1.dcm",
        ),
    ),
    Kind(
        "ct-head",
        "CT",
        "HEAD",
        ("ct/head_series_GE", "ts/ct_all_syntaxes/CT2_J2KR", "ts/jpegxl/test_ct1.dcm"),
    ),
    Kind(
        "mr",
        "MR",
        "ANY",
        (
            "mr/siemens/MR.*",
            "mr/uih_t1",
            "mr/misc/MR2_J2KR.dcm",
            "mr/misc/examples_overlay.dcm",
            "mr/transfer_syntax_set/1.dcm",
            "mr/siemens_epi/epi_*.dcm",
            "mr/nifti/FLAIR.nii.gz",
        ),
    ),
    Kind(
        "xray",
        "CR",
        "ANY",
        (
            "xr/cr_mono1/RG3_J2KR.dcm",
            "xr/cr_mono2/RG2_JLSL.dcm",
            "xr/modality_lut/CR-ModalitySequenceLUT.dcm",
            "xr/cxr_png/0*.png",
            "xr/cxr_tb_boxes/*.png",
        ),
    ),
)
# One display of one source each: what is known of CT, by organ.
ORGANS = (
    ("trunk, PET/CT, 40/400", "ct", 1, "soft tissue"),
    ("liver, noisy, 40/400", "ct", 2, "soft tissue"),
    ("trunk, PET/CT, −600/1500", "ct", 1, "lung"),
    ("chest, −600/1500", "ct", 4, "lung"),
    ("head, 40/80", "ct-head", 1, "brain"),
)


def found(kind: Kind, folder: Path) -> list[Path]:
    """Files and folders of a kind; what is no DICOM is wrapped in it, under its collection."""
    paths: list[Path] = []
    for place in kind.places:
        here = sorted(DATA.glob(place))
        if not here:
            raise SystemExit(f"{DATA} holds no {place}")
        for path in here:
            paths += wrapped(path, folder) if path.suffix in (".png", ".gz") else [path]
    return paths


def wrapped(path: Path, folder: Path) -> Iterator[Path]:
    """A PNG as a radiograph of 8 bits; of a NIfTI three slices as MR of 12."""
    if path.suffix == ".png":
        frames = [np.asarray(Pillow.open(path).convert("L"))]
    else:
        volume = np.asarray(nib.load(path).dataobj)
        places = np.linspace(0, volume.shape[2] - 1, 5)[1:-1].round().astype(int)
        frames = [np.rot90(volume[:, :, place]).astype(np.uint16) for place in places]
    for number, frame in enumerate(frames):
        yield saved(frame, path.parent.name, folder / f"{path.name}-{number}.dcm")


def saved(frame: NDArray[np.unsignedinteger], collection: str, path: Path) -> Path:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    deep = frame.dtype == np.uint16
    ds.SOPClassUID = MRImageStorage if deep else DigitalXRayImageStorageForPresentation
    ds.Modality = "MR" if deep else "DX"
    ds.SOPInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.Manufacturer, ds.ManufacturerModelName = "collection", collection
    ds.Rows, ds.Columns = frame.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored = (16, 12) if deep else (8, 8)
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, 0
    ds.PixelData = np.ascontiguousarray(frame).tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


def measured(
    kind: Kind, networks: Sequence[GrayLPIPS], ratios: Sequence[float]
) -> list[tuple[Replayed, ...]]:
    """What the ratios do to the images of a kind, once for each network."""
    with tempfile.TemporaryDirectory() as folder:
        images = originals(found(kind, Path(folder)))
        return [
            replay(network, load(kind.profile), images, CODECS["j2k"], ratios)
            for network in networks
        ]


def words(values: Spread) -> str:
    return f"{distance(values.median)} ({distance(values.least)} to {distance(values.most)})"


def curves(every: dict[str, tuple[Replayed, ...]]) -> Table:
    rows = []
    for name, replayed in every.items():
        spreads = [spread(of_sources(replayed, ratio)) for ratio in SHOWN]
        rows.append([f"{name} ({spreads[0].count})", *map(words, spreads)])
    return Table("Distance by ratio", ["profile (sources)", *(f"{r}:1" for r in SHOWN)], rows)


def anchored(every: dict[str, tuple[Replayed, ...]]) -> Table:
    rows = []
    for kind in KINDS:
        for limit in limits_for(None, kind.modality, kind.body_part, "j2k"):
            if limit.anchors:
                one = spread(of_sources(every[kind.profile], limit.ratio))
                slices = [r.worst for r in every[kind.profile] if r.ratio == limit.ratio]
                quartiles = f"{distance(one.lower_quartile)} to {distance(one.upper_quartile)}"
                ends = f"{distance(min(slices))} to {distance(max(slices))} ({len(slices)})"
                rows.append([kind.profile, f"{limit.ratio:g}", words(one), quartiles, ends])
    header = ["profile", "ratio", "distance", "quartiles", "slices"]
    return Table("At the guidelines' ratios", header, rows)


def windows(every: dict[str, tuple[Replayed, ...]]) -> Table:
    rows = []
    for name in ("ct", "ct-head"):
        for window in dict(every[name][0].distances):
            spreads = [spread(of_sources(every[name], ratio, window)) for ratio in SHOWN]
            rows.append([f"{name}, {window}", *(distance(one.median) for one in spreads)])
    return Table("Median of the sources by display", ["", *(f"{r}:1" for r in SHOWN)], rows)


def organs(every: dict[str, tuple[Replayed, ...]]) -> Table:
    rows = []
    for title, name, source, window in ORGANS:
        of_source = [one for one in every[name] if one.source == source]
        rows.append([title, *(distance(*of_sources(of_source, r, window)) for r in SHOWN)])
    return Table("By organ, under one display", ["", *(f"{r}:1" for r in SHOWN)], rows)


def textbook(every: dict[str, tuple[Replayed, ...]]) -> Table:
    """What the routine limits let pass."""
    rows = []
    for name, replayed in every.items():
        limits = load(name).limits
        cells = []
        for limit in (limits.diagnostic.value, limits.screening.value):
            passed = [r for r in SHOWN if spread(of_sources(replayed, r)).median <= limit]
            beyond = "or more" * (passed[-1] == SHOWN[-1])
            cells.append(f"{limit:.2f}: {passed[-1]}:1 {beyond}".strip())
        own = load(f"{name}-compression").limits
        tight = [f"{one.value:g}" for one in (own.diagnostic, own.screening)]
        rows.append([name, *cells, *tight])
    header = ["profile", "textbook diagnostic: passes", "textbook screening: passes"]
    header += ["diagnostic for compression", "screening for compression"]
    return Table("Beside the textbook limits: highest ratio whose median passes", header, rows)


def gray_error(
    alex: dict[str, tuple[Replayed, ...]], gray: dict[str, tuple[Replayed, ...]]
) -> Table:
    """Relative error of `gray` where `alex` measures a distance near the limits."""
    pairs = {
        name: [
            (exact, abs(near / exact - 1))
            for one, other in zip(alex[name], gray[name], strict=True)
            for (_, exact), (_, near) in zip(one.distances, other.distances, strict=True)
            if NEAR[0] <= exact <= NEAR[-1]
        ]
        for name in alex
    }
    every = [pair for some in pairs.values() for pair in some]
    for low, high in pairwise(NEAR):
        pairs[f"{low:g} to {high:g}"] = [pair for pair in every if low <= pair[0] <= high]
    rows = []
    for name, some in {**pairs, "all": every}.items():
        errors = [error for _, error in some]
        shares = np.percentile(errors, [50, 95, 100])
        beyond = sum(error > BAND for error in errors)
        rows.append([name, str(len(some)), *(f"{one:.0%}" for one in shares), str(beyond)])
    title = f"Relative error of gray where alex is between {NEAR[0]:g} and {NEAR[-1]:g}"
    header = ["images or distances", "pairs", "median", "95th percentile", "largest"]
    return Table(title, [*header, f"above {BAND:.0%}"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    given = parser.parse_args()
    networks = [GrayLPIPS("alex"), GrayLPIPS("gray")]
    alex, gray = {}, {}
    for kind in track(KINDS, "compressing", transient=True):
        limits = limits_for(None, kind.modality, kind.body_part, "j2k")
        ratios = sorted({*map(float, SHOWN), *(one.ratio for one in limits)})
        alex[kind.profile], gray[kind.profile] = measured(kind, networks, ratios)
    reached = [one.measured / one.ratio for values in alex.values() for one in values]
    what = (
        f"{version(CODECS['j2k'])}; median of the sources (least to largest). Ratios reached: "
        f"{min(reached):.2f} to {max(reached):.2f} of those asked for, in the median "
        f"{statistics.median(reached):.2f}."
    )
    publish(
        "anchors",
        heading(what, torch.get_num_threads(), "torch"),
        [
            curves(alex),
            anchored(alex),
            windows(alex),
            organs(alex),
            textbook(alex),
            gray_error(alex, gray),
        ],
        given.write,
    )


if __name__ == "__main__":
    main()
