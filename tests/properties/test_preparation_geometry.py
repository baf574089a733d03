"""Wherever a scan's voxels lie, preparing it and going back keeps everything in its place."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medgen.preparation import Preparation, target_grid
from medgen.resampling import resample
from medgen.volume import Geometry, Volume

ORIENTATIONS = [
    (order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
]
BLOB_MM = np.array([4.0, -3.0, 5.0])
PREPARATION = Preparation(brain="none", spacing_mm=2.5, margin_mm=5)


def oriented(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """Signed permutation matrix."""
    matrix = np.zeros((3, 3))
    matrix[list(order), range(3)] = signs
    return matrix


def scan(linear: np.ndarray, shape: tuple[int, ...] = (30, 34, 28)) -> Volume:
    """A ball of radius 26 mm around the origin, with a smooth bright blob at BLOB_MM."""
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ ((np.array(shape) - 1) / 2) + (0.3, -0.4, 0.2)
    geometry = Geometry(shape, affine)
    world = geometry.to_world(np.moveaxis(np.indices(shape), 0, -1))
    inside = np.linalg.norm(world, axis=-1) < 26
    blob = np.exp(-((world - BLOB_MM) ** 2).sum(axis=-1) / (2 * 7.0**2))
    return Volume(((0.3 + blob) * inside).astype(np.float32)[None] * 100, geometry)


def blob_centroid(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Centre of the bright part in world mm."""
    world = geometry.to_world(np.moveaxis(np.indices(values.shape), 0, -1))
    weight = np.clip(values - 0.55 * values.max(), 0, None)
    return (world * weight[..., None]).sum(axis=(0, 1, 2)) / weight.sum()


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_all_48_orientations_prepare_to_one_image(order: tuple, signs: tuple) -> None:
    straight = scan(np.diag([2.0, 1.8, 2.2]))
    axes = straight.voxels[0].transpose(order)
    flips = tuple(axis for axis in range(3) if signs[axis] < 0)
    columns = straight.affine[:3, :3][:, list(order)] * np.array(signs)
    affine = np.eye(4)
    affine[:3, :3] = columns
    first = [
        straight.geometry.shape[order[axis]] - 1 if signs[axis] < 0 else 0 for axis in range(3)
    ]
    voxel = np.zeros(3)
    voxel[list(order)] = first
    affine[:3, 3] = straight.geometry.to_world(voxel)
    turned = Volume(np.flip(axes, flips)[None].copy(), Geometry(axes.shape, affine))

    expected, prepared = PREPARATION.apply(straight), PREPARATION.apply(turned)

    assert prepared.grid.same_grid_as(expected.grid, 1e-6)
    np.testing.assert_allclose(prepared.image.numpy(), expected.image.numpy(), atol=2e-5)
    back = prepared.to_source(prepared.image)
    assert back.shape == turned.voxels.shape
    np.testing.assert_allclose(
        blob_centroid(back[0], turned.geometry), blob_centroid(turned.voxels[0], turned.geometry),
        atol=0.25,
    )  # fmt: skip


@given(
    place=st.sampled_from(ORIENTATIONS),
    tilt=st.tuples(*[st.floats(-40, 40)] * 3),
    shear=st.floats(-0.3, 0.3),
    spacing=st.tuples(*[st.floats(1.7, 2.6)] * 3),
)
def test_a_blob_stays_where_it_is(place: tuple, tilt: tuple, shear: float, spacing: tuple) -> None:
    skew = np.eye(3)
    skew[0, 1] = shear
    turn = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix()
    volume = scan(turn @ skew @ oriented(*place) @ np.diag(spacing), (38, 38, 38))

    prepared = PREPARATION.apply(volume)
    back = prepared.to_source(prepared.image)

    assert prepared.source is volume.geometry
    assert prepared.grid.axis_codes == "RAS"
    np.testing.assert_allclose(prepared.grid.spacing_mm, 2.5, rtol=1e-9)
    np.testing.assert_allclose(prepared.image.affine.numpy(), prepared.grid.affine)
    assert prepared.image.shape[1:] == prepared.mask.shape[1:] == prepared.grid.shape
    assert back.shape == volume.voxels.shape
    expected = blob_centroid(volume.voxels[0], volume.geometry)
    middle = blob_centroid(prepared.image[0].numpy(), prepared.grid)
    np.testing.assert_allclose(middle, expected, atol=0.3)
    np.testing.assert_allclose(blob_centroid(back[0], volume.geometry), expected, atol=0.3)


@given(
    place=st.sampled_from(ORIENTATIONS),
    spacing=st.tuples(*[st.floats(0.5, 4)] * 3),
    seed=st.integers(0, 99),
)
def test_own_voxels_are_copied_exactly(place: tuple, spacing: tuple, seed: int) -> None:
    shape = (14, 12, 11)
    linear = oriented(*place) * np.array(spacing)
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = (-7.0, 31.0, 5.5)
    geometry = Geometry(shape, affine)
    mask = np.zeros(shape, dtype=bool)
    mask[2:13, 1:11, 0:10] = True
    values = np.random.default_rng(seed).random(shape, dtype=np.float32)

    grid = target_grid(geometry, mask, None, 2.0)
    there = resample(values, geometry, grid)
    back = resample(there, grid, geometry)

    assert grid.axis_codes == "RAS"
    np.testing.assert_array_equal(back[mask], values[mask])
    assert np.isin(there, np.append(values, 0)).all()
    again = resample(there, grid, geometry, "nearest")
    np.testing.assert_array_equal(again, back)


@given(tilt=st.floats(0, 180), spacing=st.floats(0.8, 1.9))
def test_2d_images_stay_in_their_plane(tilt: float, spacing: float) -> None:
    turn = Rotation.from_euler("zx", (tilt, 35), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * (spacing, spacing, 5)
    geometry = Geometry((40, 44), affine)
    pixel = np.moveaxis(np.indices((40, 44)), 0, -1)
    values = np.exp(-(((pixel - (17, 25)) ** 2).sum(axis=-1)) / 60).astype(np.float32)
    values[((pixel - (20, 22)) ** 2).sum(axis=-1) > 300] = 0
    prepared = Preparation(spacing_mm=1.3).apply(Volume(values[None], geometry))

    normal = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    corners = prepared.grid.to_world([[0, 0], [9, 0], [0, 9], [9, 9]])
    np.testing.assert_allclose(corners @ normal, corners[0] @ normal, atol=1e-6)
    back = prepared.to_source(prepared.image)[0]
    found = np.array(np.unravel_index(back.argmax(), back.shape))
    assert np.abs(found - (17, 25)).max() <= 1


@given(seed=st.integers(0, 50))
def test_preparing_twice_gives_the_same_image(seed: int) -> None:
    volume = scan(np.diag([2.0, 2.0, 2.0]))
    noise = np.random.default_rng(seed).normal(0, 3, volume.voxels.shape).astype(np.float32)
    volume = volume.with_voxels(volume.voxels + noise * (volume.voxels > 0))
    before = volume.voxels.copy()
    first, second = PREPARATION.apply(volume), PREPARATION.apply(volume)
    assert (first.image == second.image).all()
    np.testing.assert_array_equal(volume.voxels, before)
