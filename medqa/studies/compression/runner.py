"""Work through a plan with several processes; what is done stays done, whatever happens after.

Each image has a file of its own under ``images``, written whole. A process that dies, because a
codec crashed or there was no memory left, takes no other image with it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

from medqa.assessment import MetricRef
from medqa.errors import UsageError
from medqa.files import write_file
from medqa.lpips import GrayLPIPS
from medqa.studies.compression.lesions import packed, unpacked
from medqa.studies.compression.planning import Plan, Planned, Settings
from medqa.studies.compression.rows import Row
from medqa.studies.compression.sweep import Swept, sweep_image
from medqa.studies.detectability import Responses

__all__ = ["answers", "begin", "finished", "sweep"]

_PLAN = "plan.json"

#: The network of a worker process.
_network: GrayLPIPS | None = None


def begin(out: Path, plan: Plan, *, resume: bool) -> None:
    """Make the folder of a study, or make sure that it is the one to go on with.

    Raises
    ------
    UsageError
        It holds a study and is not to be resumed; or it is to be, and holds another one.
    """
    path = out / _PLAN
    if path.exists():
        if not resume:
            raise UsageError(out, "holds a study already", "add --resume, or name another folder")
        if path.read_text("utf-8") != plan.text:
            reason = "holds a study of other images, codecs, ratios or thresholds"
            raise UsageError(out, reason, "repeat the options of its start, or name another folder")
    write_file(path, plan.text.encode())


def finished(out: Path, plan: Plan) -> dict[int, Swept]:
    """Return what was done under this plan, by the image's number."""
    found = {one.number: _read(out, one, plan.sha256) for one in plan.images}
    return {number: swept for number, swept in found.items() if swept is not None}


def answers(out: Path, number: int, codec: str, ratio: float) -> Responses | None:
    """Read what the observer answered on an image that is finished; None where he did not look.

    Raises
    ------
    UsageError
        The file is gone, or is not as it was written.
    """
    path = out / "images" / f"{number:06d}.npz"
    try:
        return unpacked(path, codec, ratio)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = f"cannot be read ({type(error).__name__})"
        raise UsageError(path, reason, "remove the .json beside it, and go on with --resume") from (
            error
        )


def sweep(
    out: Path, plan: Plan, jobs: int, progress: Callable[[int, int], object]
) -> dict[int, Swept]:
    """Do what is not done yet.

    Parameters
    ----------
    out
        As given to `begin`.
    jobs
        Processes; each computes on one core and holds one image at a time.
    progress
        Called with the images done and their number.

    Returns
    -------
    For each image, by its number.
    """
    done = finished(out, plan)
    left = [one for one in plan.images if one.number not in done]
    progress(len(done), len(plan.images))

    def advance(count: int) -> None:
        progress(len(plan.images) - count, len(plan.images))

    while left:
        suspects, left = _run(out, plan, left, min(jobs, len(left)), advance)
        for one in suspects:  # alone, so that it is known which of them it was
            if _run(out, plan, [one], 1, lambda _: None)[0]:
                reason = "the process that worked on it died: a codec crashed, or memory ran out"
                row = Row(one.number, one.source, "not_assessable", good=False, reason=reason)
                _save(out, one, plan.sha256, Swept((row,)))
    return finished(out, plan)


def _run(
    out: Path, plan: Plan, images: Sequence[Planned], jobs: int, advance: Callable[[int], object]
) -> tuple[list[Planned], list[Planned]]:
    """Do images in a pool; where a process dies, return those under way, and those not begun."""
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    # What OpenMP reads when a process starts.
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, "1"))
    waiting = list(images)[::-1]
    under_way: dict[Future[None], Planned] = {}
    try:
        with ProcessPoolExecutor(jobs, context, _start, (plan.settings.backbone,)) as pool:
            try:
                while waiting or under_way:
                    # Few at a time: those under way are all that a crash can take.
                    while waiting and len(under_way) < jobs:
                        one = waiting.pop()
                        task = pool.submit(_work, out, one, plan.settings, plan.sha256)
                        under_way[task] = one
                    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for task in done:
                        task.result()
                        del under_way[task]
                    advance(len(waiting) + len(under_way))
            except BrokenProcessPool:
                begun = under_way.values()
                suspects = [one for one in begun if _read(out, one, plan.sha256) is None]
                return suspects, waiting[::-1]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    return [], []


def _start(backbone: str) -> None:
    """Make a process ready: one core, one network, and an end when its parent has ended."""
    import torch

    global _network
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(1)
    _network = GrayLPIPS(backbone)


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # it was killed: nobody waits for what this process does


def _work(out: Path, one: Planned, settings: Settings, plan_sha256: str) -> None:
    if _network is None:
        raise RuntimeError("the process was not made ready")
    _save(out, one, plan_sha256, sweep_image(one, settings, _network))


def _save(out: Path, one: Planned, plan_sha256: str, found: Swept) -> None:
    """Write what became of an image, whole or not at all: its rows come last."""
    if found.answers or found.unseen:
        write_file(_file(out, one).with_suffix(".npz"), packed(found.answers))
    content = {
        "plan": plan_sha256,
        "rows": [asdict(row) for row in found.rows],
        "metric": found.metric and found.metric.model_dump(),
        "seconds": found.seconds,
        "unseen": found.unseen,
    }
    write_file(_file(out, one), json.dumps(content).encode())


def _read(out: Path, one: Planned, plan_sha256: str) -> Swept | None:
    """Read what was written of an image; None where there is nothing, or of another plan."""
    try:
        given = json.loads(_file(out, one).read_text("utf-8"))
    except FileNotFoundError:
        return None
    if given["plan"] != plan_sha256:
        return None
    metric = given["metric"] and MetricRef.model_validate(given["metric"])
    rows = tuple(Row(**row) for row in given["rows"])
    return Swept(rows, metric, given["seconds"], unseen=given["unseen"])


def _file(out: Path, one: Planned) -> Path:
    return out / "images" / f"{one.number:06d}.json"
