"""Progressive growing: nothing jumps when a level joins, and a resumed run grows on."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medgen.errors import InputError
from medgen.methods import build
from medgen.networks.layers import EqualConv, EqualLinear
from medgen.networks.progressive import enlarged, faded

SMALL: dict[str, Any] = {
    "channels": 2,
    "image_size": (16, 16),
    "conditions": 2,
    "latent": 8,
    "base": 128,
    "largest": 12,
    "images_per_phase": 8,
}
TOP = 2  # levels of 4, 8 and 16 voxels


def make(**changes: Any) -> Any:
    torch.manual_seed(0)
    return build("progan", SMALL | changes)


def batch(number: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    images = torch.rand((number, 2, 16, 16), generator=generator) * 2 - 1
    return {"image": images, "condition": torch.arange(number) % 2}


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


@pytest.mark.parametrize("layer", [EqualConv(2, 5, 4), EqualLinear(5, 4, gain=math.sqrt(2))])
def test_equalised_layers_are_ordinary_ones_with_he_s_weights(layer: Any) -> None:
    """Weights are standard normal; at run time they have He's standard deviation."""
    torch.nn.init.normal_(layer.bias)
    fan_in = layer.weight[0].numel()
    weight = layer.weight * math.sqrt(2 / fan_in)
    if isinstance(layer, EqualConv):
        given = torch.randn(3, 5, 6, 6)
        expected = F.conv2d(given, weight, layer.bias, padding=1)
    else:
        given = torch.randn(3, 5)
        expected = F.linear(given, weight, layer.bias)
    assert torch.allclose(layer(given), expected, atol=1e-5)


def test_stages_follow_the_paper() -> None:
    method = make()
    seen = [method.stage(images) for images in range(0, 49, 4)]
    assert seen[:3] == [(0, 1.0), (0, 1.0), (1, 0.0)]  # the base has one phase, then 8 fades in
    assert seen[3:7] == [(1, 0.5), (1, 1.0), (1, 1.0), (2, 0.0)]
    assert seen[7:] == [(2, 0.5), (2, 1.0), (2, 1.0), (2, 1.0), (2, 1.0), (2, 1.0)]
    assert make(images_per_phase=0).stage(0) == (TOP, 1.0)


@settings(max_examples=20, deadline=None)
@given(images=st.integers(0, 200), phase=st.integers(1, 40))
def test_growth_never_jumps(images: int, phase: int) -> None:
    """Level plus share grows by at most one image's part of a phase."""
    method = make(images_per_phase=phase)
    (level, alpha), (later, more) = method.stage(images), method.stage(images + 1)
    assert 0 <= alpha <= 1
    assert later + more - level - alpha <= 1 / phase + 1e-9 or (later, more) == (level + 1, 0.0)
    assert (later, more) >= (level, alpha)


@pytest.mark.parametrize("level", [1, 2])
def test_a_new_level_starts_as_the_one_below_and_ends_as_itself(level: int) -> None:
    method = make().eval()
    latent, of = torch.randn(3, 8), torch.eye(2)[[0, 1, 0]]
    with torch.inference_mode():
        below = method.generator(latent, of, level - 1, 1.0)
        fading = [method.generator(latent, of, level, alpha) for alpha in (0.0, 0.25, 1.0)]
        assert torch.equal(fading[0], enlarged(below))
        assert torch.allclose(fading[1], torch.lerp(fading[0], fading[2], 0.25), atol=1e-6)
        assert not torch.allclose(fading[2], fading[0], atol=1e-3)

        image, label = torch.randn(4, 2, *fading[0].shape[2:]), F.one_hot(batch()["condition"], 2)
        scores = [method.critic(image, label.float(), level, alpha) for alpha in (0.0, 1.0)]
        coarse = method.critic(F.avg_pool2d(image, 2), label.float(), level - 1, 1.0)
    assert torch.allclose(scores[0], coarse, atol=1e-5)
    assert not torch.allclose(scores[1], coarse, atol=1e-3)


def test_a_fading_level_shows_real_images_without_their_detail() -> None:
    image = torch.randn(2, 1, 8, 8)
    assert torch.equal(faded(image, 0.0), enlarged(F.avg_pool2d(image, 2)))
    assert torch.equal(faded(image, 1.0), image)
    assert torch.allclose(F.avg_pool2d(faded(image, 0.3), 2), F.avg_pool2d(image, 2), atol=1e-6)


def test_only_what_has_grown_learns() -> None:
    method = make()
    optimizers, of = method.optimizers(), batch()
    before = {name: value.clone() for name, value in method.named_parameters()}
    for number in range(2):  # the base level: 8 images
        step(method, optimizers, of, number)
    moved = {n for n, value in method.named_parameters() if not torch.equal(value, before[n])}
    asleep = {n for n in before if ".levels." in n or "image.1." in n or "image.2." in n}
    assert moved == set(before) - asleep
    for number in range(2, 10):
        step(method, optimizers, of, number)
    still = {n for n, value in method.named_parameters() if torch.equal(value, before[n])}
    assert not still


def test_images_have_the_full_size_at_every_level() -> None:
    method = make()
    optimizers, of = method.optimizers(), batch()
    latent, condition = torch.randn(3, 8), torch.tensor([0, 1, 0])
    for number in range(10):
        with torch.inference_mode():
            image = method.eval().generate(latent, condition)["image"]
            again = method.generate(latent, condition)["image"]
        assert image.shape == (3, 2, 16, 16)
        assert image.abs().max() <= 1
        assert torch.equal(image, again)
        block = image[:, :, ::2, ::2]
        enlarged_now = torch.equal(enlarged(block), image)
        assert enlarged_now == (method.stage(int(method.images.count)) < (2, 1e-9))
        found = step(method, optimizers, of, number)
        assert {"real_score", "fake_score", "accuracy", "penalty"} <= set(found["critic"])
    assert int(method.images.count) == 40


def test_a_running_average_grows_with_its_buffers() -> None:
    """The loop copies buffers into the average; its images follow without being told."""
    method = make()
    average = copy.deepcopy(method).eval()
    step(method, method.optimizers(), batch())
    average.images.count.fill_(1000)
    image = average.generate(torch.randn(1, 8), torch.tensor([0]))["image"]
    assert not torch.equal(enlarged(image[:, :, ::2, ::2]), image)


def test_resuming_grows_on_bit_for_bit() -> None:
    method, of = make(), batch()
    optimizers = method.optimizers()
    for number in range(5):
        step(method, optimizers, of, number)
    again = make()
    others = again.optimizers()
    step(again, others, of, 99)  # so that it has counted before it is loaded
    again.load_state_dict(method.state_dict())
    for name, optimizer in others.items():
        optimizer.load_state_dict(copy.deepcopy(optimizers[name].state_dict()))
    levels = []
    for number in range(5, 9):
        levels.append(step(method, optimizers, of, number)["generator"]["level"])
        step(again, others, of, number)
    assert levels[-1] > levels[0]
    one, two = method.state_dict(), again.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_drift_term_keeps_the_critic_near_0() -> None:
    of = batch()
    torch.manual_seed(1)
    _, without, _ = next(make(drift=0.0).losses(of))
    torch.manual_seed(1)
    _, loss, parts = next(make(drift=10.0).losses(of))
    assert loss - without >= 10 * parts["real_score"] ** 2 - 1e-5
    assert loss > without


def test_what_it_cannot_do_is_named() -> None:
    method = make()
    with pytest.raises(InputError, match="2 conditions"):
        method.generate(torch.randn(1, 8))
    with pytest.raises(InputError, match="0 conditions"):
        make(conditions=0).generate(torch.randn(1, 8), torch.tensor([0]))
    with pytest.raises(InputError, match="truncate"):
        method.generate(torch.randn(1, 8), torch.tensor([0]), truncation=0.5)
