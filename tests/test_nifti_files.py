"""Broken and hostile NIfTI files: an image or an error, in bounded time and memory."""

import gzip
import itertools
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import medqa.nifti
from medqa.errors import ReadError
from medqa.image import Image
from medqa.nifti import is_nifti, read_nifti
from medqa.reader import read

DATA = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


@pytest.fixture(scope="module")
def samples(shared_data: Path) -> dict[str, bytes]:
    """Small real files, unpacked: NIfTI-1, big endian; NIfTI-2, with extensions."""
    folder = shared_data / "mr/nifti"
    return {
        "anatomical": (folder / "anatomical.nii").read_bytes(),
        "nifti2": gzip.decompress((folder / "example_nifti2.nii.gz").read_bytes()),
    }


@pytest.fixture(scope="module")
def attempt(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], Image | None]:
    """Return what reads bytes as a file: an image of sound geometry, or None for an error."""
    path = tmp_path_factory.mktemp("hostile") / "a.nii"

    def read_bytes(data: bytes) -> Image | None:
        path.write_bytes(data)
        started = time.monotonic()
        try:
            image = read(path)
        except ReadError:
            return None
        finally:
            assert time.monotonic() - started < 5
        assert np.prod(image.shape) > 0
        if image.spacing_mm is not None:
            assert np.isfinite(image.spacing_mm).all()
            assert min(image.spacing_mm[1:]) > 0
        if image.affine is not None:
            assert np.isfinite(image.affine).all()
            assert abs(np.linalg.det(image.affine)) > 0
        return image

    return read_bytes


# Any byte ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "length"), [("anatomical", 352), ("nifti2", 544)])
def test_every_byte_of_a_header_flipped(
    samples: dict[str, bytes],
    attempt: Callable[[bytes], Image | None],
    name: str,
    length: int,
) -> None:
    sound = attempt(samples[name])
    assert sound is not None
    for place, flip in itertools.product(range(length), (0x01, 0x80, 0xFF)):
        data = bytearray(samples[name])
        data[place] ^= flip
        image = attempt(bytes(data))
        # Whatever it does to values and places, a whole image never becomes another one.
        assert image is None or (image.shape, image.volumes) == (sound.shape, sound.volumes)


@settings(max_examples=300)
@given(data=st.data())
@pytest.mark.parametrize("name", ["anatomical", "nifti2"])
def test_a_header_of_any_bytes(
    samples: dict[str, bytes],
    attempt: Callable[[bytes], Image | None],
    name: str,
    data: st.DataObject,
) -> None:
    changed = bytearray(samples[name])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 540))
        new = data.draw(st.binary(min_size=1, max_size=8))
        changed[place : place + len(new)] = new
    attempt(bytes(changed))


@settings(max_examples=150)
@given(data=st.data())
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["anatomical", "nifti2"])
def test_truncated_anywhere_is_an_error(
    samples: dict[str, bytes],
    attempt: Callable[[bytes], Image | None],
    name: str,
    zipped: bool,
    data: st.DataObject,
) -> None:
    whole = gzip.compress(samples[name], 1, mtime=0) if zipped else samples[name]
    length = data.draw(
        st.one_of(st.integers(0, 700), st.integers(0, len(whole) - 1), st.just(len(whole) - 1))
    )
    assert attempt(whole[:length]) is None


@settings(max_examples=200)
@given(data=st.data())
def test_a_compressed_file_flipped_anywhere_is_the_same_image_or_an_error(
    samples: dict[str, bytes], attempt: Callable[[bytes], Image | None], data: st.DataObject
) -> None:
    whole = gzip.compress(samples["nifti2"], 6, mtime=0)
    sound = attempt(whole)
    assert sound is not None
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    image = attempt(bytes(changed))
    assert image is None or image.pixels_sha256 == sound.pixels_sha256


# Lengths -----------------------------------------------------------------------------------------


def _header(shape: tuple[int, ...], offset: float = 352, kind: type = nib.Nifti1Header) -> bytes:
    header = kind()
    header["dim"][: 1 + len(shape)] = (len(shape), *shape)
    header.set_data_dtype(np.int16)
    header["magic"] = b"n+1" if kind is nib.Nifti1Header else b"n+2"
    header["vox_offset"] = offset
    return header.binaryblock + bytes(4)


@pytest.mark.parametrize(
    "shape",
    [
        (-3, 4, 5),
        (3, 0, 5),
        (3, 4, 5, -1),
        (32767, 32767, 32767),
        (32767, 32767, 1),
        (3, 4, 6),
        (3, 4, 4),
        (3,),
        (3, 4, 5, 1, 2),
        (3, 4, 5, 1, 1, 1, -1),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_dimensions_that_are_not_those_of_the_pixels(
    attempt: Callable[[bytes], Image | None], shape: tuple[int, ...], zipped: bool
) -> None:
    for kind, offset in ((nib.Nifti1Header, 352), (nib.Nifti2Header, 544)):
        for wanted in ((3, 4, 5), shape):
            data = _header(wanted, offset, kind) + DATA.tobytes()
            image = attempt(gzip.compress(data) if zipped else data)
            assert (image is None) == (wanted == shape)


def test_dimensions_of_64_bits_do_not_overflow(attempt: Callable[[bytes], Image | None]) -> None:
    for shape in ((2**62, 2, 2), (2**63 - 1,) * 3, (2**32, 2**32, 1), (-(2**63), 1, 1)):
        assert attempt(_header(shape, 544, nib.Nifti2Header) + bytes(8)) is None


@pytest.mark.parametrize("offset", [0, 1, 348, -352, 352.5, 353, 1e9, 3e38, np.nan, np.inf])
@pytest.mark.parametrize("zipped", [False, True])
def test_pixels_that_start_nowhere(
    attempt: Callable[[bytes], Image | None], offset: float, zipped: bool
) -> None:
    data = _header((3, 4, 5), offset) + DATA.tobytes()
    assert attempt(gzip.compress(data) if zipped else data) is None


def test_what_is_declared_is_checked_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(_header((1024, 1024, 1024)) + bytes(9999)))
    for data in (path.read_bytes(), gzip.decompress(path.read_bytes())):
        path.write_bytes(data)
        tracemalloc.start()
        try:
            with pytest.raises(ReadError, match="of the 2147484000 bytes"):
                read_nifti(path)
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()


def test_limits_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _header((3, 4, 5)) + DATA.tobytes()
    (tmp_path / "a.nii").write_bytes(data)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(data))
    monkeypatch.setenv("MEDQA_MAX_FILE_GIB", str(100 / 2**30))  # 120 bytes of pixels
    assert read(tmp_path / "a.nii").shape == (5, 4, 3)
    with pytest.raises(ReadError, match="in memory as a whole"):
        read(tmp_path / "a.nii.gz")
    monkeypatch.setenv("MEDQA_MAX_IMAGE_GIB", str(100 / 2**30))
    with pytest.raises(ReadError, match=r"GiB of pixels, more than the 9\.31e-08 allowed"):
        read(tmp_path / "a.nii")


@pytest.mark.parametrize("shape", [(1, 1, 32767, 5), (32767, 8193, 1)])
def test_more_slices_or_larger_ones_than_are_worked_through(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    (tmp_path / "a.nii").write_bytes(_header(shape) + bytes(2))
    with pytest.raises(ReadError, match=r"claims \d+ slices of \d+ pixels"):
        read(tmp_path / "a.nii")


def test_a_gzip_bomb_is_stopped_while_it_unpacks(tmp_path: Path) -> None:
    """16 GiB of zeros behind the pixels of a small image, in 16 MiB."""
    path = tmp_path / "bomb.nii.gz"
    zeros = gzip.compress(bytes(2**20))
    path.write_bytes(gzip.compress(_header((3, 4, 5)) + DATA.tobytes()) + zeros * 2**14)
    assert path.stat().st_size < 2**24 + 2**23
    started = time.monotonic()
    tracemalloc.start()
    try:
        assert is_nifti(path)
        with pytest.raises(ReadError, match="goes on after the last pixel"):
            read_nifti(path)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 5


def test_deflate_never_unpacks_to_more_than_is_reckoned_with(tmp_path: Path) -> None:
    packed = gzip.compress(bytes(2**26), 9)
    assert 1000 < 2**26 / len(packed) < medqa.nifti_files._MOST_UNPACKED
    path = tmp_path / "zeros.nii.gz"
    path.write_bytes(gzip.compress(_header((512, 512, 64)) + bytes(2**25), 9))
    assert not np.asarray(read(path).pixels).any()


@pytest.mark.parametrize("zipped", [False, True])
def test_one_byte_too_many(tmp_path: Path, zipped: bool) -> None:
    data = _header((3, 4, 5)) + DATA.tobytes() + b"\0"
    (tmp_path / "a.nii").write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(ReadError, match="goes on after the last pixel that its header declares"):
        read(tmp_path / "a.nii")


def test_a_wrong_checksum(tmp_path: Path) -> None:
    data = _header((3, 4, 5)) + DATA.tobytes()
    packed = gzip.compress(data)
    assert packed[-8:-4] == zlib.crc32(data).to_bytes(4, "little")
    (tmp_path / "a.nii.gz").write_bytes(packed[:-8] + bytes(4) + packed[-4:])
    with pytest.raises(ReadError, match="CRC"):
        read(tmp_path / "a.nii.gz")


def test_extensions_are_skipped_whatever_they_say(tmp_path: Path) -> None:
    header = bytearray(_header((3, 4, 5), 512))
    header[348] = 1  # extensions follow
    for size in (-8, 0, 1, 16, 2**31 - 1):  # endless chains, and one longer than the file
        extension = size.to_bytes(4, "little", signed=True) + bytes(156)
        (tmp_path / "a.nii").write_bytes(header + extension + DATA.tobytes(order="F"))
        assert sorted(read(tmp_path / "a.nii").pixels.ravel()) == list(range(60))


# Pairs and relatives -----------------------------------------------------------------------------


@pytest.mark.parametrize("ends", list(itertools.product((".hdr", ".hdr.gz"), (".img", ".img.gz"))))
def test_pairs_compressed_or_not(tmp_path: Path, ends: tuple[str, str]) -> None:
    nib.save(nib.Nifti1Image(DATA, np.eye(4)), tmp_path / "single.nii")
    nib.save(nib.Nifti1Pair(DATA, np.eye(4)), tmp_path / "a.img")
    for end in ends:
        if end.endswith(".gz"):
            plain = tmp_path / f"a{end[:-3]}"
            (tmp_path / f"a{end}").write_bytes(gzip.compress(plain.read_bytes()))
            plain.unlink()
    for end in ends:
        np.testing.assert_array_equal(
            read(tmp_path / f"a{end}").pixels, read(tmp_path / "single.nii").pixels
        )


def test_a_pair_whose_pixels_cannot_be_found(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(DATA, np.eye(4)), tmp_path / "a.img")
    (tmp_path / "a.hdr").rename(tmp_path / "header")
    with pytest.raises(ReadError, match=r"not named \.hdr"):
        read(tmp_path / "header")
    (tmp_path / "header").rename(tmp_path / "b.hdr")
    with pytest.raises(ReadError, match=r"b\.img: is missing"):
        read(tmp_path / "b.hdr")


def test_relatives_are_refused_by_name(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"FreeSurfer MGH.*mri_convert"):
        read(shared_data / "mr/nifti/test.mgz")
    for order in "<>":
        image = nib.AnalyzeImage(DATA, np.eye(4), nib.AnalyzeHeader(endianness=order))
        nib.save(image, tmp_path / "a.img")
        for end in ("hdr", "img"):
            with pytest.raises(ReadError, match=r"Analyze 7\.5.*convert it to NIfTI"):
                read(tmp_path / f"a.{end}")


def test_a_file_sent_as_text(tmp_path: Path, samples: dict[str, bytes]) -> None:
    (tmp_path / "a.nii").write_bytes(samples["nifti2"].replace(b"\r\n\x1a\n", b"\n\x1a\n\0", 1))
    with pytest.raises(ReadError, match="line ends changed"):
        read(tmp_path / "a.nii")


def test_a_header_of_another_length(tmp_path: Path, samples: dict[str, bytes]) -> None:
    (tmp_path / "a.nii").write_bytes(b"\0\0\0\1" + samples["anatomical"][4:])
    with pytest.raises(ReadError, match="has no header of 348 bytes"):
        read(tmp_path / "a.nii")
