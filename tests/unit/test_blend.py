"""Models between two others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_packages import save_intensity, save_restorer

from medgen.errors import InputError, MedgenError
from medgen.methods import build
from medgen.package import ModelPackage, verify_package
from medgen.tasks.blend import blend, interpolate

SETTINGS = {"spatial_dims": 2, "width": 4, "blocks": 1}


def network(seed: int, **changes: Any) -> Any:
    torch.manual_seed(seed)
    method: Any = build("srresnet", {**SETTINGS, **changes})
    return method.eval()


def saved(folder: Path, seed: int, **changes: Any) -> ModelPackage:
    return save_restorer(
        folder, "super-resolve", method=network(seed, **changes), half_precision=True
    )


def weights(package: ModelPackage) -> dict[str, torch.Tensor]:
    method: Any = package.method()
    found: dict[str, torch.Tensor] = method.state_dict()
    return found


@given(st.floats(0, 1), st.integers(0, 99))
def test_every_weight_lies_between_the_two_and_the_ends_are_exact(share: float, seed: int) -> None:
    first, second = network(seed).state_dict(), network(seed + 1).state_dict()
    mixed = interpolate(first, second, share)
    for name, value in mixed.items():
        expected = (1 - share) * first[name].double() + share * second[name].double()
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)
    assert all(torch.equal(v, first[n]) for n, v in interpolate(first, second, 0.0).items())
    assert all(torch.equal(v, second[n]) for n, v in interpolate(first, second, 1.0).items())


def test_counts_are_not_averaged() -> None:
    mixed = interpolate({"steps": torch.tensor(3)}, {"steps": torch.tensor(9)}, 0.5)
    assert mixed["steps"] == 3
    assert mixed["steps"].dtype == torch.int64


def test_a_blend_is_a_package_that_promises_nothing_unmeasured(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "faithful", 0), saved(tmp_path / "sharp", 1)
    assert first.manifest.restoration is not None
    assert first.manifest.restoration.spread is not None
    made = blend(first, second, 0.25, tmp_path / "between")
    verify_package(made)
    assert made.manifest.restoration is not None
    assert made.manifest.restoration.spread is None
    assert made.manifest.restoration.scales == first.manifest.restoration.scales
    card = (made.folder / "CARD.md").read_text()
    assert first.sha256 in card
    assert second.sha256 in card
    a, b, found = weights(first), weights(second), weights(made)
    for name, value in found.items():
        torch.testing.assert_close(value, 0.75 * a[name] + 0.25 * b[name], atol=1e-3, rtol=1e-2)
    again = weights(blend(first, second, 0.0, tmp_path / "nothing-new"))
    assert all(torch.equal(value, a[name]) for name, value in again.items())


def test_a_model_trained_on_with_a_critic_can_be_blended(tmp_path: Path) -> None:
    first = saved(tmp_path / "faithful", 0)
    second = saved(tmp_path / "sharp", 1, adversarial_weight=1e-3)
    verify_package(blend(first, second, 0.5, tmp_path / "between"))


def test_what_cannot_be_blended_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "first", 0), saved(tmp_path / "second", 1)
    wider = saved(tmp_path / "wider", 1, width=8)
    denoiser = save_restorer(tmp_path / "denoiser", "denoise")
    detector = save_intensity(tmp_path / "detector")
    new = tmp_path / "new"
    for one, other, weight, problem in (
        (first, second, 1.5, "between 0 and 1"),
        (first, second, float("nan"), "between 0 and 1"),
        (first, wider, 0.5, "differ in network"),
        (first, denoiser, 0.5, "differ in their task"),
        (detector, detector, 0.5, "is one for detect-anomalies"),
    ):
        with pytest.raises(InputError, match=problem):
            blend(one, other, weight, new)
        assert not new.exists()
    with pytest.raises(MedgenError, match="exists already"):
        blend(first, second, 0.5, tmp_path / "second")
