"""What is special about the autoencoders with critics; what all methods promise is a contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_step import step

from medgen.errors import InputError
from medgen.losses import (
    kl_to_standard_normal,
    non_saturating_generator,
    saturating_generator,
    wasserstein_critic,
)
from medgen.methods import build
from medgen.methods._adversarial import distance_map, wasserstein_step
from medgen.networks.critics import CodeCritic, ImageCritic, codes

EDGE = 16
SHARED: dict[str, Any] = {"spatial_dims": 2, "features": (4, 8), "latent_channels": 6}
CRITIC: dict[str, Any] = {"critic_features": (4, 8)}
SIZE: dict[str, Any] = {"image_size": (EDGE, EDGE)}
SETTINGS: dict[str, dict[str, Any]] = {
    "aae": {"critic_width": 8},
    "constrained_aae": {"critic_width": 8, "critic_steps": 2},
    "anovaegan": CRITIC,
    "f_anogan": {**CRITIC, **SIZE, "critic_steps": 2},
    "alpha_gan": {**CRITIC, **SIZE, "code_critic_width": 8},
}
# The order in which the networks learn, and which parts of the method each loss reaches.
REACHES = {
    "aae": [
        ("autoencoder", {"coder.encoder", "coder.decoder"}),
        ("critic", {"critic"}),
        ("encoder", {"coder.encoder"}),
    ],
    "constrained_aae": [
        ("autoencoder", {"coder.encoder", "coder.decoder"}),
        ("critic", {"critic"}),
        ("critic", {"critic"}),
        ("encoder", {"coder.encoder"}),
    ],
    "anovaegan": [
        ("critic", {"critic"}),
        ("autoencoder", {"coder.encoder", "coder.decoder"}),
    ],
    "f_anogan": [
        ("critic", {"critic"}),
        ("critic", {"critic"}),
        ("generator", {"coder.decoder"}),
        ("encoder", {"coder.encoder"}),
    ],
    "alpha_gan": [
        ("encoder", {"coder.encoder"}),
        ("generator", {"coder.decoder"}),
        ("critic", {"critic"}),
        ("code_critic", {"code_critic"}),
    ],
}
PARTS = ("coder.encoder", "coder.decoder", "critic", "code_critic")


def make(name: str, **extra: Any) -> Any:
    torch.manual_seed(0)
    return build(name, {**SHARED, **SETTINGS[name], **extra})


def images(count: int = 4, seed: int = 1) -> Tensor:
    return torch.rand(count, 1, EDGE, EDGE, generator=torch.Generator().manual_seed(seed))


def losses(method: Any, batch: Tensor) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
    return list(method.losses({"healthy": batch}))


@pytest.mark.parametrize("name", SETTINGS)
def test_each_loss_reaches_its_own_networks_only(name: str) -> None:
    method = make(name).train()
    found = []
    for loss_name, loss, _ in method.losses({"healthy": images()}):
        method.zero_grad()
        loss.backward()
        reached = {
            part
            for part in PARTS
            for weight_name, weight in method.named_parameters()
            if weight_name.startswith(f"{part}.") and weight.grad is not None and weight.grad.any()
        }
        found.append((loss_name, reached))
    assert found == REACHES[name]
    assert all(weight.requires_grad for weight in method.parameters())


@pytest.mark.parametrize("name", SETTINGS)
def test_codes_are_flat_and_lead_back_to_the_restored_image(name: str) -> None:
    method = make(name).eval()
    image = images()
    code = method.encode(image)
    code = code[0] if isinstance(code, tuple) else code
    assert torch.equal(method.latent(image), code.flatten(1))
    assert torch.equal(method.decode(code), method.predict(image)["restored"])


@pytest.mark.parametrize("name", ["f_anogan", "alpha_gan"])
def test_a_small_image_is_padded_and_its_maps_cut_out_again(name: str) -> None:
    method = make(name).eval()
    image = images()[:, :, 2:14, 1:14]
    whole = torch.zeros(len(image), 1, EDGE, EDGE)
    whole[:, :, 2:14, 1:14] = image
    for key, value in method.predict(image).items():
        assert torch.equal(value, method.predict(whole)[key][:, :, 2:14, 1:14])


# ---- The adversarial autoencoder. ----


def test_the_constraint_is_the_distance_between_codes_of_image_and_copy() -> None:
    method, image = make("constrained_aae", constraint_weight=3.0).eval(), images()
    (_, loss, parts), *_ = losses(method, image)
    code = method.encode(image)
    copy = method.decode(code)
    distance = F.mse_loss(method.encode(copy), code)
    torch.testing.assert_close(parts["constraint"], distance.detach())
    torch.testing.assert_close(loss, F.mse_loss(copy, image) + 3.0 * distance)


@pytest.mark.parametrize("latent", ["dense", "spatial"])
def test_an_aae_makes_codes_normal(latent: str) -> None:
    """Codes of noise that lie close together and off centre spread around 0."""
    small: dict[str, Any] = {"features": (4,), "latent_channels": 2, "image_size": (4, 4)}
    method = make("aae", latent=latent, critic_width=64, adversarial_rate=2e-3, **small)
    biases = [w for name, w in method.coder.encoder.named_parameters() if name.endswith("bias")]
    nn.init.constant_(biases[-1], 3.0)
    optimizers, noise = method.optimizers(), torch.Generator().manual_seed(0)
    before = _moments(method)
    for _ in range(500):
        step(method, optimizers, {"healthy": torch.rand(16, 1, 4, 4, generator=noise)})
    mean, deviation = _moments(method)
    assert mean < before[0] / 3
    assert deviation > 1.5 * before[1]


@torch.no_grad()
def _moments(method: Any) -> tuple[float, float]:
    """Largest absolute mean, and mean deviation, of the codes' numbers in training."""
    noise = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    found = codes(method.train().encode(noise))
    return float(found.mean(0).abs().max()), float(found.std(0).mean())


# ---- The AnoVAEGAN. ----


def test_the_loss_of_an_anovaegan_has_three_terms() -> None:
    method, image = make("anovaegan", beta=0.5, adversarial_weight=0.3).eval(), images()
    torch.manual_seed(3)
    (_, _, _), (_, loss, _) = losses(method, image)
    torch.manual_seed(3)
    mean, logvar = method.encode(image)
    copy = method.decode(mean + (logvar / 2).exp() * torch.randn_like(mean))
    divergence = kl_to_standard_normal(mean, logvar, reduction="mean")
    expected = (copy - image).abs().mean() + 0.5 * divergence - 0.3 * method.critic(copy).mean()
    torch.testing.assert_close(loss, expected)


# ---- f-AnoGAN. ----


def test_after_the_gan_only_the_encoder_learns() -> None:
    method = make("f_anogan", gan_steps=2)
    optimizers, batch = method.optimizers(), {"healthy": images()}
    names = [{name for name, _ in step(method, optimizers, batch)} for _ in range(2)]
    assert names == [{"critic", "generator", "encoder"}] * 2
    others = {
        name: value.clone()
        for name, value in method.state_dict().items()
        if name.startswith(("critic.", "coder.decoder."))
    }
    assert [name for name, _ in step(method, optimizers, batch)] == ["encoder"]
    for name, value in others.items():
        assert torch.equal(value, method.state_dict()[name]), f"{name} changed"


def test_a_resumed_run_knows_which_stage_it_is_in() -> None:
    method = make("f_anogan", gan_steps=1)
    step(method, method.optimizers(), {"healthy": images()})
    again = make("f_anogan", gan_steps=1)
    again.load_state_dict(method.state_dict())
    assert [name for name, _, _ in losses(again, images())] == ["encoder"]


@pytest.mark.parametrize("kappa", [0.0, 2.0])
def test_the_score_of_f_anogan_is_spread_over_the_image(kappa: float) -> None:
    method, image = make("f_anogan", kappa=kappa).eval(), images()
    outputs = method.predict(image)
    copy = outputs["restored"]
    each = [tensor.square().flatten(1).mean(1) for tensor in (image - copy, _unseen(method, copy))]
    torch.testing.assert_close(outputs["score"].mean((1, 2, 3)), each[0] + kappa * each[1])
    if kappa:
        assert not torch.allclose(outputs["score"], (image - copy).square())


def _unseen(method: Any, copy: Tensor) -> Tensor:
    difference: Tensor = method.critic.features(images()) - method.critic.features(copy)
    return difference


def test_the_encoder_of_f_anogan_minimises_its_score() -> None:
    method, image = make("f_anogan", gan_steps=0).eval(), images()
    ((_, loss, _),) = losses(method, image)
    torch.testing.assert_close(loss, method.predict(image)["score"].mean())


# ---- alpha-GAN. ----


def test_the_losses_of_an_alpha_gan() -> None:
    """Against the paper's two logarithms, which the method replaces by their difference."""
    method, image = make("alpha_gan", reconstruction_weight=7.0).eval(), images()
    torch.manual_seed(3)
    found = {name: loss for name, loss, _ in losses(method, image)}
    torch.manual_seed(3)
    prior = torch.randn(len(image), SHARED["latent_channels"])
    code = method.encode(image)
    copy, made = method.decode(code), method.decode(prior)

    def deceived(verdict: Tensor) -> Tensor:
        return non_saturating_generator(verdict, verdict) + saturating_generator(verdict, verdict)

    error = 7.0 * (copy - image).abs().mean()
    expected = error + deceived(method.code_critic(code))
    torch.testing.assert_close(found["encoder"], expected)
    expected = error + deceived(method.critic(copy)) + deceived(method.critic(made))
    torch.testing.assert_close(found["generator"], expected)
    real, fake = method.critic(image), torch.cat([method.critic(copy), method.critic(made)])
    entropy = F.binary_cross_entropy_with_logits
    expected = entropy(real, torch.ones(4)) + entropy(fake, torch.zeros(8))
    torch.testing.assert_close(found["critic"], expected)
    real, fake = method.code_critic(prior), method.code_critic(code)
    expected = entropy(real, torch.ones(4)) + entropy(fake, torch.zeros(4))
    torch.testing.assert_close(found["code_critic"], expected)


# ---- What they share. ----


def test_a_critic_judges_every_image_by_itself() -> None:
    torch.manual_seed(0)
    critic = ImageCritic(2, 1, (4, 8)).train()
    image = images()
    torch.testing.assert_close(critic(image)[2:3], critic(image[2:3]))
    assert critic(image).shape == (4,)
    assert critic.features(image).shape == (4, 8, EDGE // 4, EDGE // 4)


def test_a_critic_refuses_images_that_it_cannot_halve() -> None:
    with pytest.raises(InputError, match=r"from 16 voxels on, got \(8, 32\)"):
        ImageCritic(2, 1, (4,) * 4)(torch.rand(1, 1, 8, 32))


def test_every_place_of_a_grid_has_a_code() -> None:
    latent = torch.rand(2, 3, 4, 5)
    rows = codes(latent)
    assert rows.shape == (2 * 4 * 5, 3)
    assert torch.equal(rows[1 * 20 + 2 * 5 + 3], latent[1, :, 2, 3])
    assert torch.equal(codes(latent[:, :, 0, 0]), latent[:, :, 0, 0])
    assert CodeCritic(3, 8)(rows).shape == (40,)


def test_the_penalty_of_a_linear_critic_is_known() -> None:
    """Its slope is the norm of its weights everywhere."""
    weight = torch.tensor([3.0, 4.0])
    real, fake = torch.rand(5, 2), torch.rand(5, 2)
    loss, parts = wasserstein_step(lambda points: points @ weight, real, fake)
    torch.testing.assert_close(parts["penalty"], torch.tensor(10.0 * (5 - 1) ** 2))
    value = wasserstein_critic(real @ weight, fake @ weight)
    torch.testing.assert_close(loss, value + parts["penalty"])


@pytest.mark.parametrize("dims", [2, 3])
def test_a_difference_in_features_shows_where_it_is(dims: int) -> None:
    image = torch.zeros(1, 2, *(8,) * dims)
    seen = torch.zeros(1, 3, *(4,) * dims)
    other = seen.clone()
    other[(0, 1, *(3,) * dims)] = -6.0
    found = distance_map(image, image + 0.5, (seen, other), 2.0, torch.abs)
    assert found.shape == (1, 1, *(8,) * dims)
    torch.testing.assert_close(found[(0, 0, *(0,) * dims)], torch.tensor(0.5))
    torch.testing.assert_close(found[(0, 0, *(7,) * dims)], torch.tensor(0.5 + 2.0 * 6 / 3))
