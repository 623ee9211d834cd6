"""Sessions of people: an API key becomes a signed cookie, and every form carries a token.

The cookie says whose it is and until when, signed with a key that is derived from the record's own
secret: nothing is kept on the server, and several processes serve one session. It is good only as
long as the key that it was made with is: a revoked key ends its sessions at once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Response
from limits import RateLimitItemPerMinute

from .keys import Caller, listed
from .problems import Refusal
from .service import Service, authenticate, service, too_often

__all__ = [
    "HOURS",
    "SignedOutError",
    "Visiting",
    "Visitor",
    "check_form",
    "check_origin",
    "end",
    "start",
    "visitor",
]

#: How long a session lasts: a working day.
HOURS = 10
_WRONG = RateLimitItemPerMinute(10)  # keys, from one address; a person who mistypes needs fewer
_COOKIE = "medqa_session"
_PATH = "/review"


class SignedOutError(Exception):
    """Nobody is signed in: the page for that is to be shown."""


@dataclass(frozen=True)
class Visitor:
    """A person at the review page.

    Parameters
    ----------
    caller
        Who it is, and in which role.
    token
        What every form that changes something must carry.
    by_cookie
        Whether there is a session to end; else the proxy signs people in and out, or nobody does.
    """

    caller: Caller
    token: str
    by_cookie: bool


def start(request: Request, response: Response, key: str) -> Caller | None:
    """Begin a session for the owner of an API key; None where it is nobody's.

    Raises
    ------
    Refusal
        Too many keys from this address were wrong: no further one is looked at for a while.
    """
    one = service(request)
    who = "sign-in", "" if request.client is None else request.client.host
    if not one.limiter.test(_WRONG, *who):
        raise too_often(one, _WRONG, "wrong keys from one address", *who)
    caller = None if one.keyring is None else one.keyring.by_key(key)
    digest = None if caller is None else _digest_of(one, caller)
    if caller is None or digest is None:
        one.limiter.hit(_WRONG, *who)
        return None
    expires = int(time.time()) + HOURS * 3600
    said = {"name": caller.name, "key": _code(one, "key", digest), "until": expires}
    said["nonce"] = secrets.token_urlsafe(16)
    body = base64.urlsafe_b64encode(json.dumps(said).encode()).decode()
    secure = one.settings.tls or request.url.scheme == "https"
    response.set_cookie(
        _COOKIE,
        f"{body}.{_code(one, 'session', body)}",
        max_age=HOURS * 3600,
        path=_PATH,
        secure=secure,
        httponly=True,
        samesite="strict",
    )
    return caller


def end(response: Response) -> None:
    """End the session in this browser, and let it forget the images that it has kept."""
    response.delete_cookie(_COOKIE, path=_PATH, httponly=True, samesite="strict")
    response.headers["Clear-Site-Data"] = '"cache"'


def visitor(request: Request) -> Visitor:
    """Who is at the page, by the session's cookie or by the word of the proxy.

    Raises
    ------
    SignedOutError
        Nobody whom we know.
    """
    one = service(request)
    cookie = request.cookies.get(_COOKIE, "")
    found = _by_cookie(one, cookie)
    by_cookie = found is not None
    if found is None:
        found = authenticate(request, None)
    if found is None:
        raise SignedOutError
    request.state.caller = found.name
    # Of the session, so that a token that got out is worth nothing in the next one.
    bound = cookie if by_cookie else found.name
    return Visitor(found, _code(one, "form", bound), by_cookie)


Visiting = Annotated[Visitor, Depends(visitor)]


def check_origin(request: Request) -> None:
    """Refuse a form that another site's page has sent. Raises Refusal."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Refusal(403, "the form was sent from another site", "use the form of the page")


def check_form(request: Request, visiting: Visitor, token: str) -> None:
    """Refuse a form that this session's own page did not make. Raises Refusal."""
    check_origin(request)
    if not hmac.compare_digest(token.encode(), visiting.token.encode()):
        raise Refusal(403, "the form is not of this session", "load the page again")


def _by_cookie(one: Service, cookie: str) -> Caller | None:
    body, _, code = cookie.partition(".")
    if not hmac.compare_digest(code.encode(), _code(one, "session", body).encode()):
        return None
    said = json.loads(base64.urlsafe_b64decode(body))  # it is ours: it is signed
    if time.time() >= said["until"] or one.settings.keys is None:
        return None
    for kept in listed(one.settings.keys):
        if kept.name == said["name"] and kept.sha256 is not None:
            same = hmac.compare_digest(_code(one, "key", kept.sha256), said["key"])
            return Caller(kept.name, kept.role) if same else None
    return None


def _digest_of(one: Service, caller: Caller) -> str | None:
    if one.settings.keys is None:
        return None
    return next((k.sha256 for k in listed(one.settings.keys) if k.name == caller.name), None)


def _code(one: Service, purpose: str, text: str) -> str:
    """Keyed code of a text, by a key that is good for nothing else than this purpose."""
    key = hmac.digest(one.store.key, f"medqa review {purpose}".encode(), hashlib.sha256)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
