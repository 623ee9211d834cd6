"""Speed and memory of LPIPS in medqa and elsewhere, on the same images and threads.

``python tests/benchmarks/compare.py [--quick] [--write docs/performance.md]`` on a quiet machine.
`MEDQA_WEIGHTS` names the folder of the official trunks; vgg runs on a random trunk everywhere,
because speed does not depend on the values.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import torchvision
from machine import answer, fresh, heading, limit_memory, peak_mib
from rich.console import Console
from tables import Table, publish
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medqa.lpips import GrayLPIPS
from medqa.weights import Weights, find

#: Compares the pair it was made for, again at each call, and returns the mean distance.
Run = Callable[[], Tensor]
#: Brings a pair of (N, 1, H, W) in [0, 1] into the form a program wants, which is not timed.
Prepare = Callable[[Tensor, Tensor], Run]

_TRUNKS: Mapping[str, tuple[str, Callable[..., nn.Module]]] = {
    "alex": ("alexnet", torchvision.models.alexnet),
    "squeeze": ("squeezenet1_1", torchvision.models.squeezenet1_1),
    "vgg": ("vgg16", torchvision.models.vgg16),
}
_SECONDS_OF_A_TURN = 0.3
_LONG = 5
_ALIKE = 1e-4


# The programs ------------------------------------------------------------------------------------


@cache
def trunk(backbone: str) -> tuple[Tensor, ...]:
    """Weights and biases of a trunk, in the order of the network."""
    if backbone != "vgg":
        return find(backbone).trunk
    torch.manual_seed(0)
    return tuple(_features(_TRUNKS["vgg"][1](weights=None)).parameters())


def _features(model: nn.Module) -> nn.Module:
    return model.get_submodule("features")


def _offline() -> None:
    """Let torchvision give these trunks where others ask it to download its own.

    It reads no file of 233 MB (vgg: 528 MB) and so is faster, in favour of the one that builds
    its network at each call.
    """

    def offline(backbone: str, original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        def build(*_: object, **__: object) -> nn.Module:
            model = original(weights=None)
            parameters = _features(model).parameters()
            for parameter, tensor in zip(parameters, trunk(backbone), strict=True):
                parameter.data = tensor.detach().clone()
            return model

        return build

    for backbone, (name, original) in _TRUNKS.items():
        setattr(torchvision.models, name, offline(backbone, original))


def _copies(distance: Callable[[Tensor, Tensor], Tensor], low: float = 0) -> Prepare:
    """Three channels, as networks for colour want them, in [low, 1]."""

    def prepare(one: Tensor, other: Tensor) -> Run:
        pair = [(low + (1 - low) * image).repeat(1, 3, 1, 1) for image in (one, other)]
        return lambda: distance(*pair).mean()

    return prepare


def _lpips_module(backbone: str, **options: bool) -> nn.Module:
    import lpips  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it loads its heads the old way
        network: nn.Module = lpips.LPIPS(net=backbone, verbose=False, **options)
    return network


def _lpips(backbone: str) -> Prepare:
    network = _lpips_module(backbone)
    return _copies(lambda one, other: network(one, other, normalize=True))


def _torchmetrics(backbone: str) -> Prepare:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return _copies(LearnedPerceptualImagePatchSimilarity(net_type=backbone, normalize=True))  # type: ignore[arg-type]


def _functional(backbone: str) -> Prepare:
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

    return _copies(
        lambda one, other: learned_perceptual_image_patch_similarity(
            one,
            other,
            net_type=backbone,  # type: ignore[arg-type]
            normalize=True,
        )
    )


def _monai(backbone: str) -> Prepare:
    from monai.losses import PerceptualLoss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = PerceptualLoss(2, network_type=backbone, is_fake_3d=False)
    # It does not bring [0, 1] to [-1, 1], as the network wants it.
    return _copies(network, low=-1)


def _piq(backbone: str) -> Prepare:
    import piq  # type: ignore[import-untyped]

    heads = [head.view(1, -1, 1, 1) for head in _heads(backbone)]
    with (
        patch("torch.hub.load_state_dict_from_url", return_value=heads),
        patch("piq.perceptual.vgg16", torchvision.models.vgg16),
    ):
        network = piq.LPIPS()
    return _copies(network)


def _pyiqa(backbone: str) -> Prepare:
    import lpips
    import pyiqa  # type: ignore[import-not-found]

    path = Path(lpips.__file__).parent / f"weights/v0.1/{backbone}.pth"
    with redirect_stdout(StringIO()):  # it says what it loads
        network = pyiqa.create_metric(
            "lpips", device=torch.device("cpu"), net=backbone, pretrained_model_path=str(path)
        )
    return _copies(network)


def _heads(backbone: str) -> tuple[Tensor, ...]:
    heads = _lpips_module(backbone, pnet_rand=True).get_submodule("lins")
    return tuple(parameter.detach().flatten() for parameter in heads.parameters())


def network_of(backbone: str, precision: str) -> GrayLPIPS:
    given = Weights("vgg", "0", trunk("vgg"), _heads("vgg"), "") if backbone == "vgg" else None
    return GrayLPIPS(backbone, given, precision=precision)


def _medqa(backbone: str, precision: str = "float32", *, kept: bool = False) -> Prepare:
    network = network_of(backbone, precision)

    def prepare(one: Tensor, other: Tensor) -> Run:
        if not kept:
            return lambda: network(one, other).mean()
        features = network.features(one)
        return lambda: network.differences(features, other).distance().mean()

    return prepare


@dataclass(frozen=True)
class Program:
    """One way to compute LPIPS.

    Parameters
    ----------
    peer
        What `--peers` calls it.
    package
        What must be installed.
    differs
        Why its distances are others, where they are.
    """

    peer: str
    title: str
    package: str
    build: Callable[[str], Prepare]
    backbones: Sequence[str] = ("alex", "squeeze", "vgg")
    precision: str = "float32"
    differs: str = "of something that is to be found"


_NETWORKS = ("gray", "alex", "squeeze", "vgg")
_EIGHT_BITS = "bfloat16 keeps 8 bits"
PROGRAMS = (
    Program("lpips", "lpips", "lpips", _lpips),
    Program(
        "torchmetrics",
        "torchmetrics",
        "torchmetrics",
        _torchmetrics,
        differs="it adds 1e-8 under the root that features are divided by",
    ),
    Program(
        "functional",
        "torchmetrics, functional",
        "torchmetrics",
        _functional,
        differs="it adds 1e-8 under the root that features are divided by",
    ),
    Program("monai", "MONAI PerceptualLoss", "monai", _monai),
    Program("piq", "piq", "piq", _piq, backbones=("vgg",)),
    Program("pyiqa", "pyiqa", "pyiqa", _pyiqa),
    Program("medqa", "medqa", "medqa", _medqa, backbones=_NETWORKS),
    Program(
        "medqa",
        "medqa, reference kept",
        "medqa",
        lambda backbone: _medqa(backbone, kept=True),
        backbones=_NETWORKS,
    ),
    Program(
        "medqa",
        "medqa, bfloat16",
        "medqa",
        lambda backbone: _medqa(backbone, "bfloat16"),
        backbones=_NETWORKS,
        precision="bfloat16",
        differs=_EIGHT_BITS,
    ),
    Program(
        "medqa",
        "medqa, bfloat16, reference kept",
        "medqa",
        lambda backbone: _medqa(backbone, "bfloat16", kept=True),
        backbones=_NETWORKS,
        precision="bfloat16",
        differs=_EIGHT_BITS,
    ),
)


# Measuring ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """Square images of this side, this many pairs at once."""

    size: int
    batch: int

    def __str__(self) -> str:
        return f"{self.size}², {self.batch} pair{'s' * (self.batch > 1)}"

    def images(self) -> tuple[Tensor, Tensor]:
        """Structure of several sizes, and noise on it: (batch, 1, size, size) twice."""
        generator = torch.Generator().manual_seed(0)

        def noise(side: int) -> Tensor:
            return torch.randn(self.batch, 1, side, side, generator=generator)

        target = (self.size, self.size)
        octaves = [self.size // 2**k for k in range(1, 6)]
        sums = sum(
            F.interpolate(noise(side), target, mode="bicubic", align_corners=False)
            for side in octaves
        )
        one = (0.5 + 0.1 * torch.as_tensor(sums)).clamp(0, 1)
        return one, (one + 0.02 * noise(self.size)).clamp(0, 1)


@dataclass(frozen=True)
class Entry:
    """One program with one network."""

    number: int
    backbone: str

    @property
    def program(self) -> Program:
        return PROGRAMS[self.number]


@dataclass(frozen=True)
class Result:
    """What one entry did in one setting; `failed` says why it did not."""

    distance: float = math.nan
    mib: float = math.nan
    flops: float = math.nan
    seconds: float = math.nan
    failed: str = ""


def alone(task: Mapping[str, Any]) -> dict[str, Any]:
    """Distance, added memory and operations of one entry, for a process of its own."""
    _offline()
    entry, setting = Entry(task["number"], task["backbone"]), Setting(task["size"], task["batch"])
    prepare = entry.program.build(entry.backbone)
    one, other = setting.images()
    with torch.inference_mode():
        run = prepare(one, other)
        distance, _, added = peak_mib(run)
        # Exactly as many again for each further pair.
        single = prepare(one[:1], other[:1])
        with FlopCounterMode(display=False) as counter:
            single()
    flops = setting.batch * counter.get_total_flops()
    return {"distance": float(distance), "mib": added, "flops": flops}


def in_turns(
    entries: Sequence[Entry], setting: Setting, rounds: int, peaks: dict[str, float]
) -> dict[Entry, float]:
    """Seconds of one run of each entry, the least of several turns; raises `peaks` meanwhile.

    A busy moment of the machine falls on all alike. Networks are built once; images are brought
    into form, and kept references encoded, anew at each turn and outside its time.
    """
    best: dict[Entry, float] = dict.fromkeys(entries, math.inf)
    networks = {entry: entry.program.build(entry.backbone) for entry in entries}
    one, other = setting.images()
    counts: dict[Entry, int] = {}
    with torch.inference_mode():
        for _ in range(rounds):
            for precision in peaks:
                peaks[precision] = max(peaks[precision], multiplications(precision))
            for entry in entries:
                run = networks[entry](one, other)
                if entry not in counts:
                    best[entry] = _timed(run, 1)
                    counts[entry] = math.ceil(_SECONDS_OF_A_TURN / best[entry])
                    if best[entry] > _LONG:  # needs no warm-up
                        continue
                best[entry] = min(best[entry], _timed(run, counts[entry]))
    return best


def _timed(run: Run, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


def multiplications(precision: str, side: int = 1024) -> float:
    """Operations per second of a product of matrices, the better of torch's two libraries."""
    a, b = (torch.rand(side, side, dtype=getattr(torch, precision)) for _ in range(2))
    # The same product as a convolution of 1 x 1, which oneDNN does.
    image = a.t().reshape(1, side, 32, side // 32).to(memory_format=torch.channels_last)
    kernels = b.t().reshape(side, side, 1, 1).to(memory_format=torch.channels_last)
    ways: tuple[Run, ...] = (lambda: a @ b, lambda: F.conv2d(image, kernels))
    return 2 * side**3 / min(_timed(way, 1) for way in ways for _ in range(8))


def measure(
    entries: Sequence[Entry], settings: Sequence[Setting], rounds: int, threads: int
) -> tuple[dict[tuple[Entry, Setting], Result], dict[str, float]]:
    console = Console(stderr=True)
    results: dict[tuple[Entry, Setting], Result] = {}
    peaks = dict.fromkeys(("float32", "bfloat16"), 0.0)
    for setting in settings:
        for entry in entries:
            console.print(
                f"memory: {setting}, {entry.backbone}, {entry.program.title}", markup=False
            )
            task = vars(entry) | vars(setting)
            results[entry, setting] = Result(**fresh(__file__, task, threads))
        fit = [entry for entry in entries if not results[entry, setting].failed]
        console.print(f"time: {setting}")
        for entry, seconds in in_turns(fit, setting, rounds, peaks).items():
            found = results[entry, setting]
            results[entry, setting] = Result(**vars(found) | {"seconds": seconds})
    return results, peaks


# Tables ------------------------------------------------------------------------------------------


def tables(
    results: Mapping[tuple[Entry, Setting], Result], peaks: Mapping[str, float]
) -> Iterator[Table]:
    entries = list(dict.fromkeys(entry for entry, _ in results))
    settings = list(dict.fromkeys(setting for _, setting in results))

    def table(title: str, cell: Callable[[Entry, Setting], str], *notes: str) -> Table:
        header = ["network", "program", *map(str, settings)]
        rows = [
            [e.backbone, e.program.title, *(_cell(results[e, s], cell, e, s) for s in settings)]
            for e in entries
        ]
        return Table(title, header, rows, notes)

    def of_lpips(backbone: str, setting: Setting) -> Result:
        return results.get((Entry(0, backbone), setting), Result(failed="not asked for"))

    def speed(entry: Entry, setting: Setting) -> str:
        rate = setting.batch / results[entry, setting].seconds
        against = ("alex", "vgg") if entry.backbone == "gray" else (entry.backbone,)
        ratios = [rate * of_lpips(name, setting).seconds / setting.batch for name in against]
        # The peer may have failed, or not have been asked for.
        shown = ", ".join("–" if math.isnan(ratio) else f"{ratio:.1f} ×" for ratio in ratios)
        return f"{rate:.3g} ({shown})"

    def used(entry: Entry, setting: Setting) -> str:
        result = results[entry, setting]
        return f"{result.flops / result.seconds / peaks[entry.program.precision]:.0%}"

    failed = [
        f"{entry.backbone}, {entry.program.title}, {setting}: {result.failed}."
        for (entry, setting), result in results.items()
        if result.failed
    ]
    yield table(
        "Pairs per second (times lpips with the same network; gray: times lpips with alex, vgg)",
        speed,
        *failed,
    )
    yield table("Peak memory that a comparison adds, MiB", lambda e, s: f"{results[e, s].mib:.0f}")
    yield table(
        "Part of the processor's peak: operations of the convolutions, as a program does them, "
        "against those of a product of matrices",
        used,
        *(f"{name}: {peak / 1e9:.0f} Gflop/s." for name, peak in peaks.items()),
    )
    worst: dict[Entry, float] = {}
    for (entry, setting), result in results.items():
        error = abs(result.distance / of_lpips(entry.backbone, setting).distance - 1)
        if not math.isnan(error):
            worst[entry] = max(error, worst.get(entry, 0))
    reasons = {e.program.title: e.program.differs for e, error in worst.items() if error > _ALIKE}
    yield Table(
        "Greatest relative difference of the distance from that of lpips with the same network",
        ["network", "program", "all settings"],
        [
            [e.backbone, e.program.title, f"{error:.0e}" if error else "0"]
            for e, error in worst.items()
        ],
        [f"{title}: above {_ALIKE:.0e}, because {why}." for title, why in reasons.items()],
    )


def _cell(
    result: Result, cell: Callable[[Entry, Setting], str], entry: Entry, setting: Setting
) -> str:
    return "not run" if result.failed else cell(entry, setting).replace("nan", "–")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    peers = list(dict.fromkeys(program.peer for program in PROGRAMS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--backbones", nargs="+", default=_NETWORKS, choices=_NETWORKS)
    parser.add_argument("--peers", nargs="+", default=peers, choices=peers)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="512², batch 8, two rounds")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        return answer(alone, given.task)
    if given.quick:
        given.sizes, given.batches, given.rounds = [512], [8], 2
    what = f"Rounds: {given.rounds}."
    chosen = [program for program in PROGRAMS if program.peer in given.peers]
    absent = {program.package for program in chosen if find_spec(program.package) is None}
    title = heading(
        what, given.threads, "torch", *dict.fromkeys(program.package for program in chosen)
    )
    entries = [
        Entry(PROGRAMS.index(program), backbone)
        for backbone in given.backbones
        for program in chosen
        if backbone in program.backbones and program.package not in absent
    ]
    settings = [Setting(*one) for one in itertools.product(given.sizes, given.batches)]
    torch.set_num_threads(given.threads)
    limit_memory()
    _offline()
    results, peaks = measure(entries, settings, given.rounds, given.threads)
    missing = "".join(f" Not run: {name}, which is not installed." for name in sorted(absent))
    publish("compare", title + missing, list(tables(results, peaks)), given.write)
    return None


if __name__ == "__main__":
    main()
