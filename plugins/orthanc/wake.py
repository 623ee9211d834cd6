"""Where Orthanc's hook may call: it says that something has arrived, and need not be believed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from medqa.errors import UsageError

__all__ = ["listening"]

_MOST = 64  # bytes; one of Orthanc's ids has 44
_SECONDS = 5.0  # for a caller to say it


@contextmanager
def listening(port: int, wake: threading.Event) -> Iterator[None]:
    """Within it, whoever posts an id to a port of this machine sets an event.

    The id is not used: what is new is asked of Orthanc itself.

    Raises
    ------
    UsageError
        The port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _SECONDS

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            fits = length.isdecimal() and int(length) <= _MOST
            if fits:
                self.rfile.read(int(length))
                wake.set()
            self.close_connection = True
            self.send_response(204 if fits else 413)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing: the id is a code of the patient's identifiers."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UsageError(
            f"port {port}", f"cannot be used ({error.strerror})", "name another"
        ) from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
