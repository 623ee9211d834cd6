"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from medqa.errors import UsageError

__all__ = ["write_file"]


def write_file(path: Path, content: bytes) -> Path:
    """Write a file under another name first, then rename it; its folder is made where missing.

    Raises
    ------
    UsageError
        It cannot be written; what was there before is unharmed.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            path.parent,
            f"files cannot be written here ({error.strerror or error})",
            "name a folder that you may write to and that has space",
        ) from error
    return path
