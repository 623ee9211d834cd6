"""`medqa monitor` and `medqa gallery`: what they print, write and send, and their exit codes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
import typer
from degrading import DEGRADES, daily_records
from typer.testing import CliRunner
from watching import code, daily, noise, record

from medqa.audit import Store
from medqa.cli.monitoring import gallery_app, monitor
from medqa.errors import MedqaError
from medqa.quality.alerts import watch
from medqa.quality.charts import Rule, worse
from medqa.quality.record import QualityRecord, add
from medqa.quality.series import series

USUAL = [10.0, 10.2, 9.8, 10.1, 9.9] * 4


@dataclass(frozen=True)
class Done:
    code: int
    out: str


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    """Take away the handler that the command gives the root logger: its stream is closed."""
    before = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = before


def invoke(app: typer.Typer, *arguments: str | Path) -> Done:
    """Run a command as `medqa.cli.main` does: medqa's own errors end with 2."""
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    if isinstance(done.exception, MedqaError):
        return Done(2, str(done.exception))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.output)


def watching(*arguments: str | Path) -> Done:
    app = typer.Typer()
    app.command()(monitor)
    return invoke(app, *arguments)


def filled(path: Path, records: Sequence[QualityRecord]) -> str:
    with Store.open(str(path)) as store:
        for one in records:
            add(store, one)
    return str(path)


def test_exit_codes(tmp_path: Path) -> None:
    well = filled(tmp_path / "well.db", daily(USUAL))
    done = watching("--db", well)
    assert (done.code, "0 alerts stand on 1 charts" in done.out) == (0, True)
    bad = filled(tmp_path / "bad.db", daily([*USUAL, 12.0]))
    done = watching("--db", bad)
    assert done.code == 1
    assert "critical: noise of CT CHEST on ACME scanner" in done.out
    # From the day of the bad image on there is no history yet.
    done = watching("--db", bad, "--since", "2026-01-20")
    assert (done.code, "not enough history for 1 more" in done.out) == (0, True)
    done = watching("--db", filled(tmp_path / "none.db", []))
    assert (done.code, "0 charts" in done.out) == (0, True)
    assert watching("--db", tmp_path / "missing.db").code == 2
    assert watching("--db", bad, "--webhook", "http://example.org").code == 2
    assert watching("--db", bad, "--mail-to", "nobody").code == 2
    assert watching("--db", bad, "--baseline", "5").code == 2
    (tmp_path / "file").write_text("x")
    assert watching("--db", bad, "--out", tmp_path / "file").code == 2


def test_nothing_is_sent_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = tmp_path / "audit.db"
    state = tmp_path / "state.json"
    filled(database, daily([*USUAL, 12.0]))
    arguments = ("--db", str(database), "--state", str(state))

    def logged() -> list[str]:
        caplog.clear()
        watching(*arguments)
        return [one.getMessage() for one in caplog.records if one.name == "medqa.monitor"]

    first = logged()
    assert len(first) == 2  # individuals and EWMA
    assert logged() == []
    filled(database, daily([*USUAL, 12.0, 12.0])[-1:])
    assert [one.split("; ")[1].split(" since")[0] for one in logged()] == ["2 of 3"]
    assert logged() == []
    state.unlink()
    assert len(logged()) == 3  # without the file, all that stands


def test_the_page(tmp_path: Path) -> None:
    records = daily([*USUAL, 10.0, 12.0])
    evil = "<script>alert(1)</script>"
    records = [one.model_copy(update={"device": evil}) for one in records]
    records.append(record(90, noise(1.0), device="new"))
    records.append(record(91, noise(1.0), device=None))
    database = filled(tmp_path / "audit.db", records)
    assert watching("--db", database, "--out", tmp_path / "out").code == 1
    page = (tmp_path / "out" / "monitor.html").read_text("utf-8")
    assert "<script" not in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "2026-01-22: 12 HU; beyond 3 sigma, above the centre [00000021]" in page
    assert page.count('class="bad"') == 2  # once in each chart
    assert "1 of 20" in page  # not enough history
    assert "1 record names no device" in page
    assert "href" not in page
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"monitor.html"}


def test_the_page_names_no_patient(tmp_path: Path) -> None:
    records = [record(n, noise(10 + n % 3 / 9), patient=f"p{n // 2}") for n in range(40)]
    records.append(record(99, noise(30.0), patient="p0"))
    database = filled(tmp_path / "audit.db", records)
    watching("--db", database, "--out", tmp_path)
    page = (tmp_path / "monitor.html").read_text("utf-8")
    assert "00000099" in page
    assert "+19.9" in page
    for number in range(20):
        assert code(f"p{number}")[:12] not in page


def test_it_follows_new_records(tmp_path: Path) -> None:
    database = filled(tmp_path / "audit.db", daily(USUAL))
    script = (
        "import typer; from medqa.cli.monitoring import monitor\n"
        "app = typer.Typer(); app.command()(monitor); app()"
    )
    command = [sys.executable, "-c", script, "--db", database, "--every", "1"]
    with subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as running:
        assert running.stderr is not None
        try:
            (state,) = _wait_for(tmp_path / "user-data" / "medqa", "monitor-*.json")
            filled(tmp_path / "audit.db", daily([*USUAL, 12.0])[-1:])
            assert "CRITICAL critical: noise" in running.stderr.readline()
            _wait_until(lambda: "[]" not in state.read_text())
            running.send_signal(signal.SIGTERM)
            out, _ = running.communicate(timeout=20)
        finally:
            running.kill()
    assert running.returncode == 1
    assert "2 alerts stand on 1 charts" in out


def _wait_for(folder: Path, pattern: str) -> list[Path]:
    _wait_until(lambda: bool(list(folder.glob(pattern))))
    return list(folder.glob(pattern))


def _wait_until(true: object) -> None:
    assert callable(true)
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_device_that_degrades_is_called(shared_data: Path, tmp_path: Path) -> None:
    """Real slices, medqa's own measures; docs/monitor.md reports the days."""
    records = daily_records(shared_data, tmp_path, growth=0.2)
    called: dict[str, dict[Rule, int]] = {}
    for one in watch(series(records)):
        subject = one.series.subject
        first: dict[Rule, int] = {}
        for found in one.chart.signals:
            if worse(found.side, subject.better):
                first.setdefault(found.rule, found.index)
        called[subject.measure] = first
    assert DEGRADES <= called["noise"]["beyond 3 sigma"] <= DEGRADES + 5
    assert DEGRADES <= called["noise"]["EWMA"] <= DEGRADES + 5
    assert min(called["noise"].values()) >= DEGRADES
    database = filled(tmp_path / "audit.db", records)
    done = watching("--db", database, "--out", tmp_path)
    assert done.code == 1
    before = filled(tmp_path / "before.db", records[:DEGRADES])
    assert "noise of" not in watching("--db", before).out


def _gallery(*arguments: str | Path) -> Done:
    return invoke(gallery_app, *arguments)


def test_gallery(shared_data: Path, tmp_path: Path) -> None:
    here = ("--gallery", tmp_path / "gallery")
    chest = sorted((shared_data / "ct/totalsegmentator_dicom").glob("CT.*"))
    mr = sorted((shared_data / "mr/uih_t1").glob("*.dcm"))[0]
    assert _gallery("list", *here).code == 2
    done = _gallery("add", "CT CHEST", *chest[:12], *chest[13:], *here)
    assert (done.code, "19 added" in done.out) == (0, True)
    assert "0 added" in _gallery("add", "CT CHEST", chest[0], *here).out
    listed = _gallery("list", *here).out
    assert "CT CHEST" in listed
    assert "gray 1" in listed
    done = _gallery("compare", chest[12], *here)
    assert (done.code, "textbook" in done.out) == (0, True)
    _gallery("add", "CT CHEST", chest[12], *here)
    done = _gallery("compare", mr, "--study-type", "CT CHEST", *here)
    assert (done.code, "outside" in done.out, "95 % of 20" in done.out) == (1, True, True)
    assert "shown as mr" in done.out
    assert _gallery("compare", mr, "--study-type", "MR", *here).code == 2
    done = _gallery("add", "CT CHEST", shared_data / "README.md", *here)
    assert (done.code, "0 added" in done.out) == (2, True)
    stored = b"".join(one.read_bytes() for one in (tmp_path / "gallery").glob("*/*"))
    header = pydicom.dcmread(chest[0], stop_before_pixels=True)
    for value in (header.SOPInstanceUID, header.SeriesInstanceUID, chest[0].name):
        assert not value or value.encode() not in stored
    assert json.loads(stored[8 : 8 + int.from_bytes(stored[:8], "little")])["__metadata__"]
