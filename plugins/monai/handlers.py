"""Ignite handlers: the share of diagnostic images as a metric, and a record of every image."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import IgniteMetricHandler

import medqa
from medqa.assessment import Assessment
from medqa.errors import UsageError

from .metric import VerdictMetric

__all__ = ["AuditHandler", "VerdictHandler"]


class VerdictHandler(IgniteMetricHandler):  # type: ignore[misc]  # MONAI ships no types
    """`VerdictMetric` for an Ignite engine: the share that is diagnostic, in its metrics.

    Parameters
    ----------
    key
        Of the candidate that `AssessQualityd` judged in the engine's post-processing.
    """

    def __init__(self, key: str) -> None:
        super().__init__(
            metric_fn=VerdictMetric(),
            output_transform=lambda output: (_added(output, f"{key}_verdict"), None),
        )


class AuditHandler:
    """Record what `AssessQualityd` found at validation: one record for each image.

    Attach it to an Ignite engine whose output is a list of dictionaries, as that of MONAI's
    evaluators after their post-processing. The records' origin is ``monai``, and their correlation
    id ``<run>/epoch <n>/image <i>``, counted from 1. An image that is not assessable is recorded
    like any other, and the engine goes on.

    Parameters
    ----------
    store
        An open store, or where to open one, as `medqa.Store.open` takes it.
    key
        Of the candidate.
    run
        What to call this training in the record; it must name no patient.

    Raises
    ------
    StoreError
        The database cannot be written, now or later: an image that cannot be recorded stops the
        engine.
    UsageError
        From the engine: its output holds no assessment.
    """

    def __init__(self, store: medqa.Store | str, key: str, run: str) -> None:
        self.store = medqa.Store.open(store) if isinstance(store, str) else store
        self.key = key
        self.run = run
        self._images = 0

    def attach(self, engine: Engine) -> None:
        """Record whatever this engine puts out from now on."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Record the images of one iteration."""
        for record in _added(engine.state.output, f"{self.key}_assessment"):
            self._images += 1
            named = {
                "origin": "monai",
                "correlation_id": f"{self.run}/epoch {engine.state.epoch}/image {self._images}",
            }
            assessment = Assessment.model_validate_json(record)
            self.store.add(assessment.model_copy(update=named))

    def _begin(self) -> None:
        self._images = 0


def _added(output: Any, key: str) -> list[str]:
    """Return what `AssessQualityd` added to each item of an engine's output."""
    if not isinstance(output, list) or not all(key in item for item in output):
        mend = "put AssessQualityd into the post-processing, and let the evaluator decollate"
        raise UsageError(key, "is not in the engine's output", mend)
    return [item[key] for item in output]
