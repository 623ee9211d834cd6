"""Weights are found, checked and refused."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import medqa.weights
from medqa.errors import WeightsError
from medqa.weights import BACKBONES, digest, find, import_folder, load_gray, locate


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
