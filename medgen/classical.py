"""Restoration without training: the baselines that every learned method has to beat.

Plain functions on arrays ``(X, Y[, Z])`` in any unit: scaling the image scales the result.

- Fill a hole: the nearest known value, or the smoothest surface through its rim (biharmonic;
  Damelin and Hoang, "On surface completion and image inpainting by biharmonic functions", 2018).
- Remove noise: non-local means (Buades 2005; in 3-D Coupe 2008), total variation (Rudin, Osher
  and Fatemi 1992, by Chambolle's algorithm 2004), and wavelets (Haar, without a preferred origin:
  Coifman and Donoho, "Translation-invariant de-noising", 1995).
- Refine the grid: nearest, linear, and cubic splines.

Volumes are worked through in slabs, so that no method needs many copies of a large scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
# Median absolute deviation of normally distributed numbers of standard deviation 1.
MAD_PER_SIGMA = 0.6745
# Slices that are denoised together, besides the margin that their result depends on.
SLAB = 32
# Largest residual of the biharmonic equation, relative to where the solution started; the filled
# values then differ from the exact ones by less than a thousandth of the image's deviation.
RESIDUAL = 1e-4
MOST_ITERATIONS = 1000
# Bytes that filling a hole holds per voxel of the box around it, at most (tracemalloc).
BYTES_PER_BOX_VOXEL = 90


def nearest_fill(image: NDArray[Any], hole: NDArray[np.bool_]) -> Image:
    """Fill a hole with the nearest known values.

    Args:
        image: ``(X, Y[, Z])``; values inside the hole do not count.
        hole: True where values are missing; not everywhere.
    """
    from scipy import ndimage

    filled = image.astype(np.float32)
    for box in _neighbourhoods(hole, margin=1):
        inside = hole[box]
        nearest = ndimage.distance_transform_edt(
            inside, return_distances=False, return_indices=True
        )
        filled[box][inside] = filled[box][tuple(nearest[:, inside])]
    return filled


def biharmonic(image: NDArray[Any], hole: NDArray[np.bool_], residual: float = RESIDUAL) -> Image:
    """Fill a hole with the function of zero squared Laplacian that fits the values around it.

    scikit-image solves the same equation with a sparse factorisation, whose memory grows fast
    in 3-D. Here it is solved by conjugate gradients, preconditioned by the inverse of the squared
    Laplacian of the box around the hole (by sine transforms). As in scikit-image, the result
    stays within the range of the known values.

    Args:
        image: ``(X, Y[, Z])``; values inside the hole do not count.
        hole: True where values are missing; not everywhere.
        residual: Largest residual of the equation, relative to where the solution starts.
    """
    filled = nearest_fill(image, hole)
    known = image[~hole]
    low, high = np.float32(known.min()), np.float32(known.max())
    # The squared Laplacian reaches two voxels far.
    for box in _neighbourhoods(hole, margin=2):
        inside = hole[box]
        filled[box][inside] = _solve_biharmonic(filled[box], inside, residual).clip(low, high)
    return filled


def fill_memory_gb(hole: NDArray[np.bool_]) -> float:
    """Memory in GB that filling a hole needs at its peak, besides a few copies of the image."""
    boxes = _neighbourhoods(hole, margin=2)
    voxels = [math.prod(part.stop - part.start for part in box) for box in boxes]
    return max(voxels, default=0) * BYTES_PER_BOX_VOXEL / 1e9


def _neighbourhoods(hole: NDArray[np.bool_], margin: int) -> list[tuple[slice, ...]]:
    """A box for each part of the hole that can be filled by itself, and what it depends on."""
    from scipy import ndimage

    whole = ndimage.find_objects(hole.view(np.uint8))
    if not whole:
        return []
    # Most holes are far smaller than the image.
    first = [max(0, part.start - margin) for part in whole[0]]
    room = tuple(slice(n, part.stop + margin) for n, part in zip(first, whole[0], strict=True))
    near = ndimage.binary_dilation(hole[room], np.ones((3,) * hole.ndim), iterations=margin)
    return [
        tuple(slice(n + part.start, n + part.stop) for n, part in zip(first, box, strict=True))
        for box in ndimage.find_objects(ndimage.label(near)[0])
    ]


def _solve_biharmonic(
    filled: Image, inside: NDArray[np.bool_], allowed: float
) -> NDArray[np.float64]:
    """Values inside, from those outside and a first guess inside."""
    from scipy import fft

    values = filled.astype(np.float64)
    work = np.zeros_like(values)
    eigenvalues = np.zeros(values.shape)
    for axis, size in enumerate(values.shape):
        of_axis = 2 - 2 * np.cos(np.pi * np.arange(1, size + 1) / (size + 1))
        eigenvalues += of_axis.reshape([-1 if a == axis else 1 for a in range(values.ndim)])

    def apply(inner: NDArray[np.float64]) -> NDArray[np.float64]:
        work[inside] = inner
        return _laplacian(_laplacian(work))[inside]

    def precondition(inner: NDArray[np.float64]) -> NDArray[np.float64]:
        work[inside] = inner
        spectrum = fft.dstn(work, type=1) / eigenvalues**2
        return fft.idstn(spectrum, type=1)[inside]

    # Conjugate gradients (Hestenes and Stiefel 1952) from the first guess.
    solution = values[inside]
    residual = -_laplacian(_laplacian(values))[inside]
    towards = precondition(residual)
    direction = towards.copy()
    fit = float(residual @ towards)
    limit = allowed * float(np.linalg.norm(residual))
    for _ in range(MOST_ITERATIONS):
        if np.linalg.norm(residual) <= limit:
            break
        image_of = apply(direction)
        step = fit / float(direction @ image_of)
        solution += step * direction
        residual -= step * image_of
        towards = precondition(residual)
        fit, before = float(residual @ towards), fit
        direction = towards + fit / before * direction
    return solution


def _laplacian(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of the differences to all neighbours; there are none beyond the border."""
    out = np.zeros_like(values)
    for axis in range(values.ndim):
        difference = np.diff(values, axis=axis)
        out[_along(axis, values.ndim, slice(None, -1))] += difference
        out[_along(axis, values.ndim, slice(1, None))] -= difference
    return out


def _along(axis: int, dims: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if a == axis else slice(None) for a in range(dims))


def noise_sigma(image: NDArray[Any], inside: NDArray[np.bool_] | None = None) -> float:
    """Standard deviation of white noise, from the finest mixed differences of an image.

    Anatomy is smooth along some axis almost everywhere, noise is not: the median absolute value of
    the Haar coefficients that are differences along all axes tells the noise alone (Donoho and
    Johnstone 1994). Noise that was interpolated or smoothed is underestimated.

    Args:
        image: ``(X, Y[, Z])``.
        inside: Where to look; a Rician background is quieter than the tissue. Everywhere if None.
    """
    detail = image.astype(np.float32, copy=False)
    usable = np.ones(image.shape, dtype=bool) if inside is None else inside
    for axis in range(image.ndim):
        if image.shape[axis] < 2:
            continue
        even = _along(axis, image.ndim, slice(0, image.shape[axis] // 2 * 2, 2))
        odd = _along(axis, image.ndim, slice(1, None, 2))
        detail = (detail[even] - detail[odd]) / np.float32(math.sqrt(2))
        usable = usable[even] & usable[odd]
    values = np.abs(detail[usable])
    values = values[values > 0]  # constant areas, as a cut-out background, hold no noise
    return float(np.median(values)) / MAD_PER_SIGMA if values.size else 0.0


def nlm(image: NDArray[Any], sigma: float | None = None) -> Image:
    """Non-local means: every voxel becomes the mean of those with similar neighbourhoods.

    Args:
        image: ``(X, Y[, Z])``.
        sigma: Standard deviation of the noise; estimated if None.
    """
    from skimage.restoration import denoise_nl_means

    sigma = noise_sigma(image) if sigma is None else sigma
    if sigma <= 0:
        return image.astype(np.float32)
    # Best on T1 with added noise of 3, 7 and 15 % of the contrast (a wider search in 3-D is worse).
    patch, distance, strength = (5, 6, 0.7) if image.ndim == 2 else (3, 3, 0.45)
    work = partial(
        denoise_nl_means, patch_size=patch, patch_distance=distance, h=strength, sigma=1.0,
        fast_mode=True,
    )  # fmt: skip
    # In units of the noise: the running sums of the fast mode stay accurate.
    scaled = image.astype(np.float32) / np.float32(sigma)
    return _in_slabs(work, scaled, patch + distance) * np.float32(sigma)


def total_variation(image: NDArray[Any], sigma: float | None = None) -> Image:
    """The image of least total variation near the noisy one.

    Args:
        image: ``(X, Y[, Z])``.
        sigma: Standard deviation of the noise; estimated if None.
    """
    from skimage.restoration import denoise_tv_chambolle

    sigma = noise_sigma(image) if sigma is None else sigma
    if sigma <= 0:
        return image.astype(np.float32)
    # Best on T1 with added noise of 3, 7 and 15 % of the contrast.
    weight = 0.75 if image.ndim == 2 else 0.45
    work = partial(denoise_tv_chambolle, weight=weight, eps=1e-5, max_num_iter=100)
    scaled = image.astype(np.float32) / np.float32(sigma)
    return _in_slabs(work, scaled, 16) * np.float32(sigma)


def wavelet(image: NDArray[Any], sigma: float | None = None) -> Image:
    """Haar coefficients below three standard deviations of their noise are set to zero.

    Averaged over all origins of the wavelets (Coifman and Donoho, "Translation-invariant
    de-noising", 1995): on MR a stronger baseline than BayesShrink in an orthogonal basis, which
    scikit-image offers.

    Args:
        image: ``(X, Y[, Z])``.
        sigma: Standard deviation of the noise; estimated if None.
    """
    sigma = noise_sigma(image) if sigma is None else sigma
    work = partial(_shrink_haar, sigma=sigma, level=0, levels=3)
    return _in_slabs(work, image.astype(np.float32), 8)


def _shrink_haar(image: Image, sigma: float, level: int, levels: int) -> Image:
    """Undecimated Haar transform, hard threshold and back, from one level on."""
    if level == levels:
        return image
    bands = [image]
    for axis in range(image.ndim):
        bands = [half for band in bands for half in _split(band, axis, 2**level)]
    # Each axis halves the variance of white noise, at each level.
    threshold = np.float32(3 * sigma * 2 ** (-image.ndim * (level + 1) / 2))
    for band in bands[1:]:
        band[np.abs(band) < threshold] = 0
    bands[0] = _shrink_haar(bands[0], sigma, level + 1, levels)
    for axis in reversed(range(image.ndim)):
        bands = [
            _join(mean, half, axis, 2**level)
            for mean, half in zip(bands[::2], bands[1::2], strict=True)
        ]
    return bands[0]


def _split(band: Image, axis: int, step: int) -> tuple[Image, Image]:
    """Half the sum and half the difference of each voxel and the one `step` further."""
    size = band.shape[axis]
    further = np.take(band, np.minimum(np.arange(size) + step, size - 1), axis=axis)
    return (band + further) / 2, (band - further) / 2


def _join(mean: Image, half: Image, axis: int, step: int) -> Image:
    """The mean of the two values that the pairs of each voxel say it had."""
    before = np.maximum(np.arange(mean.shape[axis]) - step, 0)
    first = mean + half
    second = np.take(mean - half, before, axis=axis)
    # The first voxels are nobody's partner.
    head = _along(axis, mean.ndim, slice(0, min(step, mean.shape[axis])))
    second[head] = first[head]
    first += second
    first /= 2
    return first


def _in_slabs(work: Callable[[Image], Any], image: Image, margin: int) -> Image:
    """Apply a filter that reaches `margin` voxels far slab by slab; 2-D images at once."""
    if image.ndim == 2:
        return np.asarray(work(image), dtype=np.float32)
    out = np.empty_like(image)
    for start in range(0, len(image), SLAB):
        low, stop = max(0, start - margin), min(len(image), start + SLAB)
        part = work(image[low : min(len(image), stop + margin)])
        out[start:stop] = part[start - low : stop - low]
    return out


def enlarge(image: NDArray[Any], shape: Sequence[int], order: int = 3) -> Image:
    """Interpolate an image on a finer (or coarser) grid of the same field of view.

    The outer edges of both grids agree. A spline is linear in its values and separable, so one
    matrix per axis does it; beyond the outermost voxel centres the image is mirrored.

    Args:
        image: ``(X, Y[, Z])``.
        shape: Of the result.
        order: 0 nearest, 1 linear, 3 cubic spline.
    """
    import torch

    from medgen.corruption.resolution import along

    out = torch.from_numpy(image.astype(np.float32))
    # The least enlarged axis first: the others then have less to do.
    for axis in sorted(range(image.ndim), key=lambda axis: shape[axis] / image.shape[axis]):
        if shape[axis] != image.shape[axis]:
            matrix = _interpolation(image.shape[axis], shape[axis], order)
            out = along(out, torch.from_numpy(matrix), axis - image.ndim)
    return out.numpy()


def _interpolation(source: int, target: int, order: int) -> NDArray[np.float64]:
    """What interpolation along an axis does to each single voxel: ``(target, source)``."""
    from scipy import ndimage

    if source == 1:
        return np.ones((target, 1))
    columns: NDArray[np.float64] = ndimage.zoom(
        np.eye(source), (target / source, 1), order=order, mode="reflect", grid_mode=True
    )
    return columns


def identity(image: NDArray[Any]) -> Image:
    """The image as it is: what a translation has to beat."""
    return image.astype(np.float32)


# By verb: fill(image, hole), enlarge(image, shape), denoise(image, sigma=None), translate(image).
CLASSICAL: dict[str, dict[str, Callable[..., Image]]] = {
    "inpaint": {"biharmonic": biharmonic, "nearest": nearest_fill},
    "super-resolve": {
        "nearest": partial(enlarge, order=0),
        "linear": partial(enlarge, order=1),
        "cubic": partial(enlarge, order=3),
    },
    "denoise": {"nlm": nlm, "tv": total_variation, "wavelet": wavelet},
    "translate": {"identity": identity},
}
