"""The strongest good setting, against an exhaustive search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from medqa.compression.adaptive import Stream, compressed, settings, strongest
from medqa.compression.codecs import CODECS, Samples, encode, span

TWELVE = Samples(bits_stored=12, bits_allocated=16, signed=False)


@pytest.fixture(scope="module")
def frame(shared_data: Path) -> np.ndarray:
    file = shared_data / "mr/enhanced_multiframe/emri_small.dcm"
    found: np.ndarray = pydicom.dcmread(file).pixel_array[0]
    return found


def test_the_settings_go_from_end_to_end() -> None:
    for codec in CODECS.values():
        tried = settings(codec, TWELVE)
        assert (tried[0], tried[-1]) == pytest.approx(span(codec, TWELVE))
        steps = np.diff(tried)
        assert (steps > 0).all() or (steps < 0).all()
    assert settings(CODECS["jpeg"], TWELVE)[:2] == [100, 99]


def test_ratios_are_of_all_frames_together(frame: np.ndarray) -> None:
    codec = CODECS["jpegls"]
    flat = np.full_like(frame, 7)
    both = compressed(codec, [frame, flat], TWELVE, 2)
    sizes = [len(encode(codec, one, TWELVE, 2).data) for one in (frame, flat)]
    assert both.nbytes == sum(sizes)
    assert both.ratio_stored == pytest.approx(2 * frame.size * 12 / 8 / sum(sizes))
    assert both.ratio_allocated == pytest.approx(both.ratio_stored * 16 / 12)
    assert abs(both.highest - int(frame.max())) <= 2


@pytest.mark.parametrize("most", [1, 5, 12, 300])
@pytest.mark.parametrize("highest", [3.0, 6.0, 1000.0])
def test_what_is_found_is_what_trying_all_finds(
    frame: np.ndarray, most: int, highest: float
) -> None:
    codec = CODECS["jpegls"]
    asked: list[Stream] = []

    def good(stream: Stream) -> bool:
        asked.append(stream)
        return stream.setting is not None and stream.setting <= most

    found = strongest(codec, [frame], TWELVE, highest, good)
    every = [compressed(codec, [frame], TWELVE, near) for near in settings(codec, TWELVE)]
    allowed = [one for one in every if one.setting is not None and one.setting <= most]
    allowed = [one for one in allowed if one.ratio_stored <= highest]
    assert found is not None
    assert found.ratio_stored <= highest
    # The ratio is met within 1 %, so another setting of nearly the same size may be taken.
    assert found.ratio_stored >= 0.99 * max(one.ratio_stored for one in allowed)
    assert len(asked) <= 9


def test_without_a_good_setting_there_is_nothing(frame: np.ndarray) -> None:
    codec = CODECS["jpegls"]
    assert strongest(codec, [frame], TWELVE, 6.0, lambda _: False) is None


def test_lossless_where_that_is_no_larger(frame: np.ndarray) -> None:
    codec = CODECS["jpegls"]
    flat = np.full_like(frame, 7)
    found = strongest(codec, [flat], TWELVE, 6.0, lambda _: False)
    assert found is not None  # it is beyond the ratio without a loss
    assert found.setting is None
    jpeg = CODECS["jpeg"]
    # At quality 100 a JPEG is larger than without loss: only that quality is good here.
    gentle = strongest(jpeg, [frame], TWELVE, 1000.0, lambda one: one.setting == 100)
    first = compressed(jpeg, [frame], TWELVE, 100)
    lossless = compressed(jpeg, [frame], TWELVE, None)
    assert gentle is not None
    assert gentle.nbytes == min(first.nbytes, lossless.nbytes)
