"""Loss of resolution is an exact linear operator with an exact way back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medgen.corruption import resolution
from medgen.corruption.resolution import (
    Sampling,
    back_project,
    consistent,
    correct,
    downsample,
    noise_damping,
    sampling_for,
)

FACTORS = st.floats(1.0, 6.0)
WIDTHS = st.floats(0.7, 1.3)


def random_image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(fine=st.integers(8, 60), factor=FACTORS, fwhm=WIDTHS)
def test_pseudo_inverse_is_exact(fine: int, factor: float, fwhm: float) -> None:
    """The Penrose conditions, and a right inverse: every coarse image can be reached."""
    sampling = sampling_for(fine, factor, fwhm)
    forward = sampling.matrix()
    back = back_project(torch.eye(sampling.coarse, dtype=torch.float64).T, [sampling]).T
    assert torch.allclose(forward @ back, torch.eye(sampling.coarse, dtype=torch.float64))
    projection = back @ forward
    assert torch.allclose(projection, projection.T, atol=1e-9)
    assert torch.allclose(projection @ projection, projection, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(factor=FACTORS, fwhm=WIDTHS, keep=st.integers(0, 3))
def test_a_constant_stays_constant(factor: float, fwhm: float, keep: int) -> None:
    samplings = [sampling_for(size, factor, fwhm) for size in (9, 14, 11)]
    mixed = [None if axis == keep else item for axis, item in enumerate(samplings)]
    coarse = downsample(torch.full((9, 14, 11), 7.5), mixed)
    assert coarse.shape == tuple(
        size if item is None else item.coarse for size, item in zip((9, 14, 11), mixed, strict=True)
    )
    assert torch.allclose(coarse, torch.tensor(7.5))


@settings(max_examples=30, deadline=None)
@given(fine=st.integers(40, 80), factor=st.floats(1.5, 5.0), fwhm=WIDTHS)
def test_the_field_of_view_is_kept(fine: int, factor: float, fwhm: float) -> None:
    """A ramp in millimetres reads the same at the centre of every inner coarse voxel."""
    sampling = sampling_for(fine, factor, fwhm)
    assert sampling.coarse * sampling.step == pytest.approx(fine)
    seen = downsample(torch.arange(fine, dtype=torch.float64) + 0.5, [sampling])
    centres = (torch.arange(sampling.coarse, dtype=torch.float64) + 0.5) * sampling.step
    inner = slice(3, -3)
    # Read at whole fine voxels, a narrow Gaussian's mean is a little off its centre.
    assert torch.allclose(seen[inner], centres[inner], atol=0.08)
    # And nothing moves towards one side: mirrored in, mirrored out.
    assert torch.allclose(sampling.matrix(), sampling.matrix().flip(0, 1))


def test_it_is_gaussian_smoothing_read_at_coarse_centres() -> None:
    fine = random_image(99).numpy()
    sampling = Sampling(99, 33)
    sigma = 3 / 2.354820045
    smooth = ndimage.gaussian_filter1d(fine, sigma, truncate=8)
    seen = downsample(torch.from_numpy(fine), [sampling]).numpy()
    np.testing.assert_allclose(seen[4:-4], smooth[1::3][4:-4], atol=1e-6)


@pytest.mark.parametrize("axes", [(True, True, True), (False, False, True), (True, False, False)])
def test_separable_equals_the_kronecker_product(axes: tuple[bool, ...]) -> None:
    shape = (6, 7, 9)
    samplings = [sampling_for(n, 1.7) if on else None for n, on in zip(shape, axes, strict=True)]
    image = random_image(*shape)
    full = torch.ones(1, 1, dtype=torch.float64)
    for size, item in zip(shape, samplings, strict=True):
        full = torch.kron(full, torch.eye(size).double() if item is None else item.matrix())
    coarse = downsample(image, samplings)
    assert torch.allclose(full @ image.flatten(), coarse.flatten())
    assert torch.allclose(torch.linalg.pinv(full) @ coarse.flatten(),
                          back_project(coarse, samplings).flatten())  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(1.2, 4.0), fwhm=WIDTHS, dims=st.sampled_from([2, 3]))
def test_projection_is_consistent_and_moves_as_little_as_possible(
    factor: float, fwhm: float, dims: int
) -> None:
    shape = (12, 15, 10)[:dims]
    samplings = [sampling_for(size, factor, fwhm) for size in shape]
    image, truth = random_image(2, *shape)
    measured = downsample(truth, samplings)
    projected = consistent(image, measured, samplings)
    assert torch.allclose(downsample(projected, samplings), measured, atol=1e-9)
    # The nearest such image is nearer to every one of them, the truth among them (Pythagoras).
    before, after = (image - truth).square().sum(), (projected - truth).square().sum()
    assert torch.allclose(before, after + (image - projected).square().sum())
    assert torch.allclose(consistent(projected, measured, samplings), projected, atol=1e-9)
    assert not torch.equal(projected, image)  # and the image itself was not changed
    assert correct(image, measured - downsample(image, samplings), samplings) is image
    assert torch.equal(projected, image)


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, image = random_image(2, 13, 12, 10)
    for samplings in (
        [sampling_for(13, 2), None, sampling_for(10, 3)],
        [None, Sampling(12, 4), None],
    ):
        measured = downsample(truth, samplings)
        plain = image + back_project(measured - downsample(image, samplings), samplings)
        monkeypatch.setattr(resolution, "SLAB", 4)
        assert torch.allclose(consistent(image, measured, samplings), plain)


@pytest.mark.parametrize(("noise", "error"), [(0.1, 0.5), (0.2, 0.6), (0.01, 1.0)])
def test_a_residual_tells_how_wrong_the_image_is(noise: float, error: float) -> None:
    samplings = [sampling_for(40, 2.0), None, sampling_for(30, 1.5)]
    image, wrong = random_image(2, 40, 20, 30)
    measured = downsample(image + error * wrong, samplings)
    measured += noise * random_image(99, 40)[: measured.shape[0], : measured.shape[1], None]
    damping = noise_damping(measured - downsample(image, samplings), samplings, noise)
    assert damping == pytest.approx((noise / error) ** 2, rel=0.25)


def test_damping_is_the_rule_of_bayes() -> None:
    """For a line: the mean of its distribution, given its prior and the measurement."""
    sampling = sampling_for(26, 2.4)
    forward, line = sampling.matrix(), random_image(26)
    measured = torch.ones(sampling.coarse, dtype=torch.float64)
    precision = torch.eye(26, dtype=torch.float64) + forward.T @ forward / 0.37
    expected = torch.linalg.solve(precision, line + forward.T @ measured / 0.37)
    assert torch.allclose(consistent(line, measured, [sampling], 0.37), expected)


def test_pure_noise_changes_nothing() -> None:
    image, samplings = random_image(20, 20), [sampling_for(20, 2), sampling_for(20, 2)]
    residual = 0.1 * random_image(10, 10)
    assert noise_damping(residual, samplings, noise=0.2) == math.inf
    assert torch.equal(correct(image.clone(), residual, samplings, math.inf), image)
    assert noise_damping(residual, samplings, noise=0.0) == 0


def test_with_noise_damping_beats_both_extremes() -> None:
    """Nearer to the truth than the uncorrected image and than the exact projection."""
    generator = torch.Generator().manual_seed(0)
    truth = random_image(60, 60)
    samplings = [sampling_for(60, 2), sampling_for(60, 2)]
    image = truth + torch.randn((60, 60), generator=generator, dtype=torch.float64)
    measured = downsample(truth, samplings)
    measured += 0.3 * torch.randn((30, 30), generator=generator, dtype=torch.float64)
    damping = noise_damping(measured - downsample(image, samplings), samplings, 0.3)
    error = {
        name: float((result - truth).square().mean())
        for name, result in (
            ("none", image),
            ("damped", consistent(image, measured, samplings, damping)),
            ("exact", consistent(image, measured, samplings)),
        )
    }
    assert error["damped"] < 0.95 * min(error["none"], error["exact"])


def test_float32_keeps_its_type_and_tolerance() -> None:
    truth = random_image(40, 40, 20).float()
    samplings = [sampling_for(40, 2), sampling_for(40, 2), sampling_for(20, 4)]
    measured = downsample(truth, samplings)
    projected = consistent(torch.zeros_like(truth), measured, samplings)
    assert projected.dtype == torch.float32
    assert (downsample(projected, samplings) - measured).abs().max() < 1e-5


def test_a_very_narrow_profile_reads_the_nearest_voxels() -> None:
    seen = downsample(torch.arange(12.0), [Sampling(12, 3, fwhm=1e-4)])
    assert seen.tolist() == [1.5, 5.5, 9.5]


@pytest.mark.parametrize("bad", [(4, 5, 1.0), (0, 0, 1.0), (4, 2, 0.0)])
def test_impossible_samplings_are_refused(bad: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="no loss of resolution"):
        Sampling(*bad)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="should have 8 voxels"):
        downsample(torch.zeros(7), [Sampling(8, 4)])
