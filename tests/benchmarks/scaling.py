"""How a batch's time falls with its workers, and what a record and a report take of the disk.

    python tests/benchmarks/scaling.py [--pairs 48] [--workers 1 2] [--write docs/scaling.md]

Pairs are real CT slices of 512 × 512 from the folder of tests' images, each shifted so that none
is like another, and compressed by JPEG 2000. Starting the workers is timed apart: it happens once.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from machine import heading
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from tables import Table, publish

from medqa.assessment import Job
from medqa.audit import Store
from medqa.batch.cluster import ENVIRONMENT, Cluster
from medqa.batch.run import assess_all, measuring
from medqa.batch.table import read_table
from medqa.batch.workers import Processes, Setting
from medqa.identity import profile_digest

SLICES = Path(__file__).resolve().parents[3] / "shared/data/ct/head_series_GE"


@dataclass(frozen=True)
class Run:
    """One batch: seconds to start, seconds for all pairs, bytes of a record, of the reports."""

    start: float
    seconds: float
    again: float
    record: float
    reports: float


def pairs(folder: Path, count: int) -> Path:
    """Write pairs, and their table."""
    files = sorted(SLICES.glob("*.dcm"))
    lines = ["reference,candidate"]
    for number in range(count):
        source = pydicom.dcmread(files[number % len(files)])
        pixels = np.roll(source.pixel_array, number, axis=0)
        shifted = (pixels.astype(np.int32) + 32768).astype(np.uint16)
        stream = imagecodecs.jpeg2k_encode(shifted, level=85)  # 4 HU
        decoded = imagecodecs.jpeg2k_decode(stream).astype(np.int32) - 32768
        source.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        for kind, values in (("r", pixels), ("c", decoded)):
            source.PixelData = values.astype(pixels.dtype).tobytes()
            source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            source.save_as(folder / f"{kind}{number}.dcm")
        lines.append(f"r{number}.dcm,c{number}.dcm")
    table = folder / "pairs.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def measure(table: Path, pool: Any, folder: Path) -> Run:
    """Assess the pairs, then look them all up again."""
    job = Job(reference="", candidate="", origin="benchmark")
    with Store.open(str(folder / "audit.db")) as store:
        setting = Setting(
            "gray", None, "float32", "cpu", store.key, str(folder), "failed", "diagnostic"
        )
        times = [time.perf_counter()]
        measured = measuring(pool, setting)
        profiles = {None: profile_digest(None)}
        times.append(time.perf_counter())
        for _ in range(2):
            given = read_table(table, job).rows, pool, store
            done = [one.assessment for one in assess_all(*given, setting, measured, profiles)]
            if any(one is None or one.base_lpips_score is None for one in done):
                raise RuntimeError("a pair could not be assessed")
            times.append(time.perf_counter())
    with closing(sqlite3.connect(folder / "audit.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    start, seconds, again = np.diff(times)
    reports = sum(one.stat().st_size for one in (folder / "reports").rglob("*.*"))
    size = (folder / "audit.db").stat().st_size
    return Run(start, seconds, again, size / len(done), reports / len(done))


@contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """A cluster of Dask on this machine."""
    from distributed import LocalCluster

    os.environ.update(ENVIRONMENT)  # as docs/batch.md says
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Cluster(cluster.scheduler_address, None) as pool,
    ):
        yield pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    rows, slowest = [], 0.0
    said = heading("Pairs of CT of 512².", 1, "torch", "distributed", "medqa")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = pairs(folder, given.pairs)
        for kind, pool_of in (("processes", Processes), ("Dask, local cluster", local_cluster)):
            for workers in given.workers:
                where = folder / f"{kind[:4]}{workers}"
                where.mkdir()
                with pool_of(workers) as pool:
                    one = measure(table, pool, where)
                each = one.seconds / given.pairs
                slowest = slowest or each
                rows.append(
                    (
                        f"{kind}, {workers}",
                        f"{one.start:.1f}",
                        f"{one.seconds:.1f}",
                        f"{1 / each:.2f}",
                        f"{slowest / each:.2f}",
                        f"{1000 * one.again / given.pairs:.1f}",
                        f"{one.record / 1024:.1f}",
                        f"{one.reports / 1024:.0f}",
                    )
                )
    columns = (
        "workers",
        "start, s",
        f"{given.pairs} pairs, s",
        "pairs per second",
        "times one process",
        "again, ms a pair",
        "database, KiB a pair",
        "reports, KiB a pair",
    )
    publish("scaling", said, [Table("Time by workers", columns, rows)], given.write)


if __name__ == "__main__":
    main()
