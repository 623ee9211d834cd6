"""`medqa batch`: many pairs, on many processes or machines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medqa.cli.options import (
    Backbone,
    Db,
    Device,
    LevelName,
    Precision,
    PrecisionName,
    Require,
    RequireCalibrated,
    TaskName,
    User,
    WeightsFolder,
)
from medqa.errors import UsageError

if TYPE_CHECKING:
    from medqa.assessment import Job
    from medqa.batch.cluster import Cluster
    from medqa.batch.results import Results
    from medqa.batch.table import Pairs
    from medqa.batch.workers import Processes

__all__ = ["batch"]

_PART = ".batch"  # marks a folder of results, finished or not
_INTERRUPTED = 130  # 128 and SIGINT, as shells say it


class ReportsName(StrEnum):
    """Which pairs get a report with pictures."""

    all = "all"
    failed = "failed"
    none = "none"


def batch(
    pairs: Annotated[
        str,
        typer.Argument(
            metavar="PAIRS|REFERENCES",
            help="Table of the pairs, .csv or .parquet; or the folder of the references.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results and reports go.")],
    candidates: Annotated[
        str | None,
        typer.Argument(metavar="CANDIDATES", help="Folder of the candidates, after a folder."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Thresholds where the table names none; else those of the image.",
        ),
    ] = None,
    task: Annotated[
        TaskName, typer.Option(help="What was done to the images, where the table does not say.")
    ] = TaskName.routine,
    backbone: Backbone = "gray",
    precision: Precision = PrecisionName.float32,
    device: Device = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Worker processes, by default one for each core; with slurm: and kubernetes:, "
            "jobs or pods to start.",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Work on Dask: tcp://…, slurm:key=value,… or kubernetes:…"
        ),
    ] = None,
    reports: Annotated[
        ReportsName,
        typer.Option(help="Reports with pictures; of the other pairs without, or none at all."),
    ] = ReportsName.failed,
    require: Require = LevelName.diagnostic,
    db: Db = None,
    weights: WeightsFolder = None,
    user: User = None,
    *,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in DIR with what was stopped or killed.")
    ] = False,
    require_calibrated: RequireCalibrated = False,
    resample: Annotated[
        bool, typer.Option("--resample", help="Bring candidates to the grid of their references.")
    ] = False,
) -> None:
    """Judge many pairs. What is on record with the same inputs is not assessed again.

    Exit code 0: every pair meets the required level. 1: one does not, or an image has no
    counterpart. 2: one could not be judged, or wrong use. 130: stopped; go on with --resume.
    """
    from medqa.assessment import Job
    from medqa.audit import Store
    from medqa.batch.results import Results
    from medqa.batch.run import assess_all, measuring
    from medqa.batch.workers import Setting
    from medqa.identity import profile_digest

    # Whatever can be refused is refused before the work, not after it.
    template = Job(
        reference="",
        candidate="",
        profile=profile and _absolute(profile),
        task=task.value,
        require_calibrated=require_calibrated,
        backbone=_absolute(backbone),
        precision=precision.value,
        device=device,
        resample=resample,
        origin="medqa batch",
        actor=user,
    )
    found = _pairs(pairs, candidates, template)
    profiles = {name: profile_digest(name) for name in (None, *found.profiles)}
    _take(out, resume=resume)
    with Store.open(db) as store:
        setting = Setting(
            backbone=template.backbone,
            weights=None if weights is None else str(weights.absolute()),
            precision=precision.value,
            device=device,
            key=store.key,
            out=str(out.absolute()),
            reports=reports.value,
            require=require.value,
        )
        with Results(out, require.value) as results:
            try:
                with _pool(cluster, jobs, found.count) as pool, _progress(found.count) as advance:
                    measured = measuring(pool, setting)
                    for done in assess_all(found.rows, pool, store, setting, measured, profiles):
                        results.add(done, report=reports.value != "none")
                        advance(done.before)
            except KeyboardInterrupt:
                typer.echo("medqa: stopped; what was judged is on record: --resume", err=True)
                raise typer.Exit(_INTERRUPTED) from None
            code = _finish(found, results, out, require)
        typer.echo(f"record: {store.url_for_people}")
    raise typer.Exit(code)


def _absolute(name: str) -> str:
    """Return a file as workers find it from elsewhere; names of what is shipped as they are."""
    return str(Path(name).absolute()) if name.endswith((".toml", ".safetensors")) else name


def _pairs(pairs: str, candidates: str | None, template: Job) -> Pairs:
    from medqa.batch.table import from_folders, read_table

    if Path(pairs).is_dir():
        if candidates is None:
            raise UsageError(pairs, "is a folder", "name that of the candidates after it")
        return from_folders(pairs, candidates, template)
    if candidates is not None:
        raise UsageError(pairs, "is no folder", "give one table, or two folders")
    return read_table(Path(pairs), template)


def _take(out: Path, *, resume: bool) -> None:
    """Take a folder that is empty, or one of ours to go on in; prove that it can be written.

    Raises
    ------
    UsageError
        There is something in it.
    """
    from medqa.files import write_file

    marked = (out / _PART).exists()
    if resume and not marked:
        raise UsageError(out, "holds no batch to go on with", "leave --resume out")
    if not resume and out.is_dir() and any(out.iterdir()):
        mend = "go on with --resume" if marked else "name another"
        raise UsageError(out, "is not empty", mend)
    write_file(out / _PART, b"medqa batch\n")


def _pool(cluster: str | None, jobs: int | None, count: int) -> Processes | Cluster:
    if cluster is not None:
        from medqa.batch.cluster import Cluster

        return Cluster(cluster, jobs)
    from medqa.batch.workers import Processes

    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Processes(min(jobs or cores, count))


def _finish(found: Pairs, results: Results, out: Path, require: LevelName) -> int:
    """Write results and pages, say where they are; return the exit code."""
    from collections import Counter

    from medqa.batch.page import write_pages

    table = results.finish()
    page = write_pages(table, out, require.value, left=len(found.left))[0]
    counts = Counter(table["verdict"].to_pylist())
    words = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    before = sum(table["recorded_before"].to_pylist())
    typer.echo(f"{table.num_rows} pairs: {words}; {before} were on record before")
    typer.echo(f"results: {out / 'results.csv'}, {out / 'results.parquet'}")
    typer.echo(f"page: {page}")
    for line in found.left:
        typer.echo(f"medqa: {line}", err=True)
    return max(results.code, 1 if found.left else 0, 2 if found.damaged else 0)


@contextmanager
def _progress(count: int) -> Iterator[Callable[[bool], None]]:
    """Show on a terminal how many are done, how fast, and the time left.

    Pairs that were on record cost next to nothing: the speed and the time left are of the others.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("assessing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=count, speed="")
    begin, fresh, done = time.monotonic(), 0, 0

    def advance(before: bool) -> None:
        nonlocal fresh, done
        done += 1
        fresh += not before
        speed = ""
        if fresh:
            each = (time.monotonic() - begin) / fresh
            left = time.strftime("%H:%M:%S", time.gmtime(each * (count - done) % 86400))
            days = int(each * (count - done) // 86400)
            speed = f"{1 / each:.2f}/s, {f'{days} d ' if days else ''}{left} left"
        bar.update(task, completed=done, speed=speed)

    with bar:
        yield advance
