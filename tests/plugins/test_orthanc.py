"""A real Orthanc, which receives, is restarted and killed, and is asked by its own REST API."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from auditing import plain
from pydicom import Dataset
from pydicom.uid import generate_uid
from scipy.ndimage import gaussian_filter

from medqa.audit import Store, verify
from medqa.errors import UsageError
from medqa.isolation import decode_isolated
from medqa.queue import counts, fail, jobs, lease, undelivered
from medqa.queue.worker import Networks, do
from medqa_plugins.orthanc import (
    METADATA,
    Orthanc,
    OrthancError,
    Plugin,
    follow,
    listening,
    once,
    opened,
    rounds,
)
from medqa_plugins.orthanc.state import State

HOOK = Path(__file__).parents[2] / "plugins/orthanc/orthanc.lua"
LOGIN = ("medqa", "only-here")


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """An Orthanc of the operating system, with an empty archive."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, auth=LOGIN, timeout=30)
        self.configuration = folder / "orthanc.json"
        self.configuration.write_text(
            json.dumps(
                {
                    "StorageDirectory": str(folder / "archive"),
                    "IndexDirectory": str(folder / "archive"),
                    "HttpPort": port,
                    "DicomServerEnabled": False,
                    "StableAge": 1,
                    "AuthenticationEnabled": True,
                    "RegisteredUsers": {LOGIN[0]: LOGIN[1]},
                    **settings,
                }
            )
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - a program of the system's own
            ["/usr/sbin/Orthanc", self.configuration],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                assert self.client.get("/system").status_code == 200
                return
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == 200, path
        return answer.json()

    def send(self, images: list[Dataset]) -> str:
        """Store images; return the study's id."""
        for ds in images:
            buffer = io.BytesIO()
            ds.save_as(buffer, enforce_file_format=True)
            answer = self.client.post("/instances", content=buffer.getvalue())
            assert answer.json()["Status"] == "Success", answer.text
        return str(answer.json()["ParentStudy"])

    def settle(self, study: str) -> None:
        while not all(one["IsStable"] for one in self.get(f"/studies/{study}/series")):
            time.sleep(0.1)

    def series(self, study: str) -> dict[str, list[dict[str, Any]]]:
        """Tags of each instance in a study, by SeriesInstanceUID."""
        found: dict[str, list[dict[str, Any]]] = {}
        for one in self.get(f"/studies/{study}/instances"):
            tags = self.get(f"/instances/{one['ID']}/simplified-tags")
            found.setdefault(tags["SeriesInstanceUID"], []).append(tags)
        return found

    def results(self, study: str) -> list[dict[str, Any]]:
        return [
            tags
            for several in self.series(study).values()
            for tags in several
            if tags.get("Manufacturer") == "medqa"
        ]

    def verdict(self, images: list[Dataset]) -> str:
        """What the metadata of the images' series says."""
        found = self.client.post("/tools/lookup", content=images[0].SeriesInstanceUID).json()
        answer = self.client.get(f"/series/{found[0]['ID']}/metadata/{METADATA}")
        return answer.text if answer.status_code == 200 else "none"


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Server]:
    if shutil.which("/usr/sbin/Orthanc") is None:
        reason = "no /usr/sbin/Orthanc (apt-get install orthanc)"
        if os.environ.get("MEDQA_REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    server = Server(folder, **settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        server.client.close()


@pytest.fixture(scope="module")
def hook_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, hook_port: int) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("orthanc")
    hook = folder / "medqa.lua"
    hook.write_text(HOOK.read_text().replace("8043", str(hook_port)))
    with running(folder, LuaScripts=[str(hook)]) as server:
        yield server


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks()


@pytest.fixture
def images(shared_data: Path) -> list[Dataset]:
    """The middle of three slices of a CT of a head, as a new study of a new patient."""
    patient, study, series, frame = (generate_uid() for _ in range(4))
    found = []
    for path in sorted((shared_data / "ct/head_series_GE").iterdir())[4:7]:
        ds = pydicom.dcmread(path)
        ds.PatientID, ds.PatientName = patient[-20:], "Doe^Jane"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.SOPInstanceUID, ds.FrameOfReferenceUID = generate_uid(), frame
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.PixelData = ds.pixel_array[192:320, 192:320].tobytes()  # quick to assess
        ds.Rows = ds.Columns = 128
        found.append(ds)
    return found


def derived(source: list[Dataset], sigma: float, *, named: bool = True) -> list[Dataset]:
    """A smoothed copy; it names what it was derived from, or only says that it was."""
    series, made = generate_uid(), []
    for original in source:
        ds = pydicom.dcmread(io.BytesIO(encoded(original)))
        ds.SeriesInstanceUID, ds.SOPInstanceUID = series, generate_uid()
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.SeriesNumber, ds.ImageType = 77, ["DERIVED", "PRIMARY", "AXIAL"]
        if named:
            item = Dataset()
            item.ReferencedSOPClassUID = original.SOPClassUID
            item.ReferencedSOPInstanceUID = original.SOPInstanceUID
            ds.SourceImageSequence = [item]
        smooth = gaussian_filter(original.pixel_array.astype(np.float32), sigma)
        ds.PixelData = np.rint(smooth).astype(original.pixel_array.dtype).tobytes()
        made.append(ds)
    return made


def encoded(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@contextmanager
def plugged(
    server: Server, folder: Path, transport: httpx.BaseTransport | None = None
) -> Iterator[Plugin]:
    with (
        Orthanc(server.url, LOGIN, transport) as orthanc,
        Store.open(str(folder / "audit.db")) as store,
    ):
        plugin = opened(orthanc, store, folder / "spool")
        with plugin.state:
            yield plugin


def work(store: Store, networks: Networks) -> int:
    done = 0
    while (leased := lease(store, "a worker")) is not None:
        assert do(store, leased, networks, decode_isolated) == "done"
        done += 1
    return done


def files(folder: Path) -> list[Path]:
    return list((folder / "spool/orthanc/files").glob("*"))


def age(folder: Path) -> None:
    """Make what is in the spool 15 days old: images stay 14, to be looked at."""
    for path in files(folder):
        os.utime(path, (time.time() - 15 * 86_400,) * 2)


def test_derived_series_come_back_with_their_verdicts(
    archive: Server,
    images: list[Dataset],
    networks: Networks,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="medqa")
    # One names its source. The other says only that it is derived, and lies on the same grid.
    mild, strong = derived(images, 0.3), derived(images, 4.0, named=False)
    with plugged(archive, tmp_path) as plugin:
        once(plugin)  # from now on
        study = archive.send([*images, *mild, *strong])
        once(plugin)
        assert counts(plugin.store)["waiting"] == 0  # not before all have arrived
        archive.settle(study)
        once(plugin)
        assert counts(plugin.store)["waiting"] == 2
        assert len(files(tmp_path)) == 9
        assert work(plugin.store, networks) == 2
        once(plugin)
        records = plugin.store.list()
        assert undelivered(plugin.store, "orthanc") == ()
    # The results are in the patient's study, each in a series of its own.
    results = archive.results(study)
    assert sorted(tags["Modality"] for tags in results) == ["OT", "OT", "OT", "OT", "SR", "SR"]
    assert {tags["PatientID"] for tags in results} == {images[0].PatientID}
    assert len(archive.series(study)) == 3 + 6
    # Each says of its own series what the record says.
    verdicts = {archive.verdict(mild), archive.verdict(strong)}
    assert verdicts == {f"{one.verdict} {one.assessment_id}" for one in records}
    assert archive.verdict(mild).startswith("diagnostic ")
    assert archive.verdict(strong).startswith("unsuitable ")
    assert archive.verdict(images) == "none"
    for tags in (tags for tags in results if tags["Modality"] == "SR"):
        assert refers_to(tags, mild) != refers_to(tags, strong)
        assert refers_to(tags, images)
        meant = mild if refers_to(tags, mild) else strong
        assert archive.verdict(meant).split()[0].replace("_", " ") in json.dumps(tags).lower()
    # Again, after either was stopped: nothing is done twice, and our own results are no images.
    before = archive.get("/statistics")["CountInstances"]
    with plugged(archive, tmp_path) as plugin:
        archive.settle(study)
        once(plugin)
        archive.stop()
        with pytest.raises(OrthancError, match="cannot be reached"):
            once(plugin)
        archive.start()
        once(plugin)
        assert plugin.state.open() == []
        assert counts(plugin.store) == {"waiting": 0, "leased": 0, "done": 2, "dead": 0}
        assert verify(plugin.store).fault is None
        assert len(files(tmp_path)) == 9  # for people to look at
        age(tmp_path)
        once(plugin)
    assert archive.get("/statistics")["CountInstances"] == before
    assert files(tmp_path) == []  # patients' images do not pile up
    logged = " ".join(record.getMessage() for record in caplog.records)
    for ds in (*images, *mild, *strong):
        for private in (ds.PatientID, ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID):
            assert private not in logged
    assert "Doe" not in logged


def refers_to(tags: dict[str, Any], images: list[Dataset]) -> bool:
    return all(f'"{ds.SOPInstanceUID}"' in json.dumps(tags) for ds in images)


def test_a_late_instance_opens_its_series_again(
    archive: Server, images: list[Dataset], networks: Networks, tmp_path: Path
) -> None:
    mild = derived(images, 0.3)
    with plugged(archive, tmp_path) as plugin:
        once(plugin)
        study = archive.send([*images, *mild[:2]])
        archive.settle(study)
        once(plugin)
        archive.send(mild[2:])  # while the job waits: the next one must supersede it
        archive.settle(study)
        once(plugin)
        assert counts(plugin.store)["waiting"] == 1
        work(plugin.store, networks)
        once(plugin)
        (first,) = plugin.store.list()
        assert first.verdict == "not_assessable"  # a slice is missing
        assert archive.verdict(mild) == f"not_assessable {first.assessment_id}"
        archive.settle(study)  # our own report has just arrived
        once(plugin)
        assert work(plugin.store, networks) == 1
        once(plugin)
        second = plugin.store.list()[0]
        assert second.verdict == "diagnostic"
        assert archive.verdict(mild) == f"diagnostic {second.assessment_id}"
        archive.settle(study)
        once(plugin)
        assert counts(plugin.store)["waiting"] == 0
        assert len(plugin.store.list()) == 2
    rows = plain(str(tmp_path / "audit.db"), "SELECT assessment_id, supersedes FROM assessments")
    assert dict(rows) == {first.assessment_id: None, second.assessment_id: first.assessment_id}
    reports = [tags for tags in archive.results(study) if tags["Modality"] == "SR"]
    assert len(reports) == 2  # the earlier report stays in the archive


class Killed(BaseException):
    """Nothing catches this, as nothing catches SIGKILL."""


class Deadly(httpx.BaseTransport):
    """The network, until a process dies before or after its request is answered."""

    def __init__(self, requests: float) -> None:
        self.left = requests
        self._real = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.left -= 0.5
        if self.left <= 0:
            raise Killed
        answer = self._real.handle_request(request)
        self.left -= 0.5
        if self.left <= 0:
            answer.close()
            raise Killed
        return answer

    def close(self) -> None:
        self._real.close()


def test_killed_at_every_request_nothing_is_lost_or_doubled(
    archive: Server, images: list[Dataset], networks: Networks, tmp_path: Path
) -> None:
    study = ""
    smooth = derived(images[:1], 0.3)
    deaths, rounds = 0, 0
    with plugged(archive, tmp_path) as plugin:
        once(plugin)
        study = archive.send([*images[:1], *smooth])
        archive.settle(study)
    for step in range(1, 300):
        with plugged(archive, tmp_path, Deadly(step / 2)) as plugin:
            try:
                once(plugin)
                rounds += 1
            except Killed:
                deaths += 1
            work(plugin.store, networks)
            if rounds == 3:
                break
    assert deaths > 20
    archive.settle(study)
    with plugged(archive, tmp_path) as plugin:
        once(plugin)
        assert counts(plugin.store) == {"waiting": 0, "leased": 0, "done": 1, "dead": 0}
        assert plugin.state.open() == []
        (record,) = plugin.store.list()
    assert len(archive.results(study)) == 3
    assert archive.verdict(smooth) == f"diagnostic {record.assessment_id}"
    age(tmp_path)
    with plugged(archive, tmp_path) as plugin:
        once(plugin)
    assert files(tmp_path) == []


@pytest.mark.parametrize("moment", ["submit", "given_back", "close"])
def test_killed_between_two_databases(
    archive: Server,
    images: list[Dataset],
    networks: Networks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """After a step of ours or the queue's is on disk, and before the next one is."""
    smooth = derived(images[:1], 0.3)

    def deadly(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            original(*given, **named)
            raise Killed

        return call

    with plugged(archive, tmp_path) as plugin:
        once(plugin)
        study = archive.send([*images[:1], *smooth])
        archive.settle(study)
        with monkeypatch.context() as patch:
            home = rounds if hasattr(rounds, moment) else State
            patch.setattr(home, moment, deadly(getattr(home, moment)))
            with pytest.raises(Killed):  # noqa: PT012 (at whichever round)
                for _ in range(3):
                    once(plugin)
                    work(plugin.store, networks)
    with plugged(archive, tmp_path) as plugin:
        for _ in range(3):
            once(plugin)
            work(plugin.store, networks)
        assert counts(plugin.store) == {"waiting": 0, "leased": 0, "done": 1, "dead": 0}
        assert not plugin.state.busy(study)
    assert len(archive.results(study)) == 3
    assert archive.verdict(smooth).startswith("diagnostic ")


def test_a_source_that_comes_later_in_another_study(
    archive: Server, images: list[Dataset], tmp_path: Path
) -> None:
    copies = derived(images[:1], 0.3)
    copies[0].StudyInstanceUID = generate_uid()
    with plugged(archive, tmp_path) as plugin:
        once(plugin)
        archive.settle(archive.send(copies))
        once(plugin)
        assert counts(plugin.store)["waiting"] == 0
        archive.settle(archive.send(images[:1]))
        once(plugin)
        assert counts(plugin.store)["waiting"] == 1


def test_what_is_not_derived_is_left_alone(
    archive: Server, images: list[Dataset], tmp_path: Path
) -> None:
    """Another kernel on the same grid, raw data named as the source, and a reformat."""
    kernel = derived(images[:1], 0.3)
    raw = Dataset()
    raw.ReferencedSOPClassUID, raw.ReferencedSOPInstanceUID = "1.3.12.2.1107.5.9.1", generate_uid()
    kernel[0].ImageType, kernel[0].SourceImageSequence = ["ORIGINAL", "PRIMARY", "AXIAL"], [raw]
    reformat = derived(images[:1], 0.3)
    reformat[0].ImageType = ["DERIVED", "SECONDARY", "MPR"]
    with plugged(archive, tmp_path) as plugin:
        once(plugin)
        archive.settle(archive.send([*images[:1], *kernel, *reformat]))
        once(plugin)
        assert counts(plugin.store)["waiting"] == 0
        assert plugin.state.open() == []
        assert files(tmp_path) == []  # nothing was fetched


def test_two_possible_sources_are_no_source(
    archive: Server, images: list[Dataset], tmp_path: Path
) -> None:
    other = derived(images[:1], 0.0, named=False)
    other[0].ImageType, other[0].SeriesNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], 5
    copies = derived(images[:1], 0.3, named=False)
    with plugged(archive, tmp_path) as plugin:
        once(plugin)
        archive.settle(archive.send([*images[:1], *other, *copies]))
        once(plugin)
        assert counts(plugin.store)["waiting"] == 0


def test_results_of_a_deleted_series_do_not_bring_it_back(
    archive: Server, images: list[Dataset], networks: Networks, tmp_path: Path
) -> None:
    with plugged(archive, tmp_path) as plugin:
        once(plugin)
        study = archive.send([*images[:1], *derived(images[:1], 0.3)])
        archive.settle(study)
        once(plugin)
        assert work(plugin.store, networks) == 1
        assert archive.client.delete(f"/studies/{study}").status_code == 200
        once(plugin)
        assert undelivered(plugin.store, "orthanc") == ()
    assert archive.client.get(f"/studies/{study}").status_code == 404


def test_a_dead_job_leaves_its_mark_and_an_odd_study_waits(
    archive: Server, images: list[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth = derived(images[:1], 0.3)
    with plugged(archive, tmp_path) as plugin:
        once(plugin)
        archive.settle(archive.send([*images[:1], *smooth]))
        with monkeypatch.context() as patch:
            patch.setattr(rounds, "submit", lambda *_: 1 / 0)
            once(plugin)  # an error of our own in one study does not end the round
        assert plugin.state.open() == []  # but it is put off
        monkeypatch.setattr(time, "time", lambda real=time.time: real() + 16)
        once(plugin)
        monkeypatch.setattr(jobs, "MOST_ATTEMPTS", 1)
        leased = lease(plugin.store, "a worker")
        assert leased is not None
        assert fail(plugin.store, leased, "no such profile; name another") == "dead"
        once(plugin)
        assert archive.verdict(smooth) == "failed"
        assert undelivered(plugin.store, "orthanc") == ()
        once(plugin)
        assert len(files(tmp_path)) == 2  # it may be tried again


def test_the_results_of_another_orthanc_are_left_to_it(
    archive: Server, images: list[Dataset], networks: Networks, tmp_path: Path
) -> None:
    with plugged(archive, tmp_path) as plugin:
        once(plugin)
        study = archive.send([*images[:1], *derived(images[:1], 0.3)])
        archive.settle(study)
        once(plugin)
        assert work(plugin.store, networks) == 1
        with Orthanc(archive.url, LOGIN) as orthanc:
            other = opened(orthanc, plugin.store, tmp_path / "other")
            with other.state:
                once(other)
        assert len(undelivered(plugin.store, "orthanc")) == 1
        assert archive.results(study) == []


def test_the_past_is_taken_on_demand_only(
    archive: Server, images: list[Dataset], tmp_path: Path
) -> None:
    archive.settle(archive.send([*images[:1], *derived(images[:1], 0.3)]))
    with plugged(archive, tmp_path / "new") as plugin:
        once(plugin)
        assert counts(plugin.store)["waiting"] == 0
    with plugged(archive, tmp_path / "all") as plugin:
        once(plugin, backlog=True)
        assert counts(plugin.store)["waiting"] >= 1


def test_refusals_say_what_to_mend(archive: Server, tmp_path: Path) -> None:
    with (
        Orthanc(archive.url, ("medqa", "wrong")) as orthanc,
        pytest.raises(OrthancError, match=r"answers 401 to GET /changes.*MEDQA_ORTHANC_USER"),
    ):
        orthanc.get("/changes")
    for url in ("orthanc:8042", "ftp://here", "http://medqa:only-here@here:8042"):
        with pytest.raises(UsageError) as caught:
            Orthanc(url)
        assert "only-here" not in str(caught.value)
    with plugged(archive, tmp_path), pytest.raises(UsageError, match="stop the other"):
        opened(None, None, tmp_path / "spool")  # type: ignore[arg-type]


def test_labels_where_orthanc_has_them() -> None:
    """Orthanc 1.12's answers by its documentation: Debian 12 has 1.10, without labels."""
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        if request.url.path == "/system":
            return httpx.Response(200, json={"HasLabels": True})
        return httpx.Response(200, json=["medqa-diagnostic", "urgent"])

    with Orthanc("http://here", transport=httpx.MockTransport(answer)) as orthanc:
        orthanc.label("s", "medqa-", "unsuitable")
    assert asked[2:] == [
        "DELETE /series/s/labels/medqa-diagnostic",
        "PUT /series/s/labels/medqa-unsuitable",
    ]


def test_the_hook_wakes_the_plugin(
    archive: Server, hook_port: int, images: list[Dataset], tmp_path: Path
) -> None:
    wake, stop = threading.Event(), threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + 20
        with Store.open(str(tmp_path / "audit.db"), readonly=True) as store:
            while counts(store)["waiting"] == 0 and time.monotonic() < deadline:
                time.sleep(0.1)
        stop.set()
        wake.set()

    with listening(hook_port, wake), plugged(archive, tmp_path) as plugin:
        once(plugin)
        archive.send([*images[:1], *derived(images[:1], 0.3)])
        watching = threading.Thread(target=watch)
        watching.start()
        follow(plugin, 3600, wake, stop)  # alone, it would look an hour later
        watching.join()
        assert counts(plugin.store)["waiting"] == 1
        address = f"http://127.0.0.1:{hook_port}"
        assert httpx.post(address, content=b"x" * 65).status_code == 413
        with pytest.raises(UsageError, match="cannot be used"), listening(hook_port, wake):
            pass


COMMAND = """
import sys
import typer
from medqa.cli.orthanc import orthanc
try:
    typer.run(orthanc)
finally:
    print("torch" in sys.modules)
"""


def test_the_command_is_killed_with_orthanc_and_goes_on(
    archive: Server, images: list[Dataset], networks: Networks, tmp_path: Path
) -> None:
    spool, db = str(tmp_path / "spool"), str(tmp_path / "audit.db")
    command = [sys.executable, "-c", COMMAND, archive.url, "--spool", spool, "--db", db]
    environment = os.environ | {
        "MEDQA_ORTHANC_USER": LOGIN[0],
        "MEDQA_ORTHANC_PASSWORD": LOGIN[1],
    }

    def look_once() -> bytes:
        given = [*command, "--once"]
        done = subprocess.run(given, env=environment, check=True, capture_output=True, timeout=60)  # noqa: S603
        assert done.stderr == b""
        return done.stdout

    look_once()
    smooth = derived(images, 0.3)
    study = archive.send([*images, *smooth])
    with subprocess.Popen([*command, "--every", "0.1"], env=environment) as process:  # noqa: S603
        archive.settle(study)
        while not files(tmp_path):  # in the middle of fetching
            time.sleep(0.01)
        process.kill()
    archive.stop(signal.SIGKILL)
    archive.start()
    torch_was_loaded = look_once()
    with Store.open(db) as store:
        assert work(store, networks) == 1
        with subprocess.Popen([*command, "--every", "0.1"], env=environment) as process:  # noqa: S603
            while undelivered(store, "orthanc"):
                time.sleep(0.05)
            process.terminate()
            assert process.wait(20) == 0
        assert len(store.list()) == 1
    assert len(archive.results(study)) == 3
    assert archive.verdict(smooth).startswith("diagnostic ")
    assert torch_was_loaded == b"False\n"  # even where it submits
