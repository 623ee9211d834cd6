"""Whether anything is lost or doubled when the services are killed again and again under traffic.

    python tests/benchmarks/soak.py [--minutes 60] [--every 20] [--write docs/reliability.md]

Starts, on free ports and in temporary folders, PostgreSQL, Orthanc, `medqa serve`, `medqa
dicom-node`, `medqa orthanc` and `medqa worker`. Pairs of images, no two alike, go in by C-STORE, by
Orthanc and by REST while a visitor reads the review pages. In the first two thirds of the time, one
of the services after the other is killed and started again; the last third has no faults, and shows
whether memory grows. Senders send again what was not acknowledged. In the end every pair must have
one record, and its results must be given back once. Exit code 1: they are not, or the chain is
broken, or a job is dead.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import psycopg
from audit import Cluster
from machine import MIB, heading
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from tables import Table, publish

import medqa
from medqa.audit import Store, verify
from medqa.errors import MedqaError

CT = dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
PATIENT = "SOAK-4711"  # must not be in any log
MOST_BEHIND = 12  # pairs without a record; senders pause, so that faults meet traffic
SENDER_SECONDS, VISITOR_SECONDS = 2.0, 4.0  # between two pairs of a sender, two visits
DOWN_SECONDS = 3.0  # from a kill to the start
SETTLING_SECONDS = 20.0  # after the last start, before memory is compared
DRAIN_SECONDS = 900.0
LOGIN = ("medqa", "only-here")
AFTER = "after the last fault"


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


class Service:
    """A process that is started again when it ends, as by systemd."""

    def __init__(self, name: str, command: list[str], folder: Path, port: int | None) -> None:
        self.name, self.log, self._command, self._port = name, folder / f"{name}.log", command, port
        self.guard = threading.Lock()
        self.killed, self.ended = 0, 0
        self.back: list[float] = []
        self.memory: list[tuple[float, float]] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                self._command, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):  # the group: a worker's processes too
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def keep(self) -> None:
        """Start it again where it has ended by itself."""
        if self.guard.acquire(blocking=False):
            try:
                if self.process is not None and self.process.poll() is not None:
                    self.ended += 1
                    self.start()
            finally:
                self.guard.release()

    def fault(self) -> None:
        with self.guard:
            self.kill()
            self.killed += 1
            time.sleep(DOWN_SECONDS)
            begun = time.monotonic()
            self.start()
            self.wait()
            if self._port is not None:
                self.back.append(time.monotonic() - begun)

    def wait(self, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while self._port is not None and not listens(self._port):
            if self.process is None or self.process.poll() is not None:
                self.start()  # as without a database
            if time.monotonic() > end:
                raise SystemExit(f"{self.name} does not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.2)

    def measure(self, at: float) -> None:
        with suppress(psutil.Error, AttributeError):
            process = psutil.Process(self.process.pid)  # type: ignore[union-attr]
            tree = [process, *process.children(recursive=True)]
            self.memory.append((at, sum(one.memory_info().rss for one in tree) / MIB))


class Site:
    """All services of a department, and what they are asked with."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster, self.url = folder, cluster, cluster.url
        self.database_killed, self.database_back = 0, list[float]()
        ports = [free_port() for _ in range(4)]
        self.node_port, self.archive_port = ports[1], ports[3]
        self.web = f"http://127.0.0.1:{ports[0]}"
        self.orthanc = f"http://127.0.0.1:{ports[2]}"
        self.spool = folder / "spool"
        keys, spool = folder / "keys.json", str(self.spool)
        me = [sys.executable, "-m", "medqa"]
        add = [*me, "web-key", "add", "soak", "--role", "admin", "--keys", str(keys)]
        self.key = subprocess.check_output(add, text=True).strip()  # noqa: S603
        self._configure(folder)
        serve = ["serve", "--workers", "0", "--keys", str(keys), "--port", str(ports[0])]
        archive = f"ORTHANC@127.0.0.1:{ports[3]}"
        node = ["dicom-node", "--port", str(ports[1]), "--allow", "SENDER", "--quiet-seconds", "2"]
        follow = ["orthanc", self.orthanc, "--every", "2"]
        commands: dict[str, tuple[list[str], int | None]] = {
            "Orthanc": (["/usr/sbin/Orthanc", str(folder / "orthanc.json")], ports[2]),
            "medqa worker": ([*me, "worker", "--jobs", "1"], None),
            "medqa dicom-node": ([*me, *node, "--peer", archive, "--forward", archive], ports[1]),
            "medqa serve": ([*me, *serve], ports[0]),
            "medqa orthanc": ([*me, *follow, "--spool", spool], None),
        }
        for name in ("medqa dicom-node", "medqa serve"):
            commands[name][0].extend(["--spool", spool])
        self.services = {
            name: Service(name, command, folder, port) for name, (command, port) in commands.items()
        }

    def _configure(self, folder: Path) -> None:
        archive = str(folder / "archive")
        settings = {
            "StorageDirectory": archive,
            "IndexDirectory": archive,
            "HttpPort": int(self.orthanc.rpartition(":")[2]),
            "DicomPort": self.archive_port,
            "DicomAet": "ORTHANC",
            "DicomModalities": {"medqa": ["MEDQA", "127.0.0.1", self.node_port]},
            "StableAge": 2,
            "AuthenticationEnabled": True,
            "RegisteredUsers": dict([LOGIN]),
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))

    def database_fault(self) -> None:
        self.cluster.stop("immediate")
        self.database_killed += 1
        time.sleep(DOWN_SECONDS)
        begun = time.monotonic()
        self.cluster.start()
        self.database_back.append(time.monotonic() - begun)

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, connect_timeout=5) as connection:
            return connection.execute(statement).fetchall()


@contextmanager
def running(minutes: float) -> Iterator[Site]:
    """Everything started, and gone afterwards."""
    with ExitStack() as stack:
        names = [
            stack.enter_context(tempfile.TemporaryDirectory(prefix=f"medqa-soak-{which}-"))
            for which in ("pg", "all")
        ]
        folder = Path(names[1])
        os.environ |= {
            "MEDQA_KEY": secrets.token_hex(32),
            "MEDQA_ORTHANC_USER": LOGIN[0],
            "MEDQA_ORTHANC_PASSWORD": LOGIN[1],
            "XDG_DATA_HOME": str(folder / "data"),
            "OMP_NUM_THREADS": "1",
        }
        cluster = Cluster(Path(names[0]))
        stack.callback(cluster.stop, "immediate")
        os.environ["MEDQA_DB"] = cluster.url
        Store.open(cluster.url).close()
        site = Site(folder, cluster)
        for one in site.services.values():
            stack.callback(one.kill)
            one.start()
            one.wait()
        time.sleep(min(10.0, 6 * minutes))  # the bridge has noted where Orthanc's changes end
        yield site


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


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

    def __init__(self, site: Site) -> None:
        self.site, self.stop = site, threading.Event()
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
        while not self.stop.wait(SENDER_SECONDS):
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
        except (httpx.HTTPError, OSError, RuntimeError, ValueError):  # pynetdicom's, cut off
            done = False
        channel.failed += not done
        return done

    def _store(self, channel: Channel, pair: Pair) -> bool:
        return self._c_store(channel, [pair.reference, pair.candidate])

    def _store_and_fetch(self, channel: Channel, pair: Pair) -> bool:
        """Only the archive has the source."""
        return self._post(channel, pair.reference) and self._c_store(channel, [pair.candidate])

    def _c_store(self, channel: Channel, contents: list[bytes]) -> bool:
        entity = AE("SENDER")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 30
        entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        peer = entity.associate("127.0.0.1", self.site.node_port, ae_title="MEDQA")
        if not peer.is_established:
            return False
        try:
            for content in contents:
                status = peer.send_c_store(dcmread(BytesIO(content))).get("Status")
                if status not in (0x0000, 0xA700, None):
                    channel.odd[f"0x{status:04X}"] += 1
                if status != 0x0000:
                    return False
        finally:
            if peer.is_established:
                peer.release()
        return True

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
        url = f"{self.site.web}/assess"
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


def strike(site: Site, until: float, every: float) -> None:
    """Kill one service after another."""
    acts = [site.services["medqa worker"].fault, site.database_fault]
    acts += [one.fault for name, one in site.services.items() if name != "medqa worker"]
    next_at = time.monotonic() + every / 2
    for act in (acts[number % len(acts)] for number in count()):
        if next_at >= until:
            return
        time.sleep(max(0.0, next_at - time.monotonic()))
        act()
        next_at = max(next_at + every, time.monotonic()) + random.uniform(-0.2, 0.2) * every


def drained(site: Site, expected: int) -> float | None:
    """Wait until every job is done and given back; seconds, or None where that does not come."""
    begun = time.monotonic()
    open_jobs = (
        "SELECT count(*) FILTER (WHERE state IN ('done', 'dead')), count(*) FILTER "
        "(WHERE origin <> 'web' AND delivered_at IS NULL) FROM jobs"
    )
    while time.monotonic() - begun < DRAIN_SECONDS:
        over, undelivered = site.ask(open_jobs)[0]
        if over >= expected and not undelivered:
            time.sleep(10)  # for what should not come any more
            return time.monotonic() - begun - 10
        for service in site.services.values():
            service.keep()
        time.sleep(1)
    return None


@dataclass(frozen=True)
class Check:
    """What is there in the end: by digest of the candidate, and by study."""

    records: Counter[str]
    given_back: dict[str, list[int]]
    jobs: Counter[str]
    superseding: int
    mixed: int
    left: int
    chain: str
    names_in_logs: int
    own_errors: Counter[str]
    signatures: Counter[str]

    def row(self, channel: Channel) -> list[str]:
        there = [self.records[digest] for _, digest in channel.acknowledged]
        back = [self.given_back.get(study, []) for study, _ in channel.acknowledged]
        whole = sum(one == [1, 1, 1] for one in back)
        return [
            channel.name,
            str(len(channel.acknowledged)),
            str(channel.failed),
            f"{channel.slowest:.0f} s",
            str(there.count(1)),
            str(there.count(0)),
            str(sum(one > 1 for one in there)),
            "–" if channel.name == "REST" else str(whole),
        ]

    def well(self, channels: list[Channel], signed: list[str]) -> bool:
        rows = [self.row(one) for one in channels]
        sent = {digest for one in channels for _, digest in one.acknowledged}
        return (
            all(row[4] == row[1] and row[7] in ("–", row[1]) for row in rows)
            and set(self.records) == sent
            and self.chain == "whole"
            and set(self.jobs) == {"done"}
            and all(self.signatures[one] == 1 for one in signed)
            and not any(one.odd["never acknowledged"] for one in channels)
            and not (self.superseding or self.mixed or self.names_in_logs)
        )


def checked(site: Site, channels: list[Channel]) -> Check:
    rows = site.ask("SELECT record, supersedes FROM assessments")
    records = [json.loads(row[0]) for row in rows]
    folders = site.ask("SELECT results, assessment_id FROM jobs WHERE state = 'done'")
    studies = [s for one in channels if one.name != "REST" for s, _ in one.acknowledged]
    with httpx.Client(base_url=site.orthanc, auth=LOGIN, timeout=60) as client:
        given_back = {study: results(client, study) for study in studies}
    try:
        with Store.open(site.url, readonly=True) as store:
            fault = verify(store).fault
        chain = "whole" if fault is None else f"BROKEN: {fault}"
    except MedqaError as error:
        chain = f"NOT READ: {error}"
    logs = [(one.name, one.log.read_text(errors="replace")) for one in site.services.values()]
    ours = [(name, text) for name, text in logs if name != "Orthanc"]
    uids = [PATIENT, "Soak^Jane", *studies]
    signatures = site.ask("SELECT reason FROM audit_entries WHERE kind = 'signature'")
    return Check(
        records=Counter(
            (one["inputs"]["candidate"] or {}).get("pixels_sha256", "none") for one in records
        ),
        given_back=given_back,
        jobs=Counter(dict(site.ask("SELECT state, count(*) FROM jobs GROUP BY state"))),
        superseding=sum(row[1] is not None for row in rows),
        mixed=sum(not belongs(Path(folder), record) for folder, record in folders),
        left=sum(1 for path in site.spool.rglob("*.part")),
        chain=chain,
        names_in_logs=sum(name in text for _, text in ours for name in uids),
        signatures=Counter(row[0] for row in signatures),
        own_errors=Counter(
            f"{name}: {line.strip()[-160:]}"
            for name, text in ours
            for line in re.findall(r".*(?:Traceback|medqa's own|: \w*Error\b).*", text)
        ),
    )


def results(client: httpx.Client, study: str) -> list[int]:
    """Instances in each of the series that medqa has put into a study of Orthanc's."""
    found = client.post("/tools/lookup", content=study).json()
    all_series = [
        series
        for one in found
        if one["Type"] == "Study"
        for series in client.get(f"/studies/{one['ID']}/series").json()
    ]
    tags = "MainDicomTags"
    return [len(one["Instances"]) for one in all_series if one[tags].get("Manufacturer") == "medqa"]


def belongs(folder: Path, assessment_id: str) -> bool:
    """Whether a folder of results is of the record that the job points to."""
    try:
        found = json.loads((folder / "assessment.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found["assessment_id"] == assessment_id)


def tables(
    site: Site, traffic: Traffic, check: Check, drain: float | None, minutes: float
) -> list[Table]:
    channels = list(traffic.channels.values())
    kinds = ("way", "pairs acknowledged", "tries that failed", "longest until acknowledged")
    visitor = traffic.visitor
    odd = Counter[str]()
    for one in (*channels, visitor):
        odd += one.odd
    sent = Table(
        f"{minutes:g} minutes of traffic",
        (*kinds, "with one record", "lost", "doubled", "results given back once"),
        [check.row(one) for one in channels],
        [
            f"Review pages and records: {visitor.requests} rounds, "
            f"{visitor.failed} of them failed, while a service was down. "
            f"{len(visitor.signed)} signatures acknowledged, "
            f"{sum(check.signatures[one] == 1 for one in visitor.signed)} of them there once.",
            f"Answers that were neither a yes nor a request to wait: {words(odd)}.",
            f"Jobs: {words(check.jobs)}; records that supersede another: {check.superseding}; "
            f"results of another record in a job's folder: {check.mixed}.",
            f"The chain is {check.chain}. Identifiers in the logs: {check.names_in_logs}.",
            "The queue was not empty in time."
            if drain is None
            else f"The queue was empty, and everything given back, {drain:.0f} s after the end.",
            f"Half-written files left in the spool: {check.left}.",
        ],
    )
    services = list(site.services.values())
    rows = [
        ["PostgreSQL", str(site.database_killed), "–", span(site.database_back)],
        *([one.name, str(one.killed), str(one.ended), span(one.back)] for one in services),
    ]
    faults = Table(
        "Faults",
        ("service", "killed", "ended by itself", "seconds from start to answering"),
        rows,
        ["PostgreSQL: pg_ctl stop -m immediate; all others: SIGKILL to the service's processes."],
    )
    memory = Table(
        f"Resident memory, MiB, {AFTER}",
        ("service", "at first", "in the end", "change", "most in the whole run"),
        [memory_row(one, traffic.faults_over) for one in services],
        ["Medians of the first and of the last fifth of that time."],
    )
    return [sent, faults, memory]


def memory_row(service: Service, since: float) -> list[str]:
    late = [mib for at, mib in service.memory if at >= since]
    part = max(1, len(late) // 5)
    if not late:
        return [service.name, "–", "–", "–", "–"]
    first, last = statistics.median(late[:part]), statistics.median(late[-part:])
    most = max(mib for _, mib in service.memory)
    return [service.name, f"{first:.0f}", f"{last:.0f}", f"{last - first:+.0f}", f"{most:.0f}"]


def words(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


def span(seconds: list[float]) -> str:
    return f"{min(seconds):.1f} to {max(seconds):.1f}" if seconds else "–"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=20, help="seconds between faults")
    parser.add_argument("--logs", type=Path, help="folder for the services' logs")
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    what = heading("Measured on", 1, "medqa", "pynetdicom", "fastapi", "psycopg")
    with running(asked.minutes) as site:
        traffic = Traffic(site)
        begun = time.monotonic()
        for thread in traffic.threads:
            thread.start()
        strike(site, begun + 40 * asked.minutes, asked.every)
        traffic.faults_over = time.monotonic() + SETTLING_SECONDS
        time.sleep(max(0.0, begun + 60 * asked.minutes - time.monotonic()))
        traffic.stop.set()
        for thread in traffic.threads:
            thread.join()
        channels = list(traffic.channels.values())
        drain = drained(site, sum(len(one.acknowledged) for one in channels))
        check = checked(site, channels)
        publish("soak", what, tables(site, traffic, check, drain, asked.minutes), asked.write)
        for line, number in check.own_errors.most_common(40):
            print(f"{number:5} {line}")
        if asked.logs is not None:
            asked.logs.mkdir(parents=True, exist_ok=True)
            for one in site.services.values():
                (asked.logs / one.log.name).write_bytes(one.log.read_bytes())
        well = drain is not None and check.well(channels, traffic.visitor.signed)
    print("nothing lost, nothing doubled" if well else "FAILED")
    raise SystemExit(0 if well else 1)


if __name__ == "__main__":
    main()
