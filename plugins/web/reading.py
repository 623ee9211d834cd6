"""Records out: `/assessments`, `/approvals` and `/profiles`."""

from __future__ import annotations

import re
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from starlette.responses import FileResponse

from medqa.assessment import Assessment, Verdict
from medqa.thresholds import load, names

from . import queries
from .models import ApprovalView, Page, ProfileView, SignatureView
from .problems import MEDIA_TYPE, Problem, Refusal
from .service import Reader, Serving

__all__ = ["REFUSALS", "refusals", "router"]

_WORDS = {
    400: "The body cannot be taken apart.",
    401: "Nobody we know sent it.",
    403: "The caller's role does not allow it.",
    404: "There is no such thing.",
    408: "The body stopped coming.",
    413: "It is larger than a request may be.",
    415: "The body is of another kind.",
    422: "It asks for something that cannot be done.",
    429: "Too many requests, or a full queue.",
    503: "The database or the disk cannot be used now.",
}
_LATER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}


def refusals(*status: int) -> dict[int | str, dict[str, Any]]:
    """Document refusals of a route."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    later = {"headers": _LATER}
    return {
        one: {
            "description": _WORDS[one],
            "content": content,
            **(later if one in (429, 503) else {}),
        }
        for one in status
    }


REFUSALS = refusals(401, 403, 429, 503)
AssessmentId = Annotated[
    str, Path(pattern=r"^[0-9a-f-]{32,36}$", description="The whole id of an assessment.")
]
_Word = Query(pattern=r"^[A-Za-z0-9._-]{1,64}$")
# A report is one page without scripts; its pictures are in it.
_REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
_REPORT_HEADERS = {"Content-Security-Policy": _REPORT_POLICY, "X-Frame-Options": "SAMEORIGIN"}
router = APIRouter(tags=["records"], responses=REFUSALS)


@router.get("/assessments", summary="Recorded assessments", responses=refusals(422))
def list_assessments(
    serving: Serving,
    _caller: Reader,
    verdict: Verdict | None = None,
    modality: Annotated[str | None, _Word] = None,
    profile: Annotated[str | None, _Word] = None,
    origin: Annotated[str | None, _Word] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: Annotated[int | None, Query(ge=1, le=2**53)] = None,
) -> Page:
    """The newest first; for the next page, give `before` of this one."""  # noqa: D401
    return queries.page(
        serving.store,
        limit,
        before,
        verdict=verdict,
        modality=modality,
        profile_name=profile,
        origin=origin,
    )


@router.get(
    "/assessments/{assessment_id}",
    summary="One record",
    response_class=Response,
    responses={
        200: {
            "description": "The record, as it was recorded.",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/Assessment"}}
            },
        },
        **refusals(404, 422),
    },
)
def show_assessment(assessment_id: AssessmentId, serving: Serving, _caller: Reader) -> Response:
    """Every score, limit and reason of an assessment."""
    record = queries.assessment(serving.store, assessment_id)
    if record is None:
        raise _no_assessment()
    return Response(record, media_type="application/json")


@router.get(
    "/assessments/{assessment_id}/report",
    summary="Its report as a page",
    response_class=FileResponse,
    responses={
        200: {"content": {"text/html": {}}, "description": "A page that needs nothing else."},
        **refusals(404, 422),
    },
)
def show_report(assessment_id: AssessmentId, serving: Serving, _caller: Reader) -> FileResponse:
    """The page that was written when it was judged, with pictures."""  # noqa: D401
    report = _results(serving, assessment_id) / "report.html"
    if not report.is_file():
        raise _no_results()
    return FileResponse(report, media_type="text/html", headers=_REPORT_HEADERS)


@router.get(
    "/assessments/{assessment_id}/map.png",
    summary="Its distance map",
    response_class=FileResponse,
    responses={
        200: {"content": {"image/png": {}}, "description": "Colour over the candidate."},
        **refusals(404, 422),
    },
)
def show_map(assessment_id: AssessmentId, serving: Serving, _caller: Reader) -> FileResponse:
    """Where the two images differ, on the worst slice under its worst display."""
    folder = _results(serving, assessment_id)
    record = queries.assessment(serving.store, assessment_id)
    picture = None if record is None else _worst_map(folder, record)
    if picture is None:
        raise _no_results()
    return FileResponse(picture, media_type="image/png")


@router.get("/approvals", summary="Approvals of lossy compression")
def list_approvals(serving: Serving, _caller: Reader) -> list[ApprovalView]:
    """The newest first, with what became of them."""  # noqa: D401
    from medqa.compression.approvals import listed

    return [
        ApprovalView(
            approval=one.approval,
            status=one.status,
            signatures=[
                SignatureView(
                    recorded_at=given.recorded_at,
                    actor=given.actor,
                    meaning=given.meaning,
                    comment=given.comment,
                )
                for given in one.signatures
            ],
        )
        for one in listed(serving.store)
    ]


@router.get("/profiles", summary="Thresholds that may be asked for")
def list_profiles(serving: Serving, _caller: Reader) -> list[ProfileView]:
    """The shipped ones, then the site's own."""  # noqa: D401
    found = [load(name) for name in (*names(), *serving.settings.profiles.values())]
    return [
        ProfileView(
            profile=one.ref,
            title=one.title,
            modalities=one.modalities,
            body_parts=one.body_parts,
            task=one.task,
            set_on=one.date,
        )
        for one in found
    ]


def _results(serving: Serving, assessment_id: str) -> FilePath:
    folder = queries.results(serving.store, assessment_id)
    if folder is not None:
        return folder
    if queries.assessment(serving.store, assessment_id) is None:
        raise _no_assessment()
    raise _no_results()


def _worst_map(folder: FilePath, record: str) -> FilePath | None:
    """Distance map of the worst slice, of which `medqa.report.write` has made a picture."""
    slices = Assessment.model_validate_json(record).slices
    if not slices:
        return None
    worst = max(slices, key=lambda one: one.lpips)
    window = re.sub(r"[^a-z0-9]+", "-", worst.window.lower()).strip("-")[:40] or "display"
    exact = folder / f"slice-{worst.index:03d}-{window}-distance.png"
    found = sorted(folder.glob(f"slice-{worst.index:03d}-*distance.png"))
    return exact if exact in found else next(iter(found), None)


def _no_assessment() -> Refusal:
    return Refusal(404, "there is no such assessment", "see /assessments")


def _no_results() -> Refusal:
    return Refusal(
        404,
        "it has no page or picture here: nothing was compared, or no job of the queue did it",
        "ask for the record itself",
    )
