"""Denoising: on the scan's own voxels and in its own values, background untouched."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_packages import phantom, save_restorer

from medgen.classical import noise_sigma
from medgen.errors import InputError, PackageError
from medgen.package import ModelPackage
from medgen.tasks.denoise import denoise
from medgen.volume import Geometry, Volume


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return save_restorer(tmp_path_factory.mktemp("models") / "dn", "denoise")


class Fixed(torch.nn.Module):
    """A network whose output is a function of its input, equal at every voxel."""

    divisor, spatial_dims, input_slices = 4, 2, 1

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def predict(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"output": self.function(image), "spread": torch.full_like(image, 0.25)}


def full_scan(shape: tuple[int, ...], seed: int = 0) -> Volume:
    """Noise everywhere, without a constant background."""
    values = np.random.default_rng(seed).normal(300, 90, shape).astype(np.int16)
    return Volume.from_array(values, np.diag([-2.0, 2, 3, 1]))


@pytest.mark.parametrize("shape", [(23, 27), (19, 21, 17)])
def test_a_network_that_changes_nothing_returns_the_scan(
    package: ModelPackage, shape: tuple[int, ...]
) -> None:
    scan = full_scan(shape)
    result = denoise(scan, package, method=Fixed(lambda image: image + 0))  # type: ignore[arg-type]
    assert result.output.dtype == np.float32
    np.testing.assert_allclose(result.output, scan.voxels[0], atol=1e-3)
    assert result.geometry is scan.geometry
    low, high = np.percentile(scan.voxels, [1, 99])
    assert result.uncertainty is not None  # spread x range x calibrated factor
    np.testing.assert_allclose(result.uncertainty, 0.25 * (high - low) * 2.0, rtol=1e-5)
    assert result.level == 0.9


@pytest.mark.parametrize("codes", ["LPS", "SAR", "PIR", "ASL"])
def test_the_direction_of_axes_does_not_matter(package: ModelPackage, codes: str) -> None:
    scan = phantom().image
    image = nib.Nifti1Image(scan.voxels[0], scan.affine)
    change = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    other = image.as_reoriented(change)
    result = denoise(
        Volume(np.ascontiguousarray(other.dataobj)[None], Geometry(other.shape, other.affine)),
        package,
    )
    back = nib.Nifti1Image(np.array(result.output), result.geometry.affine).as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(other.affine), nib.io_orientation(image.affine)
        )
    )
    plain = denoise(scan, package)
    tolerance = 1e-5 * np.ptp(scan.voxels)
    np.testing.assert_allclose(back.get_fdata(), plain.output, atol=tolerance)


@pytest.mark.parametrize("model", ["network", "nlm", "tv", "wavelet"])
def test_a_constant_background_stays_bit_for_bit(package: ModelPackage, model: str) -> None:
    scan = phantom().image
    background = scan.voxels[0] == scan.voxels[0, 0, 0, 0]
    assert background.mean() > 0.2
    result = denoise(scan, package if model == "network" else model)
    outside = result.output[background]
    np.testing.assert_array_equal(outside, np.full_like(outside, scan.voxels[0, 0, 0, 0]))
    assert not np.array_equal(result.output[~background], scan.voxels[0][~background])
    if model == "network":
        assert result.uncertainty is not None
        assert not result.uncertainty[background].any()


def test_every_voxel_is_computed_without_a_constant_background(package: ModelPackage) -> None:
    scan = full_scan((18, 19, 17))
    result = denoise(scan, package, method=Fixed(lambda image: image * 0))  # type: ignore[arg-type]
    low = np.percentile(scan.voxels, 1)
    np.testing.assert_allclose(result.output, low, rtol=1e-5)


@pytest.mark.parametrize("model", ["nlm", "tv", "wavelet"])
def test_classical_methods_take_noise_out_and_measure_it(model: str) -> None:
    scan = phantom().image
    noisy = scan.voxels + np.random.default_rng(0).normal(0, 60, scan.voxels.shape)
    result = denoise(scan.with_voxels(noisy.astype(np.float32)), model)
    before, after = (float(result.measures[f"noise_{when}"]) for when in ("before", "after"))
    assert before == pytest.approx(noise_sigma(noisy[0]))
    assert after < 0.7 * before
    error = [np.square(image - scan.voxels[0]).mean() for image in (noisy[0], result.output)]
    assert error[1] < error[0]
    assert result.uncertainty is None


def test_strength_mixes_with_the_scan(package: ModelPackage) -> None:
    scan = full_scan((18, 20))
    network = Fixed(lambda image: image * 0)
    whole, half = (
        denoise(scan, package, strength=s, method=network)  # type: ignore[arg-type]
        for s in (1.0, 0.25)
    )
    np.testing.assert_allclose(half.output, 0.25 * whole.output + 0.75 * scan.voxels[0], rtol=1e-4)
    assert half.uncertainty is None
    assert half.level is None
    assert any("strength 0.25" in note for note in half.notes)


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.5, float("nan")])
def test_bad_strengths_are_refused(strength: float) -> None:
    with pytest.raises(InputError, match="strength"):
        denoise("no_such_file.nii.gz", "nlm", strength=strength)


def test_bad_scans_are_refused(package: ModelPackage) -> None:
    scan = phantom().image
    voxels = scan.voxels.astype(np.float32)
    voxels[0, 3, 4, 5] = np.inf
    for model in (package, "nlm"):
        with pytest.raises(InputError, match="finite"):
            denoise(scan.with_voxels(voxels), model)
        with pytest.raises(InputError, match="nothing to see"):
            denoise(scan.with_voxels(np.full_like(voxels, 3)), model)
    mask = np.zeros_like(voxels)
    mask[0, 6:18, 6:18, 6:14] = 1
    with pytest.raises(InputError, match="no contrast"):
        denoise(scan.with_voxels(mask), package)


def test_a_normalisation_that_cannot_be_undone_is_refused(tmp_path: Any) -> None:
    package = save_restorer(
        tmp_path / "dn", "denoise",
        preparation={"spacing_mm": None, "brain": "none", "normalisation": "equalise"},
    )  # fmt: skip
    with pytest.raises(PackageError, match="equalise"):
        denoise(phantom().image, package)
