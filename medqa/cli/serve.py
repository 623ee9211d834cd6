"""`medqa serve` and `medqa web-key`: the web service, and who may use it."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import tempfile
import threading
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medqa.cli.options import BackboneName, Db, SpoolFolder, WeightsFolder
from medqa.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from medqa_plugins.web.settings import Proxy, Settings

__all__ = ["keys_app", "serve"]

_IDLE_SECONDS = 0.1  # of the workers beside the service: somebody waits for an answer

keys_app = typer.Typer(help="API keys of the web service.", no_args_is_help=True)


class RoleName(StrEnum):
    """What a caller may do."""

    reader = "reader"
    writer = "writer"
    reviewer = "reviewer"
    admin = "admin"


KeysFile = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        envvar="MEDQA_WEB_KEYS",
        show_envvar=True,
        metavar="FILE",
        help="File of the API keys; by default web-keys.json in the user's data folder.",
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Who: the record names him so.")]


def serve(
    spool: SpoolFolder,
    db: Db = None,
    keys: KeysFile = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="N", help="Where to listen.")
    ] = 8080,
    workers: Annotated[
        int, typer.Option(min=0, metavar="N", help="Workers to run; 0 where others do the jobs.")
    ] = 1,
    weights: WeightsFolder = None,
    profile: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Thresholds of the site's own. Repeatable."),
    ] = None,
    backbone: Annotated[
        list[BackboneName] | None,
        typer.Option(help="Network that may be asked for beside gray. Repeatable."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate chain for TLS, in PEM.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its private key, in PEM.")
    ] = None,
    trusted_user_header: Annotated[
        str | None,
        typer.Option(metavar="HEADER", help="Header in which the proxy says who signed in."),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="The proxy that is believed. Repeatable."),
    ] = None,
    rate: Annotated[
        str, typer.Option(metavar="N/UNIT", help="Requests of one caller.")
    ] = "600/minute",
    body_mib: Annotated[
        int, typer.Option(min=1, metavar="MIB", help="Largest request, in MiB.")
    ] = 1024,
    most_waiting: Annotated[
        int, typer.Option(min=1, metavar="N", help="Jobs that may wait.")
    ] = 10_000,
    *,
    without_tls: Annotated[
        bool, typer.Option("--without-tls", help="Take keys and images in clear from elsewhere.")
    ] = False,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Ask nobody who he is; on this machine only.")
    ] = False,
) -> None:
    """Assess images that come by HTTP, and show what was recorded.

    Exit code 0: stopped. 2: wrong use.
    """
    import uvicorn

    from medqa_plugins.web.app import create_app
    from medqa_plugins.web.settings import Limits, Settings

    _check_exposure(host, certificate, key, without_tls=without_tls, no_auth=no_auth)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("medqa.web").setLevel(logging.INFO)
    os.umask(0o077)  # images of patients are for this account only
    settings = Settings(
        db=db,
        spool=spool,
        keys=None if no_auth else keys or _default_keys(),
        profiles=_own_profiles(profile or []),
        backbones=_networks(backbone or [], weights),
        proxy=_proxy(trusted_user_header, trusted_proxy or []),
        tls=certificate is not None,
        limits=Limits(body_bytes=body_mib * 2**20, waiting=most_waiting, rate=rate),
    )
    app = create_app(settings)
    tempfile.tempdir = str(_incoming(spool))  # bodies are received on the spool's own disk
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            ssl_certfile=certificate,
            ssl_keyfile=key,
            ws="none",
            log_config=None,
            access_log=False,  # it holds paths and queries as callers write them
            server_header=False,
            proxy_headers=False,  # who is at the other end is not for the caller to say
            timeout_graceful_shutdown=30,
        )
    )
    if no_auth:
        typer.echo("medqa: --no-auth: everybody on this machine may do everything", err=True)
    scheme = "http" if certificate is None else "https"
    typer.echo(f"medqa serves {scheme}://{host}:{port}", err=True)
    _run(server.run, settings, workers, weights)


def _run(run: Callable[[], object], settings: Settings, workers: int, weights: Path | None) -> None:
    """Run the server, and workers beside it, until a signal comes."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # the server sends them on to us at its end
        signal.signal(number, lambda *_: stop.set())
    if not workers:
        run()
        return
    from medqa.queue.supervisor import work_many

    working = threading.Thread(
        target=work_many,
        args=(settings.db, workers, weights),
        kwargs={"stop": stop, "idle_seconds": _IDLE_SECONDS},
    )
    working.start()
    try:
        run()
    finally:
        stop.set()
        working.join()


def _check_exposure(
    host: str, certificate: Path | None, key: Path | None, *, without_tls: bool, no_auth: bool
) -> None:
    """Refuse what would let others listen in, or anybody in."""
    try:
        near = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        near = False
    if no_auth and not near:
        raise UsageError(host, "is open to others, and --no-auth asks nobody", "use API keys")
    if (certificate is None) != (key is None):
        raise UsageError("TLS", "needs a certificate and its key", "give both")
    if not near and certificate is None and not without_tls:
        raise UsageError(
            host,
            "is open to others, and keys and images would go there in clear",
            "give --certificate and --key, or --without-tls behind a proxy that has TLS",
        )


def _proxy(header: str | None, addresses: list[str]) -> Proxy | None:
    from medqa_plugins.web.settings import Proxy

    if header is None and not addresses:
        return None
    if header is None or not addresses:
        raise UsageError("proxy", "needs a header and an address", "give both")
    try:
        return Proxy(header, frozenset(str(ipaddress.ip_address(one)) for one in addresses))
    except ValueError as error:
        raise UsageError("proxy", "its address is none", "write one such as 10.0.0.5") from error


def _own_profiles(files: list[Path]) -> dict[str, str]:
    from medqa.thresholds import load, names

    found: dict[str, str] = {}
    for file in files:
        name = load(str(file)).name
        if name in found or name in names():
            raise UsageError(file, f"its name {name} is taken", "give it a name of its own")
        found[name] = str(file.absolute())
    return found


def _networks(asked: list[BackboneName], weights: Path | None) -> tuple[str, ...]:
    """Check the weights now: no request may set off a download."""
    if weights is not None:  # for everything in this process and its workers
        os.environ["MEDQA_WEIGHTS"] = str(weights.absolute())
    names = dict.fromkeys(("gray", *(one.value for one in asked)))
    if len(names) > 1:
        from medqa.weights import find  # torch; the network that medqa ships needs no look

        for name in names:
            find(name, weights)
    return tuple(names)


def _incoming(spool: Path) -> Path:
    folder = spool.absolute() / "incoming-web"  # other hosts may have this spool too
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(
            folder, f"cannot be made ({error.strerror})", "check the spool's folder"
        ) from error
    return folder


def _default_keys() -> Path:
    from medqa.audit.files import data_folder

    return data_folder() / "web-keys.json"


@keys_app.command("add")
def keys_add(
    name: Name,
    role: Annotated[RoleName, typer.Option(help="What the caller may do.")],
    keys: KeysFile = None,
    *,
    by_proxy: Annotated[
        bool, typer.Option("--by-proxy", help="The proxy signs him in: he needs no key.")
    ] = False,
) -> None:
    """Let somebody in, and print his key, once: it is kept nowhere."""
    from medqa_plugins.web.keys import add

    key = add(keys or _default_keys(), name, role.value, by_proxy=by_proxy)
    typer.echo(
        f"{name} is let in as {role.value} where the proxy names him" if key is None else key
    )


@keys_app.command("list")
def keys_list(keys: KeysFile = None) -> None:
    """Show who is let in."""
    from medqa.console import show, table
    from medqa_plugins.web.keys import listed

    rows = [
        (one.name, one.role, "key" if one.sha256 else "proxy", one.added_on)
        for one in listed(keys or _default_keys())
    ]
    show(table(("name", "role", "by", "since"), rows))


@keys_app.command("revoke")
def keys_revoke(name: Name, keys: KeysFile = None) -> None:
    """Let somebody in no longer, from now on."""
    from medqa_plugins.web.keys import revoke

    revoke(keys or _default_keys(), name)
    typer.echo(f"{name} is let in no longer")
