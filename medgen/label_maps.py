"""Anatomical label maps: which number is which tissue, and how to read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgen.errors import InputError

# FreeSurfer labels by tissue; both hemispheres. Everything from 500 on is outside the brain.
WHITE_MATTER = (2, 41, 7, 46, 28, 60, 16, 85)
CORTEX = (3, 42, 8, 47)
DEEP_GREY = (10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58)
VENTRICLES = (4, 43, 5, 44, 14, 15, 72)
FLUID = (*VENTRICLES, 24)
FIRST_OUTSIDE_BRAIN = 500


def brain_distance_mm(labels: NDArray[Any], spacing_mm: float) -> NDArray[np.float32]:
    """Signed distance in mm to the brain's outer surface, negative inside.

    The brain is every label below 500 except free fluid (24), closed over its sulci.
    """
    core = (labels > 0) & (labels < FIRST_OUTSIDE_BRAIN) & (labels != 24)
    ball = ndimage.distance_transform_edt(np.pad(~core, 3, constant_values=True))
    closed = ndimage.distance_transform_edt(ball * spacing_mm <= 4.0) * spacing_mm > 4.0
    brain = ndimage.binary_fill_holes(core | closed[3:-3, 3:-3, 3:-3])
    outside = ndimage.distance_transform_edt(~brain) * spacing_mm
    inside = ndimage.distance_transform_edt(brain) * spacing_mm
    return (outside - inside).astype(np.float32)


def read_label_maps(folder: Path, names: Sequence[str], spacing_mm: float) -> list[NDArray[Any]]:
    """Label maps as arrays (X, Y, Z), axes pointing right, front, up.

    Raises:
        InputError: If the folder, a name, or the expected voxel size is missing.
    """
    import nibabel

    if not folder.is_dir():
        msg = f"no folder of label maps at {folder}"
        raise InputError(msg, "Set data.folder in the training configuration.")
    files = {file.name.split(".")[0]: file for file in sorted(folder.glob("*.nii*"))}
    missing = [name for name in names if name not in files]
    if missing or not files:
        msg = f"label maps {missing or '*.nii.gz'} are not in {folder} (found {sorted(files)})"
        raise InputError(msg)
    maps = []
    for name in names or sorted(files):
        image = nibabel.as_closest_canonical(nibabel.load(files[name]))
        spacing = np.array(image.header.get_zooms()[:3], dtype=float)
        labels = np.asanyarray(image.dataobj).astype(np.int16)
        if np.abs(spacing - spacing_mm).max() > 0.01:
            labels = ndimage.zoom(labels, spacing / spacing_mm, order=0)
        maps.append(labels)
    return maps
