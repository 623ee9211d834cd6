"""Which images an approval speaks of; its life in the record is in tests/audit."""

from __future__ import annotations

import pytest

from medqa.compression.approval import Scope
from medqa.compression.approvals import outside

CHEST = Scope(modality="CT", body_part="CHEST", devices=("Maker One",))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (("CT", "CHEST", "Maker One"), None),
        (("CT", "chest", "MAKER  One"), None),
        (("MR", "CHEST", "Maker One"), "modality is MR"),
        ((None, "CHEST", "Maker One"), "modality is not given"),
        (("CT", "HEAD", "Maker One"), "body part is HEAD"),
        (("CT", None, "Maker One"), "body part is not given"),
        (("CT", "CHEST", "Maker Two"), "device"),
        (("CT", "CHEST", None), "device"),
    ],
)
def test_a_scope(image: tuple[str | None, str | None, str | None], words: str | None) -> None:
    why = outside(CHEST, *image)
    assert (why is None) == (words is None)
    assert words is None or words in (why or "")


def test_a_scope_for_any() -> None:
    wide = Scope(modality="CT", body_part=None, devices=())
    assert outside(wide, "CT", None, None) is None
