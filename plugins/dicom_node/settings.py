"""What a DICOM node is told: who it is, who may send, where sources and results are."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from medqa.errors import UsageError
from medqa.queue.jobs import MOST_WAITING

__all__ = ["Limits", "Peer", "Sender", "Settings", "Tls", "check_title"]

# PS3.5 6.2, AE: 1 to 16 characters of the default repertoire but backslash and control characters.
# An @ would be ambiguous here.
_TITLE = re.compile(r"[!-?A-\[\]-~](?:[ -?A-\[\]-~]{0,14}[!-?A-\[\]-~])?")


@dataclass(frozen=True)
class Sender:
    """Who may send.

    Parameters
    ----------
    title
        Calling AE title.
    host
        Name or address that it must come from; None takes any.
    """

    title: str
    host: str | None = None

    @classmethod
    def parse(cls, text: str) -> Sender:
        """Read ``AET`` or ``AET@HOST``.

        Raises
        ------
        UsageError
            It is neither.
        """
        title, at, host = text.partition("@")
        if at and not host:
            raise UsageError(text, "has no host after the @", "write AET or AET@HOST")
        return cls(check_title(title), host or None)


@dataclass(frozen=True)
class Peer:
    """A DICOM node that is called: AE title, host and TCP port."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Read ``AET@HOST:PORT``.

        Raises
        ------
        UsageError
            It is something else.
        """
        title, _, address = text.partition("@")
        host, _, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")  # of an IPv6 address
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UsageError(text, "is no DICOM peer", "write AET@HOST:PORT")
        return cls(check_title(title), host, int(port))


@dataclass(frozen=True)
class Tls:
    """Files of the TLS connections, in both directions: PEM.

    Parameters
    ----------
    certificate, key
        This node's own.
    authority
        Certificates that signed those of the peers; each peer must show one.
    """

    certificate: Path
    key: Path
    authority: Path

    def context(self, *, server: bool) -> ssl.SSLContext:
        """TLS 1.2 or later; no peer without a certificate (PS3.15 B.9 to B.12).

        Host names are not held against certificates: DICOM nodes are known by AE title and
        certificate, and the authority is the site's own.

        Raises
        ------
        UsageError
            A file cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        for what, path in (("certificate", self.certificate), ("authority", self.authority)):
            if not path.is_file():
                raise UsageError(path, f"there is no such {what}", "name a PEM file")
        try:
            context.load_cert_chain(self.certificate, self.key)
            context.load_verify_locations(self.authority)
        except OSError as error:  # ssl.SSLError is one too
            words = "certificate, key or authority cannot be used"
            raise UsageError(self.certificate, words, "give PEM files", str(error)) from error
        return context


@dataclass(frozen=True)
class Limits:
    """How much is taken at a time.

    Parameters
    ----------
    associations
        At the same time; further ones are rejected for now (local limit exceeded).
    instance_bytes
        Of one object as it is sent; a longer one is cut off.
    pdu_bytes
        Of one received PDU (PS3.8 D.1); what claims more is cut off before it is read.
    free_bytes
        That stay free on the spool's disk; below, nothing more is taken.
    waiting
        Jobs in the queue; with more, nothing more is taken.
    negotiation_seconds, network_seconds
        Until an association must be negotiated, and without a word from the peer.
    keep_days
        For which a series that nothing was added to is kept.
    """

    associations: int = 50
    instance_bytes: int = 4 * 2**30
    pdu_bytes: int = 2**17
    free_bytes: int = 2**30
    waiting: int = MOST_WAITING
    negotiation_seconds: float = 15.0
    network_seconds: float = 60.0
    keep_days: float = 14.0


@dataclass(frozen=True)
class Settings:
    """A DICOM node.

    Parameters
    ----------
    title, port
        Its AE title, and where it listens, on all addresses.
    spool
        Folder of what was received and of the results.
    senders
        Who may send. Peers may, too: sources come from them.
    peers
        Where sources are fetched from: asked one after another.
    forward
        Where results go; they stay in the spool without.
    tls
        Without, connections are not encrypted.
    quiet_seconds
        Without a new instance, until a series is complete.
    db, profile
        The audit database; the thresholds.
    """

    title: str
    port: int
    spool: Path
    senders: tuple[Sender, ...] = ()
    peers: tuple[Peer, ...] = ()
    forward: Peer | None = None
    tls: Tls | None = None
    quiet_seconds: float = 30.0
    db: str | None = None
    profile: str | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def allowed(self) -> tuple[Sender, ...]:
        """Who may call.

        Raises
        ------
        UsageError
            Nobody may: nothing would ever be received.
        """
        everyone = self.senders + tuple(Sender(one.title) for one in self.peers)
        if not everyone:
            raise UsageError("medqa dicom-node", "nobody may send", "name senders with --allow")
        return everyone


def check_title(title: str) -> str:
    """Return an AE title that is one.

    Raises
    ------
    UsageError
        It is not.
    """
    if not _TITLE.fullmatch(title):
        raise UsageError(title, "is no AE title", "give 1 to 16 characters, none of them @ or \\")
    return title
