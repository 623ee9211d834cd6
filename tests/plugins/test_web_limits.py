"""What the web service refuses: strangers, too much, too many, too fast."""

from __future__ import annotations

import gzip
import logging
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from auditing import plain
from web_service import Made, bearer, ct_like, listening, made, pair, request, working

from medqa.errors import StoreError, UsageError
from medqa_plugins.web import keys
from medqa_plugins.web.settings import Limits, Proxy, Settings

_SOME = "0" * 8 + "-0000-0000-0000-" + "0" * 12
_READ = ("reader", "writer", "reviewer", "admin")
_ENDPOINTS = [
    ("POST", "/assess", ("writer", "admin")),
    ("POST", "/assess/batch", ("writer", "admin")),
    ("GET", f"/jobs/{_SOME}", _READ),
    ("GET", "/assessments", _READ),
    ("GET", f"/assessments/{_SOME}", _READ),
    ("GET", f"/assessments/{_SOME}/report", _READ),
    ("GET", f"/assessments/{_SOME}/map.png", _READ),
    ("GET", "/approvals", _READ),
    ("GET", "/profiles", _READ),
    ("GET", "/metrics", _READ),
]


def test_each_role_may_do_its_own_and_strangers_nothing(tmp_path: Path) -> None:
    site = made(tmp_path)
    strangers = [{}, bearer("medqa_wrong"), bearer(""), {"Authorization": "Basic YTpi"}]
    for method, path, roles in _ENDPOINTS:
        for headers in strangers:
            answer = request(site.app, method, path, headers=headers)
            assert answer.status_code == 401, (path, headers)
            assert answer.headers["www-authenticate"] == "Bearer"
        for role, key in site.keys.items():
            status = request(site.app, method, path, headers=bearer(key)).status_code
            assert (status == 403) == (role not in roles), (path, role, status)
            assert status in (200, 403, 404, 415), (path, role, status)
    for path in ("/health", "/health/live", "/health/ready", "/openapi.json"):
        assert request(site.app, "GET", path).status_code == 200
    documented = request(site.app, "GET", "/openapi.json").json()["paths"]
    ours = {path for path in documented if not path.startswith("/health")}
    tried = {path.replace(_SOME, "{id}") for _, path, _ in _ENDPOINTS}
    named = {path.replace("{job_id}", "{id}").replace("{assessment_id}", "{id}") for path in ours}
    assert named == tried  # no endpoint goes untried


def test_a_revoked_key_is_refused_at_once_and_the_file_holds_no_key(tmp_path: Path) -> None:
    site = made(tmp_path)
    file = tmp_path / "keys.json"
    key = bearer(site.keys["reader"])
    assert request(site.app, "GET", "/assessments", headers=key).status_code == 200
    keys.revoke(file, "reader-1")
    assert request(site.app, "GET", "/assessments", headers=key).status_code == 401
    assert file.stat().st_mode & 0o777 == 0o600
    assert not any(one in file.read_text() for one in site.keys.values())
    assert all(len(one) > 40 for one in site.keys.values())
    with pytest.raises(UsageError):
        keys.add(file, "writer-1", "admin")
    with pytest.raises(UsageError):
        keys.add(file, "DOE^JANE", "admin")
    with pytest.raises(UsageError):
        keys.revoke(file, "reader-1")
    file.chmod(0o644)
    with pytest.raises(StoreError):
        keys.listed(file)


def test_the_proxy_is_believed_and_nobody_else(tmp_path: Path) -> None:
    site = made(tmp_path, proxy=Proxy("X-Remote-User", frozenset({"10.0.0.5"})))
    keys.add(tmp_path / "keys.json", "jane@example.org", "reader", by_proxy=True)
    jane = {"X-Remote-User": "jane@example.org"}

    def status(headers: object, peer: str) -> int:
        client = (peer, 1)
        return request(site.app, "GET", "/assessments", headers=headers, client=client).status_code

    assert status(jane, "10.0.0.5") == 200
    assert status(jane, "10.0.0.6") == 401
    assert status({**jane, "X-Forwarded-For": "10.0.0.5"}, "10.0.0.6") == 401
    assert status({"X-Remote-User": "writer-1"}, "10.0.0.5") == 401  # he has a key to show
    assert status([("X-Remote-User", "nobody"), *jane.items()], "10.0.0.5") == 401
    assert status({**jane, **bearer("medqa_wrong")}, "10.0.0.5") == 401


def test_a_caller_who_asks_too_often_is_told_to_wait_and_others_are_not(tmp_path: Path) -> None:
    site = made(tmp_path, Limits(rate="3/minute"))
    key = bearer(site.keys["reader"])
    status = [request(site.app, "GET", "/profiles", headers=key) for _ in range(5)]
    assert [one.status_code for one in status] == [200, 200, 200, 429, 429]
    assert 1 <= int(status[-1].headers["retry-after"]) <= 60
    other = bearer(site.keys["admin"])
    assert request(site.app, "GET", "/profiles", headers=other).status_code == 200
    with pytest.raises(UsageError):
        made(tmp_path / "other", Limits(rate="often"))


def test_every_answer_carries_the_security_headers(tmp_path: Path) -> None:
    site = made(tmp_path, tls=True)
    for path in ("/health", "/nothing", "/assessments"):
        headers = request(site.app, "GET", path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert headers["strict-transport-security"] == "max-age=31536000"
    crossed = {**bearer(site.keys["writer"]), "Sec-Fetch-Site": "cross-site"}
    assert request(site.app, "POST", "/assess", headers=crossed).status_code == 403


def test_an_error_of_our_own_is_told_without_its_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = made(tmp_path)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("patient DOE^JANE")

    monkeypatch.setattr("medqa_plugins.web.queries.page", broken)
    caplog.set_level(logging.DEBUG)
    key = bearer(site.keys["reader"])
    answer = request(site.app, "GET", "/assessments", headers=key)
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "DOE" not in answer.text + caplog.text
    assert f"request {answer.json()['request_id']}: RuntimeError at " in caplog.text
    # A database that is gone.
    monkeypatch.undo()
    (tmp_path / "audit.db").unlink()
    gone = request(site.app, "GET", "/assessments", headers=key)
    assert gone.status_code == 503
    assert str(tmp_path) not in gone.text
    assert request(site.app, "GET", "/health/ready").status_code == 503
    assert request(site.app, "GET", "/health/live").status_code == 200


@pytest.fixture
def small(tmp_path: Path) -> Made:
    return made(tmp_path, Limits(body_bytes=200_000, files=4, pairs=2, silence_seconds=1.0))


def test_a_body_that_is_too_long_is_refused_while_it_comes(small: Made) -> None:
    key = bearer(small.keys["writer"])
    boundary = {"Content-Type": "multipart/form-data; boundary=b"}
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="reference"; filename="x"\r\n\r\n'
        for _ in range(4000):
            sent += 1
            yield bytes(10_000)

    with listening(small.app) as address:
        announced = httpx.post(f"{address}/assess", headers=key, files=pair(bytes(300_000)))
        assert announced.status_code == 413
        try:
            status = httpx.post(
                f"{address}/assess", headers={**key, **boundary}, content=endless()
            ).status_code
        except httpx.TransportError:  # cut off before the answer was read
            status = 413
        assert status == 413
        assert sent < 4000  # of 40 MB, a part
        assert httpx.get(f"{address}/health").status_code == 200
    assert not (small.folder / "spool/files").exists()


def test_a_sender_who_goes_silent_is_cut_off(small: Made) -> None:
    with listening(small.app) as address:
        port = urlsplit(address).port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
            line.sendall(
                b"POST /assess HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n"
                b"Content-Type: multipart/form-data; boundary=b\r\n"
                b"Authorization: Bearer " + small.keys["writer"].encode() + b"\r\n\r\n--b"
            )
            answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("path", "files", "data", "status"),
    [
        ("/assess", pair(b"x") + pair(b"y") + pair(b"z"), {}, 400),  # 6 files
        ("/assess", pair(b"x"), {"task": "r" * 2000}, 400),
        ("/assess", pair(b"x"), {f"f{n}": "1" for n in range(9)}, 400),
        ("/assess", pair(b"x"), {"surprise": "1"}, 422),
        ("/assess", pair(b"x"), {"profile": "/etc/passwd.toml"}, 422),
        ("/assess", pair(b"x"), {"profile": "http://elsewhere.example/x.toml"}, 422),
        ("/assess", pair(b"x"), {"backbone": "../x.safetensors"}, 422),
        ("/assess", pair(b"x")[:1], {}, 422),
        ("/assess", pair(b"x", number=1), {}, 422),
        ("/assess/batch", pair(b"x"), {}, 422),
        ("/assess/batch", pair(b"x", number=1)[:1], {}, 422),
    ],
)
def test_what_is_no_request_is_refused(
    small: Made, path: str, files: object, data: object, status: int
) -> None:
    key = bearer(small.keys["writer"])
    answer = request(small.app, "POST", path, headers=key, files=files, data=data)
    assert answer.status_code == status, answer.text
    assert "passwd" not in answer.text
    assert plain(small.db, "SELECT count(*) FROM jobs") == [(0,)]


def test_too_many_pairs_are_refused(tmp_path: Path) -> None:
    site = made(tmp_path, Limits(pairs=1))
    answer = request(
        site.app,
        "POST",
        "/assess/batch",
        headers=bearer(site.keys["writer"]),
        files=[*pair(b"x", number=1), *pair(b"y", number=2)],
    )
    assert answer.status_code == 413


def test_other_bodies_are_refused(small: Made) -> None:
    key = bearer(small.keys["writer"])
    for more in ({"json": {"reference": "/etc/passwd"}}, {"data": {"reference": "x"}}, {}):
        assert request(small.app, "POST", "/assess", headers=key, **more).status_code == 415
    boundary = {**key, "Content-Type": "multipart/form-data; boundary=b"}
    broken = request(small.app, "POST", "/assess", headers=boundary, content=b"no boundary")
    assert broken.status_code == 400


def test_what_inflates_to_too_much_is_not_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDQA_MAX_FILE_GIB", "0.05")
    monkeypatch.setenv("MEDQA_MAX_IMAGE_GIB", "0.05")
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 1024, 1024, 200, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    bomb = gzip.compress(bytes(header) + bytes(2 * 1024 * 1024 * 200))
    assert len(bomb) < 500_000
    site = made(tmp_path)
    with listening(site.app) as address, working(site.db):
        answer = httpx.post(
            f"{address}/assess",
            headers=bearer(site.keys["writer"]),
            files=pair(bomb, bomb),
            timeout=60,
        )
    assert answer.status_code == 200
    assert answer.json()["verdict"] == "not_assessable"
    assert "GiB" in answer.json()["reasons"][0]["text"], answer.json()["reasons"]


def test_when_the_queue_is_full_senders_wait_and_nothing_is_lost(tmp_path: Path) -> None:
    site = made(tmp_path, Limits(waiting=5))
    key = bearer(site.keys["writer"])
    bodies = [ct_like(n) for n in range(60)]
    with listening(site.app) as address, working(site.db):

        def send(body: bytes) -> httpx.Response:
            return httpx.post(f"{address}/assess", headers=key, files=pair(body), timeout=60)

        with ThreadPoolExecutor(60) as pool:
            answers = list(pool.map(send, bodies))
    status = [one.status_code for one in answers]
    assert set(status) == {200, 429}, set(status)
    assert all(int(one.headers["retry-after"]) > 0 for one in answers if one.status_code == 429)
    taken = sorted(one.json()["assessment_id"] for one in answers if one.status_code == 200)
    recorded = sorted(one[0] for one in plain(site.db, "SELECT assessment_id FROM assessments"))
    assert recorded == taken  # each once, and none that was refused
    assert len(set(taken)) == len(taken)


def test_nobody_is_asked_on_this_machine_only(tmp_path: Path) -> None:
    from medqa_plugins.web.app import create_app

    app = create_app(Settings(str(tmp_path / "audit.db"), tmp_path / "spool", None))
    assert request(app, "GET", "/profiles").status_code == 200
    # A page elsewhere whose name was made to lead here.
    assert request(app, "GET", "/profiles", base="http://rebound.example").status_code == 401
