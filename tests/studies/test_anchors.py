"""Published ratios replayed on images, beside the same comparison made file by file."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from anchoring import phantom, save
from pydicom.uid import JPEG2000, JPEGLSNearLossless

import medqa
from medqa.compression.codecs import CODECS, Samples, at_ratio
from medqa.errors import PixelError, ProfileError, ReadError, UsageError
from medqa.lpips import GrayLPIPS
from medqa.studies.anchored_profile import anchored, limit_value
from medqa.studies.anchors import (
    Replayed,
    body_part_of,
    check_sources,
    counted_bits,
    of_sources,
    originals,
    replay,
    spread,
)
from medqa.studies.reader_limits import ReaderLimit, limits_for
from medqa.thresholds import load

J2K = CODECS["j2k"]


@pytest.fixture(scope="module")
def network() -> GrayLPIPS:
    return GrayLPIPS("gray")


def at(ratio: float, distance: float, source: int = 1, image: int = 1) -> Replayed:
    return Replayed(source, image, 0, ratio, ratio, 12, (("soft", distance), ("lung", 0.0)))


def test_distances_are_those_of_files_compared_one_by_one(
    tmp_path: Path, network: GrayLPIPS
) -> None:
    stored = phantom(1)
    path = save(tmp_path / "original.dcm", stored)
    (found,) = replay(network, load("ct"), originals([path]), J2K, [8.0])
    decoded = at_ratio(J2K, stored, Samples(12, 16, signed=False), 8.0).pixels
    other = save(tmp_path / "compressed.dcm", decoded)
    profile = load("ct-compression")
    judged = medqa.assess(medqa.read(path), medqa.read(other), profile=profile, backbone=network)
    assert dict(found.distances) == pytest.approx(
        {one.name: one.lpips for one in judged.windows}, rel=1e-4
    )
    assert found.worst == pytest.approx(judged.base_lpips_score, rel=1e-4)
    assert found.measured == pytest.approx(8.0, rel=0.03)
    assert found.bits == 12


def test_distances_are_about_those_of_pydicoms_own_compression(
    tmp_path: Path, network: GrayLPIPS
) -> None:
    path = save(tmp_path / "original.dcm", phantom(1), StudyInstanceUID="1.2.3")
    (found,) = replay(network, load("ct"), originals([path]), J2K, [10.0])
    ds = pydicom.dcmread(path)
    ds.compress(JPEG2000, j2k_cr=[10], generate_instance_uid=False)
    ds.save_as(tmp_path / "compressed.dcm")
    reference, candidate = medqa.read(path), medqa.read(tmp_path / "compressed.dcm")
    judged = medqa.assess(reference, candidate, profile="ct-compression", backbone=network)
    assert found.worst == pytest.approx(judged.base_lpips_score, rel=0.15)


def test_sixteen_declared_bits_cost_what_twelve_do(tmp_path: Path, network: GrayLPIPS) -> None:
    twelve = save(tmp_path / "12.dcm", phantom(1))
    sixteen = save(tmp_path / "16.dcm", phantom(1), BitsStored=16, HighBit=15)
    one, other = (
        replay(network, load("ct"), originals([path]), J2K, [8.0])[0] for path in (twelve, sixteen)
    )
    assert one.bits == other.bits == 12
    assert one.measured == pytest.approx(other.measured, rel=0.03)
    assert one.worst == pytest.approx(other.worst, rel=0.15)


@pytest.mark.parametrize(
    ("low", "high", "declared", "bits"),
    [
        (0, 255, 8, 8),
        (0, 30, 10, 10),  # as declared, however few the values need
        (0, 4095, 12, 12),
        (0, 500, 16, 12),
        (0, 4096, 16, 13),
        (-1024, 3071, 16, 12),
        (-2048, 3071, 16, 13),
        (-32768, 32767, 16, 16),
    ],
)
def test_bits_that_a_ratio_counts(low: int, high: int, declared: int, bits: int) -> None:
    stored = np.array([[low, high]], np.int32)
    samples = Samples(declared, 8 if declared == 8 else 16, signed=low < 0)
    assert counted_bits(stored, samples, None) == bits


def test_padding_needs_no_bits() -> None:
    stored = np.array([[-32768, -1000, 3000]], np.int16)
    samples = Samples(16, 16, signed=True)
    padding = np.array([[True, False, False]])
    assert counted_bits(stored, samples, None) == 16
    assert counted_bits(stored, samples, padding) == 12
    assert counted_bits(stored, samples, np.ones_like(padding)) == 16


def test_padding_is_laid_over_both(tmp_path: Path, network: GrayLPIPS) -> None:
    """What compression does to padding is seen by nobody."""
    stored = phantom(3).astype(np.int16) - 1024
    corner = np.hypot(*(np.mgrid[:96, :96] - 48.0)) > 47
    stored[corner] = -2000
    changes = {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "RescaleIntercept": 0}
    path = save(tmp_path / "a.dcm", stored, **changes, PixelPaddingValue=-2000)
    (found,) = replay(network, load("ct"), originals([path]), J2K, [8.0])
    samples = Samples(16, 16, signed=True)
    decoded = at_ratio(J2K, stored, samples, 8.0 * 16 / found.bits).pixels
    other = save(tmp_path / "b.dcm", decoded, **changes, PixelPaddingValue=-2000)
    images = medqa.read(path), medqa.read(other)
    judged = medqa.assess(*images, profile="ct-compression", backbone=network)
    assert found.worst == pytest.approx(judged.base_lpips_score, rel=1e-4)


def test_more_compression_costs_more(tmp_path: Path, network: GrayLPIPS) -> None:
    images = originals([save(tmp_path / "a.dcm", phantom(1))])
    for name in ("j2k", "jpegls"):
        found = replay(network, load("ct"), images, CODECS[name], [6.0, 10.0, 16.0])
        assert [one.ratio for one in found] == [6.0, 10.0, 16.0]
        worst = [one.worst for one in found]
        assert worst == sorted(worst)
        assert worst[0] > 0
        assert all(one.measured >= 0.99 * one.ratio for one in found)


def test_a_slice_of_a_series_is_shown_as_in_the_series(
    shared_data: Path, network: GrayLPIPS
) -> None:
    """Of a series the percentiles are those of all slices, as `medqa.assess` takes them."""
    (one,) = originals([shared_data / "mr" / "uih_t1"])
    image = medqa.read(one.paths)
    assert len(one.places) == image.shape[0] == 8
    assert one.source == ("UIH", "UMR 770", "120015")
    (found,) = replay(network, load("mr"), [one], J2K, [20.0], slices=1)
    path, _ = one.places[found.slice]
    alone = np.asarray(medqa.read(path).pixels)[0]
    places = [i for i in range(8) if np.array_equal(np.asarray(image.pixels[i]), alone)]
    assert len(places) == 1
    ds = pydicom.dcmread(path)
    samples = Samples(16, 16, signed=False)
    decoded = at_ratio(J2K, ds.pixel_array, samples, 20.0 * 16 / found.bits).pixels
    pixels = np.asarray(image.pixels).copy()
    pixels[places[0]] = decoded
    candidate = replace(image, pixels=pixels)
    judged = medqa.assess(image, candidate, profile="mr-compression", backbone=network)
    assert found.worst == pytest.approx(judged.base_lpips_score, rel=1e-4)


def test_frames_of_one_file_are_slices(shared_data: Path) -> None:
    (one,) = originals([shared_data / "mr" / "enhanced_multiframe" / "6_1.dcm"])
    assert [frame for _, frame in one.places] == list(range(6))


def test_slices_are_spread_over_the_series(shared_data: Path, network: GrayLPIPS) -> None:
    images = originals([shared_data / "ct" / "head_series_GE"])
    found = replay(network, load("ct-head"), images, J2K, [8.0], slices=2)
    assert [one.slice for one in found] == [3, 9]
    profile = load("ct-head")
    assert [name for name, _ in found[0].distances] == [
        window.name
        for window in profile.normalise.windows  # type: ignore[union-attr]
    ]


def test_spread_is_numpys_and_the_standard_librarys() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=11).tolist()
    found = spread(values)
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    assert [found.lower_quartile, found.median, found.upper_quartile] == pytest.approx(quartiles)
    assert (found.count, found.least, found.most) == (11, min(values), max(values))


def test_a_source_counts_once() -> None:
    replayed = [
        *(at(8, value, source=1, image=1) for value in (0.1, 0.2, 0.9)),  # median 0.2
        at(8, 0.4, source=1, image=2),
        at(8, 0.7, source=2, image=3),
        at(10, 5.0, source=2, image=3),
    ]
    assert of_sources(replayed, 8) == pytest.approx((0.3, 0.7))
    assert of_sources(replayed, 8, "lung") == (0.0, 0.0)
    assert of_sources(replayed, 10) == (5.0,)


def test_limits_are_summed_up_with_their_scatter() -> None:
    replayed = [at(8, value, source=i, image=i) for i, value in enumerate((0.1, 0.2, 0.6), 1)]
    limit = ReaderLimit(8, "accepted", "somebody", "diagnostic")
    (found,) = anchored([limit], replayed)
    assert (found.sources.median, found.sources.least, found.sources.most) == (0.2, 0.1, 0.6)
    assert found.slices.count == 3
    assert [name for name, _ in found.windows] == ["soft", "lung"]


@pytest.mark.parametrize(
    ("median", "limit"),
    [(0.00547, 0.0054), (0.0070, 0.0070), (0.0706, 0.070), (0.000547, 0.00054), (0.29, 0.29)],
)
def test_limits_are_rounded_down_to_two_digits(median: float, limit: float) -> None:
    assert limit_value(median) == limit


def test_what_is_no_original_is_refused(tmp_path: Path, shared_data: Path) -> None:
    stored = phantom(1)
    lossy = save(tmp_path / "lossy.dcm", stored, LossyImageCompression="01")
    near = pydicom.dcmread(save(tmp_path / "near.dcm", stored))
    near.compress(JPEGLSNearLossless, jls_error=2)
    near.save_as(tmp_path / "near.dcm")
    anonymous = {"Manufacturer": None, "SeriesInstanceUID": None}
    nobody = save(tmp_path / "nobody.dcm", stored, **anonymous)
    nifti = shared_data / "mr" / "nifti" / "FLAIR.nii.gz"
    colour = shared_data / "ts" / "sc" / "SC_rgb_rle.dcm"
    (tmp_path / "empty").mkdir()
    for path, words in (
        (lossy, "compressed lossily"),
        (tmp_path / "near.dcm", "compressed lossily"),
        (nobody, "neither its device nor its series"),
        (nifti, "no DICOM"),
        (colour, "in colour"),
        (tmp_path / "empty", "no DICOM image"),
    ):
        with pytest.raises(ReadError, match=words):
            originals([path])


def test_a_series_stands_for_a_device_that_is_not_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", phantom(1), ManufacturerModelName=None)
    (one,) = originals([path])
    assert one.source == (str(pydicom.dcmread(path).SeriesInstanceUID),)


def test_too_few_sources_are_counted(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.dcm", phantom(i), model="AB"[i % 2]) for i in range(4)]
    images = originals(paths)
    with pytest.raises(UsageError, match="come from 2 sources, and 3 are the fewest"):
        check_sources(images)
    check_sources([*images, *originals([save(tmp_path / "c.dcm", phantom(9), model="C")])])


def test_different_body_parts_are_not_mixed(tmp_path: Path) -> None:
    head, chest, unsaid = originals(
        [
            save(tmp_path / "a.dcm", phantom(1), BodyPartExamined="HEAD"),
            save(tmp_path / "b.dcm", phantom(1), BodyPartExamined="CHEST"),
            save(tmp_path / "c.dcm", phantom(1)),
        ]
    )
    assert body_part_of([head, head]) == "HEAD"
    assert body_part_of([head, unsaid]) is None
    with pytest.raises(UsageError, match="show CHEST and HEAD"):
        body_part_of([head, chest])


def test_images_of_another_modality_or_codec_are_refused(
    tmp_path: Path, network: GrayLPIPS
) -> None:
    images = originals([save(tmp_path / "a.dcm", phantom(1))])
    with pytest.raises(ProfileError, match="is for MR"):
        replay(network, load("mr"), images, J2K, [8.0])
    odd = originals([save(tmp_path / "b.dcm", phantom(1), BitsStored=14, HighBit=13)])
    with pytest.raises(PixelError, match="JPEG holds 8 or 12 bits"):
        replay(network, load("ct"), odd, CODECS["jpeg"], [8.0])
    with pytest.raises(PixelError, match=r"a\.dcm: JPEG 2000 reaches"):
        replay(network, load("ct"), images, J2K, [1e5])


def test_published_limits_of_an_image() -> None:
    found = limits_for(None, "CT", "ABDOMEN", "j2k")
    by_level = {one.anchors: one.ratio for one in found if one.anchors}
    assert by_level == {"diagnostic": 8, "screening": 15}
    assert {(one.ratio, one.finding) for one in found} >= {
        (5, "visually lossless"),
        (10, "told apart in 95 to 99 %"),
    }
    assert all("17119972" not in one.source for one in limits_for(None, "CT", None, "j2k"))
    chest = limits_for(None, "DX", "CHEST", "j2k")
    assert [one.ratio for one in chest] == [10, 10, 15, 30]


@pytest.mark.parametrize(("modality", "codec"), [("US", "j2k"), ("CT", "htj2k"), ("PT", "j2k")])
def test_nothing_is_made_up_where_nothing_is_published(modality: str, codec: str) -> None:
    with pytest.raises(UsageError, match=f"no limit for {codec} on {modality}"):
        limits_for(None, modality, None, codec)


def test_mammograms_stay_lossless() -> None:
    with pytest.raises(UsageError, match="FDA accepts no irreversible compression"):
        limits_for(None, "MG", None, "j2k")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "schema_version"),
        ("schema_version = 1\ntitle = 'x'\n", "no limit for j2k on CT anchors diagnostic"),
        ("schema_version = 1\ntitle = 'x'\n[[guidelines]]\nname = 'ACR'\n", "ACR"),
        (
            "schema_version = 1\ntitle = 'x'\n[[limits]]\nratio = 1\nmodalities = ['CT']\n"
            "finding = 'x'\nsource = 'x'\n",
            "limits.0.ratio",
        ),
        (
            "schema_version = 1\ntitle = 'x'\n"
            + "[[guidelines]]\nname = 'DRG'\nanchors = 'diagnostic'\n" * 2,
            "2 limits for j2k on CT anchor diagnostic",
        ),
    ],
)
def test_wrong_files_of_limits_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageError, match=words):
        limits_for(path, "CT", None, "j2k")


def test_windows_that_not_every_image_has_are_left_out() -> None:
    one = at(8, 0.1, source=1, image=1)
    other = replace(at(8, 0.2, source=2, image=2), distances=(("soft", 0.2),))
    (found,) = anchored([ReaderLimit(8, "accepted", "x", "diagnostic")], [one, other])
    assert [name for name, _ in found.windows] == ["soft"]
