"""What the web service takes: requests per second and their times, beside the bare metric.

    python tests/benchmarks/web.py [--small] [--workers N]

Prints the figures of docs/web.md: `POST /assess` of pairs that are all different, from 1, 8 and 32
clients at once, on a service with API keys and SQLite; the time of the same pair in a process that
has the network loaded; and of a request that needs no assessment.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("", "plugins")]

import httpx  # noqa: E402 (of the tests' folders, which are on the path now)
from web_service import CT, bearer, ct_like, listening, made, pair  # noqa: E402

import medqa  # noqa: E402
from medqa.lpips import GrayLPIPS  # noqa: E402
from medqa.queue.supervisor import work_many  # noqa: E402
from medqa_plugins.web.settings import Limits  # noqa: E402

SMALL = "--small" in sys.argv
WORKERS = int(sys.argv[sys.argv.index("--workers") + 1]) if "--workers" in sys.argv else 1
EACH = {1: 8, 8: 16, 32: 32} if SMALL else {1: 40, 8: 80, 32: 160}


def timed(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def line(words: str, times: list[float], seconds: float) -> None:
    ordered = sorted(times)
    at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95, 0.99)]
    figures = "  ".join(
        f"p{share} {1000 * one:7.0f} ms" for share, one in zip((50, 95, 99), at, strict=True)
    )
    print(f"{words:32} {len(times) / seconds:7.2f} /s  {figures}")


def bare(folder: Path) -> None:
    """The same pair, assessed in a process that has everything loaded."""
    import torch

    torch.set_num_threads(1)  # as a worker
    network = GrayLPIPS("gray")
    (folder / "reference").write_bytes(CT)
    (folder / "candidate").write_bytes(ct_like(999_999))
    images = [medqa.read(folder / name) for name in ("reference", "candidate")]
    medqa.assess(*images, backbone=network)
    times = [timed(lambda: medqa.assess(*images, backbone=network)) for _ in range(10)]
    print(f"{'medqa.assess, images read':32} median {1000 * statistics.median(times):.0f} ms")


def load(address: str, key: dict[str, str], clients: int, seeds: count[int]) -> None:
    bodies = [ct_like(next(seeds)) for _ in range(EACH[clients])]
    with httpx.Client(timeout=300) as client:

        def send(body: bytes) -> float:
            def act() -> None:
                answer = client.post(f"{address}/assess", headers=key, files=pair(body))
                assert answer.status_code == 200, answer.text

            return timed(act)

        begun = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            times = list(pool.map(send, bodies))
        line(f"POST /assess, {clients} clients", times, time.perf_counter() - begun)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_DATA_HOME"] = name
        bare(folder)
        site = made(folder, Limits(wait_seconds=300, rate="1000000/minute"))
        key = bearer(site.keys["writer"])
        stop = threading.Event()
        workers = threading.Thread(target=work_many, args=(site.db, WORKERS), kwargs={"stop": stop})
        workers.start()
        try:
            with listening(site.app) as address:
                seeds = count()
                httpx.post(f"{address}/assess", headers=key, files=pair(ct_like(10**6)), timeout=99)
                for clients in EACH:
                    load(address, key, clients, seeds)
                with httpx.Client() as client:
                    begun = time.perf_counter()
                    times = [
                        timed(lambda: client.get(f"{address}/assessments", headers=key))
                        for _ in range(50)
                    ]
                    line("GET /assessments, 1 client", times, time.perf_counter() - begun)
        finally:
            stop.set()
            workers.join()


if __name__ == "__main__":
    main()
