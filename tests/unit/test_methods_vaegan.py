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


@pytest.mark.parametrize("truncation", [0.3, 1.0])
def test_images_are_those_of_the_space_that_one_can_walk_in(truncation: float) -> None:
    method = make().eval()
    latent, condition = torch.randn(4, *method.latent_shape), torch.tensor([0, 1, 0, 1])
    with torch.no_grad():
        made = method.generate(latent, condition, truncation=truncation)["image"]
        centre, w = method.w_mean[condition], method.map(latent, condition)
        again = method.synthesize(centre + truncation * (w - centre))
    assert torch.allclose(made, again, atol=1e-5)


def test_gradients_reach_the_latent() -> None:
    method = make().eval()
    latent = torch.randn(2, *method.latent_shape, requires_grad=True)
    method.generate(latent, torch.tensor([0, 1]))["image"].sum().backward()
    assert latent.grad is not None and latent.grad.abs().sum() > 0
