"""Generated series against converters that are not ours: dcm2niix, and GDCM through SimpleITK."""

from __future__ import annotations

import subprocess
from pathlib import Path

import hostile_dicom
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medgen import io
from medgen.volume import Geometry, Volume

LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])
CONVERTED = [
    "orientation 00 up", "orientation 07 down", "orientation 13 up", "orientation 22 down",
    "oblique", "anisotropic", "enhanced MR", "enhanced CT", "mosaic", "RLE", "big endian",
    "signed 12 bits", "rescale per slice",
]  # fmt: skip
READ_BY_GDCM = [
    "orientation 01 down", "orientation 09 up", "orientation 18 down", "oblique", "anisotropic",
    "JPEG-LS", "JPEG 2000", "JPEG Lossless", "deflated", "big endian", "signed 12 bits", "16 bits",
    "rescale per slice",
]  # fmt: skip


def agree(volume: Volume, array: np.ndarray, affine: np.ndarray) -> None:
    """Every voxel of the other reader is a voxel of ours, at the same place, of the same value."""
    voxels = np.stack(np.indices(array.shape), axis=-1)
    found = volume.geometry.to_voxel(Geometry(array.shape, affine).to_world(voxels))
    nearest = np.rint(found).astype(int)
    assert np.abs((found - nearest) * volume.geometry.spacing_mm).max() < 1e-3
    assert array.shape == tuple(np.ptp(nearest.reshape(-1, 3), axis=0) + 1)
    ours = volume.voxels[0][tuple(np.moveaxis(nearest, -1, 0))]
    assert np.allclose(ours, array, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("kind", CONVERTED)
def test_dcm2niix(tmp_path: Path, kind: str) -> None:
    dcm2niix = pytest.importorskip("dcm2niix")
    made = hostile_dicom.build(kind, tmp_path / "in", seed=11)
    (tmp_path / "out").mkdir()
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "x", "-o", tmp_path / "out", made.folder]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=60)
    (path,) = (tmp_path / "out").glob("*.nii")
    image = nib.load(path)
    agree(io.read(made.folder), image.get_fdata(), image.affine)


@pytest.mark.parametrize("kind", READ_BY_GDCM)
def test_gdcm(tmp_path: Path, kind: str) -> None:
    made = hostile_dicom.build(kind, tmp_path, seed=12)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(made.folder))
    if kind == "rescale per slice":  # one slope for all is what the series reader takes
        planes = [sitk.GetArrayFromImage(sitk.ReadImage(name))[0].T for name in names]
        array = np.stack(planes, axis=-1).astype(float)
        image = sitk.ReadImage(names)
    else:
        image = sitk.ReadImage(names)
        array = sitk.GetArrayFromImage(image).T.astype(float)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    agree(io.read(made.folder), array, LPS_TO_RAS @ affine)
