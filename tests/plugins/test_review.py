"""The review page by HTTP: who may see and sign, what is shown, and what enters the record."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from reviewing import BLURRED, PATIENT, SLICES, Browser, assessed, blur_one, unchanged

from medqa.audit import Store, histories, verify
from medqa.errors import ReadError
from medqa.queue.kept import kept, kept_map
from medqa_plugins.web import queries
from medqa_plugins.web.app import create_app
from medqa_plugins.web.keys import add, revoke
from medqa_plugins.web.settings import Settings
from medqa_plugins.web.viewer import Images, case, slice_of

BOX = json.dumps(
    {
        "annotations": [
            {"type": "nodule", "bbox": [40, 30, 70, 60], "slice": BLURRED},
        ]
    }
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Database and spool with a bad and a good case; assessed once, used by every test."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDQA_KEY", "ab" * 32)
        with Store.open(str(folder / "audit.db")) as store:
            bad = assessed(store, folder / "spool", blur_one, BOX)
            good = assessed(store, folder / "spool", unchanged)
    keys = folder / "keys.json"
    secrets = {role: add(keys, f"a-{role}", role) for role in ("reader", "reviewer")}
    return {"folder": folder, "bad": bad, "good": good, "keys": keys, "secrets": secrets}


@pytest.fixture
def client(site: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Browser:
    monkeypatch.setenv("MEDQA_KEY", "ab" * 32)
    folder = site["folder"]
    app = create_app(
        Settings(db=str(folder / "audit.db"), spool=folder / "spool", keys=site["keys"])
    )
    return Browser(app)


def sign_in(client: Browser, key: str) -> str:
    answer = client.post("/review/sign-in", data={"key": key})
    assert answer.status_code == 303, answer.text
    return token(client)


def token(client: Browser) -> str:
    found = re.search(r'name="token" value="([0-9a-f]{64})"', client.get("/review").text)
    assert found is not None
    return found[1]


def test_nobody_sees_anything_before_signing_in(client: Browser, site: dict[str, Any]) -> None:
    case_path = f"/review/cases/{site['bad']}"
    for path in (
        *("", "/approvals", "/trends", "/trends/charts", "/trail"),
        *(f"/cases/{site['bad']}{rest}" for rest in ("", "/report", "/maps/4")),
        f"/cases/{site['bad']}/slices/reference/0",
    ):
        answer = client.get(f"/review{path}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/review/sign-in"), path
    assert client.post(f"{case_path}/sign", data={"meaning": "approved"}).status_code == 303
    wrong = client.post("/review/sign-in", data={"key": "medqa_wrong"})
    assert wrong.status_code == 401
    assert "not known" in wrong.text
    assert "set-cookie" not in wrong.headers


def test_the_cookie_is_closed_to_scripts_and_other_sites_and_cannot_be_made(
    client: Browser, site: dict[str, Any]
) -> None:
    answer = client.post("/review/sign-in", data={"key": site["secrets"]["reviewer"]})
    said = answer.headers["set-cookie"]
    for word in ("HttpOnly", "SameSite=strict", "Secure", "Path=/review"):
        assert word.lower() in said.lower()
    assert site["secrets"]["reviewer"] not in said
    body, _, code = client.cookies["medqa_session"].partition(".")
    assert client.get("/review").status_code == 200
    client.cookies.clear()
    for forged in (f"{body}A.{code}", f"{body}.{code[:-1]}0", f"{body}.", "x", ""):
        answer = client.get("/review", headers={"cookie": f"medqa_session={forged}"})
        assert (answer.status_code, forged == f"{body}.{code}") == (303, False)


def test_a_session_ends_by_itself_by_hand_and_with_its_key(
    client: Browser, site: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = add(site["keys"], "leaver", "reviewer")
    assert key is not None
    held = sign_in(client, key)
    with monkeypatch.context() as patch:
        later = time.time() + 11 * 3600
        patch.setattr("medqa_plugins.web.sessions.time.time", lambda: later)
        assert client.get("/review").status_code == 303
    assert client.get("/review").status_code == 200
    revoke(site["keys"], "leaver")
    assert client.get("/review").status_code == 303
    # The same name with another key is another session's.
    add(site["keys"], "leaver", "reviewer")
    assert client.get("/review").status_code == 303
    revoke(site["keys"], "leaver")
    held = sign_in(client, site["secrets"]["reader"])
    out = client.post("/review/sign-out", data={"token": held})
    assert out.headers["clear-site-data"] == '"cache"'
    assert client.get("/review").status_code == 303


def test_wrong_keys_from_an_address_are_looked_at_ten_times_a_minute(
    site: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDQA_KEY", "ab" * 32)
    folder = site["folder"]
    app = create_app(
        Settings(db=str(folder / "audit.db"), spool=folder / "spool", keys=site["keys"])
    )
    guessing, near, signed_in = Browser(app, "10.0.0.9"), Browser(app), Browser(app, "10.0.0.9")
    right = {"key": site["secrets"]["reader"]}
    for _ in range(12):  # right ones do not count
        assert signed_in.post("/review/sign-in", data=right).status_code == 303
    begun = time.time()
    for number in range(10):
        answer = guessing.post("/review/sign-in", data={"key": f"medqa_{number}"})
        assert answer.status_code == 401
    for key in ("medqa_10", right["key"]):  # whether it is right is not told any more
        answer = guessing.post("/review/sign-in", data={"key": key})
        assert answer.status_code == 429
        assert "There may be 10 wrong keys from one address in 60 s" in answer.text
        assert answer.headers["content-type"].startswith("text/html")
        assert "set-cookie" not in answer.headers
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert near.post("/review/sign-in", data=right).status_code == 303
    assert signed_in.get("/review").status_code == 200  # who is signed in stays so
    later = begun + 61
    monkeypatch.setattr("limits.storage.memory.time.time", lambda: later)
    monkeypatch.setattr("limits.strategies.time.time", lambda: later)
    assert guessing.post("/review/sign-in", data=right).status_code == 303


def test_pages_carry_a_policy_that_no_inline_script_passes(
    client: Browser, site: dict[str, Any]
) -> None:
    sign_in(client, site["secrets"]["reader"])
    for path in ("", f"/cases/{site['bad']}", "/approvals", "/trends", "/trail", "/nothing"):
        answer = client.get(f"/review{path}")
        if path == "/nothing":
            continue
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", answer.text), path
        assert "http" not in re.sub(r"https?://www\.w3\.org\S*", "", answer.text)
        assert PATIENT not in answer.text


def test_the_worst_case_comes_first_and_filters_hold(client: Browser, site: dict[str, Any]) -> None:
    sign_in(client, site["secrets"]["reader"])

    def listed(query: str) -> list[str]:
        text = client.get(f"/review?{query}").text
        return re.findall(r'class="case" href="/review/cases/([0-9a-f-]+)', text)

    assert listed("") == [site["bad"]]
    assert listed("verdict=all") == [site["bad"], site["good"]]
    assert listed("verdict=diagnostic") == [site["good"]]
    assert listed("verdict=all&modality=CT") == [site["bad"], site["good"]]
    assert listed("verdict=all&modality=MR") == []
    assert listed("verdict=all&profile=ct&page=2") == []
    page = client.get("/review?verdict=all").text
    (code,) = re.findall(r'<option value="(\w{64})">GE MEDICAL SYSTEMS RHAPSODE \(\w{8}\)', page)
    assert listed(f"verdict=all&device={code}") == [site["bad"], site["good"]]
    assert listed(f"verdict=all&device={'0' * 64}") == []
    assert listed("verdict=nonsense&state=nonsense&page=-7") == [site["bad"]]


def test_a_patient_is_found_by_a_form_and_named_nowhere(
    client: Browser, site: dict[str, Any]
) -> None:
    held = sign_in(client, site["secrets"]["reader"])
    found = client.post("/review/search", data={"token": held, "identifier": PATIENT})
    assert set(re.findall(r'href="/review/cases/([0-9a-f-]+)"', found.text)) == {
        site["bad"],
        site["good"],
    }
    assert PATIENT not in found.text
    nobody = client.post("/review/search", data={"token": held, "identifier": "another"})
    assert "0 cases found" in nobody.text
    assert (
        client.post("/review/search", data={"token": "0" * 64, "identifier": "x"}).status_code
        == 403
    )


def test_slices_are_those_of_the_files_in_order_of_position(
    client: Browser, site: dict[str, Any]
) -> None:
    sign_in(client, site["secrets"]["reader"])
    files = [
        dcmread(path) for path in (site["folder"] / "spool" / "files").iterdir() if is_dicom(path)
    ]
    record = json.loads((results(site) / "assessment.json").read_bytes())
    assert record["inputs"]["reference"]["shape"][0] == SLICES
    for side in ("reference", "candidate"):
        uids = set()
        for index in range(SLICES):
            answer = client.get(f"/review/cases/{site['bad']}/slices/{side}/{index}")
            assert answer.headers["medqa-type"] == "int16"
            got = np.frombuffer(answer.content, "<i2").reshape(128, 128)
            same = [
                ds
                for ds in files
                if ds.ImagePositionPatient[2] == 10.0 * index
                and np.array_equal(
                    ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept), got
                )
            ]
            assert same, (side, index)
            uids |= {ds.SeriesInstanceUID for ds in same}
        assert uids
    what = kept(results(site))
    assert what is not None
    bare = min(set(range(SLICES)) - {one.slice for one in what.maps})
    for path in (f"slices/reference/{SLICES}", "slices/reference/-1", f"maps/{bare}", "maps/99"):
        assert client.get(f"/review/cases/{site['bad']}/{path}").status_code == 422


def is_dicom(path: Path) -> bool:
    return path.read_bytes()[128:132] == b"DICM"


def results(site: dict[str, Any]) -> Path:
    with Store.open(str(site["folder"] / "audit.db"), readonly=True) as store:
        found = queries.results(store, site["bad"])
    assert found is not None
    return found


def test_slices_may_be_kept_by_the_browser_and_by_nobody_else(
    client: Browser, site: dict[str, Any]
) -> None:
    sign_in(client, site["secrets"]["reader"])
    path = f"/review/cases/{site['bad']}/slices/reference/0"
    first = client.get(path)
    assert first.headers["cache-control"].startswith("private")
    again = client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(f"/review/cases/{site['bad']}/slices/candidate/0")
    assert other.headers["etag"] != first.headers["etag"]


def test_maps_and_outlines_are_what_the_record_says(client: Browser, site: dict[str, Any]) -> None:
    sign_in(client, site["secrets"]["reader"])
    folder = results(site)
    what = kept(folder)
    record = json.loads((folder / "assessment.json").read_bytes())
    assert what is not None
    assert what.maps[0].slice == BLURRED
    annotation = record["annotation_preservation"][0]
    outline = next(one for one in what.outlines if one.slice == BLURRED)
    assert (outline.kind, outline.name, outline.lpips) == (
        "annotation",
        "nodule",
        annotation["lpips_score"],
    )
    # The contour of a box of pixels runs half a pixel outside their centres.
    points = np.array(outline.paths[0]).reshape(-1, 2)
    assert points.min(axis=0).tolist() == [39.5, 29.5]
    assert points.max(axis=0).tolist() == [69.5, 59.5]
    answer = client.get(f"/review/cases/{site['bad']}/maps/{BLURRED}")
    got = np.frombuffer(answer.content, "<f4").reshape(128, 128)
    assert np.array_equal(got, kept_map(folder, BLURRED).astype(np.float32))
    # A slice's distance is the mean of its map, but for the edges of its layers; a region's, under
    # its own worst display, is at least the mean of the map inside it.
    distance = record["slices"][BLURRED]["lpips"]
    assert got.mean() == pytest.approx(distance, rel=0.05)
    assert 0 < got[30:60, 40:70].mean() <= annotation["lpips_score"] * 1.002


def test_what_is_not_what_was_assessed_is_not_shown(site: dict[str, Any], tmp_path: Path) -> None:
    with Store.open(str(site["folder"] / "audit.db"), readonly=True) as store:
        assessment = store.get(site["bad"])
    folder = results(site)
    assert case(assessment, None).why_not.startswith("it was not sent by a host")
    assert "gone" in case(assessment, tmp_path / "results" / "x").why_not
    there = tmp_path / "results" / folder.name
    there.mkdir(parents=True)
    what = json.loads((folder / "review.json").read_bytes())
    (there / "review.json").write_text(json.dumps(what | {"reference": what["reference"][::-1]}))
    assert "not those of the record" in case(assessment, there).why_not
    (there / "review.json").write_text(json.dumps(what))
    assert "no longer in the spool" in case(assessment, there).why_not
    files = tmp_path / "files"
    files.mkdir()
    for name in {*what["reference"], *what["candidate"]}:
        (files / name).write_bytes((site["folder"] / "spool" / "files" / name).read_bytes())
    shown = case(assessment, there)
    assert shown.why_not == ""
    assert slice_of(Images(), shown, "candidate", 2).pixels.shape == (128, 128)
    changed = files / what["candidate"][2]
    data = bytearray(changed.read_bytes())
    data[-10] ^= 1
    changed.write_bytes(data)
    with pytest.raises(ReadError, match="not what it was"):
        slice_of(Images(), shown, "candidate", 2)
    (there / "review.json").write_text("{}")
    with pytest.raises(ReadError, match="cannot be read"):
        case(assessment, there)


def test_a_signature_is_the_persons_and_needs_role_token_and_comment(
    client: Browser, site: dict[str, Any]
) -> None:
    path = f"/review/cases/{site['bad']}/sign"
    form = {"meaning": "rejected", "comment": "The lung is smeared."}
    reader = sign_in(client, site["secrets"]["reader"])
    assert client.post(path, data=form | {"token": reader}).status_code == 403
    held = sign_in(client, site["secrets"]["reviewer"])
    assert reader != held
    assert client.post(path, data=form | {"token": reader}).status_code == 403
    assert client.post(path, data=form).status_code == 422
    elsewhere = {"sec-fetch-site": "cross-site"}
    assert client.post(path, data=form | {"token": held}, headers=elsewhere).status_code == 403
    blank = form | {"token": held, "comment": "  "}
    assert client.post(path, data=blank).status_code == 422
    assert client.post(path, data=form | {"token": held, "meaning": "liked"}).status_code == 422
    with Store.open(str(site["folder"] / "audit.db"), readonly=True) as store:
        assert histories(store, [site["bad"]])[site["bad"]].signatures == ()
    done = client.post(f"{path}?modality=CT", data=form | {"token": held})
    assert done.headers["location"] == f"/review/cases/{site['bad']}?modality=CT#sign"
    with Store.open(str(site["folder"] / "audit.db"), readonly=True) as store:
        (signature,) = histories(store, [site["bad"]])[site["bad"]].signatures
        assert verify(store).fault is None
    assert (signature.meaning, signature.actor) == ("rejected", "a-reviewer")
    assert signature.comment == "The lung is smeared."
    assert site["bad"] not in client.get("/review").text  # decided: it does not wait any more
    assert site["bad"] in client.get("/review?state=decided").text
    trail = client.get("/review/trail").text
    assert "rejected" in trail
    assert "The lung is smeared." in trail
    assert "The record is whole" in trail


def test_the_trail_says_where_the_record_was_changed(
    site: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from auditing import drop_triggers, plain

    monkeypatch.setenv("MEDQA_KEY", "ab" * 32)
    db = tmp_path / "copy.db"
    with Store.open(str(db)) as store:
        assessed(store, tmp_path / "spool", unchanged)
    drop_triggers(str(db))
    plain(str(db), "UPDATE assessments SET verdict = 'unsuitable'")
    app = create_app(Settings(db=str(db), spool=tmp_path / "spool", keys=site["keys"]))
    client = Browser(app)
    sign_in(client, site["secrets"]["reader"])
    text = client.get("/review/trail").text
    assert "The record is not whole" in text
    assert "was changed: verdict" in text


def test_words_of_strangers_are_text_on_the_page(client: Browser, site: dict[str, Any]) -> None:
    held = sign_in(client, site["secrets"]["reviewer"])
    comment = "<script>alert(1)</script>"
    path = f"/review/cases/{site['good']}/sign"
    form = {"token": held, "meaning": "reviewed", "comment": comment}
    assert client.post(path, data=form).status_code == 303
    text = client.get(f"/review/cases/{site['good']}").text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_charts_reports_and_approvals_come_as_pages(client: Browser, site: dict[str, Any]) -> None:
    sign_in(client, site["secrets"]["reader"])
    charts = client.get("/review/trends/charts")
    assert "frame-ancestors 'self'" in charts.headers["content-security-policy"]
    assert "script-src" not in charts.headers["content-security-policy"]
    report = client.get(f"/review/cases/{site['bad']}/report")
    digest = hashlib.sha256((results(site) / "report.html").read_bytes()).digest()
    assert hashlib.sha256(report.content).digest() == digest
    assert "no approval" in client.get("/review/approvals").text
    missing = client.get("/review/cases/00000000-0000-0000-0000-000000000000")
    assert missing.status_code == 404
    assert "there is no such case" in missing.text.lower()
