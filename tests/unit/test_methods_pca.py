from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA as Reference

from medgen.methods import build


def images(count: int, edge: int, rank: int, seed: int = 0) -> torch.Tensor:
    """Images of the given rank around a mean, so that a batch can never hide a component."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(count, rank, generator=generator) * torch.arange(rank, 0, -1.0)
    patterns = torch.randn(rank, edge * edge, generator=generator)
    return (3 + weights @ patterns).view(count, 1, edge, edge)


def fitted(batches: Any, components: int, edge: int) -> Any:
    method = build("pca", {"spatial_dims": 2, "components": components, "grid": edge})
    for batch in batches:
        assert list(method.losses({"healthy": batch})) == []
    return method


@given(st.integers(0, 1000), st.integers(2, 11))
def test_it_is_the_pca_of_all_batches_together(seed: int, split: int) -> None:
    data = images(24, 8, rank=5, seed=seed)
    method = fitted((data[:split], data[split:]), components=5, edge=8)
    reference = Reference(5, svd_solver="full").fit(data.flatten(1).double().numpy())
    np.testing.assert_allclose(method.mean.numpy(), reference.mean_, atol=1e-4)
    angles = subspace_angles(method.components.numpy().T, reference.components_.T)
    assert angles.max() < 1e-3
    # scikit-learn divides by n - 1.
    expected = np.sqrt(reference.explained_variance_ * 23 / 24)
    np.testing.assert_allclose(method.deviations.numpy(), expected, rtol=1e-4)


def test_it_keeps_the_largest_components_only() -> None:
    data = images(40, 8, rank=6)
    method = fitted([data], components=3, edge=8)
    reference = Reference(3, svd_solver="full").fit(data.flatten(1).double().numpy())
    assert subspace_angles(method.components.numpy().T, reference.components_.T).max() < 1e-3
    restored = method.predict(data)["restored"].flatten(1).numpy()
    expected = reference.inverse_transform(reference.transform(data.flatten(1).numpy()))
    np.testing.assert_allclose(restored, expected, atol=1e-3)


def test_components_not_yet_seen_are_zero() -> None:
    method = fitted([images(3, 8, rank=5)], components=5, edge=8)
    assert int(method.count) == 3
    assert (method.components.norm(dim=1) > 0.5).sum() == 2  # three points span a plane
    assert torch.isfinite(method.components).all()


def test_one_image_is_learnt_as_the_mean() -> None:
    image = images(1, 8, rank=5)
    method = fitted([image], components=5, edge=8)
    torch.testing.assert_close(method.predict(image)["restored"], image)


@pytest.mark.parametrize("size", [(9, 13), (40, 24)])
def test_any_size_goes_through_the_small_grid(size: tuple[int, int]) -> None:
    method = fitted([images(10, 8, rank=5)], components=5, edge=8)
    assert method.predict(torch.rand(2, 1, *size))["restored"].shape == (2, 1, *size)
