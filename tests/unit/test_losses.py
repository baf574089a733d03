from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Laplace, Normal, kl_divergence

from medgen.losses import (
    kl_to_standard_normal,
    laplace_spread,
    mean_inside,
    soft_dice,
    squared_error,
)

seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(1, 4), st.integers(1, 5))
def test_kl_is_that_of_torch_distributions(seed: int, batch: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean, logvar = torch.randn(2, batch, size, 3, generator=generator, dtype=torch.float64)
    posterior = Normal(mean, torch.exp(logvar / 2))
    terms = kl_divergence(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    expected = terms.flatten(1).sum(1).mean()
    torch.testing.assert_close(kl_to_standard_normal(mean, logvar), expected)
    by_mean = kl_to_standard_normal(mean, logvar, reduction="mean")
    torch.testing.assert_close(by_mean, expected / (size * 3))


def test_kl_is_zero_only_at_the_standard_normal() -> None:
    zero = torch.zeros(2, 3)
    assert kl_to_standard_normal(zero, zero) == 0
    assert kl_to_standard_normal(zero + 0.1, zero) > 0
    assert kl_to_standard_normal(zero, zero - 0.1) > 0


@given(seeds)
def test_half_the_squared_error_is_a_unit_gaussian_likelihood(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 3, 1, 4, 5, generator=generator, dtype=torch.float64)
    constant = -Normal(0.0, 1.0).log_prob(torch.tensor(0.0, dtype=torch.float64)) * 20
    expected = -Normal(y, 1.0).log_prob(x).flatten(1).sum(1).mean() - constant
    torch.testing.assert_close(squared_error(x, y) / 2, expected)
    torch.testing.assert_close(squared_error(x, y, reduction="mean"), ((x - y) ** 2).mean())


@given(seeds)
def test_mean_inside_is_the_mean_of_the_selected_values(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 3, 4, 4, generator=generator)
    mask = (torch.rand(2, 1, 4, 4, generator=generator) > 0.5).float()
    mask[0, 0, 0, 0] = 1
    expected = values[mask.bool().expand_as(values)].mean()
    torch.testing.assert_close(mean_inside(values, mask), expected)


def test_mean_inside_an_empty_mask_is_zero() -> None:
    assert mean_inside(torch.ones(1, 2, 3, 3), torch.zeros(1, 1, 3, 3)) == 0


def test_soft_dice_of_masks_is_dice() -> None:
    first = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    second = torch.tensor([[[[0.0, 1.0, 1.0, 1.0]]]])
    assert float(soft_dice(first, second)) == pytest.approx(2 * 1 / 5, abs=1e-4)
    assert float(soft_dice(first, first)) == pytest.approx(1)
    assert float(soft_dice(0 * first, 0 * first)) == pytest.approx(1)
    assert float(soft_dice(first, 1 - first)) == pytest.approx(0, abs=1e-4)


@given(seeds)
def test_laplace_spread_is_the_likelihood_of_the_errors_inside_the_mask(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    error, log_spread = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    mask = (torch.rand(2, 1, 4, 4, generator=generator) > 0.5).double()
    mask[0, 0, 0, 0] = 1
    surprise = -Laplace(0.0, log_spread.exp()).log_prob(error) - torch.tensor(2.0).log()
    expected = surprise[mask.bool().expand_as(error)].mean()
    torch.testing.assert_close(laplace_spread(error, log_spread, mask), expected)


def test_laplace_spread_is_least_at_the_mean_size_of_errors_and_leaves_them_alone() -> None:
    error = torch.tensor([1.0, -3.0, 2.0, -2.0]).reshape(1, 1, 4).requires_grad_()
    log_spread = torch.tensor(2.0).log().requires_grad_()
    laplace_spread(error, log_spread.expand(1, 1, 4), torch.ones(1, 1, 4)).backward()
    assert log_spread.grad is not None
    assert abs(float(log_spread.grad)) < 1e-6
    assert error.grad is None
