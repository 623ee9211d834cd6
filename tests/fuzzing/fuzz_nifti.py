"""Fuzz the reading of NIfTI files: every input ends in an image or a `MedqaError`."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["medqa", "nibabel"]):
    from medqa.errors import MedqaError
    from medqa.reader import read

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz_nifti"))


def test_one(data: bytes) -> None:
    """The first byte says how the file is called, which nibabel goes by."""
    if not data:
        return
    path = FOLDER / ("input.nii.gz" if data[0] & 1 else "input.nii")
    path.write_bytes(data[1:])
    with contextlib.suppress(MedqaError):
        image = read(path)
        assert image.survey.shape == image.shape


def main() -> None:
    atheris.Setup(sys.argv, test_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
