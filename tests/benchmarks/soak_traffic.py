"""Traffic: senders that send again what was not acknowledged, and a visitor who reads and signs."""

from __future__ import annotations

import random
import re
import secrets
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from pathlib import Path

import httpx
import numpy as np
import psycopg
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from soak_site import LOGIN, Site

import medqa

__all__ = ["DRAIN_SECONDS", "PATIENT", "Channel", "Pair", "Traffic", "Visits"]

CT = dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
PATIENT = "SOAK-4711"  # must not be in any log
MOST_BEHIND = 12  # pairs without a record; senders pause, so that faults meet traffic
VISITOR_SECONDS = 4.0  # between two visits
DRAIN_SECONDS = 900.0
_FULL = "Refused: OutOfResources"


@dataclass(frozen=True)
class Pair:
    """A reference, a candidate and what they are found by again."""

    channel: str
    study: str
    reference: bytes
    candidate: bytes
    pixels_sha256: str


@dataclass
class Channel:
    """What was sent by one way; `odd` counts answers that are neither yes nor "later"."""

    name: str
    acknowledged: list[tuple[str, str]] = field(default_factory=list)  # study, digest
    failed: int = 0
    requests: int = 0
    odd: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0


@dataclass
class Visits(Channel):
    """What a visitor asked for, and the comments of signatures that were accepted."""

    signed: list[str] = field(default_factory=list)


def encoded(image: Dataset) -> bytes:
    buffer = BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def made(channel: str, number: int, folder: Path) -> Pair:
    """A pair like no other: a slice with noise, and that slice with more."""
    noise = np.random.default_rng(number)
    study, kinds = generate_uid(), ("ORIGINAL", "DERIVED")
    pixels = CT.pixel_array.astype(np.int32)
    source: Dataset | None = None
    contents = []
    for kind, depth in zip(kinds, (4, (2, 12, 80)[number % 3]), strict=True):
        pixels = pixels + noise.integers(0, depth, pixels.shape)
        image = dcmread(BytesIO(encoded(CT)))
        image.PatientID, image.PatientName, image.StudyInstanceUID = PATIENT, "Soak^Jane", study
        image.SeriesInstanceUID, image.SOPInstanceUID = generate_uid(), generate_uid()
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.ImageType = [kind, "PRIMARY", "AXIAL"]
        image.PixelData = pixels.astype(np.int16).tobytes()
        if source is not None:
            item = Dataset()
            item.ReferencedSOPClassUID = source.SOPClassUID
            item.ReferencedSOPInstanceUID = source.SOPInstanceUID
            image.SourceImageSequence = [item]
        source = image
        contents.append(encoded(image))
    path = folder / f"{channel.replace(' ', '-')}.dcm"
    path.write_bytes(contents[1])
    return Pair(channel, study, contents[0], contents[1], medqa.read(path).pixels_sha256)


class Traffic:
    """Senders and visitors, until they are told to stop."""

    def __init__(self, site: Site, pause: float) -> None:
        self.site, self.stop, self._pause = site, threading.Event(), pause
        self.storescu: subprocess.Popen[str] | None = None
        self.behind = 0
        self.faults_over = 0.0
        self._numbers = count()
        ways: dict[str, Callable[[Channel, Pair], bool]] = {
            "C-STORE, both images": self._store,
            "C-STORE, source fetched": self._store_and_fetch,
            "Orthanc": self._upload,
            "REST": self._assess,
        }
        self.channels = {name: Channel(name) for name in ways}
        self.visitor = Visits("review pages and records")
        self.threads = [
            threading.Thread(target=self._send, args=(self.channels[name], way), daemon=True)
            for name, way in ways.items()
        ]
        self.threads += [
            threading.Thread(target=work, daemon=True) for work in (self._visit, self._watch)
        ]

    def _send(self, channel: Channel, way: Callable[[Channel, Pair], bool]) -> None:
        while not self.stop.wait(self._pause * random.uniform(0.5, 1.5)):
            if self.behind >= MOST_BEHIND:
                continue
            pair = made(channel.name, next(self._numbers), self.site.folder)
            begun = time.monotonic()
            while not self._once(channel, way, pair):
                time.sleep(1.0)
                if time.monotonic() - begun > DRAIN_SECONDS:
                    channel.odd["never acknowledged"] += 1
                    return
            channel.acknowledged.append((pair.study, pair.pixels_sha256))
            channel.slowest = max(channel.slowest, time.monotonic() - begun)

    def _once(self, channel: Channel, act: Callable[..., bool], *given: Pair) -> bool:
        channel.requests += 1
        try:
            done = act(channel, *given)
        except (httpx.HTTPError, OSError, RuntimeError, ValueError, subprocess.TimeoutExpired):
            done = False
        channel.failed += not done
        return done

    def _store(self, channel: Channel, pair: Pair) -> bool:
        """Both images by DCMTK's storescu, over the wire that can be cut."""
        files = []
        for name, content in (("source", pair.reference), ("derived", pair.candidate)):
            files.append(self.site.folder / f"{name}.dcm")
            files[-1].write_bytes(content)
        where = ("localhost", str(self.site.wires["C-STORE to the node"].port))
        self.storescu = subprocess.Popen(  # noqa: S603
            ["/usr/bin/storescu", "-v", "-R", "-aet", "SENDER", "-aec", "MEDQA", *where, *files],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        said, _ = self.storescu.communicate(timeout=120)
        answers = re.findall(r"Received Store Response \((.*)\)", said)
        channel.odd.update(one for one in answers if one not in ("Success", _FULL))
        return answers == ["Success"] * len(files)

    def _store_and_fetch(self, channel: Channel, pair: Pair) -> bool:
        """Only the archive has the source."""
        return self._post(channel, pair.reference) and self._c_store(channel, pair.candidate)

    def _c_store(self, channel: Channel, content: bytes) -> bool:
        entity = AE("SENDER")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 30
        entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        peer = entity.associate("127.0.0.1", self.site.node_port, ae_title="MEDQA")
        if not peer.is_established:
            return False
        try:
            status = peer.send_c_store(dcmread(BytesIO(content))).get("Status")
            if status not in (0x0000, 0xA700, None):
                channel.odd[f"0x{status:04X}"] += 1
            return bool(status == 0x0000)
        finally:
            if peer.is_established:
                peer.release()

    def _upload(self, channel: Channel, pair: Pair) -> bool:
        return self._post(channel, pair.reference) and self._post(channel, pair.candidate)

    def _post(self, channel: Channel, content: bytes) -> bool:
        url = f"{self.site.orthanc}/instances"
        answer = httpx.post(url, content=content, auth=LOGIN, timeout=30)
        if answer.status_code != 200:
            channel.odd[str(answer.status_code)] += 1
            return False
        return answer.json()["Status"] in ("Success", "AlreadyStored")

    def _assess(self, channel: Channel, pair: Pair) -> bool:
        headers = {"Authorization": f"Bearer {self.site.key}"}
        files = {"reference": pair.reference, "candidate": pair.candidate}
        url = f"http://127.0.0.1:{self.site.wires['POST /assess'].port}/assess"
        answer = httpx.post(url, files=files, headers=headers, timeout=120)
        if answer.status_code == 200:
            found = answer.json()["inputs"]["candidate"]["pixels_sha256"]
            return bool(found == pair.pixels_sha256)
        if answer.status_code not in (202, 429, 503):
            channel.odd[str(answer.status_code)] += 1
        return False  # a job that goes on: asked for by the same pair

    def _visit(self) -> None:
        """Do what a browser does at the review pages, and a program that reads records."""
        reader = {"Authorization": f"Bearer {self.site.key}"}
        with httpx.Client(base_url=self.site.web, timeout=60) as client:
            signed_in = False

            def get(path: str, headers: dict[str, str] | None = None) -> httpx.Response:
                answer = client.get(path, headers=headers or {})
                if answer.status_code not in (200, 304, 503):
                    self.visitor.odd[str(answer.status_code)] += 1
                if answer.status_code not in (200, 304):
                    raise httpx.HTTPError("no page")
                return answer

            def round_trip(_: Channel) -> bool:
                nonlocal signed_in
                if not signed_in:
                    form = {"key": self.site.key}
                    signed_in = client.post("/review/sign-in", data=form).status_code == 303
                cases = re.findall(
                    r"/review/cases/([0-9a-f-]{36})", get("/review?verdict=all").text
                )
                for case in random.sample(cases, min(2, len(cases))):
                    page = get(f"/review/cases/{case}").text
                    self._sign(client, case, page)
                    for part in ("slices/reference/0", "slices/candidate/0", "maps/0", "report"):
                        if part == "report" or "data-case=" in page:  # with a viewer
                            get(f"/review/cases/{case}/{part}")
                for page in ("/review/trail", "/review/approvals", "/review/trends"):
                    get(page)
                for path in ("/assessments?limit=100", "/metrics", "/health/ready"):
                    get(path, reader)
                return signed_in

            while not self.stop.wait(VISITOR_SECONDS):
                self._once(self.visitor, round_trip)

    def _sign(self, client: httpx.Client, case: str, page: str) -> None:
        """Sign a case once; it is not tried again, as a person would look first."""
        token = re.search(r'name="token" value="([^"]+)"', page)
        comment = f"seen in round {self.visitor.requests}, {secrets.token_hex(4)}"
        form = {"token": token[1] if token else "", "meaning": "reviewed", "comment": comment}
        answer = client.post(f"/review/cases/{case}/sign", data=form)
        if answer.status_code == 303:
            self.visitor.signed.append(comment)
        elif answer.status_code != 503:
            self.visitor.odd[f"{answer.status_code} to a signature"] += 1

    def _watch(self) -> None:
        """Count what is not done, keep services running, and note their memory."""
        over = "SELECT count(*) FROM jobs WHERE state IN ('done', 'dead')"
        while not self.stop.wait(2.0):
            with suppress(psycopg.Error):
                sent = sum(len(one.acknowledged) for one in self.channels.values())
                self.behind = sent - int(self.site.ask(over)[0][0])
            for service in self.site.services.values():
                service.keep()
                service.measure(time.monotonic())
