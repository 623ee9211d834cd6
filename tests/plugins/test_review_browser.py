"""The review page in a real browser: sign in, find the worst case, look, read, sign, on record."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from pydicom import dcmread
from reviewing import BLURRED, SLICES, assessed, blur_one, unchanged
from web_service import free_port

from medqa.audit import Store, histories
from medqa_plugins.web.app import create_app
from medqa_plugins.web.keys import add
from medqa_plugins.web.settings import Settings

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = Path("/usr/bin/chromium")
BOX = json.dumps({"annotations": [{"type": "nodule", "bbox": [40, 30, 70, 60], "slice": BLURRED}]})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The service itself on a port of its own, with a bad and a good case."""
    if not BROWSER.exists():
        reason = f"no browser at {BROWSER} (apt-get install chromium)"
        if os.environ.get("MEDQA_REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDQA_KEY", "cd" * 32)
        with Store.open(str(folder / "audit.db")) as store:
            good = assessed(store, folder / "spool", unchanged)
            bad = assessed(store, folder / "spool", blur_one, BOX)
        key = add(folder / "keys.json", "dr-lang", "reviewer")
        app = create_app(
            Settings(db=str(folder / "audit.db"), spool=folder / "spool", keys=folder / "keys.json")
        )
        port = free_port()
        server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning")
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        try:
            yield {
                "folder": folder,
                "url": f"http://127.0.0.1:{port}",
                "key": key,
                "bad": bad,
                "good": good,
            }
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def chromium(site: dict[str, Any]) -> Iterator[Any]:  # noqa: ARG001 (which skips without it)
    with playwright.sync_playwright() as one:
        browser = one.chromium.launch(executable_path=str(BROWSER), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, site: dict[str, Any]) -> Iterator[Any]:
    """A page that fails the test where a script fails or the policy forbids something."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    one = context.new_page()
    one.set_default_timeout(10_000)
    wrong: list[str] = []
    asked: list[str] = []
    one.on("pageerror", lambda error: wrong.append(str(error)))
    one.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    one.on("request", lambda request: asked.append(request.url))
    yield one
    context.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith(site["url"])] == []


def sign_in(page: Any, site: dict[str, Any]) -> None:
    page.goto(f"{site['url']}/review")
    page.get_by_label("API key").fill(site["key"])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/review")


def open_bad(page: Any, site: dict[str, Any]) -> None:
    sign_in(page, site)
    page.goto(f"{site['url']}/review/cases/{site['bad']}?verdict=all&state=all")
    at_slice(page, BLURRED)


def at_slice(page: Any, index: int) -> None:
    playwright.expect(page.locator("#status")).to_contain_text(f"Slice {index} of {SLICES}")


def gray(page: Any, name: str, x: float, y: float) -> list[int]:
    """Colour that a pane shows in the middle of a pixel of the image (128 pixels across)."""
    return list(
        page.evaluate(
            """([name, x, y]) => new Promise((done) => requestAnimationFrame(() => {
              const canvas = document.getElementById(name), scale = canvas.width / 128;
              const at = [(x + 0.5) * scale, (y + 0.5) * scale];
              done([...canvas.getContext("2d").getImageData(...at, 1, 1).data]);
            }))""",
            [name, x, y],
        )
    )


def files(site: dict[str, Any], index: int) -> dict[str, np.ndarray[Any, Any]]:
    """Modality values of both images on a slice, read by pydicom."""
    (results,) = (
        one
        for one in (site["folder"] / "spool" / "results").iterdir()
        if json.loads((one / "assessment.json").read_bytes())["assessment_id"] == site["bad"]
    )
    what = json.loads((results / "review.json").read_bytes())
    found = {}
    for side in ("reference", "candidate"):
        for name in what[side]:
            ds = dcmread(site["folder"] / "spool" / "files" / name)
            if ds.ImagePositionPatient[2] == 10.0 * index:
                found[side] = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    return found


def test_from_signing_in_to_the_record(page: Any, site: dict[str, Any]) -> None:
    sign_in(page, site)
    page.locator("a.case").first.click()  # the worst comes first
    page.wait_for_url(f"**/cases/{site['bad']}*")
    at_slice(page, BLURRED)  # and begins at its worst slice

    # The window follows the mouse, in all panes alike.
    before = (
        float(page.locator("#centre").input_value()),
        float(page.locator("#width").input_value()),
    )
    box = page.locator("#reference").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 140, steps=4)
    page.mouse.up()
    page.wait_for_timeout(100)
    centre = float(page.locator("#centre").input_value())
    width = float(page.locator("#width").input_value())
    assert width == pytest.approx(before[1] * 3 ** (60 / box["width"]), rel=1e-3)
    assert centre == pytest.approx(before[0] + before[1] * 40 / box["height"], rel=1e-3)

    # What is shown and read is what is in the files.
    values = files(site, BLURRED)
    x, y = 55, 45
    scale = box["width"] / 128
    page.mouse.move(box["x"] + (x + 0.5) * scale, box["y"] + (y + 0.5) * scale)
    one, other = values["reference"][y, x], values["candidate"][y, x]
    text = page.locator("#values").inner_text()
    assert f"x {x}, y {y}: reference {one:g} HU, candidate {other:g} HU" in text.replace("−", "-")
    distance = re.search(r"distance ([\d.e-]+)", text)
    assert distance is not None
    assert float(distance[1]) > 0
    page.mouse.move(0, 0)
    page.locator("#outlines").click()
    x, y = 64, 100  # away from the cross
    shown = np.clip((values["candidate"][y, x] - centre + width / 2) / width * 255, 0, 255)
    assert abs(gray(page, "candidate", x, y)[0] - shown) <= 1.5
    away = (values["candidate"][y, x] - values["reference"][y, x]) * 2 / width * 255
    assert abs(gray(page, "difference", x, y)[0] - np.clip(127.5 + away, 0, 255)) <= 1.5

    # Scroll: by wheel and by key; the map is said to be kept for the worst only.
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.wheel(0, 100)
    at_slice(page, BLURRED + 1)

    # Sign, and see the record.
    page.get_by_label("Rejected").check()
    page.get_by_label("Comment").fill("Blurred beyond use.")
    page.get_by_role("button", name="Sign", exact=True).click()
    playwright.expect(page.locator("h1 .state")).to_contain_text("rejected")
    page.get_by_role("link", name="Audit trail").click()
    row = page.locator("tbody tr").first
    playwright.expect(row).to_contain_text("signature: rejected")
    playwright.expect(row).to_contain_text("dr-lang")
    playwright.expect(page.get_by_role("status")).to_contain_text("The record is whole")
    with Store.open(str(site["folder"] / "audit.db"), readonly=True) as store:
        (signature,) = histories(store, [site["bad"]])[site["bad"]].signatures
    assert (signature.actor, signature.meaning) == ("dr-lang", "rejected")
    assert signature.comment == "Blurred beyond use."


def test_everything_is_done_by_keys_too(page: Any, site: dict[str, Any]) -> None:
    open_bad(page, site)
    page.locator("#panes").focus()
    for key, index in [("Home", 0), ("ArrowDown", 1), ("ArrowUp", 0), ("End", SLICES - 1)]:
        page.keyboard.press(key)
        at_slice(page, index)
    page.keyboard.press("PageUp")
    at_slice(page, 0)
    page.keyboard.press("x")
    at_slice(page, BLURRED)
    names = page.locator("#preset option").all_inner_texts()
    page.keyboard.press("w")
    playwright.expect(page.locator("#preset")).to_have_value(str(1 % (len(names) - 1)))
    page.keyboard.press("l")
    playwright.expect(page.locator("#preset")).to_have_value("0")
    page.keyboard.press("Alt+ArrowRight")
    playwright.expect(page.locator("#values")).to_contain_text("x 65, y 64: reference")
    page.keyboard.press("?")
    playwright.expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    playwright.expect(page.get_by_role("dialog")).not_to_be_visible()
    page.keyboard.press("n")
    page.wait_for_url(f"**/cases/{site['good']}*")
    playwright.expect(page.locator("#status")).to_contain_text("Slice")
    page.keyboard.press("p")
    page.wait_for_url(f"**/cases/{site['bad']}*")
    at_slice(page, BLURRED)
    page.keyboard.press("s")
    page.keyboard.type("fwb")  # in a form, letters are letters
    assert page.locator("#flicker").get_attribute("aria-pressed") == "false"
    # No keyboard trap: from the images on, Tab gets out again.
    page.locator("#panes").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") != "panes"


def test_blend_and_flicker_show_the_reference_in_the_candidates_place(
    page: Any, site: dict[str, Any]
) -> None:
    open_bad(page, site)
    page.locator("#outlines").click()
    values = files(site, BLURRED)
    apart = np.abs(values["candidate"] - values["reference"])
    y, x = (int(one) for one in np.unravel_index(np.argmax(apart), apart.shape))
    low, high = sorted((values["reference"][y, x], values["candidate"][y, x]))
    page.locator("#centre").fill(str((low + high) / 2))
    page.locator("#width").fill(str(2 * (high - low)))
    page.locator("#width").press("Enter")
    one, other = gray(page, "reference", x, y)[0], gray(page, "candidate", x, y)[0]
    assert abs(abs(one - other) - 127.5) < 3
    page.locator("#panes").focus()
    page.keyboard.press("b")
    assert abs(gray(page, "candidate", x, y)[0] - (one + other) / 2) < 3
    page.keyboard.press("b")
    page.keyboard.press("f")
    seen = set()
    for _ in range(12):
        seen.add(gray(page, "candidate", x, y)[0])
        page.wait_for_timeout(120)
    assert seen == {one, other}


def test_what_someone_types_is_not_written_over(page: Any, site: dict[str, Any]) -> None:
    open_bad(page, site)
    page.locator("#width").fill("77")
    page.locator("#blend").dispatch_event("input")  # draws again
    page.wait_for_timeout(100)
    assert page.locator("#width").input_value() == "77"


def test_zoom_and_pan_are_linked(page: Any, site: dict[str, Any]) -> None:
    open_bad(page, site)
    page.locator("#panes").focus()
    for _ in range(4):
        page.keyboard.press("+")
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_timeout(100)
    box = page.locator("#candidate").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    zoom = 1.25**4
    x = 64 + 128 / 20 / zoom
    playwright.expect(page.locator("#values")).to_contain_text(f"x {int(x)}, y 64:")


def test_contrast_and_labels(page: Any, site: dict[str, Any]) -> None:
    open_bad(page, site)
    unlabelled = page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button, a")]
        .filter((one) => one.type !== "hidden")
        .filter((one) => !one.labels?.length && !one.textContent.trim() && !one.ariaLabel)
        .map((one) => one.outerHTML)"""
    )
    assert unlabelled == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for path in ("", "?verdict=all&state=all", f"/cases/{site['bad']}", "/trail"):
            page.goto(f"{site['url']}/review{path}")
            assert page.evaluate(CONTRAST) == [], (scheme, path)


# Text whose contrast with what is behind it is below 4.5:1 (WCAG 2.2, 1.4.3).
CONTRAST = """() => {
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255)
    + 0.0722 * linear(b / 255);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const one of document.querySelectorAll("body *")) {
    const text = [...one.childNodes].filter((node) => node.nodeType === 3);
    if (!text.some((node) => node.textContent.trim()) || !one.checkVisibility()) continue;
    if (one.closest("svg, dialog, .hidden, .skip")) continue;
    const a = light(parse(getComputedStyle(one).color).slice(0, 3)), b = light(behind(one));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${one.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return bad;
}"""
