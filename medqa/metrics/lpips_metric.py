"""LPIPS where MONAI expects a measure: as a metric, an Ignite handler, a dictionary transform."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from monai.metrics.utils import do_metric_reduction
from monai.transforms import MapTransform
from monai.utils import MetricReduction, convert_to_tensor
from torch import Tensor

from medqa.errors import PixelError, UsageError
from medqa.losses import plane_batches
from medqa.lpips import GrayLPIPS
from medqa.weights import Weights

__all__ = ["LPIPSHandler", "LPIPSMetric", "LPIPSd"]

# Slices of a volume that are encoded at a time.
_BATCH = 16


class LPIPSMetric(CumulativeIterationMetric):  # type: ignore[misc]  # MONAI ships no types
    """LPIPS distance of predictions from their targets; 0 is identical, lower is better.

    Called with a batch it returns the distances, (B, 1), and keeps them for `aggregate`. Both
    arguments are (B, 1, H, W), or (B, 1, H, W, D), in [0, 1], or lists of such items without B.
    The distance of a volume is the mean over its three axes of the mean over all slices along
    that axis. The network follows the targets to their device, and computes in float32.

    Parameters
    ----------
    backbone
        A network of `medqa.weights.BACKBONES`.
    weights
        Folder of the official weights, as for `medqa.GrayLPIPS`.
    reduction
        What `aggregate` returns, one of MONAI's: ``mean``, ``none`` and so on.

    Raises
    ------
    WeightsError
        The weights are missing, or are not the pinned ones.
    PixelError
        When called: another shape, sides too small for the network, or values outside [0, 1] or
        NaN in either argument.

    References
    ----------
    Zhang et al., CVPR 2018, doi:10.1109/CVPR.2018.00068.
    """

    def __init__(
        self,
        backbone: str = "gray",
        *,
        weights: str | Path | Weights | None = None,
        reduction: MetricReduction | str = MetricReduction.MEAN,
    ) -> None:
        super().__init__()
        self.network = GrayLPIPS(backbone, weights)
        self.reduction = reduction

    def _compute_tensor(
        self,
        y_pred: Tensor,
        y: Tensor | None = None,
        **kwargs: Any,  # noqa: ARG002 (MONAI's call)
    ) -> Tensor:
        if y is None:
            raise UsageError("LPIPSMetric", "has no target", "call it with y_pred and y")
        return _distances(self.network, y, y_pred)[:, None]

    def aggregate(self, reduction: MetricReduction | str | None = None) -> Tensor:
        """Return the distances of all items since `reset`, of all processes, reduced.

        Parameters
        ----------
        reduction
            Instead of the one that the metric was made with.

        Raises
        ------
        UsageError
            There was no item.
        """
        distances = self.get_buffer()
        if distances is None:
            raise UsageError("LPIPSMetric", "has measured nothing", "call it before `aggregate`")
        reduced: Tensor = do_metric_reduction(distances, reduction or self.reduction)[0]
        return reduced


class LPIPSHandler(IgniteMetricHandler):  # type: ignore[misc]  # MONAI ships no types
    """`LPIPSMetric` for an Ignite engine: attach it, and read ``engine.state.metrics``.

    Needs ``pip install 'medqa[ignite]'``.

    Parameters
    ----------
    backbone, weights, reduction
        As for `LPIPSMetric`.
    output_transform
        Takes the engine's output, and returns predictions and targets as `LPIPSMetric` takes them.
    save_details
        Whether each item's distance goes to ``engine.state.metric_details``.
    """

    def __init__(
        self,
        backbone: str = "gray",
        *,
        weights: str | Path | Weights | None = None,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        output_transform: Callable[[Any], Any] = lambda output: output,
        save_details: bool = True,
    ) -> None:
        super().__init__(
            metric_fn=LPIPSMetric(backbone, weights=weights, reduction=reduction),
            output_transform=output_transform,
            save_details=save_details,
        )


class LPIPSd(MapTransform):  # type: ignore[misc]  # MONAI ships no types
    """Add the LPIPS distance of an image from a reference, both in one dictionary.

    The distance, a float, goes to the key with ``_lpips`` after it. Images are (1, H, W) or
    (1, H, W, D) arrays or tensors in [0, 1], measured as by `LPIPSMetric`.

    Parameters
    ----------
    keys
        Of the images to measure.
    reference_key
        Of what they are compared with.
    backbone, weights
        As for `LPIPSMetric`.
    allow_missing_keys
        Whether a key may be missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        reference_key: Hashable,
        *,
        backbone: str = "gray",
        weights: str | Path | Weights | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_key = reference_key
        self.network = GrayLPIPS(backbone, weights)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the distances added."""
        found = dict(data)
        reference = convert_to_tensor(data[self.reference_key], track_meta=False)[None]
        for key in self.key_iterator(found):
            candidate = convert_to_tensor(data[key], track_meta=False)[None]
            found[f"{key}_lpips"] = float(_distances(self.network, reference, candidate))
        return found


@torch.no_grad()
def _distances(network: GrayLPIPS, reference: Tensor, candidate: Tensor) -> Tensor:
    """Distances of (B, 1, H, W) or (B, 1, H, W, D): (B,)."""
    if reference.shape != candidate.shape or reference.ndim not in (4, 5):
        shapes = f"{tuple(candidate.shape)} and {tuple(reference.shape)}"
        raise PixelError(
            "images", f"of shapes {shapes}", "give both as (B, 1, H, W) or as (B, 1, H, W, D)"
        )
    network.to(reference.device)
    one: Tensor = convert_to_tensor(reference, dtype=torch.float32, track_meta=False)
    other: Tensor = convert_to_tensor(candidate, dtype=torch.float32, track_meta=False)
    planes = []
    with torch.autocast(one.device.type, enabled=False):
        for both in zip(plane_batches(one), plane_batches(other), strict=True):
            batches = zip(*(torch.split(slices, _BATCH) for slices in both), strict=True)
            distances = torch.cat([network(*batch) for batch in batches])
            planes.append(distances.view(len(one), -1).mean(dim=1))  # (B slices,) to (B,)
    return torch.stack(planes).mean(dim=0)
