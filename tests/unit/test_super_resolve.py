"""Super-resolution: the grid, the exact agreement with the scan, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_packages import phantom, save_restorer

from medgen.classical import enlarge
from medgen.corruption.resolution import downsample
from medgen.errors import InputError
from medgen.package import ModelPackage
from medgen.tasks.finer_grid import finer_grid
from medgen.tasks.super_resolve import INCONSISTENCY, super_resolve
from medgen.volume import Geometry, Volume


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return save_restorer(tmp_path_factory.mktemp("models") / "sr", "super-resolve")


def turned(volume: Volume, codes: str) -> Volume:
    """The same scan with its axes in another order and direction."""
    image = nib.Nifti1Image(volume.voxels[0], volume.affine)
    change = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    image = image.as_reoriented(change)
    return Volume(np.ascontiguousarray(image.dataobj)[None], Geometry(image.shape, image.affine))


def oblique(shape: tuple[int, ...], spacing: tuple[float, ...], seed: int) -> Geometry:
    generator = np.random.default_rng(seed)
    axes = np.linalg.qr(generator.standard_normal((3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = axes * (*spacing, 1.0)[:3]
    affine[:3, 3] = generator.uniform(-90, 90, 3)
    return Geometry(shape, affine)


# The grid.


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(2, 60), min_size=2, max_size=3),
    spacing=st.lists(st.floats(0.3, 6.0), min_size=3, max_size=3),
    scale=st.floats(1.1, 8.0),
    seed=st.integers(0, 99),
)
def test_outer_corners_stay(
    shape: list[int], spacing: list[float], scale: float, seed: int
) -> None:
    """In any direction the finer grid begins and ends where the scan does."""
    coarse = oblique(tuple(shape), tuple(spacing[: len(shape)]), seed)
    try:
        grid = finer_grid(coarse, scale=scale)
    except InputError:
        assert round(max(shape) * scale) == max(shape)
        return
    for corner in np.ndindex((2,) * len(shape)):
        ends = [np.array(g.shape) * corner - 0.5 for g in (coarse, grid.fine)]
        places = [g.to_world(end) for g, end in zip((coarse, grid.fine), ends, strict=True)]
        np.testing.assert_allclose(*places, atol=1e-9)
    assert grid.fine.axis_codes == coarse.axis_codes
    for n, m in zip(shape, grid.fine.shape, strict=True):
        assert abs(m - n * scale) <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("spacing", "wish", "shape"),
    [
        ((1, 1, 4), {"isotropic": True}, (20, 24, 40)),
        ((0.8, 1, 5), {"spacing_mm": 1.0}, (20, 24, 50)),  # what is finer already stays
        ((0.9, 0.9, 3), {"spacing_mm": 1.0}, (20, 24, 30)),
        ((1, 1, 1), {"spacing_mm": 0.7}, (29, 34, 14)),  # rounded to fill the field of view
        ((2, 2, 2), {"scale": 2}, (40, 48, 20)),
        ((2, 2, 2), {"scale": 1.5}, (30, 36, 15)),
    ],
)
def test_what_was_asked_for(
    spacing: tuple[float, ...], wish: dict[str, Any], shape: tuple[int, ...]
) -> None:
    grid = finer_grid(oblique((20, 24, 10), spacing, 1), **wish)
    assert grid.fine.shape == shape
    extent = np.array((20, 24, 10)) * spacing
    np.testing.assert_allclose(np.array(grid.fine.spacing_mm) * shape, extent)
    for sampling, coarse, fine in zip(grid.samplings(), (20, 24, 10), shape, strict=True):
        assert (sampling is None) == (coarse == fine)


def test_a_single_slice_is_not_split() -> None:
    assert finer_grid(oblique((20, 20, 1), (1, 1, 5), 0), scale=2).fine.shape == (40, 40, 1)


BAD = [
    ({}, "no grid"),
    ({"scale": 2, "isotropic": True}, "more than one"),
    ({"scale": 0}, "above 1"),
    ({"scale": -2}, "above 1"),
    ({"scale": 1}, "above 1"),
    ({"scale": 100}, "at most 8"),
    ({"scale": float("nan")}, "above 1"),
    ({"spacing_mm": 0}, "above 0 mm"),
    ({"spacing_mm": -1}, "above 0 mm"),
    ({"spacing_mm": float("inf")}, "above 0 mm"),
    ({"spacing_mm": 6.0}, "not finer"),
    ({"spacing_mm": 12.0}, "not finer"),
    ({"spacing_mm": 0.1}, "at most 8"),
    ({"spacing_mm": 1e-320}, "at most 8"),  # overflows a float
    ({"isotropic": True}, "equal sides"),
]


@pytest.mark.parametrize(("wish", "why"), BAD)
def test_nonsense_is_refused(wish: dict[str, Any], why: str, package: ModelPackage) -> None:
    with pytest.raises(InputError, match=why):
        super_resolve(phantom().image, package, **wish)


def test_nonsense_is_refused_before_the_scan_is_read(package: ModelPackage) -> None:
    with pytest.raises(InputError, match="consistency must be"):
        super_resolve("no_such_file.nii.gz", package, scale=2, consistency="yes")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="above 1"):
        super_resolve("no_such_file.nii.gz", package, scale=-1)


def test_scales_beyond_training_need_force(package: ModelPackage) -> None:
    with pytest.raises(InputError, match="trained for up to 4 times"):
        super_resolve(phantom().image, package, scale=5)
    assert any("forced" in note for note in super_resolve(
        phantom().image, package, scale=5, force=True).notes)  # fmt: skip


def test_memory_is_refused_before_work(package: ModelPackage) -> None:
    with pytest.raises(InputError, match=r"192 x 224 x 160 voxels needs about 0\.6 GB"):
        super_resolve(phantom().image, "cubic", scale=8, max_memory_gb=0.55)


def test_not_a_number_is_refused(package: ModelPackage) -> None:
    scan = phantom().image
    voxels = scan.voxels.astype(np.float32)
    voxels[0, 3, 4, 5] = np.nan
    for model in (package, "cubic"):
        with pytest.raises(InputError, match="finite"):
            super_resolve(scan.with_voxels(voxels), model, scale=2)


# The result.


@pytest.mark.parametrize("wish", [{"scale": 2}, {"scale": 1.7}, {"spacing_mm": 2.0}])
def test_it_agrees_with_the_scan(package: ModelPackage, wish: dict[str, Any]) -> None:
    """Coarsened as stated the result is the scan, and the measures say the truth."""
    scan = phantom().image
    result = super_resolve(scan, package, consistency="exact", **wish)
    grid = finer_grid(scan.geometry, **wish)
    assert result.geometry.same_grid_as(grid.fine)
    assert result.output.shape == grid.fine.shape == result.before.shape
    again = downsample(torch.from_numpy(np.array(result.output)), grid.samplings()).numpy()
    error = np.abs(again - scan.voxels[0])
    tolerance = 1e-5 * np.ptp(scan.voxels)
    assert error.max() < tolerance
    assert float(result.measures["inconsistency_max"]) < tolerance
    loose = super_resolve(scan, package, consistency="none", **wish)
    for name in INCONSISTENCY:
        assert result.measures[f"{name}_before"] == loose.measures[name]
        assert float(loose.measures[name]) > 100 * float(result.measures[name])
    assert f"{name}_before" not in loose.measures
    assert result.level == 0.9
    assert result.uncertainty is not None
    assert result.uncertainty.shape == result.output.shape


def test_a_noisy_scan_is_not_copied_with_its_noise(package: ModelPackage) -> None:
    """Within the noise where it can be, and nearer to the truth than without a correction."""
    truth = super_resolve(phantom().image, "cubic", scale=2).output
    grid = finer_grid(phantom().image.geometry, scale=2)
    measured = downsample(torch.from_numpy(np.array(truth)), grid.samplings()).numpy()

    def errors(sigma: float) -> dict[str, float]:
        noise = np.random.default_rng(0).normal(0, sigma, measured.shape)
        scan = Volume((measured + noise + 1000).astype(np.float32)[None], grid.coarse)
        made = {
            how: super_resolve(
                scan, package, scale=2, consistency=how, method=Unchanged(),  # type: ignore[arg-type]
            )
            for how in ("none", "noise", "exact")
        }  # fmt: skip
        rms = float(made["noise"].measures["inconsistency_mean"])
        assert rms < float(made["noise"].measures["noise"])
        return {how: float(np.square(r.output - 1000 - truth).mean()) for how, r in made.items()}

    quiet, loud = errors(1.0), errors(120.0)
    # What a network is given agrees with the scan already; this one changes nothing.
    assert quiet["noise"] == pytest.approx(quiet["none"], rel=1e-3)
    assert loud["noise"] < 1.001 * loud["none"] < loud["exact"]


@pytest.mark.parametrize("codes", ["LPS", "SAR", "PIR", "ASL"])
def test_the_direction_of_axes_does_not_matter(package: ModelPackage, codes: str) -> None:
    scan = phantom().image
    plain, other = (super_resolve(s, package, scale=2) for s in (scan, turned(scan, codes)))
    back = turned(Volume(np.array(other.output)[None], other.geometry), "RAS")
    assert back.geometry.same_grid_as(plain.geometry)
    tolerance = 1e-4 * np.ptp(scan.voxels)
    np.testing.assert_allclose(back.voxels[0], plain.output, atol=tolerance)


class Unchanged(torch.nn.Module):
    """A network that adds nothing."""

    divisor, spatial_dims, input_slices = 4, 2, 1

    def predict(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"output": image + 0, "spread": torch.full_like(image, 0.5)}


@pytest.mark.parametrize("shape", [(24, 28, 20), (23, 27)])
def test_a_network_that_adds_nothing_gives_the_interpolation(
    package: ModelPackage, shape: tuple[int, ...]
) -> None:
    generator = np.random.default_rng(0)
    affine = np.diag([-2.0, 2, 3, 1])
    scan = Volume.from_array(generator.normal(300, 90, shape).astype(np.int16), affine)
    result = super_resolve(
        scan, package, scale=2, consistency="none",
        method=Unchanged(),  # type: ignore[arg-type]
    )  # fmt: skip
    cubic = enlarge(scan.voxels[0], result.geometry.shape)
    np.testing.assert_allclose(result.output, cubic, atol=1e-2)
    np.testing.assert_array_equal(result.before, cubic)
    low, high = np.percentile(scan.voxels, [1, 99])
    assert result.uncertainty is not None  # spread x range x calibrated factor
    np.testing.assert_allclose(result.uncertainty, 0.5 * (high - low) * 2.0, rtol=1e-5)


@pytest.mark.parametrize("model", ["nearest", "linear", "cubic"])
def test_interpolation_stays_what_its_name_says(model: str) -> None:
    scan = phantom().image
    result = super_resolve(scan, model, scale=2)
    order = {"nearest": 0, "linear": 1, "cubic": 3}[model]
    np.testing.assert_array_equal(
        result.output, enlarge(scan.voxels[0], result.geometry.shape, order)
    )
    assert result.uncertainty is None
    assert float(result.measures["inconsistency_max"]) > 1


def test_a_file_is_read_and_seeds_do_not_matter(tmp_path: Path, package: ModelPackage) -> None:
    scan = phantom().image
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(scan.voxels[0], scan.affine), path)
    results = [super_resolve(path, package, scale=2, seed=seed) for seed in (0, 1)]
    np.testing.assert_array_equal(results[0].output, results[1].output)
    assert results[0].estimated_memory_gb > 0.5
