"""The brain extraction on a drawn head, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.optimize import approx_fprime

from medgen import brain, phantoms
from medgen.errors import InputError
from medgen.preparation import Preparation
from medgen.volume import Geometry, Volume


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def drawn_head() -> tuple[Volume, np.ndarray]:
    """One draw from the atlas itself: its likeliest class everywhere, in FLAIR-like values."""
    atlas = brain.load_atlas()
    values = np.array([2, 12, 60, 90, 15, 92, 70, 14], dtype=np.float32)
    tissue = atlas.priors.argmax(axis=0)
    noise = np.random.default_rng(0).normal(0, 3, tissue.shape)
    image = np.tensordot(values, atlas.priors, axes=(0, 0)) * 0.3 + values[tissue] * 0.7 + noise
    truth = atlas.priors[brain.BRAIN :].sum(axis=0) > 0.5
    return Volume.from_array(image.astype(np.float32), atlas.geometry.affine), truth


@pytest.mark.slow
def test_brain_of_a_head_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, truth = drawn_head()
    # Moved, enlarged and flipped: the alignment has something to do.
    affine = np.diag([-1.05, 1.05, 1.05, 1.0]) @ volume.affine
    affine[:3, 3] += (12, -20, 30)
    moved = Volume(volume.voxels, Geometry(volume.geometry.shape, affine))
    found = brain.extract_brain(moved)
    assert dice(found.mask, truth) > 0.85  # 4 mm voxels, and sulci are closed
    assert 900 < found.volume_ml < 2000

    monkeypatch.setattr(brain, "extract_brain", lambda _: found)
    prepared = Preparation(spacing_mm=4.0).apply(moved)
    assert "head with skull: brain extracted" in prepared.notes[0]
    np.testing.assert_array_equal(prepared.source_mask, found.mask)


def test_extraction_is_repeatable() -> None:
    volume, _ = drawn_head()
    image = (volume.voxels[0] / volume.voxels.max()).clip(0, 1)
    quick = brain._Information(image, volume.geometry, brain.load_atlas(), step=3)
    losses = {quick.loss(np.zeros(12))[0] for _ in range(3)}
    assert len(losses) == 1


def test_gradient_is_the_slope_of_the_loss() -> None:
    volume, _ = drawn_head()
    # The image's slope is taken between neighbours, so it must not change from one to the next.
    image = gaussian_filter((volume.voxels[0] / volume.voxels.max()).clip(0, 1), 2)
    target = brain._Information(image, volume.geometry, brain.load_atlas(), step=2)
    place = np.array([1.3, -2.1, 0.7, 2.0, -1.0, 0.5, 1.0, -3.0, 0.8, -0.6, 1.1, 2.2])
    value, gradient = target.loss(place)
    numeric = approx_fprime(place, lambda p: target.loss(p)[0], 1e-4)
    assert value < 0
    assert np.corrcoef(gradient, numeric)[0, 1] > 0.99
    assert np.linalg.norm(gradient) == pytest.approx(np.linalg.norm(numeric), rel=0.1)


@pytest.mark.parametrize(
    "voxels",
    [
        np.random.default_rng(0).random((60, 60, 60)),
        np.random.default_rng(0).random((20, 30, 20)) + 5,
    ],
    ids=["noise", "a small crop"],
)
def test_what_is_no_head_is_refused(voxels: np.ndarray) -> None:
    volume = Volume.from_array(voxels, np.diag([3.0, 3.0, 3.0, 1.0]))
    with pytest.raises(InputError, match="no brain was found"):
        brain.extract_brain(volume)


def test_2d_images_have_no_brain_to_extract() -> None:
    image = phantoms.brain((48, 56), spacing_mm=3.0).image
    with pytest.raises(InputError, match="3-D"):
        brain.extract_brain(image)


def test_skull_stripped_by_volume_and_field_of_view() -> None:
    grid = Geometry((60, 60, 60), np.diag([4.0, 4.0, 4.0, 1.0]))
    distance = np.linalg.norm(np.indices(grid.shape) - 30, axis=0) * 4
    assert brain.why_skull_stripped(distance < 70, grid)  # 1.4 l
    assert brain.why_skull_stripped(distance < 90, grid) is None  # 3.1 l: a head
    neck = np.zeros(grid.shape, dtype=bool)
    neck[15:45, 15:45, :30] = True  # 1.7 l, but cut by the field of view
    assert brain.why_skull_stripped(neck, grid) is None


def test_atlas_holds_probabilities() -> None:
    atlas = brain.load_atlas()
    assert atlas.priors.shape[0] == len(brain.CLASSES)
    assert atlas.priors.min() >= 0
    np.testing.assert_allclose(atlas.priors.sum(axis=0), 1, atol=1e-5)
    volume_ml = atlas.priors[brain.BRAIN :].sum() * atlas.geometry.voxel_volume_mm3 / 1000
    assert 900 < volume_ml < 1500
