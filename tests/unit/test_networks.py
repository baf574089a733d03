"""Layers against their equations, networks against their papers' counts."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medgen.errors import InputError
from medgen.networks.discriminators import Critic, DCGANBody, MLPBody, ResNetBody
from medgen.networks.generators import DCGANGenerator, MLPGenerator, ResNetGenerator
from medgen.networks.layers import (
    ConditionalBatchNorm,
    EqualConv,
    EqualLinear,
    MinibatchDeviation,
    PixelNorm,
    conv,
    frozen,
    halvings,
    spectral,
)

both = pytest.mark.parametrize("dims", [2, 3])


@settings(max_examples=60, deadline=None)
@given(
    base=st.lists(st.integers(3, 8), min_size=2, max_size=3),
    power=st.integers(1, 5),
)
def test_a_small_grid_times_a_power_of_two_is_halved_back_to_a_small_grid(
    base: list[int], power: int
) -> None:
    count = halvings([edge * 2**power for edge in base])
    assert count >= power
    assert 3 <= min(edge * 2**power >> count for edge in base) <= 8


@pytest.mark.parametrize("size", [(50, 50), (1, 1), (3, 3), (63, 64), (34, 34)])
def test_other_sizes_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="power of two"):
        halvings(size)


@both
def test_spectral_norm_finds_the_largest_singular_value(dims: int) -> None:
    torch.manual_seed(0)
    layer = spectral(conv(dims, 4, 6))
    for _ in range(30):  # one power iteration each
        layer(torch.zeros(1, 4, *(4,) * dims))
    sizes = torch.linalg.svdvals(layer.weight.detach().flatten(1))
    assert float(sizes[0]) == pytest.approx(1, abs=1e-3)
    layer.eval()
    state = copy.deepcopy(layer.state_dict())
    first, second = (layer(torch.ones(1, 4, *(4,) * dims)) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(v, layer.state_dict()[n]) for n, v in state.items())


def test_spectral_norm_agrees_with_torch_and_stays_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(8, 5)
    ours, theirs = spectral(copy.deepcopy(plain)), copy.deepcopy(plain)
    theirs = nn.utils.parametrizations.spectral_norm(theirs, n_power_iterations=5)
    for _ in range(40):
        ours.weight, theirs.weight  # noqa: B018  each look is a power iteration
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours.weight.dtype == torch.float32
        ours(torch.randn(2, 8)).float().sum().backward()
    assert torch.isfinite(ours.parametrizations.weight.original.grad).all()


def test_conditional_batch_norm_with_equal_rows_is_batch_norm() -> None:
    torch.manual_seed(0)
    image, condition = torch.randn(6, 3, 5, 5), torch.arange(6) % 2
    ours, plain = ConditionalBatchNorm(2, 3, 2), nn.BatchNorm2d(3)
    assert torch.allclose(ours(image, condition), plain(image), atol=1e-6)
    with torch.no_grad():
        ours.scale.weight[1], ours.shift.weight[1] = 2.0, 0.5
    changed = ours(image, condition)
    assert torch.allclose(changed[0::2], plain(image)[0::2], atol=1e-6)
    assert torch.allclose(changed[1::2], 2 * plain(image)[1::2] + 0.5, atol=1e-5)


@both
def test_equalised_layers_keep_the_variance_whatever_their_width(dims: int) -> None:
    torch.manual_seed(0)
    for width in (4, 32):
        layer = EqualConv(dims, width, 64, 3, gain=1.0)
        image = torch.randn(2, width, *(8,) * dims)
        inner = layer(image)[(..., *(slice(1, -1),) * dims)]
        assert float(inner.detach().std()) == pytest.approx(1, abs=0.15)
        assert float(layer.weight.detach().std()) == pytest.approx(1, abs=0.1)
    fast, slow = EqualLinear(16, 256, rate=1.0), EqualLinear(16, 256, rate=0.01, bias=1.0)
    vector = torch.randn(64, 16)
    assert float(fast(vector).detach().std()) == pytest.approx(1, abs=0.1)
    assert float((slow(vector) - 1).detach().std()) == pytest.approx(1, abs=0.1)


def test_pixel_norm_and_minibatch_deviation_are_their_equations() -> None:
    torch.manual_seed(0)
    value = torch.randn(8, 5, 4, 4)
    assert torch.allclose(PixelNorm()(value).square().mean(1), torch.ones(8, 4, 4), atol=1e-4)
    channel = MinibatchDeviation(group=4)(value)[:, 5]
    for group in range(2):  # images group, group + 2, ... are compared
        expected = value[group::2].std(0, correction=0).mean()
        assert torch.allclose(channel[group::2], expected.expand(4, 4, 4), atol=1e-5)
    same = MinibatchDeviation()(value[:1].expand(4, -1, -1, -1))
    assert same[:, 5].abs().max() < 1e-3
    assert MinibatchDeviation()(value[:3]).shape == (3, 6, 4, 4)


def test_frozen_networks_pass_gradients_but_keep_none() -> None:
    network, image = nn.Linear(3, 1), torch.ones(2, 3, requires_grad=True)
    network.bias.requires_grad_(False)
    with frozen(network):
        result = network(image).sum()
    result.backward()
    assert image.grad is not None
    assert network.weight.grad is None
    assert network.weight.requires_grad and not network.bias.requires_grad


def test_dcgan_has_the_size_of_its_paper() -> None:
    """At 64 x 64 with 100 numbers and 512 channels at 4 x 4, as in the usual implementation."""
    generator = DCGANGenerator(2, 100, 3, (64, 64), 64, 0)
    assert sum(w.numel() for w in generator.parameters()) == 3_576_704 + 3  # its last bias
    body = DCGANBody(2, 3, (64, 64), 64)
    critic = Critic(lambda channels: body, 3, 0, "none")
    assert sum(w.numel() for w in critic.parameters()) == 2_765_568 + 64 + 1  # first and last bias
    assert not isinstance(body.layers[1], nn.BatchNorm2d), "none at the input"
    kinds = [type(layer).__name__ for layer in generator.layers]
    assert kinds[-2:] == ["ConvTranspose2d", "Tanh"]
    assert kinds.count("ReLU") == 4 and "LeakyReLU" not in kinds
    weights = torch.cat([w.flatten() for n, w in generator.named_parameters() if w.ndim == 4])
    assert float(weights.detach().std()) == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("kind", ["mlp", "dcgan", "resnet"])
@pytest.mark.parametrize("size", [(24, 16), (16, 24, 8)])
def test_sizes_need_not_be_equal(kind: str, size: tuple[int, ...]) -> None:
    dims = len(size)
    shared = (5, 2, size, 4, 3)
    generator = MLPGenerator(*shared)
    body = {"mlp": lambda c: MLPBody(c, size, 4)}
    if kind == "dcgan":
        generator = DCGANGenerator(dims, *shared)
        body[kind] = lambda c: DCGANBody(dims, c, size, 4)
    elif kind == "resnet":
        generator = ResNetGenerator(dims, *shared)
        body[kind] = lambda c: ResNetBody(dims, c, size, 4)
    condition = torch.tensor([0, 2])
    image = generator(torch.randn(2, 5), condition)
    assert image.shape == (2, 2, *size)
    assert image.abs().max() <= 1
    for conditioning in ("none", "concatenation", "auxiliary", "projection"):
        critic = Critic(body[kind], 2, 3, conditioning)
        verdict = critic(image, condition)
        assert verdict.real.shape == (2,)
        assert (verdict.classes is not None) == (conditioning == "auxiliary")
        other = critic(image, condition.flip(0))
        sees = conditioning in {"concatenation", "projection"}
        assert sees != torch.equal(verdict.real, other.real)


def test_spectral_norm_reaches_every_layer_of_a_critic_from_the_start() -> None:
    torch.manual_seed(0)
    for kind in (DCGANBody, ResNetBody):
        critic = Critic(
            lambda channels, kind=kind: kind(2, channels, (16, 16), 4, spectral_norm=True),
            1,
            2,
            "projection",
            spectral_norm=True,
        )
        layers = [
            m for m in critic.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)
        ]
        assert len(layers) >= 4
        for layer in layers:
            norm = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
            assert float(norm) == pytest.approx(1, abs=0.02)
