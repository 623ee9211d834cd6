"""`VerdictMetric`: how many images of a set stay diagnostic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from medqa.assessment import Verdict
from medqa.errors import UsageError

__all__ = ["VerdictMetric"]

_VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


class VerdictMetric(CumulativeIterationMetric):  # type: ignore[misc]  # MONAI ships no types
    """Shares of images by their verdict; above all, of those that stay diagnostic.

    Called with the verdicts of a batch, a list of words, it returns (B, 4): 1 for the verdict, of
    ``diagnostic``, ``expert_review``, ``unsuitable``, ``not_assessable``, and 0 for the others.
    """

    def _compute_list(
        self,
        y_pred: Sequence[Verdict],
        y: object = None,  # noqa: ARG002 (MONAI's call)
        **kwargs: Any,  # noqa: ARG002
    ) -> Tensor:
        unknown = sorted({str(one) for one in y_pred} - set(_VERDICTS))
        if unknown:
            raise UsageError(unknown[0], "is no verdict", "give what AssessQualityd adds")
        return torch.tensor([[float(one == name) for name in _VERDICTS] for one in y_pred])

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:  # noqa: ARG002
        raise UsageError("VerdictMetric", "was given a tensor", "give a list of verdicts")

    def aggregate(self) -> Tensor:
        """Return the share of images since `reset` that are diagnostic, of all processes.

        Raises
        ------
        UsageError
            There was no image.
        """
        return torch.tensor(self.shares()["diagnostic"])

    def shares(self) -> dict[Verdict, float]:
        """Return the share of each verdict, from 0 to 1; raises as `aggregate` does."""
        verdicts = self.get_buffer()
        if verdicts is None:
            raise UsageError("VerdictMetric", "has seen no verdict", "call it before `aggregate`")
        return dict(zip(_VERDICTS, verdicts.mean(dim=0).tolist(), strict=True))
