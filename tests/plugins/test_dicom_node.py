"""The DICOM node against DCMTK: what it acknowledges is safe, what is judged comes back."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import evt
from typer import Typer
from typer.testing import CliRunner

from medqa.audit import Store, verify
from medqa.errors import UsageError
from medqa.isolation import decode_isolated
from medqa.queue import counts, fail, undelivered
from medqa.queue.submission import Spool
from medqa.queue.worker import Networks, do, lease
from medqa_plugins.dicom_node import Limits, Peer, Sender, Settings, Tls, calls, inbox
from medqa_plugins.dicom_node import node as module

NAME, IDENTITY = "Secret^Name", "ID-4711"
_SERVE = (
    "import logging, pickle, sys, threading, signal;"
    "from medqa_plugins.dicom_node import serve;"
    "logging.basicConfig(level=logging.DEBUG);"
    "stop = threading.Event();"
    "signal.signal(signal.SIGTERM, lambda *_: stop.set());"
    "serve(pickle.load(open(sys.argv[1], 'rb')), stop)"
)


def program(name: str) -> str:
    """Path of a program of DCMTK's."""
    path = shutil.which(name)
    if path is None:
        reason = f"no {name} (apt-get install dcmtk)"
        if os.environ.get("MEDQA_REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)
    return found


def call(name: str, *arguments: object, timeout: float = 60) -> tuple[int, str]:
    done = subprocess.run(  # noqa: S603 - DCMTK and our own
        [program(name), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
    )
    return done.returncode, done.stdout


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


class Node:
    """A node in a process of its own."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        program("storescu")
        self.settings, self.folder, self.log = settings, folder, folder / "node.log"
        self.start()

    def start(self) -> None:
        given = self.folder / "settings.pickle"
        given.write_bytes(pickle.dumps(self.settings))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - DCMTK and our own
                [sys.executable, "-c", _SERVE, given], stdout=log, stderr=log
            )
        until(lambda: listens(self.settings.port) or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.kill()

    def echo(self, title: str = "SENDER", called: str = "MEDQA") -> tuple[int, str]:
        return call("echoscu", "-aet", title, "-aec", called, "localhost", self.settings.port)

    def send(self, *files: object, options: tuple[object, ...] = ()) -> tuple[int, str]:
        where = "-aet", "SENDER", "-aec", "MEDQA", "localhost", self.settings.port
        return call("storescu", "-v", *options, *where, *files)

    def kept(self) -> dict[str, Path]:
        """Instances in the spool, by their UID, found without a look at the index."""
        found = {}
        for path in (self.settings.spool / "files").glob("[0-9a-f]*"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
            found[str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)] = path
        return found


@contextmanager
def node(folder: Path, **given: Any) -> Iterator[Node]:
    folder.mkdir(exist_ok=True)
    values: dict[str, Any] = {
        "title": "MEDQA",
        "port": free_port(),
        "spool": folder / "spool",
        "senders": (Sender("SENDER"),),
        "quiet_seconds": 1.0,
        "db": str(folder / "qa.db"),
    }
    made = Node(Settings(**(values | given)), folder)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder / "user-data"))
        with node(folder) as made:
            yield made


@pytest.fixture
def ct(shared_data: Path, tmp_path: Path) -> Path:
    """Folder of a real CT series of a patient with a name."""
    folder = tmp_path / "original"
    folder.mkdir()
    study = generate_uid()
    for path in sorted((shared_data / "ct" / "small_series_torchio").glob("*.dcm"))[:6]:
        ds = dcmread(path)
        ds.PatientName, ds.PatientID, ds.StudyInstanceUID = NAME, IDENTITY, study
        ds.save_as(folder / path.name)
    return folder


def derive(original: Path, folder: Path, *, named: bool = True) -> Path:
    """A denoised series made of another, as a program that knows DICOM makes it."""
    folder.mkdir()
    series = generate_uid()
    for path in sorted(original.iterdir()):
        ds = dcmread(path)
        source = Dataset()
        source.ReferencedSOPClassUID = ds.SOPClassUID
        source.ReferencedSOPInstanceUID = ds.SOPInstanceUID
        if named:
            ds.SourceImageSequence = [source]
        ds.ImageType = ["DERIVED", *list(ds.ImageType)[1:]]
        ds.SeriesNumber = 99
        ds.SeriesInstanceUID, ds.SOPInstanceUID = series, generate_uid()
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        pixels = ds.pixel_array.copy()
        pixels[::7, ::5] += 1
        ds.PixelData = pixels.tobytes()
        ds.save_as(folder / path.name)
    return folder


def many(source: Path, folder: Path, count: int) -> list[Path]:
    """Instances of one series, each small."""
    folder.mkdir()
    ds = dcmread(source)
    ds.SeriesInstanceUID = generate_uid()
    found = []
    for number in range(count):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.InstanceNumber = number
        found.append(folder / f"{number:04d}.dcm")
        ds.save_as(found[-1])
    return found


def uids(*files: Path) -> set[str]:
    return {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files}


def acknowledged(output: str) -> list[Path]:
    """Files that storescu has Success for, by what it printed."""
    found = re.findall(r"Sending file: (.+)\n(?:(?!.*Sending file).*\n)*?.*\(Success\)", output)
    return [Path(name) for name in found]


def assess_all(db: str) -> None:
    with Store.open(db) as store:
        networks = Networks()
        while (leased := lease(store, "test")) is not None:
            assert do(store, leased, networks, decode_isolated) == "done"


def test_echo_and_titles(shared_node: Node) -> None:
    assert shared_node.echo()[0] == 0
    rc, words = shared_node.echo(called="OTHER")
    assert rc != 0
    assert "Called AE Title Not Recognized" in words
    rc, words = shared_node.echo(title="NOBODY")
    assert rc != 0
    assert "Calling AE Title Not Recognized" in words


def test_single_files_and_folders_of_any_class(shared_node: Node, ct: Path, tmp_path: Path) -> None:
    rc, words = shared_node.send(ct, options=("+sd",))
    assert rc == 0, words
    kept = shared_node.kept()
    for path in ct.iterdir():
        sent = dcmread(path)
        got = dcmread(kept[sent.SOPInstanceUID])
        assert got == sent
        assert got.file_meta.TransferSyntaxUID in (
            sent.file_meta.TransferSyntaxUID,
            "1.2.840.10008.1.2.1",
        )
    # No name from outside: digests only.
    names = [path.name for path in shared_node.settings.spool.rglob("*")]
    assert all(
        re.fullmatch(r"[0-9a-f]{64}|files|series|settled|incoming-dicom|lock", one) for one in names
    )
    # A private class, and one that nobody has heard of.
    for number, uid in enumerate(("1.2.826.0.1.3680043.2.1143.99.1", "1.2.840.10008.5.1.4.99.7")):
        ds = dcmread(next(ct.iterdir()))
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.save_as(tmp_path / f"{number}.dcm")
        from pynetdicom import AE

        entity = AE("SENDER")
        entity.add_requested_context(uid, ds.file_meta.TransferSyntaxUID)
        assoc = entity.associate("localhost", shared_node.settings.port, ae_title="MEDQA")
        assert assoc.send_c_store(ds).Status == 0
        assoc.release()
        assert str(ds.SOPInstanceUID) in shared_node.kept()


@pytest.mark.parametrize(
    ("name", "option", "syntax"),
    [
        ("ct/misc/693_J2KR.dcm", "-xv", "1.2.840.10008.1.2.4.90"),
        ("ct/misc/693_J2KI.dcm", "-xw", "1.2.840.10008.1.2.4.91"),
    ],
)
def test_compressed_objects_stay_as_they_are(
    shared_node: Node, shared_data: Path, tmp_path: Path, name: str, option: str, syntax: str
) -> None:
    ds = dcmread(shared_data / name)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.save_as(tmp_path / "one.dcm")
    rc, words = shared_node.send(tmp_path / "one.dcm", options=("-R", option))
    assert rc == 0, words
    got = dcmread(shared_node.kept()[ds.SOPInstanceUID])
    assert got.file_meta.TransferSyntaxUID == syntax
    assert got.PixelData == ds.PixelData


def test_hundreds_of_associations(shared_node: Node, ct: Path, tmp_path: Path) -> None:
    files = many(next(ct.iterdir()), tmp_path / "many", 200)
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda path: shared_node.send(path)[0], files))
    assert codes == [0] * 200
    assert uids(*files) <= set(shared_node.kept())


def test_garbage_and_silence_do_no_harm(shared_node: Node) -> None:
    port = shared_node.settings.port
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\xff\xff\xff\xffAAAA", os.urandom(5000)):
        with socket.create_connection(("127.0.0.1", port)) as one, suppress(OSError):
            one.sendall(garbage)
            one.settimeout(2)
            while one.recv(100):  # until it is cut off
                pass
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    assert shared_node.echo()[0] == 0
    for one in silent:
        one.close()


def test_an_object_that_is_not_what_its_sender_says(shared_node: Node, ct: Path) -> None:
    from pynetdicom import AE
    from pynetdicom.dimse_primitives import C_STORE

    ds = dcmread(next(ct.iterdir()))
    entity = AE("SENDER")
    entity.dimse_timeout = 3  # without a data set, the node waits for one
    entity.add_requested_context(ds.SOPClassUID, ExplicitVRLittleEndian)
    before = len(shared_node.kept())
    for content in (b"garbage" * 100, b"", b"\xfe\xff\x00\xe0" * 1000):
        assoc = entity.associate("localhost", shared_node.settings.port, ae_title="MEDQA")
        assoc._reactor_checkpoint.clear()  # else its thread takes the answer
        until(lambda one=assoc: one._is_paused)
        request = C_STORE()
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID = ds.SOPClassUID
        request.AffectedSOPInstanceUID = generate_uid()
        request.DataSet = io.BytesIO(content)
        assoc.dimse.send_msg(request, assoc.accepted_contexts[0].context_id)
        _, answer = assoc.dimse.get_msg(block=True)
        assert answer is None or answer.Status == 0xC000  # None: the node ended the association
        assoc.abort()
    assert len(shared_node.kept()) == before
    assert shared_node.echo()[0] == 0


def test_what_is_acknowledged_survives_a_kill(ct: Path, tmp_path: Path) -> None:
    files = many(next(ct.iterdir()), tmp_path / "many", 300)
    with node(tmp_path / "node") as one:
        arguments = [program("storescu"), "-v", "-aet", "SENDER", "-aec", "MEDQA", "localhost"]
        sending = subprocess.Popen(  # noqa: S603 - DCMTK and our own
            [*arguments, str(one.settings.port), *map(str, files)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        until(lambda: len(list((one.settings.spool / "files").glob("[0-9a-f]*"))) > 40)
        one.kill()
        (one.settings.spool / "incoming-dicom" / "a folder of somebody else's").mkdir()
        done = acknowledged(sending.communicate(timeout=30)[0])
        assert 40 <= len(done) < 300
        assert uids(*done) <= set(one.kept())
        one.start()
        left = (one.settings.spool / "incoming-dicom").iterdir()
        assert not [path for path in left if path.is_file()]  # halves are gone
        assert one.send(*files)[0] == 0
        assert set(one.kept()) == uids(*files)


def test_a_full_queue_or_disk_tells_the_sender_to_wait(ct: Path, tmp_path: Path) -> None:
    for name, limits in (("queue", Limits(waiting=0)), ("disk", Limits(free_bytes=2**60))):
        with node(tmp_path / name, limits=limits) as one:
            _, words = one.send(next(ct.iterdir()))
            assert "Refused: OutOfResources" in words
            assert one.kept() == {}
            assert one.echo()[0] == 0


def test_more_than_is_taken_is_cut_off(ct: Path, tmp_path: Path) -> None:
    limits = Limits(instance_bytes=10_000, associations=2)
    with node(tmp_path / "node", limits=limits) as one:
        rc, words = one.send(next(ct.iterdir()))
        assert rc != 0
        assert "(Success)" not in words
        assert one.kept() == {}
        assert one.echo()[0] == 0


def test_tls_with_certificates_of_both(ct: Path, tmp_path: Path) -> None:
    paths = certificates(tmp_path)
    tls = Tls(paths["node.crt"], paths["node.key"], paths["ca.crt"])
    with node(tmp_path / "node", tls=tls) as one:
        mine = ("+tls", paths["peer.key"], paths["peer.crt"], "+cf", paths["ca.crt"])
        rc, words = one.send(next(ct.iterdir()), options=mine)
        assert rc == 0, words
        assert len(one.kept()) == 1
        stranger = ("+tls", paths["other.key"], paths["other.crt"], "+cf", paths["ca.crt"])
        for options in (stranger, ("+tla", "+cf", paths["ca.crt"]), ()):
            assert one.send(next(ct.iterdir()), options=options)[0] != 0
        # One who does not shake hands holds nobody up.
        with socket.create_connection(("127.0.0.1", one.settings.port)):
            assert one.send(next(ct.iterdir()), options=mine)[0] == 0


def certificates(folder: Path) -> dict[str, Path]:
    """Certificates of a node and a peer, signed by an authority, and of another's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    found: dict[str, Path] = {}
    authority: dict[str, tuple[Any, Any]] = {}
    for name, signer in (
        ("ca", "ca"),
        ("stranger", "stranger"),
        ("node", "ca"),
        ("peer", "ca"),
        ("other", "stranger"),
    ):
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        authority.setdefault(name, (subject, key))
        issuer, signing = authority[signer]
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == signer, path_length=None), True)
            .sign(signing, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        found[f"{name}.crt"], found[f"{name}.key"] = folder / f"{name}.crt", folder / f"{name}.key"
        found[f"{name}.crt"].write_bytes(certificate.public_bytes(pem))
        form = serialization.PrivateFormat.TraditionalOpenSSL
        plain = serialization.NoEncryption()
        found[f"{name}.key"].write_bytes(key.private_bytes(pem, form, plain))
    return found


@contextmanager
def running(*arguments: object, port: int) -> Iterator[None]:
    program(str(arguments[0]))
    with subprocess.Popen(  # noqa: S603 - DCMTK and our own
        list(map(str, arguments)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until(lambda: listens(port))
            yield
        finally:
            process.kill()


def test_from_a_derived_series_to_the_forwarded_report(ct: Path, tmp_path: Path) -> None:
    derived = derive(ct, tmp_path / "derived")
    port, taken = free_port(), tmp_path / "archive"
    taken.mkdir()
    forward = Peer("ARCHIVE", "localhost", port)
    with node(tmp_path / "node", forward=forward) as one:
        assert one.send(*sorted(derived.iterdir()), *sorted(ct.iterdir()))[0] == 0
        db = str(one.settings.db)
        with Store.open(db) as store:
            until(lambda: counts(store)["waiting"] == 1)
            assess_all(db)
            [record] = store.list()
            assert record.origin == "dicom-node"
            assert record.verdict != "not_assessable"
            assert record.inputs.reference is not None
            assert verify(store).fault is None
            time.sleep(3)
            assert undelivered(store, "dicom-node")  # the archive is down: nothing is lost
            with running("storescp", "-od", taken, "-aet", "ARCHIVE", port, port=port):
                until(lambda: not undelivered(store, "dicom-node"))
            objects = [dcmread(path) for path in taken.iterdir()]
            assert sorted(str(ds.Modality) for ds in objects)[-1] == "SR"
            assert len(objects) == 3
            assert {ds.StudyInstanceUID for ds in objects} == {
                dcmread(next(ct.iterdir())).StudyInstanceUID
            }
            # Its own output comes back, as archives route it, and is taken for nothing.
            before = one.kept()
            rc, words = one.send(*taken.iterdir(), options=("-R",))
            assert rc == 0, words
            assert one.kept() == before
            # The same again is nothing new; one instance more is.
            one.send(*sorted(derived.iterdir()), *sorted(ct.iterdir()))
            time.sleep(3)
            assert counts(store)["waiting"] == 0
            changed = dcmread(sorted(derived.iterdir())[0])
            changed.PixelData = (changed.pixel_array + np.int16(1)).astype("<i2").tobytes()
            changed.save_as(tmp_path / "late.dcm")
            assert one.send(tmp_path / "late.dcm")[0] == 0
            until(lambda: counts(store)["waiting"] == 1)
        log = one.log.read_text()
        for secret in ("Secret", IDENTITY, *uids(*ct.iterdir(), *derived.iterdir())):
            assert secret not in log
        assert "paired by source image sequence" in log


def test_no_network_is_loaded_in_the_node(ct: Path, tmp_path: Path) -> None:
    derived = derive(ct, tmp_path / "derived", named=False)
    with node(tmp_path / "node") as one:
        assert one.send(*derived.iterdir())[0] == 0
        with Store.open(str(one.settings.db)) as store:
            time.sleep(3)
            assert counts(store)["waiting"] == 0
            one.kill()  # what it knew is in the spool
            one.start()
            assert one.send(*ct.iterdir())[0] == 0
            until(lambda: counts(store)["waiting"] == 1)
        assert "paired by geometry" in one.log.read_text()
        assert "torch" not in Path(f"/proc/{one.process.pid}/maps").read_text()


@pytest.mark.parametrize("service", ["C-MOVE", "C-GET"])
def test_a_missing_source_is_fetched(ct: Path, tmp_path: Path, service: str) -> None:
    port, listening, database = free_port(), free_port(), tmp_path / "archive"
    database.mkdir()
    # DCMTK's archive moves to those that it knows only.
    known = f"medqa = (MEDQA, localhost, {listening})" if service == "C-MOVE" else ""
    config = tmp_path / "dcmqrscp.cfg"
    config.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        f"HostTable BEGIN\n{known}\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nARCHIVE {database} RW (20, 1024mb) ANY\nAETable END\n"
    )
    with running("dcmqrscp", "-c", config, port=port):
        log = fetched(ct, tmp_path, Peer("ARCHIVE", "localhost", port), (), port=listening)
    assert ("C-MOVE failed" in log) == (service == "C-GET"), log


@pytest.mark.parametrize("service", ["C-MOVE", "C-GET"])
def test_a_missing_source_is_fetched_by_tls(ct: Path, tmp_path: Path, service: str) -> None:
    port, listening, paths = free_port(), free_port(), certificates(tmp_path)
    me = {"AET": "MEDQA", "Host": "localhost", "Port": listening, "UseDicomTls": True}
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(paths["peer.crt"]),
        "DicomTlsPrivateKey": str(paths["peer.key"]),
        "DicomTlsTrustedCertificates": str(paths["ca.crt"]),
        "DicomAlwaysAllowMove": True,
        "DicomModalities": {"medqa": me} if service == "C-MOVE" else {},
    }
    tls = Tls(paths["node.crt"], paths["node.key"], paths["ca.crt"])
    theirs = "+tls", paths["peer.key"], paths["peer.crt"], "+cf", paths["ca.crt"]
    with orthanc(tmp_path, port, **settings):
        peer = Peer("ORTHANC", "localhost", port)
        log = fetched(ct, tmp_path, peer, theirs, port=listening, tls=tls)
    assert ("C-MOVE failed" in log) == (service == "C-GET"), log


def fetched(ct: Path, folder: Path, peer: Peer, options: tuple[object, ...], **given: Any) -> str:
    """Give the source to an archive, what is derived to a node; return the node's log."""
    derived = derive(ct, folder / "derived")
    rc, words = call("storescu", *options, "-aec", peer.title, "localhost", peer.port, "+sd", ct)
    assert rc == 0, words
    with node(folder / "node", peers=(peer,), **given) as one:
        rc, words = one.send(*derived.iterdir(), options=options)
        assert rc == 0, words
        with Store.open(str(one.settings.db)) as store:
            until(lambda: counts(store)["waiting"] == 1)
        assert uids(*ct.iterdir()) <= set(one.kept())
        return one.log.read_text()


def test_results_go_out_by_tls(ct: Path, tmp_path: Path) -> None:
    paths = certificates(tmp_path)
    tls = Tls(paths["node.crt"], paths["node.key"], paths["ca.crt"])
    file = sorted(ct.iterdir())[0]
    for name, trusted in (("peer", True), ("other", False)):
        into, port = tmp_path / name, free_port()
        into.mkdir()
        mine = "+tls", paths[f"{name}.key"], paths[f"{name}.crt"], "+cf", paths["ca.crt"]
        settings = Settings("MEDQA", free_port(), tmp_path / "spool", tls=tls)
        peer = Peer("ARCHIVE", "localhost", port)
        with running("storescp", "-od", into, "-aet", "ARCHIVE", *mine, port, port=port):
            assert calls.forward(settings, peer, [file]) == trusted
        assert [dcmread(path) == dcmread(file) for path in into.iterdir()] == [True] * trusted


def test_a_compressed_source_comes_from_orthanc_as_it_is(shared_data: Path, tmp_path: Path) -> None:
    study, series, port = generate_uid(), generate_uid(), free_port()
    held = {}
    for name in ("693_J2KR.dcm", "693_J2KI.dcm"):
        ds = dcmread(shared_data / "ct" / "misc" / name)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.save_as(tmp_path / name)
        held[str(ds.SOPInstanceUID)] = ds
    with orthanc(tmp_path, port):
        rc, words = call("storescu", "-R", "-xv", "localhost", port, tmp_path / "693_J2KR.dcm")
        assert rc == 0, words
        rc, words = call("storescu", "-R", "-xw", "localhost", port, tmp_path / "693_J2KI.dcm")
        assert rc == 0, words
        came = {}

        def stored(event: Any) -> int:
            came[str(event.dataset.SOPInstanceUID)] = event.context.transfer_syntax, event.dataset
            return 0

        assert calls.fetch(
            Settings("MEDQA", free_port(), tmp_path / "spool"),
            Peer("ORTHANC", "localhost", port),
            study,
            frozenset(held),
            [(evt.EVT_C_STORE, stored)],
        )
    assert came.keys() == held.keys()
    for uid, ds in held.items():
        syntax, got = came[uid]
        assert syntax == ds.file_meta.TransferSyntaxUID
        assert got.PixelData == ds.PixelData


@contextmanager
def orthanc(folder: Path, port: int, **given: Any) -> Iterator[None]:
    """An Orthanc that answers C-GET, and moves nothing to a node that it is not told of."""
    if not Path("/usr/sbin/Orthanc").exists():
        program("Orthanc")
    settings = {
        **{name: str(folder / "archive") for name in ("StorageDirectory", "IndexDirectory")},
        **{"DicomAet": "ORTHANC", "DicomPort": port, "HttpPort": free_port()},
        **{"DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True},
        **given,
    }
    file = folder / "orthanc.json"
    file.write_text(json.dumps(settings))
    with subprocess.Popen(  # noqa: S603
        ["/usr/sbin/Orthanc", file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until(lambda: listens(port))
            yield
        finally:
            process.kill()


def test_a_pair_is_submitted_once_while_another_source_is_missing(
    ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submission reads every file of both images."""
    derived = derive(ct, tmp_path / "derived")
    lost = dcmread(sorted(derived.iterdir())[0])  # an image of its own, of an unknown source
    lost.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    lost.SourceImageSequence[0].ReferencedSOPInstanceUID = generate_uid()
    lost.SOPInstanceUID = lost.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    lost.save_as(derived / "lost.dcm")
    spool = Spool(tmp_path / "spool")
    (spool.folder / "incoming-dicom").mkdir(parents=True)
    for path in (*ct.iterdir(), *derived.iterdir()):
        assert inbox.keep(spool, path)
    age(spool, 100)
    settings = Settings("MEDQA", 1, spool.folder, (Sender("SENDER"),), quiet_seconds=1.0)
    submitted: list[Any] = []
    real = module.submit
    monkeypatch.setattr(module, "submit", lambda *given: submitted.append(given) or real(*given))
    with Store.open(str(tmp_path / "qa.db")) as store:
        sorting = module._Sorting(settings, spool, store)
        for _ in range(3):
            sorting._tries.due.clear()
            sorting()
        assert len(submitted) == 1
        assert counts(store)["waiting"] == 1
        waits = [one for one in _series(spool) if not inbox.settled(spool, one)]
        assert len(waits) == 1
        again = dcmread(sorted(ct.iterdir())[0])  # another version of the source
        again.PixelData = (again.pixel_array + np.int16(1)).astype("<i2").tobytes()
        again.save_as(tmp_path / "again.dcm")
        assert inbox.keep(spool, tmp_path / "again.dcm")
        sorting._tries.due.clear()
        sorting()  # what is arriving is waited for
        assert len(submitted) == 1
        until(lambda: sorting() or len(submitted) == 2, 10)
        assert counts(store)["waiting"] == 2


def test_waiting_for_what_is_under_way_is_no_failure() -> None:
    tries = module._Tries(5.0)
    tries.later("one", 0.0)
    assert tries.is_due("one")
    for wait in (5.0, 10.0):
        tries.failed("one")
        assert tries.due["one"][1] == wait
    assert not tries.is_due("one")


def test_what_a_waiting_job_needs_is_not_purged(ct: Path, tmp_path: Path) -> None:
    derived = derive(ct, tmp_path / "derived")
    spool = Spool(tmp_path / "spool")
    (spool.folder / "incoming-dicom").mkdir(parents=True)
    for path in (*ct.iterdir(), *derived.iterdir()):
        assert inbox.keep(spool, path)
    age(spool, 100)
    old = Limits(keep_days=-1)  # everything is older than tomorrow
    settings = Settings("MEDQA", 1, spool.folder, (Sender("A"),), quiet_seconds=1, limits=old)
    with Store.open(str(tmp_path / "qa.db")) as store:
        module._Sorting(settings, spool, store)()
        assert counts(store)["waiting"] == 1
        assert len(_series(spool)) == 2
        leased = lease(store, "test")
        assert leased is not None
        module._Sorting(settings, spool, store)()
        assert len(_series(spool)) == 2
        fail(store, leased, "as a test wants it", final=True)
        module._Sorting(settings, spool, store)()
        assert not _series(spool)


def test_where_a_sender_must_come_from(tmp_path: Path) -> None:
    senders = Sender("SENDER", "localhost"), Sender("ELSEWHERE", "192.0.2.1")
    with node(tmp_path / "node", senders=senders) as one:
        assert one.echo("SENDER")[0] == 0
        assert one.echo("ELSEWHERE")[0] != 0


def test_what_the_command_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medqa.cli.dicom_node import dicom_node

    # The process is the node's alone, but for this test's.
    monkeypatch.setattr("medqa_plugins.dicom_node.node.prepare", lambda _spool: None)
    app = Typer()
    app.command()(dicom_node)
    spool = ("--spool", str(tmp_path / "spool"))
    for wrong in (
        (),  # nobody may send
        ("--allow", "A", "--tls"),
        ("--allow", "A@"),
        ("--allow", "much too long a title"),
        ("--peer", "A@host"),
        ("--forward", "A@host:99999"),
    ):
        assert isinstance(CliRunner().invoke(app, [*wrong, *spool]).exception, UsageError), wrong


def test_names_of_peers() -> None:
    assert Peer.parse("PACS@[::1]:104") == Peer("PACS", "::1", 104)
    assert Sender.parse("CT 1@scanner") == Sender("CT 1", "scanner")
    stop = threading.Event()
    assert not stop.is_set()


def age(spool: Spool, seconds: float) -> None:
    """Make everything in the spool as old as if nothing had come since."""
    then = time.time() - seconds
    for path in spool.folder.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (then, then))


def test_the_purge_takes_what_is_old_and_nobody_elses(ct: Path, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    first, second, third, fourth = sorted(ct.iterdir())[:4]
    one_series = dcmread(first).SeriesInstanceUID
    for path in (second, third, fourth):
        ds = dcmread(path)
        ds.SeriesInstanceUID = generate_uid()
        ds.save_as(path)
    for path in (first, second, third):
        assert inbox.keep(spool, path)
    found = {dcmread(next(one.folder.iterdir())).SeriesInstanceUID: one for one in _series(spool)}
    shared = spool.put([first.read_bytes()])
    other = spool.put([b"what another host keeps in this spool"])
    (spool.folder / "files" / ".half.part").touch()
    age(spool, 100)
    inbox.use(spool, found[dcmread(second).SeriesInstanceUID].name)  # a job needed it
    assert inbox.keep(spool, third)  # sent again
    assert inbox.keep(spool, fourth)  # new
    inbox.purge(spool, time.time() - 50)
    left = {dcmread(next(one.folder.iterdir())).SeriesInstanceUID for one in _series(spool)}
    assert left == {dcmread(path).SeriesInstanceUID for path in (second, third, fourth)}
    assert one_series not in left
    assert other.exists()
    assert not shared.exists()
    assert len(list((spool.folder / "files").iterdir())) == 4
    # The same content that another host has put there meanwhile is that host's.
    age(spool, 100)
    assert spool.put([second.read_bytes()]).exists()
    inbox.purge(spool, time.time() - 50)
    assert not _series(spool)
    assert {path.read_bytes() for path in (spool.folder / "files").iterdir()} == {
        second.read_bytes(),
        b"what another host keeps in this spool",
    }
    assert not list((spool.folder / "used").iterdir())


def _series(spool: Spool) -> list[inbox.Series]:
    return list(inbox.series(spool))
