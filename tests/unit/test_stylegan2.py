"""StyleGAN2: what its layers promise, and when its lazy penalties act."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medgen.errors import InputError
from medgen.methods import build
from medgen.networks.stylegan2 import DownConv, Mapping, ResidualCritic, StyledConv
from medgen.training.config import read_config

SMALL: dict[str, Any] = {
    "channels": 1,
    "image_size": (16, 16),
    "conditions": 2,
    "latent": 8,
    "style": 8,
    "mapping_layers": 2,
    "generator_base": 128,
    "generator_max": 16,
    "critic_base": 128,
    "critic_max": 16,
    "augmentation": "none",
}
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def make(**changes: Any) -> Any:
    torch.manual_seed(0)
    return build("stylegan2", SMALL | changes)


def batch(method: Any, number: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    size = (number, method.channels, *method.image_size)
    images = torch.rand(size, generator=generator) * 2 - 1
    found = {"image": images}
    if method.conditions:
        found["condition"] = torch.arange(number) % method.conditions
    return found


def step(method: Any, optimizers: Any, of: dict[str, Tensor], seed: int = 0) -> dict[str, Any]:
    """One step as the loop does it: the loss and parts of each network."""
    torch.manual_seed(seed)
    found = {}
    for name, loss, parts in method.train().losses(of):
        optimizers[name].zero_grad()
        loss.backward()
        optimizers[name].step()
        found[name] = {"loss": loss.detach(), **parts}
    return found


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@settings(max_examples=8, deadline=None)
@given(
    inputs=st.integers(16, 64),
    spread=st.floats(0.2, 3.0),
    offset=st.floats(-5, 5),
    seed=st.integers(0, 99),
)
def test_demodulation_keeps_unit_power_whatever_the_style(
    inputs: int, spread: float, offset: float, seed: int
) -> None:
    torch.manual_seed(seed)
    conv = StyledConv(inputs, 64, (16, 16), enlarge=False)
    style = offset + spread * torch.randn(4, inputs)
    features = conv(torch.randn(4, inputs, 16, 16), style, False)[:, :, 2:-2, 2:-2]
    # Leaky ReLU with its gain sqrt(2) leaves (1 + 0.2^2) of the power of a symmetric signal.
    power = features.square().mean((1, 2, 3))
    assert torch.allclose(power, torch.full((4,), 1.04), rtol=0.15)


def test_scaling_input_and_output_is_scaling_each_image_s_kernel() -> None:
    """The paper's formulation, with a kernel for every image (equations 1 and 3)."""
    torch.manual_seed(0)
    conv = StyledConv(6, 5, (8, 8), enlarge=False)
    features, style = torch.randn(3, 6, 8, 8), torch.randn(3, 6)
    expected = []
    for image, s in zip(features, style, strict=True):
        kernel = conv.weight * s[None, :, None, None]
        kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True)).sqrt()
        expected.append(F.conv2d(image[None], kernel, padding=1))
    want = F.leaky_relu(math.sqrt(2) * torch.cat(expected), 0.2)
    assert torch.allclose(conv(features, style, False), want, atol=1e-5)


def test_halving_is_blurring_then_striding() -> None:
    torch.manual_seed(0)
    layer = DownConv(3, 4, gain=1.0)
    image = torch.randn(2, 3, 16, 16)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    blur = torch.outer(taps, taps).expand(3, 1, 4, 4)
    blurred = F.conv2d(F.pad(image, (2,) * 4), blur, groups=3)
    expected = F.conv2d(blurred, layer.weight * layer.scale, stride=2)
    assert torch.allclose(layer(image), expected, atol=1e-5)
    assert layer(image).shape == (2, 4, 8, 8)


def test_enlarging_is_the_same_filter() -> None:
    image = torch.randn(1, 1, 8, 8)
    spread = torch.zeros(1, 1, 16, 16)
    spread[:, :, ::2, ::2] = image
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    blurred = F.conv2d(F.pad(spread, (2, 1, 2, 1)), torch.outer(taps, taps)[None, None])
    bilinear = F.interpolate(image, scale_factor=2, mode="bilinear")
    assert torch.allclose(bilinear[:, :, 2:-2, 2:-2], blurred[:, :, 2:-2, 2:-2], atol=1e-6)


def test_the_mapping_does_not_see_the_length_of_a_latent() -> None:
    torch.manual_seed(0)
    mapping = Mapping(8, 2, 16, 3)
    latent, condition = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
    w = mapping(latent, condition)
    assert torch.allclose(w, mapping(10 * latent, condition), atol=1e-5)
    assert not torch.allclose(w, mapping(latent, 1 - condition), atol=1e-2)


def test_truncation_0_gives_the_mean_image_of_each_condition() -> None:
    method = make()
    for number in range(3):
        step(method, method.optimizers(), batch(method), number)
    method.eval()
    condition = torch.tensor([0, 0, 1, 1])
    with torch.inference_mode():
        image = method.generate(torch.randn(4, 8), condition, truncation=0.0)["image"]
        mean = method.synthesize(method.w_mean[condition])
        full = method.generate(torch.randn(4, 8), condition)["image"]
    assert torch.allclose(image, mean, atol=1e-6)
    assert torch.equal(image[0], image[1])
    assert not torch.allclose(image[0], image[2], atol=1e-3)
    assert not torch.allclose(full[0], full[1], atol=1e-3)


def test_truncation_moves_along_a_line_in_w() -> None:
    method = make(conditions=0).eval()
    torch.nn.init.normal_(method.w_mean)
    latent = torch.randn(4, 8)
    with torch.inference_mode():
        w = method.map(latent)
        half = method.synthesize((w + method.w_mean) / 2)
        assert torch.allclose(method.generate(latent, truncation=0.5)["image"], half, atol=1e-5)


def test_the_mean_w_follows_every_condition_apart() -> None:
    method = make(conditions=3, mapping_rate=1.0)
    of = batch(method, 8) | {"condition": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])}
    seen: list[Tensor] = []
    draw = method._draw

    def spy(*args: Any) -> Any:
        result = draw(*args)
        seen.append(result[1].detach())
        return result

    method._draw = spy
    for number in range(2):
        list(method.losses(of))  # no optimiser: the mapping stays
        assert number + 1 == int(method.w_count[0])
    first, second = seen[0], seen[2]  # those of the critic's steps
    expected = (first[:4].mean(0) + second[:4].mean(0)) / 2
    assert torch.allclose(method.w_mean[0], expected, atol=1e-5)
    assert not torch.allclose(method.w_mean[0], method.w_mean[1], atol=1e-3)
    assert torch.equal(method.w_mean[2], torch.zeros(8)), "a condition that never came"


@pytest.mark.parametrize("layer", [0, 1, 3, 5])
def test_style_mixing_changes_only_the_layers_from_the_crossover_on(layer: int) -> None:
    method = make(conditions=0).eval()
    synthesis = method.synthesis
    assert synthesis.layers == 6  # 4, 8 and 16 voxels: 1 + 2 + 2 convolutions and the last image
    w, other = torch.randn(2, 3, 8)
    styles: list[Tensor] = []
    for conv in synthesis.convs:
        conv.register_forward_pre_hook(lambda _, inputs: styles.append(inputs[1]))
    with torch.inference_mode():
        mixed = synthesis(w, other, torch.full((3,), layer))
        of_mixed = list(styles)
        styles.clear()
        of_first = (synthesis(w), list(styles))[1]
        styles.clear()
        of_second = (synthesis(other), list(styles))[1]
        for number, style in enumerate(of_mixed):
            expected = of_second if number >= layer else of_first
            assert torch.allclose(style, expected[number], atol=1e-6)
        all_layers = torch.full((3,), synthesis.layers)
        assert torch.equal(synthesis(w, other, all_layers), synthesis(w))
        assert torch.allclose(synthesis(w, other, torch.zeros(3)), synthesis(other), atol=1e-5)
        assert not torch.allclose(mixed, synthesis(w), atol=1e-4)


def test_each_image_has_its_own_crossover() -> None:
    method = make(conditions=0).eval()
    w, other = torch.randn(2, 2, 8)
    with torch.inference_mode():
        both = method.synthesis(w, other, torch.tensor([2, 4]))
        alone = method.synthesis(w[1:], other[1:], torch.tensor([4]))
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_fixed_noise_in_use_and_fresh_noise_in_training() -> None:
    method = make()
    for conv in method.synthesis.convs:
        torch.nn.init.ones_(conv.strength)
    latent, condition = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
    for mode in (True, False):
        method.train(mode)
        before = torch.get_rng_state()
        first = method.generate(latent, condition)["image"]
        assert torch.equal(torch.get_rng_state(), before), "generate drew a random number"
        assert torch.equal(first, method.generate(latent, condition)["image"])
    assert first.abs().max() <= 1
    w = method.map(latent, condition)
    fresh = [method.synthesis(w, random_noise=True) for _ in range(2)]
    assert not torch.allclose(fresh[0], fresh[1], atol=1e-3)


def test_limits_of_the_image_do_not_stop_gradients() -> None:
    method = make(conditions=0).eval()
    for layer in method.synthesis.to_image:
        torch.nn.init.constant_(layer.bias, 5.0)
    w = torch.randn(2, 8, requires_grad=True)
    image = method.synthesize(w)
    assert image.max() <= 1 + 1e-6
    image.sum().backward()
    assert w.grad is not None
    assert w.grad.abs().sum() > 0


def test_r1_comes_at_its_steps_and_weighs_its_interval() -> None:
    method = make(r1_gamma=4.0, r1_interval=3, path_length_weight=0.0)
    optimizers, of = method.optimizers(), batch(method)
    due = ["r1" in step(method, optimizers, of, number)["critic"] for number in range(7)]
    assert due == [True, False, False, True, False, False, True]

    def critic_loss(**changes: Any) -> dict[str, Tensor]:
        other = make(path_length_weight=0.0, **changes)
        torch.manual_seed(5)
        _, loss, parts = next(other.losses(of))
        return {"loss": loss.detach(), **parts}

    without = critic_loss(r1_gamma=0.0)["loss"]
    once = critic_loss(r1_gamma=4.0, r1_interval=1)
    lazy = critic_loss(r1_gamma=4.0, r1_interval=16)
    assert once["r1"] > 0
    assert torch.isclose(once["loss"], without + once["r1"], atol=1e-5)
    assert torch.isclose(lazy["loss"], without + 16 * once["r1"], atol=1e-4)


def test_path_lengths_come_at_their_steps_and_leave_a_mean() -> None:
    method = make(r1_gamma=0.0, path_length_interval=2)
    optimizers, of = method.optimizers(), batch(method)
    due = []
    for number in range(4):
        found = step(method, optimizers, of, number)["generator"]
        due.append("path_length" in found)
    assert due == [True, False, True, False]
    assert method.path_mean > 0


def test_resuming_goes_on_with_the_same_lazy_steps() -> None:
    """Counters, means and adaptive probability are in the state: a copy goes on bit for bit."""
    settings = {"augmentation": "adaptive", "adaptive_images": 50, "adaptive_target": 0.0}
    method = make(r1_interval=3, path_length_interval=2, **settings)
    optimizers, of = method.optimizers(), batch(method)
    for number in range(5):
        step(method, optimizers, of, number)
    again = make(r1_interval=3, path_length_interval=2, **settings)
    others = again.optimizers()
    step(again, others, of, 99)  # so that it has counted before it is loaded
    again.load_state_dict(method.state_dict())
    for name, optimizer in others.items():
        optimizer.load_state_dict(copy.deepcopy(optimizers[name].state_dict()))
    for number in range(5, 8):
        step(method, optimizers, of, number)
        step(again, others, of, number)
    one, two = method.state_dict(), again.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert int(again.steps.count) == 8
    assert again.augment.probability > 0


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_real_and_made_images_do_not_share_minibatch_statistics(spectral_norm: bool) -> None:
    torch.manual_seed(0)
    critic = ResidualCritic(
        1, (16, 16), 2, base=128, largest=16, spectral_norm=spectral_norm
    ).eval()
    real, fake = torch.randn(2, 4, 1, 16, 16)
    condition = torch.tensor([0, 1, 0, 1])
    both = critic(torch.cat([real, fake]), condition.repeat(2), parts=2)
    assert torch.allclose(both[:4], critic(real, condition), atol=1e-5)
    assert torch.allclose(both[4:], critic(fake, condition), atol=1e-5)
    assert not torch.allclose(critic(real, condition), critic(real, 1 - condition), atol=1e-4)


def test_spectral_norm_bounds_the_critic_and_pathologygan_uses_it() -> None:
    torch.manual_seed(0)
    method: Any = build("pathologygan", SMALL | {"r1_gamma": 0.0, "path_length_weight": 0.0})
    assert method.config.loss == "relativistic_average"
    optimizers, of = method.optimizers(), batch(method)
    for number in range(2):
        found = step(method, optimizers, of, number)
    assert "r1" not in found["critic"]
    for level in method.critic.levels:
        weight = level.first.weight.detach().flatten(1)
        assert torch.linalg.matrix_norm(weight, 2) < 1.2


@pytest.mark.parametrize("loss", ["non_saturating", "hinge", "relativistic_average"])
@pytest.mark.parametrize("augmentation", ["none", "diffaugment", "adaptive"])
def test_a_step_moves_every_parameter(loss: str, augmentation: str) -> None:
    method = make(loss=loss, augmentation=augmentation, channels=3, image_size=(24, 16))
    before = {name: weight.detach().clone() for name, weight in method.named_parameters()}
    found = step(method, method.optimizers(), batch(method))
    assert {"real_score", "fake_score", "accuracy"} <= set(found["critic"])
    assert ("minmax" in found["critic"]) == (loss == "non_saturating")
    still = [
        name for name, weight in method.named_parameters() if torch.equal(weight, before[name])
    ]
    assert not still
    assert all(weight.requires_grad for weight in method.critic.parameters())


def test_a_condition_that_is_missing_is_named() -> None:
    method = make()
    with pytest.raises(InputError, match="2 conditions"):
        method.generate(torch.randn(1, 8))
    with pytest.raises(InputError, match="2 conditions"):
        next(method.losses({"image": torch.zeros(2, 1, 16, 16)}))
    with pytest.raises(InputError, match="0 conditions"):
        make(conditions=0).generate(torch.randn(1, 8), torch.tensor([0]))
    with pytest.raises(InputError, match="image_size"):
        make(image_size=(50, 50))


@pytest.mark.parametrize("name", ["benchmarks/colon-stylegan2", "chest-xray"])
def test_models_of_128_pixels_stay_small_enough_to_ship(name: str) -> None:
    config = read_config(CONFIGS / f"{name}.yaml")
    method: Any = build(config.method, config.config)
    kept = sum(
        tensor.numel()
        for key, tensor in method.state_dict().items()
        if not key.startswith(method.training_only)
    )
    made = sum(p.numel() for p in (*method.mapping.parameters(), *method.synthesis.parameters()))
    assert method.image_size == (128, 128)
    assert made < 1_400_000
    assert 2 * kept < 3 * 2**20, "bytes in half precision"
    assert sum(p.numel() for p in method.critic.parameters()) < 4_000_000
