"""Threshold profiles as files: TOML, validated before anything is judged."""

from __future__ import annotations

import hashlib
import json
import tomllib
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from medqa.errors import ProfileError
from medqa.thresholds.profile import Profile

__all__ = ["SCHEMA_VERSION", "load", "names"]

SCHEMA_VERSION = 1
_OWN = ("name", "version", "title", "status", "date")  # what a profile does not inherit


def names() -> tuple[str, ...]:
    """Names of the shipped profiles, in alphabetical order."""
    return tuple(sorted(_shipped()))


def load(name_or_path: str) -> Profile:
    """Load a profile.

    Parameters
    ----------
    name_or_path
        What ends in ``.toml`` is the path of a file, anything else the name of a shipped profile.

    Raises
    ------
    ProfileError
        Unknown name, unreadable file, or a file that is no valid profile.
    """
    if name_or_path.endswith(".toml"):
        return _parse(Path(name_or_path), name_or_path)
    if name_or_path not in _shipped():
        raise ProfileError(
            name_or_path,
            "no shipped profile has this name",
            f"take one of {', '.join(names())}, or the path of a .toml file",
        )
    return _load_shipped(name_or_path)


@cache
def _load_shipped(name: str) -> Profile:
    return _parse(_shipped()[name], f"{name}.toml")


@cache
def _shipped() -> dict[str, Traversable]:
    found = files("medqa_thresholds").iterdir()
    return {file.name.removesuffix(".toml"): file for file in found if file.name.endswith(".toml")}


def _parse(file: Traversable, subject: str) -> Profile:
    document, contents = _document(file, subject)
    try:
        # By way of JSON, where strict validation takes TOML's arrays for tuples.
        profile = Profile.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        reason = ", ".join(_in_words(one) for one in error.errors())
        raise ProfileError(
            subject, reason, "correct the file; the shipped profiles show the form"
        ) from error
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    joined = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    profile._source = subject
    profile._text = "\n".join(content.decode("utf-8") for content in contents)
    profile._sha256 = digests[0] if len(digests) == 1 else joined
    return profile


def _document(
    file: Traversable, subject: str, above: tuple[str, ...] = ()
) -> tuple[dict[str, Any], list[bytes]]:
    """Parse a file and lay it over the shipped profile that it extends; with the bytes of each."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ProfileError(
            subject, f"cannot be read ({error.strerror})", "check the path and its permissions"
        ) from error
    try:
        document: dict[str, Any] = tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProfileError(subject, f"is not TOML ({error})", "correct the file") from error
    if document.get("schema_version") != SCHEMA_VERSION:
        raise ProfileError(
            subject,
            f"schema_version must be {SCHEMA_VERSION}, not {document.get('schema_version')}",
            "write the file in this form, or use the medqa version that it was written for",
        )
    extended = document.get("extends")
    if extended is None:
        return document, [content]
    if extended not in _shipped() or extended in above:
        raise ProfileError(
            subject,
            "extends must name another shipped profile",
            f"take one of {', '.join(names())}",
        )
    if missing := [key for key in _OWN if key not in document]:
        raise ProfileError(
            subject,
            f"{', '.join(missing)} is missing: what extends a profile is another one",
            "state its own",
        )
    parent, contents = _document(_shipped()[extended], f"{extended}.toml", (*above, extended))
    return _over(parent, document), [content, *contents]


def _over(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """Lay a document over another, table by table; arrays and values are replaced whole."""
    merged = dict(parent)
    for key, value in child.items():
        below = parent.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            # Another kind of display has other keys: nothing of the first one's is left.
            same = value.get("kind", below.get("kind")) == below.get("kind")
            value = _over(below, value) if same else value
        merged[key] = value
    return merged


def _in_words(error: ErrorDetails) -> str:
    """Which key is wrong, as it is written in the file, and what is wrong with it."""
    where = list(error["loc"])
    if where[:1] == ["normalise"]:
        del where[1:2]  # the kind, which pydantic inserts into the path
    key = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in where)[1:]
    match error["type"]:
        case "missing":
            return f"{key} is missing"
        case "extra_forbidden":
            return f"{key} is not a key of a profile"
        case "union_tag_not_found" | "union_tag_invalid":
            return f"{key}.kind must be windows, percentiles, voi or full_range"
        case "value_error":
            return f"{key}: {error['ctx']['error']}"
        case _:
            return f"{key}: {error['msg'][:1].lower()}{error['msg'][1:]}"
