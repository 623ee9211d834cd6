"""What every request shares, and who may ask: what routers import."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from limits import RateLimitItem
from limits.strategies import MovingWindowRateLimiter

from medqa.audit import Store
from medqa.queue.submission import Spool

from .keys import Caller, Keyring, Right
from .metrics import Metrics
from .problems import Refusal
from .settings import Settings
from .waiting import Waiter

__all__ = [
    "Admin",
    "Reader",
    "Reviewer",
    "Service",
    "Serving",
    "Writer",
    "authenticate",
    "service",
    "too_often",
]


@dataclass(frozen=True)
class Service:
    """A running service.

    Parameters
    ----------
    keyring
        None where nobody is asked who he is.
    receiving
        Held while a body with files is received.
    """

    settings: Settings
    store: Store
    spool: Spool
    keyring: Keyring | None
    metrics: Metrics
    waiter: Waiter
    limiter: MovingWindowRateLimiter
    rate: RateLimitItem
    receiving: asyncio.Semaphore


def service(request: Request) -> Service:
    """Return the service that a request is to."""
    found: Service = request.app.state.service
    return found


Serving = Annotated[Service, Depends(service)]
_BEARER = HTTPBearer(auto_error=False, scheme_name="key", description="An API key.")
_NOBODY = Caller("anybody", "admin")
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


def authenticate(request: Request, key: str | None) -> Caller | None:
    """Who sent a request: by an API key, or by the word of the proxy; None for nobody we know.

    Parameters
    ----------
    key
        The key, where there is one: then nothing else counts.

    Raises
    ------
    StoreError
        The file of the keys cannot be read.
    """
    one = service(request)
    if one.keyring is None:  # a page elsewhere could send a browser here under another name
        return _NOBODY if request.url.hostname in _THIS_MACHINE else None
    if key is not None:
        return one.keyring.by_key(key)
    proxy = one.settings.proxy
    if proxy is None or request.client is None or request.client.host not in proxy.addresses:
        return None
    names = request.headers.getlist(proxy.header)
    return one.keyring.by_name(names[0]) if len(names) == 1 else None


def too_often(one: Service, rate: RateLimitItem, what: str, *who: str) -> Refusal:
    """Return the refusal of somebody who has reached a limit, with the time until he may again."""
    reset, _ = one.limiter.get_window_stats(rate, *who)
    seconds = max(1, math.ceil(reset - time.time()))
    return Refusal(
        429,
        f"there may be {rate.amount} {what} in {rate.get_expiry()} s",
        f"try again in {seconds} s",
        {"Retry-After": str(seconds)},
    )


def _allow(right: Right) -> Callable[..., Awaitable[Caller]]:
    """Make a dependency that lets a caller through who has a right, and is within his rate."""

    async def allowed(
        request: Request,
        serving: Serving,
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    ) -> Caller:
        caller = authenticate(request, None if given is None else given.credentials)
        if caller is None:
            raise Refusal(
                401,
                "the request says not who sends it, or its key is no longer good",
                "send Authorization: Bearer and an API key",
                {"WWW-Authenticate": "Bearer"},
            )
        request.state.caller = caller.name
        if not serving.limiter.hit(serving.rate, caller.name):
            raise too_often(serving, serving.rate, "requests", caller.name)
        if not caller.may(right):
            raise Refusal(403, f"a {caller.role} may not do this", "use the key of another role")
        return caller

    return allowed


Reader = Annotated[Caller, Depends(_allow("read"))]
Writer = Annotated[Caller, Depends(_allow("write"))]
Reviewer = Annotated[Caller, Depends(_allow("sign"))]
Admin = Annotated[Caller, Depends(_allow("administer"))]
