"""Fixtures that several test files share."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from databases import postgresql, server, sqlite, url

__all__ = ["postgresql", "server", "sqlite", "url"]  # fixtures of every test

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
    monkeypatch.delenv("COLUMNS", raising=False)  # width of a terminal that is not there
    for name in ("MEDQA_DB", "MEDQA_KEY", "MEDQA_SIGNING_KEY", "MEDQA_USER", "MEDQA_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


_NAMES = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}


@pytest.fixture(scope="session")
def official_trunk(shared_weights: Path) -> Callable[..., AbstractContextManager[None]]:
    """Within it, torchvision builds a network with the trunk that a peer would download.

    Takes the backbone, and another trunk to give than the official one.
    """
    import torchvision
    from safetensors.torch import load_file

    @contextmanager
    def given(backbone: str, trunk: dict[str, Any] | None = None) -> Iterator[None]:
        name = _NAMES[backbone]
        tensors = trunk or load_file(shared_weights / f"{name}_features.safetensors")
        original = getattr(torchvision.models, name)

        def offline(pretrained: bool = False) -> Any:  # noqa: ARG001 (the peers' call)
            model = original(weights=None)
            model.features.load_state_dict(tensors)
            return model

        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")  # the peers load their heads the old way
            patch.setattr(torchvision.models, name, offline)
            yield

    return given
