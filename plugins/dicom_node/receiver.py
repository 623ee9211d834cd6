"""The side of a DICOM node that is called: C-ECHO and C-STORE, over TCP or TLS."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.transport import (
    RequestHandler,
    ThreadedAssociationServer,
)

from medqa.audit import Store
from medqa.errors import MedqaError, ReadError, StoreError
from medqa.queue.jobs import unfinished
from medqa.queue.submission import Spool

from .inbox import keep
from .settings import Sender, Settings

__all__ = ["Handler", "entity", "prepare", "receiving", "start", "sweep"]

_LOG = logging.getLogger("medqa.dicom-node")
# Statuses of C-STORE (PS3.4 B.2.3).
_SUCCESS, _OUT_OF_RESOURCES, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
_VERIFICATION = "1.2.840.10008.1.1"
_WRONG_CALLER = 0x01, 0x01, 0x03  # rejected for good, by the user, calling AE title (PS3.8 9.3.4)
_COUNT_SECONDS = 1.0  # for which the length of the queue is believed
_SLACK = 64 * 1024  # by which an A-ASSOCIATE-RQ may exceed the longest P-DATA-TF

Handler = tuple[Any, Callable[..., Any]]


def prepare(spool: Spool) -> None:
    """Set up this process: it is the node's alone.

    Objects are written into the spool's own disk while they arrive, not into the memory or a
    folder for temporary files. Nothing that pynetdicom logs is let through: it logs identifiers.
    """
    incoming = _incoming(spool)
    incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
    sweep(spool, 0.0)
    tempfile.tempdir = str(incoming)
    _config.STORE_RECV_CHUNKED_DATASET = True
    _config.STORE_SEND_CHUNKED_DATASET = True
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    _config.LOG_HANDLER_LEVEL = "none"
    for name in ("pynetdicom", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def sweep(spool: Spool, seconds: float) -> None:
    """Delete what arrived in part, and has not grown for so long."""
    for path in _incoming(spool).iterdir():
        with suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_mtime <= time.time() - seconds:
                path.unlink()


def _incoming(spool: Spool) -> Path:
    return spool.folder / "incoming-dicom"  # other hosts may have this spool too


def entity(settings: Settings) -> AE:
    """Return this node as pynetdicom knows it, with its limits."""
    made = AE(settings.title)
    most = settings.limits
    made.maximum_associations = most.associations
    made.maximum_pdu_size = most.pdu_bytes
    made.acse_timeout = most.negotiation_seconds
    made.dimse_timeout = most.network_seconds
    made.network_timeout = most.network_seconds
    made.connection_timeout = most.negotiation_seconds
    return made


def receiving(settings: Settings, spool: Spool, store: Store) -> list[Handler]:
    """Return what answers C-STORE, on associations of either direction."""
    full = _Full(settings, spool, store)

    def stored(event: Any) -> int:
        if full():
            return _OUT_OF_RESOURCES
        try:
            keep(spool, event.dataset_path)
        except ReadError as error:
            _LOG.warning("refused an object: %s", error.reason)
            return _CANNOT_UNDERSTAND
        except MedqaError as error:
            _LOG.error("the spool %s", error.reason)
            return _OUT_OF_RESOURCES
        except OSError as error:
            _LOG.error("the spool cannot be read or written: %s", error.strerror)
            return _OUT_OF_RESOURCES
        return _SUCCESS

    return [(evt.EVT_C_STORE, stored)]


def start(settings: Settings, spool: Spool, store: Store) -> ThreadedAssociationServer:
    """Listen until the server is shut down, in threads of its own."""
    made = entity(settings)
    made.require_called_aet = True
    made.require_calling_aet = sorted({one.title for one in settings.allowed})
    made.add_supported_context(_VERIFICATION)
    handlers: list[Handler] = [
        *receiving(settings, spool, store),
        (evt.EVT_REQUESTED, lambda event: _check_host(event.assoc, settings.allowed)),
        (evt.EVT_DIMSE_RECV, lambda event: event.assoc.dul.socket.recv.complete()),
    ]
    server = made.make_server(
        ("", settings.port),
        evt_handlers=handlers,  # type: ignore[arg-type]
        server_class=_Server,
        request_handler=_Handler,
        settings=settings,
    )
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    return server


class _Full:
    """Whether nothing more can be taken now."""

    def __init__(self, settings: Settings, spool: Spool, store: Store) -> None:
        self._most, self._spool, self._store = settings.limits, spool, store
        self._lock, self._until, self._answer = threading.Lock(), 0.0, False

    def __call__(self) -> bool:
        with self._lock:
            if time.monotonic() >= self._until:
                self._answer = self._look()
                self._until = time.monotonic() + _COUNT_SECONDS
            return self._answer

    def _look(self) -> bool:
        try:
            if shutil.disk_usage(self._spool.folder).free < self._most.free_bytes:
                _LOG.error("the disk of the spool is full")
                return True
            number = unfinished(self._store)
        except OSError as error:
            _LOG.error("the spool cannot be read: %s", error.strerror)
            return True
        except StoreError as error:
            # What comes is safe in the spool, which is bounded, until the database is back.
            _LOG.error("the database cannot be read: %s", error.reason)
            return False
        if number >= self._most.waiting:
            _LOG.warning("the queue is full")
            return True
        return False


def _check_host(assoc: Association, allowed: tuple[Sender, ...]) -> None:
    """Reject a caller that comes from elsewhere; pynetdicom has an eye on titles only."""
    title = assoc.requestor.primitive.calling_ae_title  # type: ignore[union-attr]
    hosts = [one.host for one in allowed if one.title == title]
    if not hosts or None in hosts:
        return
    address = assoc.requestor.address
    if not any(address in _addresses(host) for host in hosts if host):
        _LOG.warning("rejected an association: its host may not use this AE title")
        assoc.acse.send_reject(*_WRONG_CALLER)
        assoc.kill()


def _addresses(host: str) -> set[str]:
    try:
        return {str(one[4][0]) for one in socket.getaddrinfo(host, None)}
    except OSError:
        return set()


class _Meter:
    """Reads no more from a peer than was agreed, whatever a PDU claims (PS3.8 9.3.1)."""

    def __init__(self, read: Callable[[int], bytearray], settings: Settings) -> None:
        self._read, self._most, self._since = read, settings.limits, 0

    def __call__(self, nr_bytes: int) -> bytearray:
        """Read so many bytes; an `OSError` ends the association."""
        self._since += nr_bytes
        too_long = nr_bytes > self._most.pdu_bytes + _SLACK
        if too_long or self._since > self._most.instance_bytes:
            _LOG.warning("cut off a peer that sent more than is taken")
            raise OSError("more than is taken")
        return self._read(nr_bytes)

    def complete(self) -> None:
        """Begin to count again: a message is complete."""
        self._since = 0


class _Handler(RequestHandler):
    """Makes an association of a connection; the server has one thread for each until then."""

    def handle(self) -> None:
        """Shake hands first, where TLS is used: a peer that keeps silent holds nobody else up."""
        settings: Settings = self.server.settings  # type: ignore[attr-defined]
        context: ssl.SSLContext | None = self.server.tls  # type: ignore[attr-defined]
        if context is not None:
            try:
                self.request = context.wrap_socket(self.request, server_side=True)
            except OSError as error:
                _LOG.warning("TLS failed: %s", getattr(error, "reason", None) or "cut off")
                self.server.shutdown_request(self.request)
                return
        self.request.settimeout(settings.limits.network_seconds)
        super().handle()

    def _create_association(self) -> Association:
        made = super()._create_association()
        connection: Any = made.dul.socket
        connection.recv = _Meter(connection.recv, self.server.settings)  # type: ignore[attr-defined]
        return made


class _Server(ThreadedAssociationServer):
    """A server that counts connections before they are associations."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, *arguments: Any, settings: Settings, **named: Any) -> None:
        self.settings = settings
        self.tls = settings.tls.context(server=True) if settings.tls else None
        super().__init__(*arguments, **named)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection, and never wait for it longer than for an association."""
        connection, address = super().get_request()
        connection.settimeout(self.settings.limits.negotiation_seconds)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 (inherited)
        """Refuse a flood of connections; of associations, pynetdicom rejects those in excess."""
        return bool(len(self.active_associations) < 2 * self.settings.limits.associations)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 (inherited)
        """Log that a connection failed, but not with whom."""
        _LOG.error("a connection failed (%s)", type(sys.exc_info()[1]).__name__)
