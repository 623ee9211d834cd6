"""Weights are found, checked and refused."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import medqa.weights
from medqa.errors import WeightsError
from medqa.weights import (
    ADAPTED_FORM,
    BACKBONES,
    adapted_version,
    digest,
    find,
    import_folder,
    load_adapted,
    load_gray,
    locate,
)


def test_gray_ships_with_its_digest_error_and_size() -> None:
    weights = find("gray")
    assert weights.sha256 == digest((*weights.trunk, *weights.heads))
    assert weights.relative_error is not None
    assert 0 < weights.relative_error < 1
    path = locate("gray")
    assert path is not None
    assert path.stat().st_size <= 4_000_000
    assert all(bool((head >= 0).all()) for head in weights.heads)
    assert weights.version == BACKBONES["gray"].version


def test_digest_knows_values_shapes_and_order() -> None:
    one, other = torch.arange(6.0), torch.ones(3)
    assert digest([one, other]) == digest([one.clone(), other.double()])
    assert digest([one, other]) != digest([other, one])
    assert digest([one]) != digest([one.view(2, 3)])
    assert digest([one]) != digest([one + 1e-6])


def test_torchvisions_checkpoint_and_the_bare_trunk_are_the_same(
    shared_weights: Path, tmp_path: Path
) -> None:
    trunk = load_file(shared_weights / "alexnet_features.safetensors")
    checkpoint = {f"features.{name}": tensor for name, tensor in trunk.items()}
    checkpoint["classifier.1.weight"] = torch.zeros(2)
    torch.save(checkpoint, tmp_path / "alexnet-owt-7be5be79.pth")
    assert find("alex", tmp_path).sha256 == find("alex", shared_weights).sha256


def test_order_of_the_places(
    shared_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locate("alex") is None
    import_folder(shared_weights)
    imported = locate("alex")
    assert imported is not None
    assert str(imported).startswith(str(tmp_path / "user-data"))
    monkeypatch.setenv("MEDQA_WEIGHTS", str(shared_weights))
    assert locate("alex") == shared_weights / "alexnet_features.safetensors"
    # A folder that was named is the only place: no silent fallback.
    with pytest.raises(WeightsError, match="holds no weights of network alex"):
        find("alex", tmp_path)


def test_import_takes_all_or_nothing(shared_weights: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(WeightsError, match="holds no weights that medqa knows"):
        import_folder(source)
    shutil.copy(shared_weights / "alexnet_features.safetensors", source)
    squeeze = load_file(shared_weights / "squeezenet1_1_features.safetensors")
    squeeze["0.bias"] += 1e-4
    save_file(squeeze, source / "squeezenet1_1_features.safetensors")
    with pytest.raises(WeightsError, match="not the pinned ones"):
        import_folder(source)
    assert locate("alex") is None


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "alexnet-owt-7be5be79.pth"
    path.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match=r"alexnet-owt-7be5be79\.pth"):
        find("alex", tmp_path)
    torch.save({"features.0.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match="not the pinned ones"):
        find("alex", tmp_path)
    torch.save({"features.strange": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match="other tensors"):
        find("alex", tmp_path)
    path.rename(tmp_path / "vgg16-397923af.pth")
    with pytest.raises(WeightsError, match="not the pinned file"):
        find("vgg", tmp_path)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/tmp/medqa-was-here"),))  # type: ignore[return-value]  # noqa: S108


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    marker = Path("/tmp/medqa-was-here")  # noqa: S108 (a fixed name, so that the pickle can hold it)
    marker.unlink(missing_ok=True)
    path = tmp_path / "alexnet-owt-7be5be79.pth"
    path.write_bytes(pickle.dumps({"features.0.weight": _Evil()}, protocol=2))
    with pytest.raises(WeightsError):
        find("alex", tmp_path)
    torch.save({"features.0.weight": _Evil()}, path)
    with pytest.raises(WeightsError):
        find("alex", tmp_path)
    assert not marker.exists()


def test_without_network_the_error_says_what_to_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(WeightsError, match=r"bring squeezenet1_1-b8a52dc0\.pth and run: medqa"):
        find("squeeze")


def test_a_damaged_network_of_ones_own_is_refused(tmp_path: Path) -> None:
    shipped = locate("gray")
    assert shipped is not None
    damaged = tmp_path / "gray.safetensors"
    content = bytearray(shipped.read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(WeightsError, match="not those"):
        load_gray(damaged)
    damaged.write_bytes(content[:100])
    with pytest.raises(WeightsError, match="cannot be read"):
        load_gray(damaged)
    assert load_gray(shipped).sha256 == find("gray").sha256


def test_heads_are_the_official_ones() -> None:
    # As the lpips package ships them.
    import lpips

    folder = Path(lpips.__file__).parent / "weights/v0.1"
    for name in ("alex", "squeeze", "vgg"):
        heads = torch.load(folder / f"{name}.pth", map_location="cpu", weights_only=True)
        found = medqa.weights._load_heads(name)
        for one, other in zip(found, [heads[key] for key in sorted(heads)], strict=True):
            assert torch.equal(one, other.flatten())


def _adapted(path: Path, *, scale: float = 2.0, **changed: Any) -> Path:
    """Write a file of adapted heads; `changed` metadata, or `heads` themselves."""
    base = find("gray")
    heads = tuple(scale * head for head in base.heads)
    sha256 = digest((*base.trunk, *heads))
    stated = {
        "form": ADAPTED_FORM,
        "backbone": "gray",
        "base_version": base.version,
        "trunk_sha256": digest(base.trunk),
        "name": "site-ct",
        "version": adapted_version(base.version, "site-ct", sha256),
        "sha256": sha256,
    }
    tensors = {f"head.{tap}": head for tap, head in enumerate(heads)}
    tensors |= changed.pop("heads", {})
    stated |= changed
    save_file({name: head.contiguous() for name, head in tensors.items()}, path, stated)
    return path


def _as_if(sha256: str) -> dict[str, str]:
    """What an attacker would state to make a file consistent."""
    return {"sha256": sha256, "version": adapted_version("1", "site-ct", sha256)}


def test_adapted_heads_are_another_version_of_the_network(tmp_path: Path) -> None:
    base = find("gray")
    found = find(str(_adapted(tmp_path / "site.safetensors")))
    assert found.backbone == "gray"
    assert found.version == f"1+site-ct.{found.sha256[:8]}"
    assert found.sha256 == digest((*found.trunk, *found.heads)) != base.sha256
    assert digest(found.trunk) == digest(base.trunk)
    assert torch.equal(found.heads[2], 2.0 * base.heads[2])
    assert (found.relative_error, found.region_relative_error) == (None, None)
    assert load_adapted(tmp_path / "site.safetensors", base).sha256 == found.sha256


def test_adapted_heads_of_an_official_network_need_its_trunk(
    shared_weights: Path, tmp_path: Path
) -> None:
    base = find("alex", shared_weights)
    sha256 = digest((*base.trunk, *base.heads))
    path = _adapted(
        tmp_path / "site.safetensors",
        heads={f"head.{tap}": head for tap, head in enumerate(base.heads)},
        backbone="alex",
        base_version="0.1",
        trunk_sha256=digest(base.trunk),
        sha256=sha256,
        version=adapted_version("0.1", "site-ct", sha256),
    )
    assert find(str(path), shared_weights).version == f"0.1+site-ct.{sha256[:8]}"
    with pytest.raises(WeightsError, match="holds no weights of network alex"):
        find(str(path), tmp_path)
    with pytest.raises(WeightsError, match="fitted on another network than gray 1"):
        load_adapted(path, find("gray"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"form": "something else"}, "no file of adapted heads"),
        ({"backbone": "resnet"}, "no file of adapted heads"),
        ({"base_version": "0"}, "fitted on another network than gray 1"),
        ({"trunk_sha256": "0" * 64}, "fitted on another network"),
        ({"name": "site-mr"}, "not those that it was written with"),
        ({"name": "../site"}, "no name for an adapted network"),
        ({"version": "1"}, "not those that it was written with"),
        ({"sha256": "0" * 64}, "not those that it was written with"),
        ({"scale": -1.0}, "non-negative"),
        ({"scale": 0.0}, "non-negative"),
        ({"scale": float("nan")}, "finite"),
        ({"scale": float("inf")}, "finite"),
        ({"heads": {"head.0": torch.ones(31)}}, "for each channel"),
        ({"heads": {"head.0": torch.ones(1, 32)}}, "for each channel"),
        ({"heads": {"head.0": torch.ones(32, dtype=torch.float64)}}, "for each channel"),
        ({"heads": {"head.5": torch.ones(128)}}, "for each channel"),
        ({"heads": {"trunk.00": torch.ones(2)}}, "for each channel"),
        ({"heads": {"head.1": torch.ones(80)}}, "not those that it was written with"),
        ({"heads": {"big": torch.ones(300_000)}}, "too large"),
    ],
)
def test_adapted_heads_that_are_wrong_are_refused(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    path = _adapted(tmp_path / "site.safetensors", **changed)
    with pytest.raises(WeightsError, match=words):
        find(str(path))


def test_consistent_but_impossible_heads_are_refused(tmp_path: Path) -> None:
    base = find("gray")
    for value in (-1.0, float("nan")):
        heads = (base.heads[0].clone(), *base.heads[1:])
        heads[0][3] = value
        stated = _as_if(digest((*base.trunk, *heads)))
        path = _adapted(tmp_path / "site.safetensors", heads={"head.0": heads[0]}, **stated)
        with pytest.raises(WeightsError, match="non-negative"):
            find(str(path))


def test_what_is_no_safetensors_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "site.safetensors"
    whole = _adapted(path).read_bytes()
    # A header that claims to be longer than the file, damage in it, half the file, a pickle.
    hostile = (b"", b"\xff" * 16, whole[:8] + b"\xff" + whole[9:], whole[: len(whole) // 2])
    for content in (*hostile, pickle.dumps({"head.0": _Evil()}, protocol=2)):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be read"):
            find(str(path))
    save_file({"head.0": torch.ones(32)}, path)  # without metadata
    with pytest.raises(WeightsError, match="no file of adapted heads"):
        find(str(path))
    for wrong in (tmp_path / "none.safetensors", tmp_path / "folder.safetensors"):
        if wrong.stem == "folder":
            wrong.mkdir()
        with pytest.raises(WeightsError, match="cannot be read"):
            find(str(wrong))


@pytest.mark.parametrize("name", ["", "Site", "a b", "a--b", "-a", "a.b", "a" * 33, "é"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="no name"):
        adapted_version("1", name, "0" * 64)
