"""Audit messages to a real rsyslog over TLS, read by its own rules."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydicom.data import get_testdata_file

from medqa.assessment import Job
from medqa.audit import Store, sign
from medqa.audit.forwarding import Repository, follow, forward, state_file
from medqa.audit.journal import chain
from medqa.audit.messages import audit_message
from medqa.errors import StoreError
from medqa.pipeline import run

CT = get_testdata_file("CT_small.dcm", download=False)


def certificate(folder: Path, name: str, signer: str | None = None) -> Path:
    """Make NAME.pem and NAME.key for localhost, signed by SIGNER or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signing = subject, key
    if signer is not None:
        issuer = x509.load_pem_x509_certificate((folder / f"{signer}.pem").read_bytes()).subject
        signing = serialization.load_pem_private_key((folder / f"{signer}.key").read_bytes(), None)
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=signer is None,
                crl_sign=signer is None,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(signing, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    (folder / f"{name}.pem").write_bytes(built.public_bytes(pem))
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, form, plain))
    return folder / f"{name}.pem"


@dataclass
class Rsyslog:
    """A repository on this machine that writes each message to a line of a file."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        received = self.folder / "received.txt"
        config = self.folder / "rsyslog.conf"
        config.write_text(f"""\
global(workDirectory="{self.folder}" maxMessageSize="64k"
       defaultNetstreamDriverCAFile="{self.folder}/ca.pem"
       defaultNetstreamDriverCertFile="{self.folder}/server.pem"
       defaultNetstreamDriverKeyFile="{self.folder}/server.key")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1"
       streamDriver.authMode="x509/certvalid")
input(type="imtcp" port="{self.port}" address="127.0.0.1")
template(name="line" type="string" string="%pri%|%app-name%|%msgid%|%msg%\\n")
action(type="omfile" file="{received}" template="line")
""")
        program = shutil.which("rsyslogd", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
        assert program
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                [program, "-n", "-f", config, "-i", self.folder / "pid"],
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        for _ in range(100):
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        pytest.fail(f"rsyslogd does not listen: {(self.folder / 'log').read_text()}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def received(self, count: int) -> list[tuple[str, ET.Element]]:
        """Return head and message of each line, once there are so many."""
        file = self.folder / "received.txt"
        for _ in range(100):
            lines = file.read_text().splitlines() if file.exists() else []
            if len(lines) >= count:
                break
            time.sleep(0.1)
        found = []
        for line in lines:
            *head, message = line.split("|", 3)
            found.append(("|".join(head), ET.fromstring(message.lstrip(" \ufeff"))))  # noqa: S314
        return found


@pytest.fixture
def rsyslog(tmp_path: Path) -> Iterator[Rsyslog]:
    if not (
        Path("/usr/sbin/rsyslogd").exists() and list(Path("/usr/lib").glob("*/rsyslog/lmnsd_gtls*"))
    ):
        reason = "no rsyslogd with gtls (apt-get install rsyslog rsyslog-gnutls)"
        if os.environ.get("MEDQA_REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path / "rsyslog"
    folder.mkdir()
    certificate(folder, "ca")
    certificate(folder, "server", "ca")
    certificate(folder, "medqa", "ca")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Rsyslog(folder, port)
    server.start()
    yield server
    server.stop()


def repository(server: Rsyslog, **changed: Path | None) -> Repository:
    folder = server.folder
    given: dict[str, Path | None] = {
        "ca": folder / "ca.pem",
        "certificate": folder / "medqa.pem",
        "key": folder / "medqa.key",
        **changed,
    }
    return Repository("localhost", server.port, **given)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(str(tmp_path / "audit.db")) as opened:
        yield opened


def coded(element: ET.Element, tag: str) -> tuple[str, str]:
    found = element.find(tag)
    assert found is not None
    return found.attrib["csd-code"], found.attrib["codeSystemName"]


def test_every_entry_arrives_once_and_says_what_was_recorded(
    rsyslog: Rsyslog, store: Store, tmp_path: Path
) -> None:
    good = run(Job(reference=CT, candidate=CT, actor="Ada"), store)
    run(Job(reference=CT, candidate=str(tmp_path / "missing.dcm")), store)
    sign(store, good.assessment_id, "approved", "agrees", actor="Grace")
    state = tmp_path / "state.json"
    where = repository(rsyslog)
    assert forward(store, where, state, "medqa@test") == 4
    assert forward(store, where, state, "medqa@test") == 0
    received = rsyslog.received(4)
    # PS3.15 A.6: facility 10, severity 5; a failure is a warning.
    assert [head for head, _ in received] == [
        f"{10 * 8 + severity}|medqa|DICOM+RFC3881" for severity in (5, 5, 4, 5)
    ]
    with store.reading() as connection:
        recorded = [one.entry for one in chain(connection)]
    for (_, message), entry in zip(received, recorded, strict=True):
        assert [child.tag for child in message][:4] == [
            "EventIdentification",
            "ActiveParticipant",
            "ActiveParticipant",
            "AuditSourceIdentification",
        ]
        event = message[0]
        assert event.attrib["EventDateTime"] == entry.recorded_at
        assert coded(event, "EventTypeCode") == (entry.kind, "99MEDQA")
        assert message[1].attrib["UserID"] == entry.actor
        assert coded(message[2], "RoleIDCode") == ("110150", "DCM")
        assert message[3].attrib["AuditSourceID"] == "medqa@test"
        details = {
            one.attrib["type"]: base64.b64decode(one.attrib["value"]).decode()
            for one in message.iter("ParticipantObjectDetail")
        }
        assert details == {"sequence": str(entry.sequence), "sha256": entry.sha256}
    events = [message[0] for _, message in received]
    assert [coded(event, "EventID")[0] for event in events] == [
        "110100",
        "110103",
        "110103",
        "110100",
    ]
    assert [event.attrib["EventOutcomeIndicator"] for event in events] == ["0", "0", "4", "0"]
    assert received[1][1][1].attrib["UserID"] == "Ada"
    objects = received[1][1].findall("ParticipantObjectIdentification")
    assert good.inputs.reference is not None
    assert [one.attrib["ParticipantObjectID"] for one in objects] == [
        good.inputs.reference.patient_hmac,
        good.inputs.reference.study_hmac,
        good.assessment_id,
    ]


def test_no_identifier_leaves_the_record(store: Store) -> None:
    """CT_small.dcm names a patient and UIDs; none of them stands in a message."""
    from pydicom import dcmread

    run(Job(reference=CT, candidate=CT), store)
    header = dcmread(CT, stop_before_pixels=True)
    with store.reading() as connection:
        sent = b"".join(audit_message(one.entry, one.record, "x") for one in chain(connection))
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID"):
        assert str(header[keyword].value).encode() not in sent


def test_an_outage_loses_nothing(rsyslog: Rsyslog, store: Store, tmp_path: Path) -> None:
    run(Job(reference=CT, candidate=CT), store)
    state = tmp_path / "state.json"
    where = repository(rsyslog)
    stop = threading.Event()
    following = threading.Thread(target=follow, args=(store, where, state, "x", 0.1, stop))
    following.start()
    try:
        assert len(rsyslog.received(2)) == 2
        rsyslog.stop()
        run(Job(reference=CT, candidate=CT), store)
        time.sleep(0.5)
        rsyslog.start()
        messages = [message for _, message in rsyslog.received(3)]
    finally:
        stop.set()
        following.join(60)
    details = [message.find(".//ParticipantObjectDetail[@type='sequence']") for message in messages]
    numbers = [base64.b64decode(one.attrib["value"]) for one in details if one is not None]
    assert numbers == [b"1", b"2", b"3"]


@pytest.mark.parametrize("wrong", ["ca", "certificate"])
def test_a_repository_that_is_not_trusted_gets_nothing(
    rsyslog: Rsyslog, store: Store, tmp_path: Path, wrong: str
) -> None:
    stranger = certificate(rsyslog.folder, "stranger")
    changed: dict[str, Path | None] = {wrong: stranger}
    if wrong == "certificate":
        changed["key"] = stranger.with_suffix(".key")
    state = tmp_path / "state.json"
    with pytest.raises(StoreError, match="did not get through"):
        forward(store, repository(rsyslog, **changed), state, "x")
    assert not state.exists()
    assert not rsyslog.received(0)


def test_a_chain_that_was_made_anew_is_not_forwarded(
    rsyslog: Rsyslog, store: Store, tmp_path: Path
) -> None:
    state = tmp_path / "state.json"
    where = repository(rsyslog)
    forward(store, where, state, "x")
    with (
        Store.open(str(tmp_path / "other.db")) as other,
        pytest.raises(StoreError, match="is not the one that was forwarded"),
    ):
        forward(other, where, state, "x")
    assert state_file(store, where) == state_file(store, where)


def test_certificates_that_cannot_be_used_are_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="certificates cannot be used"):
        forward(store, Repository("localhost", 1, tmp_path / "none.pem"), tmp_path / "s", "x")
