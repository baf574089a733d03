from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import distributions as d

from medgen.losses import kl_between_normals, kl_to_standard_normal
from medgen.methods import build
from medgen.methods.gmvae import Posterior

SMALL: dict[str, Any] = {
    "spatial_dims": 2,
    "features": (4, 8),
    "latent_channels": 5,
    "components": 3,
    "mixture_channels": 2,
}
IMAGE = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))


def make(**extra: Any) -> Any:
    torch.manual_seed(0)
    return build("gmvae", {**SMALL, **extra}).eval()


def some_posterior(places: int) -> Posterior:
    torch.manual_seed(1)
    return Posterior(*(torch.randn(4, n, places) for n in (5, 5, 2, 2)))


def test_divergences_are_those_of_torch_distributions() -> None:
    method, posterior = make(information=0.0), some_posterior(places=6)
    latent, mixture = torch.randn(4, 5, 6), torch.randn(4, 2, 6)
    found = method._divergences(posterior, latent, mixture)

    prior = method.mixture(mixture).view(4, 2, 3, 5, 6)
    gaussians = d.Normal(prior[:, 0], (prior[:, 1].clamp(-6, 6) / 2).exp())  # (B, K, latent, P)
    choice = d.Categorical(logits=gaussians.log_prob(latent[:, None]).sum(2).movedim(1, -1))
    q = d.Normal(posterior.mean[:, None], (posterior.logvar[:, None] / 2).exp())
    each = d.kl_divergence(q, gaussians).sum(2)
    q_w = d.Normal(posterior.mixture_mean, (posterior.mixture_logvar / 2).exp())
    expected = {
        "divergence": (choice.probs.movedim(-1, 1) * each).sum((1, 2)).mean(),
        "mixture": d.kl_divergence(q_w, d.Normal(0.0, 1.0)).sum((1, 2)).mean(),
        "choice": (math.log(3) - choice.entropy()).sum(1).mean(),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def test_a_mixture_of_equal_standard_normals_is_the_prior_of_a_vae() -> None:
    method, posterior = make(information=0.0), some_posterior(places=1)
    for weight in method.mixture[-1].parameters():
        torch.nn.init.zeros_(weight)
    parts = method._divergences(posterior, torch.randn(4, 5, 1), torch.randn(4, 2, 1))
    expected = kl_to_standard_normal(posterior.mean, posterior.logvar)
    torch.testing.assert_close(parts["divergence"], expected)
    torch.testing.assert_close(parts["choice"], torch.zeros(()))


def test_the_choice_of_a_gaussian_is_free_up_to_a_limit() -> None:
    posterior, numbers = some_posterior(places=6), (torch.randn(4, 5, 6), torch.randn(4, 2, 6))
    method = make(information=1.09)  # log 3 is 1.0986, what it can cost at most
    assert method._divergences(posterior, *numbers)["choice"] >= 6 * 1.09


@pytest.mark.parametrize("extra", [{}, {"latent": "dense", "image_size": (16, 24)}])
def test_means_and_sums_are_the_same_bound(extra: dict[str, Any]) -> None:
    as_sum, as_mean = make(reduction="sum", **extra), make(reduction="mean", **extra)
    _, total = as_sum._terms(IMAGE, sampled=False)
    _, mean = as_mean._terms(IMAGE, sampled=False)
    numbers = as_sum.encode(IMAGE)[0][0].numel()
    torch.testing.assert_close(total["reconstruction"], mean["reconstruction"] * 16 * 24)
    for name in ("divergence", "mixture", "choice"):
        torch.testing.assert_close(total[name], mean[name] * numbers)


def test_restored_is_decoded_from_the_mean_or_reached_from_the_image() -> None:
    method = make()
    assert torch.equal(method.predict(IMAGE)["restored"], method.decode(method.encode(IMAGE)[0]))
    method = make(restoration_steps=5)
    restored = method.predict(IMAGE)["restored"]
    before, after = (method._terms(x, sampled=False)[0] for x in (IMAGE, restored))
    assert after < before


def test_kl_between_normals_is_that_of_torch() -> None:
    numbers = torch.randn(4, 3, 7)
    a, b = (d.Normal(numbers[i], (numbers[i + 1] / 2).exp()) for i in (0, 2))
    torch.testing.assert_close(kl_between_normals(*numbers), d.kl_divergence(a, b))
