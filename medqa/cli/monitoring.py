"""`medqa monitor` and `medqa gallery`: devices over time, and images beside references."""

from __future__ import annotations

import datetime
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medqa.cli.options import Db
from medqa.errors import NotAssessableError

if TYPE_CHECKING:
    from medqa.quality.alerts import Channel

__all__ = ["gallery_app", "monitor"]


def monitor(
    db: Db = None,
    *,
    every: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=1, help="Look again so often; by default once."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the charts, monitor.html, there.")
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="URL", envvar="MEDQA_WEBHOOK", help="Post new alerts there, as JSON; https."
        ),
    ] = None,
    mail_to: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Mail new alerts to it. Repeatable."),
    ] = None,
    mail_from: Annotated[
        str, typer.Option(metavar="ADDRESS", envvar="MEDQA_MAIL_FROM", help="Sender.")
    ] = "medqa@localhost",
    mail_server: Annotated[
        str, typer.Option(metavar="HOST:PORT", envvar="MEDQA_MAIL_SERVER", help="Mail relay.")
    ] = "localhost:25",
    since: Annotated[
        datetime.datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], help="Leave out what was before, as after a repair: new baseline."
        ),
    ] = None,
    baseline: Annotated[
        int, typer.Option(min=10, metavar="N", help="Studies that make a baseline.")
    ] = 20,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What was sent; by default in the user's data folder."),
    ] = None,
) -> None:
    """Watch the recorded measures of each device, and tell of what leaves its usual range.

    Exit code 0: in control, or not enough history. 1: an alert stands. 2: wrong use.
    """
    from medqa.audit import Store
    from medqa.quality import alerts
    from medqa.quality.monitor import Watch, follow, look, state_file

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    channels: dict[str, Channel] = {"log": alerts.log}
    if webhook is not None:
        channels["webhook"] = alerts.webhook(webhook)
    if mail_to:
        channels["mail"] = alerts.mail(mail_server, mail_from, mail_to)
    with Store.open(db, readonly=True) as store:
        day = None if since is None else since.date()
        watching = Watch(channels, state or state_file(store), day, baseline, out)
        looked = look(store, watching)
        if every is not None:
            looked = follow(store, watching, looked, every, _told_to_stop())
    for alert in looked.alerts:
        typer.echo(alert.text)
    charted = [one for one in looked.watched if one.chart.baseline is not None]
    waiting = len(looked.watched) - len(charted)
    typer.echo(
        f"{len(looked.alerts)} alerts stand on {len(charted)} charts"
        + (f"; not enough history for {waiting} more" if waiting else "")
    )
    raise typer.Exit(1 if looked.alerts else 0)


def _told_to_stop() -> threading.Event:
    """Event that is set when somebody stops the program."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


gallery_app = typer.Typer(help="References of a study type, and how far an image is from them.")

Folder = Annotated[
    Path | None,
    typer.Option(
        "--gallery",
        envvar="MEDQA_GALLERY",
        show_envvar=True,
        metavar="DIR",
        help="Folder of the galleries; by default in the user's data folder.",
    ),
]


@gallery_app.command("add")
def gallery_add(
    study_type: Annotated[str, typer.Argument(metavar="STUDYTYPE", help='Such as "CT CHEST".')],
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Images that are as they should be.")
    ],
    folder: Folder = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Profile whose display is used.")
    ] = None,
) -> None:
    """Add the features of images, not their pixels, to the gallery of a study type.

    Exit code 0: every image was added, or was there. 2: one could not be, or wrong use.
    """
    from medqa.quality import gallery

    network, added, refused = gallery.default_network(), 0, False
    for name in files:
        try:
            embedding = gallery.embed(name, network, profile)
            added += gallery.add(folder or gallery.default_folder(), study_type, embedding)
        except NotAssessableError as error:
            sys.stderr.write(f"medqa: {error}\n")
            refused = True
    typer.echo(f"{study_type}: {added} added")
    raise typer.Exit(2 if refused else 0)


@gallery_app.command("list")
def gallery_list(folder: Folder = None) -> None:
    """Show the galleries: how many references, and the limit that they set."""
    from medqa.console import show, table
    from medqa.quality import gallery

    rows = [
        (
            one.study_type,
            str(len(one.embeddings)),
            one.network[:16],
            "; ".join(one.displays),
            "-" if one.limit is None else f"{one.limit:.4g}",
        )
        for one in gallery.load_all(folder or gallery.default_folder())
    ]
    show(table(("study type", "references", "network", "display", "own limit"), rows))


@gallery_app.command("compare")
def gallery_compare(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Image.")],
    folder: Folder = None,
    study_type: Annotated[
        str | None,
        typer.Option(metavar="STUDYTYPE", help="Only this gallery; by default every one."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Profile whose display is used.")
    ] = None,
) -> None:
    """Show how far an image is from the references.

    Exit code 0: within the limit of a gallery. 1: outside. 2: wrong use, or no image.
    """
    from medqa.console import show, table
    from medqa.quality import gallery

    network = gallery.default_network()
    galleries = gallery.load_all(folder or gallery.default_folder(), study_type)
    embedding = gallery.embed(file, network, profile)
    found = sorted(
        (gallery.compare(one, embedding) for one in galleries), key=lambda one: one.nearest
    )
    rows = [
        (
            one.study_type,
            str(one.references),
            f"{one.nearest:.4g}",
            f"{one.mean:.4g}",
            f"{one.limit:.4g} ({one.limit_source})",
            "within" if one.within else "outside",
            one.note,
        )
        for one in found
    ]
    show(table(("study type", "references", "nearest", "mean", "limit", "", "note"), rows))
    raise typer.Exit(0 if any(one.within for one in found) else 1)
