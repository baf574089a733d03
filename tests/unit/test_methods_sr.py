"""What is particular to `srresnet` and `esrgan`; tests/contracts holds what every restorer does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medgen.errors import InputError
from medgen.losses import feature_distance
from medgen.methods import build
from medgen.networks.super_resolution import RRDB, ResidualBlock, TextureCritic

SMALL: dict[str, dict[str, Any]] = {
    "srresnet": {"blocks": 1, "width": 4, "critic_width": 4, "critic_stages": 2},
    "esrgan": {"blocks": 1, "width": 4, "growth": 4, "critic_width": 4, "critic_stages": 2},
}
methods = pytest.mark.parametrize("name", SMALL)


def make(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return build(name, {**SMALL.get(name, SMALL["srresnet"]), **changes})


def batch(slices: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, slices, 16, 16, generator=generator)
    target = torch.rand(3, 1, 16, 16, generator=generator)
    return {"image": image, "target": target, "mask": torch.ones(3, 1, 16, 16)}


def convolutions(module: nn.Module) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]


@methods
def test_with_a_silent_last_layer_the_middle_slice_comes_back(name: str) -> None:
    method = make(name, input_slices=5).eval()
    for parameter in method.network.tail.parameters():
        nn.init.zeros_(parameter)
    image = batch(5)["image"]
    outputs = method.predict(image)
    assert torch.equal(outputs["output"], image[:, 2:3])
    torch.testing.assert_close(outputs["spread"], torch.ones_like(outputs["spread"]))


@methods
def test_an_untrained_network_starts_near_the_interpolated_image(name: str) -> None:
    image = batch()["image"]
    with torch.inference_mode():
        outputs = make(name, spread=False).eval().predict(image)
    assert set(outputs) == {"output"}
    assert float((outputs["output"] - image).abs().max()) < 0.5
    assert float((outputs["output"] - image).abs().max()) > 0


def test_all_blocks_work_at_the_folded_resolution() -> None:
    seen: list[tuple[int, ...]] = []
    method = make("srresnet", fold=4, blocks=3)
    for layer in convolutions(method):
        layer.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[2:])))
    method(torch.rand(1, 1, 32, 16))
    assert len(seen) == 9  # first, two in each block, one behind the blocks, last
    assert set(seen) == {(8, 4)}


def test_parameter_counts_are_those_of_the_papers() -> None:
    """SRResNet's 16 blocks (2017, figure 4), and ESRGAN's 23 RRDBs (its released generator)."""
    block = sum(p.numel() for p in ResidualBlock(2, 64, batch_norm=True).parameters())
    # Two convolutions without bias, two batch normalisations, and one slope.
    assert block == 2 * 64 * 64 * 9 + 2 * 2 * 64 + 1
    # 16,697,987 parameters, less first (1792), after the blocks, two up, two last convolutions.
    rest = 64 * 3 * 9 + 64 + 4 * (64 * 64 * 9 + 64) + 64 * 3 * 9 + 3
    assert 23 * sum(p.numel() for p in RRDB(2, 64, 32).parameters()) == 16_697_987 - rest


def test_a_dense_block_that_says_nothing_changes_nothing() -> None:
    block = RRDB(2, 4, 4)
    for layer in convolutions(block):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    features = torch.rand(2, 4, 8, 8)
    torch.testing.assert_close(block(features), features)


@methods
def test_without_adversarial_weight_there_is_no_critic(name: str) -> None:
    method = make(name, adversarial_weight=0, feature_weight=0, pixel_weight=1)
    assert method.critic is None
    assert set(method.optimizers()) == {"network"}
    assert [step[0] for step in method.losses(batch())] == ["network"]
    assert not any(key.startswith("critic.") for key in method.state_dict())


@pytest.mark.parametrize("name", ["srgan", "esrgan"])
def test_the_critic_steps_first_and_says_what_it_thinks(name: str) -> None:
    steps = []
    for optimizer, loss, parts in make(name).losses(batch()):
        steps.append((optimizer, parts))
        loss.backward()
    assert [optimizer for optimizer, _ in steps] == ["critic", "network"]
    assert {"real_score", "fake_score", "accuracy"} <= set(steps[0][1])
    assert {"pixel", "adversarial", "features"} <= set(steps[1][1])


def test_the_networks_step_leaves_no_gradient_in_the_critic() -> None:
    method = make("esrgan")
    (_, critic_loss, _), (_, loss, _) = method.losses(batch())
    loss.backward()
    assert all(weight.grad is None for weight in method.critic.parameters())
    assert all(weight.grad is not None for weight in method.network.parameters())
    critic_loss.backward()
    assert all(weight.grad is not None for weight in method.critic.parameters())


@methods
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"feature_weight": 1, "adversarial_weight": 0}, "critic"),
        ({"feature_weight": 0, "adversarial_weight": 0, "pixel_weight": 0}, "must be > 0"),
        ({"input_slices": 4}, "odd"),
        ({"input_slices": 3, "spatial_dims": 3}, "odd"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    name: str, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        make(name, **changes)


def test_voxels_outside_the_mask_cost_nothing() -> None:
    method, given = make("srresnet").eval(), batch()
    given["mask"][..., :8] = 0
    loss = next(method.losses(given))[1]
    changed = {**given, "target": given["target"] + 3 * (1 - given["mask"])}
    assert torch.equal(next(method.losses(changed))[1], loss)
    changed = {**given, "target": given["target"] + 3 * given["mask"]}
    assert not torch.equal(next(method.losses(changed))[1], loss)


def test_the_spread_learns_how_large_the_errors_are() -> None:
    """Errors of mean size 0.4 on the left and 0.1 on the right, which nobody could predict."""
    method = make("srresnet", learning_rate=1e-2, width=8)
    optimizer = method.optimizers()["network"]
    generator = torch.Generator().manual_seed(0)
    size = torch.full((16, 16), 0.4)
    size[:, 8:] = 0.1
    image = torch.zeros(4, 1, 16, 16)
    image[..., 8:] = 1  # so that the sides can be told apart
    for _ in range(150):
        signs = torch.randint(0, 2, image.shape, generator=generator) * 2 - 1
        given = {"image": image, "target": image + size * signs, "mask": torch.ones_like(image)}
        _, loss, _ = next(method.losses(given))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        spread = method.eval().predict(image)["spread"]
    assert float(spread[..., 1:6].mean()) == pytest.approx(0.4, rel=0.35)
    assert float(spread[..., 10:15].mean()) == pytest.approx(0.1, rel=0.35)


def test_the_relative_distance_of_features_ignores_their_scale() -> None:
    made, real = [torch.rand(2, 3, 4, 4)], [torch.rand(2, 3, 4, 4)]
    distance = feature_distance(made, real)
    torch.testing.assert_close(feature_distance([9 * made[0]], [9 * real[0]]), distance)
    assert feature_distance(real, real) == 0
    assert distance > 0


@pytest.mark.parametrize("dims", [2, 3])
def test_the_critic_takes_images_of_any_size(dims: int) -> None:
    critic = TextureCritic(dims, 1, 4, 2)
    for size in (8, 12, 17):
        judged = critic(torch.rand(3, 1, *(size,) * dims))
        assert judged.real.shape == (3,)
        assert [features.shape[2] for features in judged.seen] == [size // 2, size // 2 // 2]
