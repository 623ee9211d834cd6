"""Companion measures: how else two displayed images differ.

Every measure is called as ``measure(reference, candidate, data_range=1.0, mask=None)``:

- `reference` and `candidate` are (N, 1, H, W), of any real type, with values in [0, data_range].
- `mask` is (N, 1, H, W) bool. A measure that is not defined inside a mask refuses one.
- It returns (N,) float32 values, one for each pair, NaN where undefined: below the measure's
  smallest side, in an empty mask, and where the measure's own docstring says so.
- It raises `PixelError` for other shapes and values, NaN among them, and `RegionError` or
  `UsageError` for a mask that does not fit.

The images are scaled to [0, 1] first, in float32, so that no measure depends on `data_range`, and
integers cannot wrap.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import util
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from medqa.errors import PixelError, RegionError, UsageError, WeightsError
from medqa.metrics.gaussian import smooth
from medqa.metrics.measure import Measure
from medqa.weights import BACKBONES, digest, find, locate

__all__ = [
    "COMPANIONS",
    "dists",
    "fsim",
    "gmsd",
    "haarpsi",
    "ms_ssim",
    "mutual_information",
    "nmse",
    "psnr_db",
    "ssim",
    "unavailable",
    "vif",
]

_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
_BINS = 64

# DISTS's own weights.
_DISTS_SHA256 = "d315ebc835b3aeb0dc3e641a861fe7a8a5e612bb91dc56dcef7f03a938913a75"
# VGG-16's convolutions in the order of the network, up to each tap: relu1_2 ... relu5_3.
_VGG_TAPS = (0, 2, 4, 7, 10, 13)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def psnr_db(
    reference: Tensor, candidate: Tensor, data_range: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Peak signal-to-noise ratio in dB, of the whole `data_range`; higher is better.

    Infinite for identical images.
    """
    return _measured(
        "psnr_db",
        lambda x, y: -10 * torch.log10(_mean((x - y).square(), mask)),
        (reference, candidate, data_range, mask),
    )


def ssim(
    reference: Tensor, candidate: Tensor, data_range: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Structural similarity in [-1, 1]; 1 is identical, higher is better.

    Gaussian window of 11 pixels, sigma 1.5, K1 0.01, K2 0.03, at full resolution (Wang et al.,
    IEEE Transactions on Image Processing 13, 2004). The windows that lie inside the image count;
    with a mask, those whose centre lies in the mask.
    """

    def compute(x: Tensor, y: Tensor) -> Tensor:
        edge = _SSIM_WINDOW // 2
        inside = (..., slice(edge, -edge), slice(edge, -edge))
        images = (x, y, x * x, y * y, x * y)
        a, b, aa, bb, ab = (smooth(one, _SSIM_SIGMA, edge)[inside] for one in images)
        means, squares = a * b, a * a + b * b
        luminance = (2 * means + _SSIM_C1) / (squares + _SSIM_C1)
        structure = (2 * (ab - means) + _SSIM_C2) / (aa + bb - squares + _SSIM_C2)
        return _mean(luminance * structure, None if mask is None else mask[inside])

    return _measured("ssim", compute, (reference, candidate, data_range, mask))


def ms_ssim(
    reference: Tensor, candidate: Tensor, data_range: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Structural similarity over five scales in [0, 1]; 1 is identical, higher is better.

    The window of `ssim`, halved four times by 2 x 2 means; a negative mean counts as 0. By piq.
    """
    return _measured(
        "ms_ssim",
        lambda x, y: _piq().multi_scale_ssim(y, x, reduction="none"),
        (reference, candidate, data_range, mask),
    )


def vif(
    reference: Tensor, candidate: Tensor, data_range: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Visual information fidelity in the pixel domain (VIFp), at least 0; higher is better.

    1 is identical; more contrast than the reference's gives more than 1. The authors' pixel-domain
    variant over four scales, by piq: not their wavelet variant. Rounding can cost some 0.0003. NaN
    where the reference is constant, because it holds no information then.
    """

    def compute(x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = _piq().vif_p(y, x, reduction="none")
        return found.masked_fill(x.amax(dim=(1, 2, 3)) == x.amin(dim=(1, 2, 3)), math.nan)

    return _measured("vif", compute, (reference, candidate, data_range, mask))


def haarpsi(
    reference: Tensor, candidate: Tensor, data_range: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Haar wavelet-based perceptual similarity in [0, 1]; 1 is identical, higher is better.

    With the published constants and the halving before it, by piq. NaN where both images are
    black, because nothing has any weight then.
    """

    def compute(x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = _piq().haarpsi(y, x, reduction="none")
        found = found.clamp(max=1)  # its logit rounds beyond 1
        return found.masked_fill(torch.maximum(x, y).amax(dim=(1, 2, 3)) == 0, math.nan)

    return _measured("haarpsi", compute, (reference, candidate, data_range, mask))


def fsim(
    reference: Tensor, candidate: Tensor, data_range: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Feature similarity in [0, 1]; 1 is identical, higher is better.

    Phase congruency and gradient, without colour, at about 256 pixels along the shorter side, by
    piq. It does not see a change of the mean.
    """
    return _measured(
        "fsim",
        lambda x, y: _piq().fsim(y, x, chromatic=False, reduction="none"),
        (reference, candidate, data_range, mask),
    )


def gmsd(
    reference: Tensor, candidate: Tensor, data_range: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Gradient magnitude similarity deviation, at least 0; 0 is identical, lower is better.

    The standard deviation of the local similarity of gradients, after halving, by piq. Damage that
    is even everywhere, and a change of the mean, leave it at 0.
    """
    return _measured(
        "gmsd",
        lambda x, y: _piq().gmsd(y, x, reduction="none"),
        (reference, candidate, data_range, mask),
    )


def dists(
    reference: Tensor, candidate: Tensor, data_range: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Deep image structure and texture similarity in [0, 1]; 0 is identical, lower is better.

    Three copies of the channel, at full resolution, as in the authors' network; only their demo
    shrinks images to 256 pixels.

    Raises
    ------
    WeightsError
        Its weights are not on this machine, or are not the pinned ones: see `unavailable`.
    """

    def compute(x: Tensor, y: Tensor) -> Tensor:
        if missing := unavailable("dists"):
            raise missing
        return _dists(x, y)

    return _measured("dists", compute, (reference, candidate, data_range, mask))


def nmse(
    reference: Tensor, candidate: Tensor, data_range: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Squared error by the reference's energy, at least 0; 0 is identical, lower is better.

    NaN where the reference is black.
    """

    def compute(x: Tensor, y: Tensor) -> Tensor:
        energy = _mean(x.square(), mask)
        return (_mean((x - y).square(), mask) / energy).masked_fill(energy == 0, math.nan)

    return _measured("nmse", compute, (reference, candidate, data_range, mask))


def mutual_information(
    reference: Tensor, candidate: Tensor, data_range: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Mutual information of the pixel values in bits, in [0, 6]; higher is better.

    From the joint histogram with 64 equal bins over `data_range` along both axes. Identical images
    give the entropy of the reference, so that values compare only for one reference. Few pixels
    give too much: with fewer than some 30,000, the bias can reach a tenth of a bit.
    """

    def compute(x: Tensor, y: Tensor) -> Tensor:
        count = len(x)
        one, other = ((image * _BINS).long().clamp(max=_BINS - 1) for image in (x, y))
        image = torch.arange(count, device=x.device).view(-1, 1, 1, 1)
        cells = (image * _BINS + one) * _BINS + other
        counted = cells.flatten() if mask is None else cells[mask]
        # (N, bins of the reference, bins of the candidate)
        joint = torch.bincount(counted, minlength=count * _BINS**2).view(count, _BINS, _BINS)
        share = joint.double() / joint.sum(dim=(1, 2), keepdim=True)
        one_by_one = torch.stack([share.sum(dim=axis) for axis in (1, 2)])
        nats = _entropy(one_by_one).sum(dim=0) - _entropy(share.flatten(1))
        return (nats / math.log(2)).clamp(min=0).float()

    return _measured("mutual_information", compute, (reference, candidate, data_range, mask))


#: Their records, in the order in which they are shown.
COMPANIONS: tuple[Measure, ...] = (
    Measure(
        "psnr_db",
        psnr_db,
        "Huynh-Thu and Ghanbari, Electronics Letters 2008, doi:10.1049/el:20080522",
        masked=True,
    ),
    Measure(
        "ssim",
        ssim,
        "Wang et al., IEEE TIP 2004, doi:10.1109/TIP.2003.819861",
        masked=True,
        smallest_side=_SSIM_WINDOW,
    ),
    Measure(
        "ms_ssim",
        ms_ssim,
        "Wang, Simoncelli and Bovik, Asilomar 2003, doi:10.1109/ACSSC.2003.1292216",
        masked=False,
        # The window on the image halved four times.
        smallest_side=161,
    ),
    Measure(
        "vif",
        vif,
        "Sheikh and Bovik, IEEE TIP 2006, doi:10.1109/TIP.2005.859378",
        masked=False,
        # Windows of 17, 9, 5 and 3 pixels, halved before each but the first.
        smallest_side=41,
    ),
    Measure(
        "haarpsi",
        haarpsi,
        "Reisenhofer et al., Signal Processing: Image Communication 2018, "
        "doi:10.1016/j.image.2017.11.001",
        masked=False,
        # The coarsest wavelet, 8 pixels, on the halved image.
        smallest_side=16,
    ),
    Measure(
        "fsim",
        fsim,
        "Zhang et al., IEEE TIP 2011, doi:10.1109/TIP.2011.2109730",
        masked=False,
        # The gradient filter.
        smallest_side=3,
    ),
    Measure(
        "gmsd",
        gmsd,
        "Xue et al., IEEE TIP 2014, doi:10.1109/TIP.2013.2293423",
        masked=False,
        # The gradient filter, 3 pixels, on the halved image.
        smallest_side=6,
    ),
    Measure(
        "dists",
        dists,
        "Ding et al., IEEE TPAMI 2022, doi:10.1109/TPAMI.2020.3045810",
        masked=False,
        # Below it the deepest maps are one pixel, which has no texture.
        smallest_side=17,
    ),
    Measure(
        "nmse",
        nmse,
        "Zbontar et al., fastMRI 2018, doi:10.48550/arXiv.1811.08839",
        masked=True,
    ),
    Measure(
        "mutual_information",
        mutual_information,
        "Maes et al., IEEE TMI 1997, doi:10.1109/42.563664",
        masked=True,
    ),
)
_BY_NAME: Mapping[str, Measure] = MappingProxyType({one.name: one for one in COMPANIONS})


def unavailable(name: str) -> WeightsError | None:
    """Say why a measure cannot run on this machine, or None where it can.

    Only ``dists`` needs more than medqa brings: VGG-16's weights.
    """
    if name != "dists":
        return None
    if not _dists_file().is_file():
        return WeightsError(
            "dists",
            "its own weights did not come with torchmetrics",
            "install torchmetrics 1.7 or later",
        )
    if locate("vgg") is None:
        file = BACKBONES["vgg"].files[0]
        return WeightsError(
            "dists",
            "the weights of VGG-16 are not on this machine",
            f"bring {file} and run: medqa weights import FOLDER",
        )
    return None


def _measured(
    name: str,
    compute: Callable[[Tensor, Tensor], Tensor],
    arguments: tuple[Tensor, Tensor, float, Tensor | None],
) -> Tensor:
    """Check a measure's arguments by its record and compute it on images in [0, 1]."""
    reference, candidate, data_range, mask = arguments
    record = _BY_NAME[name]
    if reference.ndim != 4 or reference.shape[1] != 1 or reference.shape != candidate.shape:
        raise PixelError(
            name,
            f"images {tuple(reference.shape)} and {tuple(candidate.shape)} instead of "
            "(N, 1, H, W) twice",
            "compare images of one shape",
        )
    images = reference.float(), candidate.float()
    for image in images:
        low, high = float(image.min()), float(image.max())
        # Written so that NaN fails too.
        if not (low >= 0 and high <= data_range):
            raise PixelError(
                name,
                f"values from {low:g} to {high:g}, not in [0, {data_range:g}]",
                "give the range of the data as data_range",
            )
    if mask is not None and not record.masked:
        raise UsageError(name, "it is not defined inside a mask", "leave the mask out")
    if mask is not None and (mask.shape != reference.shape or mask.dtype != torch.bool):
        raise RegionError(
            name,
            f"a mask {tuple(mask.shape)} {mask.dtype} instead of bool {tuple(reference.shape)}",
            "give one of the images' shape",
        )
    if min(reference.shape[2:]) < record.smallest_side:
        return images[0].new_full((len(reference),), math.nan)
    return compute(*(image / data_range for image in images))


def _piq() -> ModuleType:
    """Return piq, imported where it first measures: it loads torchvision, which takes seconds."""
    import piq  # type: ignore[import-untyped]  # it ships no type information

    found: ModuleType = piq
    return found


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of each image, inside the mask; NaN where that is empty."""
    if mask is None:
        return values.mean(dim=(1, 2, 3))
    return (values * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


def _entropy(shares: Tensor) -> Tensor:
    """Entropy in nats of shares that sum to 1 along the last axis."""
    entropy: Tensor = torch.special.entr(shares).sum(dim=-1)
    return entropy


def _dists(reference: Tensor, candidate: Tensor) -> Tensor:
    """DISTS of (N, 1 or 3, H, W) images in [0, 1]."""
    trunk, alpha, beta = _dists_weights(locate("vgg"))
    taps = zip(_dists_taps(reference, trunk), _dists_taps(candidate, trunk), strict=True)
    # The published constants against division by zero.
    constant = 1e-6
    structures, textures = [], []
    for one, other in taps:
        mean_one, mean_other = one.mean(dim=(2, 3)), other.mean(dim=(2, 3))
        variances = one.var(dim=(2, 3), correction=0) + other.var(dim=(2, 3), correction=0)
        covariance = (one * other).mean(dim=(2, 3)) - mean_one * mean_other
        structures.append(
            (2 * mean_one * mean_other + constant)
            / (mean_one.square() + mean_other.square() + constant)
        )
        textures.append((2 * covariance + constant) / (variances + constant))
    # (N, channels of all taps) times (channels,)
    likeness = torch.cat(structures, dim=1) @ alpha.to(reference)
    likeness += torch.cat(textures, dim=1) @ beta.to(reference)
    return 1 - likeness


def _dists_taps(images: Tensor, trunk: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the images in three channels and VGG-16's five taps, with L2 pooling."""
    x = images.expand(-1, 3, -1, -1)
    taps = [x]
    x = (x - x.new_tensor(_IMAGENET_MEAN).view(-1, 1, 1)) / x.new_tensor(_IMAGENET_STD).view(
        -1, 1, 1
    )
    layers = list(zip(trunk[::2], trunk[1::2], strict=True))
    for start, stop in pairwise(_VGG_TAPS):
        if start:
            x = _l2_pool(x)
        for weight, bias in layers[start:stop]:
            x = F.conv2d(x, weight.to(x), bias.to(x), padding=1).relu()
        taps.append(x)
    return taps


def _l2_pool(x: Tensor) -> Tensor:
    """Halve by the root of the Hann-weighted mean square of 3 x 3 pixels."""
    line = x.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(line, line).expand(x.shape[1], 1, 3, 3)
    pooled = F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1])
    return (pooled + 1e-12).sqrt()


def _dists_file() -> Path:
    """Where torchmetrics ships DISTS's own weights; found without the seconds of its import."""
    spec = util.find_spec("torchmetrics")
    package = Path(spec.origin).parent if spec and spec.origin else Path("torchmetrics")
    return package / "functional/image/dists_models/weights.pt"


@lru_cache(maxsize=1)
def _dists_weights(vgg: Path) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """VGG-16's convolutions, and DISTS's weights of structure and texture, (channels,) each."""
    mend = "reinstall torchmetrics"
    try:
        own = torch.load(_dists_file(), map_location="cpu", weights_only=True)
        alpha, beta = own["alpha"], own["beta"]
    except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as cause:
        raise WeightsError("dists", "its weights cannot be read", mend) from cause
    if digest((alpha, beta)) != _DISTS_SHA256:
        raise WeightsError("dists", "its weights are not the pinned ones", mend)
    total = alpha.sum() + beta.sum()
    return find("vgg", vgg.parent).trunk, (alpha / total).flatten(), (beta / total).flatten()
