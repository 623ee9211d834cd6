"""Images in: `/assess`, `/assess/batch` and `/jobs`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from medqa.assessment import Assessment, Job
from medqa.queue import QueueFullError, counts
from medqa.queue.submission import submit

from . import queries
from .models import BatchView, JobView
from .problems import Refusal
from .reading import REFUSALS, refusals
from .service import Reader, Service, Serving, Writer
from .uploads import BATCH_BODY, PAIR_BODY, receive, receive_batch

__all__ = ["router"]

_BODY_REFUSALS = {**REFUSALS, **refusals(400, 408, 413, 415, 422)}
_LOCATION = {"Location": {"description": "Where to ask for the job.", "schema": {"type": "string"}}}
JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
router = APIRouter(tags=["assess"])


@router.post(
    "/assess",
    summary="Assess one pair of images and wait for the record",
    response_class=Response,
    responses={
        200: {"model": Assessment, "description": "The record, as it was recorded."},
        202: {
            "model": JobView,
            "description": "It takes longer: the job goes on; ask for it.",
            "headers": _LOCATION,
        },
        **_BODY_REFUSALS,
    },
    openapi_extra=PAIR_BODY,
)
async def assess(request: Request, serving: Serving, caller: Writer) -> Response:
    """Compare a candidate with its reference and judge it.

    What cannot be read or compared is a record too, with the verdict `not_assessable`. The same
    files sent again get the record that there is.
    """
    await _check_room(serving)
    job = await receive(request, serving, caller.name)
    found = await run_in_threadpool(_submitted, serving, job)
    if found.state != "done":
        over = await serving.waiter.wait(found.job_id, serving.settings.limits.wait_seconds)
        found = over or found
    if found.assessment_id is not None:
        record = await run_in_threadpool(queries.assessment, serving.store, found.assessment_id)
        return Response(record, 200, {"Medqa-Job": found.job_id}, "application/json")
    if found.failed:
        raise Refusal(
            422,
            f"it could not be assessed: {found.reason}",
            "see the job for whether it is tried again",
            {"Medqa-Job": found.job_id},
        )
    where = {"Location": f"/jobs/{found.job_id}", "Retry-After": "5"}
    return Response(found.model_dump_json(), 202, where, "application/json")


@router.post(
    "/assess/batch",
    status_code=202,
    summary="Send several pairs of images to be assessed",
    responses={202: {"description": "The jobs, in the order of the pairs."}, **_BODY_REFUSALS},
    openapi_extra=BATCH_BODY,
)
async def assess_batch(request: Request, serving: Serving, caller: Writer) -> BatchView:
    """Put pairs into the queue and return at once, with a job for each.

    Where the queue is full, send the whole batch again later: nothing is assessed twice.
    """
    await _check_room(serving)
    jobs = await receive_batch(request, serving, caller.name)
    return BatchView(jobs=[await run_in_threadpool(_submitted, serving, job) for job in jobs])


@router.get(
    "/jobs/{job_id}",
    summary="How a job stands",
    responses={**REFUSALS, **refusals(404, 422)},
)
def show_job(job_id: JobId, serving: Serving, _caller: Reader) -> JobView:
    """State of a job; once it is done, the id of its record."""
    found = queries.job(serving.store, job_id)
    if found is None:
        raise Refusal(404, "there is no such job", "see that the id is whole")
    return found


async def _check_room(serving: Service) -> None:
    """Refuse before the files are received, where there is no room for their job."""
    number: dict[Any, int] = await run_in_threadpool(counts, serving.store)
    most = serving.settings.limits.waiting
    if number["waiting"] + number["leased"] >= most:
        raise QueueFullError("queue", f"{most} jobs wait already", "send it again later")


def _submitted(serving: Service, job: Job) -> JobView:
    queued, _ = submit(serving.store, serving.spool, job, serving.settings.limits.waiting)
    return JobView.of(queued)
