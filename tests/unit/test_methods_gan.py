"""What is special about the adversarial method: its parts do what its configuration says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from medgen.errors import InputError
from medgen.methods import VARIANTS, build, method_names, registered
from medgen.methods.gan import GAN
from medgen.training.config import read_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "gan"
TINY = {"image_size": (8, 8), "width": 4, "latent": 4}


def make(**settings: Any) -> GAN:
    torch.manual_seed(0)
    method = build("gan", {**TINY, **settings})
    assert isinstance(method, GAN)
    return method.train()


def batch(count: int = 8) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {"image": torch.rand(count, 1, 8, 8) - 0.5, "condition": torch.arange(count) % 2}


def steps(method: GAN, count: int = 1, size: int = 8) -> list[tuple[str, float, dict[str, float]]]:
    optimizers, seen = method.optimizers(), []
    for _ in range(count):
        for name, loss, parts in method.losses(batch(size)):
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            seen.append((name, loss.item(), {k: float(v) for k, v in parts.items()}))
    return seen


def test_a_variant_is_the_method_with_its_settings_and_given_ones_win() -> None:
    wgan = build("wgan", TINY)
    assert isinstance(wgan, GAN)
    assert (wgan.config.clip, wgan.config.n_critic, wgan.config.optimizer) == (0.01, 5, "rmsprop")
    assert wgan.config.generator_rate == wgan.config.critic_rate == 5e-5
    assert build("wgan", {**TINY, "clip": 0.1}).config.clip == 0.1
    assert registered("lsgan", {"width": 3}) == (
        "gan",
        {"architecture": "dcgan", "loss": "least_squares", "width": 3},
    )
    assert set(VARIANTS) < set(method_names())
    with pytest.raises(InputError, match="wgan"):
        registered("wgann", {})


def test_the_papers_settings() -> None:
    """DCGAN: 100 numbers, Adam 2e-4 and 0.5. WGAN-GP: 10, Adam 1e-4, betas 0 and 0.9, 5 steps."""
    dcgan = build("dcgan", {}).config
    assert (dcgan.latent, dcgan.generator_rate, dcgan.betas) == (100, 2e-4, (0.5, 0.999))
    penalised = build("wgan_gp", TINY).config
    assert (penalised.penalty, penalised.penalty_weight, penalised.n_critic) == ("wgan_gp", 10, 5)
    assert (penalised.generator_rate, penalised.betas) == (1e-4, (0.0, 0.9))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_can_be_read_and_built(path: Path) -> None:
    config = read_config(path)
    method = build(config.method, {**config.config, "width": 4} if "gan" in path.stem and (
        registered(config.method, {})[0] == "gan") else config.config)  # fmt: skip
    assert config.batch_size % getattr(method.config, "n_critic", 1) == 0


def test_every_variant_of_gan_has_a_configuration() -> None:
    names = {name for name, (method, _) in VARIANTS.items() if method == "gan"}
    assert names <= {read_config(path).method for path in CONFIGS.glob("*.yaml")}


def test_clipping_keeps_the_critic_and_only_it_small() -> None:
    method = make(loss="wasserstein", clip=0.005, n_critic=2, critic_norm="none")
    steps(method, 2)
    assert max(float(w.abs().max()) for w in method.critic.parameters()) <= 0.005
    assert max(float(w.abs().max()) for w in method.generator.parameters()) > 0.005


def test_critic_steps_see_different_parts_of_the_batch_and_divide_it() -> None:
    method = make(n_critic=4)
    assert [name for name, _, _ in steps(method)] == ["critic"] * 4 + ["generator"]
    with pytest.raises(InputError, match="batch_size: 12"):
        steps(method, size=10)


def test_a_lazy_penalty_comes_every_few_steps_and_weighs_as_much_more() -> None:
    settings = {"penalty": "r1", "critic_norm": "none"}
    lazy = [
        parts for name, _, parts in steps(make(**settings, penalty_every=3), 7) if name == "critic"
    ]
    assert ["penalty" in parts for parts in lazy] == [True, False, False, True, False, False, True]
    eager, seldom = (steps(make(**settings, penalty_every=every))[0] for every in (1, 3))
    penalty = eager[2]["penalty"]
    assert seldom[2]["penalty"] == pytest.approx(penalty)
    assert seldom[1] - eager[1] == pytest.approx(2 * penalty, rel=1e-3)


def test_the_minmax_value_is_logged_where_the_loss_is_that_of_the_game() -> None:
    for loss in ("non_saturating", "saturating"):
        name, value, parts = steps(make(loss=loss))[0]
        assert name == "critic"
        assert parts["minmax"] == pytest.approx(-value, abs=1e-5)
        assert -6 < parts["minmax"] < 0
    assert "minmax" not in steps(make(loss="hinge"))[0][2]


def test_instance_noise_falls_to_nothing() -> None:
    method = make(instance_noise=0.5, noise_steps=100)
    image = torch.zeros(64, 1, 8, 8)
    for step, deviation in ((0, 0.5), (50, 0.25), (100, 0.0), (200, 0.0)):
        method.steps.fill_(step)
        assert float(method._shown(image).std()) == pytest.approx(deviation, abs=0.02)


def test_adaptive_augmentation_follows_the_critic() -> None:
    method = make(augmentation="adaptive", augment_speed=64, augment_with=("brightness",))
    with torch.no_grad():
        method.critic.judge.bias.fill_(50.0)  # sure that everything is real
    parts = [parts for name, _, parts in steps(method, 4) if name == "critic"]
    assert parts[-1]["augmentation"] == pytest.approx(0.5)
    assert float(method.augmentation.probability) == pytest.approx(0.5)


@pytest.mark.parametrize("loss", ["relativistic_average", "wasserstein"])
def test_adaptive_augmentation_ignores_what_a_loss_of_differences_ignores(loss: str) -> None:
    """A number added to all outputs of the critic is no sign that it is sure."""
    found = []
    for offset in (-1000.0, 0.0, 1000.0):
        method = make(augmentation="adaptive", augment_speed=64, loss=loss)
        method.critic.judge.register_forward_hook(lambda *given, by=offset: given[2] + by)
        # Eight times four images: moved twice, each time by 16 of 64.
        parts = [parts for name, _, parts in steps(method, 8) if name == "critic"]
        found.append(float(parts[-1]["augmentation"]))
    assert found == [found[1]] * 3


def test_two_time_scales() -> None:
    optimizers = make(generator_rate=1e-4, critic_rate=4e-4).optimizers()
    assert optimizers["generator"].param_groups[0]["lr"] == 1e-4
    assert optimizers["critic"].param_groups[0]["lr"] == 4e-4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"conditions": 2}, "conditioning is 'none'"),
        ({"conditioning": "projection"}, "conditions is 0"),
        ({"image_size": (8, 8, 8)}, "image_size needs 2"),
        ({"image_size": (50, 50)}, "power of two"),
        ({"penalty": "wgan_gp"}, "batch normalisation"),
        ({"augmentation": "adaptive", "augment_with": ("hue",)}, "hue"),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build("gan", {**TINY, **settings})


def test_an_auxiliary_classifier_learns_from_real_and_made_images() -> None:
    method = make(conditions=2, conditioning="auxiliary", auxiliary_weight=0.0)
    (_, bare, parts), *_ = steps(method)
    weighted = steps(make(conditions=2, conditioning="auxiliary", auxiliary_weight=2.0))[0][1]
    assert parts["classes"] == pytest.approx(2 * math.log(2), abs=0.7)
    assert weighted - bare == pytest.approx(2 * parts["classes"], rel=1e-3)
