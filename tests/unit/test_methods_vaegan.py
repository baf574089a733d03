"""What is special about the VAE-GAN: three losses, each of which reaches its own network only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from medgen.errors import InputError
from medgen.methods import build

EDGE = 16


def make(**changes: Any) -> Any:
    torch.manual_seed(0)
    values = {"image_size": (EDGE, EDGE), "width": 8, "latent": 8, "conditions": 2}
    return build("vaegan", {**values, **changes})


def discs(count: int = 16) -> dict[str, torch.Tensor]:
    """Bright discs (condition 1) and squares (0) at different places."""
    x, y = torch.meshgrid(torch.arange(EDGE), torch.arange(EDGE), indexing="ij")
    generator = torch.Generator().manual_seed(0)
    images, condition = [], torch.arange(count) % 2
    for kind in condition.tolist():
        a, b = (torch.rand(2, generator=generator) * 6 + 5).tolist()
        dx, dy = (x - a).abs(), (y - b).abs()
        inside = (dx**2 + dy**2 < 16) if kind else (dx < 4) & (dy < 4)
        images.append(2 * inside.float() - 1)
    return {"image": torch.stack(images)[:, None], "condition": condition}


def test_each_loss_reaches_its_own_network_only() -> None:
    method = make().train()
    networks = {"critic": method.critic, "encoder": method.encoder, "generator": method.decoder}
    seen = []
    for name, loss, _ in method.losses(discs()):
        method.zero_grad()
        loss.backward()
        seen.append(name)
        for other, network in networks.items():
            reached = [p.grad is not None and bool(p.grad.any()) for p in network.parameters()]
            assert any(reached) == (other == name), (name, other)
    assert seen == ["critic", "encoder", "generator"], "the order of algorithm 1"
    assert all(weight.requires_grad for weight in method.parameters())


def test_likeness_is_measured_by_the_critic_after_its_step() -> None:
    """A critic that sees nothing finds everything alike."""
    method = make().train()
    batch = discs()
    parts = {}
    for name, _, found in method.losses(batch):
        parts[name] = found
        if name == "critic":
            with torch.no_grad():
                for weight in method.critic.parameters():
                    weight.zero_()
    assert parts["encoder"]["likeness"] == 0
    assert parts["generator"]["likeness"] == 0
    assert parts["encoder"]["divergence"] > 0


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_encoder_pays_for_its_distance_from_the_prior(beta: float) -> None:
    method = make(beta=beta).train()
    losses = {name: (loss, parts) for name, loss, parts in method.losses(discs())}
    loss, parts = losses["encoder"]
    expected = parts["likeness"] + beta * parts["divergence"]
    assert torch.allclose(loss.detach(), expected)


def test_it_learns_to_copy_and_to_tell_conditions_apart() -> None:
    method, batch = make(latent=16, learning_rate=2e-3), discs(8)
    optimizers = method.train().optimizers()
    for _ in range(120):
        for name, loss, _ in method.losses(batch):
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
    method.eval()
    image, condition = batch["image"], batch["condition"]
    with torch.inference_mode():
        mean, _ = method.encode(image, condition)
        copies = method.generate(mean, condition)["image"]
        own = F.mse_loss(copies, image)
        others = torch.stack([F.mse_loss(copies, image.roll(n, 0)) for n in range(1, 8)])
        assert own < 0.5 * others.mean(), (own, others.mean())
        latent = torch.randn(32, *method.latent_shape)
        of = [
            method.generate(latent, torch.full((32,), kind))["image"].clamp(min=0).flatten(1)
            for kind in (0, 1)
        ]
        assert (of[0] - of[1]).abs().mean() > 0.01
        typical = method.generate(latent[:2], condition[:2] * 0, truncation=0.0)["image"]
        assert torch.equal(typical[0], typical[1])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="needs 3 numbers"):
        make(spatial_dims=3)
    for give in ("generate", "map"):
        with pytest.raises(InputError, match="2 conditions to choose from, but none"):
            getattr(make().eval(), give)(torch.zeros(1, 8))
        with pytest.raises(InputError, match="0 conditions to choose from, but one"):
            getattr(make(conditions=0).eval(), give)(torch.zeros(1, 8), torch.tensor([0]))


def follow(method: Any, codes: torch.Tensor, condition: torch.Tensor, times: int) -> None:
    for _ in range(times):
        method._follow(codes, condition)


def test_the_moments_follow_the_codes_of_each_condition() -> None:
    method = make(conditions=3, fitted_prior=True)
    codes = torch.randn(64, 8) @ torch.randn(8, 8) + 5 * torch.randn(8)
    condition = torch.arange(64) % 2  # none of the third
    mean, square = method.code_mean.clone(), method.code_square.clone()
    follow(method, codes, condition, 1)
    for kind in (0, 1):
        mine = codes[condition == kind]
        expected = 0.995 * mean[kind] + 0.005 * mine.mean(0)
        assert torch.allclose(method.code_mean[kind], expected, atol=1e-5)
        expected = 0.995 * square[kind] + 0.005 * mine.T @ mine / len(mine)
        assert torch.allclose(method.code_square[kind], expected, atol=1e-4)
    follow(method, codes, condition, 3000)
    noise = torch.randn(20_000, 8)
    for kind in (0, 1):
        mine = codes[condition == kind]
        drawn = method._from_prior(noise, torch.full((20_000,), kind))
        wanted = torch.cov(mine.T, correction=0)
        assert torch.allclose(drawn.mean(0), mine.mean(0), atol=0.05 * mine.std().item())
        assert (torch.cov(drawn.T) - wanted).norm() < 0.05 * wanted.norm()
    assert torch.equal(method.code_mean[2], mean[2]), "a condition that was not there"
    assert torch.equal(method.code_square[2], square[2])


def test_training_follows_the_codes_only_if_the_prior_is_fitted() -> None:
    for fitted in (True, False):
        method = make(fitted_prior=fitted).train()
        list(method.losses(discs()))
        assert bool(method.code_mean.any()) == fitted
    assert torch.equal(method._from_prior(noise := torch.randn(4, 8), None), noise)


def test_a_fitted_prior_of_one_code_gives_the_image_of_that_code() -> None:
    method = make(fitted_prior=True).eval()
    code, condition = 3 * torch.randn(8), torch.tensor([1, 1, 1, 1])
    follow(method, code.repeat(4, 1), condition, 5000)
    latent = torch.randn(4, 8)
    with torch.inference_mode():
        made = method.generate(latent, condition)["image"]
        wanted = method.decoder(code[None], condition[:1])
        other = method.decoder(-code[None], condition[:1])
        elsewhere = method.generate(latent, 1 - condition)["image"]  # still N(0, I)
    apart = (wanted - other).abs().mean()
    assert (made - wanted).abs().mean() < 0.05 * apart
    assert (elsewhere - wanted).abs().mean() > 0.2 * apart


def test_a_fitted_prior_is_deterministic_and_gradients_reach_the_latent() -> None:
    method = make(fitted_prior=True, diffaugment=True).eval()
    codes = torch.randn(32, 8) @ torch.randn(8, 8) + 2
    follow(method, codes, torch.arange(32) % 2, 400)
    latent, condition = torch.randn(4, 8, requires_grad=True), torch.tensor([0, 0, 1, 1])
    torch.manual_seed(1)
    first = method.generate(latent, condition)["image"]
    torch.manual_seed(2)
    assert torch.equal(first, method.generate(latent, condition)["image"])
    first.square().sum().backward()
    assert latent.grad is not None and (latent.grad.abs().amax(1) > 0).all()


def test_a_fitted_prior_survives_half_precision() -> None:
    """As packages store it: rounded moments need not be those of any distribution."""
    method = make(fitted_prior=True, latent=64, conditions=0).eval()
    codes = torch.randn(500, 20) @ torch.randn(20, 64) + 3  # in 20 of 64 directions only
    follow(method, codes, None, 4000)  # type: ignore[arg-type]
    latent = torch.randn(200, 64)
    exact = method._from_prior(latent, None)
    for values in (method.code_mean, method.code_square):
        values.copy_(values.half())
    rounded = method._from_prior(latent, None)
    assert torch.isfinite(method.generate(latent)["image"]).all()
    assert (rounded - exact).norm() < 0.1 * (exact - exact.mean(0)).norm()


def test_moments_are_exact_in_mixed_precision() -> None:
    codes, condition, moments = torch.randn(16, 8) + 4, torch.arange(16) % 2, []
    for mixed in (False, True):
        method = make(fitted_prior=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            follow(method, codes, condition, 3)
            moments.append((method.code_square.clone(), method._from_prior(codes, condition)))
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


def test_diffaugment_changes_what_the_critic_sees_but_not_the_likeness() -> None:
    """Real and made images are augmented for the critic; an image is compared with its copy."""
    batch, seen = discs(), {}
    for augmented in (False, True):
        method = make(diffaugment=augmented).train()
        shown: list[torch.Tensor] = []
        critic = method.critic.body
        critic.register_forward_pre_hook(lambda _, given, to=shown: to.append(given[0][:, :1]))
        list(method.losses(batch))
        seen[augmented] = shown
    for augmented, shown in seen.items():
        judged, compared = shown[0], shown[2]
        assert torch.equal(judged, batch["image"]) != augmented
        assert torch.equal(compared, batch["image"])
