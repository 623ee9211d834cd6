"""A relay between two services that can stop in the middle of what it carries."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

__all__ = ["Cut", "Wire"]

_PIECE = 2048  # bytes that are passed on at a time, so that there is a middle to stop in
_HELD_SECONDS = 30.0  # for which a connection is held back at most


class Cut:
    """A moment in the middle of a transfer: reached, held, and over.

    Parameters
    ----------
    marker
        What the transfer begins with, as the request line of HTTP; b"" is the connection.
    after
        How many bytes of it are passed on before it stops.
    """

    def __init__(self, marker: bytes, after: int) -> None:
        self.marker, self.after = marker, after
        self.reached, self.over = threading.Event(), threading.Event()


class Wire:
    """Passes on what comes in at its own port to another port of this machine."""

    def __init__(self, to: int) -> None:
        self._to, self._lock = to, threading.Lock()
        self._cut: Cut | None = None
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, cut: Cut) -> None:
        """Stop in the next transfer."""
        with self._lock:
            self._cut = cut

    def disarm(self) -> None:
        """Stop nowhere any more."""
        with self._lock:
            self._cut = None

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._server.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        with near, suppress(OSError), socket.create_connection(("127.0.0.1", self._to)) as far:
            back = threading.Thread(target=_pass_on, args=(far, near), daemon=True)
            back.start()
            if self._carry(near, far):
                back.join()
            else:  # cut: at both ends at once
                for one in (near, far):
                    with suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)

    def _carry(self, near: socket.socket, far: socket.socket) -> bool:
        """Pass on what the caller sends; return False where it was stopped in the middle."""
        begun: Cut | None = None
        carried = 0
        with suppress(OSError):
            while piece := near.recv(_PIECE):
                cut = self._cut
                if cut is not None and begun is not cut and cut.marker in piece:
                    begun, carried = cut, 0
                carried += len(piece)
                if begun is not None and carried >= begun.after and self._take(begun):
                    far.sendall(piece[: len(piece) // 2])
                    begun.reached.set()
                    begun.over.wait(_HELD_SECONDS)
                    return False
                far.sendall(piece)
            far.shutdown(socket.SHUT_WR)
        return True

    def _take(self, cut: Cut) -> bool:
        """Whether this connection is the one to stop: the first that gets so far."""
        with self._lock:
            mine = self._cut is cut
            if mine:
                self._cut = None
            return mine


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
