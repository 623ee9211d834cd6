"""Around every request: its limits, its headers, its line in the log, and the last resort."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import uuid
from collections.abc import Mapping
from pathlib import PurePath

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .problems import Refusal, answer
from .settings import Limits

__all__ = ["Guard"]

_LOG = logging.getLogger("medqa.web")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_TLS_HEADERS = {"Strict-Transport-Security": "max-age=31536000"}
# A browser says where the page is from that sends a request; other clients say nothing.
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN = frozenset({"none", "same-origin"})
_CLOSE = {"Connection": "close"}  # or what is still sent would have to be received


class Guard:
    """ASGI middleware, outside of everything else.

    A body that is too long is refused by its announced length, or at the first byte too many; a
    sender that goes silent is cut off. Headers that a response sets itself are kept. An error
    that nobody expected is answered and logged by its kind and place: its words may name a
    patient.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, metrics: Metrics, tls: bool) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._headers: Mapping[str, str] = _HEADERS | (_TLS_HEADERS if tls else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or whatever else the server has to say."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                headers["X-Request-ID"] = request_id
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, self._limited(receive), sent)
        except Refusal as refusal:
            await answer(refusal, request_id)(scope, receive, sent)
        except Exception as error:
            _LOG.error("request %s: %s", request_id, _place(error))
            if not status:
                broken = Refusal(500, "an error of medqa's own", "report it with the request's id")
                await answer(broken, request_id)(scope, receive, sent)
        finally:
            self._note(scope, status, time.perf_counter() - begun, request_id)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if scope["method"] not in _SAFE and headers.get("sec-fetch-site", "none") not in _OWN:
            raise Refusal(403, "a page of another site sent it", "send it from our own")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > self._limits.body_bytes:
            raise self._too_long()

    def _limited(self, receive: Receive) -> Receive:
        received = 0
        whole = False

        async def limited() -> Message:
            nonlocal received, whole
            if whole:  # only the end of the connection is still to come
                return await receive()
            try:
                async with asyncio.timeout(self._limits.silence_seconds):
                    message = await receive()
            except TimeoutError:
                raise Refusal(408, "the body stopped coming", "send it again", _CLOSE) from None
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if received > self._limits.body_bytes:
                    raise self._too_long()
            return message

        return limited

    def _too_long(self) -> Refusal:
        most = self._limits.body_bytes / 2**20
        return Refusal(413, f"a request may have {most:g} MiB", "send fewer images", _CLOSE)

    def _note(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        # The route's pattern, not the path: whatever a caller writes into a path is not logged.
        route = getattr(scope.get("route"), "path", "-")
        method = scope["method"] if route != "-" else "-"
        self._metrics.note(method, route, status, seconds)
        caller = scope["state"].get("caller", "-")
        _LOG.info("%s %s %s %s %.3f s %s", method, route, status, caller, seconds, request_id)


def _place(error: BaseException) -> str:
    """Kind of an error and where it was raised, without its words."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{PurePath(frame.filename).name}:{frame.lineno}" for frame in frames[-3:]]
    return f"{type(error).__name__} at {' > '.join(where)}"
