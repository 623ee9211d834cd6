"""Trial of `medqa study denoising` and `super-resolution` on volumes of real CT and MR.

``python tests/benchmarks/enhancement_trial.py [denoising] [super-resolution] [--write PAGE]
[--keep FOLDER]``; about a quarter of an hour on one core. A CT and an MR series of ``shared/data``
beside the project are made noisy, or coarse; filters and a small MONAI network, which is trained on
the spot on *other* series, restore them; the command judges what they made. BM3D takes part where
the package ``bm3d`` is installed; its licence allows no commercial use.

Beside the methods stand controls whose answer is known: the truth, a lesion that was put into an
output, and one that was taken out of the input before it was processed.
"""

from __future__ import annotations

import argparse
import copy
import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import PIL.Image
import pydicom
import torch
from machine import heading, installed
from monai.networks.nets import UNet
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian
from scipy import ndimage
from skimage.restoration import denoise_nl_means, denoise_wavelet
from tables import Table, publish

from medqa.quality.areas import body_of
from medqa.reader import read
from medqa.studies.enhancement.resolution import lowered, raised
from medqa.studies.enhancement.support import support

Array = NDArray[np.float64]
Stack = NDArray[np.float64]  # (slices, rows, columns)
Method = Callable[[Array], Array]
Task = Literal["denoising", "super-resolution"]
#: By image: its files, the input first, and the series that each method made of it.
Studied = dict[str, tuple[Mapping[str, Path], Mapping[str, Path]]]

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SLICES = 8
CORRELATED = 0.6  # pixels; sigma of what smooths the added noise
CONTRAST = 2.0  # of a lesion, in units of the noise
SIGMA = (1.0, 3.0, 3.0)  # of a lesion: slices, rows, columns
PATCH, BATCH, STEPS = 96, 8, 400
NEAR = 7.0  # pixels from a lesion's middle to a finding that is of it
LEVEL = 0.05  # of a study, which shares it between its cases and slices

DENOISING = {
    "distance": ("distance", 3),
    "edge_fidelity": ("edges kept", 3),
    "texture_fidelity": ("texture kept", 3),
    "psnr_db": ("PSNR, dB", 1),
    "noise_reduction": ("noise taken", 2),
    "excess": ("of that, structure", 3),
    "through_plane": ("through plane", 2),
    "flicker": ("flicker", 3),
}
SUPER = {
    "distance": ("distance", 3),
    "edge_fidelity": ("edges kept", 3),
    "texture_fidelity": ("texture kept", 3),
    "psnr_db": ("PSNR, dB", 1),
    "inconsistency_in_noise": ("departs from input, in noise", 2),
    "sharpness_gain": ("sharpness over cubic", 2),
    "new_detail": ("new detail", 3),
}


MEASURES: Mapping[Task, Mapping[str, tuple[str, int]]] = {
    "denoising": DENOISING,
    "super-resolution": SUPER,
}
LESION = {("0", "0"): "not seen before", ("1", "0"): "lost", ("1", "1"): "kept"}


@dataclass(frozen=True)
class Volume:
    """A series, what its noise is made to be, and other series to train on."""

    name: str
    headers: Sequence[pydicom.Dataset]
    pixels: Stack
    affine: Array
    noise: float
    scale: float
    training: Sequence[Array] = ()

    @property
    def modality(self) -> str:
        return str(self.headers[0].Modality)

    @property
    def body(self) -> NDArray[np.bool_]:
        middle = self.pixels[len(self.pixels) // 2]
        return body_of(middle, self.modality, np.ones(middle.shape, bool))


def volumes() -> tuple[Volume, ...]:
    """Give the series of the trial, each with slices of other series to train on."""
    ct = [
        np.asarray(one, np.float64)
        for pattern in ("head_series_GE/*", "liver_3slice_with_SEG/0*", "ct_with_RTSTRUCT/ct_*")
        for path in sorted((DATA / "ct").glob(pattern))
        for one in read(path).pixels
    ]
    knee = volume("MR", "mr/uih_t1", None)
    mr = []
    for name in ("FLAIR", "t1_crop", "strokez"):
        image = read(DATA / f"mr/nifti/{name}.nii.gz").pixels
        for index in np.linspace(0.3, 0.7, 10) * image.shape[0]:
            one = np.asarray(image[int(index)], np.float64)
            one = one[: one.shape[0] // 2 * 2, : one.shape[1] // 2 * 2]
            mr.append(one * knee.scale / np.percentile(one, 99.9))
    return (
        replace(volume("CT", "ct/totalsegmentator_dicom", 25.0), training=ct),
        replace(knee, training=mr),
    )


def volume(name: str, folder: str, noise: float | None) -> Volume:
    """Read the middle slices of a series; without a noise it is 4 % of the brightest."""
    whole = read(DATA / folder)
    along = whole.affine[:3, 0]
    headers = sorted(
        (pydicom.dcmread(path) for path in (DATA / folder).iterdir() if path.suffix != ".gz"),
        # The affine leads to right, anterior, superior; DICOM to left, posterior, superior.
        key=lambda ds: float(along @ (np.array(ds.ImagePositionPatient, float) * (-1, -1, 1))),
    )
    first = (len(headers) - SLICES) // 2
    pixels = np.asarray(whole.pixels[first : first + SLICES], np.float64)
    shift = np.eye(4)
    shift[0, 3] = first
    brightest = float(np.percentile(pixels, 99.9))
    return Volume(
        name,
        headers[first : first + SLICES],
        pixels,
        whole.affine @ shift,
        noise or 0.04 * brightest,
        400.0 if noise else brightest,
    )


def noisy(image: Array, sigma: float, rng: np.random.Generator) -> Array:
    """Add noise that is correlated over neighbouring pixels; no value falls below the smallest."""
    white = ndimage.gaussian_filter(rng.normal(size=image.shape), CORRELATED)
    return np.maximum(image + sigma * white / white.std(), image.min())


def places(one: Volume) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the flattest place deep in the body, and the flattest one far from it."""
    middle = one.pixels[SLICES // 2]
    steep = ndimage.gaussian_filter(ndimage.gaussian_gradient_magnitude(middle, 2), 6)
    steep[~ndimage.binary_erosion(one.body, iterations=20)] = np.inf
    found = []
    rows, columns = np.indices(middle.shape)
    for _ in range(2):
        row, column = map(int, np.unravel_index(np.argmin(steep), steep.shape))
        found.append((row, column))
        steep[np.hypot(rows - row, columns - column) < 40] = np.inf
    return found[0], found[1]


def lesion(shape: tuple[int, ...], place: tuple[int, int]) -> Stack:
    """Draw a Gaussian of height 1, through about three slices."""
    axes = np.indices(shape).astype(float)
    centre = (shape[0] // 2, *place)
    away = sum(((axis - c) / s) ** 2 for axis, c, s in zip(axes, centre, SIGMA, strict=True))
    found: Stack = np.exp(-away / 2)
    return found


def trained(inputs: Sequence[Array], targets: Sequence[Array], scale: float, step: float) -> Method:
    """Train a U-Net to give what is missing, in units of `step`; seed and order are fixed."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = UNet(2, 1, 1, channels=(24, 48, 96), strides=(2, 2), num_res_units=1, norm="batch")
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        pairs = []
        for index in rng.integers(len(inputs), size=BATCH):
            row, column = (int(rng.integers(n - PATCH + 1)) for n in inputs[index].shape)
            cut = np.s_[row : row + PATCH, column : column + PATCH]
            pairs.append((inputs[index][cut], targets[index][cut]))
        given, wanted = (
            torch.from_numpy(np.stack(part)).float()[:, None] for part in zip(*pairs, strict=True)
        )
        loss = (network(given / scale) - (wanted - given) / step).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()

    @torch.inference_mode()
    def method(image: Array) -> Array:
        # Sides that the strides divide.
        wide = [(0, -n % 4) for n in image.shape]
        given = torch.from_numpy(np.pad(image, wide, "edge") / scale).float()[None, None]
        missing = network(given)[0, 0, : image.shape[0], : image.shape[1]].numpy()
        return image + step * missing.astype(np.float64)

    return method


def denoisers(one: Volume) -> dict[str, Method]:
    """Give the methods, at the strength that the noise asks for."""
    rng = np.random.default_rng(5)
    sigma = one.noise
    network = trained(
        [noisy(image, sigma, rng) for image in one.training], one.training, one.scale, sigma
    )
    found: dict[str, Method] = {
        "non-local means": means(one),
        "wavelet": lambda x: denoise_wavelet(x, sigma=sigma, wavelet="db2", rescale_sigma=False),
        "network": network,
        "Gaussian, 1.5 pixels": lambda x: ndimage.gaussian_filter(x, 1.5),
    }
    if installed("bm3d"):
        import bm3d

        found["BM3D"] = lambda x: np.asarray(bm3d.bm3d(x, sigma), np.float64)
    return found


def means(one: Volume) -> Method:
    return lambda x: denoise_nl_means(
        x, patch_size=5, patch_distance=6, h=0.8 * one.noise, sigma=one.noise
    )


def enlargers(one: Volume) -> dict[str, Method]:
    coarse = [
        raised(lowered(image, (image.shape[0] // 2, image.shape[1] // 2)), image.shape)
        for image in one.training
    ]
    network = trained(coarse, one.training, one.scale, one.noise)

    def resized(kind: PIL.Image.Resampling) -> Method:
        def method(x: Array) -> Array:
            picture = PIL.Image.fromarray(x.astype(np.float32))
            return np.asarray(picture.resize((2 * x.shape[1], 2 * x.shape[0]), kind), np.float64)

        return method

    return {
        "bicubic": resized(PIL.Image.Resampling.BICUBIC),
        "Lanczos": resized(PIL.Image.Resampling.LANCZOS),
        "network": lambda x: network(raised(x, (2 * x.shape[0], 2 * x.shape[1]))),
    }


def each(method: Method, stack: Stack) -> Stack:
    return np.stack([method(one) for one in stack])


def write_series(one: Volume, stack: Stack, folder: Path) -> Path:
    """Write a stack under the headers of the series, whatever its rows and columns."""
    folder.mkdir(parents=True)
    factor = one.pixels.shape[1] / stack.shape[1]
    for number, (header, values) in enumerate(zip(one.headers, stack, strict=True)):
        made = copy.deepcopy(header)
        for keyword in ("PixelPaddingValue", "SmallestImagePixelValue", "LargestImagePixelValue"):
            if keyword in made:
                delattr(made, keyword)
        made.RescaleSlope, made.RescaleIntercept = 1, 0
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
        made.Rows, made.Columns = values.shape
        spacing = np.array(made.PixelSpacing, float)
        made.PixelSpacing = list(spacing * factor)
        across, down = np.reshape(np.array(made.ImageOrientationPatient, float), (2, 3))
        # The first pixel is larger, its corner stays.
        middle = (across * spacing[1] + down * spacing[0]) * (factor - 1) / 2
        made.ImagePositionPatient = list(np.array(made.ImagePositionPatient, float) + middle)
        made.PixelData = np.rint(values).astype(np.int16).tobytes()
        made["PixelData"].VR = "OW"
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.save_as(folder / f"{number:02}.dcm", enforce_file_format=True)
    return folder


def write_mask(one: Volume, place: tuple[int, int], folder: Path) -> Path:
    inside = (lesion(one.pixels.shape, place) > 0.5).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(inside, one.affine), folder / "mask.nii.gz")
    return folder / "mask.nii.gz"


def written(one: Volume, stacks: Mapping[str, Stack], folder: Path) -> dict[str, Path]:
    return {
        name: write_series(one, stack, folder / name.replace(" ", "_"))
        for name, stack in stacks.items()
    }


def applied(one: Volume, methods: Mapping[str, Method], before: Stack) -> dict[str, Stack]:
    """Process every slice by every method, and say what it takes."""
    made = {}
    for name, method in methods.items():
        started = time.process_time()
        made[name] = each(method, before)
        seconds = (time.process_time() - started) / len(before)
        sys.stderr.write(f"{one.name}, {name}: {seconds:.2f} s a slice\n")
    return made


def study(task: Task, folder: Path, cases: Studied) -> list[dict[str, str]]:
    """Run the command on a table of the cases; return the rows of its results."""
    (files, _), *_ = cases.values()
    before, *others = files
    after = {"noisy": "denoised", "low": "super"}[before]
    folder.mkdir(parents=True)
    with (folder / "cases.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("image", "method", before, after, *others))
        for image, (paths, outputs) in cases.items():
            for method, path in outputs.items():
                table.writerow(
                    (image, method, paths[before], path, *(paths[name] for name in others))
                )
    command = [sys.executable, "-m", "medqa", "study", task, "--table", folder / "cases.csv"]
    done = subprocess.run(  # noqa: S603
        [*command, "--out", folder / "study", "--no-record"], check=False
    )
    sys.stderr.write(f"exit code {done.returncode}\n")
    with (folder / "study" / "results.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def answered(
    one: Volume,
    before: Stack,
    stacks: Mapping[str, Stack],
    first: tuple[int, int],
    second: tuple[int, int],
) -> list[tuple[str, str, str]]:
    """Say of each output what the study's check names where the lesion is, or was invented."""
    found = []
    for name, stack in stacks.items():
        row, column = second if "invented" in name else first
        index = SLICES // 2
        low, high = np.rint(before[index]), np.rint(stack[index])
        body = lowered(one.body.astype(float), low.shape) > 0.5
        factor = high.shape[0] / low.shape[0]
        # Two volumes share the level of a study, and their slices share theirs.
        called = support(low, lowered(high, low.shape), body, LEVEL / 2 / SLICES).findings
        scale = one.pixels.shape[1] / low.shape[0]
        near = [
            f"{one.kind} (z {one.z:.0f})"
            for one in called
            if np.hypot(one.row - row / scale, one.column - column / scale) < NEAR / factor
        ]
        found.append((one.name, name, ", ".join(near) or "nothing"))
    return found


def finished(
    task: Task,
    folder: Path,
    methods: Studied,
    controls: Studied,
    answers: Sequence[tuple[str, str, str]],
) -> list[Table]:
    title = task.capitalize()
    return [
        *result_tables(title, MEASURES[task], study(task, folder / "methods", methods)),
        *result_tables(
            f"{title}, controls", MEASURES[task], study(task, folder / "controls", controls)
        ),
        Table(
            f"{title}: what the check names at the place of the lesion, in the middle slice",
            ("volume", "output", "named"),
            answers,
        ),
    ]


def result_tables(
    title: str, measures: Mapping[str, tuple[str, int]], rows: Sequence[Mapping[str, str]]
) -> list[Table]:
    """One table for each volume, the least distance first."""
    titles = (words for words, _ in measures.values())
    head = ("output", *titles, "added", "removed", "lesion", "verdict")
    tables = []
    for image in dict.fromkeys(row["image"] for row in rows):
        own = [row for row in rows if row["image"] == image]
        cells = [
            (
                row["method"],
                *(f"{float(row[k]):.{n}f}" if row[k] else "" for k, (_, n) in measures.items()),
                *(f"{float(row[k]):.0f}" if row[k] else "" for k in ("added", "removed")),
                LESION[row["lesions"], row["lesions_preserved"]],
                row["verdict"].replace("_", " "),
            )
            for row in sorted(own, key=lambda row: float(row["distance"] or "inf"))
        ]
        tables.append(Table(f"{title}, {image}", head, cells))
    return tables


def denoising(folder: Path) -> list[Table]:
    methods: Studied = {}
    controls: Studied = {}
    answers = []
    for one in volumes():
        here = folder / one.modality
        first, second = places(one)
        height = CONTRAST * one.noise
        there = height * lesion(one.pixels.shape, first)
        invented = height * lesion(one.pixels.shape, second)
        clean = one.pixels + there
        rng = np.random.default_rng(11)
        before = each(lambda x: noisy(x, one.noise, rng), clean)  # noqa: B023
        made = applied(one, denoisers(one), before)
        beside = {
            "the truth": clean,
            "non-local means, lesion erased": each(means(one), before - there),
            "non-local means, lesion invented": made["non-local means"] + invented,
            "network, lesion invented": made["network"] + invented,
        }
        answers += answered(one, before, {**made, **beside}, first, second)
        paths = {
            "noisy": write_series(one, before, here / "noisy"),
            "clean": write_series(one, clean, here / "clean"),
            "mask": write_mask(one, first, here),
        }
        for kind, stacks in ((methods, made), (controls, beside)):
            kind[one.name] = paths, written(one, stacks, here)
    return finished("denoising", folder, methods, controls, answers)


def super_resolution(folder: Path) -> list[Table]:
    methods: Studied = {}
    controls: Studied = {}
    answers = []
    for one in volumes():
        here = folder / one.modality
        first, second = places(one)
        height = CONTRAST * one.noise
        high = one.pixels + height * lesion(one.pixels.shape, first)
        half = (high.shape[1] // 2, high.shape[2] // 2)
        low, bare = (each(lambda x: lowered(x, half), x) for x in (high, one.pixels))  # noqa: B023
        ways = enlargers(one)
        made = applied(one, ways, low)
        beside = {
            "the truth": high,
            "network, lesion erased": each(ways["network"], bare),
            "network, lesion invented": made["network"] + height * lesion(one.pixels.shape, second),
        }
        answers += answered(one, low, {**made, **beside}, first, second)
        paths = {
            "low": write_series(one, low, here / "low"),
            "high": write_series(one, high, here / "high"),
            "mask": write_mask(one, first, here),
        }
        for kind, stacks in ((methods, made), (controls, beside)):
            kind[one.name] = paths, written(one, stacks, here)
    return finished("super-resolution", folder, methods, controls, answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", help="denoising, super-resolution; by default both")
    parser.add_argument("--write", type=Path, help="page that holds the markers")
    parser.add_argument("--keep", type=Path, help="leave images and pages of the studies here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"denoising": denoising, "super-resolution": super_resolution}
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        tables = [table for name in given.tasks or parts for table in parts[name](folder / name)]
    what = heading("Measured on", 1, "monai", "torch", "scikit-image", "bm3d")
    publish("enhancement_trial", what, tables, given.write)


if __name__ == "__main__":
    main()
