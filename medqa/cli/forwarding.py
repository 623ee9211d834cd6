"""`medqa audit forward`: the record to an audit record repository."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from medqa.cli.options import Db

__all__ = ["forward"]


def forward(
    address: Annotated[
        str, typer.Argument(metavar="HOST[:PORT]", help="Audit record repository; port 6514.")
    ],
    db: Db = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Certificates, PEM, that the repository's must be signed with; by default those "
            "of the operating system.",
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate of this machine, PEM.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its private key, where not in that file.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which installation speaks; by default this host."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Up to where it was sent; by default in the user's data folder."
        ),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=1, help="Go on, looking so often; by default once."),
    ] = None,
) -> None:
    """Send what was recorded since the last time, as DICOM audit messages over syslog and TLS.

    Exit code 0: the repository has everything. 2: it could not be sent; nothing is lost.
    """
    import socket

    from medqa.audit import Store
    from medqa.audit.forwarding import Repository, follow, state_file
    from medqa.audit.forwarding import forward as send

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    repository = Repository(*_parsed(address), ca, certificate, key)
    name = source or f"medqa@{socket.gethostname()}"
    with Store.open(db, readonly=True) as store:
        kept = state or state_file(store, repository)
        if every is None:
            typer.echo(f"{send(store, repository, kept, name)} entries sent to {repository}")
            return
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        follow(store, repository, kept, name, every, stop)


def _parsed(address: str) -> tuple[str, int]:
    from medqa.audit.forwarding import PORT
    from medqa.errors import UsageError

    host, colon, port = address.rpartition(":") if address.count(":") == 1 else (address, "", "")
    if colon and not port.isdecimal():
        raise UsageError(address, "is no HOST or HOST:PORT", "such as arr.hospital.example:6514")
    return host, int(port) if colon else PORT
