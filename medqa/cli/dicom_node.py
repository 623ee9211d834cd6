"""`medqa dicom-node`: images in by C-STORE, results out by C-STORE."""

from __future__ import annotations

import errno
import logging
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from medqa.cli.options import Db

__all__ = ["dicom_node"]


def dicom_node(
    aet: Annotated[str, typer.Option(metavar="AET", help="Own AE title.")] = "MEDQA",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")] = 11112,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="AET[@HOST]", help="Who may send; repeatable. Peers may, too."),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AET@HOST:PORT",
            help="Where the source of a derived image is fetched from, by C-MOVE or C-GET.",
        ),
    ] = None,
    forward: Annotated[
        str | None, typer.Option(metavar="AET@HOST:PORT", help="Where results go, by C-STORE.")
    ] = None,
    *,
    tls: Annotated[bool, typer.Option("--tls", help="TLS only, both ways.")] = False,
    certificate: Annotated[
        Path | None, typer.Option(metavar="PEM", help="This node's certificate.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="PEM", help="Its key.")] = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Who signed the peers' certificates.")
    ] = None,
    spool: Annotated[
        Path,
        typer.Option(
            envvar="MEDQA_SPOOL",
            show_envvar=True,
            metavar="DIR",
            help="Where images and results are kept.",
        ),
    ] = Path("medqa-spool"),
    quiet_seconds: Annotated[
        float, typer.Option(min=1, help="Without a new instance, until a series is complete.")
    ] = 30.0,
    db: Db = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Thresholds; by default those of the modality."),
    ] = None,
) -> None:
    """Receive images, find the source of each derived one, and send the results on.

    Workers do the assessments: medqa worker, with the same database.

    Exit code 0: stopped. 2: wrong use.
    """
    from medqa.errors import UsageError
    from medqa_plugins.dicom_node import Peer, Sender, Settings, Tls, serve

    files = (certificate, key, ca)
    if tls != all(files) or any(files) != all(files):
        raise UsageError("--tls", "goes with --certificate, --key and --ca", "give all or none")
    settings = Settings(
        title=aet,
        port=port,
        spool=spool.absolute(),
        senders=tuple(map(Sender.parse, allow or ())),
        peers=tuple(map(Peer.parse, peer or ())),
        forward=None if forward is None else Peer.parse(forward),
        tls=Tls(certificate, key, ca) if certificate and key and ca else None,
        quiet_seconds=quiet_seconds,
        db=db,
        profile=profile,
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("medqa.dicom-node").setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        serve(settings, stop)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UsageError(f"port {port}", "cannot be listened on", "choose another") from error
        raise UsageError(
            settings.spool, f"cannot be used ({error.strerror})", "check the folder and its disk"
        ) from error
