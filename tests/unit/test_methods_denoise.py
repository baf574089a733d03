"""What is particular to `dncnn` and `noise2void`; tests/contracts has what all restorers do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from medgen.errors import InputError
from medgen.methods import build
from medgen.methods.noise2void import blind_spots

FEATURES = (4, 4, 8, 8, 8)


def make(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return build(name, changes)


def test_the_plain_stack_is_the_papers() -> None:
    """DnCNN-S: 17 layers of 64 channels, no bias before batch normalisation."""
    method = make("dncnn", spread=False)
    layers = [m for m in method.network if isinstance(m, nn.Conv2d)]
    assert len(layers) == 17
    expected = (9 * 64 + 64) + 15 * (64 * 64 * 9 + 2 * 64) + (64 * 9 + 1)
    assert sum(p.numel() for p in method.parameters()) == expected


@pytest.mark.parametrize("architecture", ["dncnn", "unet"])
def test_with_a_silent_last_layer_the_middle_slice_comes_back(architecture: str) -> None:
    method = make(
        "dncnn", architecture=architecture, input_slices=3, fold=2, width=4, depth=3,
        features=FEATURES,
    ).eval()  # fmt: skip
    last = method.network.final_conv if architecture == "unet" else method.network[-1]
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(method.predict(image)["output"], image[:, 1:2])


def test_an_autoencoder_has_nothing_but_its_narrow_middle() -> None:
    """What cannot pass the middle is lost: a silent middle gives the same for every image."""
    method = make("denoising_ae", features=FEATURES).eval()
    images = torch.rand(2, 1, 32, 32)
    assert not torch.allclose(*method.predict(images)["output"])
    shapes: list[tuple[int, ...]] = []

    def silence(_: Any, __: Any, output: Tensor) -> Tensor:
        shapes.append(tuple(output.shape))
        return torch.zeros_like(output)

    middle = [m for m in method.network if isinstance(m, nn.ReLU)][4]
    middle.register_forward_hook(silence)
    first, second = method.predict(images)["output"]
    assert torch.equal(first, second)
    assert shapes == [(2, 8, 2, 2)]


@pytest.mark.parametrize(("loss", "expected"), [("l1", 0.5), ("l2", 0.25)])
def test_the_loss_is_the_distance_inside_the_mask(loss: str, expected: float) -> None:
    method = make("dncnn", loss=loss, spread=False, width=4, depth=3).eval()
    image = torch.rand(2, 1, 16, 16)
    mask = torch.zeros_like(image)
    mask[..., :5] = 1
    with torch.no_grad():
        target = method.predict(image)["output"] + 0.5 + 7 * (1 - mask)
        (step,) = method.losses({"image": image, "target": target, "mask": mask})
    assert float(step[1]) == pytest.approx(expected, rel=1e-5)


def test_one_network_removes_little_and_much_noise() -> None:
    """Trained over a range of levels without being told which (DnCNN-B)."""
    method = make("dncnn", width=12, depth=5, learning_rate=3e-3)
    optimizer = method.optimizers()["network"]
    generator = torch.Generator().manual_seed(0)

    def batch(level: float | None) -> dict[str, Tensor]:
        place = torch.rand(8, 1, 1, 1, generator=generator)
        clean = ((torch.arange(16.0) / 16 - place).reshape(8, 1, 1, 16) > 0).float()
        clean = clean.expand(8, 1, 16, 16).contiguous()
        levels = torch.rand(8, 1, 1, 1, generator=generator) * 0.4 if level is None else level
        noise = torch.randn(clean.shape, generator=generator) * levels
        return {"image": clean + noise, "target": clean, "mask": torch.ones_like(clean)}

    for _ in range(150):
        _, loss, _ = next(method.losses(batch(None)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    method.eval()
    for level in (0.1, 0.3):
        held_out = batch(level)
        with torch.inference_mode():
            output = method.predict(held_out["image"])["output"]
        assert (output - held_out["target"]).abs().mean() < 0.6 * level * 0.8  # 0.8: E|normal|


@given(
    st.integers(0, 999), st.sampled_from([2, 3]), st.integers(1, 3), st.floats(0.01, 0.4),
    st.integers(1, 2),
)  # fmt: skip
def test_blind_voxels_get_a_neighbours_value_and_never_their_own(
    seed: int, dims: int, reach: int, share: float, channels: int
) -> None:
    torch.manual_seed(seed)
    size = (8, 9, 10)[:dims]
    count = 2
    voxels = int(torch.tensor(size).prod())
    # Every voxel's value says where it is; the second channel says the same with another sign.
    places = torch.arange(voxels).reshape(1, 1, *size).float()
    image = torch.cat([places, -places], 1)[:, :channels].repeat(count, 1, *(1,) * dims)
    image = image + torch.arange(count).reshape(-1, 1, *(1,) * dims) * 10_000 * (
        torch.tensor([1, -1])[:channels].reshape(1, -1, *(1,) * dims)
    )
    before = image.clone()
    replaced, blind = blind_spots(image, share, reach)
    assert torch.equal(image, before)
    assert torch.equal(replaced * (1 - blind), image * (1 - blind))
    changed = (replaced != image).any(1, keepdim=True)
    assert torch.equal(changed, blind.bool()), "a blind voxel kept its value"
    if channels == 2:
        assert torch.equal(replaced[:, 0], -replaced[:, 1]), "channels came from different places"
    for index in blind.nonzero().tolist():
        one, _, *place = index
        number = int(replaced[(one, 0, *place)]) - 10_000 * one
        source = torch.unravel_index(torch.tensor(number), size)
        for at, edge, came_from in zip(place, size, source, strict=True):
            distance = abs(at - int(came_from))
            assert min(distance, edge - distance) <= reach


def test_every_neighbour_is_drawn_as_often() -> None:
    torch.manual_seed(0)
    image = torch.arange(64.0 * 64).reshape(1, 1, 64, 64).repeat(40, 1, 1, 1)
    replaced, blind = blind_spots(image, 0.1, 1)
    shift = (replaced - image)[blind.bool()]
    inner = shift[(shift.abs() <= 65)]  # without those that wrapped round
    values, counts = inner.unique(return_counts=True)
    assert values.tolist() == [-65, -64, -63, -1, 1, 63, 64, 65]
    assert counts.min() > 0.9 * counts.max()
    assert float(blind.mean()) == pytest.approx(0.1, rel=0.05)


def test_noise2void_reads_nothing_but_the_noisy_image() -> None:
    method = make("noise2void", features=FEATURES, blind_share=0.1)
    image = torch.rand(2, 1, 16, 16)
    torch.manual_seed(1)
    (first,) = method.losses({"image": image})
    again = make("noise2void", features=FEATURES, blind_share=0.1)
    truth = {"target": torch.rand(2, 1, 16, 16), "mask": torch.zeros(2, 1, 16, 16)}
    torch.manual_seed(1)
    (second,) = again.losses({"image": image, **truth})
    assert torch.equal(first[1], second[1])


def test_noise2void_never_sees_the_voxels_it_is_judged_by() -> None:
    """The values at blind voxels change the loss's goal, but not what the network makes."""
    method = make("noise2void", features=FEATURES, blind_share=0.1, input_slices=3).eval()
    seen: list[Tensor] = []
    method.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    image = torch.rand(2, 3, 16, 16)
    torch.manual_seed(5)
    _, blind = blind_spots(image[:, 1:2], 0.1, 2)
    torch.manual_seed(5)
    next(method.losses({"image": image}))
    (shown,) = seen
    assert torch.equal(shown[:, [0, 2]], image[:, [0, 2]]), "the slices beside are not masked"
    differs = shown[:, 1:2] != image[:, 1:2]
    assert torch.equal(differs, blind.bool())


def test_noise2void_removes_noise_it_was_never_shown_without() -> None:
    method = make("noise2void", features=(8, 8, 8, 8, 8), blind_share=0.1, learning_rate=1e-2)
    optimizer = method.optimizers()["network"]
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 16).expand(8, 1, 16, 16)
    for _ in range(120):
        noisy = ramp + 0.3 * torch.randn(ramp.shape, generator=generator)
        _, loss, _ = next(method.losses({"image": noisy}))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noisy = ramp + 0.3 * torch.randn(ramp.shape, generator=generator)
    with torch.inference_mode():
        output = method.eval().predict(noisy)["output"]
    assert (output - ramp).square().mean() < 0.25 * (noisy - ramp).square().mean()


@pytest.mark.parametrize("name", ["dncnn", "residual_unet", "denoising_ae", "noise2void"])
@pytest.mark.parametrize(("dims", "slices"), [(2, 4), (3, 3)])
def test_slices_must_be_odd_and_flat(name: str, dims: int, slices: int) -> None:
    with pytest.raises(InputError, match="odd"):
        make(name, spatial_dims=dims, input_slices=slices)
