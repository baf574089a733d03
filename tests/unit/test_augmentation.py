"""What augmentation may change, and what it must leave alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medgen.augmentation import ADAPTIVE, DIFFERENTIABLE, AdaptiveAugment, DiffAugment
from medgen.errors import InputError

both = pytest.mark.parametrize("dims", [2, 3])


def images(dims: int, count: int = 6, channels: int = 3, edge: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(dims)
    return torch.rand(count, channels, *(edge,) * dims, generator=generator) * 2 - 1


def always(dims: int, *operations: str) -> AdaptiveAugment:
    augment = AdaptiveAugment(dims, operations or ADAPTIVE)
    augment.probability.fill_(1.0)
    return augment


@both
@pytest.mark.parametrize("channels", [1, 3])
def test_at_probability_zero_nothing_changes(dims: int, channels: int) -> None:
    image = images(dims, channels=channels)
    assert torch.allclose(AdaptiveAugment(dims)(image), image, atol=1e-5)
    assert torch.equal(DiffAugment(())(image), image)


@both
@pytest.mark.parametrize("operation", ADAPTIVE)
def test_every_adaptive_operation_changes_some_images_and_passes_gradients(
    dims: int, operation: str
) -> None:
    torch.manual_seed(0)
    image = images(dims).requires_grad_()
    changed = always(dims, operation)(image)
    assert changed.shape == image.shape
    assert not torch.allclose(changed, image, atol=1e-3)
    (gradient,) = torch.autograd.grad(changed.square().sum(), image)
    assert torch.isfinite(gradient).all()
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


@both
@pytest.mark.parametrize("operation", DIFFERENTIABLE)
def test_every_differentiable_operation_changes_images_and_passes_gradients(
    dims: int, operation: str
) -> None:
    torch.manual_seed(0)
    image = images(dims).requires_grad_()
    changed = DiffAugment((operation,))(image)
    assert changed.shape == image.shape
    assert not torch.allclose(changed, image)
    (gradient,) = torch.autograd.grad(changed.square().sum(), image)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


@both
def test_pixel_blitting_only_rearranges_voxels(dims: int) -> None:
    torch.manual_seed(0)
    image = images(dims)
    for operation in ("mirror", "quarter_turns"):
        moved = always(dims, operation)(image)
        before, after = (x.flatten(2).sort().values for x in (image, moved))
        assert torch.allclose(before, after, atol=1e-4), operation
    mirrored = always(dims, "mirror")(image)
    for one, other in zip(image, mirrored, strict=True):
        same, flipped = (torch.allclose(x, other, atol=1e-4) for x in (one, one.flip(1)))
        assert same or flipped


def test_quarter_turns_stay_inside_images_that_are_not_square() -> None:
    torch.manual_seed(0)
    image = images(2, count=32)[:, :, :8]
    turned = always(2, "quarter_turns")(image)
    for one, other in zip(image, turned, strict=True):
        same, half = (torch.allclose(x, other, atol=1e-4) for x in (one, one.flip(1, 2)))
        assert same or half


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), dims=st.sampled_from([2, 3]))
def test_translation_moves_by_whole_voxels_and_lets_zeros_in(seed: int, dims: int) -> None:
    torch.manual_seed(seed)
    image = images(dims, count=3, edge=16) + 3  # nowhere 0
    moved = DiffAugment(("translation",))(image)
    for one, other in zip(image, moved, strict=True):
        # The middle cannot have left; find it again in the original.
        inside = tuple(slice(6, 10) for _ in range(dims))
        middle = other[(slice(None), *inside)]
        found = [
            shift
            for shift in torch.cartesian_prod(*[torch.arange(-2, 3)] * dims)
            if torch.equal(one[(slice(None), *(slice(6 + s, 10 + s) for s in shift))], middle)
        ]
        assert len(found) == 1
        lost = 1.0
        for s in found[0]:
            lost *= 1 - abs(int(s)) / 16
        assert float((other == 0).float().mean()) == pytest.approx(1 - lost)


@both
def test_cutout_removes_a_box_of_at_most_half_of_each_edge(dims: int) -> None:
    torch.manual_seed(0)
    image = images(dims, count=40) + 3
    for augment in (DiffAugment(("cutout",)), always(dims, "cutout")):
        gone = augment(image) == 0
        share = gone.float().flatten(1).mean(1)
        assert share.max() == pytest.approx(0.5**dims)
        assert share.min() > 0
        edges = gone[:, 0].any(dim=tuple(range(2, dims + 1))).sum(1)
        assert edges.max() <= 6


@both
def test_colour_keeps_the_order_of_grey_values(dims: int) -> None:
    torch.manual_seed(0)
    grey = images(dims, channels=1)
    for augment in (DiffAugment(("colour",)), always(dims, "brightness", "contrast", "saturation")):
        changed = augment(grey)
        order, expected = (x.flatten(1).argsort(1) for x in (changed, grey))
        assert torch.equal(order, expected)
        assert not torch.allclose(changed, grey, atol=1e-3)


@both
def test_the_probability_is_that_of_an_image_being_changed(dims: int) -> None:
    torch.manual_seed(0)
    augment = AdaptiveAugment(dims, ("brightness",))
    augment.probability.fill_(0.3)
    image = torch.zeros(2000, 1, *(2,) * dims)
    share = (augment(image).flatten(1).abs().amax(1) > 0).float().mean()
    assert float(share) == pytest.approx(0.3, abs=0.04)


def test_the_probability_rises_while_the_critic_overfits_and_falls_again() -> None:
    augment = AdaptiveAugment(2, speed=100)
    sure, fair = torch.ones(10), torch.tensor([1.0] * 7 + [-1.0] * 3)
    path = []
    for logits in [sure] * 12 + [fair] * 12:
        augment.update(logits)
        path.append(float(augment.probability))
    # Four updates of ten images each move it by 40 of the 100 images of a full way.
    assert path[:4] == [0, 0, 0, pytest.approx(0.4)]
    assert max(path) == path[11] == pytest.approx(1.0)
    assert path[-1] == 0.0
    augment.update(sure)
    assert set(augment.state_dict()) == {"probability", "signs", "seen", "calls"}
    assert float(augment.seen) == 10


def test_unknown_operations_are_named() -> None:
    with pytest.raises(InputError, match="rotat"):
        DiffAugment(("rotation",))
    with pytest.raises(InputError) as caught:
        AdaptiveAugment(2, ("colour",))
    assert "saturation" in str(caught.value)


@pytest.mark.parametrize("dims", [2, 3])
def test_adaptive_augmentation_moves_pixels_exactly_in_mixed_precision(dims: int) -> None:
    augment = AdaptiveAugment(dims, ("rotation", "scaling"))
    augment.probability.fill_(1)
    image, made = torch.rand(2, 1, *(32,) * dims), []
    for mixed in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            made.append(augment(image))
    assert torch.equal(*made)
