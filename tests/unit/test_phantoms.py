"""The phantom is repeatable, consistent with its own truth, and plausible."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medgen import phantoms
from medgen.errors import InputError

shapes = st.one_of(st.tuples(*[st.integers(16, 40)] * 2), st.tuples(*[st.integers(16, 40)] * 3))
contrasts = st.sampled_from(["t1", "t2", "flair"])
seeds = st.integers(0, 2**16)


@given(shape=shapes, contrast=contrasts, seed=seeds, skull=st.booleans())
def test_parts_agree(shape, contrast, seed, skull):
    made = phantoms.brain(
        shape, seed=seed, contrast=contrast, skull=skull, spacing_mm=4.0, lesion_radius_mm=9
    )
    assert made.image.voxels.shape == (1, *shape)
    assert made.image.voxels.dtype == np.float32
    assert made.labels.shape == made.lesion.shape == made.brain.shape == shape
    assert made.labels.dtype == np.int16
    assert np.isfinite(made.image.voxels).all() and made.image.voxels.min() >= 0
    assert np.array_equal(made.brain, (made.labels > 0) & (made.labels < 500))
    assert made.lesion.any() and not (made.lesion & ~made.brain).any()
    assert (made.labels >= 500).any() == skull
    if not skull:
        assert (made.image.voxels[0][~made.brain] == 0).all()


@given(shape=shapes, contrast=contrasts, seed=seeds)
def test_same_arguments_same_arrays(shape, contrast, seed):
    one, two = (phantoms.brain(shape, seed=seed, contrast=contrast) for _ in range(2))
    assert np.array_equal(one.image.voxels, two.image.voxels)
    assert np.array_equal(one.labels, two.labels)


@given(seed=seeds, contrast=contrasts, radius=st.floats(4, 20))
def test_a_lesion_changes_nothing_elsewhere(seed, contrast, radius):
    healthy = phantoms.brain(seed=seed, contrast=contrast)
    sick = phantoms.brain(seed=seed, contrast=contrast, lesion_radius_mm=radius)
    assert np.array_equal(healthy.labels, sick.labels)
    changed = healthy.image.voxels[0] != sick.image.voxels[0]
    # The soft edge is 2 mm wide, less than one voxel of 3 mm.
    assert not (changed & ~ndimage.binary_dilation(sick.lesion, np.ones((3, 3, 3)), 2)).any()
    assert changed[sick.lesion].mean() > 0.99


@pytest.mark.parametrize("radius", [5.0, 8.0, 12.0])
def test_lesion_size_follows_the_radius(radius):
    """Cortical fluid cuts pieces off; nothing may add any."""
    ball = 4 / 3 * np.pi * radius**3
    volumes = [
        phantoms.brain(
            (90, 108, 80), spacing_mm=1.6, seed=seed, lesion_radius_mm=radius
        ).lesion.sum() * 1.6**3
        for seed in range(5)
    ]  # fmt: skip
    assert 0.4 * ball < np.median(volumes) < 1.3 * ball


def test_anatomy_does_not_depend_on_the_voxel_size():
    coarse = phantoms.brain((51, 59, 43), spacing_mm=3.0, seed=4)
    fine = phantoms.brain((153, 177, 129), spacing_mm=1.0, seed=4)
    assert np.array_equal(coarse.labels, fine.labels[1::3, 1::3, 1::3])


def test_a_slice_is_the_middle_of_the_volume():
    volume = phantoms.brain((51, 61, 45), seed=2)
    image = phantoms.brain((51, 61), seed=2)
    assert np.array_equal(image.labels, volume.labels[:, :, 22])


def test_seeds_give_different_heads():
    one, two = (phantoms.brain(seed=seed).labels for seed in (0, 1))
    assert 0.02 < (one != two).mean() < 0.5


@pytest.mark.parametrize(
    ("contrast", "dark_to_bright"),
    [("t1", (24, 3, 2)), ("t2", (2, 3, 24)), ("flair", (24, 2, 3))],
)
def test_tissues_are_as_bright_as_they_should_be(contrast, dark_to_bright):
    made = phantoms.brain(contrast=contrast, seed=1)
    medians = [np.median(made.image.voxels[0][made.labels == tissue]) for tissue in dark_to_bright]
    assert medians == sorted(medians)
    assert np.diff(medians).min() > 30


def test_the_head_is_plausible():
    made = phantoms.brain((140, 170, 130), spacing_mm=1.0, seed=0)
    litres = made.brain.sum() / 1e6
    assert 1.0 < litres < 1.6
    white, cortex = ((made.labels == tissue).sum() for tissue in (2, 3))
    assert 0.5 < cortex / white < 2.0
    assert ndimage.label(made.brain)[1] == 1


def test_world_origin_is_in_the_middle():
    geometry = phantoms.brain((20, 31, 25), spacing_mm=(2.0, 3.0, 4.0)).image.geometry
    assert geometry.axis_codes == "RAS"
    assert geometry.spacing_mm == (2.0, 3.0, 4.0)
    assert np.allclose(geometry.to_world((np.array(geometry.shape) - 1) / 2), 0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"shape": (32,)}, {"shape": (32, 32, 4)}, {"spacing_mm": 0}, {"spacing_mm": float("nan")},
        {"contrast": "dwi"}, {"lesion_radius_mm": -1}, {"lesion_radius_mm": 400},
    ],
)  # fmt: skip
def test_nonsense_is_refused(arguments):
    with pytest.raises(InputError):
        phantoms.brain(**arguments)


def test_it_is_fast():
    phantoms.brain()
    start = time.process_time()  # the clock on the wall also counts the neighbours
    phantoms.brain(lesion_radius_mm=8, skull=True)
    assert time.process_time() - start < 0.3
