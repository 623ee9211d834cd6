"""API keys: who may do what. The file holds a digest of each key, never the key.

A key is 256 random bits, so its SHA-256 can be neither guessed nor looked up in a table; a slow
hash (scrypt), which is there for words that people choose, would only slow every request down.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from medqa.audit.files import make_secret, read_secret, replace_secret
from medqa.errors import StoreError, UsageError

__all__ = ["RIGHTS", "Caller", "Keyring", "Right", "Role", "add", "listed", "revoke"]

Role = Literal["reader", "writer", "reviewer", "admin"]
Right = Literal["read", "write", "sign", "administer"]
#: What each role may do: see records, send images, sign records.
RIGHTS: dict[Role, frozenset[Right]] = {
    "reader": frozenset({"read"}),
    "writer": frozenset({"read", "write"}),
    "reviewer": frozenset({"read", "sign"}),
    "admin": frozenset({"read", "write", "sign", "administer"}),
}
_PREFIX = "medqa_"  # so that a key that leaked somewhere can be searched for
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True)
class Caller:
    """Who asks: the name enters the record as who asked."""

    name: str
    role: Role

    def may(self, right: Right) -> bool:
        """Whether the role has this right."""
        return right in RIGHTS[self.role]


class Kept(BaseModel):
    """A key as its file has it; without a digest, somebody whom the proxy vouches for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    role: Role
    sha256: str | None
    added_on: str


_FILE = TypeAdapter(tuple[Kept, ...])


def add(file: Path, name: str, role: Role, *, by_proxy: bool = False) -> str | None:
    """Give a name a role, and return its new key, which is kept nowhere.

    Parameters
    ----------
    file
        Made where it is missing, for its owner only.
    by_proxy
        Somebody whom the proxy signs in: there is no key.

    Raises
    ------
    UsageError
        The name cannot be used or is there already.
    StoreError
        The file cannot be read or written.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            "name", "is no name for a key", "1 to 64 of letters, digits, and . _ @ - inside"
        )
    key = None if by_proxy else _PREFIX + secrets.token_urlsafe(32)
    digest = None if key is None else _digest(key)
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    with _changing(file) as kept:
        if any(one.name == name for one in kept):
            raise UsageError(name, "has a role already", "revoke it first")
        kept.append(Kept(name=name, role=role, sha256=digest, added_on=today))
    return key


def revoke(file: Path, name: str) -> None:
    """Take a name out; a running service refuses it from its next request on.

    Raises
    ------
    UsageError
        There is no such name.
    StoreError
        The file cannot be read or written.
    """
    with _changing(file) as kept:
        left = [one for one in kept if one.name != name]
        if len(left) == len(kept):
            raise UsageError(name, "has no key", "see medqa web-key list")
        kept[:] = left


def listed(file: Path) -> tuple[Kept, ...]:
    """All keys, the oldest first.

    Raises
    ------
    StoreError
        The file cannot be read, others may read it, or it is no file of keys.
    """
    try:
        return _FILE.validate_json(read_secret(file))
    except ValidationError as error:
        raise StoreError(file, "is no file of API keys", "name another") from error


class Keyring:
    """The keys of a running service; read again when their file changes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp: tuple[int, int, int] | None = None
        self._kept: tuple[Kept, ...] = ()
        self._read()

    def by_key(self, key: str) -> Caller | None:
        """Whose key this is; None where it is nobody's."""
        given = _digest(key)
        found = None
        for one in self._read():  # all of them, so that the time says nothing
            if one.sha256 is not None and hmac.compare_digest(one.sha256, given):
                found = Caller(one.name, one.role)
        return found

    def by_name(self, name: str) -> Caller | None:
        """Role of somebody whom the proxy has signed in; None where he has none."""
        for one in self._read():
            if one.sha256 is None and one.name == name:
                return Caller(one.name, one.role)
        return None

    def _read(self) -> tuple[Kept, ...]:
        try:
            found = self._file.stat()
        except OSError as error:
            raise StoreError(
                self._file, "cannot be read", "add a key: medqa web-key add"
            ) from error
        stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
        if stamp != self._stamp:
            self._kept = listed(self._file)
            self._stamp = stamp
        return self._kept


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@contextmanager
def _changing(file: Path) -> Iterator[list[Kept]]:
    """Keys to change, alone; written at the end."""
    make_secret(file, "[]")  # not over one that is there
    with file.with_name(f".{file.name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        kept = list(listed(file))
        yield kept
        replace_secret(file, _FILE.dump_json(tuple(kept), indent=1).decode() + "\n")
