"""`medqa dicomweb`: derived series of a DICOMweb server, judged, and the results stored back."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Annotated

import typer

from medqa.cli.options import Db, SpoolFolder
from medqa.errors import UsageError

__all__ = ["dicomweb"]


def dicomweb(
    url: Annotated[str, typer.Argument(metavar="URL", help="Such as https://pacs/dicom-web.")],
    spool: SpoolFolder,
    db: Db = None,
    reference_series: Annotated[
        str | None, typer.Option(metavar="UID", help="Series to compare with.")
    ] = None,
    candidate_series: Annotated[
        str | None, typer.Option(metavar="UID", help="Series to judge.")
    ] = None,
    study: Annotated[
        str | None, typer.Option(metavar="UID", help="Judge the derived series of a study.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            metavar="DATE", formats=["%Y-%m-%d"], help="The same of all studies from then on."
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Thresholds; else those of the images.")
    ] = None,
    *,
    store: Annotated[
        bool, typer.Option("--store", help="Store results on the server that are done.")
    ] = False,
) -> None:
    """Fetch derived series and their sources, queue them, and store results back.

    One round: `medqa worker` does the jobs, and the next round with --store gives back what is
    done. Credentials: MEDQA_DICOMWEB_USER and MEDQA_DICOMWEB_PASSWORD, or MEDQA_DICOMWEB_TOKEN.
    Exit code 0: all went well. 1: something was refused, and is tried again. 2: wrong use.
    """
    from medqa.audit import Store
    from medqa.queue.submission import Spool
    from medqa_plugins.dicomweb import Round, compare, give_back, search
    from medqa_plugins.dicomweb_server import connect

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    pair = reference_series is not None, candidate_series is not None
    asked = [any(pair), study is not None, since is not None]
    if sum(asked) > 1 or any(pair) != all(pair) or not (any(asked) or store):
        raise UsageError(
            "medqa dicomweb",
            "does not know which images are meant",
            "give --reference-series and --candidate-series, or --study, or --since, or --store",
        )
    server = connect(url)
    kept = Spool(spool.absolute())
    with Store.open(db) as opened:
        stored, refused = give_back(server, opened) if store else (0, 0)
        found = Round()
        if reference_series is not None and candidate_series is not None:
            found = compare(server, opened, kept, reference_series, candidate_series, profile)
        elif study is not None or since is not None:
            day = since.date() if since is not None else None
            found = search(server, opened, kept, study=study, since=day, profile=profile)
    typer.echo(
        f"{found.new} new, {found.known} known, {found.refused} refused; "
        f"{stored} stored, {refused} not stored"
    )
    raise typer.Exit(1 if found.refused or refused else 0)
