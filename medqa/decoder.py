"""Read one image after another, each in a process of its own that is there in milliseconds.

`decode_isolated` starts Python anew for each image, which takes half a second. Here a template, a
process that has imported what reading needs and never opens an image, is kept; each reading is
forked from it. What a hostile file does to its reader, no other image's reader has seen.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from medqa.errors import ReadError, UsageError
from medqa.image import Image
from medqa.isolation import DAMAGED, called, environment, main, received, too_slow

__all__ = ["Decoder"]

_SPARE_SECONDS = 5.0  # beyond the reader's own time, before its template is given up
_STATUS = 4  # bytes of a reader's exit status
_TRIES = 2  # with a template that was killed, and with the next one
_AT_ONCE = 4  # readers: each may take all the memory that one may


class Decoder:
    """Reads images as `decode_isolated` does; by many threads at a time, and a context manager.

    Parameters
    ----------
    seconds, memory_bytes
        Of one reading, as `decode_isolated` takes them.

    Raises
    ------
    UsageError
        The system is not POSIX.
    """

    def __init__(self, *, seconds: float = 60.0, memory_bytes: int = 4 * 2**30) -> None:
        if os.name != "posix":
            raise UsageError("isolation", "needs a POSIX system", "use medqa.read")
        self._seconds, self._memory_bytes = seconds, memory_bytes
        self._guard = threading.Lock()
        self._room = threading.Semaphore(_AT_ONCE)
        self._start()

    def __call__(self, path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Image:
        """Read an image; as `decode_isolated`."""
        asked: str | list[str]
        if isinstance(path, (str, os.PathLike)):
            asked = str(Path(path).absolute())
        else:
            asked = [str(Path(one).absolute()) for one in path]
            if not asked:
                raise ReadError("the image", "has no files", "name at least one")
        with self._room:
            for _ in range(_TRIES):
                found = self._read(asked)
                if found is not None:
                    return found
        raise UsageError("isolation", "its process ends again and again", "see the system's log")

    def close(self) -> None:
        """End the template; the next image starts another."""
        with self._guard:
            self._end()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self, asked: str | list[str]) -> Image | None:
        """Read an image; None where the template was gone."""
        path = Path(asked if isinstance(asked, str) else asked[0])  # which errors name
        with (
            tempfile.TemporaryDirectory(prefix="medqa-") as folder,
            tempfile.TemporaryFile() as request,
            tempfile.TemporaryFile() as answer,
        ):
            request.write(json.dumps([asked, folder]).encode())
            request.flush()
            code = self._code(request, answer, path)
            if code is None:
                return None
            if code in (-signal.SIGALRM, -signal.SIGXCPU):
                raise too_slow(path, self._seconds)
            if code != 0:
                raise ReadError(path, f"ended its reader ({called(code)})", DAMAGED)
            return received(path, answer)

    def _code(self, request: BinaryIO, answer: BinaryIO, path: Path) -> int | None:
        """Exit status of a reader, below 0 for a signal; None where the template was gone."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(self._seconds + _SPARE_SECONDS)
            template = self._send(request, answer, theirs)
            theirs.close()
            try:
                told = ours.recv(_STATUS, socket.MSG_WAITALL)
            except TimeoutError as cause:  # its reader does not even die
                self._give_up(template)
                raise too_slow(path, self._seconds) from cause
            except OSError:
                told = b""
        if len(told) == _STATUS:
            return int.from_bytes(told, "little", signed=True)
        self._give_up(template)
        return None

    def _send(self, *files: BinaryIO | socket.socket) -> _Template:
        """Hand a request to the template; what one that is gone was sent, nobody answers."""
        with self._guard:
            if self._template.process.poll() is not None:
                self._end()
                self._start()
            with suppress(OSError):
                socket.send_fds(self._template.line, [b"r"], [one.fileno() for one in files])
            return self._template

    def _give_up(self, template: _Template) -> None:
        """End a template, which may be dying just now, unless another thread has replaced it."""
        with self._guard:
            if self._template is template:
                self._end()

    def _start(self) -> None:
        self._template = _begin(self._seconds, self._memory_bytes)
        # Also where nobody closes us, as at the end of the process.
        self._end = weakref.finalize(self, self._template.end)


@dataclass(frozen=True)
class _Template:
    """The process that readers are forked from, and the line to it."""

    process: subprocess.Popen[bytes]
    line: socket.socket
    folder: tempfile.TemporaryDirectory[str]

    def end(self) -> None:
        """End it, and its readers."""
        self.line.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.folder.cleanup()


def _begin(seconds: float, memory_bytes: int) -> _Template:
    folder = tempfile.TemporaryDirectory(prefix="medqa-")
    ours, theirs = socket.socketpair()
    call = [sys.executable, "-P", "-m", "medqa.decoder"]
    with theirs:
        process = subprocess.Popen(  # noqa: S603 (no shell, our own interpreter)
            [*call, str(theirs.fileno()), str(seconds), str(memory_bytes)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder.name,
            env=environment(folder.name),
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # a Control-C is for us, and its readers end with it
        )
    return _Template(process, ours, folder)


# The template -------------------------------------------------------------------------------------


def _serve(line: socket.socket, seconds: str, memory_bytes: str) -> None:
    """Fork a reader for each request, and tell how it ended, until nobody asks any more."""
    import medqa.reader  # noqa: F401 (what every reader needs is there before it is forked)

    with selectors.DefaultSelector() as waiting:
        waiting.register(line, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.data is None:
                    _, files, _, _ = socket.recv_fds(line, 1, 3)
                    if len(files) != 3:
                        return
                    pid, end = _fork(files, seconds, memory_bytes)
                    waiting.register(end, selectors.EVENT_READ, (pid, files[2]))
                else:
                    waiting.unregister(key.fd)
                    os.close(key.fd)
                    _tell(*key.data)


def _fork(files: list[int], seconds: str, memory_bytes: str) -> tuple[int, int]:
    """Fork a reader; return its id, and a pipe that is at its end once it has ended."""
    request, answer, _ = files
    end, held = os.pipe()
    pid = os.fork()
    if pid:
        for one in (request, answer, held):
            os.close(one)
        return pid, end
    try:
        os.dup2(answer, 1)
        asked, folder = json.loads(os.pread(request, os.fstat(request).st_size, 0))
        os.chdir(folder)
        os.environ["TMPDIR"] = os.environ["HOME"] = tempfile.tempdir = folder
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(asked).encode())
            file.seek(0)
            os.dup2(file.fileno(), 0)
        # All but the pipe that ends with us: what others asked for is not this reader's business.
        os.closerange(3, held)
        os.closerange(held + 1, os.sysconf("SC_OPEN_MAX"))
        signal.setitimer(signal.ITIMER_REAL, float(seconds))
        main(str(math.ceil(float(seconds))), memory_bytes)
    finally:
        os._exit(1)


def _tell(pid: int, told: int) -> None:
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    with suppress(OSError), socket.socket(fileno=told) as line:
        line.send(code.to_bytes(_STATUS, "little", signed=True))


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), *sys.argv[2:])
