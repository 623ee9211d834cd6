"""The worklist: which assessments wait for a person, the worst first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast
from urllib.parse import urlencode

from sqlalchemy import (
    JSON,
    ColumnElement,
    Select,
    Text,
    and_,
    case,
    exists,
    func,
    or_,
    select,
    type_coerce,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects import postgresql

from medqa.assessment import VERDICT_WORDS, Assessment, Verdict
from medqa.audit import History, Store, histories
from medqa.audit.tables import assessments, entries

__all__ = ["PAGE", "Choice", "Counts", "Row", "choices", "counted", "neighbours", "rows", "state"]

#: Rows of a page.
PAGE = 25
_NEIGHBOURS = 2000  # cases within which the next one is looked for
# What nobody knows comes first, then the worst.
_ORDER: tuple[Verdict, ...] = ("not_assessable", "unsuitable", "expert_review", "diagnostic")
State = Literal["open", "decided", "all"]
_superseding = assessments.alias("superseding")


@dataclass(frozen=True)
class Choice:
    """What the worklist shows.

    Parameters
    ----------
    verdict
        Only this one; ``attention`` is all but diagnostic; ``all``.
    state
        ``open``: neither approved nor rejected; ``decided``: one of these; ``all``.
    modality, profile
        Only these; empty for any.
    device
        Only this one, by its keyed code; empty for any.
    page
        From 1.
    """

    verdict: str = "attention"
    state: State = "open"
    modality: str = ""
    profile: str = ""
    device: str = ""
    page: int = 1

    @classmethod
    def of(cls, asked: Mapping[str, str]) -> Choice:
        """Read a query; what it does not know is as it is by default."""
        verdict, stood = asked.get("verdict", ""), asked.get("state", "")
        page = asked.get("page", "")
        return cls(
            verdict if verdict in (*VERDICT_WORDS, "all") else "attention",
            cast(State, stood) if stood in ("decided", "all") else "open",
            asked.get("modality", "")[:64],
            asked.get("profile", "")[:64],
            asked.get("device", "")[:64],
            min(int(page), 10**6) if page.isdecimal() and len(page) < 8 and int(page) > 0 else 1,
        )

    def query(self, page: int | None = None) -> str:
        """Write it as the query of a URL, for another page if one is given."""
        chosen = replace(self, page=page or self.page)
        return urlencode(
            {
                name: value
                for name, value in vars(chosen).items()
                if value != getattr(Choice(), name)
            }
        )


@dataclass(frozen=True)
class Row:
    """A case of the worklist."""

    assessment: Assessment
    history: History

    @property
    def state(self) -> str:
        """What people have decided: ``approved``, ``rejected``, ``reviewed`` or ``open``."""
        return state(self.history)


@dataclass(frozen=True)
class Counts:
    """How many cases there are for a choice, and of each verdict among them."""

    total: int
    by_verdict: Mapping[str, int]


def state(history: History) -> str:
    """Return the latest decision; a review that decides nothing leaves an earlier one standing."""
    bound = [one for one in history.signatures if one.signed_sha256 == history.entry.sha256]
    decided = [one.meaning for one in bound if one.meaning != "reviewed"]
    return decided[-1] if decided else "reviewed" if bound else "open"


def rows(store: Store, chosen: Choice) -> tuple[Row, ...]:
    """One page of the worklist.

    Raises
    ------
    StoreError
        The record cannot be read.
    """
    query = _ordered(select(assessments.c.record).where(*_wanted(chosen)))
    with store.reading() as connection:
        found = connection.scalars(query.limit(PAGE).offset(PAGE * (chosen.page - 1))).all()
    records = [Assessment.model_validate_json(one) for one in found]
    beside = histories(store, [one.assessment_id for one in records])
    return tuple(
        Row(one, beside[one.assessment_id]) for one in records if one.assessment_id in beside
    )


def counted(store: Store, chosen: Choice) -> Counts:
    """How many cases there are for a choice, whatever its page."""
    query = (
        select(assessments.c.verdict, func.count())
        .where(*_wanted(chosen))
        .group_by(assessments.c.verdict)
    )
    with store.reading() as connection:
        found = {row[0]: row[1] for row in connection.execute(query)}
    return Counts(sum(found.values()), {one: found[one] for one in _ORDER if one in found})


def choices(store: Store) -> dict[str, dict[str, str]]:
    """Modalities, profiles and devices that the record holds, and what people call them."""
    columns = {"modality": assessments.c.modality, "profile": assessments.c.profile_name}
    found: dict[str, dict[str, str]] = {}
    with store.reading() as connection:
        for name, column in columns.items():
            query = select(column).where(column.is_not(None)).distinct().order_by(column)
            found[name] = {str(one): str(one) for one in connection.scalars(query)}
        named, code = _of_reference("device"), _of_reference("device_hmac")
        devices = select(func.max(named), code).where(code.is_not(None)).group_by(code)
        found["device"] = {
            str(row[1]): f"{row[0] or 'unnamed'} ({row[1][:8]})"
            for row in connection.execute(devices.order_by(func.max(named), code))
        }
    return found


def _of_reference(name: str) -> ColumnElement[str]:
    """Return what a record says of its reference; no column of the chain holds it."""
    text = Text().with_variant(postgresql.JSON(), "postgresql")
    record = type_coerce(sql_cast(assessments.c.record, text), JSON)
    found: ColumnElement[str] = record["inputs", "reference", name].as_string()
    return found


def neighbours(store: Store, chosen: Choice, assessment_id: str) -> tuple[str | None, str | None]:
    """Ids of the cases before and after one in a worklist, though it may just have left it."""
    here = assessments.c.assessment_id == assessment_id
    query = _ordered(select(assessments.c.assessment_id).where(or_(here, and_(*_wanted(chosen)))))
    with store.reading() as connection:
        ids = list(connection.scalars(query.limit(_NEIGHBOURS)))
    if assessment_id not in ids:
        return None, None
    place = ids.index(assessment_id)
    return (ids[place - 1] if place else None), (ids[place + 1] if place + 1 < len(ids) else None)


def _wanted(chosen: Choice) -> list[ColumnElement[bool]]:
    # What is corrected by a later record is that record's business.
    wanted: list[ColumnElement[bool]] = [
        ~exists().where(_superseding.c.supersedes == assessments.c.assessment_id)
    ]
    if chosen.verdict == "attention":
        wanted.append(assessments.c.verdict != "diagnostic")
    elif chosen.verdict != "all":
        wanted.append(assessments.c.verdict == chosen.verdict)
    if chosen.modality:
        wanted.append(assessments.c.modality == chosen.modality)
    if chosen.profile:
        wanted.append(assessments.c.profile_name == chosen.profile)
    if chosen.device:
        wanted.append(_of_reference("device_hmac") == chosen.device)
    if chosen.state != "all":
        # The body of a signature is canonical JSON, whose first name is the meaning.
        decided = exists().where(
            entries.c.kind == "signature",
            entries.c.assessment_id == assessments.c.assessment_id,
            or_(
                *(entries.c.body.startswith(f'{{"meaning":"{one}"') for one in _DECISIONS),
            ),
        )
        wanted.append(decided if chosen.state == "decided" else ~decided)
    return wanted


_DECISIONS = "approved", "rejected"


def _ordered(query: Select[Any]) -> Select[Any]:
    rank = case({one: place for place, one in enumerate(_ORDER)}, value=assessments.c.verdict)
    return query.order_by(
        rank, assessments.c.base_lpips_score.desc().nulls_last(), assessments.c.sequence
    )
