"""A linear autoencoder is principal component analysis, here scikit-learn's.

Trained on all images at once in float64 by L-BFGS until it no longer moves, which takes a second.
Without decay the weights are known up to any basis of the subspace (Baldi and Hornik 1989), so the
axes are those of what the decoder draws: W2 times the root of the covariance of the codes. Uniform
decay leaves a rotation of the codes (Kunin et al. 2019), which the left singular vectors of W2 do
not see; decay that grows leaves nothing (Bao et al. 2020).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm, subspace_angles
from sklearn.decomposition import PCA
from torch.optim import LBFGS

from medgen.methods import build

SHAPE = (6, 8)
DEVIATIONS = (5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.3, 0.2)
KEPT = 4


def images(seed: int) -> torch.Tensor:
    """Images ``(60, 1, 6, 8)`` around a mean, with these deviations along eight directions."""
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(random.normal(size=(48, len(DEVIATIONS))))[0]
    weights = np.linalg.qr(random.normal(size=(60, len(DEVIATIONS))))[0] * np.sqrt(60)
    rows = 3 + (weights * DEVIATIONS) @ directions.T
    return torch.from_numpy(rows).view(60, 1, *SHAPE)


def trained(data: torch.Tensor, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = {"spatial_dims": 2, "image_size": SHAPE, "latent_channels": KEPT, **settings}
    method = build("linear_ae", config).double()
    optimizer = LBFGS(
        method.parameters(),
        max_iter=3000,
        history_size=50,
        tolerance_grad=1e-11,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        ((_, loss, _),) = method.losses({"healthy": data})
        loss.backward()
        return loss

    optimizer.step(closure)
    return method.eval().requires_grad_(False)


def cosines(found: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Of each column with the axis of the same number, whatever its sign and length."""
    found = found / np.linalg.norm(found, axis=0)
    return np.abs((found * axes).sum(0))


@pytest.fixture(params=[0, 1], scope="module")
def case(request: pytest.FixtureRequest) -> tuple[torch.Tensor, Any]:
    data = images(request.param)
    return data, PCA(KEPT, svd_solver="full").fit(data.flatten(1).numpy())


def test_it_finds_the_subspace_and_the_error(case: tuple[torch.Tensor, Any]) -> None:
    data, pca = case
    method, rows = trained(data), data.flatten(1).numpy()
    decoder = method.from_latent.weight.numpy()
    assert subspace_angles(decoder, pca.components_.T).max() < 1e-3
    error = float((method.predict(data)["restored"] - data).square().mean())
    best = np.square(pca.inverse_transform(pca.transform(rows)) - rows).mean()
    assert error == pytest.approx(best, rel=1e-6)

    spread = sqrtm(np.cov(method.latent(data).numpy().T))
    axes = np.linalg.svd(decoder @ np.real(spread), full_matrices=False)[0]
    assert cosines(axes, pca.components_.T).min() > 0.999


def test_with_decay_the_decoder_alone_has_the_axes(case: tuple[torch.Tensor, Any]) -> None:
    data, pca = case
    method = trained(data, decay=1.0)
    axes, stretch, _ = np.linalg.svd(method.from_latent.weight.numpy(), full_matrices=False)
    assert cosines(axes, pca.components_.T).min() > 0.999
    # Kunin et al., theorem 4.2: an axis of variance s^2 is shrunk to sqrt(1 - decay / s^2).
    variances = pca.explained_variance_ * 59 / 60
    np.testing.assert_allclose(stretch, np.sqrt(1 - 1 / variances), rtol=1e-3)


def test_with_growing_decay_each_latent_number_is_an_axis(case: tuple[torch.Tensor, Any]) -> None:
    data, pca = case
    method = trained(data, decay=1.0, decay_growth=0.5)
    assert cosines(method.from_latent.weight.numpy(), pca.components_.T).min() > 0.999


def test_components_below_the_decay_are_dropped() -> None:
    data = images(0)
    method = trained(data, decay=6.0)  # between 2^2 and 3^2
    stretch = np.linalg.svd(method.from_latent.weight.numpy())[1]
    assert (stretch[:3] > 0.1).all()
    assert stretch[3] < 1e-3
