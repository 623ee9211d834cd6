"""Private files: the user's data folder, and files that only their owner may read."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_data_path

from medqa.errors import StoreError

__all__ = ["data_folder", "make_secret", "new_file", "read_secret", "replace_secret"]


def data_folder() -> Path:
    """Folder of the user's own database and keys."""
    return user_data_path("medqa", appauthor=False)


def read_secret(file: Path) -> str:
    """Text of a file that only its owner may read.

    Raises
    ------
    StoreError
        It cannot be read, or others may read or write it too.
    """
    try:
        with file.open("rb") as stream:
            # Of the open file, not of its name, which may stand for another one by now.
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            if sys.platform != "win32" and mode & 0o077:
                raise StoreError(
                    file,
                    f"is a secret, and others may read or write it (mode {mode:04o})",
                    "chmod 600, and make a new key if somebody may have read this one",
                )
            return stream.read().decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(file, f"cannot be read ({error})", "check the file") from error


def make_secret(file: Path, text: str) -> None:
    """Make a file for its owner only: whole or not at all, and never over another one.

    Raises
    ------
    StoreError
        It cannot be made.
    """
    with _written(file, text) as temporary, suppress(FileExistsError):
        os.link(temporary, file)  # unlike rename, fails where there is one


def replace_secret(file: Path, text: str) -> None:
    """Replace a file for its owner only, as a whole or not at all.

    Raises
    ------
    StoreError
        It cannot be written.
    """
    with _written(file, text) as temporary:
        os.replace(temporary, file)


@contextmanager
def _written(file: Path, text: str) -> Iterator[str]:
    """Temporary file beside `file`, for its owner only, on disk; gone at the end."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent)  # with O_EXCL and mode 0600
        try:
            with os.fdopen(handle, "w", encoding="ascii") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            yield temporary
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    except OSError as error:
        raise StoreError(file, f"cannot be made ({error.strerror})", "check its folder") from error


@contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """Name to write to, for its owner only; at the end it becomes `file`, on disk, or is gone.

    Raises
    ------
    StoreError
        There is such a file already, or it cannot be written.
    """
    if file.exists():
        raise StoreError(file, "is there already", "name another file")
    try:
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        os.close(handle)
        try:
            yield Path(temporary)
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, file)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    except OSError as error:
        raise StoreError(
            file, f"cannot be written ({error.strerror})", "check the folder and the space in it"
        ) from error
