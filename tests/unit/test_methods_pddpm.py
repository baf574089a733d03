"""pDDPM noises one patch after the other, by the forward process of diffusion models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medgen.errors import InputError
from medgen.methods import build
from medgen.networks.diffusion import Attention, DiffusionUNet


def make(dims: int = 2, **extra: Any) -> Any:
    torch.manual_seed(0)
    small = {"features": (8, 8), "blocks": 1}
    return build("pddpm", {"spatial_dims": dims, **small, **extra}).eval()


def shown(method: Any, *arguments: Tensor) -> tuple[Tensor, Tensor]:
    """Image and step that reach the network."""
    seen: list[Any] = []
    handle = method.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    with torch.no_grad():
        method(*arguments)
    handle.remove()
    return seen[0][0], seen[0][1]


def test_the_variance_kept_falls_as_the_cosine_schedule_says() -> None:
    method = make()
    steps = torch.arange(1, 1001)
    expected = torch.cos((steps / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    assert (method.kept.diff() < 0).all()
    torch.testing.assert_close(method.kept, expected / expected.max(), atol=2e-3, rtol=0)
    assert "kept" not in method.state_dict()


def test_only_the_patch_is_noised_and_as_the_step_says() -> None:
    method = make()
    image, noise = torch.rand(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
    patch = torch.zeros(2, 1, 16, 16)
    patch[:, :, 4:9, 2:7] = 1
    step = torch.tensor([1, 700])
    seen, told = shown(method, image, noise, patch, step)
    assert told.tolist() == [0, 699]
    clean, inside = 2 * image - 1, patch > 0
    assert torch.equal(seen[~inside], clean[~inside])
    kept = method.kept[step - 1].reshape(2, 1, 1, 1)
    expected = kept**0.5 * clean + (1 - kept) ** 0.5 * noise
    torch.testing.assert_close(seen[inside], expected[inside])
    assert (seen - clean)[0].abs().max() < 0.2 < (seen - clean)[1].abs().max()


@pytest.mark.parametrize("dims", [2, 3])
@given(size=st.lists(st.integers(2, 20), min_size=3, max_size=3), patches=st.integers(1, 4))
def test_the_patches_cover_every_voxel_once(dims: int, size: list[int], patches: int) -> None:
    method = make(dims, patches=patches)
    count = torch.zeros(1, *size[:dims])
    for tile in method.tiles(size[:dims]):
        count[tile] += 1
    assert (count == 1).all()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["coarse", "gaussian"])
def test_noise_has_unit_size_and_its_own_scale(dims: int, kind: str) -> None:
    method = make(dims, noise=kind)
    image = torch.zeros(8, 2, *(48,) * dims)
    noise = method.noise(image)
    assert noise.shape == image.shape
    assert float(noise.square().mean()) == pytest.approx(1, abs=0.02)
    # Neighbours are alike in coarse noise only.
    steps = float(noise.diff(dim=2).square().mean() / noise.var())
    assert (steps < 0.5) if kind == "coarse" else (1.8 < steps < 2.2)
    assert not torch.equal(noise[0], noise[1])


def test_prediction_uses_the_same_noise_for_every_image() -> None:
    image = torch.rand(3, 1, 16, 16)
    one, other = make(), make(noise_seed=1)
    other.load_state_dict(one.state_dict())
    with torch.inference_mode():
        whole = one.predict(image)["restored"]
        alone = torch.cat([one.predict(row[None])["restored"] for row in image])
        again = other.predict(image)["restored"]
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=0)
    assert not torch.equal(whole, again)


def test_each_patch_is_restored_by_itself() -> None:
    """A network that returns what it sees shows where the noise was: everywhere, once."""
    method = make(test_timestep=1000)
    method.network = Echo()
    image = torch.full((1, 1, 16, 16), 0.5)
    restored = method.predict(image)["restored"]
    assert (restored != image).float().mean() > 0.99
    assert method.network.noised == [64] * 4


class Echo(torch.nn.Module):
    """Returns its input, and counts what is not 0."""

    def __init__(self) -> None:
        super().__init__()
        self.noised: list[int] = []

    def forward(self, image: Tensor, _: Tensor) -> Tensor:
        self.noised.append(int((image != 0).sum()))
        return image


def test_the_loss_counts_in_the_patch_and_the_mask() -> None:
    method = make(timesteps=10, test_timestep=5)
    method.network = Echo()
    healthy = torch.rand(4, 1, 16, 16)
    batch = {"healthy": healthy, "mask": torch.zeros(4, 1, 16, 16)}
    assert float(next(iter(method.losses(batch)))[1]) == 0
    batch["mask"] += 1
    assert float(next(iter(method.losses(batch)))[1]) > 0


@pytest.mark.parametrize("dims", [2, 3])
def test_every_weight_of_the_network_learns_in_the_first_step(dims: int) -> None:
    network = DiffusionUNet(dims, 2, (8, 16, 16), blocks=2, groups=8)
    image = torch.randn(2, 2, *(8,) * dims)
    made = network(image, torch.tensor([3, 700]))
    assert made.shape == image.shape
    assert not torch.equal(made, network(image, torch.tensor([3, 5])))
    made.square().mean().backward()
    assert all(weight.grad.any() for weight in network.parameters())


def test_attention_is_that_of_torch() -> None:
    mine = Attention(128, groups=8).eval()
    theirs = torch.nn.MultiheadAttention(128, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(mine.seen.weight)
        theirs.out_proj.load_state_dict(mine.out.state_dict())
        value = torch.randn(2, 128, 3, 4)
        places = mine.norm(value).flatten(2).transpose(1, 2)
        expected, _ = theirs(places, places, places)
        found = (mine(value) - value).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": (8, 12)}, "multiples of 8"),
        ({"timesteps": 100}, "test_timestep is 500, but there are 100"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**change)
