"""Structure that an image shares with its translation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medgen.errors import GeometryError
from medgen.metrics.structure import structure
from medgen.phantoms import brain


def head(contrast: Literal["t1", "t2"], seed: int = 0) -> NDArray[np.float32]:
    found = brain((64, 64, 8), spacing_mm=(3.0, 3.0, 12.0), seed=seed, contrast=contrast)
    return np.asarray(found.image.voxels[0], np.float32)


@pytest.mark.parametrize("change", [lambda x: x, lambda x: 5 - 3 * x, lambda x: x**3])
def test_another_contrast_of_the_same_image_has_the_same_classes_and_nearly_the_same_edges(
    change: Callable[[Any], Any],
) -> None:
    image = np.zeros((64, 64))
    image[10:50, 12:40] = 0.5
    image[20:30, 18:30] = 1.0
    found = structure(image, change(image))
    assert found.edges_kept == pytest.approx(1, abs=0.02)
    assert found.edges_new == pytest.approx(0, abs=0.02)
    assert found.tissue_dice == 1


def test_the_same_head_in_another_contrast_is_nearer_than_another_head_and_noise() -> None:
    first = head("t1")
    noise = np.random.default_rng(0).random(first.shape)
    true, other, none = (structure(first, x) for x in (head("t2"), head("t2", 3), noise))
    assert true.edges_kept and other.edges_kept and none.edges_kept
    assert true.edges_new and other.edges_new and none.edges_new
    assert true.tissue_dice and none.tissue_dice
    assert true.edges_kept > other.edges_kept > 0
    assert true.edges_new < other.edges_new
    assert none.edges_new > 0.6
    assert true.tissue_dice > none.tissue_dice


def test_an_invented_object_is_a_new_edge_and_a_lost_one_an_edge_not_kept() -> None:
    image = np.zeros((64, 64))
    image[20:30, 20:30] = 1
    more = image.copy()
    more[45:55, 45:55] = 1
    invented, lost = structure(image, more), structure(more, image)
    assert invented.edges_kept == pytest.approx(1, abs=0.02)
    assert invented.edges_new == pytest.approx(0.5, abs=0.05)
    assert lost.edges_kept == pytest.approx(0.5, abs=0.05)
    assert lost.edges_new == pytest.approx(0, abs=0.02)


@given(seed=st.integers(0, 50), scale=st.floats(0.1, 100), offset=st.floats(-100, 100))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_brightness_and_contrast_do_not_matter(seed: int, scale: float, offset: float) -> None:
    random = np.random.default_rng(seed)
    one, other = np.round(random.random((2, 24, 24)), 2)
    plain, changed = structure(one, other), structure(one, scale * other + offset)
    assert changed.edges_kept == pytest.approx(plain.edges_kept, abs=0.05)
    assert changed.tissue_dice == pytest.approx(plain.tissue_dice, abs=0.05)


def test_only_the_mask_counts() -> None:
    image = head("t1")
    changed = image.copy()
    mask = np.zeros(image.shape, bool)
    mask[20:44, 20:44] = True
    changed[:10] = np.random.default_rng(0).random(changed[:10].shape) * 1000
    assert structure(image, changed, mask) == structure(image, image, mask)
    assert structure(image, changed) != structure(image, image)


def test_flat_images_are_undefined_and_no_error() -> None:
    image = head("t1")
    for flat in (np.zeros_like(image), np.full_like(image, 7.3)):
        found = structure(image, flat)
        assert found.edges_kept is None
        assert found.edges_new is None
        assert found.tissue_dice is None
    empty = structure(image, image, np.zeros(image.shape, bool))
    assert empty.tissue_dice is None


def test_images_of_two_shapes_are_refused() -> None:
    with pytest.raises(GeometryError, match="one shape"):
        structure(np.zeros((4, 4)), np.zeros((4, 5)))
