"""Deformed label maps keep their labels and their topology; the bank gives what was asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from medgen.label_deformation import (
    LabelBank,
    affine_numbers,
    deform,
    identity_grid,
    one_hot,
)

SIZE = {2: (24, 32), 3: (16, 24, 20)}


def nested(dims: int, count: int = 1) -> Tensor:
    """A ball of label 2 inside a ball of label 1, (count, 1, *size)."""
    grid = identity_grid(SIZE[dims])[0]
    radius = grid.square().sum(0).sqrt()
    labels = (radius < 0.7).long() + (radius < 0.4).long()
    return labels[None, None].repeat(count, 1, *[1] * dims)


def numbers(dims: int, seed: int, strength: float, count: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    control = strength * torch.randn(count, dims, *[4] * dims, generator=generator)
    affine = 0.05 * torch.randn(count, affine_numbers(dims), generator=generator)
    return control, affine


@pytest.mark.parametrize("dims", [2, 3])
def test_zeros_leave_everything_in_place(dims: int) -> None:
    labels = torch.randint(0, 5, (2, 1, *SIZE[dims]), generator=torch.Generator().manual_seed(0))
    control, affine = (torch.zeros_like(x) for x in numbers(dims, 0, 1, count=2))
    assert torch.equal(deform(labels, 5, control, affine), labels)


@pytest.mark.parametrize("dims", [2, 3])
@settings(deadline=None, max_examples=10, derandomize=True)
@given(seed=st.integers(0, 10_000), strength=st.floats(0.02, 0.15))
def test_what_is_connected_stays_connected_and_nested(
    dims: int, seed: int, strength: float
) -> None:
    control, affine = numbers(dims, seed, strength)
    before = nested(dims)
    after = deform(before, 3, control, affine)
    assert torch.equal(after, deform(before, 3, control, affine))
    assert set(after.unique().tolist()) <= {0, 1, 2}
    ball, core = (after[0, 0] > 0).numpy(), (after[0, 0] == 2).numpy()
    assert ball.any()
    assert ndimage.label(ball)[1] == 1
    assert ndimage.label(core)[1] == 1
    assert np.array_equal(ndimage.binary_fill_holes(ball), ball)
    assert not (ndimage.binary_dilation(core) & ~ball).any(), "the core reached the surface"


def test_it_does_change_something_smoothly() -> None:
    control, affine = numbers(2, 3, 0.1)
    before, after = nested(2), deform(nested(2), 3, control, affine)
    changed = (before != after).float().mean()
    assert 0.005 < float(changed) < 0.4


def test_a_shift_is_measured_in_half_extents() -> None:
    affine = torch.zeros(1, 5)
    affine[0, 3] = 2 * 3 / SIZE[2][0]  # three voxels along the first axis
    moved = deform(nested(2), 3, torch.zeros(1, 2, 4, 4), affine)
    assert torch.equal(moved[:, :, :-3], nested(2)[:, :, 3:])
    assert (moved[:, :, -3:] == 0).all(), "what comes from outside is background"


def test_rotation_keeps_shapes_on_a_grid_that_is_not_square() -> None:
    grid = identity_grid((48, 96))[0] * torch.tensor([24.0, 48.0])[:, None, None]
    disc = (grid.square().sum(0).sqrt() < 14).long()[None, None]
    affine = torch.zeros(1, 5)
    affine[0, 2] = 0.8
    turned = deform(disc, 2, torch.zeros(1, 2, 4, 4), affine)
    assert float((turned != disc).sum()) < 0.04 * float(disc.sum())


def test_mirroring_flips() -> None:
    labels = torch.arange(24 * 32).reshape(1, 1, 24, 32) % 3
    mirror = torch.tensor([[1.0, -1.0]])
    flipped = deform(labels, 3, torch.zeros(1, 2, 4, 4), torch.zeros(1, 5), mirror)
    assert torch.equal(flipped, labels.flip(3))


def test_unknown_values_set_no_channel() -> None:
    assert one_hot(torch.tensor([[[[0, 3, -1, 1]]]]), 2).sum(1).flatten().tolist() == [1, 0, 0, 1]


def bank(capacity: int = 3, conditions: int = 2, **extra: object) -> LabelBank:
    values = {"control_points": 3, "deformation": 0.05, "affine": 0.02, "mirror_axes": ()}
    return LabelBank(4, (8, 8), capacity, conditions, **{**values, **extra})  # type: ignore[arg-type]


def plain(value: int, count: int = 1) -> Tensor:
    return torch.full((count, 1, 8, 8), value)


def test_the_bank_keeps_each_map_once_while_there_is_room() -> None:
    maps = bank()
    maps.fill(torch.cat([plain(1), plain(1), plain(2), plain(3)]), torch.tensor([0, 0, 0, 1]))
    assert maps.filled.tolist() == [2, 1]
    maps.fill(torch.cat([plain(0), plain(3)]), torch.tensor([0, 0]))
    assert maps.filled.tolist() == [3, 1]
    assert maps.maps[0, :, 0, 0].tolist() == [1, 2, 0]


def test_a_map_is_chosen_by_its_condition_only() -> None:
    maps = bank()
    maps.fill(torch.cat([plain(1), plain(2), plain(3)]), torch.tensor([0, 0, 1]))
    latent = torch.randn(200, maps.latent, generator=torch.Generator().manual_seed(0))
    first = maps(latent, torch.zeros(200, dtype=torch.long))[:, 0, 4, 4]
    assert set(first.tolist()) == {1, 2}
    assert (first == 1).float().mean() == pytest.approx(0.5, abs=0.12)
    second = maps(latent, torch.ones(200, dtype=torch.long))[:, 0, 4, 4]
    assert set(second.tolist()) == {3}


def test_the_first_number_is_a_quantile() -> None:
    maps = bank(conditions=0)
    maps.fill(torch.cat([plain(1), plain(2), plain(3)]), torch.zeros(3, dtype=torch.long))
    latent = torch.zeros(5, maps.latent)
    latent[:, 0] = torch.tensor([-10.0, -1, 0, 1, 10])
    chosen = maps(latent, torch.zeros(5, dtype=torch.long))
    assert chosen[:, 0, 4, 4].tolist() == [1, 1, 2, 3, 3]
    assert torch.equal(chosen[2], plain(2)[0]), "zeros leave a map as it is"


def test_an_empty_bank_gives_background() -> None:
    assert not bank()(torch.randn(2, bank().latent), torch.tensor([0, 1])).any()


def test_the_bank_mirrors_only_where_it_may() -> None:
    half = torch.cat([plain(1)[:, :, :4], plain(2)[:, :, :4]], dim=2)
    fixed, free = bank(conditions=0), bank(conditions=0, mirror_axes=(0,))
    results = []
    for maps in (fixed, free):
        maps.fill(half, torch.zeros(1, dtype=torch.long))
        latent = torch.zeros(2, maps.latent)
        latent[0, 1] = -0.1
        results.append(maps(latent, torch.zeros(2, dtype=torch.long)))
    assert free.latent == fixed.latent + 1
    assert torch.equal(results[1][0], half[0].flip(1))
    assert torch.equal(results[1][1], half[0])


def test_a_strong_deformation_does_not_fold() -> None:
    """Where each place comes from keeps its order, though the velocities alone would change it."""
    from medgen.label_deformation import _integrate, _velocity, identity_grid

    torch.manual_seed(0)
    velocity = _velocity(0.25 * torch.randn(4, 2, 5, 5), (64, 64))
    places = _integrate(velocity)

    def area(of: torch.Tensor) -> torch.Tensor:
        across, along = of.diff(dim=2)[..., :-1], of.diff(dim=3)[:, :, :-1]
        return across[:, 0] * along[:, 1] - across[:, 1] * along[:, 0]

    assert (area(identity_grid((64, 64)) + velocity) < 0).any()
    assert (area(places) > 0).all()
