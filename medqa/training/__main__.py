"""Make `gray`: ``python -m medqa.training prepare``, then ``train``, then ``evaluate``.

Every step goes on where an earlier call stopped; ``--run`` is the folder it works in.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from medqa.lpips import GrayLPIPS
from medqa.training import evaluate as evaluation
from medqa.training import lesions as lesion_trials
from medqa.training import train as training
from medqa.training.sources import pictures
from medqa.weights import load_gray

VERSION = "1"
_PHASE = (
    "{steps} steps of {batch} groups of twelve (one cycle to {rate:g}, region weight "
    "{region_weight:g}, seed {seed}, on {device})"
)

app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None)
Data = Annotated[Path, typer.Option(help="Folder of the real images.")]
Run = Annotated[Path, typer.Option(help="Folder to work in.")]
Folder = Annotated[Path, typer.Option("--weights", help="Folder with AlexNet's weights.")]


@app.command()
def prepare(data: Data, run: Run, weights: Folder, groups: int = 7680) -> None:
    """Damage patches of the training sources and note what LPIPS-alex says of them."""
    teacher = GrayLPIPS("alex", weights)
    shards = training.prepare(pictures(data, "train"), teacher, run / "shards", groups)
    for _ in track(shards, "preparing", total=groups // training.SHARD):
        pass


@app.command()
def train(
    run: Run,
    weights: Folder,
    shards: Annotated[Path | None, typer.Option(help="Of `prepare`, if not in the run.")] = None,
    start: Annotated[Path | None, typer.Option(help="Run to start from, not AlexNet.")] = None,
    steps: int = 6500,
    batch: int = 8,
    rate: float = 4e-4,
    region_weight: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Train `gray` on what was prepared; the loss goes to ``log.jsonl``."""
    shards = shards or run / "shards"
    run.mkdir(parents=True, exist_ok=True)
    phase = {
        "steps": steps,
        "batch": batch,
        "rate": rate,
        "region_weight": region_weight,
        "seed": seed,
        "device": device,
    }
    earlier = [] if start is None else json.loads((start / "phases.json").read_text("utf-8"))
    (run / "phases.json").write_text(json.dumps([*earlier, phase]) + "\n", "utf-8")
    if start is None:
        first = training.prune(GrayLPIPS("alex", weights), shards)
    else:
        first = load_gray(start / "trained.safetensors")
    network = training.optimise(
        first,
        shards,
        run,
        steps=steps,
        batch=batch,
        rate=rate,
        region_weight=region_weight,
        seed=seed,
        device=device,
    )
    training.export(network, run / "trained.safetensors", VERSION)


@app.command()
def evaluate(data: Data, run: Run, weights: Folder) -> None:
    """Compare `gray` with LPIPS-alex on the test sources, and write the file that ships."""
    gray = GrayLPIPS("gray", load_gray(run / "trained.safetensors"))
    found = evaluation.compare(gray, GrayLPIPS("alex", weights), pictures(data, "test"))
    figures = evaluation.summarise(list(track(found, "comparing")))
    path = run / "gray.safetensors"
    shipped = training.export(
        gray,
        path,
        VERSION,
        figures["stated relative error"],
        figures["stated relative error of regions"],
    )
    phases = json.loads((run / "phases.json").read_text("utf-8"))
    card = (resources.files("medqa.training") / "card.md").read_text("utf-8")
    filled = card.format(
        version=VERSION,
        widths=", ".join(str(len(head)) for head in shipped.heads),
        parameters=sum(tensor.numel() for tensor in (*shipped.trunk, *shipped.heads)),
        megabytes=path.stat().st_size / 1e6,
        sha256=shipped.sha256,
        figures=evaluation.table(figures),
        phases=", then ".join(map(_PHASE.format_map, phases)),
    )
    (run / "gray.md").write_text(filled, "utf-8")
    typer.echo(filled)


@app.command()
def lesions(
    data: Data,
    weights: Folder,
    network: Annotated[Path | None, typer.Option(help="`gray`, if not the shipped one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Page whose tables to replace.")] = None,
) -> None:
    """Measure whether `gray` and LPIPS-alex see small lesions erased, or invented."""
    networks = {
        "gray": GrayLPIPS("gray", network and load_gray(network)),
        "alex": GrayLPIPS("alex", weights),
    }
    found = lesion_trials.trials(networks, pictures(data, "test"))
    tables = lesion_trials.report(list(track(found, "looking")))
    if out:
        out.write_text(lesion_trials.update(out.read_text("utf-8"), tables), "utf-8")
    typer.echo(tables)


if __name__ == "__main__":
    app()
