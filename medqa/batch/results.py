"""The results of a batch as a table: Parquet and CSV, a row for each pair."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from medqa.assessment import MEASURE_WORDS, Assessment, Level
from medqa.batch.run import Done
from medqa.batch.workers import report_path
from medqa.errors import UsageError

__all__ = ["Results", "exit_code"]

_TEXT = ("name", "reference", "candidate", "modality", "body_part", "profile", "verdict")
_KINDS: dict[str, str] = {
    "number": "int64",
    **dict.fromkeys(_TEXT, "string"),
    "meets": "bool_",
    **dict.fromkeys(("distance", "diagnostic_limit", "screening_limit"), "float64"),
    "pathology_distance": "float64",
    "pathology_preserved": "bool_",
    "annotations": "int64",
    "annotations_preserved": "int64",
    **dict.fromkeys(MEASURE_WORDS, "float64"),
    "reason": "string",
    "assessment_id": "string",
    "recorded_before": "bool_",
    "report": "string",
}
_PART = ".results.part"
_ROWS = 1000  # kept in memory before they go to the disk


class Results:
    """Takes rows as they come, keeps them on the disk, and writes them in order at the end.

    A context manager; rows that were not finished leave no file.
    """

    def __init__(self, out: Path, require: Level) -> None:
        import pyarrow
        from pyarrow import parquet

        self._schema = pyarrow.schema([(name, getattr(pyarrow, k)()) for name, k in _KINDS.items()])
        self._out, self._require = out, require
        self._part = out / _PART
        self._rows: list[dict[str, Any]] = []
        with _writing(out):
            self._writer = parquet.ParquetWriter(self._part, self._schema)
        self.code = 0

    def add(self, done: Done, *, report: bool) -> None:
        """Add a row; `report` says whether a report was written.

        Raises
        ------
        UsageError
            It cannot be written.
        """
        self.code = max(self.code, exit_code(done, self._require))
        self._rows.append(_row(done, self._require, report=report))
        if len(self._rows) >= _ROWS:
            self._flush()

    def finish(self) -> Any:
        """Write ``results.parquet`` and ``results.csv``, in the order of the pairs.

        Returns
        -------
        The Arrow table.

        Raises
        ------
        UsageError
            They cannot be written.
        """
        from pyarrow import csv, parquet

        self._flush()
        with _writing(self._out):
            self._writer.close()
            table = parquet.read_table(self._part).sort_by("number")
            for name, write in (("parquet", parquet.write_table), ("csv", csv.write_csv)):
                write(table, self._part)
                os.replace(self._part, self._out / f"results.{name}")
        return table

    def _flush(self) -> None:
        import pyarrow

        with _writing(self._out):
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()
        self._part.unlink(missing_ok=True)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        mend = "name a folder that you may write to and that has space"
        raise UsageError(out, "results cannot be written here", mend, str(error)) from error


def exit_code(done: Done, require: Level) -> int:
    """0: the required level is met. 1: it is not. 2: nothing could be judged."""
    if done.assessment is None or done.assessment.verdict == "not_assessable":
        return 2
    return 0 if done.assessment.meets(require) else 1


def _row(done: Done, require: Level, *, report: bool) -> dict[str, Any]:
    """Return a row; what was not measured is None."""
    row, one = done.row, done.assessment
    given = {
        "number": row.number,
        "name": row.name or None,
        "reference": row.reference,
        "candidate": row.candidate,
        "recorded_before": done.before,
    }
    if one is None:
        unjudged = {"verdict": "not_assessable", "meets": False, "reason": done.reason}
        return given | unjudged
    page = {"report": report_path(one.assessment_id) if report else None}
    return given | _judged(one, require) | page


def _judged(one: Assessment, require: Level) -> dict[str, Any]:
    limits = {limit.name: limit.value for limit in one.limits}
    reference, pathology = one.inputs.reference, one.pathology_preservation
    regions = one.annotation_preservation
    return {
        "modality": reference and reference.modality,
        "body_part": reference and reference.body_part,
        "profile": one.profile and f"{one.profile.name} {one.profile.version}",
        "verdict": one.verdict,
        "meets": one.meets(require),
        "distance": one.base_lpips_score,
        "diagnostic_limit": limits.get("diagnostic"),
        "screening_limit": limits.get("screening"),
        "pathology_distance": pathology and pathology.pathology_lpips,
        "pathology_preserved": pathology and pathology.pathology_preserved,
        "annotations": len(regions),
        "annotations_preserved": sum(region.preserved for region in regions),
        **{name: one.metrics.get(name) for name in MEASURE_WORDS},
        "reason": one.reasons[0].text if one.reasons else None,
        "assessment_id": one.assessment_id,
    }
