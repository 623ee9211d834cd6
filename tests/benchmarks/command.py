"""What one 512 x 512 pair costs from the command line, beyond importing torch and MONAI.

Run it on a quiet machine: ``python tests/benchmarks/command.py``. Prints medians in seconds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pydicom.data import get_testdata_file

_RUNS = 7


def _seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)  # noqa: S603
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        reference = str(get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False))
        # Against itself: what is asked is the time, which does not depend on the damage.
        pair = ("-m", "medqa", "assess", reference, reference)
        ways = {
            "import torch, monai": ("-c", "import torch, monai"),
            "medqa --help": ("-m", "medqa", "--help"),
            "medqa assess --no-record": (*pair, "--no-record"),
            "medqa assess": (*pair, "--db", str(Path(folder, "audit.db"))),
            "medqa assess --out": (*pair, "--no-record", "--out", str(Path(folder, "out"))),
        }
        # In turns, so that a busy moment of the machine falls on all alike.
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(_RUNS):
            for name, arguments in ways.items():
                taken[name].append(_seconds(*arguments))
    base = statistics.median(taken["import torch, monai"])
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        print(f"{name:28} {median:6.2f} s   beyond the imports {median - base:+6.2f} s")


if __name__ == "__main__":
    main()
