"""PaDiM's Gaussians against numpy and scipy, its features against those of the extractor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.spatial.distance import mahalanobis
from torch import Tensor

from medgen.errors import InputError
from medgen.methods import build
from medgen.networks.features import SHIPPED, FrozenFeatures, feature_network, read_extractor

WIDTHS = (4, 8, 8, 8)


def make(**extra: Any) -> Any:
    torch.manual_seed(0)
    small = {"widths": WIDTHS, "stages": 2, "grid": 4, "dimensions": 5, "smoothing": 0.0}
    return build("padim", {"spatial_dims": 2, **small, **extra}).eval()


def learn(method: Any, *batches: Tensor) -> None:
    for healthy in batches:
        assert list(method.losses({"healthy": healthy, "mask": torch.ones_like(healthy)})) == []


@given(st.integers(0, 1000), st.integers(1, 11))
def test_moments_are_those_of_all_batches_together(seed: int, split: int) -> None:
    method = make()
    generator = torch.Generator().manual_seed(seed)
    vectors = 3 + torch.randn(12, 16, 5, generator=generator)
    method.update(vectors[:split])
    method.update(vectors[split:])
    assert int(method.count) == 12
    for place in range(16):
        own = vectors[:, place].double().numpy()
        np.testing.assert_allclose(method.mean[place], own.mean(0), atol=1e-5)
        expected = np.cov(own.T, bias=True)
        np.testing.assert_allclose(method.covariance[place], expected, atol=1e-5)


def test_the_score_is_the_mahalanobis_distance_of_each_place() -> None:
    method = make()
    learn(method, torch.rand(6, 1, 16, 16), torch.rand(5, 1, 16, 16))
    image = torch.rand(2, 1, 4, 4)  # as large as the grid: nothing is enlarged
    score = method.predict(image)["score"]
    found = method.embed(image).flatten(2)
    variance = float(method.covariance.diagonal(dim1=1, dim2=2).mean())
    for place in range(16):
        inverse = np.linalg.inv(method.covariance[place].double() + 0.01 * variance * np.eye(5))
        for number in range(2):
            vector = found[number, :, place].numpy()
            expected = mahalanobis(vector, method.mean[place].numpy(), inverse) / 5**0.5
            assert float(score[number].flatten()[place]) == pytest.approx(expected, rel=1e-3)


def test_usual_images_score_about_one_and_others_more() -> None:
    method = make(dimensions=8)
    images = torch.rand(60, 1, 16, 16)
    learn(method, images[:50])
    usual = method.predict(images[50:])["score"].mean()
    other = method.predict(images[50:] + torch.linspace(0, 2, 16))["score"].mean()
    assert 0.8 < usual < 1.5 < other


@pytest.mark.parametrize("dims", [2, 3])
def test_places_share_a_gaussian_and_leave_out_the_background(dims: int) -> None:
    method = make(spatial_dims=dims, positions="shared")
    size = (16, 24, 3)[:dims]
    healthy, mask = torch.rand(4, 1, *size), torch.zeros(4, 1, *size)
    mask[:, :, :8] = 1
    list(method.losses({"healthy": healthy, "mask": mask}))
    places = 4 * 2 * 6 * (3 if dims == 3 else 1)
    assert int(method.count) == places
    rows = method.embed(healthy)[:, :, :2].movedim(1, -1).reshape(-1, 5).double().numpy()
    np.testing.assert_allclose(method.covariance[0], np.cov(rows.T, bias=True), atol=1e-6)
    larger = torch.rand(1, 1, *(2 * n for n in size))
    assert method.predict(larger)["score"].shape == larger.shape


def test_smoothing_keeps_a_level_and_spreads_a_peak() -> None:
    from medgen.methods.padim import _smoothed

    level = torch.full((1, 1, 9, 9), 3.0)
    torch.testing.assert_close(_smoothed(level, 1.0), level)
    peak = torch.zeros(1, 1, 21, 21)
    peak[0, 0, 10, 10] = 1
    spread = _smoothed(peak, 2.0)[0, 0]
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    offset = torch.arange(21.0) - 10
    assert float((spread.sum(1) * offset**2).sum()) == pytest.approx(4, rel=0.05)


def test_an_image_is_described_slice_by_slice_and_channel_by_channel() -> None:
    solid = make(spatial_dims=3, positions="shared", channels=2, dimensions=24)
    flat = make(positions="shared", dimensions=12)
    image = torch.rand(2, 2, 16, 16, 3)
    found = solid.embed(image)
    assert found.shape == (2, 24, 4, 4, 3)
    one = flat.embed(image[1:, 1:, :, :, 2])
    torch.testing.assert_close(found[1:, 12:, :, :, 2], one)


def test_it_begins_with_the_shipped_extractor() -> None:
    from medgen.features import FeatureExtractor

    method = build("padim", {"spatial_dims": 2})
    method.begin()
    whole = FrozenFeatures((32, 64, 128, 160), (1, 2, 3, 4))
    whole.copy_weights("medgen-features")
    config, weights = read_extractor("medgen-features")
    image = torch.rand(2, 3, 96, 96)
    seen = whole.eval()(image)
    vector = seen[3].mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
    expected = FeatureExtractor.load()(2 * image - 1)
    np.testing.assert_allclose(vector, expected, atol=1e-4)
    for mine, theirs in zip(method.extractor(image), seen, strict=False):
        assert torch.equal(mine, theirs)
    assert config["dimension"] == expected.shape[1]


def test_a_run_of_selfsup_is_an_extractor(tmp_path: Path) -> None:
    network = feature_network(WIDTHS, 3, 6)
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    said = {"method": "selfsup", "config": {"widths": WIDTHS}}
    (tmp_path / "training.json").write_text(json.dumps({"config": said}))
    method = make(extractor=str(tmp_path), stages=3)
    method.begin()
    assert torch.equal(method.extractor.network.conv1.weight, network.conv1.weight)
    with pytest.raises(InputError, match=r"stages of \(4, 8, 8, 8\) channels"):
        build("padim", {"spatial_dims": 2, "extractor": str(tmp_path)}).begin()
    (tmp_path / "training.json").write_text(json.dumps({"config": {**said, "method": "vae"}}))
    with pytest.raises(InputError, match="holds 'vae', which gives no features"):
        method.begin()


def test_a_changed_or_missing_extractor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no feature extractor 'medgen-feature'"):
        make(extractor="medgen-feature").begin()
    folder = shutil.copytree(SHIPPED / "medgen-features", tmp_path / "changed")
    file = folder / "weights.safetensors.xz"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="its package says"):
        make(extractor=str(folder)).begin()
    file.unlink()
    with pytest.raises(InputError, match="is damaged"):
        make(extractor=str(folder)).begin()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimensions": 13}, "the stages have 12 features"),
        ({"grid": 2000, "dimensions": 12}, r"need 2\.3 GB"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**change)


def test_rounding_for_a_package_leaves_densities() -> None:
    """Features that hardly vary, and some that depend on others, beside some that vary a lot."""
    from medgen.package.weights import rounded

    method, image = make(), torch.rand(1, 1, 16, 16)
    vectors = torch.randn(200, 16, 5, generator=torch.Generator().manual_seed(2))
    vectors[..., 1] = vectors[..., 0] + 1e-3 * vectors[..., 1]
    vectors[..., 3] = 0.0
    method.update(vectors * torch.tensor([30.0, 30.0, 1e-3, 1.0, 1e-3]))
    before = method.predict(image)["score"]
    method.load_state_dict({name: rounded(value) for name, value in method.state_dict().items()})
    torch.testing.assert_close(method.predict(image)["score"], before, rtol=0.05, atol=0.01)
