"""What comes in: multipart bodies become files of the spool, and jobs.

Nothing is opened that a caller names: a file is known by its digest, a profile by its name in our
own list, and file names are thrown away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from medqa.assessment import Job, Task
from medqa.thresholds import names

from .problems import Refusal
from .service import Service

__all__ = ["BATCH_BODY", "ORIGIN", "PAIR_BODY", "receive", "receive_batch"]

ORIGIN = "web"
_CHUNK = 1 << 20
_KINDS = ("reference", "candidate", "mask", "annotations")
_NUMBERED = re.compile(rf"({'|'.join(_KINDS)})\.([1-9][0-9]{{0,3}})")
_SEE = "see /openapi.json for what may be sent"


class Wanted(BaseModel):
    """The parts that are no files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: str | None = None
    task: Task = "routine"
    backbone: str = "gray"


def _body(files: Mapping[str, Any], required: list[str], more: Mapping[str, Any]) -> dict[str, Any]:
    fields = {
        "profile": {
            "type": "string",
            "description": "Name of the thresholds, of /profiles; by default those of the image.",
        },
        "task": {
            "type": "string",
            "enum": ["routine", "compression", "denoising", "super-resolution"],
            "default": "routine",
            "description": "What was done to the image, where no profile is named.",
        },
        "backbone": {
            "type": "string",
            "default": "gray",
            "description": "Network to measure with.",
        },
    }
    schema = {"type": "object", "required": required, "properties": {**files, **fields}, **more}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def _many(words: str, least: int = 1) -> dict[str, Any]:
    one = {"type": "string", "format": "binary"}
    return {"type": "array", "items": one, "minItems": least, "description": words}


_PAIR_FILES = {
    "reference": _many("DICOM or NIfTI file; of a DICOM series, one part for each file."),
    "candidate": _many("The processed image, in the same way."),
    "mask": _many("Pathology masks: NIfTI, PNG or DICOM SEG.", 0),
    "annotations": _many("Files of annotated regions.", 0),
}
_CLOSED = {"additionalProperties": False}
PAIR_BODY = _body(_PAIR_FILES, ["reference", "candidate"], _CLOSED)
BATCH_BODY = _body(
    {f"{kind}.1": one for kind, one in _PAIR_FILES.items()},
    ["reference.1", "candidate.1"],
    {
        "description": "The parts of the n-th pair end in .n, such as reference.2 and candidate.2.",
        "patternProperties": {
            rf"^{kind}\.[1-9][0-9]{{0,3}}$": one for kind, one in _PAIR_FILES.items()
        },
        **_CLOSED,
    },
)


async def receive(request: Request, service: Service, actor: str) -> Job:
    """Receive one pair; its files are durable when this returns.

    Raises
    ------
    Refusal
        It is no such body, or goes beyond a limit.
    UsageError
        The spool cannot be written.
    """
    return (await _received(request, service, actor, numbered=False))[0]


async def receive_batch(request: Request, service: Service, actor: str) -> list[Job]:
    """Receive several pairs, whose parts are numbered; as `receive`."""
    return await _received(request, service, actor, numbered=True)


async def _received(request: Request, service: Service, actor: str, *, numbered: bool) -> list[Job]:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "multipart/form-data":
        raise Refusal(415, "the body is not multipart/form-data", _SEE)
    limits = service.settings.limits
    async with service.receiving:
        try:
            async with request.form(
                max_files=limits.files, max_fields=8, max_part_size=limits.field_bytes
            ) as form:
                wanted = _wanted(form)
                uploads = _sorted(form, numbered, limits.pairs)
                pairs = await run_in_threadpool(_keep, service, uploads)
        except OSError as error:  # of the temporary files that a body is received into
            raise Refusal(
                503, "the files cannot be kept now", "send them later", {"Retry-After": "60"}
            ) from error
    if wanted.backbone not in service.settings.backbones:
        raise Refusal(422, "there is no such network here", _SEE)
    profile = _profile(service, wanted.profile)
    return [_job(pair, wanted, profile, request.state.request_id, actor) for pair in pairs]


def _wanted(form: FormData) -> Wanted:
    given: dict[str, str] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            continue
        if name in given or name not in Wanted.model_fields:
            raise Refusal(422, "a part is unknown, is twice there, or should be a file", _SEE)
        given[name] = value
    try:
        return Wanted.model_validate(given)
    except ValidationError as error:
        wrong = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
        raise Refusal(422, wrong, _SEE) from None


def _profile(service: Service, name: str | None) -> str | None:
    """Return the profile of this name: only those that we know, so that no path gets through."""
    if name is None or name in names():
        return name
    if name not in service.settings.profiles:
        raise Refusal(422, "there is no such profile", "see /profiles")
    return service.settings.profiles[name]


def _sorted(form: FormData, numbered: bool, most: int) -> list[dict[str, list[UploadFile]]]:
    """Files by pair and kind, in the order of the pairs' numbers."""
    pairs: dict[int, dict[str, list[UploadFile]]] = {}
    for name, value in form.multi_items():
        if not isinstance(value, UploadFile):
            continue
        kind, number = name, 1
        if numbered:
            match = _NUMBERED.fullmatch(name)
            kind, number = (match[1], int(match[2])) if match else ("", 0)
        if kind not in _KINDS:
            raise Refusal(422, "a part is unknown, or should not be a file", _SEE)
        pairs.setdefault(number, {kind: [] for kind in _KINDS})[kind].append(value)
    if not pairs or any(not pair["reference"] or not pair["candidate"] for pair in pairs.values()):
        raise Refusal(422, "a reference or a candidate is missing", "send both, as files")
    if len(pairs) > most:
        raise Refusal(413, f"a batch may have {most} pairs", "send fewer at a time")
    return [pairs[number] for number in sorted(pairs)]


def _keep(
    service: Service, pairs: Iterable[Mapping[str, list[UploadFile]]]
) -> list[dict[str, list[str]]]:
    """Put every file into the spool, durably; return their paths."""
    return [
        {
            kind: [str(service.spool.put(_chunks(upload))) for upload in uploads]
            for kind, uploads in pair.items()
        }
        for pair in pairs
    ]


def _chunks(upload: UploadFile) -> Iterator[bytes]:
    while chunk := upload.file.read(_CHUNK):
        yield chunk


def _job(
    pair: Mapping[str, list[str]], wanted: Wanted, profile: str | None, request_id: str, actor: str
) -> Job:
    reference, candidate = pair["reference"], pair["candidate"]
    return Job(
        reference=reference[0] if len(reference) == 1 else tuple(reference),
        candidate=candidate[0] if len(candidate) == 1 else tuple(candidate),
        masks=tuple(pair["mask"]),
        annotations=tuple(pair["annotations"]),
        profile=profile,
        task=wanted.task,
        backbone=wanted.backbone,
        origin=ORIGIN,
        correlation_id=request_id,
        actor=actor,
    )
