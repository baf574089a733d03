"""Volumes inside a web page: one picture that holds all axial slices side by side.

The browser cuts the slices apart again and draws any plane from them, so three planes cost no more
than one. Large volumes are first reduced by whole numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.report.frame import Frame

# Browsers on tablets refuse pictures above 16.7 million pixels, and a file should mail well.
MAX_VOXELS = 8_000_000
# The embedded grey values reach this many window widths beyond the window, on either side.
WINDOW_REACH = 0.75


def reduction(frame: Frame) -> tuple[int, int, int]:
    """Whole-number reduction along each axis that keeps the embedded volume within bounds."""
    factors, shape = [1, 1, 1], frame.shape
    spacing = np.array(frame.spacing_mm)
    while math.prod(math.ceil(n / f) for n, f in zip(shape, factors, strict=True)) > MAX_VOXELS:
        # The finest axis loses least; an axis of one slice has nothing to give.
        cost = np.where(np.array(shape) > np.array(factors), spacing * factors, np.inf)
        factors[int(np.argmin(cost))] += 1
    return factors[0], factors[1], factors[2]


def grid_data(frame: Frame, factors: tuple[int, int, int]) -> dict[str, Any]:
    """What a viewer must know of the reduced grid, ready for JSON."""
    shape = [math.ceil(n / f) for n, f in zip(frame.shape, factors, strict=True)]
    # Reduced voxel i covers factor voxels, so its centre lies half a block further.
    scale = np.diag([*factors, 1.0])
    scale[:3, 3] = (np.array(factors) - 1) / 2
    return {
        "shape": shape,
        "columns": mosaic_columns(shape[2]),
        "factors": list(factors),
        "spacing": [mm * f for mm, f in zip(frame.spacing_mm, factors, strict=True)],
        "affine": (frame.geometry.affine @ scale).round(4).tolist(),
        "anatomical": frame.anatomical,
        "planes": [vars(plane) for plane in frame.planes],
        "sourceStart": list(frame.source_start),
        "sourceStep": [-1 if flipped else 1 for flipped in frame.source_flipped],
    }


def reduced(voxel: Any, factors: tuple[int, ...]) -> list[int]:
    """Where a voxel of the frame lies on the reduced grid."""
    return [int(v) // f for v, f in zip(voxel, factors, strict=True)]


def embedded_range(values: NDArray[Any], window: tuple[float, float]) -> tuple[float, float]:
    """Values that become 0 and 255: the window, with room to widen it."""
    low, high = window
    reach = WINDOW_REACH * (high - low)
    least, most = float(np.nanmin(values)), float(np.nanmax(values))
    return max(low - reach, min(least, low)), min(high + reach, max(most, high))


def _blocks(array: NDArray[Any], factors: tuple[int, ...]) -> NDArray[Any]:
    """``(X, Y, Z[, 3])`` cut into blocks ``(x, fx, y, fy, z, fz[, 3])``; the edge repeats."""
    lacking = [(0, -n % f) for n, f in zip(array.shape, factors, strict=False)]
    padded = np.pad(array, lacking + [(0, 0)] * (array.ndim - 3), mode="edge")
    shape: list[int] = []
    for n, f in zip(padded.shape, factors, strict=False):
        shape += [n // f, f]
    return padded.reshape(*shape, *array.shape[3:])


def block_mean(array: NDArray[Any], factors: tuple[int, ...]) -> NDArray[Any]:
    """The mean of each block."""
    if max(factors) == 1:
        return array
    return np.asarray(_blocks(array, factors).mean(axis=(1, 3, 5), dtype=np.float32))


def block_peak(array: NDArray[Any], factors: tuple[int, ...]) -> NDArray[Any]:
    """The largest value of each block, so that nothing small is lost."""
    return array if max(factors) == 1 else np.asarray(_blocks(array, factors).max(axis=(1, 3, 5)))


def mosaic_columns(slices: int) -> int:
    """How many slices stand side by side in a mosaic."""
    return math.ceil(math.sqrt(slices))


def mosaic(volume: NDArray[Any]) -> NDArray[Any]:
    """All axial slices of ``(X, Y, Z[, 3])`` as one picture, row by row."""
    x, y, z = volume.shape[:3]
    columns = mosaic_columns(z)
    rows = math.ceil(z / columns)
    picture = np.zeros((rows * y, columns * x, *volume.shape[3:]), dtype=volume.dtype)
    for index in range(z):
        row, column = divmod(index, columns)
        tile = volume[:, :, index].swapaxes(0, 1)
        picture[row * y : (row + 1) * y, column * x : (column + 1) * x] = tile
    return picture
