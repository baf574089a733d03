"""Tilted and uneven stacks on a regular grid, and exactly back onto their slices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgen.errors import GeometryError
from medgen.io.slice_grid import SliceGrid

RAS = np.diag([-1.0, -1, 1, 1])
SIZE = (9, 7)


def turned(a: float, b: float) -> np.ndarray:
    """Row direction, column direction and normal (rows of a rotation), LPS."""
    ca, sa, cb, sb = np.cos(a), np.sin(a), np.cos(b), np.sin(b)
    return np.array([[1, 0, 0], [0, ca, sa], [0, -sa, ca]]) @ np.array(
        [[cb, sb, 0], [-sb, cb, 0], [0, 0, 1]]
    )


def grid(
    tilt: float, gaps: list[float], angles: tuple[float, float] = (0.3, -0.2), across: float = 0.0
) -> tuple[SliceGrid, np.ndarray]:
    """A grid, and the origins of its slices: leaning along columns and, a little, along rows."""
    axes = turned(*angles)
    heights = np.concatenate([[0.0], np.cumsum(gaps)])
    lean = np.tan(np.radians(tilt))
    step = axes[2] + lean * axes[1] + across * axes[0]
    origins = np.array([5.0, -8.0, 30.0]) + heights[:, None] * step
    return SliceGrid.from_slices(origins, axes[:2], (1.5, 1.25), SIZE, min(gaps)), origins


def field(points: np.ndarray) -> np.ndarray:
    """Linear in space, so that linear interpolation is exact."""
    return 100 + points @ np.array([2.0, -3.0, 1.5])


def source(made: SliceGrid) -> tuple[np.ndarray, np.ndarray]:
    """RAS mm of every pixel ``(columns, rows, n, 3)``, and the field there."""
    columns, rows = np.indices(SIZE)
    pixels = np.stack([columns, rows, 0 * rows, 0 * rows + 1], axis=-1).astype(float)
    points = np.stack([pixels @ affine.T for affine in made.affines], axis=2)[..., :3]
    return points, field(points)


tilts = st.floats(-30, 30)
gap_lists = st.lists(st.floats(2.0, 3.9), min_size=2, max_size=6)


@settings(max_examples=40, deadline=None)
@given(tilts, gap_lists, st.floats(-0.3, 0.3))
def test_pixels_keep_their_place_in_the_world(
    tilt: float, gaps: list[float], across: float
) -> None:
    made, origins = grid(tilt, gaps, across=across)
    assert np.abs(made.affines[:, :3, 3] - origins @ RAS[:3, :3]).max() < 1e-9
    points, _ = source(made)
    expected = np.stack(
        [np.stack(np.meshgrid(
            np.arange(SIZE[0]) + made.shifts[n, 0], np.arange(SIZE[1]) + made.shifts[n, 1],
            [made.heights[n]], indexing="ij"), axis=-1)[:, :, 0] for n in range(len(origins))],
        axis=2,
    )  # fmt: skip
    assert np.abs(made.geometry.to_world(expected) - points).max() < 1e-9
    # Nothing lies outside the grid.
    assert expected.min() > -1e-3
    assert (expected.reshape(-1, 3).max(axis=0) < np.array(made.geometry.shape) - 1 + 2e-3).all()


@settings(max_examples=40, deadline=None)
@given(tilts, gap_lists)
def test_a_field_is_the_same_on_the_grid(tilt: float, gaps: list[float]) -> None:
    made, _ = grid(tilt, gaps)
    _, values = source(made)
    result = made.from_source(values)
    world = made.geometry.to_world(np.stack(np.indices(made.geometry.shape), axis=-1))
    # Inside what every slice covers, and between the first and the last slice.
    low, high = np.ceil(made.shifts.max(axis=0)), np.floor(made.shifts.min(axis=0)) + SIZE
    inside = np.s_[int(low[0]) + 1 : int(high[0]) - 1, int(low[1]) + 1 : int(high[1]) - 1]
    planes = int(np.floor(made.heights[-1] + 1e-3)) + 1
    difference = (result - field(world))[inside][..., :planes]
    assert difference.size == 0 or np.abs(difference).max() < 0.02 * np.ptp(values) / SIZE[1]


@settings(max_examples=40, deadline=None)
@given(tilts, gap_lists)
def test_the_way_back_shows_the_map_at_the_pixels(tilt: float, gaps: list[float]) -> None:
    made, _ = grid(tilt, gaps)
    world = made.geometry.to_world(np.stack(np.indices(made.geometry.shape), axis=-1))
    back = made.to_slices(field(world))
    _, expected = source(made)
    assert back.shape == (*SIZE, len(gaps) + 1)
    # A pixel at the rim may mix with what lies outside.
    assert np.abs(back - expected)[1:-1, 1:-1].max() < 1e-2
    labels = (world[..., 2] > world[..., 2].mean()).astype(np.uint8)
    near = made.to_slices(labels, order=0)
    assert near.dtype == np.uint8
    assert set(np.unique(near)) <= {0, 1}


def test_there_and_back_is_exact_for_whole_pixels() -> None:
    tilt = np.degrees(np.arctan(1.25 / 2))  # one row per slice
    made, _ = grid(float(tilt), [2.0] * 5)
    values = np.random.default_rng(0).normal(size=(*SIZE, 6)).astype(np.float32)
    result = made.from_source(values)
    assert made.geometry.shape == (9, 12, 6)
    assert np.array_equal(made.to_slices(result), values)
    assert np.array_equal(made.to_slices(result > 0, order=0), values > 0)
    assert result.min() == values.min()
    assert (result == values.min()).sum() >= 9 * 5 * 6  # what no slice covers


def test_refuses_what_cannot_be() -> None:
    with pytest.raises(GeometryError, match="more than their own size"):
        grid(80.0, [2.0] * 9)
    with pytest.raises(GeometryError, match="planes to be even"):
        grid(0.0, [1e-3, 30.0])
    made, _ = grid(10.0, [2.0] * 3)
    with pytest.raises(GeometryError, match="the map has shape"):
        made.to_slices(np.zeros((3, 3, 3)))
