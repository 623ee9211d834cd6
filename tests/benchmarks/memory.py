"""Peak memory and time of large jobs, each in a process of its own.

``python tests/benchmarks/memory.py [series] [network] [mammogram] [--full]
[--write docs/performance.md]``; without a name, all three.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import network_of
from machine import answer, fresh, heading, peak_mib
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DigitalMammographyXRayImageStorageForPresentation
from pydicom.uid import ExplicitVRLittleEndian as Uncompressed
from rich.console import Console
from tables import Table, publish

import medqa
from medqa.lpips import PRECISIONS

_SLICES = (50, 100, 200, 400)
_SIDE = 512
_MAMMOGRAM = (6144, 4096)
_NETWORKS = ("gray", "alex", "squeeze", "vgg")


# Images ------------------------------------------------------------------------------------------


def _write(path: Path, pixels: NDArray[np.int16], sop_class: str, **elements: object) -> None:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = Uncompressed
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = f"1.2.3.{path.stem}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2", "1.2.3", "1.2.9"
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=True)


def _write_series(folder: Path, count: int) -> None:
    """A pair of CT series, `reference` and `candidate`: a noisy body in air, no slice like another.

    The candidate has noise of its own everywhere: no slice, and no part of one, is skipped.
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : _SIDE * 1j, -1 : 1 : _SIDE * 1j]
    body = np.where(x**2 / 0.7 + y**2 / 0.4 < 1, 40, -1000)
    noise = rng.normal(0, 20, (2, _SIDE, _SIDE))
    kinds = {"reference": 0, "candidate": 1}
    for index, (name, own) in itertools.product(range(count), kinds.items()):
        rolled = np.roll(noise, (index, 3 * index), axis=(1, 2))
        pixels = (body + rolled[0] + 0.2 * own * rolled[1]).round().astype(np.int16)
        (folder / name).mkdir(exist_ok=True)
        _write(
            folder / name / f"{index + 1}.dcm",
            pixels,
            CTImageStorage,
            Modality="CT",
            ImagePositionPatient=[0, 0, index],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[0.7, 0.7],
            SliceThickness=1,
        )


def _mammograms() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A reference and a candidate, (rows, columns) in [0, 1]: a bright half disc, and noise."""
    rng = np.random.default_rng(0)
    rows, columns = _MAMMOGRAM
    y, x = np.mgrid[-1 : 1 : rows * 1j, 0 : 1.3 : columns * 1j]
    breast = 0.7 * np.sqrt(np.clip(1 - x**2 - y**2, 0, None))
    reference = np.clip(breast + rng.normal(0.1, 0.02, breast.shape), 0, 1).astype(np.float32)
    noise = rng.normal(0, 0.01, breast.shape).astype(np.float32)
    return reference, np.clip(reference + noise, 0, 1)


def _write_mammograms(folder: Path) -> None:
    for name, image in zip(("1", "2"), _mammograms(), strict=True):
        _write(
            folder / f"{name}.dcm",
            (4095 * image).round().astype(np.int16),
            DigitalMammographyXRayImageStorageForPresentation,
            Modality="MG",
            WindowCenter=2048,
            WindowWidth=4096,
            ImagerPixelSpacing=[0.07, 0.07],
        )


# Measuring ---------------------------------------------------------------------------------------


def _assessed(task: Mapping[str, Any]) -> str:
    pair = (medqa.read(task[name]) for name in ("reference", "candidate"))
    assessment = medqa.assess(*pair)
    if assessment.base_lpips_score is None:
        raise RuntimeError(assessment.reasons[0].text)
    return f"{assessment.base_lpips_score:.4f}"


def _compared(task: Mapping[str, Any]) -> str:
    network = network_of(task["backbone"], task["precision"])
    pair = (torch.from_numpy(image)[None, None] for image in _mammograms())
    with torch.inference_mode():
        return f"{float(network(*pair)):.4f}"


def alone(task: Mapping[str, Any]) -> dict[str, Any]:
    """Do one job in a process of its own, the loading of the network included."""
    jobs: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "assess": _assessed,
        "compare": _compared,
    }
    start = time.perf_counter()
    distance, peak, added = peak_mib(lambda: jobs[task["job"]](task))
    return {
        "distance": distance,
        "seconds": time.perf_counter() - start,
        "peak": peak,
        "libraries": peak - added,
    }


_HEADER = ("peak, MiB", "of these libraries, MiB", "seconds", "distance")


def _measured(label: str, task: Mapping[str, Any], threads: int) -> tuple[list[str], float]:
    """A table's row from `_HEADER` on, and the seconds."""
    Console(stderr=True).print(label, markup=False)
    found = fresh(__file__, task, threads)
    if "failed" in found:
        return ["not run: " + found["failed"], *[""] * (len(_HEADER) - 1)], np.nan
    numbers = [f"{found[name]:.0f}" for name in ("peak", "libraries")]
    return [*numbers, f"{found['seconds']:.1f}", found["distance"]], found["seconds"]


def of_series(slices: Sequence[int], threads: int) -> Table:
    rows, seconds = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_series(folder, max(slices))
        for count in slices:
            task = {"job": "assess"}
            for name in ("reference", "candidate"):
                part = folder / f"{name}-{count}"
                part.mkdir()
                for number in range(1, count + 1):
                    os.link(folder / name / f"{number}.dcm", part / f"{number}.dcm")
                task[name] = str(part)
            row, taken = _measured(f"{count} slices", task, threads)
            rows.append([str(count), *row])
            seconds.append(taken)
    notes = ["`medqa.read` of both folders and `medqa.assess` with gray, three displays."]
    if len(slices) > 2 and np.isfinite(seconds).all():
        slope, start = np.polyfit(slices, seconds, 1)
        part = np.corrcoef(slices, seconds)[0, 1] ** 2
        notes.append(
            f"A straight line fits: {start:.1f} s + {1000 * slope:.0f} ms for each slice "
            f"(R² = {part:.4f})."
        )
    return Table(f"Pairs of CT series of {_SIDE}²", ["slices", *_HEADER], rows, notes)


def of_network(backbones: Sequence[str], threads: int) -> Table:
    rows = [
        [backbone, precision, *_measured(f"{backbone}, {precision}", task, threads)[0]]
        for backbone, precision in itertools.product(backbones, PRECISIONS)
        for task in [{"job": "compare", "backbone": backbone, "precision": precision}]
    ]
    title = f"A pair of {' × '.join(map(str, _MAMMOGRAM))}, the network alone"
    return Table(title, ["network", "precision", *_HEADER], rows)


def of_mammogram(threads: int) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        _write_mammograms(Path(folder))
        task = {"job": "assess", "reference": f"{folder}/1.dcm", "candidate": f"{folder}/2.dcm"}
        row, _ = _measured("mammogram", task, threads)
    title = "The same pair as DICOM files of mammography, `read` and `assess` with gray"
    return Table(title, _HEADER, [row])


def main() -> None:
    parts = ("series", "network", "mammogram")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(parts))
    parser.add_argument("--full", action="store_true", help="a series of 1000 slices too")
    parser.add_argument("--slices", type=int, nargs="+", default=_SLICES)
    parser.add_argument("--backbones", nargs="+", default=_NETWORKS, choices=_NETWORKS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", type=Path, metavar="PAGE")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        return answer(alone, given.task)
    chosen = given.parts or parts
    if unknown := set(chosen).difference(parts):
        parser.error(f"there is no part {', '.join(unknown)}")
    slices = sorted({*given.slices, *([1000] if given.full else [])})
    title = heading("Each in a process of its own.", given.threads, "torch", "medqa")

    def tables() -> Iterator[Table]:
        if "series" in chosen:
            yield of_series(slices, given.threads)
        if "network" in chosen:
            yield of_network(given.backbones, given.threads)
        if "mammogram" in chosen:
            yield of_mammogram(given.threads)

    publish("memory", title, list(tables()), given.write)
    return None


if __name__ == "__main__":
    main()
