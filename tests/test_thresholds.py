"""Oracles: the textbook table, the TOML itself, and files broken by hand."""

from __future__ import annotations

import hashlib
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from medqa.errors import ProfileError
from medqa.thresholds import (
    Profile,
    Task,
    Windows,
    check_backbone,
    check_calibrated,
    check_modality,
    choose,
    differences,
    load,
    names,
)

# The textbook table: modality, diagnostic, screening. Anything it does not name is 0.15 / 0.25.
TEXTBOOK = [
    ("CR", 0.15, 0.25),
    ("DX", 0.15, 0.25),
    ("MR", 0.12, 0.20),
    ("CT", 0.10, 0.18),
    ("MG", 0.08, 0.15),
    ("US", 0.15, 0.25),
    ("NM", 0.15, 0.25),
    ("PT", 0.15, 0.25),
    ("OP", 0.15, 0.25),
    ("SM", 0.15, 0.25),
]


@pytest.mark.parametrize(("modality", "diagnostic", "screening"), TEXTBOOK)
def test_shipped_limits_are_the_textbook_ones(
    modality: str, diagnostic: float, screening: float
) -> None:
    limits = {limit.name: limit for limit in choose(modality).limit_records}
    companions = {name: limits.pop(name) for name in list(limits) if "fidelity" in name}
    assert {one.bound for one in companions.values()} == {"at_least"}
    assert len(companions) == 4  # edges and texture, diagnostic and screening
    assert {name: limit.value for name, limit in limits.items()} == pytest.approx(
        {
            "diagnostic": diagnostic,
            "screening": screening,
            "pathology": 0.8 * diagnostic,
            "annotation": diagnostic,
        }
    )
    for limit in limits.values():
        assert limit.unit == "LPIPS"
        assert limit.status == "provisional"
        assert "no published clinical LPIPS threshold was found" in limit.source
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", limit.date)


@pytest.mark.parametrize(
    ("modality", "name"),
    [(one, "xray") for one in ("CR", "DX", "RG", "XA", "RF", "IO", "PX")]
    + [("MR", "mr"), ("CT", "ct"), ("MG", "mammography"), ("US", "ultrasound")]
    + [("IVUS", "ultrasound"), ("NM", "nuclear"), ("PT", "nuclear"), ("OPT", "default")],
)
def test_modality_finds_its_profile(modality: str, name: str) -> None:
    assert choose(modality).name == name


def test_a_modality_in_lower_case_does_not_get_the_wider_default_limits() -> None:
    assert choose(" ct ").name == "ct"


@pytest.mark.parametrize("modality", [None, "", "  "])
def test_unknown_modality_is_not_guessed(modality: str | None) -> None:
    with pytest.raises(ProfileError, match="does not say its modality") as caught:
        choose(modality)
    assert "--profile" in caught.value.mend


def test_names_are_the_files_and_no_modality_has_two_profiles() -> None:
    assert names() == (
        "ct",
        "ct-compression",
        "ct-head",
        "ct-head-compression",
        "default",
        "mammography",
        "mr",
        "mr-compression",
        "nuclear",
        "ultrasound",
        "xray",
        "xray-compression",
    )
    profiles = [load(name) for name in names()]
    assert [profile.name for profile in profiles] == list(names())
    claimed = [
        (profile.task, modality, part)
        for profile in profiles
        for modality in profile.modalities
        for part in profile.body_parts or ("",)
    ]
    assert len(claimed) == len(set(claimed))


@pytest.mark.parametrize(
    ("modality", "task", "part", "name"),
    [
        ("CT", "routine", "HEAD", "ct-head"),
        ("CT", "routine", "head ", "ct-head"),
        ("CT", "routine", "CHEST", "ct"),
        ("CT", "routine", None, "ct"),
        ("MR", "routine", "HEAD", "mr"),
        ("CT", "compression", "BRAIN", "ct-head-compression"),
        ("CT", "compression", None, "ct-compression"),
        ("DX", "compression", "CHEST", "xray-compression"),
    ],
)
def test_task_and_body_part_find_their_profile(
    modality: str, task: Task, part: str | None, name: str
) -> None:
    assert choose(modality, task, part).name == name


@pytest.mark.parametrize(("modality", "task"), [("MG", "compression"), ("CT", "denoising")])
def test_a_task_without_a_profile_is_not_guessed(modality: str, task: Task) -> None:
    with pytest.raises(ProfileError, match=f"no shipped profile is for {task} of {modality}"):
        choose(modality, task)


def test_limits_for_compression_are_the_measured_distances() -> None:
    """The tables of docs/compression.md, which tests/benchmarks/anchors.py wrote."""
    page = Path(__file__).parents[1].joinpath("docs/compression.md").read_text("utf-8")
    measured = {
        (name, int(ratio)): median
        for name, ratio, median in re.findall(r"\| ([a-z-]+) \| (\d+) \| (0\.\d+) \(", page)
    }
    accepted = {"ct": (8, 15), "ct-head": (5, 12), "mr": (7, 24), "xray": (10, 30)}
    for name, ratios in accepted.items():
        limits = load(f"{name}-compression").limits
        for limit, ratio in zip((limits.diagnostic, limits.screening), ratios, strict=True):
            text = measured[name, ratio]
            median = float(text)
            assert 0.93 * median < limit.value <= median
            assert f"at {ratio}:1" in limit.source
            assert text in limit.source


def test_a_profile_is_laid_over_the_one_that_it_extends(tmp_path: Path) -> None:
    head = files("medqa_thresholds").joinpath("ct-head.toml").read_text("utf-8")
    own = tmp_path / "own.toml"
    own.write_text(head.replace('"ct-head"', '"own"') + "[geometry]\nresample = true\n", "utf-8")
    profile, parent = load(str(own)), load("ct")
    assert isinstance(profile.normalise, Windows)
    assert [window.name for window in profile.normalise.windows] == ["brain", "subdural", "bone"]
    assert profile.limits == parent.limits
    assert profile.geometry.resample is True
    assert profile.caution == parent.caution
    digests = f"{hashlib.sha256(own.read_bytes()).hexdigest()}\n{parent.sha256}"
    assert profile.sha256 == hashlib.sha256(digests.encode()).hexdigest()
    assert profile.text.startswith(own.read_text("utf-8"))
    assert parent.text in profile.text


def test_another_kind_of_display_keeps_nothing_of_the_first(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    text = files("medqa_thresholds").joinpath("ct-head.toml").read_text("utf-8")
    own.write_text(text[: text.index("[normalise]")] + '[normalise]\nkind = "full_range"\n')
    assert load(str(own)).normalise.kind == "full_range"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('extends = "ct"', 'extends = "nothing"', "extends must name another shipped profile"),
        ('extends = "ct"', "extends = 7", "extends must name another shipped profile"),
        ("status = ", "# status = ", "status is missing: what extends a profile is another one"),
    ],
)
def test_wrong_extensions_are_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    own = tmp_path / "own.toml"
    text = files("medqa_thresholds").joinpath("ct-head.toml").read_text("utf-8")
    own.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(ProfileError, match=re.escape(words)):
        load(str(own))


def test_differences_are_named_by_their_keys() -> None:
    found = differences(load("ct"), load("ct-compression"))
    assert found["limits.diagnostic.value"] == (0.1, 0.0084)
    assert found["aggregate.slices"] == ("p95", "max")
    assert found["metric.relative_error.gray"] == (None, 0.5)
    assert "normalise.windows[1].centre" not in found
    assert differences(load("ct"), load("ct-head"))["normalise.windows[1].width"] == (400.0, 80.0)


def test_provisional_limits_are_not_calibrated(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="its limits are provisional"):
        check_calibrated(load("ct"))
    own = tmp_path / "own.toml"
    text = files("medqa_thresholds").joinpath("ct.toml").read_text("utf-8")
    own.write_text(text.replace('status = "provisional"', 'status = "calibrated"'), "utf-8")
    check_calibrated(load(str(own)))


def test_ct_windows() -> None:
    normalise = load("ct").normalise
    assert isinstance(normalise, Windows)
    assert normalise.unit == "HU"
    assert [(one.name, one.centre, one.width) for one in normalise.windows] == [
        ("soft tissue", 40, 400),
        ("lung", -600, 1500),
        ("bone", 480, 2500),
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("xray", "voi"),
        ("mammography", "voi"),
        ("default", "voi"),
        ("ultrasound", "full_range"),
        ("mr", "percentiles"),
        ("nuclear", "percentiles"),
    ],
)
def test_normalisation_kind(name: str, kind: str) -> None:
    assert load(name).normalise.kind == kind


def test_digest_is_that_of_the_files_bytes() -> None:
    content = files("medqa_thresholds").joinpath("mr.toml").read_bytes()
    ref = load("mr").ref
    assert ref.sha256 == hashlib.sha256(content).hexdigest()
    assert (ref.name, ref.status) == ("mr", "provisional")


def test_a_profile_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load("ct").limits.diagnostic.value = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(("backbone", "version"), [("alex", "0.1"), ("gray", "7")])
def test_networks_that_the_limits_hold_for(backbone: str, version: str) -> None:
    check_backbone(load("ct"), backbone, version, None if backbone == "alex" else 0.1)


def test_a_network_of_the_guard_band_must_state_its_error() -> None:
    with pytest.raises(ProfileError, match="not for gray 7"):
        check_backbone(load("ct"), "gray", "7", None)


@pytest.mark.parametrize(
    ("profile", "modality", "allowed"),
    [
        ("ct", "CT", True),
        ("ct", "ct ", True),
        ("ct", None, True),
        ("ct", "MR", False),
        ("xray", "MG", False),
        ("default", "MG", True),
    ],
)
def test_profiles_and_modalities(profile: str, modality: str | None, allowed: bool) -> None:
    if allowed:
        check_modality(load(profile), modality)
        return
    with pytest.raises(ProfileError, match=f"the image is {modality}"):
        check_modality(load(profile), modality)


@pytest.mark.parametrize(("backbone", "version"), [("vgg", "0.1"), ("alex", "0.0")])
def test_networks_that_the_limits_do_not_hold_for(backbone: str, version: str) -> None:
    with pytest.raises(ProfileError, match=f"alex 0.1 or gray, not for {backbone} {version}") as e:
        check_backbone(load("ct"), backbone, version, None)
    assert f"[metric] names {backbone} {version}" in e.value.mend


def test_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ProfileError) as caught:
        load("../ct")
    for name in names():
        assert name in caught.value.mend


# A site's own file.


def edited(tmp_path: Path, *replacements: tuple[str, str]) -> Path:
    """The shipped CT profile with pieces of its text replaced."""
    text = files("medqa_thresholds").joinpath("ct.toml").read_text("utf-8")
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new, 1)
    file = tmp_path / "site.toml"
    file.write_text(text, "utf-8")
    return file


def test_own_file_is_read_and_named_by_its_path(tmp_path: Path) -> None:
    file = edited(tmp_path, ("value = 0.100", "value = 0.05"), ("value = 0.080", "value = 0.04"))
    profile = load(str(file))
    assert profile.limits.diagnostic.value == 0.05
    assert profile.source == str(file)
    assert profile.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("value = 0.100", "value = 0.190", r"limits: diagnostic \(0.19\) must not be above"),
        ("value = 0.080", "value = 0.101", r"limits: pathology \(0.101\) must not be above"),
        ("value = 0.080", "value = 0.0", r"limits\.pathology\.value: .*greater than 0"),
        ("value = 0.080", "value = nan", r"limits\.pathology\.value: .*finite"),
        ("value = 0.080", "value = inf", r"limits\.pathology\.value: .*finite"),
        ("value = 0.080", 'value = "0.08"', r"limits\.pathology\.value: .*number"),
        ("value = 0.080", "value = true", r"limits\.pathology\.value: .*number"),
        ("value = 0.080\n", "", r"limits\.pathology\.value is missing"),
        ('unit = "LPIPS"', 'unit = "SSIM"', r"limits\.diagnostic\.unit: .*LPIPS"),
        ('unit = "LPIPS"\n', "", r"limits\.diagnostic\.unit is missing"),
        ("[limits.screening]", "[limits.screning]", r"limits\.screning is not a key"),
        ("width = 400", "width = 0", r"normalise\.windows\[1\]\.width: .*greater than 0"),
        ('name = "lung"', 'name = "bone"', r"normalise: two windows have the same name"),
        ('kind = "windows"', 'kind = "auto"', r"normalise\.kind must be windows"),
        ('kind = "windows"\n', "", r"normalise\.kind must be windows"),
        ('kind = "windows"', 'kind = "full_range"', r"normalise\.windows is not a key"),
        ('slices = "p95"', 'slices = "median"', r"aggregate\.slices: .*p95"),
        ("resample = false", "resample = 0", r"geometry\.resample: .*boolean"),
        ("date = 2026-11-20", 'date = "yesterday"', r"date: .*date"),
        ('status = "provisional"', 'status = "proven"', r"status: .*published"),
        ('modalities = ["CT"]', 'modalities = ["ct"]', r"modalities\[1\]: .*pattern"),
        ("schema_version = 1", "schema_version = 2", "schema_version must be 1, not 2"),
        ("schema_version = 1\n", "", "schema_version must be 1, not None"),
        ("schema_version = 1", 'schema_version = 1\nsha256 = "ab"', "sha256 is not a key"),
        ("schema_version = 1", "schema_version = ", "is not TOML"),
    ],
)
def test_wrong_file_says_which_key(tmp_path: Path, old: str, new: str, words: str) -> None:
    file = edited(tmp_path, (old, new))
    with pytest.raises(ProfileError, match=words) as caught:
        load(str(file))
    assert caught.value.subject == str(file)
    assert "\n" not in str(caught.value)


def test_at_least_one_window(tmp_path: Path) -> None:
    text = edited(tmp_path).read_text("utf-8")
    text = re.sub(r"\[\[normalise\.windows\]\]\n(.+\n)+", "", text)
    file = tmp_path / "none.toml"
    file.write_text(text.replace('kind = "windows"', 'kind = "windows"\nwindows = []'), "utf-8")
    with pytest.raises(ProfileError, match=r"normalise\.windows: .*at least 1"):
        load(str(file))


def test_percentiles_ascend(tmp_path: Path) -> None:
    text = files("medqa_thresholds").joinpath("mr.toml").read_text("utf-8")
    file = tmp_path / "mr.toml"
    file.write_text(text.replace("lower = 0.5", "lower = 99.5"), "utf-8")
    with pytest.raises(ProfileError, match=r"normalise: lower \(99.5\) must be below upper"):
        load(str(file))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b""])
def test_file_that_is_no_profile(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    with pytest.raises(ProfileError):
        load(str(file))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    for path in (tmp_path / "none.toml", folder):
        with pytest.raises(ProfileError, match="cannot be read"):
            load(str(path))


def test_every_key_of_a_shipped_file_is_read() -> None:
    """The model says no less than the file: what TOML holds comes back out of the profile."""
    for name in names():
        document = tomllib.loads(files("medqa_thresholds").joinpath(f"{name}.toml").read_text())
        profile: Profile = load(name)
        found = _as_lists(profile.model_dump(exclude_unset=True))
        assert isinstance(found, dict)
        if profile.extends is None:
            assert found == document
        for key, value in document.items():
            inside = isinstance(value, dict)
            assert (value.items() <= found[key].items()) if inside else found[key] == value


def _as_lists(value: object) -> object:
    if isinstance(value, dict):
        return {key: _as_lists(one) for key, one in value.items()}
    return [_as_lists(one) for one in value] if isinstance(value, tuple) else value


_GATE = """
[[measures.gates]]
measure = "{measure}"
diagnostic = {diagnostic}
screening = {screening}
source = "test"
date = 2026-01-01
status = "provisional"
"""


@pytest.mark.parametrize(
    ("run", "gates", "words"),
    [
        ('["nonsense"]', "", "measures: nonsense is no measure; choose from psnr_db, ssim"),
        ('["ssim"]', _GATE.format(measure="gmsd", diagnostic=0.1, screening=0.2), "run must name"),
        ('["ssim"]', _GATE.format(measure="ssim", diagnostic=0.1, screening=0.2), "looser than"),
        ('["gmsd"]', _GATE.format(measure="gmsd", diagnostic=0.2, screening=0.1), "looser than"),
        ('["ssim"]', 2 * _GATE.format(measure="ssim", diagnostic=0.9, screening=0.8), "two gates"),
    ],
)
def test_wrong_measures_are_refused(tmp_path: Path, run: str, gates: str, words: str) -> None:
    text = load("ct").text
    start, stop = text.index("[measures]"), text.index("[limits.diagnostic]")
    path = tmp_path / "wrong.toml"
    path.write_text(f"{text[:start]}[measures]\nrun = {run}\n{gates}\n{text[stop:]}")
    with pytest.raises(ProfileError, match=words):
        load(str(path))
