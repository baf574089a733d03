"""Source slices that are no regular grid by themselves: a tilted gantry, or uneven distances.

They are resampled onto a regular grid, whose third axis is their normal, by one linear
interpolation: each slice is shifted in its plane, and planes between slices are mixed from both
neighbours. The grid is made large enough that no slice is cut; what no slice covers takes the
smallest value. The way back leads exactly onto the pixels of the source slices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgen.errors import GeometryError
from medgen.volume import Geometry

# Slices may be spread over a field of view this much larger than one of them.
_MAX_EXTENSION = 3.0
_MAX_PLANES = 20_000
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Part of a pixel or of a slice distance that counts as none.
_NOTHING = 1e-4


@dataclass(frozen=True, eq=False)
class SliceGrid:
    """A regular grid and the slices it was made from.

    Attributes:
        geometry: The regular grid.
        affines: Of each source slice, ``(n, 4, 4)``: column, row and 0 to RAS mm.
        size: Columns and rows of a source slice.
        shifts: Where the first pixel of each slice lies in the plane of the grid, ``(n, 2)``:
            grid indices along the first and the second axis.
        heights: Where each slice lies along the third axis, ``(n,)``, as grid indices.
    """

    geometry: Geometry
    affines: NDArray[np.float64]
    size: tuple[int, int]
    shifts: NDArray[np.float64]
    heights: NDArray[np.float64]

    @classmethod
    def from_slices(
        cls,
        origins: NDArray[np.float64],
        axes: NDArray[np.float64],
        pixel_mm: tuple[float, float],
        size: tuple[int, int],
        distance: float,
    ) -> SliceGrid:
        """The grid that holds all slices.

        Args:
            origins: Centres of the first pixels, LPS mm ``(n, 3)``, ascending along the normal.
            axes: Unit vectors of increasing column and row index, LPS ``(2, 3)``.
            pixel_mm: mm between columns, mm between rows.
            size: Columns and rows.
            distance: mm between the planes of the grid.

        Raises:
            GeometryError: The grid would be far larger than the slices.
        """
        normal = np.cross(axes[0], axes[1])
        moved = origins - origins[0]
        shifts = (moved @ axes.T) / pixel_mm
        first = np.floor(shifts.min(axis=0) + _NOTHING)
        last = np.ceil(shifts.max(axis=0) - _NOTHING)
        columns, rows = (np.asarray(size) + (last - first).astype(int)).tolist()
        heights = (moved @ normal) / distance
        planes = math.ceil(heights[-1] - 1e-3) + 1
        if columns > _MAX_EXTENSION * size[0] or rows > _MAX_EXTENSION * size[1]:
            raise GeometryError(
                "the slices are shifted against each other by more than their own size",
                "Export the series again.",
            )
        if planes > _MAX_PLANES:
            raise GeometryError(
                f"the slices are {distance:.4g} mm apart at the nearest, and would need {planes} "
                "planes to be even", "Export the series again, without its doubled slices.",
            )  # fmt: skip
        lps = np.eye(4)
        lps[:3, 0], lps[:3, 1] = axes[0] * pixel_mm[0], axes[1] * pixel_mm[1]
        lps[:3, 2] = normal * distance
        lps[:3, 3] = origins[0] + lps[:3, :2] @ first
        affines = np.repeat(lps[None], len(origins), axis=0)
        affines[:, :3, 3] = origins
        return cls(
            Geometry((columns, rows, planes), _LPS_TO_RAS @ lps),
            _LPS_TO_RAS @ affines, size, shifts - first, heights,
        )  # fmt: skip

    def from_source(self, slices: NDArray[Any]) -> NDArray[np.float32]:
        """Source slices ``(columns, rows, n)`` on the grid ``(X, Y, Z)``, linearly interpolated."""
        fill = float(slices.min())
        shape = self.geometry.shape
        grid = np.empty(shape[::-1], np.float32).T
        ready: dict[int, NDArray[np.float32]] = {}

        def plane(index: int) -> NDArray[np.float32]:
            if index not in ready:
                canvas = np.full(shape[:2], fill, np.float32)
                canvas[: self.size[0], : self.size[1]] = slices[..., index]
                ready[index] = _shifted(canvas, self.shifts[index], fill, order=1)
            return ready[index]

        for z in range(shape[2]):
            below, above, part = _between(self.heights, float(z))
            ready = {index: ready[index] for index in (below, above) if index in ready}
            grid[..., z] = plane(below)
            if part > 0:
                grid[..., z] += part * (plane(above) - plane(below))
        return grid

    def to_slices(self, array: NDArray[Any], order: int = 1) -> NDArray[Any]:
        """A map ``(X, Y, Z)`` on the grid, at the pixels of the source slices.

        Args:
            array: Values on :attr:`geometry`.
            order: 1 interpolates linearly; 0 takes the nearest value, as labels need.

        Returns:
            ``(columns, rows, n)``, of the array's type for order 0, otherwise float32.

        Raises:
            GeometryError: The array is not on the grid.
        """
        if array.shape != self.geometry.shape:
            raise GeometryError(
                f"the map has shape {array.shape}, the grid of the slices {self.geometry.shape}"
            )
        kind = array.dtype if order == 0 else np.dtype(np.float32)
        slices = np.empty((*self.size, len(self.heights)), kind)
        last = array.shape[2] - 1
        for index, height in enumerate(self.heights):
            below = min(int(height + _NOTHING), last)
            part = min(max(float(height) - below, 0.0), 1.0) if below < last else 0.0
            if order == 0 or part < _NOTHING:
                plane = array[..., min(below + int(part >= 0.5), last)]
            else:
                plane = array[..., below] * (1 - part) + array[..., below + 1] * part
            whole = _shifted(plane.astype(kind), -self.shifts[index], 0.0, order)
            slices[..., index] = whole[: self.size[0], : self.size[1]]
        return slices


def _between(heights: NDArray[np.float64], z: float) -> tuple[int, int, float]:
    """The slices below and above a height, and how far it is from the one to the other."""
    above = int(np.searchsorted(heights, z - 1e-3))
    if above == 0 or above >= len(heights):
        nearest = min(above, len(heights) - 1)
        return nearest, nearest, 0.0
    if abs(heights[above] - z) <= 1e-3:
        return above, above, 0.0
    below = above - 1
    return below, above, float((z - heights[below]) / (heights[above] - heights[below]))


def _shifted(
    plane: NDArray[Any], shift: NDArray[np.float64], fill: float, order: int
) -> NDArray[Any]:
    """A plane moved by a part of its pixels; what comes in from outside has one value."""
    nearest = np.rint(shift)
    if order == 0 or np.abs(shift - nearest).max() < _NOTHING:
        shift = nearest
        order = 0
    if not shift.any():
        return plane
    return np.asarray(
        ndimage.shift(plane, shift, order=order, mode="grid-constant", cval=fill, prefilter=False)
    )
