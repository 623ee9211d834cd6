"""Follow the record: chart what is new, tell of new alerts, keep the page up to date."""

from __future__ import annotations

import datetime
import hashlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from medqa.audit import Store
from medqa.audit.files import data_folder
from medqa.audit.tables import entries
from medqa.errors import StoreError
from medqa.files import write_file
from medqa.quality.alerts import Alert, Channel, Sent, Watched, send, watch
from medqa.quality.charts import BASELINE
from medqa.quality.monitor_page import page
from medqa.quality.series import gather

__all__ = ["Looked", "Watch", "follow", "look", "state_file"]

_LOG = logging.getLogger("medqa.monitor")
_PAGE = "monitor.html"


@dataclass(frozen=True)
class Watch:
    """What to do with what is found.

    Parameters
    ----------
    channels
        Where new alerts go, by name.
    state
        File of what was sent (`state_file`).
    since
        Leave out what was before this day.
    first
        Points of a baseline.
    out
        Folder for the page; None writes none.
    """

    channels: Mapping[str, Channel]
    state: Path
    since: datetime.date | None = None
    first: int = BASELINE
    out: Path | None = None


@dataclass(frozen=True)
class Looked:
    """What one look found.

    Parameters
    ----------
    watched
        Every series, the worst first.
    failed
        Channels that could not be told, and why; they are told at the next look.
    sequence
        Of the newest entry of the record.
    """

    watched: tuple[Watched, ...]
    failed: tuple[str, ...]
    sequence: int

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """All that stand, the worst first."""
        return tuple(alert for one in self.watched for alert in one.alerts)


def state_file(store: Store) -> Path:
    """File, in the user's data folder, of what was sent of a database's alerts."""
    digest = hashlib.sha256(store.url_for_people.encode()).hexdigest()
    return data_folder() / f"monitor-{digest[:16]}.json"


def look(store: Store, watching: Watch) -> Looked:
    """Chart the whole record once, write the page, tell each channel what it was not told.

    An alert is kept as sent only after it was: killed between the two, it is sent again.

    Raises
    ------
    StoreError
        The record cannot be read.
    UsageError
        The page or the state cannot be written.
    """
    sequence = _newest(store)  # before the rest: what comes meanwhile is looked at the next time
    sent = Sent.load(watching.state)
    found = gather(store, watching.since)
    watched = watch(found.series, watching.first)
    if watching.out is not None:
        now = datetime.datetime.now(datetime.UTC)
        write_file(watching.out / _PAGE, page(found, watched, watching.first, now))
    alerts = [alert for one in watched for alert in one.alerts]
    sent, failed = send(alerts, watching.channels, sent)
    for one in failed:
        _LOG.error("not sent by %s", one)
    sent.save(watching.state)
    return Looked(watched, failed, sequence)


def follow(
    store: Store, watching: Watch, last: Looked, every: float, stop: threading.Event
) -> Looked:
    """Look again whenever the record has grown or a channel failed, until told to stop.

    A database that cannot be read for a while is logged and asked again.

    Parameters
    ----------
    last
        What was found before.
    every
        Seconds between two glances.

    Returns
    -------
    What was found last.
    """
    while not stop.wait(every):
        try:
            if last.failed or _newest(store) != last.sequence:
                last = look(store, watching)
        except StoreError as error:
            _LOG.error("%s", error)
    return last


def _newest(store: Store) -> int:
    with store.reading() as connection:
        return connection.scalar(select(func.max(entries.c.sequence))) or 0
