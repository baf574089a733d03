"""What is particular to the inpainting methods; the common promises are in tests/contracts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medgen.errors import InputError
from medgen.methods import build
from medgen.methods.ip_medgan import box_corners, boxes
from medgen.networks.gated import GatedConvolution

SMALL: dict[str, dict[str, Any]] = {
    "inpaint_unet": {"features": (4, 4, 8, 8, 8)},
    "context_encoder": {
        "features": (4, 8, 8),
        "bottleneck": 8,
        "critic_features": (4, 8),
        "reach": 2,
    },
    "gated_conv": {"width": 4, "critic_features": (4, 8)},
    "ip_medgan": {"features": (4, 4, 8, 8, 8), "critic_features": (4, 8), "local_size": 16},
}
every = pytest.mark.parametrize("name", SMALL)
# Change what stands in the hole; the others do not look at it.
CORRECTING = ("inpaint_unet", "ip_medgan")


def make(name: str, **extra: Any) -> Any:
    torch.manual_seed(0)
    return build(name, {"spatial_dims": 2, **SMALL[name], **extra})


def holed(
    size: tuple[int, ...] = (32, 32), slices: int = 1, channels: int = 1
) -> dict[str, Tensor]:
    """Two random images, each with a box filled by a constant in every slice, and its truth."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand((2, slices, channels, *size), generator=generator)
    hole = torch.zeros(2, slices, 1, *size)
    hole[0, :, :, 8:20, 10:22] = 1
    hole[1, :, :, 16:26, 4:12] = 1
    image = torch.cat([torch.lerp(truth, torch.tensor(0.5), hole), hole], dim=2).flatten(1, 2)
    return {"image": image, "target": truth[:, slices // 2], "mask": hole[:, slices // 2]}


def losses(method: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: loss.detach() for name, loss, _ in method.losses(batch)}


@every
@pytest.mark.parametrize("slices", [1, 3])
def test_outside_the_hole_the_output_is_the_input(name: str, slices: int) -> None:
    batch = holed(slices=slices)
    method = make(name, input_slices=slices).eval()
    output = method.predict(batch["image"])["output"]
    hole = batch["mask"] > 0
    assert torch.equal(output[~hole], batch["target"][~hole])
    assert not torch.equal(output[hole], batch["target"][hole])


@pytest.mark.parametrize("name", sorted(set(SMALL) - set(CORRECTING)))
def test_what_stands_in_the_hole_does_not_matter(name: str) -> None:
    """Neither when the network is used nor when it is trained."""
    batch, method = holed(), make(name).eval()
    leak = batch["image"].clone()
    leak[:, :1] += 5 * batch["mask"]
    assert torch.equal(method.predict(leak)["output"], method.predict(batch["image"])["output"])
    first, again = losses(make(name), batch), losses(make(name), {**batch, "image": leak})
    assert first == again


def test_the_truth_outside_the_hole_costs_nothing() -> None:
    batch = holed()
    far, near = torch.zeros_like(batch["mask"]), torch.zeros_like(batch["mask"])
    far[..., -4:] = 1  # beyond the windows of the SSIM
    near[0, :, 21, 10:22] = 1
    first = losses(make("inpaint_unet"), batch)
    changed = losses(make("inpaint_unet"), {**batch, "target": batch["target"] + far})
    assert changed == first
    seam = losses(make("inpaint_unet"), {**batch, "target": batch["target"] + near})
    assert seam["network"] > first["network"], "the SSIM does not look at the seam"


@pytest.mark.parametrize("name", CORRECTING)
@pytest.mark.parametrize(("slices", "fold"), [(1, 1), (3, 2)])
def test_the_untrained_network_returns_the_filling(name: str, slices: int, fold: int) -> None:
    batch, method = holed(slices=slices), make(name, input_slices=slices, fold=fold).eval()
    given = batch["image"].unflatten(1, (slices, 2))[:, slices // 2, :1]
    output = method.predict(batch["image"])["output"]
    assert not torch.equal(output, given)
    assert (output - given).abs().max() < 0.05
    network = method.network if name == "inpaint_unet" else method.generator
    for parameter in network.final_conv.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(method.predict(batch["image"])["output"], given)


@every
def test_a_spread_is_predicted_only_if_asked_for(name: str) -> None:
    batch = holed()
    with_spread = make(name).eval().predict(batch["image"])
    assert (with_spread["spread"] > 0).all()
    assert set(make(name, spread=False).eval().predict(batch["image"])) == {"output"}


@every
@pytest.mark.parametrize(("dims", "slices"), [(2, 4), (3, 3)])
def test_slices_must_be_odd_and_flat(name: str, dims: int, slices: int) -> None:
    with pytest.raises(InputError, match="odd"):
        make(name, spatial_dims=dims, input_slices=slices)


@given(st.sampled_from([2, 3]), st.integers(4, 20), st.integers(0, 99))
def test_boxes_hold_a_voxel_of_the_hole_and_stay_inside(dims: int, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    mask = (torch.rand(3, 1, *(16, 12, 14)[:dims]) < 0.02).float()
    mask[0] = 0
    mask[(0, 0, *(15, 11, 13)[:dims])] = 1  # the last corner
    mask[(1, 0, *(0,) * dims)] = 1
    corners = box_corners(mask, size)
    near = boxes(mask, corners, size)
    shape = tuple(min(size, edge) for edge in mask.shape[2:])
    assert near.shape == (3, 1, *shape)
    filled = mask.flatten(1).any(1)
    assert near.flatten(1).any(1)[filled].all()


def test_boxes_are_drawn_from_all_of_the_hole() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 2:4, 2:4] = 1
    mask[..., 28:30, 20:22] = 1
    corners = torch.cat([box_corners(mask, 4) for _ in range(200)])
    upper = (corners[:, 0] < 10).float().mean()
    assert 0.35 < upper < 0.65


def test_a_box_that_the_critic_cannot_halve_is_refused() -> None:
    with pytest.raises(InputError, match="got 3"):
        make("ip_medgan", local_size=3)


def test_an_open_gate_is_an_elu_convolution() -> None:
    """And a closed one lets nothing through."""
    torch.manual_seed(0)
    layer = GatedConvolution(2, 3, 4)
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        layer.both.weight[4:] = 0
        layer.both.bias[4:] = 40
        plain = F.conv2d(image, layer.both.weight[:4], layer.both.bias[:4], padding=1)
        assert torch.allclose(layer(image), F.elu(plain), atol=1e-6)
        layer.both.bias[4:] = -40
        assert layer(image).abs().max() < 1e-6


@pytest.mark.parametrize("dims", [2, 3])
def test_gated_layers_keep_the_size_of_features(dims: int) -> None:
    """Seventeen layers with torch's own initial weights leave less than a millionth."""
    torch.manual_seed(0)
    layers = [GatedConvolution(dims, 32, 32) for _ in range(8)]
    image = torch.randn(1, 32, *(12,) * dims)
    features = image
    for layer in layers:
        features = layer(features)
    assert 0.1 < features.square().mean() / image.square().mean() < 3


def test_the_refinement_sees_what_the_coarse_network_has_made() -> None:
    batch, method = holed(slices=3), make("gated_conv", input_slices=3).eval()
    seen: list[Tensor] = []
    method.refine.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    coarse, _ = method(batch["image"])
    images = seen[0].unflatten(1, (3, 2))[:, :, :1]
    assert torch.equal(images[:, 1], coarse)
    assert torch.equal(images[:, 0], batch["image"][:, :1] * (1 - batch["image"][:, 1:2]))


def test_the_context_encoder_carries_information_everywhere_but_not_further() -> None:
    """Its only way from one end of the coarsest grid to the other is as wide as ``reach``."""

    def changed(reach: int) -> bool:
        method = make("context_encoder", reach=reach).double().eval()
        image = torch.rand(1, 2, 16, 128, dtype=torch.float64)
        image[:, 1:] = 0
        image[:, 1:, :, 120:] = 1
        other = image.clone()
        other[:, :1, :, :8] += 1
        ends = [method.network(each)[..., 124:] for each in (image, other)]
        return not torch.allclose(*ends, atol=1e-12, rtol=0)

    assert changed(15)
    assert not changed(2)
