"""Where restorations lie and what they leave alone: every orientation, odd sizes, 2-D and 3-D."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from restoration_networks import Identity, Plane
from scipy.spatial.transform import Rotation
from tiny_packages import save_restorer

import medgen
from medgen.package import ModelPackage
from medgen.volume import Geometry, Volume

ORIENTATIONS = [
    (order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
]
OWN_VOXELS = {"spacing_mm": None, "brain": "none", "brightest": None}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelPackage]:
    folder: Path = tmp_path_factory.mktemp("models")
    return {
        "inpaint": save_restorer(
            folder / "inpaint", "inpaint", dims=3, preparation={**OWN_VOXELS, "spacing_mm": 2.5}
        ),
        "inpaint-2d": save_restorer(
            folder / "inpaint-2d", "inpaint", preparation={**OWN_VOXELS, "spacing_mm": 2.5}
        ),
        "denoise": save_restorer(folder / "denoise", "denoise"),
        "translate": save_restorer(
            folder / "translate", "translate", preparation=OWN_VOXELS,
            restoration={"targets": ("t2",)}, config={"channels": 1},
        ),
    }  # fmt: skip


def affine_of(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...]):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * spacing[axis]
    affine[:3, 3] = (12.0, -7.5, 3.25)
    return affine


def noise(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """A textured head on a constant background."""
    random = np.random.default_rng(seed)
    places = np.indices(shape).astype(float)
    middle = (np.array(shape).reshape(-1, *[1] * len(shape)) - 1) / 2
    inside = (((places - middle) / (0.42 * np.array(shape).reshape(middle.shape))) ** 2).sum(0) < 1
    return np.where(inside, random.integers(200, 900, shape), 0).astype(dtype)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::5])
@pytest.mark.parametrize("verb", ["denoise", "translate"])
def test_identity_returns_the_scan(verb: str, order: tuple, signs: tuple, packages: dict) -> None:
    scan = Volume.from_array(noise((23, 31, 19), "int16"), affine_of(order, signs, (1.1, 0.9, 2.3)))
    result = getattr(medgen, verb)(scan, packages[verb], method=Identity())
    assert result.geometry.same_grid_as(scan.geometry, 1e-6)
    inside = scan.voxels[0] > 0
    np.testing.assert_allclose(result.output[inside], scan.voxels[0][inside], rtol=1e-5)
    np.testing.assert_array_equal(result.before, scan.voxels[0])
    assert result.uncertainty is not None
    assert np.all(result.uncertainty[inside] > 0)
    assert not result.uncertainty[~inside][0]


@pytest.mark.parametrize("verb", ["denoise", "translate"])
def test_identity_returns_a_slice(verb: str, packages: dict) -> None:
    scan = Volume.from_array(noise((37, 29), "float32"), np.diag([0.7, 0.8, 1, 1]))
    result = getattr(medgen, verb)(scan, packages[verb], method=Identity())
    inside = scan.voxels[0] > 0
    np.testing.assert_allclose(result.output[inside], scan.voxels[0][inside], rtol=1e-5)


@settings(max_examples=25)
@given(
    place=st.sampled_from(ORIENTATIONS),
    dtype=st.sampled_from(["uint8", "int16", "uint16", "float32", "float64"]),
    shape=st.tuples(*[st.integers(16, 27)] * 3),
    share=st.floats(0.001, 0.2),
    seed=st.integers(0, 100),
)
def test_outside_the_hole_nothing_changes(
    place: tuple, dtype: str, shape: tuple, share: float, seed: int, packages: dict
) -> None:
    values = noise(shape, "float64", seed) * (0.25 if dtype == "uint8" else 1)
    scan = Volume.from_array(values.astype(dtype), affine_of(*place, (2.5, 2.0, 3.5)))
    hole = np.random.default_rng(seed).random(shape) < share
    hole[tuple(size // 2 for size in shape)] = True
    kept = scan.voxels.copy()
    network = Identity(3, channels=2)
    result = medgen.inpaint(scan, packages["inpaint"], mask=hole, method=network)
    assert result.output.dtype == scan.voxels.dtype
    assert np.array_equal(result.output[~hole], kept[0][~hole])
    assert np.array_equal(scan.voxels, kept)
    assert np.array_equal(result.invented, hole)
    assert result.uncertainty is not None
    assert not result.uncertainty[~hole].any()
    assert (result.uncertainty[hole] > 0).any()
    assert result.geometry is scan.geometry


@settings(max_examples=8)
@given(
    place=st.sampled_from(ORIENTATIONS),
    tilt=st.tuples(*[st.floats(-25, 25)] * 3),
    spacing=st.tuples(*[st.floats(1.6, 3.5)] * 3),
    middle=st.tuples(*[st.integers(9, 14)] * 3),
)
def test_a_hole_in_a_ramp_is_filled_in_its_place(
    place: tuple, tilt: tuple, spacing: tuple, middle: tuple, packages: dict
) -> None:
    """A network that continues planes must find the ramp again: any flip or shift would show."""
    affine = affine_of(*place, spacing)
    affine[:3, :3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() @ affine[:3, :3]
    geometry = Geometry((24, 26, 22), affine)
    world = geometry.to_world(np.moveaxis(np.indices(geometry.shape), 0, -1))
    ramp = (world @ [1.0, -2.0, 0.5] + 1000).astype(np.float32)
    scan = Volume(ramp[None], geometry)
    hole = np.zeros(geometry.shape, bool)
    hole[tuple(slice(m - 3, m + 3) for m in middle)] = True
    package = packages["inpaint"]
    result = medgen.inpaint(scan, package, mask=hole, method=Plane(3))
    span = np.ptp(ramp)
    np.testing.assert_allclose(result.output[hole], ramp[hole], atol=0.01 * span)


@settings(max_examples=8)
@given(
    turn=st.sampled_from([(x, y, s) for x in (1, -1) for y in (1, -1) for s in (False, True)]),
    spacing=st.tuples(st.floats(1.5, 4), st.floats(1.5, 4)),
)
def test_a_hole_in_a_slice_is_filled_in_its_place(
    turn: tuple, spacing: tuple, packages: dict
) -> None:
    affine = np.diag([turn[0] * spacing[0], turn[1] * spacing[1], 1.0, 1.0])
    if turn[2]:
        affine = affine[:, [1, 0, 2, 3]]
    geometry = Geometry((33, 27), affine)
    world = geometry.to_world(np.moveaxis(np.indices(geometry.shape), 0, -1))
    ramp = (world @ [2.0, -1.0, 0.0] + 500).astype(np.float32)
    hole = np.zeros(geometry.shape, bool)
    hole[10:16, 12:20] = True
    result = medgen.inpaint(
        Volume(ramp[None], geometry), packages["inpaint-2d"], mask=hole, method=Plane(2)
    )
    np.testing.assert_allclose(result.output[hole], ramp[hole], atol=0.01 * np.ptp(ramp))
