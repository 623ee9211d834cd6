"""Readers that are forked: equal to reading here, and what ends one reader harms nothing else."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile import dicom, native
from test_isolation import differences

from medqa.decoder import Decoder
from medqa.errors import ReadError, UsageError
from medqa.reader import read

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a fork is POSIX's")
# What a hostile file may do, said by its name, in the template's own interpreter.
_TRAP = """
import medqa.reader, os, signal, sys, time
kept, known = medqa.reader.read, []
def read(path):
    name = os.path.basename(path)
    if name == "crash.dcm": os.kill(os.getpid(), signal.SIGSEGV)
    if name == "sleep.dcm": time.sleep(60)
    if name == "spin.dcm":
        while True: pass
    if name == "deaf.dcm":
        signal.signal(signal.SIGALRM, signal.SIG_IGN); time.sleep(60)
    if name == "secret.dcm":
        said = [name, str(known), repr(sorted(os.environ)), str(os.listdir("/proc/self/fd"))]
        raise medqa.errors.ReadError(name, " ".join(said), "")
    known.append(name)
    return kept(path)
if sys.argv[0] == "-m": medqa.reader.read = read
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("good", "crash", "sleep", "spin", "deaf", "secret"):
        (tmp_path / f"{name}.dcm").write_bytes(native())
    return tmp_path


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_TRAP)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setenv("MEDQA_KEY", "ab" * 32)
    with Decoder(seconds=2.0) as decoder:
        yield decoder


def test_it_reads_what_we_read(shared_data: Path) -> None:
    series = sorted((shared_data / "ct/small_series_torchio").glob("*.dcm"))
    with Decoder() as decoder:
        for path in (shared_data / "ct/misc/CT_small.dcm", series[0].parent, series[::-1]):
            assert differences(read(path), decoder(path)) == []
        names = ["/data/" + "x" * 200 + f"/{number}" for number in range(2000)]
        with pytest.raises(ReadError, match="does not exist"):
            decoder(names)  # of which the names alone take 400 kB
        with pytest.raises(ReadError, match="has no files"):
            decoder([])


def test_errors_come_back_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "report.dcm"
    path.write_bytes(dicom())
    with pytest.raises(ReadError) as here:
        read(path)
    with Decoder() as decoder, pytest.raises(ReadError) as there:
        decoder(path)
    assert str(there.value) == str(here.value)


def test_memory_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    size = 12_000
    path.write_bytes(native(rows=size, columns=size, pixels=bytes(size * size)))
    with (
        Decoder(memory_bytes=400 * 2**20) as decoder,
        pytest.raises(ReadError, match=r"took more than 0.391 GiB of memory"),
    ):
        decoder(path)


def test_what_ends_a_reader_ends_no_other(trapped: Decoder, images: Path) -> None:
    expected = read(images / "good.dcm")
    with ThreadPoolExecutor(4) as pool:
        slept = pool.submit(trapped, images / "sleep.dcm")
        spun = pool.submit(trapped, images / "spin.dcm")
        begun = time.monotonic()
        with pytest.raises(ReadError, match=r"ended its reader \(SIGSEGV\)"):
            trapped(images / "crash.dcm")
        assert differences(expected, trapped(images / "good.dcm")) == []
        assert not slept.done() or time.monotonic() - begun > 2  # it was held up by neither
        for one in (slept, spun):
            with pytest.raises(ReadError, match="took longer than 2 s"):
                one.result(20)
    assert differences(expected, trapped(images / "good.dcm")) == []


def test_a_reader_that_does_not_even_die_is_given_up(
    trapped: Decoder, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medqa.decoder._SPARE_SECONDS", 0.5)
    with pytest.raises(ReadError, match="took longer than 2 s"):
        trapped(images / "deaf.dcm")
    assert trapped(images / "good.dcm").shape == read(images / "good.dcm").shape


def test_a_reader_knows_no_secret_and_no_other_image(trapped: Decoder, images: Path) -> None:
    trapped(images / "good.dcm")
    with pytest.raises(ReadError) as told:
        trapped(images / "secret.dcm")
    assert "secret.dcm [] " in told.value.reason  # nothing was read in this process before
    assert "MEDQA" not in told.value.reason
    files = told.value.reason.rpartition("[")[2]
    assert files.count(",") <= 6, files  # standard streams, the answer, its own ends and folder


def test_a_template_that_was_killed_is_replaced(images: Path) -> None:
    with Decoder() as decoder:
        decoder(images / "good.dcm")
        first = decoder._template.process
        os.kill(first.pid, signal.SIGKILL)
        decoder(images / "good.dcm")
        assert decoder._template.process.pid != first.pid
        second = decoder._template.process
    assert second.poll() is not None
    assert decoder(images / "good.dcm").shape == (1, 4, 4)  # and begins anew
    decoder.close()


def test_one_that_is_dying_is_replaced(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Decoder() as decoder:
        first = decoder._template.process
        os.kill(first.pid, signal.SIGKILL)
        # Its line is closed a moment before the system counts it as ended.
        monkeypatch.setattr(first, "poll", lambda: first.returncode)
        decoder(images / "good.dcm")
        assert decoder._template.process.pid != first.pid


def test_one_that_cannot_begin_says_so(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with Decoder() as decoder, pytest.raises(UsageError, match="ends again and again"):
        decoder(images / "good.dcm")


def test_one_that_nobody_closes_ends_with_its_owner(images: Path) -> None:
    decoder = Decoder()
    decoder(images / "good.dcm")
    process = decoder._template.process
    del decoder
    assert process.poll() is not None


def test_many_threads_share_one(images: Path) -> None:
    with Decoder() as decoder, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(decoder, [images / "good.dcm"] * 32))
        assert len({one.pixels_sha256 for one in found}) == 1
        assert threading.active_count() < 40
