"""Signed checkpoints: where the chain stood at one moment, to be kept where its owner is not."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import TypeAdapter, ValidationError

from medqa.audit.files import new_file
from medqa.errors import StoreError

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """Where a chain stood.

    Parameters
    ----------
    database
        Random id of the database, of its genesis.
    sequence, sha256
        Number and digest of the last entry.
    made_at
        By the database's clock, in UTC.
    public_key
        Ed25519 (RFC 8032), 32 bytes in hex.
    signature
        64 bytes in hex, of the canonical JSON (RFC 8785) of all the fields above.
    """

    database: str
    sequence: int
    sha256: str
    made_at: str
    public_key: str
    signature: str = ""

    def signed(self, key: Ed25519PrivateKey) -> Checkpoint:
        """Return it with the key's public half and signature."""
        named = replace(self, public_key=key.public_key().public_bytes_raw().hex())
        return replace(named, signature=key.sign(named._covered()).hex())

    def is_signed_by(self, key: Ed25519PublicKey | None) -> bool:
        """Whether the signature is by this key; None stands for the one that it names itself."""
        try:
            key = key or Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.public_key))
            key.verify(bytes.fromhex(self.signature), self._covered())
        except (InvalidSignature, ValueError):
            return False
        return True

    def _covered(self) -> bytes:
        return rfc8785.dumps(
            {one.name: getattr(self, one.name) for one in fields(self) if one.name != "signature"}
        )


_ADAPTER = TypeAdapter(Checkpoint)


def write_checkpoint(checkpoint: Checkpoint, file: Path) -> None:
    """Write a checkpoint to a new file; raises StoreError."""
    with new_file(file) as temporary:
        temporary.write_bytes(rfc8785.dumps(asdict(checkpoint)) + b"\n")


def read_checkpoint(file: Path) -> Checkpoint:
    """Read a checkpoint, without checking its signature.

    Raises
    ------
    StoreError
        The file cannot be read or is no checkpoint.
    """
    try:
        return _ADAPTER.validate_json(file.read_bytes(), strict=True)
    except OSError as error:
        raise StoreError(file, f"cannot be read ({error.strerror})", "check the path") from error
    except ValidationError as error:
        raise StoreError(
            file, "is no checkpoint", "give a file that medqa audit checkpoint wrote"
        ) from error
