"""Read an image in a process of its own, for services that read what strangers send.

The codecs are C: what a damaged or hostile file does to them can end the process, or take its time
and memory. `decode_isolated` lets that happen to a child, which has limits, no environment and
an empty folder, and hands back plain bytes and JSON: nothing that could be executed.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

import medqa.errors
from medqa.errors import MedqaError, ReadError, UsageError
from medqa.image import KEPT_BYTES, Identifiers, Image, VoiLut, Window

__all__ = ["decode_isolated"]

DAMAGED = "it is damaged, or made to harm: convert it with another tool if you trust it"
_HEADER = 8  # bytes of the length of the JSON that comes before the pixels
_JSON_BYTES = 64 * 2**20
_FEWER = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_WORDS = ("reason", "mend", "detail")


def decode_isolated(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    seconds: float = 60.0,
    memory_bytes: int = 4 * 2**30,
) -> Image:
    """Read an image as `medqa.read` does, in a process that may fail.

    Parameters
    ----------
    path
        As of `medqa.read`.
    seconds
        Time that reading may take, from start to end.
    memory_bytes
        Address space that the child may use; Python and its libraries take about 0.5 GiB of it.
        An image whose pixels take more than that has to be read in the process itself.

    Returns
    -------
    The image, equal to what `medqa.read` returns; pixels of a large one are mapped from a file.

    Raises
    ------
    ReadError
        As of `medqa.read`; or the child crashed, ran out of time or out of memory.
    UsageError
        The system has no limits for a process (Windows), or a setting is wrong.
    """
    if os.name != "posix":
        raise UsageError("isolation", "needs a POSIX system", "use medqa.read")
    asked: str | list[str]
    if isinstance(path, (str, os.PathLike)):
        path = Path(path).absolute()
        asked = str(path)
    else:
        asked = [str(Path(one).absolute()) for one in path]
        if not asked:
            raise ReadError("the image", "has no files", "name at least one")
        path = Path(asked[0])  # which errors name
    with tempfile.TemporaryDirectory(prefix="medqa-") as folder, tempfile.TemporaryFile() as answer:
        call = [sys.executable, "-P", "-m", "medqa.isolation"]
        try:
            done = subprocess.run(  # noqa: S603 (no shell, our own interpreter)
                [*call, str(math.ceil(seconds)), str(memory_bytes)],
                input=json.dumps(asked).encode(),
                stdout=answer,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=environment(folder),
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as cause:
            raise too_slow(path, seconds) from cause
        if done.returncode == -signal.SIGXCPU:
            raise too_slow(path, seconds)
        if done.returncode != 0:
            raise ReadError(path, f"ended its reader ({called(done.returncode)})", DAMAGED)
        return received(path, answer)


def received(path: Path, answer: BinaryIO) -> Image:
    """Return the image that a reader answered, or raise the error; `path` is what it read."""
    try:
        header, start = _header(answer)
        if "error" not in header:
            return _image(header, answer, start)
        kind, reason, mend, detail = (str(header[k]) for k in ("error", *_WORDS))
    except (ValueError, KeyError, TypeError, OverflowError) as cause:
        raise ReadError(path, "made its reader answer nonsense", DAMAGED) from cause
    error = getattr(medqa.errors, kind, ReadError) if kind in medqa.errors.__all__ else ReadError
    raise error(header.get("subject", path), reason, mend, detail)


def environment(folder: str) -> dict[str, str]:
    """Give the child what it needs: where its modules are, its limits, and no threads."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("MEDQA_MAX_")}
    modules = os.pathsep.join(str(Path(one).absolute()) for one in sys.path if one)
    return kept | _FEWER | {"PYTHONPATH": modules, "TMPDIR": folder, "HOME": folder}


def too_slow(path: Path, seconds: float) -> ReadError:
    """Return the error of a reader that was stopped."""
    return ReadError(path, f"took longer than {seconds:g} s to read", "allow more time")


def called(code: int) -> str:
    """Return what people call an exit status, below 0 for a signal."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit status {code}"


# The answer: length of the JSON, JSON, pixels -----------------------------------------------------


def _write(image: Image, out: BinaryIO) -> None:
    """Write an image; pixels that are not kept in memory slice by slice."""
    _write_header(_plain(image), out)
    for one in image.pixels:
        out.write(np.ascontiguousarray(one).data)


def _write_header(header: dict[str, Any], out: BinaryIO) -> None:
    text = json.dumps(header).encode()
    out.write(len(text).to_bytes(_HEADER, "little") + text)


def _header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the JSON of an answer, and where its pixels start."""
    file.seek(0)
    length = int.from_bytes(file.read(_HEADER), "little")
    if not 0 < length <= _JSON_BYTES:
        raise ValueError("length of the header")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("header")
    return header, _HEADER + length


def _plain(image: Image) -> dict[str, Any]:
    """Everything of an image but its pixels, in what JSON has."""
    voi = image.voi
    display: dict[str, Any] | None = None
    if isinstance(voi, Window):
        display = {"centre": voi.centre, "width": voi.width, "function": voi.function}
    elif voi is not None:
        display = {"first": voi.first, "table": voi.table.tolist()}
    one = image.identifiers
    return {
        "shape": list(image.shape),
        "dtype": image.pixels.dtype.str,
        "source": image.source,
        "kind": image.kind,
        "modality": image.modality,
        "unit": image.unit,
        "value_range": image.value_range,
        "spacing_mm": image.spacing_mm,
        "affine": None if image.affine is None else image.affine.tolist(),
        "voi": display,
        "padding": None if image.padding is None else image.padding.tolist(),
        "suv_factor": image.suv_factor,
        "volumes": image.volumes,
        "body_part": image.body_part,
        "device": image.device,
        "transfer_syntax": image.transfer_syntax,
        "identifiers": {
            "patient_id": one.patient_id,
            "study_uid": one.study_uid,
            "series_uid": one.series_uid,
            "sop_uids": list(one.sop_uids),
            "frames": list(one.frames),
            "frame_of_reference_uid": one.frame_of_reference_uid,
            "device": one.device,
        },
        "file_sha256": image.file_sha256,
    }


def _image(header: dict[str, Any], file: BinaryIO, start: int) -> Image:
    """Make an image of an answer; ValueError, KeyError or TypeError where it is none."""
    shape = tuple(_whole(n) for n in header["shape"])
    dtype = np.dtype(str(header["dtype"]))
    size = math.prod(shape) * dtype.itemsize
    if len(shape) != 3 or min(shape) < 1 or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ValueError("pixels")
    if os.fstat(file.fileno()).st_size != start + size:
        raise ValueError("length of the pixels")
    file.seek(start)
    pixels: NDArray[Any]
    if size <= KEPT_BYTES:
        pixels = np.frombuffer(bytearray(file.read(size)), dtype).reshape(shape)
    else:
        pixels = np.memmap(file, dtype, "r", start, shape)
    if header["kind"] not in ("dicom", "nifti"):
        raise ValueError("kind")
    names = header["identifiers"]
    return Image(
        pixels=pixels,
        source=str(header["source"]),
        kind=header["kind"],
        modality=_text(header["modality"]),
        unit=str(header["unit"]),
        value_range=_numbers(header["value_range"], 2),
        spacing_mm=_numbers(header["spacing_mm"], 3),
        affine=_matrix(header["affine"], (4, 4)),
        voi=_display(header["voi"]),
        padding=_matrix(header["padding"], (shape[0], 2)),
        suv_factor=None if header["suv_factor"] is None else float(header["suv_factor"]),
        volumes=_whole(header["volumes"]),
        body_part=_text(header["body_part"]),
        device=_text(header["device"]),
        transfer_syntax=_text(header["transfer_syntax"]),
        identifiers=Identifiers(
            patient_id=_text(names["patient_id"]),
            study_uid=_text(names["study_uid"]),
            series_uid=_text(names["series_uid"]),
            sop_uids=tuple(str(uid) for uid in names["sop_uids"]),
            frames=tuple(int(frame) for frame in names["frames"]),
            frame_of_reference_uid=_text(names["frame_of_reference_uid"]),
            device=_text(names["device"]),
        ),
        file_sha256=_text(header["file_sha256"]),
    )


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("a whole number")
    return value


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _numbers(value: Any, count: int) -> Any:
    """Return as many numbers as there should be, as a tuple; None for None."""
    if value is not None and len(value) != count:
        raise ValueError("how many numbers")
    return None if value is None else tuple(float(one) for one in value)


def _matrix(value: Any, shape: tuple[int, int]) -> NDArray[np.float64] | None:
    if value is None:
        return None
    matrix = np.array(value, np.float64)
    if matrix.shape != shape:
        raise ValueError("shape of a matrix")
    return matrix


def _display(value: Any) -> Window | VoiLut | None:
    if value is None:
        return None
    if "table" in value:
        return VoiLut(_whole(value["first"]), np.array(value["table"], np.float32))
    if value["function"] not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError("function of a window")
    return Window(float(value["centre"]), float(value["width"]), value["function"])


# The child ----------------------------------------------------------------------------------------


def _limit(seconds: int, memory_bytes: int) -> None:
    import resource  # POSIX only

    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),  # a core dump would hold the patient's image
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _told(cause: MedqaError | MemoryError, path: str, memory_bytes: int) -> MedqaError:
    """Return the error to hand back: that of memory where that was behind it."""
    behind: BaseException | None = cause
    while behind is not None and not isinstance(behind, MemoryError):
        behind = behind.__cause__
    if isinstance(cause, MedqaError) and behind is None:
        return cause
    reason = f"took more than {memory_bytes / 2**30:.3g} GiB of memory to read"
    return ReadError(path, reason, "allow more memory")


def main(seconds: str, memory_bytes: str) -> None:
    """Read in the child: the answer goes where standard output was, which libraries print to."""
    from medqa.reader import read

    path = json.loads(sys.stdin.buffer.read())
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _limit(int(seconds), int(memory_bytes))
    try:
        _write(read(path), answer)
    except (MedqaError, MemoryError) as cause:
        error = _told(cause, path if isinstance(path, str) else path[0], int(memory_bytes))
        header = {"error": type(error).__name__, "subject": error.subject}
        header |= {word: getattr(error, word) for word in _WORDS}
        answer.seek(0)
        answer.truncate()
        _write_header(header, answer)
    answer.flush()
    os._exit(0)  # no clean-up of what a hostile file may have broken


if __name__ == "__main__":
    main(*sys.argv[1:])
