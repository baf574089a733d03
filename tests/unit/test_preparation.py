"""Foreground, target grid, normalisation, and what cannot be prepared."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from medgen import phantoms
from medgen.errors import InputError
from medgen.preparation import Preparation
from medgen.resampling import resample
from medgen.volume import Geometry, Volume


@pytest.fixture(scope="module")
def phantom() -> phantoms.Phantom:
    return phantoms.brain((48, 56, 40), spacing_mm=3.0)


def test_skull_stripped_scan_is_recognised(phantom: phantoms.Phantom) -> None:
    prepared = Preparation(spacing_mm=3.0).apply(phantom.image)
    assert "skull-stripped scan recognised" in prepared.notes[0]
    assert prepared.source_mask.shape == phantom.brain.shape
    common = (prepared.source_mask & phantom.brain).sum()
    assert 2 * common / (prepared.source_mask.sum() + phantom.brain.sum()) > 0.99


def test_no_resampling_means_no_change(phantom: phantoms.Phantom) -> None:
    prepared = Preparation(spacing_mm=3.0).apply(phantom.image, phantom.brain)
    values = phantom.image.voxels[0][phantom.brain]
    low, high = np.percentile(values, [1, 99])
    back = prepared.to_source(prepared.image)[0]
    expected = np.clip((values - low) / (high - low), 0, 1.5)
    np.testing.assert_allclose(back[phantom.brain], expected, atol=1e-6)
    assert (back[~phantom.brain] == 0).all()
    mask = prepared.to_source(prepared.mask, "nearest")[0]
    np.testing.assert_array_equal(mask, phantom.brain)


def test_holes_belong_to_the_foreground() -> None:
    voxels = np.zeros((40, 40, 40), dtype=np.float32)
    ball = ((np.indices((40, 40, 40)) - 20) ** 2).sum(axis=0) < 15**2
    voxels[ball] = np.random.default_rng(0).uniform(50, 100, int(ball.sum()))
    voxels[18:22, 18:22, 18:22] = 0
    voxels[1, 1, 1] = 80  # a speck
    volume = Volume.from_array(voxels, np.diag([4.0, 4.0, 4.0, 1.0]))
    prepared = Preparation(spacing_mm=4.0).apply(volume)
    np.testing.assert_array_equal(prepared.source_mask, ball)


def test_background_need_not_be_zero(phantom: phantoms.Phantom) -> None:
    plain = Preparation(spacing_mm=3.0).apply(phantom.image)
    moved = Preparation(spacing_mm=3.0).apply(
        phantom.image.with_voxels(phantom.image.voxels * 0.5 - 1000)
    )
    np.testing.assert_array_equal(plain.source_mask, moved.source_mask)
    np.testing.assert_allclose(plain.image.numpy(), moved.image.numpy(), atol=1e-3)


def test_rim_keeps_its_brightness(phantom: phantoms.Phantom) -> None:
    """Zeros around the brain do not darken its rim when it is resampled."""
    flat = np.where(phantom.brain, 80.0, 0.0).astype(np.float32)
    flat[phantom.labels == 4] = 20
    volume = phantom.image.with_voxels(flat[None])
    prepared = Preparation(spacing_mm=2.2, lower=0, upper=100).apply(volume, phantom.brain)
    values = prepared.image[prepared.mask].numpy()
    assert np.quantile(values, 0.25) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("shape", [(64, 72, 40), (64, 72)])
def test_equalise_gives_a_flat_histogram(shape: tuple[int, ...]) -> None:
    image = phantoms.brain(shape, spacing_mm=2.5).image
    prepared = Preparation(normalisation="equalise", brain="none").apply(image)
    values = prepared.image[prepared.mask].numpy()
    counts, _ = np.histogram(values, bins=10, range=(0, 1))
    assert counts.max() / counts.min() < 1.05
    assert (prepared.image[~prepared.mask] == 0).all()


def test_bias_correction_flattens_shading(phantom: phantoms.Phantom) -> None:
    ramp = np.linspace(0.5, 1.5, phantom.brain.shape[1], dtype=np.float32)[None, :, None]
    volume = phantom.image.with_voxels(phantom.image.voxels * ramp)
    white = phantom.labels == 2

    def trend(prepared_with: Preparation) -> float:
        values = prepared_with.apply(volume, phantom.brain)
        back = values.to_source(values.image)[0]
        front, rear = white.copy(), white.copy()
        front[:, :28], rear[:, 28:] = False, False
        return float(np.median(back[front]) / np.median(back[rear]))

    shaded = trend(Preparation(spacing_mm=3.0))
    corrected = trend(Preparation(spacing_mm=3.0, bias_correction=True))
    assert abs(corrected - 1) < 0.5 * abs(shaded - 1)


def test_strong_downsampling_averages() -> None:
    rng = np.random.default_rng(0)
    source = Geometry((64, 64, 64), np.eye(4))
    target = Geometry((14, 14, 14), np.diag([4.0, 4.0, 4.0, 1.0]) + np.eye(4, k=3) * 5)
    noise = rng.normal(0, 1, source.shape).astype(np.float32)
    assert resample(noise, source, target).std() < 0.3
    assert resample(noise, source, target, "nearest").std() > 0.9


def test_linear_ramps_are_resampled_exactly() -> None:
    source = Geometry((20, 22, 24), np.diag([1.5, 1.2, 1.1, 1.0]))
    target = Geometry((9, 10, 11), np.array(
        [[0.9, 0.3, 0, 3.0], [-0.3, 0.9, 0.1, 6.0], [0.1, 0, 1.0, 5.0], [0, 0, 0, 1]]
    ))  # fmt: skip
    world = source.to_world(np.moveaxis(np.indices(source.shape), 0, -1))
    values = (world @ (0.5, -2.0, 1.0)).astype(np.float32)
    expected = target.to_world(np.moveaxis(np.indices(target.shape), 0, -1)) @ (0.5, -2.0, 1.0)
    np.testing.assert_allclose(resample(values, source, target), expected, atol=2e-5)


def test_outside_the_prepared_grid_is_zero(phantom: phantoms.Phantom) -> None:
    small = np.zeros_like(phantom.brain)
    small[18:32, 20:36, 12:28] = True
    prepared = Preparation(spacing_mm=3.0, margin_mm=0).apply(phantom.image, small)
    back = prepared.to_source(np.ones((2, *prepared.grid.shape)))
    np.testing.assert_array_equal(back, np.stack([small, small]))


def test_channels_share_one_mask_and_are_normalised_apart(phantom: phantoms.Phantom) -> None:
    both = np.concatenate([phantom.image.voxels, 5 * phantom.image.voxels + 7 * phantom.brain])
    prepared = Preparation().apply(Volume(both, phantom.image.geometry))
    np.testing.assert_allclose(prepared.image[0].numpy(), prepared.image[1].numpy(), atol=1e-4)


def test_image_without_background_is_used_whole() -> None:
    values = np.random.default_rng(0).uniform(1, 2, (1, 32, 40))
    prepared = Preparation(spacing_mm=1.0).apply(
        Volume(values.astype(np.float32), Geometry((32, 40), np.eye(4)))
    )
    assert prepared.source_mask.all()
    assert "whole image" in prepared.notes[0]


BALL = ((np.indices((24, 24, 24)) - 12) ** 2).sum(axis=0) < 81


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.where(BALL, np.nan, 0), "NaN or infinite"),
        (np.where(BALL, np.inf, 0), "NaN or infinite"),
        (np.zeros(BALL.shape), "nothing to see"),
        (np.where(BALL, 1.0, 0.0), "no contrast"),
        (np.where(BALL, 1.0 + 1.0j, 0.0), "real numbers"),
    ],
)
def test_hopeless_images_are_refused(voxels: np.ndarray, message: str) -> None:
    volume = Volume.from_array(voxels, np.diag([6.0, 6.0, 6.0, 1.0]))
    with pytest.raises(InputError, match=message):
        Preparation(brain="none").apply(volume)


def test_tiny_scan_is_refused() -> None:
    voxels = np.random.default_rng(0).random((8, 8, 8))
    with pytest.raises(InputError, match="the foreground measures"):
        Preparation(brain="none").apply(Volume.from_array(voxels, np.eye(4)))


def test_misshapen_mask_is_refused(phantom: phantoms.Phantom) -> None:
    with pytest.raises(InputError, match="brain mask must have"):
        Preparation().apply(phantom.image, phantom.brain[:-1])
    with pytest.raises(InputError, match="0 nonzero"):
        Preparation().apply(phantom.image, np.zeros_like(phantom.brain))


def test_maps_on_another_grid_are_refused(phantom: phantoms.Phantom) -> None:
    prepared = Preparation(spacing_mm=3.0).apply(phantom.image)
    with pytest.raises(InputError, match="maps must have shape"):
        prepared.to_source(np.zeros((1, 4, 4, 4)))


def test_settings_survive_json_and_are_checked() -> None:
    settings = Preparation(spacing_mm=None, normalisation="equalise")
    assert Preparation.model_validate_json(settings.model_dump_json()) == settings
    for wrong in ({"spacing_mm": 0}, {"lower": 99, "upper": 1}, {"orientation": "LPS"}, {"x": 1}):
        with pytest.raises(ValidationError):
            Preparation(**wrong)


def test_unclipped_values_scale_back(phantom: phantoms.Phantom) -> None:
    scan = phantom.image
    prepared = Preparation(spacing_mm=None, brain="none", brightest=None).apply(scan)
    image, inside = prepared.image.numpy()[0], prepared.mask.numpy()[0]
    low, high = prepared.ranges[0]
    assert image[inside].min() < 0
    assert np.percentile(image[inside], [1, 99]) == pytest.approx([0, 1], abs=1e-5)
    back = prepared.to_source(image[None] * (high - low) + low)[0]
    where = prepared.source_mask
    np.testing.assert_allclose(back[where], scan.voxels[0][where], rtol=1e-5, atol=1e-3)
    clipped = Preparation(spacing_mm=None, brain="none").apply(scan)
    assert clipped.ranges == prepared.ranges
    np.testing.assert_array_equal(clipped.image.numpy()[0], image.clip(0, 1.5) * inside)


@pytest.mark.parametrize("spacing_mm", [None, 2.0, 9.0])
def test_ignored_voxels_tell_nothing(phantom: phantoms.Phantom, spacing_mm: float | None) -> None:
    ignore = np.zeros(phantom.image.geometry.shape, bool)
    middle = [size // 2 for size in ignore.shape]
    ignore[tuple(slice(m - 3, m + 4) for m in middle)] = True
    preparation = Preparation(spacing_mm=spacing_mm, brain="none", brightest=None)
    results = []
    for value in (0, -5000, 1e5):
        voxels = phantom.image.voxels.astype(np.float32)
        voxels[0][ignore] = value
        results.append(preparation.apply(phantom.image.with_voxels(voxels), ignore=ignore))
    first = results[0]
    assert first.ignored is not None
    assert first.ignored.any()
    assert first.mask[first.ignored].all()
    assert not first.image[first.ignored].any()
    for other in results[1:]:
        assert other.ranges == first.ranges
        np.testing.assert_array_equal(other.image.numpy(), first.image.numpy())
        np.testing.assert_array_equal(other.mask.numpy(), first.mask.numpy())
    # Every ignored voxel lies where the prepared image was left out.
    found = first.to_source(first.ignored.float(), "nearest")[0] > 0
    assert found[ignore].all()


def test_ignoring_everything_is_refused(phantom: phantoms.Phantom) -> None:
    ignore = np.ones(phantom.image.geometry.shape, bool)
    with pytest.raises(InputError, match="nothing of the image is left"):
        Preparation(brain="none").apply(phantom.image, ignore=ignore)
