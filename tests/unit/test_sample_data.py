"""The committed sample data is what its script makes, and what its README says."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from medgen.io import read


@pytest.fixture(scope="module")
def folder(repository):
    return repository / "sample_data"


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    pytest.importorskip("nilearn")
    fresh = tmp_path_factory.mktemp("sample_data")
    subprocess.run(
        [sys.executable, folder / "make_sample_data.py", fresh], check=True, env=os.environ
    )
    return fresh


@pytest.mark.parametrize(
    "name",
    [
        "icbm152_t1.nii.gz", "icbm152_t1_lesion.nii.gz", "icbm152_flair_lesion.nii.gz",
        "icbm152_lesion_mask.nii.gz",
        "phantom_flair.nii.gz", "phantom_flair_lesion_mask.nii.gz", "dicom_t1",
    ],
)  # fmt: skip
def test_the_script_makes_the_committed_files(folder, made, name):
    old, new = read(folder / name), read(made / name)
    assert old.geometry.same_grid_as(new.geometry)
    # Another version of scipy may round a voxel the other way.
    difference = np.abs(old.voxels.astype(float) - new.voxels.astype(float))
    assert difference.max() <= 2 and (difference > 0).mean() < 1e-3


@pytest.mark.parametrize(
    ("scan", "mask", "millilitre"),
    [
        ("icbm152_t1_lesion", "icbm152_lesion_mask", 3.0),
        ("icbm152_flair_lesion", "icbm152_lesion_mask", 3.0),
        ("phantom_flair", "phantom_flair_lesion_mask", 2.3),
    ],
)
def test_lesions_are_as_large_as_the_readme_says(folder, scan, mask, millilitre):
    image, truth = read(folder / f"{scan}.nii.gz"), read(folder / f"{mask}.nii.gz")
    assert image.geometry.same_grid_as(truth.geometry)
    volume = (truth.voxels > 0).sum() * truth.geometry.voxel_volume_mm3 / 1000
    assert volume == pytest.approx(millilitre, abs=0.05)


def test_the_lesion_is_the_only_change(folder):
    healthy, sick, mask = (
        read(folder / f"icbm152_{part}.nii.gz").voxels.astype(float)
        for part in ("t1", "t1_lesion", "lesion_mask")
    )
    changed = healthy != sick
    assert 0 < changed.sum() < 3 * (mask > 0).sum()
    assert (sick[mask > 0] < healthy[mask > 0]).mean() > 0.95


def test_it_stays_small(folder):
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert total < 4_000_000
