"""Patches of a scan with large voxels, interpolated to small ones: what super-resolution refines.

The voxels are those of :mod:`medgen.corruption.resolution`. But a patch lies anywhere in its scan,
so its coarse grid begins anywhere, and what is interpolated at its border is not the scan's border.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Generator, Tensor

from medgen.corruption.resolution import sampling_for


def resampling_matrices(
    fine: int, factor: float, fwhm: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Matrices from fine to coarse voxels and, by a cubic B-spline, back.

    The coarse grid begins anywhere: a patch lies anywhere in its scan.

    Args:
        fine: Number of fine voxels.
        factor: Size of a coarse voxel in fine ones.
        fwhm: Of the Gaussian point-spread function, in coarse voxels.
        generator: Source of randomness.

    Returns:
        ``(coarse, fine)`` and ``(fine, coarse)``, float32; all rows sum to 1.
    """
    cells = math.ceil(fine / factor) + 1
    sampling = sampling_for(round(cells * factor), factor, fwhm)
    first = int(torch.randint(sampling.fine - fine + 1, (), generator=generator))
    down = sampling.matrix()[:, first : first + fine]
    seen = down.sum(1) > 0.5  # large voxels of which less than half lies in the patch do not count
    centres = (np.arange(sampling.coarse) + 0.5) * sampling.step - first - 0.5
    down = down[seen]
    up = _spline(fine, tuple(centres[seen.numpy()].tolist()))
    return (down / down.sum(1, keepdim=True)).float(), up


@lru_cache(maxsize=256)
def _spline(fine: int, centres: tuple[float, ...]) -> Tensor:
    """Cubic B-spline interpolation from values at evenly spaced centres, ``(fine, coarse)``."""
    if len(centres) == 1:
        return torch.ones(fine, 1)
    places = (np.arange(fine) - centres[0]) / (centres[1] - centres[0])
    order = min(3, len(centres) - 1)
    columns = [
        ndimage.map_coordinates(unit, places[None], order=order, mode="nearest")
        for unit in np.eye(len(centres))
    ]
    return torch.from_numpy(np.stack(columns, axis=1)).float()


def along(image: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """A matrix ``(m, n)`` applied to an axis of length n."""
    return torch.movedim(torch.tensordot(matrix, image, dims=([1], [axis])), 0, axis)
