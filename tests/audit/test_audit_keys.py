"""Oracles: RFC 4231, OpenSSL's own program, the kernel."""

from __future__ import annotations

import secrets
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medqa.audit import Store, pseudonym
from medqa.audit.files import make_secret
from medqa.audit.keys import (
    pseudonym_key,
    pseudonym_keys,
    public_key,
    public_pem,
    rotate_pseudonym_key,
    signing_key,
)
from medqa.errors import StoreError

# The key.


def test_pseudonym_is_hmac_sha_256() -> None:
    # RFC 4231, test case 2.
    assert pseudonym(b"Jefe", "what do ya want for nothing?") == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "medqa"


def test_key_file_is_made_once_for_its_owner(sqlite: str, data_folder: Path) -> None:
    with Store.open(sqlite) as store:
        key = store.key
    file = data_folder / "hmac.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert bytes.fromhex(file.read_text()) == key
    assert len(key) == 32
    assert list(data_folder.iterdir()) == [file]
    with Store.open(sqlite) as store:
        assert store.key == key


def test_key_file_of_another_process_is_not_overwritten(data_folder: Path) -> None:
    file = data_folder / "hmac.key"
    make_secret(file, secrets.token_hex(32))
    first = file.read_text()
    make_secret(file, secrets.token_hex(32))  # both saw none, this one came second
    assert file.read_text() == first
    assert list(data_folder.iterdir()) == [file]


def test_key_of_the_environment(
    sqlite: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDQA_KEY", "0f" * 32)
    with Store.open(sqlite) as store:
        assert store.key == b"\x0f" * 32
    assert not data_folder.exists()


@pytest.mark.parametrize("wrong", ["", "0f" * 31, "0f" * 31 + "x"])
def test_weak_key_is_refused_and_not_shown(
    sqlite: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("MEDQA_KEY", wrong)
    with Store.open(sqlite) as store, pytest.raises(StoreError, match="32 bytes") as caught:
        _ = store.key
    assert not wrong or wrong not in str(caught.value)
    monkeypatch.delenv("MEDQA_KEY")
    data_folder.mkdir(parents=True)
    (data_folder / "hmac.key").write_text(wrong)
    (data_folder / "hmac.key").chmod(0o600)
    with Store.open(sqlite) as store, pytest.raises(StoreError, match="32 bytes"):
        _ = store.key


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o602])
def test_keys_that_others_may_read_are_refused(data_folder: Path, mode: int) -> None:
    for name, load in (("hmac.key", pseudonym_key), ("signing.key", signing_key)):
        load()
        (data_folder / name).chmod(mode)
        with pytest.raises(StoreError, match="others may read or write it") as caught:
            load()
        assert caught.value.subject == str(data_folder / name)
        (data_folder / name).chmod(0o400)
        load()


def test_signing_key_is_made_once_for_its_owner(data_folder: Path) -> None:
    first = signing_key()
    file = data_folder / "signing.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert signing_key().private_bytes_raw() == first.private_bytes_raw()
    assert signing_key(file).private_bytes_raw() == first.private_bytes_raw()


def test_signing_key_of_the_environment(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = signing_key_pem(data_folder)
    (data_folder / "signing.key").unlink()
    monkeypatch.setenv("MEDQA_SIGNING_KEY", pem)
    expected = public_pem(signing_key().public_key())
    assert not (data_folder / "signing.key").exists()
    file = data_folder / "public.pem"
    file.write_text(expected)
    assert public_key(file) == signing_key().public_key()


def signing_key_pem(data_folder: Path) -> str:
    signing_key()
    return (data_folder / "signing.key").read_text()


@pytest.mark.parametrize("wrong", ["", "secret words", "0f" * 32])
def test_what_is_no_signing_key_is_refused_and_not_shown(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("MEDQA_SIGNING_KEY", wrong)
    with pytest.raises(StoreError, match="no Ed25519 key") as caught:
        signing_key()
    assert not wrong or wrong not in str(caught.value)
    file = tmp_path / "public.pem"
    file.write_text(wrong)
    with pytest.raises(StoreError, match="no public key"):
        public_key(file)
    with pytest.raises(StoreError, match="no public key"):
        public_key(data_folder / "not there")
    with pytest.raises(StoreError, match="cannot be read"):
        signing_key(data_folder / "not there")


def openssl(*arguments: str | Path) -> bytes:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    return subprocess.run([program, *arguments], check=True, capture_output=True).stdout  # noqa: S603


def test_keys_of_openssl_are_taken(data_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", file)
    file.chmod(0o600)
    assert openssl("pkey", "-in", file, "-pubout").decode() == public_pem(
        signing_key(file).public_key()
    )
    openssl("genpkey", "-algorithm", "x25519", "-out", file)
    with pytest.raises(StoreError, match="no Ed25519 key"):
        signing_key(file)
    assert not data_folder.exists()


def test_two_keys_differ() -> None:
    assert Ed25519PrivateKey.generate().public_key() != signing_key().public_key()


def test_a_new_key_leaves_the_earlier_ones_to_look_up_by(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pseudonym_key()
    file = rotate_pseudonym_key()
    assert file == data_folder / "hmac.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    second = pseudonym_key()
    assert second != first
    assert pseudonym_keys() == (second, first)
    rotate_pseudonym_key()
    assert pseudonym_keys()[1:] == (second, first)
    assert list(data_folder.iterdir()) == [file]
    monkeypatch.setenv("MEDQA_KEY", f"{'0f' * 32},{first.hex()}")
    assert pseudonym_keys() == (bytes.fromhex("0f" * 32), first)
    with pytest.raises(StoreError, match="holds the key, not a file"):
        rotate_pseudonym_key()


def test_a_key_file_may_end_in_a_line_feed_but_not_be_empty(data_folder: Path) -> None:
    make_secret(data_folder / "hmac.key", "0f" * 32 + "\n")
    assert pseudonym_keys() == (bytes.fromhex("0f" * 32),)
    (data_folder / "hmac.key").write_text("\n")
    with pytest.raises(StoreError, match="is not 32 bytes in hex"):
        pseudonym_keys()
