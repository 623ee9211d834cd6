"""Speed and ratio of the codecs on real images, as tables.

``python tests/benchmarks/compression_codecs.py [--write docs/codecs.md]``: two minutes on one core.
The images lie in ``shared/data`` beside the project.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from machine import heading
from numpy.typing import NDArray
from tables import Table, publish

from medqa.compression import codecs
from medqa.compression.codecs import CODECS, Codec, Samples, at_ratio, check, psnr, ratio_stored
from medqa.compression.streams import STREAMS
from medqa.errors import PixelError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
IMAGES = {
    "CT abdomen, 12 bits": "ct/totalsegmentator_dicom"
    "/CT.1.3.12.2.1107.5.1.4.60064.30000022120808113428000016580",
    "CT head, 16 bits signed": "ct/head_series_GE/06.dcm",
    "MR brain, 12 bits": "mr/siemens/MR.1.3.12.2.1107.5.2.32.35131.2014031012525641770887330",
    "CR chest, 10 bits": "xr/cr_mono1/RG3_J2KR.dcm",
    "mammogram, 12 bits": "mg/GH133.dcm",
    "ultrasound, 8 bits": "us/GH364.dcm",
}
TARGETS = (4, 8, 10, 15)


def image(name: str) -> tuple[NDArray[Any], Samples]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(DATA / IMAGES[name])
        frame = ds.pixel_array
    return frame, Samples(ds.BitsStored, ds.BitsAllocated, bool(ds.PixelRepresentation))


def holds(codec: Codec, samples: Samples) -> bool:
    try:
        check(codec, samples, "an image")
    except PixelError:
        return False
    return True


def fastest(act: Callable[[], object], times: int = 7) -> float:
    """Processor's seconds of the fastest of several runs: the others were disturbed."""
    found = []
    for _ in range(times):
        start = time.process_time()
        act()
        found.append(time.process_time() - start)
    return min(found)


def speed() -> Table:
    frame, samples = image("CT abdomen, 12 bits")
    rows = []
    for codec in CODECS.values():
        setting = at_ratio(codec, frame, samples, 8).setting
        cells = [codec.title]
        for chosen in (None, setting):
            data = codecs._stream(codec, frame, samples, chosen)
            encode = fastest(lambda c=codec, s=chosen: codecs._stream(c, frame, samples, s))
            decode = fastest(lambda c=codec, d=data: STREAMS[c.name].decompress(d))
            cells += [f"{frame.size / seconds / 1e6:.1f}" for seconds in (encode, decode)]
        rows.append(cells)
    head = ["codec", "lossless: encode", "decode", "at 8:1: encode", "decode"]
    return Table("Megapixels per second of processor time, CT abdomen, 512 x 512", head, rows)


def searches() -> Table:
    """Streams that a ratio takes, and what is reached."""
    own = codecs._stream
    made: list[float | None] = []

    def counted(
        codec: Codec, frame: NDArray[Any], samples: Samples, setting: float | None
    ) -> bytes:
        made.append(setting)
        return own(codec, frame, samples, setting)

    codecs._stream = counted
    rows = []
    for codec in CODECS.values():
        counts, over = [], []
        for name in IMAGES:
            frame, samples = image(name)
            if not holds(codec, samples) or frame.size > 4e6:
                continue
            for ratio in TARGETS:
                made.clear()
                try:
                    one = at_ratio(codec, frame, samples, ratio)
                except PixelError:
                    continue
                counts.append(len(made))
                if one.setting is not None:
                    over.append(ratio_stored(frame.shape, samples, len(one.data)) / ratio - 1)
        rows.append(
            [
                codec.title,
                f"{statistics.median(counts):.0f} ({max(counts)})",
                f"{100 * statistics.median(over):.1f} ({100 * max(over):.0f})",
            ]
        )
    codecs._stream = own
    head = ["codec", "streams made: median (most)", "ratio above the target, %: median (most)"]
    return Table(f"Search for {', '.join(f'{r}:1' for r in TARGETS)}", head, rows)


def ratios() -> Table:
    rows = []
    for name in IMAGES:
        frame, samples = image(name)
        cells = [name]
        for codec in CODECS.values():
            if not holds(codec, samples):
                cells.append("none")
                continue
            size = len(codecs._stream(codec, frame, samples, None))
            cells.append(f"{ratio_stored(frame.shape, samples, size):.2f}")
        rows.append(cells)
    head = ["image", *(codec.title for codec in CODECS.values())]
    return Table("Lossless ratio, by the bits stored", head, rows)


def loss() -> Table:
    """PSNR and largest error at 8:1 of the bits stored."""
    rows = []
    for name in IMAGES:
        frame, samples = image(name)
        cells = [name]
        for codec in CODECS.values():
            if not holds(codec, samples):
                cells.append("none")
                continue
            try:
                one = at_ratio(codec, frame, samples, 8)
            except PixelError:
                cells.append("not reached")
                continue
            reached = ratio_stored(frame.shape, samples, len(one.data))
            error = int(np.abs(frame.astype(int) - one.pixels).max())
            far = f"; {reached:.1f}:1" if reached > 8.2 else ""
            lossless = one.setting is None
            found = psnr(frame, one.pixels, samples)
            cells.append(f"lossless{far}" if lossless else f"{found:.1f}; {error}{far}")
        rows.append(cells)
    head = ["image", *(codec.title for codec in CODECS.values())]
    note = "Where another ratio was reached, it is the third figure."
    return Table("At 8:1: PSNR in dB; largest error in grey levels", head, rows, [note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="page with the markers of this script")
    page = parser.parse_args().write
    tables = [speed(), searches(), ratios(), loss()]
    packages = ("imagecodecs", "pylibjpeg-openjpeg", "pyjpegls")
    publish("compression_codecs", heading("Real images.", 1, *packages), tables, page)


if __name__ == "__main__":
    main()
