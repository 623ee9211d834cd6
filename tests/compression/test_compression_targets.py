"""Targets of compression: a ratio, a PSNR, a largest error; met, and not by more than needed."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio

from medqa.compression import codecs
from medqa.compression.codecs import (
    CODECS,
    Codec,
    Samples,
    at_max_error,
    at_psnr,
    at_ratio,
    at_ratios,
    encode,
    ratio_stored,
    span,
)
from medqa.compression.search import crossing
from medqa.errors import PixelError

HEAD = "ct/head_series_GE/06.dcm"
ABDOMEN = "ct/totalsegmentator_dicom/CT.1.3.12.2.1107.5.1.4.60064.30000022120808113428000016580"
BRAIN = "mr/siemens/MR.1.3.12.2.1107.5.2.32.35131.2014031012525641770887330"
CHEST = "xr/cr_mono1/RG3_J2KR.dcm"
ULTRASOUND = "us/GH364.dcm"
RATIOS = (4, 8, 10, 15)
CASES = [
    pytest.param(name, codec, id=f"{name.split('/')[0]}-{codec.name}")
    for name in (HEAD, ABDOMEN, BRAIN, ULTRASOUND)
    for codec in CODECS.values()
    if codec.name != "jpeg" or name != HEAD
]


def real(path: Path) -> tuple[NDArray[Any], Samples]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sloppy headers
        ds = pydicom.dcmread(path)
        frame = ds.pixel_array
    top, left = ((size - 384) // 2 for size in frame.shape)
    middle = np.ascontiguousarray(frame[top : top + 384, left : left + 384])
    return middle, Samples(ds.BitsStored, ds.BitsAllocated, bool(ds.PixelRepresentation))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Every setting that a stream was made with."""
    made: list[float | None] = []
    own = codecs._stream

    def counted(
        codec: Codec, frame: NDArray[Any], samples: Samples, setting: float | None
    ) -> bytes:
        made.append(setting)
        return own(codec, frame, samples, setting)

    monkeypatch.setattr(codecs, "_stream", counted)
    return made


@pytest.mark.parametrize(("name", "codec"), CASES)
def test_ratios_are_met_and_not_by_more_than_needed(
    shared_data: Path, name: str, codec: Codec, streams: list[float | None]
) -> None:
    frame, samples = real(shared_data / name)
    before = frame.copy()
    found = list(at_ratios(codec, frame, samples, RATIOS))
    assert len(streams) <= 8 * len(RATIOS)
    assert len(set(streams)) == len(streams)  # each only once
    lossless = len(encode(codec, frame, samples, None).data)
    for ratio, one in zip(RATIOS, found, strict=True):
        reached = ratio_stored(frame.shape, samples, len(one.data))
        assert reached >= ratio
        if one.setting is None:
            assert len(one.data) == lossless
            continue
        assert ratio_stored(frame.shape, samples, lossless) < ratio
        np.testing.assert_array_equal(encode(codec, frame, samples, one.setting).pixels, one.pixels)
        if one.setting == codec.gentlest:
            continue
        if codec.integer:  # the next gentler one does not reach it
            gentler = one.setting + (1 if codec.name == "jpeg" else -1)
            near = encode(codec, frame, samples, gentler)
            assert ratio_stored(frame.shape, samples, len(near.data)) < ratio
        else:
            # OpenJPEG's rate control has steps.
            assert reached < (1.05 if codec.name == "j2k" else 1.02) * ratio
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_few_streams_for_one_ratio(
    shared_data: Path, codec: Codec, streams: list[float | None]
) -> None:
    frame, samples = real(shared_data / ABDOMEN)
    at_ratio(codec, frame, samples, 8)
    assert len(streams) <= (2 if codec.name == "j2k" else 12)


def test_one_ratio_is_the_first_of_several(shared_data: Path) -> None:
    frame, samples = real(shared_data / ABDOMEN)
    for codec in CODECS.values():
        one = at_ratio(codec, frame, samples, 10)
        assert one.data == next(at_ratios(codec, frame, samples, (10, 20))).data


def test_ratios_in_any_order(shared_data: Path) -> None:
    frame, samples = real(shared_data / BRAIN)
    codec = CODECS["jpegls"]
    six, twelve = at_ratios(codec, frame, samples, (6, 12))
    again = list(at_ratios(codec, frame, samples, (12, 6)))
    assert [one.data for one in again] == [twelve.data, six.data]


def test_small_frames_have_their_ratio() -> None:
    """OpenJPEG's rate control stays short on them, by up to 4 %."""
    rng = np.random.default_rng(0)
    samples = Samples(12, 16, False)
    for side in (64, 96):
        frame = (rng.normal(2000, 60, (side, side)).clip(0, 4095)).astype(np.uint16)
        for ratio in (3, 5, 8, 12):
            one = at_ratio(CODECS["j2k"], frame, samples, ratio)
            assert ratio <= ratio_stored(frame.shape, samples, len(one.data)) < 1.3 * ratio


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_nothing_is_lost_for_nothing(codec: Codec) -> None:
    """A flat frame needs no loss to be small; noise cannot be made as small as that."""
    samples = Samples(12, 16, False)
    flat = np.full((64, 64), 1000, np.uint16)
    noise = np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16)
    for one in (
        at_ratio(codec, flat, samples, 10),
        at_max_error(codec, noise, samples, 0.1),
        at_psnr(codec, noise, samples, 500.0),
    ):
        assert one.setting is None
    with pytest.raises(PixelError, match=r"at most, not 100000:1; ask for a lower ratio"):
        at_ratio(codec, noise, samples, 100000)


@pytest.mark.parametrize("decibels", [50.0, 65.0])
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_psnr_is_kept(shared_data: Path, codec: Codec, decibels: float) -> None:
    """By scikit-image's figure; and a little more strength loses it."""
    frame, samples = real(shared_data / ABDOMEN)
    one = at_psnr(codec, frame, samples, decibels)
    found = peak_signal_noise_ratio(frame, one.pixels, data_range=4095)
    assert found >= decibels
    assert one.setting is not None
    if codec.integer:
        stronger = one.setting + (-1 if codec.name == "jpeg" else 1)
        near = encode(codec, frame, samples, stronger).pixels
        assert peak_signal_noise_ratio(frame, near, data_range=4095) < decibels
    else:
        assert found < decibels + 0.3


@pytest.mark.parametrize("error", [4, 25.5])
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_largest_error_is_kept(shared_data: Path, codec: Codec, error: float) -> None:
    frame, samples = real(shared_data / BRAIN)
    one = at_max_error(codec, frame, samples, error)
    found = np.abs(frame.astype(int) - one.pixels).max()
    assert found <= error
    if codec.name == "jpegls":
        assert one.setting == math.floor(error)
    assert len(one.data) <= len(encode(codec, frame, samples, None).data)


def test_largest_error_beyond_the_span_of_jpegls() -> None:
    samples = Samples(8, 8, False)
    frame = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    assert at_max_error(CODECS["jpegls"], frame, samples, 1000).setting == 127


@pytest.mark.parametrize("name", [CHEST, ULTRASOUND])
def test_stronger_targets_give_smaller_streams(shared_data: Path, name: str) -> None:
    frame, samples = real(shared_data / name)
    for codec in (CODECS["j2k"], CODECS["htj2k"], CODECS["jpegls"]):
        sizes = [len(one.data) for one in at_ratios(codec, frame, samples, (5, 10, 20, 30))]
        assert sizes == sorted(sizes, reverse=True)


# The search, on curves whose crossing is known ----------------------------------------------------


@pytest.mark.parametrize("power", [0.3, 1.0, 3.0])
def test_crossing_of_a_power(power: float) -> None:
    """Where x ** power is 10; within the room that is left above it."""
    tries: dict[float, float] = {}
    target = math.log(10)
    before, after = crossing(
        lambda one: power * math.log(one), tries, (1e-3, 1e4), target, target + 0.005, False
    )
    assert before is not None
    assert after is not None
    assert target <= tries[after] <= target + 0.01
    assert len(tries) <= 6


@pytest.mark.parametrize("ends", [(1, 255), (100, 1)])
@pytest.mark.parametrize("step", [2, 17, 60, 99])
def test_crossing_of_whole_numbers_is_exact(ends: tuple[int, int], step: int) -> None:
    forward = 1 if ends[1] > ends[0] else -1
    tries: dict[float, float] = {}
    before, after = crossing(lambda one: forward * one**3, tries, ends, forward * step**3, 0, True)
    assert after == step
    assert before == step - forward
    assert len(tries) <= 20


def test_crossing_beyond_an_end() -> None:
    """Nothing below the gentlest, nothing that reaches it above the strongest."""
    assert crossing(lambda one: one, {}, (1, 9), 0.5, 0.5, True) == (None, 1)
    assert crossing(lambda one: one, {}, (1, 9), 10, 10, True) == (9, None)
    assert crossing(lambda one: one, {}, (1.0, 9.0), 0.5, 0.5, False) == (None, 1.0)


def test_crossing_of_a_curve_that_jumps() -> None:
    """Both sides are what they are said to be, however the curve wanders."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        noise = rng.normal(0, 0.3, 1000)

        def measure(one: float, noise: NDArray[np.float64] = noise) -> float:
            return math.log(one) + noise[int(one * 10) % 1000]

        tries: dict[float, float] = {}
        before, after = crossing(measure, tries, (0.1, 90.0), 1.0, 1.01, False)
        assert before is None or tries[before] < 1.0
        assert after is None or tries[after] >= 1.0
        assert len(tries) <= 30


def test_spans_are_what_is_searched(streams: list[float | None]) -> None:
    samples = Samples(8, 8, False)
    frame = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    for codec in CODECS.values():
        streams.clear()
        at_psnr(codec, frame, samples, 20.0)
        low, high = sorted(span(codec, samples))
        assert all(low <= one <= high for one in streams if one is not None)
