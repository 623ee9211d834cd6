"""For those who watch over the service: `/health` and `/metrics`."""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, Response

from medqa.errors import MedqaError
from medqa.queue import counts

from .models import Health
from .reading import REFUSALS
from .service import Reader, Service, Serving

__all__ = ["router"]

router = APIRouter(tags=["service"])


@router.get("/health/live", summary="Whether the service answers")
async def live() -> Health:
    """Nothing is looked at but the service itself: restart it where this fails."""
    return Health(state="ok", wrong=[])


_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"model": Health, "description": "Something that it needs is not there."}
}


@router.get("/health/ready", summary="Whether it can take work", responses={**_NOT_READY})
def ready(serving: Serving, response: Response) -> Health:
    """Database, disk and room in the queue: send no work where this fails."""
    wrong = _wrong(serving)
    if wrong:
        response.status_code = 503
    return Health(state="not ready" if wrong else "ok", wrong=wrong)


router.get("/health", summary="The same as /health/ready", responses={**_NOT_READY})(ready)


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."},
        **REFUSALS,
    },
)
def metrics(serving: Serving, _caller: Reader) -> Response:
    """Count requests by route and status, their times, and the queue."""
    return Response(serving.metrics.text(), media_type="text/plain; version=0.0.4")


def _wrong(serving: Service) -> list[str]:
    wrong = []
    try:
        number = counts(serving.store)
        if number["waiting"] + number["leased"] >= serving.settings.limits.waiting:
            wrong.append("the queue is full")
    except MedqaError:
        wrong.append("the audit database cannot be read")
    if not os.access(serving.spool.folder, os.W_OK):
        wrong.append("the spool cannot be written")
    return wrong
