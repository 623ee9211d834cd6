"""Training of `gray`: AlexNet's geometry with fewer channels, taught by LPIPS-alex tap by tap."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from medqa.lpips import GrayLPIPS
from medqa.training.denoisers import Recipe
from medqa.training.denoisers import train as train_denoiser
from medqa.training.distortions import Distortion
from medqa.training.pairs import Group, draw_group, tap_maps
from medqa.training.sources import Picture
from medqa.weights import Weights, digest

__all__ = ["SHARD", "WIDTHS", "export", "optimise", "prepare", "prune"]

#: Channels of the five taps; AlexNet has 64, 192, 384, 256, 256.
WIDTHS = (32, 80, 128, 128, 128)

#: Denoisers whose work is trained on.
RECIPES = (
    Recipe(width=16, depth=4, loss="l1", strength=0.8, seed=1),
    Recipe(width=24, depth=5, loss="l2", strength=1.0, seed=2),
    Recipe(width=12, depth=3, loss="edges", strength=0.6, seed=3),
    Recipe(width=16, depth=6, loss="l2", strength=0.5, seed=4),
)

#: Groups in a file.
SHARD = 64
# Distances below this differ by nothing that anybody sees.
_FLOOR = 1e-5


def prepare(
    pictures: Sequence[Picture], teacher: GrayLPIPS, folder: Path, groups: int, seed: int = 0
) -> Iterator[Path]:
    """Write shards of groups with the teacher's maps, and yield them one by one.

    Goes on where an earlier call stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    denoisers: dict[str, Distortion] = {
        f"network {recipe.seed}": train_denoiser(recipe, pictures) for recipe in RECIPES
    }
    for shard in range(groups // SHARD):
        path = folder / f"{shard:05d}.safetensors"
        if path.exists():
            yield path
            continue
        rng = np.random.default_rng((seed, shard))
        drawn = [draw_group(pictures, denoisers, rng) for _ in range(SHARD)]
        tensors = {
            "reference": torch.from_numpy(np.stack([group.reference for group in drawn])),
            "candidates": torch.from_numpy(np.stack([group.candidates for group in drawn])),
        }
        tensors |= {f"tap.{tap}": maps for tap, maps in enumerate(_teach(teacher, drawn))}
        temporary = path.with_suffix(".part")
        save_file(tensors, temporary)
        temporary.replace(path)
        yield path


@torch.inference_mode()
def _teach(teacher: GrayLPIPS, drawn: Sequence[Group]) -> list[Tensor]:
    each = [
        tap_maps(teacher, _unit(group.reference)[None], _unit(group.candidates)[None])
        for group in drawn
    ]
    return [torch.cat(maps) for maps in zip(*each, strict=True)]


def _unit(stored: NDArray[np.uint16] | Tensor) -> Tensor:
    return torch.as_tensor(stored).float() / 65535


@torch.inference_mode()
def prune(teacher: GrayLPIPS, shards: Path, widths: Sequence[int] = WIDTHS) -> Weights:
    """Start `gray` from the teacher's channels that matter most on some of the shards.

    A channel matters by its energy as the next convolution weighs it, and by its head.
    """
    some = [load_file(path)["candidates"][:, :1] for path in sorted(shards.iterdir())[:3]]
    images = _unit(torch.cat(some))
    tensors = [parameter.detach() for parameter in teacher.stages.parameters()]
    kernels, biases = tensors[0::2], tensors[1::2]
    energies = []
    x = images
    for stage in teacher.stages:
        x = stage(x)
        energies.append(x.square().mean(dim=(0, 2, 3)))
    before = torch.arange(kernels[0].shape[1])
    trunk: list[Tensor] = []
    heads: list[Tensor] = []
    for tap, width in enumerate(widths):
        scored = energies[tap] * teacher.heads[tap] / (energies[tap] * teacher.heads[tap]).sum()
        # Heads are sparse: the square root keeps weak ones in the running.
        matter = scored.sqrt() / scored.sqrt().sum()
        if tap + 1 < len(kernels):
            onward = energies[tap] * kernels[tap + 1].square().sum(dim=(0, 2, 3))
            matter = matter + onward / onward.sum()
        keep = matter.topk(width).indices.sort().values
        trunk += [kernels[tap][keep][:, before].clone(), biases[tap][keep].clone()]
        heads.append(teacher.heads[tap][keep].clone())
        before = keep
    return Weights("gray", "0", tuple(trunk), tuple(heads), digest((*trunk, *heads)), 0.0)


def optimise(
    start: Weights,
    shards: Path,
    run: Path,
    *,
    steps: int,
    batch: int,
    rate: float = 4e-4,
    region_weight: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
) -> GrayLPIPS:
    """Train on the shards, with a checkpoint every 250 steps.

    Goes on where an earlier call stopped. `region_weight` is what the distance inside small
    boxes weighs, beside that of the whole patch.
    """
    torch.manual_seed(seed)
    student = GrayLPIPS("gray", start).to(device).requires_grad_()
    optimiser = torch.optim.AdamW(student.parameters(), rate, weight_decay=1e-4, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    run.mkdir(parents=True, exist_ok=True)
    checkpoint, first = run / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        student.load_state_dict(state["student"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]
    for step in range(first, steps):
        rng = np.random.default_rng((seed, step))
        loss, figures = _loss(student, _batch(shards, batch, rng, device), region_weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for head in student.heads:
                head.clamp_(min=0)
        if (step + 1) % 50 == 0:
            with (run / "log.jsonl").open("a") as log:
                log.write(json.dumps({"step": step + 1, **figures}) + "\n")
        if (step + 1) % 250 == 0 or step + 1 == steps:
            state = {
                "student": student.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step + 1,
            }
            temporary = checkpoint.with_suffix(".part")
            torch.save(state, temporary)
            temporary.replace(checkpoint)
    return student.requires_grad_(requires_grad=False).cpu()


def _batch(shards: Path, batch: int, rng: np.random.Generator, device: str) -> dict[str, Tensor]:
    """Load some groups of one shard."""
    paths = sorted(shards.glob("*.safetensors"))
    tensors = load_file(paths[rng.integers(len(paths))])
    chosen = torch.from_numpy(rng.choice(SHARD, batch, replace=False))
    picked = {name: tensor[chosen].to(device) for name, tensor in tensors.items()}
    return {
        name: _unit(tensor) if name in ("reference", "candidates") else tensor
        for name, tensor in picked.items()
    }


def _loss(
    student: GrayLPIPS, batch: dict[str, Tensor], region_weight: float
) -> tuple[Tensor, dict[str, float]]:
    """Relative error of the distance, its taps, maps and regions, and of the ranking."""
    maps = tap_maps(student, batch["reference"], batch["candidates"])
    truths = [batch[f"tap.{tap}"] for tap in range(len(maps))]
    taps = torch.stack([one.mean(dim=(2, 3)) for one in maps])  # (taps, G, K)
    true_taps = torch.stack([truth.mean(dim=(2, 3)) for truth in truths])
    logs, true_logs = ((one.sum(0) + _FLOOR).log() for one in (taps, true_taps))
    scalar = (logs - true_logs).abs().mean()
    tap = ((taps + _FLOOR).log() - (true_taps + _FLOOR).log()).abs().mean()
    order = (_centred(logs) - _centred(true_logs)).abs().mean()
    local = torch.stack(
        [
            # Roots, so that faint damage counts too; relative to the truth's own size.
            ((one + 1e-8).sqrt() - (truth + 1e-8).sqrt()).abs().mean(dim=(2, 3))
            / (truth.sqrt().mean(dim=(2, 3)) + 1e-3)
            for one, truth in zip(maps, truths, strict=True)
        ]
    ).mean()
    region = (_region_logs(maps) - _region_logs(truths)).abs().mean()
    loss = scalar + 0.3 * tap + order + 0.3 * local + region_weight * region
    named = {"scalar": scalar, "tap": tap, "order": order, "local": local, "region": region}
    return loss, {name: round(float(value.detach()), 5) for name, value in named.items()}


def _region_logs(maps: Sequence[Tensor]) -> Tensor:
    """Logarithms of the distance in boxes of 32 pixels: what a masked lesion is judged by."""
    finest = maps[0].shape[2:]
    total = sum(
        (F.interpolate(one, size=finest, mode="bilinear", align_corners=False) for one in maps),
        start=torch.zeros(()),
    )
    # A box of 8 by 8 pixels of the first tap, whose stride is 4.
    return (F.avg_pool2d(total, 8, stride=4) + 10 * _FLOOR).log()


def _centred(logs: Tensor) -> Tensor:
    return logs - logs.mean(dim=1, keepdim=True)


def export(
    network: GrayLPIPS,
    path: Path,
    version: str,
    relative_error: float = 0.0,
    region_relative_error: float = 0.0,
) -> Weights:
    """Write a trained network as the safetensors file that ships, with its digest and errors."""
    trunk = tuple(parameter.detach().contiguous() for parameter in network.stages.parameters())
    heads = tuple(head.detach().contiguous() for head in network.heads)
    errors = (relative_error, region_relative_error)
    weights = Weights("gray", version, trunk, heads, digest((*trunk, *heads)), *errors)
    tensors = {f"trunk.{index:02d}": tensor for index, tensor in enumerate(trunk)}
    tensors |= {f"head.{index}": head for index, head in enumerate(heads)}
    metadata = {
        "version": version,
        "sha256": weights.sha256,
        "relative_error": str(relative_error),
        "region_relative_error": str(region_relative_error),
    }
    temporary = path.with_suffix(".part")
    save_file(tensors, temporary, metadata)
    temporary.replace(path)
    return weights
