"""LPIPS on one channel: the learned perceptual image patch similarity of Zhang et al., CVPR 2018.

The distance of two images is, summed over the taps of a network, the spatial mean of the weighted
squared difference of their unit-normalised feature vectors. 0 is identical; lower is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medqa import kernels
from medqa.errors import PixelError, UsageError
from medqa.networks import compute_in, pieces, positions, stages, views, working_set
from medqa.reduced import follow, trail
from medqa.threads import each
from medqa.weights import ADAPTED_SUFFIX, BACKBONES, Weights, find

__all__ = ["PRECISIONS", "SMALLEST_SIDE", "Differences", "Features", "GrayLPIPS", "choose_device"]

#: Pixels that an image must have along both axes. Where a network needs more, the image is
#: continued by reflection.
SMALLEST_SIDE = 16

#: What a network may compute in.
PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# Added to the norm of a feature vector before dividing by it, as in LPIPS v0.1.
_EPSILON = 1e-10
# Memory in bytes that one run of a network may take, at most: what decides the size of a tile.
_LARGEST_RUN = {"cpu": 2**30, "cuda": 2**32}
# Memory of the pairs that one thread takes through the network together: at 512 x 512 two of gray
# and a single one of the others, which its core's cache holds for a while. Of fewer, the threads
# would often wait for the interpreter.
_CACHED_RUN = 32 * 2**20
# Tiles begin at multiples of this, the last tap's stride, so that every tap's positions coincide.
_GRID = 16


@dataclass(frozen=True)
class Features:
    """What a network makes of a batch of references; compute it once per reference.

    Parameters
    ----------
    images
        (N, 1, h, w) as the network saw them.
    kept
        In full precision the taps, every feature vector of unit length; in reduced precision the
        `medqa.reduced.trail`.
    size
        (rows, columns) of the images.
    """

    images: Tensor
    kept: tuple[Tensor, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def part(self, start: int, stop: int) -> Features:
        """Return some of the images; a single one stands for all."""
        if len(self) == 1:
            return self
        kept = tuple(one[start:stop] for one in self.kept)
        return Features(self.images[start:stop], kept, self.size)


@dataclass(frozen=True)
class Differences:
    """Where two batches of images differ, as each tap sees it.

    Parameters
    ----------
    taps
        One (N, 1, h, w) tensor per tap, at least 0.
    size
        (rows, columns) of the images.
    seen
        (rows, columns) of what the network saw: larger where the images are smaller than it needs.
    """

    taps: tuple[Tensor, ...]
    size: tuple[int, int]
    seen: tuple[int, int]

    def distance(self) -> Tensor:
        """Return the (N,) distances."""
        return torch.stack([tap.mean(dim=(1, 2, 3)) for tap in self.taps]).sum(dim=0)

    def map(self) -> Tensor:
        """Return the (N, 1, rows, columns) distance maps.

        Each tap's map is upsampled bilinearly. The mean over the image equals the distance to
        about 1e-4 relative, because upsampling does not weigh every tap pixel alike.
        """
        total = self.taps[0].new_zeros(())
        for tap in self.taps:
            total = total + F.interpolate(tap, self.seen, mode="bilinear", align_corners=False)
        top, left = ((seen - n) // 2 for seen, n in zip(self.seen, self.size, strict=True))
        return total[:, :, top : top + self.size[0], left : left + self.size[1]]


class GrayLPIPS(nn.Module):
    """LPIPS distance of single-channel images.

    Parameters
    ----------
    backbone
        ``gray``, the network shipped with medqa, or ``alex``, ``squeeze``, ``vgg``, the official
        v0.1 networks, folded exactly to one channel.
    weights
        Folder that holds the official weights, or weights already loaded. None looks where
        `medqa.weights.find` says.
    precision
        What the network computes in. ``float32`` is exact. ``bfloat16`` is about twice as fast on
        a processor or accelerator that has it (`docs/performance.md` states the error).
    device
        A torch device. Images are brought there, and results stay there.

    Raises
    ------
    WeightsError
        The weights are missing, or are not the pinned ones.
    UsageError
        No such network, precision or device.

    Notes
    -----
    Always in evaluation mode: there is no dropout, and no parameter asks for a gradient. Gradients
    flow to the images.
    """

    def __init__(
        self,
        backbone: str = "gray",
        weights: str | Path | Weights | None = None,
        *,
        precision: str = "float32",
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES and not backbone.endswith(ADAPTED_SUFFIX):
            raise UsageError(backbone, "no such network", f"choose one of {', '.join(BACKBONES)}")
        if precision not in PRECISIONS:
            mend = f"choose one of {', '.join(PRECISIONS)}"
            raise UsageError(precision, "no such precision", mend)
        self._build(weights if isinstance(weights, Weights) else find(backbone, weights))
        compute_in(self.stages, PRECISIONS[precision])
        try:
            self.to(device)
        except (RuntimeError, AssertionError) as error:  # torch raises either
            raise UsageError(str(device), "no such device here", "leave it out") from error

    def _build(self, weights: Weights, channels: int = 1) -> None:
        self.weights = weights
        self.channels = channels
        self.stages = stages(weights, channels)
        self.heads = nn.ParameterList([head.clone() for head in weights.heads])
        self.requires_grad_(False)
        self._views = views(self.stages)
        reach = max(max(-view.first, view.last) for view in self._views)
        self._halo = -(-reach // _GRID) * _GRID
        self._working_set = working_set(self.stages)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        device: torch.device = self.heads[0].device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.stages[-1].parameters()).dtype

    def forward(self, reference: Tensor, candidate: Tensor) -> Tensor:
        """Return the distances of the pairs of two batches.

        Parameters
        ----------
        reference, candidate
            (N, 1, H, W) floating point in [0, 1], at least 16 x 16.

        Returns
        -------
        (N,) distances; 0 is identical, lower is better.

        Raises
        ------
        PixelError
            Another shape, values outside [0, 1] or NaN, or smaller images.
        """
        return self.compare(reference, candidate).distance()

    def compare(self, reference: Tensor, candidate: Tensor) -> Differences:
        """Return the differences of the pairs of two batches; arguments as `forward`.

        Memory is bounded whatever the size: few pairs go through the network at a time, and large
        images tile by tile, each with the surroundings that the network sees. Pairs and tiles that
        are identical are not computed: they differ by zero.
        """
        if reference.shape != candidate.shape:
            raise PixelError(
                "images",
                f"of different shapes, {tuple(reference.shape)} and {tuple(candidate.shape)}",
                "compare images of one shape",
            )
        pair = self._prepared(reference), self._prepared(candidate)
        rows, columns = _size(pair[0])
        side = self._tile_side(rows, columns)
        down = []
        for row in _tiles(rows, side, self._halo):
            across = []
            for column in _tiles(columns, side, self._halo):
                maps = self._compared(*(one[:, :, row.crop, column.crop] for one in pair))
                across.append(
                    [
                        tap[:, :, row.own(view.stride), column.own(view.stride)]
                        for tap, view in zip(maps, self._views, strict=True)
                    ]
                )
            down.append([torch.cat(maps, dim=3) for maps in zip(*across, strict=True)])
        taps = tuple(torch.cat(maps, dim=2) for maps in zip(*down, strict=True))
        return Differences(taps, _size(reference), (rows, columns))

    def features(self, references: Tensor) -> Features:
        """Encode (N, 1, H, W) references in [0, 1] for `differences`.

        They are kept whole, about 6 values for every pixel (alex: 12, squeeze: 52, vgg: 270).
        """
        return self._features(self._prepared(references), _size(references))

    def differences(self, reference: Features, candidate: Tensor) -> Differences:
        """Compare candidates with encoded references; a single one serves all candidates.

        Parameters
        ----------
        candidate
            (N, 1, H, W) in [0, 1], of the size of the references.

        Raises
        ------
        PixelError
            As `forward`.
        """
        prepared = self._prepared(candidate)
        if reference.size != _size(candidate) or len(reference) not in (1, len(candidate)):
            raise PixelError(
                "candidates",
                f"{len(candidate)} of {_size(candidate)}, the references are "
                f"{len(reference)} of {reference.size}",
                "give one reference, or one for each candidate, of the same size",
            )
        step, most = self._together(*_size(prepared))

        def compared(start: int) -> tuple[Tensor, ...]:
            stop = start + step
            return self._kept_maps(reference.part(start, stop), prepared[start:stop])

        parts = each(compared, range(0, len(prepared), step), most)
        taps = tuple(torch.cat(maps) for maps in zip(*parts, strict=True))
        return Differences(taps, reference.size, _size(reference.images))

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the taps, (N, C, h, w) of unit vectors, of images that are known to be right."""
        return tuple(_unit(tap) for tap in self._taps(images))

    def tap_maps(
        self, reference: Sequence[Tensor], candidate: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the (N, 1, h, w) differences of taps as `encode` gives them; gradients flow."""
        return tuple(map(_weighted, reference, candidate, self.heads))

    def _taps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield each tap once it may be written over: when the next stage has read it."""
        x = images
        with _exact(images.device):
            for stage in self.stages:
                before, x = x, stage(x)
                if stage is not self.stages[0]:
                    yield before
        yield x

    def _compared(self, reference: Tensor, candidate: Tensor) -> tuple[Tensor, ...]:
        """Tap maps of pairs: few at a time, and none computed of those that are identical."""
        count = len(reference)
        follows = reference.requires_grad or candidate.requires_grad
        if follows and self._reduced:
            mend = "use a network of precision float32"
            raise UsageError(str(self.dtype), "gives no gradients", mend)
        different = [
            n for n in range(count) if follows or not torch.equal(reference[n], candidate[n])
        ]
        step, most = self._together(*_size(reference))
        groups = [different[start : start + step] for start in range(0, len(different), step)]

        def compared(some: list[int]) -> tuple[Tensor, ...]:
            return self._pair_maps(_chosen(reference, some), _chosen(candidate, some))

        found = [torch.cat(maps) for maps in zip(*each(compared, groups, most), strict=True)]
        if len(different) == count:
            return tuple(found)
        sizes = [positions(self.stages, n) for n in _size(reference)]
        taps = [self.heads[0].new_zeros(count, 1, h, w) for h, w in zip(*sizes, strict=True)]
        for tap, maps in zip(taps, found, strict=bool(found)):
            tap[different] = maps
        return tuple(taps)

    def _pair_maps(self, reference: Tensor, candidate: Tensor) -> tuple[Tensor, ...]:
        if self._reduced:
            return self._kept_maps(self._features(reference, _size(reference)), candidate)
        if self.device.type == "cpu":
            one, other = each(lambda x: tuple(self._taps(x)), (reference, candidate), 2)
            return tuple(map(_apart, one, other, self.heads))
        # Both in one batch: an accelerator is asked half as often.
        both = self._taps(torch.cat([reference, candidate]))
        count = len(reference)
        pairs = zip(both, self.heads, strict=True)
        return tuple(_apart(tap[:count], tap[count:], head) for tap, head in pairs)

    def _features(self, images: Tensor, size: tuple[int, int]) -> Features:
        if not self._reduced:
            return Features(images, self.encode(images), size)
        with _exact(images.device):
            return Features(images, tuple(trail(self.stages, images)), size)

    def _kept_maps(self, reference: Features, candidate: Tensor) -> tuple[Tensor, ...]:
        """(N, 1, h, w) of each tap."""
        if not self._reduced:
            taps = zip(reference.kept, self._taps(candidate), self.heads, strict=True)
            return tuple(_apart(one, other, head, kept=True) for one, other, head in taps)
        with _exact(candidate.device):
            passing = follow(self.stages, reference.kept, candidate - reference.images)
            return tuple(
                torch.cat([_followed(p, d, head) for p, d in pieces(before, difference)])
                for (before, difference), head in zip(passing, self.heads, strict=True)
            )

    @property
    def _reduced(self) -> bool:
        return self.dtype.itemsize < 4

    def _together(self, rows: int, columns: int) -> tuple[int, int]:
        """How many pairs of this size go through in one run, and how many runs at a time."""
        budget, each_pair = _budget(self.device), self._bytes(rows, columns)
        if self.device.type != "cpu":
            return max(1, int(budget // each_pair)), 1
        step = max(1, int(min(budget, _CACHED_RUN) // each_pair))
        return step, max(1, int(budget // (step * each_pair)))

    def _tile_side(self, rows: int, columns: int) -> int:
        """Rows and columns of a tile without its surroundings."""
        budget = _budget(self.device)
        if self._bytes(rows, columns) <= budget:
            return max(rows, columns)
        side = int((budget / self._bytes(1, 1)) ** 0.5) - 2 * self._halo
        return max(_GRID, side // _GRID * _GRID)

    def _bytes(self, rows: int, columns: int) -> float:
        """Memory that a pair takes on its way through the network; in reduced precision less."""
        return 2 * self._working_set * rows * columns * torch.float32.itemsize

    @property
    def _smallest(self) -> int:
        return BACKBONES[self.weights.backbone].smallest_side

    def _prepared(self, images: Tensor) -> Tensor:
        """Check images, bring them to the network, and continue small ones by reflection."""
        self._check(images)
        moved = images.to(self.device, non_blocking=True)
        missing = [max(0, self._smallest - n) for n in _size(images)]
        if not any(missing):
            return moved
        (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in missing)
        return F.pad(moved, (left, right, top, bottom), mode="reflect")

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            raise PixelError(
                "images",
                f"{tuple(images.shape)} {images.dtype} instead of floating point "
                f"(N, {self.channels}, H, W)",
                "add the missing axes and scale to [0, 1]",
            )
        if not len(images):
            raise PixelError("images", "there are none", "give at least one")
        if min(_size(images)) < SMALLEST_SIDE:
            raise PixelError(
                "images",
                f"{images.shape[2]} x {images.shape[3]} is smaller than {SMALLEST_SIDE} pixels",
                "compare larger images",
            )
        low, high = (float(end) for end in torch.aminmax(images.detach()))
        # Written so that NaN fails too.
        if not (low >= 0 and high <= 1):
            raise PixelError(
                "images", f"values from {low:g} to {high:g}, not in [0, 1]", "scale them to [0, 1]"
            )


def choose_device(name: str) -> str:
    """Return the torch device of this name; ``auto`` is an accelerator where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class _Tile:
    """Part of an axis: the pixels from start to stop, cropped with their surroundings.

    `stop` is None where the image ends.
    """

    start: int
    stop: int | None
    crop: slice

    def own(self, stride: int) -> slice:
        """Positions of a tap that belong to the pixels, counted in the crop."""
        before = self.crop.start
        stop = None if self.stop is None else (self.stop - before) // stride
        return slice((self.start - before) // stride, stop)


def _tiles(size: int, side: int, halo: int) -> Iterator[_Tile]:
    count = -(-size // side)
    # Of one size as nearly as can be, on the grid.
    step = -(-size // (count * _GRID)) * _GRID
    for start in range(0, size, step):
        stop = start + step
        crop = slice(max(0, start - halo), min(size, stop + halo))
        yield _Tile(start, stop if stop < size else None, crop)


def _apart(one: Tensor, other: Tensor, head: Tensor, *, kept: bool = False) -> Tensor:
    """(N, 1, h, w): differences of taps, both made unit vectors; may write over them.

    Of a reference that was kept the vectors are units already, and it is not written over.
    """
    if kernels.suit(torch.float32, one, other):
        parts = [kernels.unit_difference(a, b, head) for a, b in pieces(one, other)]
        return torch.cat(parts)
    return _weighted(one if kept else _unit(one), _unit(other), head)


def _unit(tap: Tensor) -> Tensor:
    """(N, C, h, w) with every feature vector made a unit vector."""
    if tap.requires_grad:
        # Under the root: the same value, and a finite gradient where the tap is all zero.
        return tap / (tap.square().sum(dim=1, keepdim=True) + _EPSILON**2).sqrt()
    for (piece,) in pieces(tap):
        piece.div_(torch.linalg.vector_norm(piece, dim=1, keepdim=True).add_(_EPSILON))
    return tap


def _weighted(one: Tensor, other: Tensor, head: Tensor) -> Tensor:
    """Squared differences of (N, C, h, w) taps, weighted and summed over C: (N, 1, h, w)."""
    maps = []
    for a, b in pieces(one, other):
        difference = a - b
        squared = difference.square() if difference.requires_grad else difference.square_()
        maps.append(squared.permute(0, 2, 3, 1).matmul(head).unsqueeze(1))
    return torch.cat(maps)


def _followed(p: Tensor, d: Tensor, head: Tensor) -> Tensor:
    """Do the same with what `follow` yields, in float32."""
    if kernels.suit(torch.bfloat16, p, d):
        return kernels.unit_followed(p, d, head)
    one = p.relu().float()
    return _weighted(_unit(one + d), _unit(one), head)


def _chosen(images: Tensor, some: list[int]) -> Tensor:
    """Return some of the images, in ascending order: a view where they are neighbours."""
    first, last = some[0], some[-1]
    return images[first : last + 1] if last - first + 1 == len(some) else images[some]


def _size(images: Tensor) -> tuple[int, int]:
    rows, columns = images.shape[2:]
    return rows, columns


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """No reduced precision that was not asked for, and the same bits every time."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(
                torch.backends.cudnn.flags(
                    enabled=True, benchmark=False, deterministic=True, allow_tf32=False
                )
            )
        yield


def _budget(device: torch.device) -> float:
    """Bytes that a run of the network may take: a quarter of what is free, within a bound."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return min(_LARGEST_RUN["cuda"], free / 4)
    return min(_LARGEST_RUN["cpu"], psutil.virtual_memory().available / 4)
