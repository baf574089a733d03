"""The grid of a super-resolved scan: the same field of view in smaller voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medgen.errors import InputError
from medgen.volume import Geometry

if TYPE_CHECKING:
    from medgen.corruption.resolution import Sampling

# Nobody sees what is smaller than an eighth of a voxel.
LARGEST_SCALE = 8.0
# Voxel sides that differ less (relative) are equal.
ALIKE = 0.01
HOW = "Say how fine with one of --scale TIMES, --spacing MM and --isotropic."


@dataclass(frozen=True, eq=False)
class FinerGrid:
    """A grid that covers the same field of view as another in smaller voxels.

    Attributes:
        coarse: The scan's grid.
        fine: The finer one. Its outer edges are those of the scan's grid, so its voxel size may
            differ from what was asked for, by less than half a voxel over the whole axis.
    """

    coarse: Geometry
    fine: Geometry

    @property
    def factors(self) -> tuple[float, ...]:
        """How many fine voxels lie along a coarse one, per axis."""
        pairs = zip(self.fine.shape, self.coarse.shape, strict=True)
        return tuple(fine / coarse for fine, coarse in pairs)

    def samplings(self) -> list[Sampling | None]:
        """The stated degradation: along each finer axis a Gaussian, one coarse voxel wide."""
        from medgen.corruption.resolution import Sampling

        pairs = zip(self.fine.shape, self.coarse.shape, strict=True)
        return [None if fine == coarse else Sampling(fine, coarse) for fine, coarse in pairs]

    @property
    def note(self) -> str:
        """Both voxel sizes, for people."""
        return f"voxels of {_sizes(self.coarse)} became {_sizes(self.fine)}"


def check_wish(*, scale: float | None, spacing_mm: float | None, isotropic: bool) -> None:
    """Refuse what can be seen to be nonsense before the scan is read.

    Raises:
        InputError: None or several wishes were given, or an absurd one.
    """
    given = [scale is not None, spacing_mm is not None, isotropic]
    if sum(given) != 1:
        raise InputError(
            f"{'more than one finer grid' if any(given) else 'no grid'} was given", HOW
        )
    if scale is not None and not (math.isfinite(scale) and 1 < scale <= LARGEST_SCALE):
        msg = f"the scale must be above 1 and at most {LARGEST_SCALE:g}, got {scale:g}"
        raise InputError(msg, "--scale 2 makes voxels half as large along each axis.")
    if spacing_mm is not None and not (math.isfinite(spacing_mm) and spacing_mm > 0):
        raise InputError(f"the voxel size must be above 0 mm, got {spacing_mm:g}")


def finer_grid(
    coarse: Geometry,
    *,
    scale: float | None = None,
    spacing_mm: float | None = None,
    isotropic: bool = False,
) -> FinerGrid:
    """Choose the grid of the result. Exactly one wish must be given.

    Args:
        coarse: The scan's grid.
        scale: How many times finer along each axis.
        spacing_mm: Voxel size along each axis; axes that are finer already stay as they are.
        isotropic: As fine along each axis as the finest.

    Raises:
        InputError: None or several wishes, an absurd one, or one that nothing would come of.
    """
    check_wish(scale=scale, spacing_mm=spacing_mm, isotropic=isotropic)
    spacing = coarse.spacing_mm
    if scale is not None:
        wanted = tuple(mm / scale for mm in spacing)
    elif spacing_mm is not None:
        wanted = tuple(min(spacing_mm, mm) for mm in spacing)
        if spacing_mm >= max(spacing) / (1 + ALIKE):
            msg = f"voxels of {spacing_mm:g} mm are not finer than the scan's, {_sizes(coarse)}"
            hint = "Ask for smaller voxels; resampling to larger ones needs no model."
            raise InputError(msg, hint)
    else:
        wanted = (min(spacing),) * len(spacing)
        if max(spacing) < min(spacing) * (1 + ALIKE):
            msg = f"the scan's voxels of {_sizes(coarse)} have equal sides already"
            raise InputError(msg, "Use --scale 2 to make them smaller.")
    if (finest := max(have / want for have, want in zip(spacing, wanted, strict=True))) > 1e6:
        # Such numbers of voxels cannot even be counted.
        msg = (
            f"voxels {finest:.3g} times finer were asked for; at most {LARGEST_SCALE:g} times make "
            "sense"
        )
        raise InputError(msg, "Ask for larger voxels.")
    shape = []
    for size, have, want in zip(coarse.shape, spacing, wanted, strict=True):
        # Between one slice and no other there is nothing to find.
        finer = size > 1 and have > want * (1 + ALIKE)
        shape.append(max(size, round(size * have / want)) if finer else size)
    grid = FinerGrid(coarse, _covering(coarse, shape))
    if grid.fine.shape == coarse.shape:
        raise InputError(f"voxels of {_sizes(coarse)} would not become finer", HOW)
    if max(grid.factors) > LARGEST_SCALE * (1 + ALIKE):
        msg = (
            f"from {_sizes(coarse)} to {_sizes(grid.fine)} is {max(grid.factors):.3g} times finer; "
            f"at most {LARGEST_SCALE:g} times make sense"
        )
        raise InputError(msg, "Ask for larger voxels.")
    return grid


def _covering(coarse: Geometry, shape: Sequence[int]) -> Geometry:
    """The grid of so many voxels whose outer edges are those of another."""
    dims = coarse.spatial_dims
    size = np.array(coarse.shape) / np.array(shape)  # of a fine voxel, in coarse ones
    affine = coarse.affine.copy()
    affine[:3, :dims] *= size
    affine[:3, 3] = coarse.to_world(size / 2 - 0.5)
    return Geometry(tuple(shape), affine)


def _sizes(geometry: Geometry) -> str:
    return " x ".join(f"{mm:.4g}" for mm in geometry.spacing_mm) + " mm"
