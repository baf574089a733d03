"""Adversarial losses and penalties against what the papers say in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medgen.losses import (
    ADVERSARIAL,
    BOUNDARY,
    critic_parts,
    dragan,
    minmax_value,
    r1,
    wgan_gp,
)

LOG4 = math.log(4)
logits = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12).map(torch.tensor)


def slope(loss: Tensor, of: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, of, retain_graph=True)
    return gradient


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_critic_wants_real_up_and_fake_down_and_the_generator_fake_up(name: str) -> None:
    critic, generator = ADVERSARIAL[name]
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    if name == "least_squares":
        real, fake = (torch.full((4,), 0.5, requires_grad=True) for _ in range(2))
    assert (slope(critic(real, fake), real) < 0).all()
    assert (slope(critic(real, fake), fake) > 0).all()
    assert (slope(generator(fake, real), fake) < 0).all()


@settings(max_examples=30, deadline=None)
@given(real=logits, fake=logits)
def test_the_minmax_value_is_the_mean_log_probability(real: Tensor, fake: Tensor) -> None:
    right = (
        torch.sigmoid(real.double()).log().mean() + (-torch.sigmoid(fake.double())).log1p().mean()
    )
    assert float(minmax_value(real, fake)) == pytest.approx(float(right), abs=1e-4)
    assert float(minmax_value(real, fake)) <= 0
    for name in ("non_saturating", "saturating"):
        loss = ADVERSARIAL[name][0](real, fake)
        assert float(loss) == -float(minmax_value(real, fake))


def test_at_the_optimum_the_minmax_value_is_minus_log_four() -> None:
    assert float(minmax_value(torch.zeros(5), torch.zeros(7))) == pytest.approx(-LOG4)
    assert float(ADVERSARIAL["relativistic_average"][0](torch.ones(5), torch.ones(7))) == (
        pytest.approx(LOG4)
    )


def test_where_the_critic_is_sure_only_the_saturating_generator_stalls() -> None:
    fake = torch.full((3,), -12.0, requires_grad=True)
    sizes = {
        name: float(slope(generator(fake, torch.full((3,), 12.0)), fake).abs().sum())
        for name, (_, generator) in ADVERSARIAL.items()
    }
    assert sizes.pop("saturating") < 1e-4
    assert min(sizes.values()) > 0.5


def test_least_squares_has_targets_one_and_zero_and_its_half() -> None:
    critic, generator = ADVERSARIAL["least_squares"]
    assert float(critic(torch.ones(3), torch.zeros(3))) == 0
    assert float(generator(torch.ones(3), torch.zeros(3))) == 0
    assert float(critic(torch.tensor([3.0]), torch.tensor([1.0]))) == pytest.approx(2.5)
    assert float(generator(torch.tensor([3.0]), torch.tensor([1.0]))) == pytest.approx(2.0)


@settings(max_examples=30, deadline=None)
@given(real=logits, fake=logits)
def test_hinge_is_zero_beyond_the_margins_and_wasserstein_is_linear(
    real: Tensor, fake: Tensor
) -> None:
    hinge = ADVERSARIAL["hinge"][0]
    assert float(hinge(real.abs() + 1, -fake.abs() - 1)) == 0
    assert float(hinge(real.clamp(max=0.5), fake)) > 0
    critic, generator = ADVERSARIAL["wasserstein"]
    gap = float(fake.mean() - real.mean())
    assert float(critic(real, fake)) == pytest.approx(gap, abs=1e-5)
    assert float(critic(3 * real, 3 * fake)) == pytest.approx(3 * gap, abs=1e-4)
    assert float(generator(fake, real)) == pytest.approx(-float(fake.mean()), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(real=logits, fake=logits, shift=st.integers(-4, 4))
def test_losses_without_a_boundary_only_know_differences(
    real: Tensor, fake: Tensor, shift: int
) -> None:
    real, fake = real.round(), fake.round()  # so that shifting is exact
    for name in ("wasserstein", "relativistic_average"):
        critic = ADVERSARIAL[name][0]
        assert BOUNDARY[name] is None
        moved = critic(real + shift, fake + shift)
        assert float(moved) == pytest.approx(float(critic(real, fake)), abs=1e-4)
    ra_critic, ra_generator = ADVERSARIAL["relativistic_average"]
    assert torch.equal(ra_generator(fake, real), ra_critic(fake, real))


def test_accuracy_counts_both_sides_of_the_boundary() -> None:
    real, fake = torch.tensor([2.0, 1.0, -1.0, 0.6]), torch.tensor([-1.0, 1.0])
    parts = critic_parts(real, fake)
    assert float(parts["accuracy"]) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert float(parts["real_score"]) == pytest.approx(0.65)
    assert float(parts["fake_score"]) == 0
    assert float(critic_parts(real, fake, boundary=0.7)["accuracy"]) == pytest.approx(0.5)
    assert float(critic_parts(real + 9, fake, boundary=None)["accuracy"]) == 1


def linear(weight: Tensor):
    return lambda image: image.flatten(1) @ weight


@settings(max_examples=20, deadline=None)
@given(dims=st.sampled_from([2, 3]), length=st.floats(0.5, 4), seed=st.integers(0, 99))
def test_penalties_of_a_linear_critic(dims: int, length: float, seed: int) -> None:
    torch.manual_seed(seed)
    real, fake = (torch.randn(5, 2, *(4,) * dims) for _ in range(2))
    weight = torch.nn.functional.normalize(torch.randn(real[0].numel()), dim=0) * length
    critic = linear(weight)
    expected = 10 * (length - 1) ** 2
    assert float(wgan_gp(critic, real, fake)) == pytest.approx(expected, abs=1e-3)
    assert float(dragan(critic, real)) == pytest.approx(expected, abs=1e-3)
    assert float(r1(critic, real, gamma=3.0)) == pytest.approx(1.5 * length**2, rel=1e-4)
    unit = linear(weight / length)
    assert float(wgan_gp(unit, real, fake)) == pytest.approx(0, abs=1e-6)


def test_penalties_can_be_differentiated_and_are_exact_under_autocast() -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(4, 1, 4, 4), torch.randn(4, 1, 4, 4)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 1))
    for penalty in (wgan_gp, lambda c, r, f: dragan(c, r), lambda c, r, f: r1(c, r)):
        torch.manual_seed(1)
        plain = penalty(lambda x: network(x)[:, 0], real, fake)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.manual_seed(1)
            cast = penalty(lambda x: network(x)[:, 0], real, fake)
        assert cast.dtype == torch.float32
        assert torch.equal(plain, cast)
        network.zero_grad()
        cast.backward()
        assert network[1].weight.grad.abs().sum() > 0


def test_wgan_gp_looks_between_and_dragan_around_the_real_images() -> None:
    torch.manual_seed(0)
    seen: list[Tensor] = []

    def critic(image: Tensor) -> Tensor:
        seen.append(image.detach())
        return image.flatten(1).square().sum(1)

    real, fake = torch.ones(64, 1, 8, 8), torch.full((64, 1, 8, 8), 3.0)
    wgan_gp(critic, real, fake)
    assert ((seen[0] >= 1) & (seen[0] <= 3)).all()
    assert torch.allclose(seen[0], seen[0][:, :, :1, :1]), "one share for a whole image"
    assert seen[0].std() > 0.3
    spread = torch.cat([real, -real])
    dragan(critic, spread)
    moved = seen[1] - spread
    assert moved.min() >= 0 and moved.max() <= 0.5 * spread.std()
    assert moved.mean() == pytest.approx(0.25 * float(spread.std()), rel=0.05)
    r1(critic, real)
    assert torch.equal(seen[2], real)
