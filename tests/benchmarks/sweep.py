"""What a compression study costs beside its codecs and distances measured apart.

``python tests/benchmarks/sweep.py [--images N]``: real CT slices of ``shared/data`` beside the
project, 5 codecs, 7 ratios, one process and one thread. First the whole sweep; then the same
streams made and decoded one by one; then every candidate scored with its reference, as `score`
does it for a single pair. The processor time of each, which other programs do not lengthen.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from medqa.compression.codecs import CODECS, at_ratio, check, encode
from medqa.errors import MedqaError
from medqa.image import Image
from medqa.lpips import GrayLPIPS
from medqa.scoring import score
from medqa.studies.compression.planning import Settings, plan
from medqa.studies.compression.stored import StoredImage, read_stored
from medqa.studies.compression.sweep import COMPANIONS, sweep_image
from medqa.thresholds import load
from medqa.transforms import displays

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FILES = (
    "ct/totalsegmentator_dicom/CT.*",
    "ct/liver_3slice_with_SEG/0*.dcm",
    "ct/head_series_GE/*.dcm",
    "ct/ct_with_RTSTRUCT/ct_*.dcm",
)
SETTINGS = Settings(tuple(CODECS), (4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0), "ct-compression")


def apart(network: GrayLPIPS, stored: StoredImage) -> tuple[float, float]:
    """Processor seconds of all streams of an image, and of all its scores."""
    profile, frame = load("ct-compression"), stored.stored(0)
    shown = displays(profile, stored.image)
    measures = [*COMPANIONS, *(gate.measure for gate in profile.measures.gates)]
    codecs = scores = 0.0
    for codec in CODECS.values():
        try:
            check(codec, stored.samples, "image")
        except MedqaError:
            continue
        started = time.process_time()
        encode(codec, frame, stored.samples, None)
        made = []
        for ratio in SETTINGS.ratios:
            try:
                made.append(at_ratio(codec, frame, stored.samples, ratio).pixels)
            except MedqaError:
                break
        codecs += time.process_time() - started
        started = time.process_time()
        for pixels in made:
            candidate = Image(np.stack([stored.shown(0, pixels)]))
            score(network, stored.image, candidate, shown, measures=measures)
        scores += time.process_time() - started
    return codecs, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4)
    count = parser.parse_args().images
    files = [str(path) for pattern in FILES for path in sorted(DATA.glob(pattern))]
    files = files[:: max(1, len(files) // count)][:count]
    torch.set_num_threads(1)
    network = GrayLPIPS()
    sweep_image(plan(files[:1], SETTINGS, [], []).images[0], SETTINGS, network)  # warm
    started = time.process_time()
    rows = [
        row
        for one in plan(files, SETTINGS, [], []).images
        for row in sweep_image(one, SETTINGS, network).rows
    ]
    whole = time.process_time() - started
    codecs, scores = np.sum([apart(network, read_stored([Path(file)])) for file in files], axis=0)
    print(f"{count} images, {len(rows)} rows: {whole:.1f} s")
    print(f"apart: codecs {codecs:.1f} s, distances {scores:.1f} s")
    print(f"the study takes {whole / (codecs + scores):.2f} of both")


if __name__ == "__main__":
    main()
