"""The services of a department, each a process that is killed and started again."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
from audit import Cluster
from machine import MIB
from soak_wire import Wire

from medqa.audit import Store

__all__ = ["LOGIN", "Service", "Site", "running"]

LOGIN = ("medqa", "only-here")
DOWN_SECONDS = 3.0  # from a kill to the start


class Service:
    """A process that is started again when it ends, as by systemd."""

    def __init__(self, name: str, command: list[str], folder: Path, port: int | None) -> None:
        self.name, self.log, self._command, self._port = name, folder / f"{name}.log", command, port
        self.guard = threading.Lock()
        self.killed, self.ended = 0, 0
        self.back: list[float] = []
        self.memory: list[tuple[float, float]] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                self._command, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):  # the group: a worker's processes too
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def keep(self) -> None:
        """Start it again where it has ended by itself."""
        if self.guard.acquire(blocking=False):
            try:
                if self.process is not None and self.process.poll() is not None:
                    self.ended += 1
                    self.start()
            finally:
                self.guard.release()

    def fault(self, then: Callable[[], None] = lambda: None) -> None:
        """Kill it, do what follows at once, and start it again."""
        with self.guard:
            self.kill()
            then()
            self.killed += 1
            time.sleep(DOWN_SECONDS)
            begun = time.monotonic()
            self.start()
            self.wait()
            if self._port is not None:
                self.back.append(time.monotonic() - begun)

    def wait(self, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while self._port is not None and not listens(self._port):
            if self.process is None or self.process.poll() is not None:
                self.start()  # as without a database
            if time.monotonic() > end:
                raise SystemExit(f"{self.name} does not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.2)

    def measure(self, at: float) -> None:
        with suppress(psutil.Error, AttributeError):
            process = psutil.Process(self.process.pid)  # type: ignore[union-attr]
            tree = [process, *process.children(recursive=True)]
            self.memory.append((at, sum(one.memory_info().rss for one in tree) / MIB))


class Site:
    """All services of a department, and the wires between them that can be cut."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster, self.url = folder, cluster, cluster.url
        self.database_killed, self.database_back = 0, list[float]()
        web, self.node_port, orthanc, self.archive_port = [free_port() for _ in range(4)]
        self.wires = {
            "C-STORE to the node": Wire(self.node_port),
            "POST /assess": Wire(web),
            "results to Orthanc by C-STORE": Wire(self.archive_port),
            "results to Orthanc by REST": Wire(orthanc),
        }
        self.web, self.orthanc = f"http://127.0.0.1:{web}", f"http://127.0.0.1:{orthanc}"
        self.spool = folder / "spool"
        keys = folder / "keys.json"
        me = [sys.executable, "-m", "medqa"]
        add = [*me, "web-key", "add", "soak", "--role", "admin", "--keys", str(keys)]
        self.key = subprocess.check_output(add, text=True).strip()  # noqa: S603
        self._configure(folder, orthanc)
        os.environ["MEDQA_SPOOL"] = str(self.spool)
        serve = ["serve", "--workers", "0", "--keys", str(keys), "--port", str(web)]
        archive = "ORTHANC@127.0.0.1"
        node = ["dicom-node", "--port", str(self.node_port), "--allow", "SENDER"]
        node += ["--quiet-seconds", "2", "--peer", f"{archive}:{self.archive_port}"]
        node += ["--forward", f"{archive}:{self.wires['results to Orthanc by C-STORE'].port}"]
        back = f"http://127.0.0.1:{self.wires['results to Orthanc by REST'].port}"
        commands: dict[str, tuple[list[str], int | None]] = {
            "Orthanc": (["/usr/sbin/Orthanc", str(folder / "orthanc.json")], orthanc),
            "medqa worker": ([*me, "worker", "--jobs", "1"], None),
            "medqa dicom-node": ([*me, *node], self.node_port),
            "medqa serve": ([*me, *serve], web),
            "medqa orthanc": ([*me, "orthanc", back, "--every", "2"], None),
        }
        self.services = {
            name: Service(name, command, folder, port) for name, (command, port) in commands.items()
        }

    def _configure(self, folder: Path, port: int) -> None:
        archive = str(folder / "archive")
        settings = {
            "StorageDirectory": archive,
            "IndexDirectory": archive,
            "HttpPort": port,
            "DicomPort": self.archive_port,
            "DicomAet": "ORTHANC",
            "DicomModalities": {"medqa": ["MEDQA", "127.0.0.1", self.node_port]},
            "StableAge": 2,
            "AuthenticationEnabled": True,
            "RegisteredUsers": dict([LOGIN]),
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))

    def database_fault(self) -> None:
        self.cluster.stop("immediate")
        self.database_killed += 1
        time.sleep(DOWN_SECONDS)
        begun = time.monotonic()
        self.cluster.start()
        self.database_back.append(time.monotonic() - begun)

    def writes_results(self) -> bool:
        """Whether a worker is writing the results of a job now."""
        places = (self.spool / "results", self.spool / "orthanc" / "results")
        return any(True for place in places for _ in place.glob(".*.part"))

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, connect_timeout=5) as connection:
            return connection.execute(statement).fetchall()


@contextmanager
def running(minutes: float) -> Iterator[Site]:
    """Everything started, and gone afterwards."""
    with ExitStack() as stack:
        names = [
            stack.enter_context(tempfile.TemporaryDirectory(prefix=f"medqa-soak-{which}-"))
            for which in ("pg", "all")
        ]
        folder = Path(names[1])
        os.environ |= {
            "MEDQA_KEY": secrets.token_hex(32),
            "MEDQA_ORTHANC_USER": LOGIN[0],
            "MEDQA_ORTHANC_PASSWORD": LOGIN[1],
            "XDG_DATA_HOME": str(folder / "data"),
            "OMP_NUM_THREADS": "1",
        }
        cluster = Cluster(Path(names[0]))
        stack.callback(cluster.stop, "immediate")
        os.environ["MEDQA_DB"] = cluster.url
        Store.open(cluster.url).close()
        site = Site(folder, cluster)
        for wire in site.wires.values():
            stack.callback(wire.close)
        for one in site.services.values():
            stack.callback(one.kill)
            one.start()
            one.wait()
        time.sleep(min(10.0, 6 * minutes))  # the bridge has noted where Orthanc's changes end
        yield site


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
