"""Preparation and brain extraction on real scans."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medgen.brain import extract_brain
from medgen.preparation import Preparation
from medgen.volume import Volume


def read(path: Path) -> Volume:
    image = nib.load(path)
    return Volume.from_array(np.asarray(image.dataobj, dtype=np.float32), image.affine)


@pytest.mark.parametrize(
    "name",
    [
        "ms_patient26/flair.nii.gz",
        "ms_patient26/t1.nii.gz",
        "ms_patient26/t2.nii.gz",
        "heads/flair_small.nii.gz",
        "heads/t2_chronic_stroke.nii.gz",
    ],
)
def test_skull_stripped_scans_are_recognised(data_dir: Path, name: str) -> None:
    volume = read(data_dir / "brain" / name)
    prepared = Preparation().apply(volume)
    assert "skull-stripped" in prepared.notes[0]
    back = prepared.to_source(prepared.image)
    inside = prepared.source_mask
    # 1 mm voxels have passed through 1.5 mm ones: some detail is gone, nothing has moved.
    assert np.corrcoef(back[0][inside], volume.voxels[0][inside])[0, 1] > 0.9
    assert (volume.voxels[0][~inside] <= 0.002 * volume.voxels.max()).mean() > 0.999


def test_brain_is_extracted_from_a_real_head(data_dir: Path) -> None:
    """No manual truth exists: the deep white matter is in, the eyes, scalp and neck are out."""
    volume = read(data_dir / "brain" / "heads" / "t1_with_skull.nii.gz")
    found = extract_brain(volume)
    assert 1250 < found.volume_ml < 1600
    voxels = np.argwhere(found.mask)
    extent = (np.ptp(voxels, axis=0) + 1) * np.array(volume.geometry.spacing_mm)
    assert (
        np.abs(extent - (135, 170, 125)) < (20, 20, 25)
    ).all()  # a brain's width, length, height
    assert np.median(volume.voxels[0][found.mask]) > 100
    assert not found.mask[:, :, -8:].any()  # the scalp at the top
