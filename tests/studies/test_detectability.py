from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pydicom
import pytest
import typer
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import norm
from typer.testing import CliRunner

import medqa
from medqa.cli.detectability import detectability as command
from medqa.compression.codecs import CODECS, at_ratio
from medqa.errors import MismatchError, PixelError, UsageError
from medqa.studies.compression.stored import read_stored
from medqa.studies.detectability import Detectability, detectability, evaluate, respond
from medqa.studies.detectability_examples import examples
from medqa.studies.detectability_page import Asked, page
from medqa.studies.detectability_study import AtRatio, codec_process, detectability_by_ratio
from medqa.studies.intervals import Estimate
from medqa.studies.signals import Signal, calm, inserted, places

FLAT = (1.0, 1.0)
LESION = Signal(6.0, 12.0)
FAINT = Signal(6.0, 6.0)


def phantom(slices: int = 4, seed: int = 0, sigma: float = 20.0) -> NDArray[np.int16]:
    """Discs of white noise about 50 in air."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((256, 256)) - 127.5
    disc = np.hypot(rows, columns) < 120
    noise = np.rint(50 + sigma * rng.standard_normal((slices, 256, 256)))
    return np.where(disc, noise, -1000).astype(np.int16)


def same(stack: NDArray[np.int16]) -> NDArray[np.int16]:
    return stack


def test_white_phantom_against_closed_form() -> None:
    """Whole way on white noise: AUC is Phi(d'/sqrt 2), d' the lesion's length over the noise."""
    found = detectability(phantom(12), same, FAINT, modality="CT")
    index = np.linalg.norm(FAINT.draw(FLAT) * FAINT.contrast) / 20.0
    assert (found.unit, found.units) == ("slices", 12)
    assert found.before.low is not None
    assert found.before.low < norm.cdf(index / math.sqrt(2)) < found.before.high
    assert (found.loss.value, found.loss.low, found.loss.high) == (0.0, 0.0, 0.0)


def test_added_noise_costs_what_it_should() -> None:
    def noisier(stack: NDArray[np.int16]) -> NDArray[np.float64]:
        noise = np.random.default_rng(int(stack.sum()) % 1000).standard_normal(stack.shape)
        return stack + 20.0 * noise

    found = detectability(phantom(12), noisier, FAINT, modality="CT")
    index = np.linalg.norm(FAINT.draw(FLAT) * FAINT.contrast) / 20.0
    truth = norm.cdf(index / math.sqrt(2)) - norm.cdf(index / 2)
    assert found.loss.low is not None
    assert found.loss.low < truth < found.loss.high


def test_same_seed_same_figures() -> None:
    one, other = (detectability(phantom(), same, LESION, modality="CT", seed=3) for _ in range(2))
    assert one == other
    assert one != detectability(phantom(), same, LESION, modality="CT", seed=4)


def test_interval_counts_the_outermost_units() -> None:
    def units(images: int, slices: int) -> Detectability:
        one = respond(phantom(slices), lambda s: [s], LESION, modality="CT")
        return evaluate([one] * images)[0]

    assert units(1, 3).unit == "places"
    assert (units(3, 4).unit, units(3, 4).units) == ("slices", 12)
    assert (units(10, 1).unit, units(10, 1).units) == ("images", 10)


def test_the_reference_is_left_alone() -> None:
    def writes(stack: NDArray[np.int16]) -> NDArray[np.int16]:
        stack += 5
        return stack

    stack = phantom()
    kept = stack.copy()
    found = detectability(stack, writes, LESION, modality="CT")
    np.testing.assert_array_equal(stack, kept)
    assert found.loss.value == 0.0  # a constant tells nothing


def test_too_few_places() -> None:
    with pytest.raises(PixelError, match="places for a lesion, where 60 are needed"):
        detectability(phantom(1), same, Signal(20.0, 10.0), modality="CT")


def test_nowhere_to_put_a_lesion() -> None:
    with pytest.raises(PixelError, match="0 places"):
        detectability(np.zeros((2, 64, 64), np.int16), same, LESION)


@pytest.mark.parametrize(
    ("process", "reason"),
    [(lambda s: s[:, 1:], "shape"), (lambda s: s * np.nan, "not finite")],
)
def test_bad_process(process: object, reason: str) -> None:
    with pytest.raises(MismatchError, match=reason):
        detectability(phantom(1), process, LESION, modality="CT")  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(0.0, 1.0), (5.0, 0.0), (math.nan, 1.0), (5.0, math.inf)])
def test_impossible_lesion(sizes: tuple[float, float]) -> None:
    with pytest.raises(UsageError):
        Signal(*sizes)


def test_lesion_measures() -> None:
    """Full width at half maximum in mm, whatever the pixels; the disc has its area."""
    gaussian = Signal(6.0, 1.0).draw((0.5, 0.25))
    middle = gaussian.shape[0] // 2, gaussian.shape[1] // 2
    assert gaussian[middle] == 1.0
    assert gaussian[middle[0] + 6, middle[1]] == pytest.approx(0.5)
    assert gaussian[middle[0], middle[1] - 12] == pytest.approx(0.5)
    disc = Signal(8.0, 1.0, "disc", blur=0.4).draw((0.5, 0.5))
    assert disc.sum() * 0.25 == pytest.approx(math.pi * 16, rel=0.03)


def test_places_are_apart_and_inside() -> None:
    stack = phantom()
    inside = calm(stack, LESION, FLAT, "CT")
    where = places(inside, (27, 27), 0)
    assert len(where) > 60
    rows, columns = where[:, 1:].T - 127.5
    assert np.hypot(rows, columns).max() <= 120 - LESION.diameter
    assert inside[tuple(where.T)].all()
    for one in range(4):
        of_slice = where[where[:, 0] == one][:, 1:]
        gaps = np.abs(of_slice[:, None] - of_slice[None]).max(axis=-1)
        assert gaps[~np.eye(len(gaps), dtype=bool)].min() >= 27  # patches do not overlap


def test_contrast_does_not_move_the_places(shared_data: Path) -> None:
    image = medqa.read(shared_data / "ts/ct_all_syntaxes/CT1_J2KR")
    pixels = np.asarray(image.pixels)
    masks = [calm(pixels, Signal(4.0, contrast), FLAT, "CT") for contrast in (5.0, 50.0)]
    np.testing.assert_array_equal(*masks)


def test_inserted_rounds_and_clips() -> None:
    stack = np.full((1, 9, 9), 32760, np.int16)
    profile = np.array([[0.4, 0.6, 0.4], [3.5, 20.0, 2.4], [0.0, 0.0, 0.0]])
    made = inserted(stack, profile, np.array([[0, 4, 4]]))
    assert made.dtype == np.int16
    np.testing.assert_array_equal(made[0, 3, 3:6], [32760, 32761, 32760])
    np.testing.assert_array_equal(made[0, 4, 3:6], [32764, 32767, 32762])
    assert (stack == 32760).all()


@pytest.fixture(scope="module")
def liver(shared_data: Path) -> list[Path]:
    return sorted((shared_data / "ct/liver_3slice_with_SEG").glob("0*.dcm"))


@pytest.mark.parametrize("codec", ["j2k", "jpegls"])
def test_codec_process_against_pydicom(liver: list[Path], codec: str) -> None:
    """A lesion of 20 HU in the stored values as pydicom gives them, compressed, and rescaled."""
    stored = read_stored(liver[:1])
    profile = np.rint(Signal(4.0, 20.0).draw(FLAT) * 20)
    where = np.array([[0, 250, 200]])
    (made,) = codec_process(stored, [0], CODECS[codec], (8.0,))(
        inserted(np.asarray(stored.image.pixels), profile, where)
    )
    ds = pydicom.dcmread(liver[0])
    assert ds.RescaleSlope == 1
    raw = inserted(ds.pixel_array[None], profile, where)[0]
    expected = at_ratio(CODECS[codec], raw, stored.samples, 8.0).pixels
    np.testing.assert_array_equal(made[0], expected + float(ds.RescaleIntercept))


def test_lossless_loses_nothing(liver: list[Path]) -> None:
    """A ratio that lossless reaches: the same values, and exactly no loss."""
    (found,) = detectability_by_ratio(
        [lambda: read_stored(liver)], CODECS["j2k"], (1.5,), Signal(4.0, 15.0)
    )
    loss = found.found.loss
    assert (loss.value, loss.low, loss.high) == (0.0, 0.0, 0.0)


def test_strong_compression_loses(liver: list[Path]) -> None:
    weak, strong = detectability_by_ratio(
        [lambda: read_stored(liver)], CODECS["j2k"], (5.0, 30.0), Signal(4.0, 15.0)
    )
    assert abs(weak.found.loss.value) < 0.03
    assert strong.found.loss.low is not None
    assert strong.found.loss.low > 0.03


def test_median_filter_removes_a_small_lesion(liver: list[Path]) -> None:
    """Positive control: half of a median's window never is lesion."""
    image = medqa.read(liver[:2])
    found = detectability(
        np.asarray(image.pixels),
        lambda stack: ndimage.median_filter(stack, (1, 11, 11)),
        Signal(3.0, 30.0),
        spacing=image.spacing_mm[1:],
        modality="CT",
    )
    assert found.loss.low is not None
    assert found.loss.low > 0.1


def test_command_writes_figures_and_a_page(liver: list[Path], tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    out = tmp_path / "out"
    given = [*map(str, liver), "--diameter", "3.5", "--contrast", "20", "--ratios", "1.5,30"]
    done = CliRunner().invoke(app, [*given, "--codec", "jpegls", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "95 % intervals count" in done.output
    record = json.loads((out / "detectability.json").read_text())
    assert [one["ratio"] for one in record["ratios"]] == [1.5, 30.0]
    assert record["ratios"][0]["found"]["loss"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    after = record["ratios"][1]["found"]
    assert after["loss"]["low"] > 0.05
    assert record["codec_version"]
    page = (out / "index.html").read_text("utf-8")
    low, high = after["after"]["low"], after["after"]["high"]
    assert f"{after['after']['value']:.3f} ({low:.3f} to {high:.3f})" in page
    assert "From 30:1 on" in page
    # The slice; two places without the lesion, and with it before and at two ratios, twice each.
    assert page.count("data:image/png") == 1 + 2 * (1 + 3 * 2)
    assert "http" not in page.replace("http-equiv", "")
    assert str(tmp_path) not in page
    assert not any(path.name in page for path in liver)


def test_examples_show_the_lesion_alone_and_what_is_left(liver: list[Path]) -> None:
    stored, signal = read_stored(liver[:1]), Signal(3.5, 20.0)
    found = examples(stored, CODECS["jpegls"], [1.5, 60.0], signal)
    assert found is not None
    shape = stored.image.shape[1:]
    assert (found.rows, found.columns) == shape
    assert found.where == tuple(
        (row, column)
        for _, row, column in places(
            calm(np.asarray(stored.image.pixels), signal, stored.image.spacing_mm[1:], "CT"),
            signal.draw(stored.image.spacing_mm[1:]).shape,
            0,
        )
    )
    for one in found.shown:
        _, before, lossless, coarse = map(_gray, (view.lesion for view in one.views))
        # At 1.5:1 nothing is lost; grey is no difference, and the lesion is bright in the middle.
        middle = before.shape[0] // 2, before.shape[1] // 2
        assert before[middle] == pytest.approx(255 * (0.5 + 0.5 / 1.5), abs=4)
        assert before[0, 0] == pytest.approx(128, abs=1)
        # But for rounding to whole HU, of both slices; one is 255 / 60 greys.
        apart = [np.abs(one.astype(int) - before).max() for one in (lossless, coarse)]
        assert apart[0] <= 5
        assert apart[1] > 20


def _gray(uri: str | None) -> NDArray[np.uint8]:
    if uri is None:
        return np.zeros((0, 0), np.uint8)
    content = base64.b64decode(uri.partition(",")[2])
    return np.asarray(PIL.Image.open(io.BytesIO(content)))


def test_a_page_of_no_room_no_loss_and_a_plain_lesion() -> None:
    sure = Estimate(1.0, None, None)
    plain = Detectability(sure, sure, Estimate(0.0, None, None), 90, 90, "places")
    asked = Asked(CODECS["j2k"], Signal(9.0, 900.0, "disc"), "gabor", 1, 20, 0, "arbitrary")
    found = page(asked, [AtRatio(5.0, plain)], None).decode()
    for words in ("No loss is shown", "not known", "so plain that", "no room for", "discs 9 mm"):
        assert words in found
    assert "arbitrary" not in found


@pytest.mark.parametrize("ratios", ["5,x", "1,5", "nan", ""])
def test_command_refuses_ratios(ratios: str) -> None:
    with pytest.raises(UsageError):
        command([Path("absent")], 4.0, 10.0, ratios=ratios)
