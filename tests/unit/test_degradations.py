"""Noise, holes, artefacts and large voxels do what they say, and repeat with their seed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medgen.corruption.artefacts import acquired, bias_field, motion
from medgen.corruption.coarse_patches import patch_axis, refined_start
from medgen.corruption.holes import KINDS, random_hole
from medgen.corruption.noise import NOISE, low_dose, random_noise, rician
from medgen.corruption.resolution import along, downsample

SHAPE = (4, 48, 52)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head() -> Tensor:
    """An ellipse of 1 in air, (1, 48, 52)."""
    x, y = torch.meshgrid(torch.arange(48) - 24.0, torch.arange(52) - 26.0, indexing="ij")
    return ((x / 16) ** 2 + (y / 18) ** 2 < 1).float()[None]


def test_faint_noise_is_as_common_as_strong_noise() -> None:
    image = torch.ones(1, 64, 64)
    levels = [
        float((random_noise(image, {"gaussian": (0.01, 0.16)}, seeded(n)) - image).std())
        for n in range(200)
    ]
    assert min(levels) < 0.012 < 0.13 < max(levels)
    assert 0.4 < sum(level < 0.04 for level in levels) / len(levels) < 0.6


@pytest.mark.parametrize("kind", NOISE)
def test_noise_has_the_level_asked_for_where_the_image_is_one(kind: str) -> None:
    image = torch.ones(8, 64, 64)
    noisy = NOISE[kind](image, 0.05, seeded(0))
    assert float((noisy - image).std()) == pytest.approx(0.05, rel=0.05)
    assert float(noisy.mean()) == pytest.approx(1.0, abs=0.004)
    assert torch.equal(noisy, NOISE[kind](image, 0.05, seeded(0)))
    assert torch.equal(image, torch.ones(8, 64, 64))


def test_rician_noise_has_the_moments_of_its_distribution() -> None:
    for value in (0.0, 0.1, 1.0):
        noisy = rician(torch.full((8, 64, 64), value), 0.1, seeded(1))
        assert float((noisy**2).mean()) == pytest.approx(value**2 + 2 * 0.1**2, rel=0.03)
        assert float(noisy.min()) >= 0
    air = rician(torch.zeros(8, 64, 64), 0.1, seeded(1))
    assert float(air.mean()) == pytest.approx(0.1 * math.sqrt(math.pi / 2), rel=0.02)


def test_poisson_noise_grows_with_the_square_root_and_grain_is_shared_by_neighbours() -> None:
    dark, bright = (
        NOISE["poisson"](torch.full((8, 64, 64), v), 0.1, seeded(2)).std() for v in (0.25, 1.0)
    )
    assert float(bright / dark) == pytest.approx(2, rel=0.05)
    grain = NOISE["grainy"](torch.zeros(8, 64, 64), 1.0, seeded(2))
    white = NOISE["gaussian"](torch.zeros(8, 64, 64), 1.0, seeded(2))
    assert float((grain[:, 1:] * grain[:, :-1]).mean()) > 0.3
    assert abs(float((white[:, 1:] * white[:, :-1]).mean())) < 0.03


def test_random_noise_draws_its_kind_and_level_from_the_ranges() -> None:
    image = torch.ones(2, 32, 32)
    levels = [
        float((random_noise(image, {"gaussian": (0.02, 0.2)}, seeded(s)) - image).std())
        for s in range(12)
    ]
    assert 0.015 < min(levels) < 0.07 and 0.12 < max(levels) < 0.22
    assert torch.equal(random_noise(image, {}, seeded(0)), image)
    assert torch.equal(random_noise(image, {"rician": (0, 0)}, seeded(0)), image)


def test_a_tenth_of_the_dose_gives_root_ten_times_the_noise_and_no_shift() -> None:
    image = head() * 1040 - 1000
    inside = head() > 0
    spreads = []
    for photons in (1e6, 1e5):
        error = (low_dose(image, photons, 2.0, seeded(0), angles=60) - image)[inside]
        assert abs(float(error.mean())) < 0.1 * float(error.std())
        spreads.append(float(error.std()))
    assert spreads[1] / spreads[0] == pytest.approx(math.sqrt(10), rel=0.1)
    # A denser path starves the rays: the noise is that of the anatomy, not white.
    dense = torch.where(inside, image + 600, image)
    error = (low_dose(dense, 1e6, 2.0, seeded(0), angles=60) - dense)[inside]
    assert float(error.std()) > 1.3 * spreads[0]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(KINDS), st.integers(0, 10_000), st.floats(3, 30))
def test_a_hole_lies_in_the_middle_slice_and_is_about_as_large_as_asked(
    kind: str, seed: int, size: float
) -> None:
    shape = (9, 48, 52)
    tissue = head().bool().expand(shape)
    hole = random_hole(shape, tissue, 1.5, {kind: (size, size)}, seeded(seed))
    assert hole.shape == shape and hole.dtype == torch.bool
    assert hole[4].any()
    assert (hole[4] & tissue[4]).any()
    extent = (hole.any(0).nonzero().amax(0) - hole.any(0).nonzero().amin(0) + 1).max()
    reach = {"box": 1.4, "stroke": 19}.get(kind, 3.6) * size / 1.5 + 4
    assert float(extent) <= reach
    assert torch.equal(hole, random_hole(shape, tissue, 1.5, {kind: (size, size)}, seeded(seed)))


def test_larger_sizes_give_larger_holes() -> None:
    tissue = torch.ones(9, 48, 52, dtype=torch.bool)
    for kind in KINDS:
        small, large = (
            sum(
                int(random_hole(tissue.shape, tissue, 1.0, {kind: (s, s)}, seeded(n)).sum())
                for n in range(8)
            )
            for s in (3.0, 9.0)
        )
        assert large > 4 * small, kind


def test_motion_without_movement_is_the_image_and_with_it_is_not() -> None:
    image = head()
    assert torch.allclose(motion(image, 0, 3, 3, seeded(0)), image, atol=1e-5)
    still = motion(image, 3, 0.0, 0.0, seeded(0))
    assert torch.allclose(still, image, atol=1e-4)
    moved = motion(image, 3, 4.0, 3.0, seeded(0))
    assert float((moved - image).abs().mean()) > 0.01
    # The middle of k-space stays, so the head stays where it is.
    places = torch.arange(52.0)
    centres = [float((shown[0].sum(0) * places).sum() / shown.sum()) for shown in (image, moved)]
    assert abs(centres[0] - centres[1]) < 1.0


def test_a_bias_field_is_smooth_positive_and_as_strong_as_asked() -> None:
    field = bias_field((32, 96, 96), 0.3, seeded(3), grain=20)
    assert float(field.min()) > 0
    assert float(field.log().std()) == pytest.approx(0.3, rel=0.15)
    assert float(field.log().diff(dim=2).abs().max()) < 0.15


def test_acquisition_blurs_and_is_repeatable() -> None:
    image = torch.rand(8, 40, 40, generator=seeded(0))
    made = acquired(image, seeded(5), thick=1.0)
    assert float(made.diff(dim=1).std()) < float(image.diff(dim=1).std())
    assert float(made.min()) > 0
    assert torch.equal(made, acquired(image, seeded(5), thick=1.0))


@settings(deadline=None, max_examples=30)
@given(
    st.integers(12, 60),
    st.sampled_from([1.5, 2.0, 3.0, 4.0]),
    st.floats(0.6, 1.4),
    st.integers(0, 1000),
)
def test_large_voxels_and_back_keep_constants_and_slopes(
    fine: int, factor: float, fwhm: float, seed: int
) -> None:
    axis = patch_axis(fine, factor, fwhm, seeded(seed))
    down, up = axis.down, axis.up
    assert torch.allclose(axis.matrix().sum(1), torch.ones(len(down), dtype=torch.float64))
    assert down.shape[0] == up.shape[1] and down.shape[0] <= fine / factor + 2
    assert torch.allclose(up @ down @ torch.ones(fine), torch.ones(fine), atol=1e-4)
    if fine / factor >= 12:  # far from both borders a slope stays a slope
        ramp = torch.arange(fine, dtype=torch.float32)
        inner = slice(int(4 * factor), fine - int(4 * factor))
        assert torch.allclose((up @ down @ ramp)[inner], ramp[inner], atol=0.1 * factor)


def test_the_coarse_grid_begins_anywhere() -> None:
    grids = {
        tuple(patch_axis(24, 4, 1.0, seeded(n)).down[1].argmax()[None].tolist()) for n in range(30)
    }
    assert len(grids) >= 4


def test_a_patch_starts_consistent_with_what_was_seen() -> None:
    torch.manual_seed(0)
    truth = 100 * F.avg_pool3d(torch.rand(1, 1, 12, 26, 28), 3, stride=1)[0, 0]
    axes = [None, *(patch_axis(size, 2, 1.0, seeded(size)) for size in truth.shape[1:])]
    measured = truth
    for number, axis in enumerate(axes):
        if axis is not None:
            measured = along(measured, axis.down, number - 3)
    start = refined_start(measured, axes, noise=0.0)
    seen = downsample(start, axes)
    assert torch.allclose(seen, measured, atol=0.02)
    assert (start - truth).abs().mean() < (plain(measured, axes) - truth).abs().mean()
    noisy = measured + 5 * torch.randn(measured.shape, generator=seeded(0))
    left = downsample(refined_start(noisy, axes, noise=5.0), axes) - noisy
    assert 1 < float(left.std()) < 6, "noise should be left out, not fitted"


def plain(measured: Tensor, axes: list[Any]) -> Tensor:
    """Only interpolated."""
    for number, axis in enumerate(axes):
        if axis is not None:
            measured = along(measured, axis.up, number - 3)
    return measured


def test_a_matrix_along_an_axis_is_the_product_along_that_axis() -> None:
    image, matrix = torch.rand(5, 6, 7), torch.rand(3, 6)
    expected = torch.einsum("mn,dnw->dmw", matrix, image)
    assert torch.allclose(along(image, matrix, -2), expected, atol=1e-6)
