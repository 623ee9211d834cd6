"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# The same examples in every run, and no time limit on a busy machine.
hypothesis.settings.register_profile("medqa", derandomize=True, deadline=None)
hypothesis.settings.load_profile("medqa")

_SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(name: str) -> Path:
    folder = _SHARED / name
    if not folder.is_dir():
        reason = f"the real {name} of this project's tests are not at {folder}"
        if os.environ.get("MEDQA_REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Folder of the official networks' weights."""
    return _shared("weights")


@pytest.fixture(autouse=True)
def _private_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or writes the user's own database, key, weights or settings."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user-data"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("MEDQA_DB", "MEDQA_KEY", "MEDQA_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
