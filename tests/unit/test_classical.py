"""Restoration without training, against scikit-image, scipy and what each method promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.restoration import inpaint_biharmonic

from medgen import classical
from medgen.classical import CLASSICAL, biharmonic, enlarge, nearest_fill, noise_sigma

FILLS = [pytest.param(f, id=name) for name, f in CLASSICAL["inpaint"].items()]
DENOISERS = [pytest.param(f, id=name) for name, f in CLASSICAL["denoise"].items()]
ENLARGERS = [pytest.param(f, id=name) for name, f in CLASSICAL["super-resolve"].items()]


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).standard_normal(shape)
    image = ndimage.gaussian_filter(image, 2.0)
    return (image / image.std()).astype(np.float32)


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.indices(shape)
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < radius**2


# Filling.


@pytest.mark.parametrize("shape", [(40, 44), (18, 20, 22)])
def test_biharmonic_is_that_of_scikit_image(shape: tuple[int, ...]) -> None:
    image = smooth(shape)
    hole = ball(shape, tuple(n / 2 for n in shape), 5) | ball(shape, tuple(n / 3 for n in shape), 3)
    expected = inpaint_biharmonic(image, hole)
    found = biharmonic(np.where(hole, 99, image), hole)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_biharmonic_continues_a_slope() -> None:
    """A plane has no squared Laplacian, so it is filled exactly, also in two separate parts."""
    x, y, z = np.indices((30, 20, 16))
    plane = (3 * x - 2 * y + 0.5 * z).astype(np.float32)
    hole = ball(plane.shape, (8, 10, 8), 4.5) | ball(plane.shape, (21, 9, 7), 3.5)
    np.testing.assert_allclose(biharmonic(plane * ~hole, hole), plane, atol=0.05)


@pytest.mark.parametrize("fill", FILLS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), dims=st.sampled_from([2, 3]), scale=st.sampled_from([1e-3, 1e4]))
def test_filling(fill: Callable[..., Any], seed: int, dims: int, scale: float) -> None:
    """Outside nothing changes, inside is finite, in range, and blind to what was there."""
    generator = np.random.default_rng(seed)
    image = smooth((17, 16, 15)[:dims], seed) * np.float32(scale)
    hole = ndimage.binary_dilation(generator.random(image.shape) < 0.01, iterations=2)
    hole[(slice(0, 2),) * dims] = True  # holes at the border are holes too
    if hole.all():
        return
    filled = fill(image, hole)
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled[~hole], image[~hole])
    known = image[~hole]
    assert np.isfinite(filled).all()
    assert known.min() <= filled[hole].min() <= filled[hole].max() <= known.max()
    np.testing.assert_array_equal(fill(np.where(hole, np.nan, image), hole), filled)


def test_nearest_fill_takes_the_nearest() -> None:
    image, hole = smooth((20, 21)), np.zeros((20, 21), bool)
    hole[5:12, 6:15] = hole[0:3, 0:4] = True
    indices = ndimage.distance_transform_edt(hole, return_distances=False, return_indices=True)
    np.testing.assert_array_equal(nearest_fill(image, hole), image[tuple(indices)])


def test_a_smooth_image_is_continued_better_than_by_the_nearest_values() -> None:
    truth = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((48, 48, 48)), 7.0)
    hole = ball(truth.shape, (24, 23, 25), 12)  # 7 000 unknowns
    error = {
        name: np.abs(fill(truth * ~hole, hole) - truth)[hole].mean()
        for name, fill in CLASSICAL["inpaint"].items()
    }
    assert error["biharmonic"] < error["nearest"]


# Noise.


@pytest.mark.parametrize("sigma", [2.0, 30.0])
@pytest.mark.parametrize("shape", [(96, 97), (32, 31, 30)])
def test_sigma_is_found(sigma: float, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    anatomy = 100 + 40 * ndimage.gaussian_filter(smooth(shape), 2.0)
    noisy = anatomy + sigma * generator.standard_normal(shape)
    inside = ball(shape, tuple(n / 2 for n in shape), 0.45 * shape[0])
    noisy[~inside] = 0  # a cut-out scan
    tolerance = 0.15 * sigma + 0.5  # some of a small image's detail is anatomy
    assert noise_sigma(noisy, inside) == pytest.approx(sigma, abs=tolerance)
    assert noise_sigma(noisy) == pytest.approx(sigma, abs=tolerance + 0.1 * sigma)


def test_sigma_of_a_constant_is_zero() -> None:
    assert noise_sigma(np.full((9, 9), 4.0)) == 0


@pytest.mark.parametrize("denoise", DENOISERS)
@pytest.mark.parametrize("shape", [(64, 60), (38, 24, 20)])
def test_denoising(denoise: Callable[..., Any], shape: tuple[int, ...]) -> None:
    """Nearer to the truth, in any unit, with the noise given or found; constants stay."""
    generator = np.random.default_rng(1)
    truth = np.where(smooth(shape) > 0, 1.0, 0.2).astype(np.float32)
    noisy = truth + 0.15 * generator.standard_normal(shape).astype(np.float32)
    result = denoise(noisy, sigma=0.15)
    assert result.dtype == np.float32
    assert np.mean((result - truth) ** 2) < 0.5 * 0.15**2
    assert np.mean((denoise(noisy) - truth) ** 2) < 0.6 * 0.15**2
    scaled = denoise(1000 * noisy, sigma=150.0)
    np.testing.assert_allclose(scaled / 1000, result, atol=2e-3)
    flat = np.full(shape, 7.0, np.float32)
    np.testing.assert_allclose(denoise(flat), flat)
    np.testing.assert_allclose(denoise(flat, sigma=0.1), flat, rtol=1e-4)


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = smooth((41, 12, 12)) + np.random.default_rng(0).standard_normal((41, 12, 12))
    for name, denoise in CLASSICAL["denoise"].items():
        whole = denoise(noisy, sigma=1.0)
        monkeypatch.setattr(classical, "SLAB", 8)
        # Total variation couples all voxels, more weakly the farther they are apart.
        tolerance = 0.05 if name == "tv" else 1e-4
        np.testing.assert_allclose(denoise(noisy, sigma=1.0), whole, atol=tolerance)
        monkeypatch.undo()


@pytest.mark.parametrize("shape", [(33, 18), (16, 9, 11)])
def test_wavelets_reconstruct_exactly(shape: tuple[int, ...]) -> None:
    image = smooth(shape)
    np.testing.assert_allclose(classical.wavelet(image, sigma=0.0), image, atol=1e-5)


# Finer grids.


@pytest.mark.parametrize(("name", "order"), [("nearest", 0), ("linear", 1), ("cubic", 3)])
@pytest.mark.parametrize(("shape", "wanted"), [((9, 10), (18, 31)), ((7, 8, 6), (14, 8, 24))])
def test_enlarging_is_that_of_scipy(
    name: str, order: int, shape: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    image = smooth(shape)
    zoom = [w / n for w, n in zip(wanted, shape, strict=True)]
    expected = ndimage.zoom(image, zoom, order=order, mode="reflect", grid_mode=True)
    found = CLASSICAL["super-resolve"][name](image, wanted)
    assert found.shape == wanted
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("enlarger", ENLARGERS)
def test_enlarging_keeps_the_field_of_view(enlarger: Callable[..., Any]) -> None:
    """Constants stay; mirrored in, mirrored out; a ramp has the values of its new centres."""
    np.testing.assert_allclose(enlarger(np.full((5, 6), 3.0), (11, 6)), 3.0, rtol=1e-5)
    image = smooth((8, 9))
    flipped = enlarger(image[::-1].copy(), (16, 27))[::-1]
    np.testing.assert_allclose(flipped, enlarger(image, (16, 27)), atol=1e-5)
    ramp = np.repeat(np.arange(20.0)[:, None] + 0.5, 2, axis=1)
    centres = (np.arange(60) + 0.5) / 3
    error = np.abs(enlarger(ramp, (60, 2))[:, 0] - centres)[9:-9].max()
    assert error < (0.35 if enlarger is CLASSICAL["super-resolve"]["nearest"] else 0.01)


def test_one_slice_is_repeated() -> None:
    image = smooth((8, 9, 1))
    np.testing.assert_allclose(enlarge(image, (8, 9, 3))[..., 2], image[..., 0])


def test_identity_is_a_copy() -> None:
    image = smooth((8, 9))
    result = CLASSICAL["translate"]["identity"](image)
    np.testing.assert_array_equal(result, image)
    assert not np.shares_memory(result, image)
