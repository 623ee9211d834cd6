"""Reading in a process of its own: equal to reading here, whatever happens to the child."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import dicom, native

from medqa import isolation
from medqa.dicom.files import is_dicom
from medqa.errors import MedqaError, ReadError, UsageError
from medqa.image import Image, VoiLut
from medqa.isolation import decode_isolated
from medqa.reader import read

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX's")


def same(one: Any, other: Any) -> bool:
    """Equal, arrays to the bit and the type, NaN to NaN."""
    if isinstance(one, np.ndarray):
        kind = one.dtype == other.dtype and one.shape == other.shape
        return kind and one.tobytes() == other.tobytes()
    if isinstance(one, VoiLut):
        return one.first == other.first and same(one.table, other.table)
    return type(one) is type(other) and one == other


def differences(one: Image, other: Image) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(Image)
        if not same(*(_field(image, field.name) for image in (one, other)))
    ]


def _field(image: Image, name: str) -> Any:
    return np.asarray(image.pixels) if name == "pixels" else getattr(image, name)


def through(image: Image) -> Image:
    """Send an image through an answer, without a process."""
    with tempfile.TemporaryFile() as answer:
        isolation._write(image, answer)
        answer.flush()
        return isolation._image(*_parts(answer))


def _parts(answer: Any) -> tuple[dict[str, Any], Any, int]:
    header, start = isolation._header(answer)
    return header, answer, start


def test_every_field_of_every_real_image_goes_through_an_answer(shared_data: Path) -> None:
    wrong, count = {}, 0
    for path in sorted(p for p in shared_data.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            head = file.read(132)
        nifti = path.suffix in (".nii", ".gz") and path.stat().st_size < 2**20
        if not is_dicom(head) and not nifti:
            continue
        try:
            image = read(path)
        except MedqaError:
            continue
        count += 1
        if found := differences(image, through(image)):
            wrong[path.name] = found
    assert wrong == {}
    assert count > 150


def test_every_field_is_sent() -> None:
    sent = isolation._plain(Image(np.zeros((1, 2, 2), np.int16), kind="dicom"))
    fields = {field.name for field in dataclasses.fields(Image)} - {"pixels"}
    assert set(sent) == fields | {"shape", "dtype"}


def test_a_child_reads_what_we_read(shared_data: Path) -> None:
    for name in ("ct/misc/CT_small.dcm", "ct/small_series_torchio"):
        path = shared_data / name
        assert differences(read(path), decode_isolated(path)) == []


def test_a_large_image_is_mapped_from_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(native(rows=64, columns=64, frames=3, pixels=bytes(range(256)) * 48))
    expected = read(path)
    monkeypatch.setattr("medqa.isolation.KEPT_BYTES", 1000)
    image = decode_isolated(path)
    assert isinstance(image.pixels, np.memmap)
    assert image.pixels_sha256 == expected.pixels_sha256


def test_errors_come_back_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "report.dcm"
    path.write_bytes(dicom())
    with pytest.raises(ReadError) as here:
        read(path)
    with pytest.raises(ReadError) as there:
        decode_isolated(path)
    assert str(there.value) == str(here.value)


def test_a_wrong_setting_comes_back_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(native())
    monkeypatch.setenv("MEDQA_MAX_FILE_GIB", "many")
    with pytest.raises(UsageError, match="MEDQA_MAX_FILE_GIB"):
        decode_isolated(path)


def test_memory_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    size = 12_000
    path.write_bytes(native(rows=size, columns=size, pixels=bytes(size * size)))
    with pytest.raises(ReadError, match=r"took more than 0.391 GiB of memory"):
        decode_isolated(path, memory_bytes=400 * 2**20)


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make every child run this code before anything else."""

    def runs(code: str) -> Path:
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(code)
        monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
        path = tmp_path / "image.dcm"
        path.write_bytes(native())
        return path

    return runs


def test_a_crash_is_an_error_that_names_the_signal(child: Any) -> None:
    path = child("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(ReadError, match=r"ended its reader \(SIGSEGV\)"):
        decode_isolated(path)


def test_a_child_that_hangs_is_ended(child: Any) -> None:
    path = child("import time; time.sleep(60)")
    with pytest.raises(ReadError, match=r"took longer than 0.5 s"):
        decode_isolated(path, seconds=0.5)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff" * 8,
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x02\0\0\0\0\0\0\0{}",
        b'\x0b\0\0\0\0\0\0\0{"error":1}',
        b"\x05\0\0\0\0\0\0\0\x80\x04K\x01.",  # a pickle
    ],
)
def test_an_answer_that_is_no_image_is_an_error(child: Any, answer: bytes) -> None:
    path = child(f"import os; os.write(1, {answer!r}); os._exit(0)")
    with pytest.raises(ReadError, match="nonsense"):
        decode_isolated(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", [1, 2]),
        ("shape", [1, 2, 2**40]),
        ("shape", [-1, -2, 2]),
        ("dtype", "O"),
        ("dtype", "<c16"),
        ("dtype", "<i8"),
        ("kind", "array"),
        ("affine", [[1.0]]),
        ("value_range", [1.0]),
        ("voi", {"centre": 1.0, "width": 2.0, "function": "exec"}),
        ("volumes", 1.5),
    ],
)
def test_every_part_of_an_answer_is_checked(field: str, value: object) -> None:
    image = Image(np.zeros((1, 2, 2), np.int16), kind="dicom")
    header = isolation._plain(image) | {field: value}
    with tempfile.TemporaryFile() as answer:
        answer.write(bytes(8))
        answer.flush()
        with pytest.raises((ValueError, KeyError, TypeError)):
            isolation._image(header, answer, 0)


def test_the_child_sees_neither_our_environment_nor_our_folder(
    child: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDQA_KEY", "secret")
    code = """
import json, os
fds = os.listdir("/proc/self/fd")
seen = json.dumps({"env": sorted(os.environ), "cwd": os.getcwd(), "fds": fds})
text = json.dumps({"error": "ReadError", "subject": "", "reason": seen, "mend": "", "detail": ""})
os.write(1, len(text).to_bytes(8, "little") + text.encode())
os._exit(0)
"""
    path = child(code)
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("lists descriptors from /proc")
    before = set(os.listdir(tempfile.gettempdir()))
    with pytest.raises(ReadError) as seen:
        decode_isolated(path)
    assert "MEDQA_KEY" not in seen.value.reason
    assert '"cwd": "' + tempfile.gettempdir() in seen.value.reason
    descriptors = seen.value.reason.split('"fds": [')[1].split("]")[0].split(", ")
    assert len(descriptors) == 4  # in, out, error, and that of listing them
    left = set(os.listdir(tempfile.gettempdir())) - before
    assert not [name for name in left if name.startswith("medqa-")]


def test_reading_does_not_load_torch() -> None:
    code = "import medqa.isolation, medqa.reader, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603


def test_the_files_of_a_series_are_read_too(shared_data: Path) -> None:
    files = sorted((shared_data / "ct/liver_3slice_with_SEG").glob("0*.dcm"))
    assert differences(read(files), decode_isolated(files)) == []
    with pytest.raises(ReadError, match="has no files"):
        decode_isolated([])
