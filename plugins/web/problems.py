"""Errors as callers see them: problem details (RFC 9457) with the reason and the mend.

Never the subject or the detail of an error, which may be a path or name a patient.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from medqa.errors import MedqaError, StoreError
from medqa.queue import QueueFullError

__all__ = ["MEDIA_TYPE", "Problem", "Refusal", "answer", "install"]

MEDIA_TYPE = "application/problem+json"
_FULL_SECONDS = 10  # a worker does dozens of jobs in this time


class Problem(BaseModel):
    """What is wrong, and what to do about it (RFC 9457)."""

    type: str = Field("about:blank", examples=["about:blank"])
    title: str = Field(examples=["Too Many Requests"])
    status: int = Field(examples=[429])
    reason: str = Field(examples=["10000 jobs wait already"])
    mend: str = Field(examples=["send it again later"])
    request_id: str = Field(description="also in the service's log")


class Refusal(Exception):  # noqa: N818 (what is refused may be no error)
    """A request that is not carried out.

    Parameters
    ----------
    reason, mend
        As of `MedqaError`: without full stop, and they name no patient and no path.
    """

    def __init__(
        self, status: int, reason: str, mend: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, reason, mend)
        self.status = status
        self.reason = reason
        self.mend = mend
        self.headers = headers


def answer(refusal: Refusal, request_id: str) -> Response:
    """Return the response to a request that is not carried out."""
    problem = Problem(
        title=HTTPStatus(refusal.status).phrase,
        status=refusal.status,
        reason=refusal.reason,
        mend=refusal.mend,
        request_id=request_id,
    )
    content = json.dumps(problem.model_dump())
    headers = None if refusal.headers is None else dict(refusal.headers)
    return Response(content, refusal.status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error in this one form."""

    def handle(request: Request, error: Exception) -> Response:
        return answer(_refusal(error), request.state.request_id)

    for kind in (Refusal, MedqaError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, QueueFullError):
        return Refusal(429, error.reason, error.mend, {"Retry-After": str(_FULL_SECONDS)})
    if isinstance(error, StoreError):  # its words are the driver's, its mend may name the database
        return Refusal(
            503,
            "the audit database or a file beside it cannot be used now",
            "tell the service's administrator if it lasts",
            {"Retry-After": str(_FULL_SECONDS)},
        )
    if isinstance(error, MedqaError):
        return Refusal(422, error.reason, error.mend)
    if isinstance(error, RequestValidationError):
        # Not what was sent, which pydantic would add.
        wrong = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
        return Refusal(422, wrong, "see /openapi.json for what may be sent")
    assert isinstance(error, HTTPException)  # noqa: S101 (of the four that are installed)
    headers = error.headers
    return Refusal(error.status_code, error.detail, "see /openapi.json", headers)
