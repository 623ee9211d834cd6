"""Forwarding: the chain, entry by entry, to an audit record repository, as syslog over TLS.

The chain is the store of store-and-forward. A file says up to which entry the repository has it;
after an outage, on either side, it goes on from there. Syslog has no receipts: an entry counts as
sent once the repository has closed the connection in good order, having read everything. Cut off
before, the same entries are sent again, so each arrives at least once.
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import and_, select

from medqa.audit.chain import Entry
from medqa.audit.files import data_folder
from medqa.audit.messages import audit_message, syslog_message
from medqa.audit.store import Store
from medqa.audit.tables import assessments, entries
from medqa.errors import StoreError
from medqa.files import write_file

__all__ = ["PORT", "Repository", "follow", "forward", "state_file"]

#: Of syslog over TLS (RFC 5425 4.1).
PORT = 6514
_LOG = logging.getLogger("medqa.audit")
_BATCH = 200  # entries for each connection
_SECONDS = 30.0  # that the network may take for each step
_REFUSAL_SECONDS = 1.0  # from the end of the handshake
_COLUMNS = len(entries.c)


@dataclass(frozen=True)
class Repository:
    """Where the messages go.

    Parameters
    ----------
    host, port
        Its address; its certificate must be for this host.
    ca
        Certificates that its own must be signed with; None takes those of the operating system.
    certificate, key
        PEM files that medqa identifies itself with (PS3.15 B.1 asks for it); None does not.
    """

    host: str
    port: int = PORT
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __str__(self) -> str:
        """Return its address for people."""
        return f"{self.host}:{self.port}"


def state_file(store: Store, repository: Repository) -> Path:
    """File, in the user's data folder, that says up to where a repository has a database."""
    with store.reading() as connection:
        genesis = connection.execute(select(entries.c.body).where(entries.c.sequence == 1)).one()
    database = json.loads(genesis.body)["database"]
    return data_folder() / f"forwarded-{database}-{repository.host}-{repository.port}.json"


def forward(store: Store, repository: Repository, state: Path, source: str) -> int:
    """Send every entry that the repository does not have; return how many.

    Parameters
    ----------
    state
        File that says up to where it has them; made where it is missing, then all are sent.
    source
        AuditSourceID: which installation speaks.

    Raises
    ------
    StoreError
        The database cannot be read, is another one than was sent from, or the repository cannot
        be reached or trusted: what was sent before stays sent.
    """
    context = _context(repository)
    sent = 0
    while batch := _next(store, state):
        framed = bytearray()
        for entry, record in batch:
            message = audit_message(entry, record, source)
            failed = b'EventOutcomeIndicator="0"' not in message
            line = syslog_message(message, entry.recorded_at, failed=failed)
            framed += b"%d %b" % (len(line), line)  # octet counting, RFC 5425 4.3
        _send(repository, context, bytes(framed))
        last = batch[-1][0]
        write_file(state, json.dumps({"sequence": last.sequence, "sha256": last.sha256}).encode())
        sent += len(batch)
    return sent


def follow(
    store: Store,
    repository: Repository,
    state: Path,
    source: str,
    every: float,
    stop: threading.Event,
) -> None:
    """Go on forwarding what is recorded, until told to stop; an outage is logged and tried again.

    Parameters
    ----------
    every
        Seconds between two looks.
    """
    while not stop.wait(every):
        try:
            forward(store, repository, state, source)
        except StoreError as error:
            _LOG.error("%s", error)


def _next(store: Store, state: Path) -> list[tuple[Entry, str | None]]:
    """Return the first entries that were not sent, with the records of assessments."""
    sequence, sha256 = 0, None
    if state.exists():
        try:
            kept = json.loads(state.read_bytes())
            sequence, sha256 = int(kept["sequence"]), str(kept["sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                state, "does not say what was forwarded", "delete it to send everything again"
            ) from error
    query = (
        select(*entries.c, assessments.c.record)
        .outerjoin(
            assessments,
            and_(
                entries.c.kind == "assessment",
                assessments.c.assessment_id == entries.c.assessment_id,
            ),
        )
        .where(entries.c.sequence >= sequence)
        .order_by(entries.c.sequence)
        .limit(_BATCH + 1)
    )
    with store.reading() as connection:
        rows = [(Entry(*row[:_COLUMNS]), row[-1]) for row in connection.execute(query)]
    if sha256 is None:
        return rows[:_BATCH]
    if not rows or rows[0][0].sha256 != sha256:
        raise StoreError(
            store.url_for_people,
            f"its entry {sequence} is not the one that was forwarded",
            "run medqa audit verify with a checkpoint",
        )
    return rows[1:]


def _context(repository: Repository) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=repository.ca)
        if repository.certificate is not None:
            context.load_cert_chain(repository.certificate, repository.key)
    except OSError as error:  # ssl.SSLError is one
        raise StoreError(
            repository, f"the certificates cannot be used ({error})", "check the PEM files"
        ) from error
    return context


def _send(repository: Repository, context: ssl.SSLContext, framed: bytes) -> None:
    address = (repository.host, repository.port)
    try:
        with (
            socket.create_connection(address, timeout=_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=repository.host) as connection,
        ):
            _wait_for_refusal(connection)
            connection.sendall(framed)
            _finish(connection)
    except OSError as error:
        raise StoreError(
            repository,
            f"the audit messages did not get through ({error})",
            "nothing is lost: try again once it can be reached and trusted",
        ) from error


def _wait_for_refusal(connection: ssl.SSLSocket) -> None:
    """Give the other side time to refuse our certificate: in TLS 1.3 it does so after we are done.

    What is sent before that is lost without a word. Syslog itself never answers.
    """
    connection.settimeout(_REFUSAL_SECONDS)
    with suppress(TimeoutError):
        connection.recv(1)
        raise ConnectionError("the connection was closed at once")
    connection.settimeout(_SECONDS)


def _finish(connection: ssl.SSLSocket) -> None:
    """Say that this was all, and wait until the other side has read it and closes too."""
    # Some close without a farewell. What they did not read would be a reset instead.
    with suppress(ssl.SSLEOFError):
        connection.unwrap()
