"""SSIM and style against independent references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from medgen.losses import SSIM_WINDOW, gram, ssim_inside, ssim_maps, style_distance

MARGIN = SSIM_WINDOW // 2


def pair(dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(dims)
    a = torch.rand((1, 1, *(24, 20, 17)[:dims]), generator=generator, dtype=torch.float64)
    return a, (a + 0.2 * torch.randn(a.shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("dims", [2, 3])
def test_ssim_is_that_of_scikit_image_at_every_voxel(dims: int) -> None:
    a, b = pair(dims)
    _, expected = structural_similarity(
        a[0, 0].numpy(), b[0, 0].numpy(), data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    inside = (slice(MARGIN, -MARGIN),) * dims
    np.testing.assert_allclose(
        ssim_maps(a, b, data_range=1.0)[0][0, 0].numpy(), expected[inside], atol=1e-7
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_ssim_inside_is_the_mean_over_the_mask(dims: int) -> None:
    a, b = pair(dims)
    mask = torch.zeros_like(a)
    mask[(..., *(slice(MARGIN, MARGIN + 3),) * dims)] = 1
    here = ssim_maps(a, b, data_range=1.0)[0][(..., *(slice(0, 3),) * dims)]
    inside = ssim_inside(a, b, mask.float(), data_range=1.0)
    assert float(inside) == pytest.approx(float(here.mean()), abs=1e-5)
    # Far from the mask nothing counts; within a window's reach it does.
    far, near = b.clone(), b.clone()
    far[..., -1] += 3
    near[..., MARGIN + 4] += 3
    assert ssim_inside(a, far, mask.float(), data_range=1.0) == inside
    assert ssim_inside(a, near, mask.float(), data_range=1.0) < inside


def test_equal_images_are_alike_up_to_their_edges() -> None:
    a, _ = pair(2)
    one = torch.ones_like(a).float()
    assert float(ssim_inside(a, a, one, data_range=1.0)) == pytest.approx(1)


def test_mixed_precision_does_not_reach_the_sums() -> None:
    """In bfloat16 the variance of a bright, nearly flat image is nothing but rounding."""
    a, b = ((0.9 + 0.05 * image).float() for image in pair(2))
    one = torch.ones_like(a)
    features = torch.rand(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    plain = ssim_inside(a, b, one, data_range=1.0), gram(features)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ssim_inside(a, b, one, data_range=1.0), gram(features)
    assert all(torch.equal(x, y) for x, y in zip(plain, mixed, strict=True))


def test_the_gram_matrix_forgets_places() -> None:
    features = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    moved = features.flatten(2)[..., torch.randperm(20)].unflatten(2, (4, 5))
    assert torch.allclose(gram(features), gram(moved), atol=1e-6)
    expected = torch.einsum("bcxy,bdxy->bcd", features, features) / 60
    assert torch.allclose(gram(features), expected, atol=1e-6)
    assert style_distance([features], [moved]) < 1e-10
    assert float(style_distance([2 * features], [features])) == pytest.approx(9)
