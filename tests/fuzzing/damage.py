"""Cut files short and change single bytes of them, and count what reading makes of it.

``damage.py SAMPLES FILE...`` takes so many truncations and so many corruptions of each file,
evenly spread; 0 takes every one. Prints a line of JSON for each file. It is also the process in
which `tests/test_robustness.py` damages codestreams, so that a crash does not end pytest.
"""

from __future__ import annotations

import collections
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from medqa.errors import MedqaError
from medqa.image import Image
from medqa.reader import read

FLIPS = (0x01, 0x80, 0xFF)


def outcome(found: Image, whole: Image) -> str:
    """How an image of a damaged file differs from that of the whole one."""
    if found.shape != whole.shape:
        return "another shape"
    if not np.array_equal(np.asarray(found.pixels), np.asarray(whole.pixels), equal_nan=True):
        return "other values"
    names = ("unit", "value_range", "spacing_mm", "modality", "volumes", "kind")
    alike = all(getattr(found, name) == getattr(whole, name) for name in names)
    affines = [np.zeros(0) if one.affine is None else one.affine for one in (found, whole)]
    return "the same" if alike and np.array_equal(*affines) else "other geometry or unit"


def read_bytes(data: bytes, path: Path, whole: Image) -> str:
    path.write_bytes(data)
    try:
        return outcome(read(path), whole)
    except MedqaError:
        return "an error"
    except Exception as cause:
        return f"!! {type(cause).__name__}: {cause}"


def damaged(file: Path, samples: int, path: Path) -> dict[str, object]:
    data, whole = file.read_bytes(), read(file)
    step = max(1, len(data) // samples) if samples else 1
    counts = {kind: collections.Counter[str]() for kind in ("cut", "changed")}
    slowest = 0.0
    wrong: list[str] = []
    for at in range(0, len(data), step):
        flip = FLIPS[(at // step) % len(FLIPS)]
        changed = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
        for kind, one in (("cut", data[:at]), ("changed", changed)):
            started = time.perf_counter()
            became = read_bytes(one, path, whole)
            slowest = max(slowest, time.perf_counter() - started)
            counts[kind][became] += 1
            if became.startswith("!!") or (
                kind == "cut" and became.startswith(("other", "another"))
            ):
                wrong.append(f"{kind} at {at}: {became}")
    return {"file": str(file), "slowest": round(slowest, 3), "wrong": wrong, **counts}


def main() -> None:
    samples = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[2:]:
            print(json.dumps(damaged(Path(name), samples, Path(folder) / "input")), flush=True)


if __name__ == "__main__":
    main()
