"""Pages: whole, self-contained, with every value and every dot, outliers too."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from medqa.assessment import ImageInput
from medqa.image import Image
from medqa.quality.examine import examine, record_of
from medqa.quality.page import Examined, value_words, write_group, write_page
from medqa.quality.record import Measured, QualityRecord


class _Parsed(HTMLParser):
    """Tags that are still open, links and circles of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.circles: list[dict[str, str | None]] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in ("meta", "img", "br", "rect", "line", "circle", "col"):
            self.open.append(tag)
        if tag == "a":
            self.links.append(given["href"] or "")
        if tag == "circle":
            self.circles.append(given)
            self.open.append(tag)
        self.sources += [v or "" for k, v in given.items() if k in ("src", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "circle":
            self.circles.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _record(
    value: float | None,
    better: Literal["lower", "higher", "neither"] = "lower",
    study_type: str = "CT CHEST",
) -> QualityRecord:
    return QualityRecord(
        quality_id=str(uuid.uuid4()),
        created_at=datetime.now(UTC),
        medqa_version="0",
        image=ImageInput(
            kind="dicom",
            shape=(1, 8, 8),
            modality="CT",
            unit="HU",
            spacing_mm=None,
            body_part=None,
            transfer_syntax=None,
            file_sha256=None,
            pixels_sha256="0" * 64,
        ),
        acquired_on=None,
        device=None,
        device_hmac=None,
        study_type=study_type,
        measures=(Measured(name="noise", value=value, unit="HU", better=better),),
    )


def _group(tmp_path: Path, values: list[float | None]) -> tuple[_Parsed, str]:
    images = [Examined(f"image {i}", _record(one), f"{i:03d}.html") for i, one in enumerate(values)]
    text = write_group(tmp_path / "index.html", images).read_text()
    return _Parsed(text), text


def test_page_of_a_volume_holds_everything(tmp_path: Path) -> None:
    row, column = np.indices((96, 96))
    body = np.hypot(row - 48, column - 48) < 30
    noise = np.random.default_rng(0).normal(0, 5, (4, 96, 96))
    image = Image(
        pixels=(np.where(body, 50.0, -1000.0) + noise).astype(np.float32),
        modality="CT",
        unit="HU",
        spacing_mm=(1.0, 1.0, 1.0),
    )
    found = examine(image)
    record = record_of(found, None, None)
    text = write_page(tmp_path / "one.html", "<b>one</b>", record, found).read_text()
    page = _Parsed(text)
    assert page.open == ["html"] or page.open == []
    assert "<b>one</b>" not in text
    assert "&lt;b&gt;one" in text
    for one in record.measures:
        assert one.name in text
        if one.value is not None:
            assert value_words(one.value, one.unit) in text
        else:
            assert one.detail is not None
            assert one.detail in text
    defined = [v for values in found.slices.values() for v in values if v is not None]
    plotted = [values for values in found.slices.values() if sum(v is not None for v in values) > 1]
    assert len(page.circles) == sum(v is not None for values in plotted for v in values)
    assert len(defined) >= len(page.circles)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "<script" not in text
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", text)


def test_every_image_is_a_dot_that_leads_to_its_page(tmp_path: Path) -> None:
    page, text = _group(tmp_path, [10.0, 11.0, 10.5, None])
    assert sorted(page.links[:3]) == ["000.html", "001.html", "002.html"]
    assert len(page.circles) == 3
    assert "not defined for 1" in text
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", text)
    assert "<script" not in text


@pytest.mark.parametrize("outlier", [1e-9, 1e9, -1e6])
def test_outliers_are_never_cut_off(tmp_path: Path, outlier: float) -> None:
    page, _ = _group(tmp_path, [10.0, 10.1, 10.2, outlier])
    places = [float((one["cx"] or "").removesuffix("%")) for one in page.circles]
    assert len(places) == 4
    assert min(places) >= 0
    assert max(places) <= 100
    values = sorted([10.0, 10.1, 10.2, outlier])
    assert places == sorted(places)  # dots are drawn in the order of their values
    span = values[-1] - values[0]
    share = (values[1] - values[0]) / span
    assert (places[1] - places[0]) / (places[-1] - places[0]) == pytest.approx(share, abs=2e-3)


def test_images_of_another_type_stand_apart(tmp_path: Path) -> None:
    images = [
        Examined(f"{kind} {i}", _record(float(i), study_type=kind), f"{kind} {i}.html")
        for kind in ("CT CHEST", "MR <HEAD>")
        for i in range(3)
    ]
    text = write_group(tmp_path / "index.html", images).read_text()
    assert "CT CHEST: 3 images" in text
    assert "MR &lt;HEAD&gt;: 3 images" in text
    assert text.count('<rect class="track"') == 2
    assert "MR%20%3CHEAD%3E%200.html" in text


def test_equal_values_have_an_axis(tmp_path: Path) -> None:
    page, _ = _group(tmp_path, [0.0, 0.0])
    assert len(page.circles) == 2
