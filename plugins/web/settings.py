"""What the service is told by whoever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medqa.queue.jobs import MOST_WAITING

__all__ = ["Limits", "Proxy", "Settings"]


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, before anything of it is decoded.

    Parameters
    ----------
    body_bytes
        Of a whole request.
    files
        In one request.
    pairs
        In one batch.
    field_bytes
        Of a part that is no file.
    bodies
        Requests whose files are received at a time; others wait before they are read.
    silence_seconds
        Between two pieces of a body.
    waiting
        Jobs in the queue; then senders are told to wait.
    wait_seconds
        For which a request waits for its record, before it is told where to ask for it.
    rate
        Requests of one caller, as the ``limits`` library writes it.
    """

    body_bytes: int = 1 << 30
    files: int = 2000
    pairs: int = 100
    field_bytes: int = 1024
    bodies: int = 16
    silence_seconds: float = 60.0
    waiting: int = MOST_WAITING
    wait_seconds: float = 60.0
    rate: str = "600/minute"


@dataclass(frozen=True)
class Proxy:
    """A proxy that signs people in (OpenID Connect), and says in a header who it was.

    Parameters
    ----------
    header
        Name of the header; nobody is believed who sends it from elsewhere.
    addresses
        Addresses of the proxy.
    """

    header: str
    addresses: frozenset[str]


@dataclass(frozen=True)
class Settings:
    """How the service runs.

    Parameters
    ----------
    db
        The audit database, as `medqa.audit.Store.open` takes it.
    spool
        Folder for what is received, and for the results.
    keys
        File of the API keys (`medqa_plugins.web.keys`); None asks nobody who he is.
    profiles
        A site's own thresholds by name, beside the shipped ones.
    backbones
        Networks that may be asked for; their weights are there.
    proxy
        Who may vouch for people.
    tls
        Whether callers reach the service by TLS, so that browsers may be told to insist on it.
    """

    db: str | None
    spool: Path
    keys: Path | None
    profiles: Mapping[str, str] = field(default_factory=dict)
    backbones: tuple[str, ...] = ("gray",)
    proxy: Proxy | None = None
    tls: bool = False
    limits: Limits = Limits()
