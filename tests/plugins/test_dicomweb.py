"""DICOMweb against a real Orthanc with its DICOMweb plugin, by TLS and with a password."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import select
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from auditing import plain
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydicom.uid import generate_uid
from typer.testing import CliRunner

from medqa.audit import Store
from medqa.errors import UsageError
from medqa.isolation import decode_isolated
from medqa.queue import lease, listed
from medqa.queue.submission import Spool
from medqa.queue.worker import Networks, do
from medqa_plugins.dicomweb import compare, give_back, search
from medqa_plugins.dicomweb_server import Server, ServerError, connect

USER, PASSWORD = "medqa", "only-here"
ORTHANC = "/usr/sbin/Orthanc"
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"


@dataclass(frozen=True)
class Orthanc:
    url: str
    authority: Path

    @property
    def web(self) -> str:
        return f"{self.url}/dicom-web"

    def ask(self, method: str, path: str, content: bytes | None = None) -> Any:
        answer = requests.request(
            method,
            self.url + path,
            data=content,
            auth=(USER, PASSWORD),
            verify=str(self.authority),
            timeout=30,
        )
        answer.raise_for_status()
        return answer.json()

    def add(self, content: bytes) -> None:
        assert self.ask("POST", "/instances", content)["Status"] in ("Success", "AlreadyStored")

    def count(self) -> int:
        return int(self.ask("GET", "/statistics")["CountInstances"])


def certificate(folder: Path) -> Path:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now, place = datetime.now(UTC), x509.IPAddress(IPv4Address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([place]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    plain_key = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    authority = made.public_bytes(serialization.Encoding.PEM)
    (folder / "both.pem").write_bytes(plain_key + authority)
    (folder / "authority.pem").write_bytes(authority)
    return folder / "authority.pem"


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TlsProxy(socketserver.ThreadingTCPServer):
    """What stands before Orthanc in a hospital: it ends the TLS."""

    daemon_threads = True

    def __init__(self, port: int, keys: Path) -> None:
        self._port = port
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(keys)
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)

    def finish_request(self, request: Any, _address: Any) -> None:
        try:
            with (
                self._context.wrap_socket(request, server_side=True) as outer,
                socket.create_connection(("127.0.0.1", self._port)) as inner,
            ):
                self._pass_on(outer, inner)
        except OSError:
            return  # the client did not trust us, or went away

    @staticmethod
    def _pass_on(outer: ssl.SSLSocket, inner: socket.socket) -> None:
        """One thread for both ways: OpenSSL aborts the process where two use a socket."""
        while True:
            ready = [outer] if outer.pending() else select.select([outer, inner], [], [], 60)[0]
            for one in ready:
                content = one.recv(2**16)
                if not content:
                    return
                (inner if one is outer else outer).sendall(content)
            if not ready:
                return

    def handle_error(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if not (Path(ORTHANC).exists() and Path(PLUGIN).exists()):
        reason = "no Orthanc with DICOMweb (apt-get install orthanc orthanc-dicomweb)"
        if os.environ.get("MEDQA_REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("orthanc")
    authority = certificate(folder)
    port = free_port()
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "Plugins": [PLUGIN],
        "HttpPort": port,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "KeepAlive": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    before = TlsProxy(port, folder / "both.pem")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - the system's own
            [ORTHANC, str(folder / "orthanc.json")], stdout=log, stderr=log
        )
    threading.Thread(target=before.serve_forever, daemon=True).start()
    orthanc = Orthanc(f"https://127.0.0.1:{before.server_address[1]}", authority)
    try:
        for attempt in range(200):
            try:
                orthanc.ask("GET", "/system")
                break
            except requests.RequestException as error:
                if attempt == 199:
                    pytest.fail(f"{error}: {(folder / 'log').read_text()}")
                time.sleep(0.1)
        yield orthanc
    finally:
        before.shutdown()
        before.server_close()
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def orthanc(running: Orthanc, monkeypatch: pytest.MonkeyPatch) -> Orthanc:
    """The server, empty, and its password in the environment."""
    for one in running.ask("GET", "/patients"):
        running.ask("DELETE", f"/patients/{one}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(running.authority))
    monkeypatch.setenv("MEDQA_DICOMWEB_USER", USER)
    monkeypatch.setenv("MEDQA_DICOMWEB_PASSWORD", PASSWORD)
    return running


@pytest.fixture(autouse=True)
def _closed_sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a command would leave to the end of its process."""
    made: list[requests.Session] = []
    start = requests.Session.__init__

    def kept(self: requests.Session) -> None:
        start(self)
        made.append(self)

    monkeypatch.setattr(requests.Session, "__init__", kept)
    yield
    for one in made:
        one.close()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@dataclass(frozen=True)
class Case:
    study: str
    reference: str
    candidate: str
    files: dict[str, bytes]


@pytest.fixture
def case(shared_data: Path) -> Callable[..., Case]:
    """A real CT series of three slices, and a noisy copy, as an archive would hold them."""

    def make(slices: int = 3, references: bool = True, seed: int = 0) -> Case:
        files = {}
        study, original, series, frame = (generate_uid() for _ in range(4))
        for number in range(1, slices + 1):
            ds = pydicom.dcmread(
                shared_data / "ct" / "small_series_torchio" / f"IMG000{number}.dcm"
            )
            ds.StudyInstanceUID, ds.SeriesInstanceUID = study, original
            ds.FrameOfReferenceUID = frame
            ds.StudyDate = "20240131"
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            files[str(ds.SOPInstanceUID)] = encoded(ds)
            if references:
                source = pydicom.Dataset()
                source.ReferencedSOPClassUID = ds.SOPClassUID
                source.ReferencedSOPInstanceUID = ds.SOPInstanceUID
                ds.SourceImageSequence = [source]
            ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
            noise = np.random.default_rng(seed + number).integers(-3, 4, ds.pixel_array.shape)
            ds.PixelData = (ds.pixel_array + noise).astype(ds.pixel_array.dtype).tobytes()
            ds.SeriesInstanceUID, ds.SeriesNumber = series, 900
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            files[str(ds.SOPInstanceUID)] = encoded(ds)
        return Case(study, original, series, files)

    return make


def encoded(ds: pydicom.Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def send(orthanc: Orthanc, case: Case) -> None:
    for content in case.files.values():
        orthanc.add(content)


def assess_all(url: str) -> int:
    done, networks = 0, Networks()
    with Store.open(url) as store:
        while (leased := lease(store, "tests")) is not None:
            do(store, leased, networks, decode_isolated)
            done += 1
    return done


def test_two_series_are_compared_and_the_results_come_back(
    orthanc: Orthanc, case: Callable[..., Case], spool: Spool, url: str
) -> None:
    given = case()
    send(orthanc, given)
    server = connect(orthanc.web)
    with Store.open(url) as store:
        assert compare(server, store, spool, given.reference, given.candidate).new == 1
        assert compare(server, store, spool, given.reference, given.candidate).known == 1
        # What is judged are the very bytes that the archive holds.
        kept = {one.name for one in (spool.folder / "files").iterdir()}
        assert kept == {hashlib.sha256(one).hexdigest() for one in given.files.values()}
        assert give_back(server, store) == (0, 0)
        assert assess_all(url) == 1
        assert store.list()[0].verdict != "not_assessable"
        assert store.list()[0].origin == "dicomweb"
        assert give_back(server, store) == (1, 0)
        assert give_back(server, store) == (0, 0)
        held = orthanc.count()
        assert held == 6 + 3  # a report, a summary and a map
        plain(url, "UPDATE jobs SET delivered_at = NULL")  # as if killed before it was noted
        assert give_back(server, store) == (1, 0)
        assert orthanc.count() == held
    found = orthanc.ask("GET", "/series?expand")
    made = [one for one in found if one["MainDicomTags"].get("Manufacturer") == "medqa"]
    assert len(made) == 3
    (study,) = orthanc.ask("GET", "/studies?expand")
    assert study["MainDicomTags"]["StudyInstanceUID"] == given.study


@pytest.mark.parametrize("references", [True, False])
def test_derived_series_are_found_with_their_sources(
    references: bool, orthanc: Orthanc, case: Callable[..., Case], spool: Spool, sqlite: str
) -> None:
    given, other = case(references=references), case(seed=50)
    lonely = case(seed=90)
    send(orthanc, given)
    send(orthanc, other)
    for uid, content in list(lonely.files.items())[::2]:  # the originals only
        assert uid
        orthanc.add(content)
    server = connect(orthanc.web)
    with Store.open(sqlite) as store:
        assert search(server, store, spool, study=given.study).new == 1
        assert search(server, store, spool, since=date(2024, 2, 1)).new == 0
        found = search(server, store, spool, since=date(2024, 1, 1))
        assert (found.new, found.known, found.refused) == (1, 0, 0)
        again = search(server, store, spool, since=date(2024, 1, 1))
        assert (again.new, again.known) == (0, 0)  # nothing was fetched anew
        jobs = [json.loads(row[0]) for row in plain(sqlite, "SELECT job FROM jobs")]
    digests = {uid: hashlib.sha256(content).hexdigest() for uid, content in given.files.items()}
    originals = [digests[uid] for uid in list(given.files)[::2]]
    derived = [digests[uid] for uid in list(given.files)[1::2]]
    mine = [one for one in jobs if Path(one["reference"][0]).name in digests.values()]
    assert len(mine) == 1
    assert sorted(Path(one).name for one in mine[0]["reference"]) == sorted(originals)
    assert sorted(Path(one).name for one in mine[0]["candidate"]) == sorted(derived)


def test_a_late_instance_reopens_and_our_results_do_not(
    orthanc: Orthanc, case: Callable[..., Case], spool: Spool, sqlite: str
) -> None:
    given = case()
    *early, late = given.files.values()
    for content in early:
        orthanc.add(content)
    server = connect(orthanc.web)
    with Store.open(sqlite) as store:
        assert search(server, store, spool, study=given.study).new == 1
        orthanc.add(late)
        assert search(server, store, spool, study=given.study).new == 1
        assert search(server, store, spool, study=given.study).new == 0
        assert assess_all(sqlite) == 2
        assert give_back(server, store)[0] == 2
        before = len(listed(store))
        again = search(server, store, spool, study=given.study)  # the study has grown
        assert (again.new, again.refused) == (0, 0)
        assert len(listed(store)) == before


def test_results_go_to_the_server_that_they_came_from(
    orthanc: Orthanc, case: Callable[..., Case], spool: Spool, sqlite: str
) -> None:
    given = case()
    send(orthanc, given)
    server = connect(orthanc.web)
    with Store.open(sqlite) as store:
        compare(server, store, spool, given.reference, given.candidate)
        assess_all(sqlite)
        other = Server("https://127.0.0.1:1/dicom-web", requests.Session())
        assert give_back(other, store) == (0, 0)
        assert give_back(server, store) == (1, 0)


def test_what_cannot_be_asked(
    orthanc: Orthanc, case: Callable[..., Case], spool: Spool, sqlite: str
) -> None:
    given = case()
    send(orthanc, given)
    server = connect(orthanc.web)
    with Store.open(sqlite) as store:
        with pytest.raises(UsageError, match="no DICOM UID"):
            compare(server, store, spool, "../../etc/passwd", given.candidate)
        with pytest.raises(UsageError, match="no DICOM UID"):
            search(server, store, spool, study="1.2.3?limit=1")
        with pytest.raises(ServerError, match="no series of this UID"):
            compare(server, store, spool, "1.2.3", given.candidate)
        with pytest.raises(UsageError, match="are the same"):
            compare(server, store, spool, given.reference, given.reference)
        assert search(server, store, spool, study="1.2.3").new == 0
        assert listed(store) == ()


def test_certificates_and_passwords_are_checked(
    orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDQA_DICOMWEB_PASSWORD", "wrong")
    with pytest.raises(ServerError, match="answers 401"):
        connect(orthanc.web).studies(None)
    monkeypatch.setenv("MEDQA_DICOMWEB_PASSWORD", PASSWORD)
    assert connect(orthanc.web).studies(None) == []
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(ServerError, match="certificate that is not trusted"):
        connect(orthanc.web).studies(None)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://pacs/dicom-web", "no http"),
        ("pacs", "no http"),
        ("https://me:secret@pacs/dicom-web", "credentials"),
        ("https://pacs/dicom-web?x=1", "query"),
        ("http://pacs/dicom-web", "readable"),
        ("http://10.0.0.1/dicom-web", "readable"),
    ],
)
def test_urls_that_are_refused(url: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDQA_DICOMWEB_TOKEN", "t")
    with pytest.raises(UsageError, match=words) as caught:
        connect(url)
    assert "secret" not in str(caught.value)
    connect("http://127.0.0.1/dicom-web")
    monkeypatch.setenv("MEDQA_DICOMWEB_USER", "u")
    with pytest.raises(UsageError, match="half set, or twice"):
        connect("https://pacs/dicom-web")


def test_more_than_is_read_is_refused(
    orthanc: Orthanc,
    case: Callable[..., Case],
    spool: Spool,
    sqlite: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = case()
    send(orthanc, given)
    server = connect(orthanc.web)
    monkeypatch.setenv("MEDQA_MAX_IMAGE_GIB", str(30_000 / 2**30))
    with Store.open(sqlite) as store:
        with pytest.raises(ServerError, match="more than is read"):
            compare(server, store, spool, given.reference, given.candidate)
        assert listed(store) == ()


class Hostile(BaseHTTPRequestHandler):
    """Answers whatever it is told to."""

    status, headers_, body, endless = 200, {"Content-Type": "application/dicom+json"}, b"[]", False
    seen: list[dict[str, str]]

    def do_GET(self) -> None:
        type(self).seen.append(dict(self.headers))
        self.send_response(self.status)
        for name, value in self.headers_.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.body)
        try:
            while self.endless:
                self.wfile.write(b" " * 2**20)
        except OSError:
            return

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hostile() -> Iterator[Callable[..., str]]:
    servers = []

    def start(**answer: Any) -> str:
        kind = type("Answer", (Hostile,), answer | {"seen": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/dicom-web"

    yield start
    for one in servers:
        one.shutdown()
        one.server_close()


def match(**values: Any) -> bytes:
    tags = {"study": "0020000D", "series": "0020000E", "count": "00201209"}
    given = {"study": "1.2", "series": "1.3", "count": 1} | values
    vr = {"study": "UI", "series": "UI", "count": "IS"}
    return json.dumps(
        [{tags[name]: {"vr": vr[name], "Value": [value]} for name, value in given.items()}]
    ).encode()


@pytest.mark.parametrize(
    "answer",
    [
        {"body": b"<html>"},
        {"body": b"{"},
        {"body": b"[" * 100_000},
        {"body": b"[[1]]"},
        {"body": b'[{"x": 1}]'},
        {"body": match(series="../../../tmp/x")},
        {"body": match(study="1.2/../../x")},
        {"body": match(count="many")},
        {"status": 302, "headers_": {"Location": "http://127.0.0.1:1/"}},
        {"headers_": {"Content-Type": "text/html"}},
        {"endless": True, "body": b"["},
    ],
)
def test_answers_of_a_hostile_server(
    answer: dict[str, Any],
    hostile: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    spool: Spool,
    sqlite: str,
) -> None:
    monkeypatch.setattr("medqa_plugins.dicomweb_server._JSON_BYTES", 2**22)
    server = connect(hostile(**answer))
    with Store.open(sqlite) as store, pytest.raises(UsageError):
        compare(server, store, spool, "1.3", "1.4")
    assert not spool.folder.exists()


def test_a_token_is_sent_and_no_netrc(
    hostile: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login evil password evil\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("MEDQA_DICOMWEB_TOKEN", "abc")
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(Hostile, "do_GET", answering(seen))
    assert connect(hostile()).studies(None) == []
    assert seen[0]["Authorization"] == "Bearer abc"


def answering(seen: list[dict[str, str]]) -> Callable[[Hostile], None]:
    def do_get(self: Hostile) -> None:
        seen.append(dict(self.headers))
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.end_headers()
        self.wfile.write(b"[]")

    return do_get


def test_nobody_answers(spool: Spool, sqlite: str) -> None:
    server = Server(f"http://127.0.0.1:{free_port()}/dicom-web", requests.Session())
    with Store.open(sqlite) as store, pytest.raises(ServerError, match="does not answer"):
        compare(server, store, spool, "1.3", "1.4")


def test_logs_and_names_hold_no_uid(
    orthanc: Orthanc,
    case: Callable[..., Case],
    spool: Spool,
    sqlite: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    given = case()
    send(orthanc, given)
    server = connect(orthanc.web)
    with Store.open(sqlite) as store:
        search(server, store, spool, since=date(2024, 1, 1))
        with caplog.at_level(logging.WARNING):  # the worker's libraries are not the host's
            assess_all(sqlite)
        give_back(server, store)
    names = " ".join(str(one) for one in spool.folder.rglob("*"))
    kept = str(plain(sqlite, "SELECT correlation_id, results FROM jobs"))
    assert "is new" in caplog.text
    for uid in (given.study, given.reference, given.candidate, *given.files):
        assert uid not in caplog.text + names + kept


def test_the_command(
    orthanc: Orthanc, case: Callable[..., Case], spool: Spool, sqlite: str
) -> None:
    import typer

    from medqa.cli.dicomweb import dicomweb

    app = typer.Typer()
    app.command()(dicomweb)
    given = case()
    send(orthanc, given)
    options = [orthanc.web, "--spool", str(spool.folder), "--db", sqlite]
    series = ["--reference-series", given.reference, "--candidate-series", given.candidate]
    first = CliRunner().invoke(app, [*options, *series])
    assert (first.exit_code, first.output.split(";")[0]) == (0, "1 new, 0 known, 0 refused")
    assess_all(sqlite)
    second = CliRunner().invoke(app, [*options, "--since", "2024-01-01", "--store"])
    assert second.output.strip().endswith("1 stored, 0 not stored")
    assert second.exit_code == 0
    for wrong in ([], series[:2], [*series, "--study", "1.2"]):
        refused = CliRunner().invoke(app, [*options, *wrong])
        assert isinstance(refused.exception, UsageError)
