"""Writing a new profile with its evidence beside it: both whole or neither, over nothing."""

from __future__ import annotations

import datetime
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from medqa.errors import UsageError
from medqa.thresholds import Profile, load

__all__ = ["LimitRow", "check_new", "limit_tables", "lines", "place", "region_limits"]

LimitRow = tuple[float, str, str, datetime.date]
"""Value, source, status and date of a limit."""

_PATHOLOGY_SHARE = 0.8  # of the diagnostic limit; the textbook rule of the shipped profiles


def check_new(out: Path, beside: str) -> None:
    """Refuse to write over a profile or its evidence, before hours of work.

    Parameters
    ----------
    beside
        Suffix of the file with the evidence, such as ``.html``.

    Raises
    ------
    UsageError
        One of them is there, or the name does not end in ``.toml``.
    """
    if out.suffix != ".toml":
        raise UsageError(out, "does not end in .toml, as a profile must", "name it site-ct.toml")
    for path in (out, out.with_suffix(beside)):
        if path.exists():
            raise UsageError(path, "is there already", "name another file: keep what was used")


def place(out: Path, text: str, beside: str, evidence: Callable[[Profile], bytes]) -> Profile:
    """Write a profile and its evidence; `check_new` comes first.

    Parameters
    ----------
    out
        Path of the profile.
    text
        What it says.
    beside
        Suffix of the file with the evidence.
    evidence
        Makes its contents, given the validated profile.

    Returns
    -------
    The profile, as `medqa.thresholds.load` reads it.

    Raises
    ------
    UsageError
        One of the files is there, or cannot be written.
    """
    other = out.with_suffix(beside)
    # Under a name that ends as profiles do, so that it is validated as it will be.
    parts = {one: one.with_name(f".{uuid.uuid4().hex}{one.suffix}") for one in (other, out)}
    placed: list[Path] = []
    try:
        try:
            parts[out].write_text(text, "utf-8")
            profile = load(str(parts[out]))
            parts[other].write_bytes(evidence(profile))
            for path, part in parts.items():
                os.link(part, path)  # which, unlike a rename, fails where there is one
                placed.append(path)
        except BaseException:
            for path in placed:
                path.unlink()
            raise
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            out,
            f"cannot be written ({error.strerror or error})",
            "name a new file in a folder that you may write to",
        ) from error
    return load(str(out))


def region_limits(
    base: Profile, diagnostic: float, date: datetime.date, why: str
) -> dict[str, LimitRow]:
    """Limits of regions that a new diagnostic limit brings with it.

    The textbook rule, or the base's limit where that is stricter: nobody looked at a region.

    Parameters
    ----------
    why
        Why it is the rule alone, in words, for the source.
    """
    limits: dict[str, LimitRow] = {}
    for name, rule, share in (
        ("pathology", "0.8 x the diagnostic limit", _PATHOLOGY_SHARE),
        ("annotation", "the diagnostic limit", 1.0),
    ):
        old = getattr(base.limits, name)
        value = float(f"{share * diagnostic:.4g}")
        limits[name] = (
            (value, f"textbook rule: {rule}; {why}", "provisional", date)
            if value < old.value
            else (old.value, old.source, old.status, old.date)
        )
    return limits


def limit_tables(limits: Mapping[str, LimitRow]) -> list[str]:
    """Tables of TOML, one for each limit by its name."""
    tables = []
    for name, (value, source, status, dated) in limits.items():
        table = lines(value=value, unit="LPIPS", source=source, date=dated, status=status)
        tables.append(f"[limits.{name}]\n{table}")
    return tables


def lines(**values: object) -> str:
    """Key-value lines of TOML, whose strings may be written as JSON's."""

    def written(value: object) -> str:
        if isinstance(value, datetime.date):
            return value.isoformat()
        return json.dumps(value, ensure_ascii=False)

    return "\n".join(f"{key} = {written(value)}" for key, value in values.items())
