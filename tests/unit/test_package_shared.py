"""Packages that look through the shipped features do not repeat them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_packages import phantom

from medgen.errors import PackageError
from medgen.methods import build
from medgen.package import ModelPackage, load_package, save_package, verify_package


def learned(**config: Any) -> Any:
    method = build("dn2", {"spatial_dims": 2, "stages": (2,), "capacity": 4, **config})
    method.begin()
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    list(method.losses({"healthy": images, "mask": torch.ones_like(images)}))
    return method.eval()


def save(folder: Path, method: Any) -> ModelPackage:
    values: dict[str, Any] = {
        "name": folder.name, "version": "1.0.0", "preparation": {"spacing_mm": 6.0},
        "inference": {"mode": "2d"}, "scoring": {"evidence": "score", "scan_score": "mean"},
        "contract": {"spatial_dims": [2, 3]}, "intended_use": "tests",
    }  # fmt: skip
    return save_package(
        folder, method, card="# DN2\n", golden=phantom().image, half_precision=True, **values
    )


def weights_size(package: ModelPackage) -> int:
    return (package.folder / "weights.safetensors.xz").stat().st_size


def test_the_shipped_extractor_is_named_and_read_from_where_it_is(tmp_path: Path) -> None:
    method = learned()
    package = save(tmp_path / "dn2", method)
    assert package.manifest.extractor is not None
    assert package.manifest.extractor.name == "medgen-features"
    assert weights_size(package) < 10_000
    verify_package(package)
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = (one.predict(image)["score"] for one in (method, package.method()))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_another_extractor_is_stored_with_the_package(tmp_path: Path) -> None:
    method = learned()
    shared = save(tmp_path / "shared", method)
    with torch.no_grad():
        method.extractor.network.conv1.weight[0, 0, 0, 0] += 1
    package = save(tmp_path / "own", method)
    assert package.manifest.extractor is None
    assert "extractor" not in json.loads((package.folder / "medgen.json").read_text())
    assert weights_size(package) > 10 * weights_size(shared)
    stored = package.method().state_dict()["extractor.network.conv1.weight"]
    torch.testing.assert_close(stored, method.extractor.network.conv1.weight, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"sha256": "0" * 64}, "is another version of it"), ({"name": "none-such"}, "is not there")],
)
def test_without_its_extractor_a_package_is_refused(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    package = save(tmp_path / "dn2", learned())
    file = package.folder / "medgen.json"
    said = json.loads(file.read_text())
    said["extractor"] |= change
    file.write_text(json.dumps(said))
    with pytest.raises(PackageError, match=message):
        load_package(package.folder).method()
