"""Patches of a scan with large voxels, brought to small ones: what super-resolution refines.

The voxels are those of :mod:`medgen.corruption.resolution`. But a patch lies anywhere in its scan,
so its coarse grid begins anywhere, and what is interpolated at its border is not the scan's border.
As in use, where nobody knows a scanner's true point-spread function, the interpolation is made
consistent with the measured voxels through an assumed one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Generator, Tensor

from medgen.corruption.resolution import (
    along,
    consistent,
    downsample,
    noise_damping,
    sampling_for,
)

# Of the Gaussian that is assumed where the true one is not known, in coarse voxels.
ASSUMED_FWHM = 1.0
# Of the value range: at least so much of a residual is taken for noise. An assumed point-spread
# function is never quite right, and to undo it exactly would ring.
LEAST_NOISE = 0.01


@dataclass(frozen=True, eq=False)
class PatchAxis:
    """One axis of a patch whose coarse grid begins anywhere.

    Attributes:
        down: From fine to coarse voxels ``(coarse, fine)``; all rows sum to 1.
        up: Back by a cubic B-spline ``(fine, coarse)``.
        assumed: The degradation that is assumed for the same coarse voxels, float64.
        step: Size of a coarse voxel in fine ones.
    """

    down: Tensor
    up: Tensor
    assumed: Tensor
    step: float

    def matrix(self) -> Tensor:
        """The assumed degradation."""
        return self.assumed


def patch_axis(fine: int, factor: float, fwhm: float, generator: Generator) -> PatchAxis:
    """An axis of a patch that large voxels see.

    Args:
        fine: Number of fine voxels.
        factor: Size of a coarse voxel in fine ones.
        fwhm: Of the Gaussian point-spread function, in coarse voxels.
        generator: Source of randomness.
    """
    cells = math.ceil(fine / factor) + 1
    sampling = sampling_for(round(cells * factor), factor, fwhm)
    first = int(torch.randint(sampling.fine - fine + 1, (), generator=generator))
    down = sampling.matrix()[:, first : first + fine]
    seen = down.sum(1) > 0.5  # large voxels of which less than half lies in the patch do not count
    centres = (np.arange(sampling.coarse) + 0.5) * sampling.step - first - 0.5
    assumed = replace(sampling, fwhm=ASSUMED_FWHM).matrix()[:, first : first + fine][seen]
    down = down[seen]
    return PatchAxis(
        (down / down.sum(1, keepdim=True)).float(),
        _spline(fine, tuple(centres[seen.numpy()].tolist())),
        assumed / assumed.sum(1, keepdim=True),
        sampling.step,
    )


def refined_start(measured: Tensor, axes: Sequence[PatchAxis | None], noise: float) -> Tensor:
    """A measured patch on the fine grid: interpolated, then as consistent as its noise allows.

    Args:
        measured: ``(*coarse)``.
        axes: One per axis; None keeps the axis as it is.
        noise: Standard deviation of the noise in ``measured``; ``LEAST_NOISE`` if that is more.

    Returns:
        ``(*fine)``; what a network for super-resolution sees.
    """
    image = measured
    for axis, item in enumerate(axes):
        if item is not None:
            image = along(image, item.up, axis - len(axes))
    damping = noise_damping(measured - downsample(image, axes), axes, max(noise, LEAST_NOISE))
    return consistent(image, measured, axes, damping)


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
