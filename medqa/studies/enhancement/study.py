"""A study of denoising or super-resolution: every case under every method, and what follows.

A method is acceptable where every case is: everything could be judged, the verdict against the
reference, where there is one, is diagnostic, nothing was added that the input does not support,
and no lesion was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from medqa.audit import Store
from medqa.batch.workers import Processes
from medqa.errors import StoreError, UsageError
from medqa.files import write_file
from medqa.studies.enhancement.cases import Case, Cases
from medqa.studies.enhancement.evaluate import Setting, evaluate, key_of
from medqa.studies.enhancement.measures import Definition
from medqa.studies.enhancement.ranking import Ranking, ranked
from medqa.studies.enhancement.rows import COUNTS, HEADLINES, Outcome, Row, definitions

__all__ = [
    "Method",
    "Study",
    "case_path",
    "conclude",
    "outcome_of",
    "run",
    "setting_for",
    "write_results",
]

_STUDY_LEVEL = 0.05  # chance, at most, of a false unsupported structure of a method, in a study


@dataclass(frozen=True)
class Method:
    """What a study found of one method.

    Parameters
    ----------
    name
        Of the method.
    rows
        One for each case.
    order
        Mean of its average ranks over the headline measures, 1 is best; None with one method, or
        no case on which all methods were measured.
    """

    name: str
    rows: tuple[Row, ...]
    order: float | None

    @property
    def acceptable(self) -> bool:
        """Whether every case is acceptable."""
        return all(one.acceptable for one in self.rows)

    @property
    def unacceptable(self) -> int:
        """On how many cases something is wrong."""
        return sum(bool(one.wrong) for one in self.rows)

    @property
    def unjudged(self) -> int:
        """How many cases could not be judged, and have nothing wrong that was."""
        return sum(bool(one.unjudged and not one.wrong) for one in self.rows)

    def median(self, key: str) -> float | None:
        """Median of a measure over the cases that have it."""
        found = [one.values[key] for one in self.rows if key in one.values]
        return float(np.median(found)) if found else None

    def summed_up(self, key: str) -> float | None:
        """Return the total of a count of findings, of any other measure the median."""
        counted = key in COUNTS and any(key in one.values for one in self.rows)
        return float(self.total(key)) if counted else self.median(key)

    def measured(self, key: str) -> int:
        """On how many cases a measure is defined."""
        return sum(key in one.values for one in self.rows)

    def total(self, key: str) -> int:
        """Sum of a count over the cases."""
        return round(sum(one.values.get(key, 0.0) for one in self.rows))

    @property
    def lesions(self) -> tuple[int, int]:
        """How many lesions are preserved, of how many that the image showed before."""
        told = [one.preserved for row in self.rows for one in row.lesions]
        return sum(one is True for one in told), sum(one is not None for one in told)


@dataclass(frozen=True)
class Study:
    """A finished study.

    Parameters
    ----------
    cases
        What was compared.
    setting
        How.
    methods
        The best first: acceptable ones, then by their order.
    rankings
        By key of the measures that have a direction; empty for one method.
    """

    cases: Cases
    setting: Setting
    methods: tuple[Method, ...]
    rankings: Mapping[str, Ranking]

    @property
    def headlines(self) -> tuple[str, ...]:
        """Measures that the order rests on."""
        return HEADLINES[self.cases.task, self.cases.referenced]

    @property
    def definitions(self) -> tuple[tuple[str, tuple[Definition, ...]], ...]:
        """Measures in groups, those that no row has left out."""
        have = {key for method in self.methods for row in method.rows for key in row.values}
        groups = definitions(self.cases.task, referenced=self.cases.referenced)
        kept = [(name, tuple(one for one in some if one.key in have)) for name, some in groups]
        return tuple((name, some) for name, some in kept if some)

    @property
    def code(self) -> int:
        """0: a method is acceptable. 1: none is. 2: it could not be judged whether one is."""
        if self.cases.left or not self.cases.cases:
            return 2
        if any(method.acceptable for method in self.methods):
            return 0
        return 1 if all(method.unacceptable for method in self.methods) else 2


def case_path(number: int) -> str:
    """Path of a case's page below the study's folder."""
    return f"cases/{number:04d}.html"


def setting_for(cases: Cases, **given: Any) -> Setting:
    """Return the setting of a study, its level shared between the cases (Bonferroni)."""
    return Setting(cases.task, _STUDY_LEVEL / max(len(cases.cases), 1), **given)


def run(
    cases: Cases,
    setting: Setting,
    out: Path,
    store: Store | None = None,
    *,
    jobs: int = 1,
    resume: bool = False,
    actor: str | None = None,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> Study:
    """Evaluate every case, and keep what was found of each in ``cases/`` as it is finished.

    Parameters
    ----------
    out
        Folder of the study.
    store
        Where assessments are recorded; None records nothing.
    jobs
        Worker processes; one works in this process.
    resume
        Take over cases that were finished before, with the same inputs and setting.
    actor
        Who asks, for the record.
    progress
        Called with the cases done and their number.

    Raises
    ------
    UsageError
        The folder holds a study and is not to be resumed, or cannot be written; nothing of what
        was finished is lost.
    """
    done = _finished(cases, setting, out) if resume else {}
    if not resume and any((out / "cases").glob("*.json")):
        mend = "go on with --resume, or name another folder"
        raise UsageError(out, "holds a study already", mend)
    rows: dict[int, tuple[Row, ...]] = {}
    todo = [case for case in cases.cases if case.number not in done]
    total = len(cases.cases)
    # What was finished by a run that was killed may lack in the record.
    for number, outcome in done.items():
        _record(outcome, store, actor, look=True)
        rows[number] = _kept(outcome)
    progress(len(rows), total)
    for case, outcome in _evaluated(todo, setting, jobs):
        # The file first: what it holds is recorded when the study is resumed, if not now.
        write_file(_file(out, case.number), outcome.model_dump_json().encode())
        _record(outcome, store, actor, look=False)
        rows[case.number] = _kept(outcome)
        progress(len(rows), total)
    return conclude(cases, setting, [row for number in sorted(rows) for row in rows[number]])


def _file(out: Path, number: int) -> Path:
    return out / f"{case_path(number).removesuffix('.html')}.json"


def outcome_of(out: Path, number: int) -> Outcome:
    """Read what was found of a case, with its pictures."""
    return Outcome.model_validate_json(_file(out, number).read_bytes())


def _finished(cases: Cases, setting: Setting, out: Path) -> dict[int, Outcome]:
    """Outcomes that were kept, of cases whose inputs and setting are the same."""
    found = {}
    for case in cases.cases:
        try:
            outcome = outcome_of(out, case.number)
        except (OSError, ValidationError):
            continue
        if outcome.key == key_of(case, setting):
            found[case.number] = outcome
    return found


def _kept(outcome: Outcome) -> tuple[Row, ...]:
    """Rows without what only the record needs: a study may have many."""
    keep = {"windows": (), "slices": (), "limits": (), "annotation_preservation": ()}
    return tuple(
        row.model_copy(update={"assessment": row.assessment.model_copy(update=keep)})
        if row.assessment
        else row
        for row in outcome.rows
    )


def _record(outcome: Outcome, store: Store | None, actor: str | None, *, look: bool) -> None:
    if store is None:
        return
    for row in outcome.rows:
        if row.assessment is None or (look and _recorded(store, row.assessment.assessment_id)):
            continue
        store.add(row.assessment, actor=actor)


def _recorded(store: Store, assessment_id: str) -> bool:
    try:
        store.get(assessment_id)
    except StoreError:
        return False
    return True


def _evaluated(todo: Sequence[Case], setting: Setting, jobs: int) -> Iterator[tuple[Case, Outcome]]:
    """Evaluate cases, each as soon as it is done."""
    if jobs == 1:
        yield from ((case, evaluate(case, setting)) for case in todo)
        return
    coming = iter(todo)
    with ExitStack() as stack:
        pool = stack.enter_context(Processes(min(jobs, max(len(todo), 1))))
        running: dict[Future[Outcome], Case] = {}
        while True:
            for case in islice(coming, pool.slots - len(running)):
                running[pool.submit(evaluate, case, setting)] = case
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                case = running.pop(future)
                try:
                    yield case, future.result()
                except pool.lost:
                    yield case, _lost(case)


def _lost(case: Case) -> Outcome:
    """Outcome of a case whose process was ended; never taken over by a later run."""
    reason = "the process that measured it was ended, for want of memory perhaps"
    rows = tuple(
        Row(
            number=case.number,
            case=case.group or str(case.number),
            name=case.name,
            method=method,
            failure=f"{reason}; try again with fewer --jobs",
        )
        for method in (*case.outputs, *case.missing)
    )
    return Outcome(key="lost", rows=rows)


def conclude(cases: Cases, setting: Setting, rows: Sequence[Row]) -> Study:
    """Rank the methods and put the best first."""
    groups = definitions(cases.task, referenced=cases.referenced)
    rankings = {}
    for _, measures in groups:
        for one in measures:
            if one.better != "neither" and (found := _ranking(cases, one, rows)) is not None:
                rankings[one.key] = found
    orders = [rankings[key] for key in HEADLINES[cases.task, cases.referenced] if key in rankings]
    methods = []
    for at, name in enumerate(cases.methods):
        order = float(np.mean([one.ranks[at] for one in orders])) if orders else None
        own = tuple(row for row in rows if row.method == name)
        methods.append(Method(name, own, order))
    methods.sort(key=lambda one: (not one.acceptable, one.order or 0.0, one.unacceptable))
    return Study(cases, setting, tuple(methods), rankings)


def _ranking(cases: Cases, measure: Definition, rows: Sequence[Row]) -> Ranking | None:
    """Rank by one measure, on cases where all methods have it; images of one case are averaged."""
    if len(cases.methods) < 2:
        return None
    by_image: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        if measure.key in row.values:
            by_image.setdefault((row.case, row.number), {})[row.method] = row.values[measure.key]
    by_case: dict[str, list[list[float]]] = {}
    for (case, _), found in by_image.items():
        if len(found) == len(cases.methods):
            by_case.setdefault(case, []).append([found[name] for name in cases.methods])
    if not by_case:
        return None
    values = np.array([np.mean(images, axis=0) for images in by_case.values()])
    return ranked(cases.methods, values, "higher" if measure.better == "higher" else "lower")


def write_results(study: Study, out: Path) -> None:
    """Write ``results.csv`` and ``results.parquet``, a row for each case and method.

    Raises
    ------
    UsageError
        They cannot be written.
    """
    import pyarrow
    from pyarrow import csv, parquet

    rows = sorted(
        (row for method in study.methods for row in method.rows),
        key=lambda row: (row.number, study.cases.methods.index(row.method)),
    )
    groups = definitions(study.cases.task, referenced=study.cases.referenced)
    keys = dict.fromkeys(one.key for _, measures in groups for one in measures)
    text = ("image", "case", "method", "modality", "profile", "verdict", "reason", "assessment_id")
    whole = ("lesions", "lesions_preserved")
    schema = pyarrow.schema(
        [
            ("number", pyarrow.int64()),
            *((name, pyarrow.string()) for name in text),
            ("acceptable", pyarrow.bool_()),
            ("judged", pyarrow.bool_()),
            *((name, pyarrow.int64()) for name in whole),
            *((key, pyarrow.float64()) for key in keys),
        ]
    )
    table = pyarrow.Table.from_pylist([_flat(row) for row in rows], schema=schema)
    for name, write in (("parquet", parquet.write_table), ("csv", csv.write_csv)):
        sink = pyarrow.BufferOutputStream()
        write(table, sink)
        write_file(out / f"results.{name}", sink.getvalue().to_pybytes())


def _flat(row: Row) -> dict[str, Any]:
    assessment = row.assessment
    told = [one.preserved for one in row.lesions if one.preserved is not None]
    return {
        "number": row.number,
        "image": row.name,
        "case": row.case,
        "method": row.method,
        "modality": row.modality,
        "profile": row.profile,
        "verdict": assessment and assessment.verdict,
        "reason": "; ".join((*row.unjudged, *row.wrong)) or None,
        "assessment_id": assessment and assessment.assessment_id,
        "acceptable": row.acceptable,
        "judged": not row.unjudged,
        "lesions": len(told),
        "lesions_preserved": sum(told),
        **row.values,
    }
