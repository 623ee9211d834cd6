"""What the tests of the review page share: assessed cases, made of pydicom's own example."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from scipy import ndimage

from medqa.assessment import Job
from medqa.audit import Store
from medqa.isolation import decode_isolated
from medqa.queue.jobs import lease
from medqa.queue.submission import Spool, submit
from medqa.queue.worker import Networks, do

__all__ = ["BLURRED", "PATIENT", "SLICES", "Browser", "assessed", "blur_one", "series", "unchanged"]

SLICES, BLURRED = 6, 4
PATIENT = "MRN-4711"
Process = Callable[[NDArray[Any], int], NDArray[Any]]


class Browser:
    """What a browser does for one person: it keeps cookies, and asks the application directly."""

    def __init__(self, app: FastAPI, address: str = "127.0.0.1") -> None:
        self._app = app
        self._address = address
        self.cookies = httpx.Cookies()

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self._ask("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self._ask("POST", path, **more)

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def sent() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, client=(self._address, 1234))
            base = "https://testserver"
            async with httpx.AsyncClient(
                transport=transport, base_url=base, cookies=self.cookies
            ) as one:
                answer = await one.request(method, path, **more)
                self.cookies = one.cookies
                return answer

        return asyncio.run(sent())


def unchanged(pixels: NDArray[Any], _index: int) -> NDArray[Any]:
    return pixels


def blur_one(pixels: NDArray[Any], index: int) -> NDArray[Any]:
    return ndimage.gaussian_filter(pixels, 2.5) if index == BLURRED else pixels


def series(spool: Spool, process: Process, study: str) -> tuple[str, ...]:
    """Files in the spool, not in the order of the slices."""
    uid = generate_uid(entropy_srcs=[study, process.__name__])
    paths = []
    for index in range(SLICES):
        ds = dcmread(get_testdata_file("CT_small.dcm", download=False))
        ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = PATIENT, study, uid
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{uid[:58]}.{index}"
        ds.InstanceNumber = index + 1
        ds.ImagePositionPatient = [*ds.ImagePositionPatient[:2], 10.0 * index]
        pixels = np.roll(ds.pixel_array, 4 * index, axis=1)
        ds.PixelData = process(pixels, index).astype(ds.pixel_array.dtype).tobytes()
        out = io.BytesIO()
        ds.save_as(out, enforce_file_format=True)
        paths.append(str(spool.put([out.getvalue()])))
    return tuple(paths[::-1])


def assessed(store: Store, folder: Path, process: Process, annotations: str = "") -> str:
    """Send a series and its candidate through queue and worker; return the assessment's id."""
    spool = Spool(folder)
    study = generate_uid()
    sources = [str(spool.put([annotations.encode()]))] if annotations else []
    job = Job(
        reference=series(spool, unchanged, study),
        candidate=series(spool, process, study)
        if process is not unchanged
        else series(spool, _plain_copy, study),
        annotations=tuple(sources),
        origin="tests",
    )
    submit(store, spool, job)
    leased = lease(store, "tests")
    assert leased is not None
    assert do(store, leased, Networks(), decode_isolated) == "done"
    return store.list(limit=1)[0].assessment_id


def _plain_copy(pixels: NDArray[Any], _index: int) -> NDArray[Any]:
    return pixels
