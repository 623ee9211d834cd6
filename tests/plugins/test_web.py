"""The web service, over a real socket, with real images and real workers."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from auditing import plain
from PIL import Image as Picture
from web_service import CT, bearer, ct_like, free_port, listening, made, pair, working

import medqa
from medqa.assessment import Assessment, Job
from medqa_plugins.web.settings import Limits

_LONG = httpx.Timeout(60.0)


def files_of(kind: str, paths: list[Path]) -> list[Any]:
    return [(kind, (f"{n}", path.read_bytes())) for n, path in enumerate(paths)]


def test_a_series_is_judged_as_by_the_library(tmp_path: Path, shared_data: Path) -> None:
    series = sorted((shared_data / "ct/liver_3slice_with_SEG").glob("0*.dcm"))[:2]
    damaged = []
    for path in series:
        one = pydicom.dcmread(path)
        pixels = one.pixel_array.copy()
        pixels[200:260, 150:210] += 60
        one.PixelData = pixels.tobytes()
        one.save_as(tmp_path / path.name)
        damaged.append(tmp_path / path.name)
    site = made(tmp_path)
    key = bearer(site.keys["writer"])
    sent = [*files_of("reference", series), *files_of("candidate", damaged)]
    with listening(site.app) as address, working(site.db):
        answer = httpx.post(
            f"{address}/assess",
            headers=key,
            files=sent,
            data={"task": "compression"},
            timeout=_LONG,
        )
        assert answer.status_code == 200, answer.text
        record = Assessment.model_validate_json(answer.content)
        one = f"{address}/assessments/{record.assessment_id}"
        assert httpx.get(one, headers=key).content == answer.content
        report = httpx.get(f"{one}/report", headers=key)
        picture = httpx.get(f"{one}/map.png", headers=key)
    expected = medqa.run(
        Job(
            reference=tuple(map(str, series)),
            candidate=tuple(map(str, damaged)),
            task="compression",
        )
    )
    assert record.base_lpips_score == expected.base_lpips_score
    assert record.slices == expected.slices
    assert (record.verdict, record.reasons) == (expected.verdict, expected.reasons)
    # The digest of a series: of the files' digests, whose order is the library's business.
    assert record.inputs.reference is not None
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in series}
    assert {path.name for path in (tmp_path / "spool/files").iterdir()} >= digests
    assert record.origin == "web"
    assert report.headers["content-type"].startswith("text/html")
    assert record.assessment_id in report.text
    assert "script" not in report.headers["content-security-policy"]
    (tmp_path / "map.png").write_bytes(picture.content)
    with Picture.open(tmp_path / "map.png") as shown:
        assert shown.size == (512, 512)


def test_nifti_is_known_by_its_content(tmp_path: Path, shared_data: Path) -> None:
    volume = (shared_data / "ct/totalsegmentator_nifti/example_mr_sm.nii.gz").read_bytes()
    mask = (shared_data / "ct/totalsegmentator_nifti/example_seg_mr.nii.gz").read_bytes()
    site = made(tmp_path)
    with listening(site.app) as address, working(site.db):
        answer = httpx.post(
            f"{address}/assess",
            headers=bearer(site.keys["writer"]),
            files=[*pair(volume, volume), ("mask", ("m", mask))],
            data={"profile": "mr"},
            timeout=_LONG,
        )
    record = answer.json()
    assert record["verdict"] == "diagnostic", record["reasons"]
    assert record["profile"]["name"] == "mr"
    assert record["base_lpips_score"] == 0.0
    assert record["pathology_preservation"]["pathology_preserved"]


def test_what_cannot_be_read_is_a_record_and_names_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site = made(tmp_path)
    key = bearer(site.keys["writer"])
    with listening(site.app) as address, working(site.db):
        broken = httpx.post(f"{address}/assess", headers=key, files=pair(CT[:9000]), timeout=_LONG)
        again = httpx.post(f"{address}/assess", headers=key, files=pair(CT[:9000]), timeout=_LONG)
        wrong = httpx.post(
            f"{address}/assess",
            headers=key,
            files=pair(CT, ct_like(1)),
            data={"profile": "mr"},
            timeout=_LONG,
        )
        errors = [
            httpx.get(f"{address}/assessments/DOE^JANE", headers=key),
            httpx.get(f"{address}/DOE^JANE?patient=1CT1", headers=key),
            httpx.post(f"{address}/assess", headers=key, files=[("DOE^JANE", ("x", b"1CT1"))]),
            httpx.post(f"{address}/assess", headers=key, files=pair(CT), data={"task": "DOE^JANE"}),
        ]
        listed = httpx.get(f"{address}/assessments?verdict=not_assessable", headers=key).json()
    assert broken.status_code == 200
    assert broken.json()["verdict"] == "not_assessable"
    assert again.content == broken.content  # the same work is done once
    assert [one["assessment_id"] for one in listed["assessments"]] == [
        broken.json()["assessment_id"]
    ]
    assert wrong.status_code == 422
    assert "is for MR, and the image is CT" in wrong.json()["reason"]
    assert [one.status_code for one in errors] == [422, 404, 422, 422]
    # Ours in full, others' as the service shows them; not what this test's own client logs.
    lines = [
        one.getMessage()
        for one in caplog.records
        if one.name.startswith("medqa") or one.levelno >= logging.WARNING
    ]
    told = "\n".join(lines) + broken.text + wrong.text + "".join(one.text for one in errors)
    dataset = pydicom.dcmread(CT_PATH)
    for word in ("DOE", "passwd", "1CT1", str(dataset.PatientName), dataset.SOPInstanceUID):
        assert word not in told, word
    web = [one.getMessage() for one in caplog.records if one.name == "medqa.web"]
    assert any(one.startswith("POST /assess 200 writer-1 ") for one in web), web
    assert any(one.startswith("GET /assessments/{assessment_id} 422 ") for one in web), web
    assert str(tmp_path) not in broken.text + wrong.text + "".join(web)
    # Who asked is on record.
    actors = plain(site.db, "SELECT actor FROM audit_entries WHERE kind = 'assessment'")
    assert actors == [("writer-1",)]


CT_PATH = pydicom.data.get_testdata_file("CT_small.dcm", download=False)


def test_a_batch_is_done_in_its_order(tmp_path: Path) -> None:
    site = made(tmp_path)
    key = bearer(site.keys["writer"])
    same, other = ct_like(3), ct_like(4)
    with listening(site.app) as address, working(site.db):
        answer = httpx.post(
            f"{address}/assess/batch",
            headers=key,
            files=[*pair(same, same, 7), *pair(other, CT, 12)],
            timeout=_LONG,
        )
        assert answer.status_code == 202, answer.text
        jobs = answer.json()["jobs"]
        ended = [until_over(address, job["job_id"], key) for job in jobs]
        records = [
            httpx.get(f"{address}/assessments/{one['assessment_id']}", headers=key).json()
            for one in ended
        ]
        figures = httpx.get(f"{address}/metrics", headers=key).text
    assert records[0]["base_lpips_score"] == 0.0
    assert records[1]["base_lpips_score"] > 0.0
    assert 'medqa_jobs{state="done"} 2.0' in figures
    assert 'medqa_web_requests_total{method="POST",route="/assess/batch",status="202"} 1.0' in (
        figures
    )


def until_over(address: str, job_id: str, key: dict[str, str]) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = httpx.get(f"{address}/jobs/{job_id}", headers=key).json()
        if found["state"] in ("done", "dead"):
            return found
        time.sleep(0.2)
    raise AssertionError("it took too long")


def test_who_waits_too_long_is_told_where_to_ask(tmp_path: Path) -> None:
    site = made(tmp_path, Limits(wait_seconds=0.1))
    key = bearer(site.keys["writer"])
    with listening(site.app) as address:
        answer = httpx.post(f"{address}/assess", headers=key, files=pair(CT))
        assert answer.status_code == 202
        where = f"{address}{answer.headers['location']}"
        assert httpx.get(where, headers=key).json()["state"] == "waiting"
        with working(site.db):
            assert until_over(address, answer.json()["job_id"], key)["state"] == "done"


_SERVE = "import typer; from medqa.cli.serve import serve; typer.run(serve)"


def started(folder: Path, port: int, *options: str) -> subprocess.Popen[str]:
    """`medqa serve` as a process group of its own."""
    command = [sys.executable, "-c", _SERVE, "--spool", str(folder / "spool"), "--no-auth"]
    return subprocess.Popen(  # noqa: S603
        [*command, "--port", str(port), "--db", str(folder / "audit.db"), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_DATA_HOME": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until_ready(address: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{address}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("it did not start")


def test_a_killed_service_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    files = [part for n in range(1, 6) for part in pair(ct_like(n), CT, n)]
    first = started(tmp_path, port)
    try:
        until_ready(address)
        answer = httpx.post(f"{address}/assess/batch", files=files, timeout=_LONG)
        jobs = [one["job_id"] for one in answer.json()["jobs"]]
        until_over(address, jobs[0], {})
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        _, told = first.communicate()
    assert "everybody on this machine may do everything" in told
    # A worker that was killed in a job keeps its lease for a minute, which the test does not wait.
    plain(str(tmp_path / "audit.db"), "UPDATE jobs SET leased_until = leased_until - 120")
    site = made(tmp_path)
    key = bearer(site.keys["writer"])
    with listening(site.app) as address, working(site.db):
        again = httpx.post(f"{address}/assess/batch", headers=key, files=files, timeout=_LONG)
        assert [one["job_id"] for one in again.json()["jobs"]] == jobs
        ended = [until_over(address, job, key) for job in jobs]
    assert {one["state"] for one in ended} == {"done"}
    recorded = plain(str(tmp_path / "audit.db"), "SELECT assessment_id, record FROM assessments")
    assert sorted(one[0] for one in recorded) == sorted(one["assessment_id"] for one in ended)
    digests = [json.loads(one[1])["inputs"]["candidate"]["file_sha256"] for one in recorded]
    assert len(set(digests)) == len(jobs)


def test_a_service_whose_jobs_others_do_holds_no_network(tmp_path: Path) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    files = [part for n in (1, 2) for part in pair(ct_like(n), CT, n)]
    one = started(tmp_path, port, "--workers", "0")
    try:
        until_ready(address)
        answer = httpx.post(f"{address}/assess/batch", files=files, timeout=_LONG)
        (first, second) = answer.json()["jobs"]
        with working(str(tmp_path / "audit.db")):  # here, which has torch
            for job in (first, second):
                record = until_over(address, job["job_id"], {})["assessment_id"]
        for path in ("/approvals", "/profiles", f"/assessments/{record}/report", "/metrics"):
            assert httpx.get(f"{address}{path}").status_code == 200, path
        case = f"{address}/review/cases/{record}"
        for path in ("", "/slices/candidate/0", "/report"):
            assert httpx.get(f"{case}{path}").status_code == 200, path
        for path in ("", "/approvals", "/trends/charts", "/trail"):
            assert httpx.get(f"{address}/review{path}").status_code == 200, path
        ours = [one.pid, *children(one.pid)]
        assert len(ours) == 2  # and the process that readers are forked from
        for process in ours:
            assert "torch" not in Path(f"/proc/{process}/maps").read_text()
    finally:
        os.killpg(one.pid, signal.SIGTERM)
        one.communicate(timeout=60)
    assert not any(Path(f"/proc/{process}").exists() for process in ours)


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.parametrize(
    "options",
    [
        ["--host", "0.0.0.0", "--no-auth"],  # noqa: S104
        ["--host", "0.0.0.0"],  # noqa: S104
        ["--certificate", "x.pem"],
        ["--trusted-proxy", "127.0.0.1"],
        ["--trusted-user-header", "X-User", "--trusted-proxy", "proxy"],
    ],
)
def test_what_would_be_open_to_others_does_not_start(tmp_path: Path, options: list[str]) -> None:
    import typer
    from typer.testing import CliRunner

    from medqa.cli.serve import serve
    from medqa.errors import UsageError

    app = typer.Typer()
    app.command()(serve)
    done = CliRunner().invoke(app, ["--spool", str(tmp_path / "spool"), *options])
    assert isinstance(done.exception, UsageError)
