"""Values on one grid, read at the voxels of another.

SimpleITK does the resampling, not MONAI's `SpatialResample`: both are linear, but SimpleITK keeps
the coordinates in float64 without building a coordinate tensor. For a 182 x 218 x 182 scan the
way back from 1.5 mm takes 0.13 s and 30 MB, against 0.45 s and 340 MB in MONAI (float64), on two
cores.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medgen.volume import Geometry

# Steps up to this many voxels are interpolated as they are; longer ones would skip voxels.
LONGEST_STEP = 1.5


def resample(
    values: NDArray[np.float32],
    source: Geometry,
    target: Geometry,
    mode: Literal["linear", "nearest"] = "linear",
) -> NDArray[np.float32]:
    """Values on one grid, read at the voxel centres of another; 0 outside.

    Grids that share their voxel centres are copied exactly. Going to much larger voxels, linear
    interpolation would skip voxels, so the values are smoothed first.

    Args:
        values: ``(*source.shape)``.
        source: Where the values are.
        target: Where they are wanted.
        mode: ``linear`` or ``nearest``.

    Returns:
        ``(*target.shape)`` float32; a new array.
    """
    dims = source.spatial_dims
    step = np.linalg.inv(source.affine) @ target.affine
    matrix, offset = step[:dims, :dims], step[:dims, 3]
    exact = np.round(matrix)
    same_lattice = np.abs(exact).sum(axis=0).max() == np.abs(exact).sum(axis=1).max() == 1
    drift = np.abs(matrix - exact) @ np.array(target.shape) + np.abs(offset - np.round(offset))
    if same_lattice and abs(round(float(np.linalg.det(exact)))) == 1 and drift.max() < 1e-3:
        return _copy(values, exact.astype(int), np.round(offset).astype(int), target.shape)
    if mode == "linear":
        values = _smoothed_for(values, matrix)
    import SimpleITK as sitk

    # SimpleITK counts axes from the last to the first; everything is in voxels here.
    transform = sitk.AffineTransform(dims)
    transform.SetMatrix(matrix[::-1, ::-1].ravel().tolist())
    transform.SetTranslation(offset[::-1].tolist())
    filter_ = sitk.ResampleImageFilter()
    filter_.SetSize([int(size) for size in target.shape[::-1]])
    filter_.SetTransform(transform)
    filter_.SetInterpolator(sitk.sitkLinear if mode == "linear" else sitk.sitkNearestNeighbor)
    image = sitk.GetImageFromArray(np.ascontiguousarray(values, dtype=np.float32))
    return sitk.GetArrayFromImage(filter_.Execute(image))


def _smoothed_for(values: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Values smoothed along the axes where a step of the target spans more than 1.5 voxels.

    The Gaussian's standard deviation is (step - 1) / 2 voxels, as in scikit-image; below a step
    of 1.5 it would leave the values as they are.
    """
    from scipy import ndimage

    steps = np.abs(matrix).max(axis=1)
    for axis, step in enumerate(steps):
        if step > LONGEST_STEP + 1e-3:
            sigma = (step - 1) / 2
            values = ndimage.gaussian_filter1d(values, sigma, axis=axis, mode="constant")
    return values


def _copy(
    values: NDArray[np.float32],
    matrix: NDArray[np.int64],
    offset: NDArray[np.int64],
    shape: tuple[int, ...],
) -> NDArray[np.float32]:
    """Flip, permute, crop and pad: target voxel t reads source voxel matrix @ t + offset."""
    result = np.zeros(shape, dtype=np.float32)
    order = [int(np.flatnonzero(matrix[:, axis])[0]) for axis in range(len(shape))]
    turned = values.transpose(order)
    into, from_ = [], []
    for axis, source_axis in enumerate(order):
        size, start = turned.shape[axis], int(offset[source_axis])
        if matrix[source_axis, axis] < 0:
            turned = np.flip(turned, axis)
            start = size - 1 - start
        # Target index t reads turned index t + start.
        low, high = max(0, -start), min(shape[axis], size - start)
        into.append(slice(low, max(low, high)))
        from_.append(slice(low + start, max(low, high) + start))
    result[tuple(into)] = turned[tuple(from_)]
    return result
