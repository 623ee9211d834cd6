"""Which distances published limits of the compression ratio correspond to on real images.

``python tests/benchmarks/anchors.py [--write docs/compression.md]``; six minutes on two cores.
The images lie in ``shared/data`` beside the project; `MEDQA_WEIGHTS` names the folder of the
official trunks. Each source is another scanner, study or repository, was never compressed lossily
as far as its header tells, and counts once, by the median of its slices.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from bands import DATA, Slice, _depth, _slice, jpeg2000
from machine import heading
from rich.progress import track
from tables import Table, publish

from medqa.lpips import GrayLPIPS

# Profile, files, slices of each source.
SOURCES = (
    ("ct", "ct/totalsegmentator_dicom/CT.*", 4),
    ("ct", "ct/liver_3slice_with_SEG/0*.dcm", 3),
    ("ct", "ts/ct_all_syntaxes/CT1_J2KR", 1),
    ("ct", "ts/ct_all_syntaxes/CTImage.dcm", 1),
    ("ct-head", "ct/head_series_GE/*.dcm", 4),
    ("ct-head", "ts/ct_all_syntaxes/CT2_J2KR", 1),
    ("mr", "mr/siemens/MR.*", 4),
    ("mr", "mr/uih_t1/*.dcm", 4),
    ("mr", "mr/misc/MR2_J2KR.dcm", 1),
    ("mr", "mr/misc/examples_overlay.dcm", 1),
    ("mr", "mr/transfer_syntax_set/1.dcm", 1),
    ("mr", "mr/siemens_epi/epi_*.dcm", 2),
    ("mr", "mr/nifti/FLAIR.nii.gz", 3),
    ("xray", "xr/cr_mono1/RG3_J2KR.dcm", 1),
    ("xray", "xr/cr_mono2/RG2_JLSL.dcm", 1),
    ("xray", "xr/modality_lut/CR-ModalitySequenceLUT.dcm", 1),
    ("xray", "xr/cxr_png/0*.png", 2),
    ("xray", "xr/cxr_tb_boxes/*.png", 3),
    ("ultrasound", "us/US1_UNCR.dcm", 1),
    ("ultrasound", "us/examples_palette.dcm", 1),
    ("ultrasound", "us/GH364.dcm", 1),
    ("nuclear", "pt/GH184.dcm", 1),
    ("nuclear", "pt/GH610.dcm", 1),
    ("nuclear", "nm/JPEG2000_UNC.dcm", 1),
)
# The guidelines' highest ratios of JPEG 2000: DRG 2008 for diagnosis where it names one, CAR 2008.
RATIOS = {
    "ct": (8, 15),
    "ct-head": (5, 12),
    "mr": (7, 24),
    "xray": (10, 30),
    "ultrasound": (12,),
    "nuclear": (11,),
}
_SHOWN = (5, 8, 10, 15, 20, 30)


def slices_of(profile: str, pattern: str, count: int) -> list[Slice]:
    paths = sorted(DATA.glob(pattern))
    if not paths:
        raise SystemExit(f"{DATA} holds no {pattern}")
    pairs = [(path, index) for path in paths for index in range(_depth(path))]
    inner = np.linspace(0, len(pairs) - 1, count + 2)[1:-1] if count > 1 else [len(pairs) // 2]
    return [_slice(profile, *pairs[round(place)]) for place in inner]


def distances(network: GrayLPIPS, one: Slice, ratios: tuple[int, ...]) -> list[float]:
    """Distance at each ratio, under the display of the profile where it is largest."""
    reference = one.stored.astype(np.float32)
    found = []
    for ratio in ratios:
        pairs = one.show(reference, jpeg2000(one.stored, ratio))
        found.append(max(float(network(*pair)) for pair in pairs))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    given = parser.parse_args()
    network = GrayLPIPS("alex")
    every = tuple(sorted({*_SHOWN, *(one for ratios in RATIOS.values() for one in ratios)}))
    # Profile to ratio to one distance for each source.
    found: dict[str, dict[int, list[float]]] = {name: {r: [] for r in every} for name in RATIOS}
    for profile, pattern, count in track(SOURCES, "compressing", transient=True):
        of_slices = [distances(network, one, every) for one in slices_of(profile, pattern, count)]
        for ratio, values in zip(every, zip(*of_slices, strict=True), strict=True):
            found[profile][ratio].append(statistics.median(values))

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"

    curves = [
        [f"{name} ({len(by_ratio[5])})", *(spread(by_ratio[ratio]) for ratio in _SHOWN)]
        for name, by_ratio in found.items()
    ]
    anchors = [
        [name, str(ratio), spread(found[name][ratio])]
        for name, ratios in RATIOS.items()
        for ratio in ratios
    ]
    publish(
        "anchors",
        heading("Median of the sources (least to largest).", torch.get_num_threads(), "torch"),
        [
            Table("Distance by ratio", ["profile (sources)", *(f"{r}:1" for r in _SHOWN)], curves),
            Table("At the guidelines' ratios", ["profile", "ratio", "distance"], anchors),
        ],
        given.write,
    )


if __name__ == "__main__":
    main()
