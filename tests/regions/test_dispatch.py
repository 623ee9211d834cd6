"""What a file of regions is, is found out within the limits that hold for images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hostile import deflated, dicom, element, header

from medqa.errors import RegionError
from medqa.image import Image
from medqa.regions import read_mask


def test_a_deflate_bomb_is_stopped_before_its_kind_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.dcm"
    path.write_bytes(deflated(dicom(header(), element(0x7FE00010, b"OB", bytes(2**22)))))
    monkeypatch.setenv("MEDQA_MAX_FILE_GIB", str(1 / 2**10))
    with pytest.raises(RegionError, match="inflates"):
        read_mask(path, Image(np.zeros((1, 20, 20), np.int16)))
