"""Fuzz the reading of DICOM files: every input ends in an image or a `MedqaError`.

Mutations are libFuzzer's, and some that know what DICOM looks like: a length or a value of an
element set to an extreme, an element repeated or nested in a sequence.
"""

from __future__ import annotations

import contextlib
import random
import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["medqa", "pydicom"]):
    from medqa.errors import MedqaError
    from medqa.reader import read

EXTREMES = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz_dicom"))
INPUT = FOLDER / "input"


def elements(data: bytes) -> list[int]:
    """Where explicit little-endian elements of the usual groups seem to start."""
    groups = (0x02, 0x08, 0x10, 0x18, 0x20, 0x28, 0xE0)
    return [
        at
        for at in range(132, min(len(data) - 8, 8192))
        if data[at] in groups
        and data[at + 1] in (0x00, 0x7F)
        and data[at + 4 : at + 6].isalpha()
        and data[at + 4 : at + 6].isupper()
    ]


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    chance = random.Random(seed)
    places = elements(data)
    if not places or chance.random() < 0.4:
        return atheris.Mutate(data, max_size)
    out, at = bytearray(data), chance.choice(places)
    kind = chance.randrange(5)
    if kind == 0:  # the length
        value = chance.choice(EXTREMES)
        if bytes(out[at + 4 : at + 6]) in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
            out[at + 8 : at + 12] = struct.pack("<L", value)
        else:
            out[at + 6 : at + 8] = struct.pack("<H", value & 0xFFFF)
    elif kind == 1:  # the value
        out[at + 8 : at + 10] = struct.pack("<H", chance.choice(EXTREMES) & 0xFFFF)
    elif kind == 2:  # once more, elsewhere
        other = chance.choice(places)
        out[at:at] = out[other : other + chance.choice((8, 10, 16, 64))]
    elif kind == 3:  # out
        del out[at : at + chance.choice((8, 10, 12, 64))]
    else:  # within a sequence
        head = (
            struct.pack("<HH2sHL", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF)
            + b"\xfe\xff\x00\xe0"
            + b"\xff" * 4
        )
        out[at:at] = head * chance.choice((1, 3, 60, 300))
    return bytes(out[:max_size])


def test_one(data: bytes) -> None:
    INPUT.write_bytes(data)
    with contextlib.suppress(MedqaError):
        image = read(INPUT)
        assert image.survey.shape == image.shape


def main() -> None:
    atheris.Setup(sys.argv, test_one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
