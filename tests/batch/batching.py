"""What the tests of batches share: small pairs of CT, a table of them, and the command."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

NOISE = (0, 2, 40)  # in grey levels: identical, faint, ruinous

# The command as the installed one runs it; workers import it again, so it must be a file.
COMMAND = """
import sys
import typer
from medqa.cli.batch import batch
from medqa.errors import MedqaError

def main():
    app = typer.Typer()
    app.command()(batch)
    try:
        app()
    except MedqaError as error:
        sys.stderr.write(f"medqa: {error}\\n")
        raise SystemExit(2) from None

if __name__ == "__main__":
    main()
"""


class Here:
    """A pool that works in this process, and loses the jobs that it is told to lose."""

    slots = 2
    tries = 2
    lost = (BrokenExecutor,)

    def __init__(self, losses: dict[str, int] | None = None) -> None:
        self.losses = losses or {}
        self.assessed: list[str] = []

    def submit(self, function: Callable[..., Any], *args: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        name = str(args[1].candidate).rpartition("/")[2] if len(args) > 1 else ""
        try:
            if function.__name__ == "assess":
                self.assessed.append(name)
                if self.losses.get(name, 0) > 0:
                    self.losses[name] -= 1
                    raise BrokenExecutor
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def make_pairs(folder: Path, count: int, side: int = 64) -> Path:
    """Write pairs of a real CT slice, each shifted and noisy in its own way, and their table."""
    folder.mkdir(parents=True, exist_ok=True)
    source = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    pixels = source.pixel_array[:side, :side].astype(np.int16)
    source.Rows = source.Columns = side
    random = np.random.default_rng(20260301)
    rows = [("reference", "candidate", "name")]
    for number in range(count):
        shifted = np.roll(pixels, 2 * number, axis=0)
        source.StudyInstanceUID, source.SeriesInstanceUID = generate_uid(), generate_uid()
        noise = random.normal(0, NOISE[number % len(NOISE)], shifted.shape)
        for kind, values in (("r", shifted), ("c", shifted + noise.round())):
            source.PixelData = values.astype(np.int16).tobytes()
            source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            source.save_as(folder / f"{kind}{number}.dcm")
        rows.append((f"r{number}.dcm", f"c{number}.dcm", f"case {number}"))
    return write_csv(folder / "pairs.csv", rows)


def write_csv(path: Path, rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def pixels_recorded(db: Path) -> Counter[tuple[str, str]]:
    """How often each pair of images is on record, by their pixels, read by SQLite itself."""
    with closing(sqlite3.connect(db)) as connection:
        records = [
            json.loads(row[0]) for row in connection.execute("SELECT record FROM assessments")
        ]
    images = [(one["inputs"]["reference"], one["inputs"]["candidate"]) for one in records]
    return Counter(
        (r["pixels_sha256"], c["pixels_sha256"]) if r and c else ("", "") for r, c in images
    )


def command(folder: Path, *arguments: object) -> list[str]:
    script = folder / "medqa_batch.py"
    script.write_text(COMMAND)
    return [sys.executable, str(script), *map(str, arguments)]


# Jobs for worker processes, here because importing this takes them no time.


def pid(_: object) -> int:
    return os.getpid()


def die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
