"""The two keys: one turns identifiers into pseudonyms, the other signs checkpoints."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from medqa.audit.files import data_folder, make_secret, read_secret, replace_secret
from medqa.errors import StoreError

__all__ = [
    "pseudonym",
    "pseudonym_key",
    "pseudonym_keys",
    "public_key",
    "public_pem",
    "rotate_pseudonym_key",
    "signing_key",
]

_KEY_BYTES = 32  # as long as the SHA-256 that it keys (RFC 2104, section 3)


def pseudonym(key: bytes, value: str) -> str:
    """HMAC-SHA-256 of an identifier in UTF-8, in hex (64 characters)."""
    return hmac.new(key, value.encode(), hashlib.sha256).hexdigest()


def pseudonym_keys() -> tuple[bytes, ...]:
    """Keys of the pseudonyms, the one in use first, then those that it replaced.

    From the environment's ``MEDQA_KEY`` (hex, separated by commas), else from ``hmac.key`` in the
    user's data folder (hex, one a line), which is made once. Hosts that share a database must
    share the keys.

    Raises
    ------
    StoreError
        One is not hex or too short, or the file cannot be made, or others may read it.
    """
    given = os.environ.get("MEDQA_KEY")
    if given is not None:
        return tuple(_parse_key(one, "MEDQA_KEY") for one in given.split(","))
    file = data_folder() / "hmac.key"
    if not file.exists():
        make_secret(file, secrets.token_hex(_KEY_BYTES))
    return tuple(_parse_key(one, str(file)) for one in read_secret(file).split() or [""])


def pseudonym_key() -> bytes:
    """Key of the pseudonyms of new records; errors are those of `pseudonym_keys`."""
    return pseudonym_keys()[0]


def rotate_pseudonym_key() -> Path:
    """Put a new key before those in ``hmac.key``; return that file.

    Records keep the codes of their time: the keys that were replaced stay in the file, to look
    records up by.

    Raises
    ------
    StoreError
        The key comes from the environment, or the file cannot be written.
    """
    if "MEDQA_KEY" in os.environ:
        raise StoreError(
            "MEDQA_KEY", "holds the key, not a file", "put a new key and a comma before it there"
        )
    keys = [secrets.token_bytes(_KEY_BYTES), *pseudonym_keys()]
    file = data_folder() / "hmac.key"
    replace_secret(file, "\n".join(one.hex() for one in keys))
    return file


def signing_key(file: Path | None = None) -> Ed25519PrivateKey:
    """Private key (Ed25519, PEM) that signs checkpoints.

    From `file`; else from the environment's ``MEDQA_SIGNING_KEY``, which holds the PEM text; else
    from ``signing.key`` in the user's data folder, which is made once.

    Raises
    ------
    StoreError
        It is no such key, or the file cannot be read or made, or others may read it.
    """
    given = os.environ.get("MEDQA_SIGNING_KEY")
    if file is None and given is not None:
        return _parse_private(given, "MEDQA_SIGNING_KEY")
    if file is None:
        file = data_folder() / "signing.key"
        if not file.exists():
            made = Ed25519PrivateKey.generate()
            pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            make_secret(file, pem.decode("ascii"))
    return _parse_private(read_secret(file), str(file))


def public_key(file: Path) -> Ed25519PublicKey:
    """Public key (Ed25519, PEM) in a file.

    Raises
    ------
    StoreError
        There is none.
    """
    try:
        found = load_pem_public_key(file.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise StoreError(file, "holds no public key that can be read", _MAKE_PUBLIC) from error
    if not isinstance(found, Ed25519PublicKey):
        raise StoreError(file, "holds no Ed25519 key", _MAKE_PUBLIC)
    return found


_MAKE_PUBLIC = "write it with medqa audit public-key"


def public_pem(key: Ed25519PublicKey) -> str:
    """Return the key as PEM, as OpenSSL reads it."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def _parse_private(pem: str, subject: str) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None  # neither shown nor chained: it is a secret
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError(
            subject,
            "is no Ed25519 key in PEM, without a passphrase",
            "make one with openssl genpkey -algorithm ed25519",
        )
    return key


def _parse_key(given: str, subject: str) -> bytes:
    try:
        key = bytes.fromhex(given)
    except ValueError:
        key = b""
    if len(key) < _KEY_BYTES:
        # The value is a secret: not shown, not chained.
        raise StoreError(
            subject,
            f"is not {_KEY_BYTES} bytes in hex or more",
            "make one with openssl rand -hex 32",
        )
    return key
