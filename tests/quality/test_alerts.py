"""Alerts: the right side, once, until it is well again; and where they go."""

from __future__ import annotations

import datetime
import json
import logging
import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email import message_from_string, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from watching import daily

from medqa.errors import UsageError
from medqa.quality.alerts import Alert, Sent, log, mail, message, send, standing, watch, webhook
from medqa.quality.charts import chart
from medqa.quality.series import series

USUAL = [10.0, 10.2, 9.8, 10.1, 9.9] * 4  # sigma about 0.24


def alerts(
    values: Sequence[float], better: Literal["lower", "higher", "neither"] = "lower"
) -> tuple[Alert, ...]:
    (found,) = series(daily(values, better))
    return standing(found, chart(found.values, found.days, better))


def test_the_direction_is_that_of_the_measure() -> None:
    up, down = [*USUAL, 12.0], [*USUAL, 8.0]
    assert {one.side for one in alerts(up, "lower")} == {"above"}
    assert alerts(down, "lower") == ()  # less noise is no alert
    assert alerts(up, "higher") == ()
    assert {one.side for one in alerts(down, "higher")} == {"below"}
    assert alerts(up, "neither")
    assert alerts(down, "neither")


def test_what_an_alert_says() -> None:
    found = alerts([*USUAL, 10.0, 10.6, 10.6, 12.0])
    by_rule = {one.rule: one for one in found}
    assert by_rule["beyond 3 sigma"].level == "critical"
    assert by_rule["2 of 3"].level == "warning"
    assert found[0].level == "critical"
    jump = by_rule["beyond 3 sigma"]
    assert (jump.since, jump.latest) == (datetime.date(2026, 1, 24),) * 2
    assert jump.points == 1
    # The mean moving range of the baseline, by hand: 4 times .2 .4 .3 .2, and 3 times .1.
    sigma = (4 * (0.2 + 0.4 + 0.3 + 0.2) + 3 * 0.1) / 19 / 1.128
    assert jump.sigma == pytest.approx(2.0 / sigma)
    device = (jump.device or "")[:8]
    assert jump.text == (
        f"critical: noise of CT CHEST on ACME scanner ({device}): 12 HU, usually 10, "
        f"{2.0 / sigma:.1f} sigma above; beyond 3 sigma since 2026-01-24, 1 point, "
        "latest 2026-01-24"
    )


def test_it_stands_until_five_points_are_well() -> None:
    bad = [*USUAL, 12.0]
    for well in range(1, 5):
        assert [one.rule for one in alerts([*bad, *[9.9, 10.0] * 3][: 21 + well])].count(
            "beyond 3 sigma"
        ) == 1
    first = {one.key for one in alerts(bad)}
    healed = [*bad, 9.5, 9.8, 9.7, 9.9, 9.8, 9.9, 9.8, 9.7]
    assert alerts(healed) == ()
    # As long as it stands it is one alert; when it comes back, another.
    more = alerts([*bad, 9.9, 12.0, 9.9, 12.0])
    same = [one for one in more if one.rule == "beyond 3 sigma"]
    assert [one.key in first for one in same] == [True]
    assert same[0].points == 3
    again = [one for one in alerts([*healed, 12.0]) if one.rule == "beyond 3 sigma"]
    assert [one.key in first for one in again] == [False]


def test_too_little_history_gives_no_alert() -> None:
    assert alerts([10.0, 11.0] * 9 + [99.0]) == ()


def test_a_measure_that_never_varied() -> None:
    (found,) = [one for one in alerts([0.0] * 20 + [0.5]) if one.rule == "beyond 3 sigma"]
    assert (found.sigma, found.level) == (None, "warning")
    assert "sigma above" not in found.text


def test_worst_first() -> None:
    well, bad = daily(USUAL), daily([*USUAL[:-1], *USUAL, 12.0])
    bad = [
        one.model_copy(update={"device_hmac": "f" * 64, "quality_id": f"{one.quality_id}-b"})
        for one in bad
    ]
    short = [
        one.model_copy(update={"device_hmac": "e" * 64, "quality_id": f"{one.quality_id}-c"})
        for one in daily([1.0, 2.0])
    ]
    watched = watch(series([*short, *well, *bad]))
    assert [one.series.subject.device[:1] for one in watched if one.series.subject.device] == [
        "f",
        well[0].device_hmac[:1] if well[0].device_hmac else "",
        "e",
    ]


def test_false_alarms_are_as_rare_as_they_are_said_to_be() -> None:
    """Of 200 charts in control, baseline of 20 estimated: docs/monitor.md gives the shares."""
    rng = np.random.default_rng(7)
    critical = warning = 0
    for _ in range(200):
        values = rng.standard_normal(50)
        made = chart(values.tolist(), list(range(50)), "lower")
        levels = {
            one.rule in ("beyond 3 sigma", "EWMA") for one in made.signals if one.side == "above"
        }
        critical += True in levels
        warning += False in levels
    assert critical / 200 < 0.35
    assert critical <= warning


def test_each_channel_is_told_once(tmp_path: Path) -> None:
    told: list[list[str]] = []

    def works(new: Sequence[Alert]) -> None:
        told.append([one.rule for one in new])

    def fails(_: Sequence[Alert]) -> None:
        raise ConnectionRefusedError("nobody there")

    file = tmp_path / "deep" / "state.json"
    first = alerts([*USUAL, 12.0])
    sent, failed = send(first, {"a": works, "b": fails}, Sent.load(file))
    assert [one.split(":")[0] for one in failed] == ["b"]
    sent.save(file)
    # After a restart: `a` knows, `b` is told at last; a new rule goes to both.
    sent, failed = send(first, {"a": works, "b": works}, Sent.load(file))
    assert (failed, len(told)) == ((), 2)
    sent.save(file)
    more = alerts([*USUAL, 12.0, 12.0, 12.0])
    sent, _ = send(more, {"a": works, "b": works}, Sent.load(file))
    assert len(told) == 4
    assert not set(told[2]) & {one.rule for one in first}
    # What stands no longer is forgotten.
    sent, _ = send((), {"a": works, "b": works}, sent)
    assert sent.keys == {"a": frozenset(), "b": frozenset()}
    assert len(told) == 4


@pytest.mark.parametrize("text", ["", "[]", '{"sent": 3}', '{"sent": {"log": 3}}', "\xff"])
def test_a_state_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "state.json"
    file.write_text(text, "latin-1")
    with pytest.raises(UsageError, match="sent again"):
        Sent.load(file)


def test_log(caplog: pytest.LogCaptureFixture) -> None:
    found = alerts([*USUAL, 10.0, 10.6, 10.6, 12.0])
    with caplog.at_level(logging.WARNING, logger="medqa.monitor"):
        log(found)
    assert caplog.records[0].levelname == "CRITICAL"
    assert len(caplog.records) == len(found)


@contextmanager
def _server(status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, json.loads(body)))
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:
            got.append((self.path, None))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def test_webhook() -> None:
    found = alerts([*USUAL, 12.0])
    with _server() as (url, got):
        webhook(url)(found)
    ((path, body),) = got
    assert path == "/hook"
    assert body == json.loads(json.dumps(message(found)))
    assert body["alerts"][0]["since"] == "2026-01-21"
    assert body["text"].count("\n") == len(found) - 1


@pytest.mark.parametrize("status", [302, 307, 500])
def test_webhook_follows_no_redirect(status: int) -> None:
    found = alerts([*USUAL, 12.0])
    with _server(status) as (url, got):
        _, failed = send(found, {"webhook": webhook(url)}, Sent({}))
    assert [path for path, _ in got] == ["/hook"]
    assert f"HTTP Error {status}" in failed[0]


def test_webhook_that_nobody_serves_fails() -> None:
    with _server() as (url, _):
        pass
    assert send(alerts([*USUAL, 12.0]), {"webhook": webhook(url)}, Sent({}))[1]


@pytest.mark.parametrize(
    "url",
    ["http://hospital.example/", "ftp://x/", "file:///etc/passwd", "https://", "https://[x", "x"],
)
def test_webhook_refuses_what_others_could_read(url: str) -> None:
    with pytest.raises(UsageError, match="https"):
        webhook(url)


@contextmanager
def _relay() -> Iterator[tuple[str, list[str]]]:
    """Small SMTP server (RFC 5321), without STARTTLS."""
    got: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline().decode():
                got.append(line.strip())
                if line.upper().startswith("DATA"):
                    self.wfile.write(b"354 go on\r\n")
                    while (text := self.rfile.readline().decode()) != ".\r\n":
                        got.append(text.strip())
                self.wfile.write(
                    b"221 bye\r\n" if line.upper().startswith("QUIT") else b"250 ok\r\n"
                )

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}", got
        server.shutdown()
        thread.join()


def test_mail() -> None:
    found = alerts([*USUAL, 12.0])
    with _relay() as (server, got):
        mail(server, "medqa@hospital.example", ["a@hospital.example", "b@hospital.example"])(found)
    assert "rcpt TO:<b@hospital.example>" in got
    start = next(i for i, line in enumerate(got) if line.startswith("Subject:"))
    letter = message_from_string("\n".join(got[start:-1]), policy=policy.default)
    assert letter["Subject"] == f"medqa monitor: {len(found)} new, critical"
    assert [one for one in letter.get_content().splitlines() if one] == [one.text for one in found]


@pytest.mark.parametrize(
    ("server", "address"),
    [("", "a@b"), ("host:x", "a@b"), ("host", "ab"), ("host", "a@b\nCc: c@d")],
)
def test_mail_refuses(server: str, address: str) -> None:
    with pytest.raises(UsageError):
        mail(server, "medqa@here", [address])
