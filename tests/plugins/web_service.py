"""The web service for its tests: a server on a free port, keys, workers, and images to send."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import uvicorn
from fastapi import FastAPI
from pydicom.data import get_testdata_file

from medqa.queue.worker import work
from medqa_plugins.web import keys
from medqa_plugins.web.app import create_app
from medqa_plugins.web.settings import Limits, Settings

__all__ = [
    "CT",
    "Made",
    "bearer",
    "ct_like",
    "free_port",
    "listening",
    "made",
    "pair",
    "request",
    "working",
]

CT = Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes()
ROLES = ("reader", "writer", "reviewer", "admin")


@dataclass
class Made:
    """An application, and a key of each role."""

    app: FastAPI
    db: str
    folder: Path
    keys: dict[str, str]


def made(folder: Path, limits: Limits | None = None, **more: Any) -> Made:
    file = folder / "keys.json"
    given = {role: str(keys.add(file, f"{role}-1", role)) for role in ROLES}
    db = more.pop("db", str(folder / "audit.db"))
    settings = Settings(db, folder / "spool", file, limits=limits or Limits(), **more)
    return Made(create_app(settings), db, folder, given)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def request(app: FastAPI, method: str, path: str, **more: Any) -> httpx.Response:
    """Send one request without a network."""
    client = more.pop("client", ("127.0.0.1", 1234))
    base = more.pop("base", "http://127.0.0.1")

    async def sent() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=client, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url=base) as one:
            return await one.request(method, path, **more)

    return asyncio.run(sent())


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Serve an application on a real socket; gives its address."""
    port = free_port()
    config = uvicorn.Config(
        app, "127.0.0.1", port, log_config=None, access_log=False, proxy_headers=False, ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def working(db: str) -> Iterator[None]:
    """Do the queue's jobs meanwhile."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(db, None, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def ct_like(seed: int) -> bytes:
    """A small CT slice that no other seed has."""
    image = pydicom.dcmread(BytesIO(CT))
    pixels = image.pixel_array.astype(np.int32)
    noise = np.random.default_rng(seed).integers(0, 40, pixels.shape)
    image.PixelData = (pixels + noise).astype(np.int16).tobytes()
    out = BytesIO()
    image.save_as(out)
    return out.getvalue()


def pair(candidate: bytes, reference: bytes = CT, number: int | None = None) -> list[Any]:
    """Parts of a pair, under file names that name a patient."""
    end = "" if number is None else f".{number}"
    return [
        (f"reference{end}", ("DOE^JANE.dcm", reference)),
        (f"candidate{end}", ("../../etc/passwd", candidate)),
    ]
