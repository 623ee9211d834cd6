"""What a benchmark runs on, and fresh processes to measure memory in."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

T = TypeVar("T")
MIB = 2**20


def heading(what: str, threads: int, *packages: str) -> str:
    """Say what was measured with what; neither names of machines nor paths."""
    versions = ", ".join(f"{name} {found}" for name in packages if (found := installed(name)))
    others = psutil.cpu_percent(interval=3) / 100 * (psutil.cpu_count() or 1)
    state = "nothing else ran" if others < 0.2 else f"other work took {others:.1f} processors"
    return f"{what} {processor()}, {threads} thread{'s' * (threads > 1)}; {state}. {versions}."


def installed(name: str) -> str | None:
    """Return the version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the processor's name, and which instructions for reduced precision it has."""
    fields = {
        name.strip(): value.strip()
        for name, _, value in (
            line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()
        )
    }
    has = [name for name in ("avx512_bf16", "amx_bf16") if name in fields["flags"].split()]
    family = f"family {fields['cpu family']} model {fields['model']}"
    return f"{fields['model name']} ({', '.join([family, *has])})"


def fresh(script: str, task: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Give a task to a script in a process of its own; return what it `answer`\\ s."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, script, "--task", json.dumps(task)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode < 0:  # the kernel may end what takes too much memory
        return {"failed": f"the process was ended by signal {-done.returncode}"}
    done.check_returncode()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def answer(work: Callable[[Mapping[str, Any]], dict[str, Any]], task: str) -> None:
    """Do a task of `fresh`; what the memory does not suffice for fails, and kills nothing else."""
    limit_memory()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        found = work(json.loads(task))
    except (RuntimeError, MemoryError) as error:
        found = {"failed": " ".join(str(error).split())[:200]}
    print(f"\n{json.dumps(found)}")


def limit_memory() -> None:
    """Refuse this process more memory than is free, less a GiB."""
    free = psutil.virtual_memory().available - 2**30
    # The hard limit stays: processes started later inherit it, and may find more memory free.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (free, hard))


def peak_mib(run: Callable[[], T]) -> tuple[T, float, float]:
    """Run; return its result, the peak of the resident memory, and how much of that it added.

    The kernel's own high-water mark, set back before. `ru_maxrss` will not do: a process inherits
    it from the one that started it.
    """
    ctypes.CDLL(None).malloc_trim(0)  # what was used before is not there to be used again
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = run()
    peak = _status("VmHWM")
    return result, peak, peak - before


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))
