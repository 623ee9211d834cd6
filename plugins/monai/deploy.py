"""An operator for the MONAI Deploy App SDK, which must be installed to import this module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.deploy.core import ConditionType, Fragment, Operator, OperatorSpec

import medqa
from medqa.assessment import Task
from medqa.errors import UsageError

from .series import assess_series

__all__ = ["AssessQualityOperator"]


class AssessQualityOperator(Operator):  # type: ignore[misc]  # MONAI ships no types
    """Judge a series against its source inside a MONAI application package.

    Named inputs: ``reference`` and ``candidate``, each what a ``DICOMSeriesSelectorOperator``
    emits (a list of ``StudySelectedSeries``, one series in all), or the folder of a series.
    Named output: ``assessment``, the record as JSON; it may stay unconnected.

    Parameters
    ----------
    fragment
        The application.
    output_folder
        Where the results go, as of `assess_series`.
    profile, task
        As of `medqa.Job`.
    store
        Where to record, as `medqa.Store.open` takes it; None records nothing.

    Raises
    ------
    UsageError
        From ``compute``: an input is not one series, or nothing could be judged or recorded.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        output_folder: Path,
        profile: str | None = None,
        task: Task = "routine",
        store: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.output_folder = Path(output_folder)
        self.profile = profile
        self.task = task
        self.store = None if store is None else medqa.Store.open(store)
        self.network = medqa.GrayLPIPS()
        super().__init__(fragment, *args, **kwargs)  # the SDK wants it last

    def setup(self, spec: OperatorSpec) -> None:
        """Name the ports."""
        spec.input("reference")
        spec.input("candidate")
        spec.output("assessment").condition(ConditionType.NONE)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:  # noqa: ARG002
        """Judge what has arrived."""
        assessment = assess_series(
            _series(op_input.receive("reference"), "reference"),
            _series(op_input.receive("candidate"), "candidate"),
            self.output_folder,
            profile=self.profile,
            task=self.task,
            store=self.store,
            network=self.network,
        )
        op_output.emit(assessment.model_dump_json(), "assessment")


def _series(received: Any, port: str) -> str | tuple[str, ...]:
    """Return the folder, or the files, of the one series that arrived at an operator's port."""
    if isinstance(received, (str, Path)):
        return str(received)
    series = [one.series for study in received or () for one in study.selected_series]
    if len(series) != 1:
        raise UsageError(port, f"got {len(series)} series", "select exactly one")
    instances = series[0].get_sop_instances()
    return tuple(str(one.get_native_sop_instance().filename) for one in instances)
