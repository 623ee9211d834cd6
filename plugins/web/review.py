"""The review page: what needs a person, the images to decide by, and the decision on record."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from threading import Lock
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute

from medqa._version import __version__
from medqa.assessment import VERDICT_WORDS, Assessment, ImageInput
from medqa.audit import Store, histories, sign
from medqa.audit.signatures import MEANINGS
from medqa.errors import MedqaError, StoreError
from medqa.report import number

from . import queries, worklist
from .problems import Refusal
from .records import Verifier, charts, matrix, trail
from .service import Serving
from .sessions import (
    HOURS,
    SignedOutError,
    Visiting,
    Visitor,
    check_form,
    check_origin,
    end,
    start,
    visitor,
)
from .viewer import Case, Images, Side, case, map_slice, shown_as, slice_of

__all__ = ["router"]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-src 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
# Reports and charts are whole pages of their own: they carry their style and no script.
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
_STATIC = {"review.css": "text/css", "review.js": "text/javascript", "icon.svg": "image/svg+xml"}
_SLICE_SECONDS = 600  # that a browser need not ask again; a slice never changes
_CASES = 64


class _Pages(APIRoute):
    """Answers errors with a page for people, and sends whom nobody knows to sign in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except SignedOutError:
                if request.headers.get("sec-fetch-dest") == "empty":  # a script asked, no person
                    return Response("sign in first", HTTPStatus.UNAUTHORIZED)
                return RedirectResponse("/review/sign-in", HTTPStatus.SEE_OTHER)
            except Refusal as refusal:
                return _trouble(refusal.status, refusal.reason, refusal.mend, refusal.headers)
            except RequestValidationError:
                return _trouble(422, "the form was not filled in as it should be", "go back")
            except StoreError as error:
                if error.reason.startswith("the comment is empty"):
                    return _trouble(422, error.reason, error.mend)
                return _trouble(503, "the audit database cannot be used now", "try again later")
            except MedqaError as error:
                return _trouble(422, error.reason, error.mend)

        return handle


class _Cases:
    """Cases that were opened last: a record never changes, and scrolling asks again and again."""

    def __init__(self) -> None:
        self.images = Images()
        self.verifier = Verifier()
        self._cases: OrderedDict[str, Case] = OrderedDict()
        self._guard = Lock()

    def get(self, store: Store, assessment_id: str, *, anew: bool = False) -> Case:
        """Case of an assessment; `anew` looks again whether its images are still there."""
        with self._guard:
            found = self._cases.get(assessment_id)
        if found is None or anew:
            record = queries.assessment(store, assessment_id)
            if record is None:
                raise Refusal(404, "there is no such case", "go back to the worklist")
            results = queries.results(store, assessment_id)
            found = case(Assessment.model_validate_json(record), results)
        with self._guard:
            self._cases[assessment_id] = found
            self._cases.move_to_end(assessment_id)
            while len(self._cases) > _CASES:
                self._cases.popitem(last=False)
        return found


async def _opened(request: Request) -> _Cases:  # not in threads, which would make two
    state = request.app.state
    if not hasattr(state, "review"):
        state.review = _Cases()
    found: _Cases = state.review
    return found


Opened = Annotated[_Cases, Depends(_opened)]
router = APIRouter(
    prefix="/review",
    route_class=_Pages,
    include_in_schema=False,
    dependencies=[Depends(_opened)],  # so that images can be read by the time one is asked for
)


@router.get("/static/{name}")
def static(name: str) -> Response:
    """Style and script, for whoever asks: the page to sign in needs them."""
    if name not in _STATIC:
        raise Refusal(404, "there is no such file", "load the page again")
    content = files("medqa_plugins.web").joinpath("static", name).read_bytes()
    return Response(content, media_type=_STATIC[name])


@router.get("/sign-in")
def sign_in_page(request: Request) -> Response:
    """Ask for an API key, unless the proxy says who it is."""
    try:
        visitor(request)
    except SignedOutError:
        return _page("sign_in.html", None, failed=False, hours=HOURS)
    return RedirectResponse("/review", HTTPStatus.SEE_OTHER)


@router.post("/sign-in")
def sign_in(request: Request, key: Annotated[str, Form(max_length=200)]) -> Response:
    """Begin a session."""
    check_origin(request)
    response = RedirectResponse("/review", HTTPStatus.SEE_OTHER)
    if start(request, response, key.strip()) is None:
        return _page("sign_in.html", None, 401, failed=True, hours=HOURS)
    return response


@router.post("/sign-out")
def sign_out(request: Request, visiting: Visiting, token: Annotated[str, Form()]) -> Response:
    """End the session."""
    check_form(request, visiting, token)
    response = RedirectResponse("/review/sign-in", HTTPStatus.SEE_OTHER)
    end(response)
    return response


@router.get("")
def work(request: Request, serving: Serving, visiting: Visiting) -> Response:
    """Show what needs a person, the worst first."""
    chosen = worklist.Choice.of(request.query_params)
    counts = worklist.counted(serving.store, chosen)
    return _page(
        "worklist.html",
        visiting,
        rows=worklist.rows(serving.store, chosen),
        chosen=chosen,
        counts=counts,
        pages=max(1, -(-counts.total // worklist.PAGE)),
        choices=worklist.choices(serving.store),
        searched=False,
    )


@router.post("/search")
def search(
    request: Request,
    serving: Serving,
    visiting: Visiting,
    token: Annotated[str, Form()],
    identifier: Annotated[str, Form(max_length=64)],
) -> Response:
    """Find the cases of a patient or a study. What was asked is neither kept nor shown."""
    check_form(request, visiting, token)
    found = serving.store.about(identifier.strip()) if identifier.strip() else ()
    beside = histories(serving.store, [one.assessment_id for one in found])
    rows = [
        worklist.Row(one, beside[one.assessment_id]) for one in found if one.assessment_id in beside
    ]
    return _page("worklist.html", visiting, rows=rows, chosen=worklist.Choice(), searched=True)


@router.get("/cases/{assessment_id}")
def case_page(
    assessment_id: str, request: Request, serving: Serving, visiting: Visiting, opened: Opened
) -> Response:
    """Show a case: verdict, images, regions, and the form to sign."""
    shown = opened.get(serving.store, assessment_id, anew=True)
    history = histories(serving.store, [assessment_id])[assessment_id]
    chosen = worklist.Choice.of(request.query_params)
    before, after = worklist.neighbours(serving.store, chosen, assessment_id)
    return _page(
        "case.html",
        visiting,
        case=shown,
        a=shown.assessment,
        history=history,
        state=worklist.state(history),
        before=before,
        after=after,
        query=chosen.query(),
        viewer=None if shown.why_not else shown_as(shown),
        meanings=MEANINGS,
        may_sign=visiting.caller.may("sign"),
        has_report=shown.folder is not None and (shown.folder / "report.html").is_file(),
    )


@router.post("/cases/{assessment_id}/sign")
def sign_case(
    assessment_id: str,
    request: Request,
    serving: Serving,
    visiting: Visiting,
    token: Annotated[str, Form()],
    meaning: Annotated[str, Form(max_length=16)],
    comment: Annotated[str, Form(max_length=2000)],
) -> Response:
    """Sign a case in the name of whoever is signed in."""
    check_form(request, visiting, token)
    if not visiting.caller.may("sign"):
        raise Refusal(403, f"a {visiting.caller.role} may not sign", "ask a reviewer to")
    found = next((one for one in MEANINGS if one == meaning), None)
    if found is None:
        raise Refusal(422, "the form does not say what the signature means", "choose one")
    sign(serving.store, assessment_id, found, comment.strip(), actor=visiting.caller.name)
    query = worklist.Choice.of(request.query_params).query()
    return RedirectResponse(f"/review/cases/{assessment_id}?{query}#sign", HTTPStatus.SEE_OTHER)


@router.get("/cases/{assessment_id}/slices/{side}/{index}")
def slice_pixels(
    assessment_id: str,
    side: Side,
    index: int,
    request: Request,
    serving: Serving,
    visiting: Visiting,  # noqa: ARG001 (who is not signed in gets nothing)
    opened: Opened,
) -> Response:
    """Send one slice as plain numbers."""
    shown = opened.get(serving.store, assessment_id)
    return _numbers(
        request, f"{shown.stem}-{side}-{index}", lambda: slice_of(opened.images, shown, side, index)
    )


@router.get("/cases/{assessment_id}/maps/{index}")
def map_pixels(
    assessment_id: str,
    index: int,
    request: Request,
    serving: Serving,
    visiting: Visiting,  # noqa: ARG001 (who is not signed in gets nothing)
    opened: Opened,
) -> Response:
    """Send the distance map of one slice as plain numbers."""
    shown = opened.get(serving.store, assessment_id)
    return _numbers(request, f"{shown.stem}-map-{index}", lambda: map_slice(shown, index))


@router.get("/cases/{assessment_id}/report")
def report(
    assessment_id: str,
    serving: Serving,
    visiting: Visiting,  # noqa: ARG001 (who is not signed in gets nothing)
    opened: Opened,
) -> Response:
    """Send the report of a case."""
    folder = opened.get(serving.store, assessment_id).folder
    if folder is None or not (folder / "report.html").is_file():
        raise Refusal(404, "there is no report of this case", "see its record")
    return _whole((folder / "report.html").read_bytes())


@router.get("/approvals")
def approvals(serving: Serving, visiting: Visiting) -> Response:
    """Show which codec is approved for which modality."""
    return _page("approvals.html", visiting, matrix=matrix(serving.store))


@router.get("/trends")
def trends(visiting: Visiting) -> Response:
    """Show the control charts."""
    return _page("trends.html", visiting)


@router.get("/trends/charts")
def trend_charts(
    serving: Serving,
    visiting: Visiting,  # noqa: ARG001 (who is not signed in gets nothing)
) -> Response:
    """Send the page of the control charts, as `medqa monitor` writes it."""
    return _whole(charts(serving.store))


@router.get("/trail")
def audit_trail(request: Request, serving: Serving, visiting: Visiting, opened: Opened) -> Response:
    """Show the audit trail, the newest first, and whether it is whole."""
    asked = request.query_params.get("before", "")
    before = int(asked) if asked.isdecimal() and len(asked) < 16 else None
    entries, more = trail(serving.store, before)
    checked = opened.verifier.look(serving.store)
    return _page("trail.html", visiting, entries=entries, more=more, checked=checked)


def _numbers(request: Request, tag: str, make: Callable[[], Any]) -> Response:
    headers = {
        "ETag": f'"{tag}"',
        "Cache-Control": f"private, max-age={_SLICE_SECONDS}",
        "Vary": "Cookie",
    }
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    plane = make()
    headers["Medqa-Type"] = plane.type
    return Response(plane.content, media_type="application/octet-stream", headers=headers)


def _whole(content: bytes) -> Response:
    headers = {"Content-Security-Policy": _PAGE_POLICY, "X-Frame-Options": "SAMEORIGIN"}
    return Response(content, media_type="text/html", headers=headers)


def _page(name: str, visiting: Visitor | None, status: int = 200, **values: Any) -> Response:
    content = _templates().get_template(name).render(visiting=visiting, **values)
    headers = {"Content-Security-Policy": _POLICY}
    return Response(content, status, headers, "text/html")


def _trouble(
    status: int, reason: str, mend: str, headers: Mapping[str, str] | None = None
) -> Response:
    title = HTTPStatus(status).phrase
    response = _page("trouble.html", None, status, title=title, reason=reason, mend=mend)
    response.headers.update(headers or {})
    return response


def _image_words(image: ImageInput | None) -> str:
    if image is None:
        return "could not be read"
    slices, rows, columns = image.shape
    words = [
        image.modality or "modality not given",
        *([image.body_part.lower()] if image.body_part else []),
    ]
    return ", ".join([*words, f"{columns} × {rows} pixels", f"{slices} slice{'s'[: slices > 1]}"])


def _plain(words: str | None) -> str:
    return (words or "–").replace("_", " ")


def _json(value: object) -> str:
    """JSON that no markup can be hidden in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medqa_plugins.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers = (number, _image_words, _plain, _json)
    environment.globals |= {helper.__name__.lstrip("_"): helper for helper in helpers}
    environment.globals |= {"badges": VERDICT_WORDS, "medqa_version": __version__}
    return environment
