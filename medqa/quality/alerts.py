"""Alerts: what is out of control now, since when and by how much, told once.

Which alerts stand follows from the record alone. What was *sent* does not, so it is kept in a small
file beside the record; without the file, what stands is sent again.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import math
import smtplib
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from medqa.errors import UsageError
from medqa.files import write_file
from medqa.quality.charts import BASELINE, RULES, Baseline, Chart, Rule, Side, Signal, chart, worse
from medqa.quality.series import Series

__all__ = [
    "QUIET",
    "Alert",
    "Channel",
    "Sent",
    "Watched",
    "log",
    "mail",
    "message",
    "send",
    "standing",
    "watch",
    "webhook",
]

#: Points in a row without a turn for the worse after which an alert stands no longer.
QUIET = 5

_LOG = logging.getLogger("medqa.monitor")
_SECONDS = 10  # that a server has to answer
_CRITICAL: tuple[Rule, ...] = ("beyond 3 sigma", "EWMA")  # the others are patterns within limits
Level = Literal["warning", "critical"]


@dataclass(frozen=True)
class Alert:
    """A rule that a measure of a device breaks to the worse side.

    Parameters
    ----------
    key
        Names this alert: the same as long as it stands, another when it comes back.
    level
        ``critical`` beyond the limits of a chart; ``warning`` for a pattern within them, or where
        there are no limits because the baseline never varied.
    device, device_name, study_type, measure, unit
        What it is about; `device` is a keyed code.
    rule, side
        What was broken, and where.
    since, latest
        Days of the first and of the latest point that broke it.
    points
        How many did.
    value, centre, sigma
        The latest of these points, in sigma from the baseline's centre; `sigma` is None where the
        baseline never varied.
    """

    key: str
    level: Level
    device: str | None
    device_name: str
    study_type: str
    measure: str
    unit: str
    rule: Rule
    side: Side
    since: datetime.date
    latest: datetime.date
    points: int
    value: float
    centre: float
    sigma: float | None

    @property
    def text(self) -> str:
        """One line: what, where, since when, by how much."""
        where = self.device_name + (f" ({self.device[:8]})" if self.device else "")
        unit = "" if self.unit == "1" else f" {self.unit}"
        away = "" if self.sigma is None else f", {abs(self.sigma):.1f} sigma {self.side}"
        return (
            f"{self.level}: {self.measure} of {self.study_type} on {where}: "
            f"{self.value:.4g}{unit}, usually {self.centre:.4g}{away}; {self.rule} "
            f"since {self.since.isoformat()}, {self.points} point{'s'[: self.points > 1]}, "
            f"latest {self.latest.isoformat()}"
        )


@dataclass(frozen=True)
class Watched:
    """A series, its chart, and what stands."""

    series: Series
    chart: Chart
    alerts: tuple[Alert, ...]


def watch(found: Iterable[Series], first: int = BASELINE) -> tuple[Watched, ...]:
    """Chart every series and see which alerts stand; the worst first.

    Parameters
    ----------
    first
        Points of a baseline.
    """
    watched = []
    for one in found:
        made = chart(one.values, one.days, one.subject.better, first)
        watched.append(Watched(one, made, standing(one, made)))
    return tuple(sorted(watched, key=_rank))


def standing(series: Series, chart: Chart) -> tuple[Alert, ...]:
    """Alerts that stand at the end of a series, the worst first.

    An alert opens where a rule is broken to the worse side, and stands until `QUIET` points in a
    row break no rule to the worse side. A turn for the better opens none.
    """
    if chart.baseline is None:
        return ()
    bad = [one for one in chart.signals if worse(one.side, series.subject.better)]
    # From the end back to where `QUIET` points in a row were well.
    spell: list[Signal] = []
    later = len(series.points)
    for one in reversed(bad):
        if later - one.index > QUIET:
            break
        later = one.index
        spell.insert(0, one)
    kinds = dict.fromkeys((one.rule, one.side) for one in spell)
    alerts = [
        _alert(series, chart.baseline, [one for one in spell if (one.rule, one.side) == kind])
        for kind in kinds
    ]
    return tuple(sorted(alerts, key=lambda one: one.level))  # critical before warning


def _alert(series: Series, found: Baseline, broken: Sequence[Signal]) -> Alert:
    subject, rule, side = series.subject, broken[0].rule, broken[0].side
    first, last = (series.points[broken[end].index] for end in (0, -1))
    named = (subject.device, subject.study_type, subject.measure, subject.unit, rule, side)
    return Alert(
        key=hashlib.sha256(json.dumps([*named, first.record]).encode()).hexdigest(),
        level="critical" if rule in _CRITICAL and found.sigma else "warning",
        device=subject.device,
        device_name=subject.device_name,
        study_type=subject.study_type,
        measure=subject.measure,
        unit=subject.unit,
        rule=rule,
        side=side,
        since=first.day,
        latest=last.day,
        points=len(broken),
        value=last.value,
        centre=found.centre,
        sigma=(last.value - found.centre) / found.sigma if found.sigma else None,
    )


def _rank(one: Watched) -> tuple[object, ...]:
    """Critical, warning, in control, no chart; then by how far off, and by name."""
    furthest = max((math.inf if a.sigma is None else abs(a.sigma) for a in one.alerts), default=0.0)
    level = {"critical": 0, "warning": 1}[one.alerts[0].level] if one.alerts else 2
    subject = one.series.subject
    names = subject.device_name, subject.device or "", subject.study_type, subject.measure
    return (level, one.chart.baseline is None, -furthest, *names)


#: Tells alerts that were not told yet; raises an OSError or HTTPException where it cannot.
Channel = Callable[[Sequence[Alert]], None]


def message(alerts: Sequence[Alert]) -> dict[str, Any]:
    """Body of a webhook's call: the alerts as plain values, and as text. It names no patient."""
    return {
        "source": "medqa monitor",
        "text": "\n".join(one.text for one in alerts),
        "alerts": [
            {
                **asdict(one),
                "since": one.since.isoformat(),
                "latest": one.latest.isoformat(),
                "rule_text": RULES[one.rule],
            }
            for one in alerts
        ],
    }


def log(alerts: Sequence[Alert]) -> None:
    """Write to the log `medqa.monitor`, each alert at its level."""
    for one in alerts:
        _LOG.log(logging.CRITICAL if one.level == "critical" else logging.WARNING, one.text)


def webhook(url: str) -> Channel:
    """Channel that posts JSON to a URL.

    Raises
    ------
    UsageError
        The URL is neither https nor of this machine itself: on the way anybody could read it.
    """
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme, parts.hostname
    except ValueError:
        scheme, host = "", None
    here = host in ("localhost", "127.0.0.1", "::1")
    if not host or not (scheme == "https" or (scheme == "http" and here)):
        mend = "give https://… (http only for a program on this machine)"
        raise UsageError("webhook", "is no https URL", mend)
    opener = urllib.request.build_opener(_NoRedirect)

    def post(alerts: Sequence[Alert]) -> None:
        request = urllib.request.Request(  # noqa: S310 (the scheme was checked)
            url,
            data=json.dumps(message(alerts)).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "medqa"},
            method="POST",
        )
        with opener.open(request, timeout=_SECONDS):
            pass

    return post


def mail(server: str, sender: str, receivers: Sequence[str]) -> Channel:
    """Channel that sends one e-mail through a relay.

    Parameters
    ----------
    server
        ``HOST`` or ``HOST:PORT`` of a relay that takes mail from this machine without a password;
        what is sent is encrypted where it offers STARTTLS.

    Raises
    ------
    UsageError
        The port is no number, or an address holds a line break.
    """
    host, _, port = server.partition(":")
    if not host or (port and not port.isdigit()):
        raise UsageError("mail server", "is not HOST or HOST:PORT", "give one such as mail:25")
    if any(one.count("@") != 1 or not one.isprintable() for one in (sender, *receivers)):
        raise UsageError("mail address", "is none", "give one such as physics@hospital.example")

    def post(alerts: Sequence[Alert]) -> None:
        worst = "critical" if any(one.level == "critical" for one in alerts) else "warning"
        letter = EmailMessage()
        letter["Subject"] = f"medqa monitor: {len(alerts)} new, {worst}"
        letter["From"], letter["To"] = sender, ", ".join(receivers)
        letter.set_content("\n\n".join(one.text for one in alerts) + "\n")
        with smtplib.SMTP(host, int(port or 25), timeout=_SECONDS) as relay:
            relay.ehlo()
            if relay.has_extn("starttls"):
                relay.starttls()
            relay.send_message(letter)

    return post


@dataclass(frozen=True)
class Sent:
    """Keys of the standing alerts that each channel has told, kept in a file."""

    keys: Mapping[str, frozenset[str]]

    @classmethod
    def load(cls, file: Path) -> Sent:
        """Read the file; nothing was sent where there is none.

        Raises
        ------
        UsageError
            It cannot be read as such a file.
        """
        try:
            found = json.loads(file.read_text("utf-8"))
            return cls({name: frozenset(map(str, keys)) for name, keys in found["sent"].items()})
        except FileNotFoundError:
            return cls({})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            mend = "remove it; what stands is then sent again"
            raise UsageError(file, "is no list of sent alerts", mend) from error

    def save(self, file: Path) -> None:
        """Write the file: whole, or not at all.

        Raises
        ------
        UsageError
            It cannot be written.
        """
        text = json.dumps({"sent": {name: sorted(keys) for name, keys in self.keys.items()}})
        write_file(file, text.encode())


def send(
    alerts: Sequence[Alert], channels: Mapping[str, Channel], sent: Sent
) -> tuple[Sent, tuple[str, ...]]:
    """Tell each channel, in one message, what it has not been told.

    Returns
    -------
    What is sent by now, of what still stands; and for each channel that failed, why. It is told
    the next time.
    """
    keys, failed = {}, []
    stand = frozenset(one.key for one in alerts)
    for name, channel in channels.items():
        told = sent.keys.get(name, frozenset()) & stand
        new = [one for one in alerts if one.key not in told]
        if new:
            try:
                channel(new)
            except (OSError, HTTPException) as error:  # smtplib's errors are OSErrors
                failed.append(f"{name}: {type(error).__name__}: {error}")
            else:
                told |= {one.key for one in new}
        keys[name] = told
    return Sent(keys), tuple(failed)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What is meant for one address goes to no other."""

    def redirect_request(self, *_: Any) -> None:
        """Refuse: urllib then raises HTTPError."""
