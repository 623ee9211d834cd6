"""Which distances published ratios correspond to: reader limits replayed on real images.

Guidelines and readers speak of ratios, thresholds of distances. `replay` compresses real images at
the published ratios and measures what that costs each of them under the displays of a profile.
Images of one source are alike, so a source (a device) counts once however many images it gave.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from medqa.catalogue import look
from medqa.compression.codecs import Codec, Samples, at_ratios, check, ratio_stored
from medqa.dicom.files import check as check_image
from medqa.dicom.files import load, reading
from medqa.dicom.pixels import COLOURS, frame_count, frames, grayscale, padding_range
from medqa.errors import PixelError, ReadError, UsageError
from medqa.image import Image
from medqa.lpips import SMALLEST_SIDE, GrayLPIPS
from medqa.reader import dicom_files, read
from medqa.studies.detectability_study import spread_over
from medqa.thresholds import Profile, check_modality
from medqa.transforms import Display, check_pixels, displays, pixels_of

__all__ = [
    "LEAST_SOURCES",
    "Original",
    "Replayed",
    "Spread",
    "body_part_of",
    "check_sources",
    "counted_bits",
    "of_sources",
    "originals",
    "replay",
    "spread",
]

#: Sources below which no limit is derived: of two, the median says no more than their mean.
LEAST_SOURCES = 3

# The ratios of guidelines and reader studies are of images that were stored in 12 bits.
_USUAL_BITS = 12
_ALWAYS_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)


@dataclass(frozen=True, eq=False)
class Original:
    """An image to compress.

    Parameters
    ----------
    paths
        Its files, by instance number.
    sha256
        Of each file.
    places
        File and frame, from 0, of each slice, in the same order.
    modality, body_part
        DICOM Modality and Body Part Examined; None where the header does not say.
    source
        What tells its source from others: its device, or its series where no device is named.
    device
        Manufacturer and model; "" where the header names none.
    """

    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    places: tuple[tuple[Path, int], ...]
    modality: str | None
    body_part: str | None
    source: tuple[str, ...]
    device: str


@dataclass(frozen=True)
class Replayed:
    """What one ratio did to one slice.

    Parameters
    ----------
    source, image, slice
        Number of the source and of the image, from 1; index of the slice in
        `Original.places`.
    ratio
        The published ratio.
    measured
        The ratio that was reached, by the same bits.
    bits
        Bits of a value that both ratios count: see `counted_bits`.
    distances
        Name of each display, and the distance under it.
    """

    source: int
    image: int
    slice: int
    ratio: float
    measured: float
    bits: int
    distances: tuple[tuple[str, float], ...]

    @property
    def worst(self) -> float:
        """Largest distance of its displays."""
        return max(value for _, value in self.distances)


@dataclass(frozen=True)
class Spread:
    """How values scatter; quartiles interpolate linearly between the two nearest values."""

    count: int
    median: float
    lower_quartile: float
    upper_quartile: float
    least: float
    most: float


def originals(paths: Iterable[Path]) -> tuple[Original, ...]:
    """Read images that were never compressed lossily.

    Parameters
    ----------
    paths
        DICOM files, each an image, and folders, whose images are found as `medqa.catalogue` does.

    Raises
    ------
    ReadError
        One is damaged, no DICOM, in colour, of floating point values, compressed lossily by its
        header, or names neither device nor series.
    """
    found = []
    for path in paths:
        if not path.is_dir():
            if not dicom_files(path):
                raise ReadError(path, "is no DICOM, so its bits stored are not known", "give DICOM")
            found.append(_original((path,)))
            continue
        catalogue = look(path)
        if catalogue.refused:
            raise catalogue.refused[0]
        entries = [one for one in catalogue.entries if one.kind == "dicom" and not one.localiser]
        if not entries:
            raise ReadError(path, "holds no DICOM image", "give the folder of the images")
        found += [_original(one.paths) for one in entries]
    return tuple(found)


def _original(paths: Sequence[Path]) -> Original:
    headers, digests = [], []
    for path in paths:
        with reading(path):
            header, digest = load(path)
            check_image(header, path)
        _check_original(header, path)
        headers.append(header)
        digests.append(digest)
    first = headers[0]

    def text(keyword: str) -> str:
        return str(first.get(keyword) or "").strip()

    named = (text("Manufacturer"), text("ManufacturerModelName"))
    known = all(named)
    source = (*named, text("DeviceSerialNumber")) if known else (text("SeriesInstanceUID"),)
    if not any(source):
        reason = "names neither its device nor its series"
        raise ReadError(paths[0], reason, "complete its header, or leave it")
    return Original(
        paths=tuple(paths),
        sha256=tuple(digests),
        places=tuple(
            (path, frame)
            for path, header in zip(paths, headers, strict=True)
            for frame in range(frame_count(header))
        ),
        modality=text("Modality") or None,
        body_part=text("BodyPartExamined").upper() or None,
        source=tuple(one.upper() for one in source),
        device=" ".join(named) if known else "",
    )


def _check_original(header: Dataset, path: Path) -> None:
    lossy = header.file_meta.TransferSyntaxUID in _ALWAYS_LOSSY
    if lossy or str(header.get("LossyImageCompression")) == "01":
        mend = "give originals: what was lost before would not be counted"
        raise ReadError(path, "has been compressed lossily", mend)
    if header.PhotometricInterpretation in COLOURS:
        raise ReadError(path, "is in colour", "give images of one channel")
    if header.get("BitsStored") is None:
        raise ReadError(path, "holds floating point values", "give images of integers")


def body_part_of(images: Sequence[Original]) -> str | None:
    """Return the one Body Part Examined of all images; None where one states none.

    Raises
    ------
    UsageError
        They show different parts, for which other ratios may hold.
    """
    parts = {one.body_part for one in images}
    if None in parts:
        return None
    if len(parts) > 1:
        raise UsageError(
            "images",
            f"show {' and '.join(sorted(map(str, parts)))}",
            "anchor each body part by itself, or name one for all with --body-part",
        )
    return parts.pop()


def check_sources(images: Sequence[Original]) -> None:
    """Refuse too few sources.

    Raises
    ------
    UsageError
        Fewer than `LEAST_SOURCES`.
    """
    count = len({one.source for one in images})
    if count < LEAST_SOURCES:
        raise UsageError(
            "images",
            f"come from {count} source{'s' * (count != 1)}, and {LEAST_SOURCES} are the fewest",
            "add images of other devices: what one device's images bear says little of others",
        )


def replay(
    network: GrayLPIPS,
    profile: Profile,
    images: Sequence[Original],
    codec: Codec,
    ratios: Sequence[float],
    *,
    slices: int = 4,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> tuple[Replayed, ...]:
    """Compress slices of every image at every ratio, and measure the distance of each.

    The stored values are compressed and decoded, and both versions go through the modality
    transform of the reader and the displays of the profile, as `medqa.assess` would show them.

    Parameters
    ----------
    profile
        Whose displays are looked at.
    slices
        At most so many of each image, evenly spread and without its ends.

    Raises
    ------
    ProfileError
        The profile is for other modalities.
    MismatchError
        Its windows are in another unit than an image.
    PixelError
        An image has no contrast, or values that the codec cannot hold.
    """
    for one in images:
        check_modality(profile, one.modality)
    numbers = {source: i for i, source in enumerate(dict.fromkeys(one.source for one in images), 1)}
    found: list[Replayed] = []
    for number, one in enumerate(images, start=1):
        progress(number - 1, len(images))
        image = read(one.paths)
        check_pixels(image, SMALLEST_SIDE)
        shown = displays(profile, image)
        for index in spread_over(len(one.places), slices):
            measure = partial(_measured, network, shown, image, one.places[index])
            found += [
                Replayed(numbers[one.source], number, index, *row) for row in measure(codec, ratios)
            ]
    progress(len(images), len(images))
    return tuple(found)


@torch.inference_mode()
def _measured(
    network: GrayLPIPS,
    shown: Sequence[Display],
    image: Image,
    place: tuple[Path, int],
    codec: Codec,
    ratios: Sequence[float],
) -> list[tuple[float, float, int, tuple[tuple[str, float], ...]]]:
    """Ratio, reached ratio, bits and distances, for each ratio; the reference's features once."""
    path, frame = place
    with reading(path):
        header = load(path)[0]
        stored = next(frames(header, path, [frame]))
        samples = Samples(
            int(header.BitsStored), int(header.BitsAllocated), bool(header.PixelRepresentation)
        )
        values = grayscale(stored, header, frame)
        padding = padding_range(header, frame)
    check(codec, samples, path)
    reference = replace(
        image,
        pixels=values[None],
        volumes=1,
        padding=None if padding is None else np.array([padding]),
    )
    outside = reference.is_padding(values[None], slice(0, 1))
    bits = counted_bits(stored, samples, None if outside is None else outside[0])
    wanted = [ratio * samples.bits_stored / bits for ratio in ratios]
    reached, candidates = [], []
    try:
        for encoded in at_ratios(codec, stored, samples, wanted):
            by_stored = ratio_stored(stored.shape, samples, len(encoded.data))
            reached.append(by_stored * bits / samples.bits_stored)
            decoded = grayscale(encoded.pixels, header, frame)
            candidates.append(replace(reference, pixels=decoded[None]))
    except PixelError as error:  # which names no file
        raise PixelError(path, error.reason, error.mend) from error
    distances = []
    for display in shown:
        pairs = [display(*pixels_of(reference, one, slice(0, 1))) for one in candidates]
        features = network.features(pairs[0][0])
        together = torch.cat([other for _, other in pairs])
        distances.append(network.differences(features, together).distance().tolist())
    return [
        (
            float(ratio),
            reached[i],
            bits,
            tuple((way.name, of[i]) for way, of in zip(shown, distances, strict=True)),
        )
        for i, ratio in enumerate(ratios)
    ]


def counted_bits(stored: NDArray[Any], samples: Samples, padding: NDArray[np.bool_] | None) -> int:
    """Bits of a value that a published ratio is counted by.

    Those that are declared as stored, up to 12. Where more are declared, 12 or as many as the
    span of the values needs that are no padding: a header that declares 16 bits for the 12 that a
    CT needs makes 6:1 of what guidelines call 8:1.

    Parameters
    ----------
    stored
        (rows, columns) stored values.
    padding
        (rows, columns), where they are no image; None where they all are.
    """
    inside = stored if padding is None or padding.all() else stored[~padding]
    needed = (int(inside.max()) - int(inside.min())).bit_length()
    return min(samples.bits_stored, max(_USUAL_BITS, needed))


def of_sources(
    replayed: Iterable[Replayed], ratio: float, window: str | None = None
) -> tuple[float, ...]:
    """Distance of each source at a ratio: of its images the median, of their slices the median.

    Parameters
    ----------
    window
        Name of a display; None takes the worst one of each slice.
    """
    slices: dict[int, dict[int, list[float]]] = {}
    for one in replayed:
        if one.ratio == ratio:
            value = one.worst if window is None else dict(one.distances)[window]
            slices.setdefault(one.source, {}).setdefault(one.image, []).append(value)
    return tuple(
        statistics.median(statistics.median(values) for values in of_image.values())
        for of_image in slices.values()
    )


def spread(values: Sequence[float]) -> Spread:
    """Return how values scatter; there is at least one."""
    least, low, middle, high, most = np.percentile(values, [0, 25, 50, 75, 100])
    return Spread(len(values), float(middle), float(low), float(high), float(least), float(most))
