"""Whether a translated image shows the structures of the image it was made from.

Nothing here needs a truth, so it can be measured for every result. The two images show other
contrasts, so a value below 1 does not mean that a structure was lost: what tells is a comparison
with true pairs of the same two kinds, or with other results for the same image.

Everything is measured slice by slice (the last axis of a volume), with little memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from skimage.filters import threshold_multiotsu

from medgen.errors import GeometryError

# Share of the voxels of a slice that may be edges, before they are thinned.
EDGE_SHARE = 0.1
SMOOTHING = 1.0  # voxels
CLASSES = 3
_BINS = 256
# A slice with fewer voxels than this shows nothing to compare.
_FEWEST = 25


@dataclass(frozen=True)
class Structure:
    """How much structure two images share. None where it is undefined: an image is flat.

    Attributes:
        edges_kept: Share of the first image's edges with one of the second's within a voxel, 0..1.
        edges_new: Share of the second image's edges without one of the first's, 0..1: where
            something may have been invented.
        tissue_dice: Mean Dice overlap, 0..1, of intensity classes of the one and the other, each
            class with the one that it overlaps best.
    """

    edges_kept: float | None
    edges_new: float | None
    tissue_dice: float | None


def structure(
    before: NDArray[Any], after: NDArray[Any], mask: NDArray[np.bool_] | None = None
) -> Structure:
    """Compare an image with what was made of it.

    Edges are local maxima of the gradient (Canny 1986) of the image smoothed by a Gaussian of one
    voxel, among the tenth of a slice's voxels with the largest gradient: how strong they are in
    the one or the other contrast does not matter. Intensity classes are three, by Otsu's
    thresholds (1979) of the whole image.

    Args:
        before: Image ``(X, Y)`` or ``(X, Y, Z)``.
        after: The result, on the same grid.
        mask: Where to look; None: everywhere.

    Raises:
        GeometryError: The shapes differ.
    """
    where = np.ones(before.shape, bool) if mask is None else np.asarray(mask, bool)
    if not before.shape == after.shape == where.shape:
        raise GeometryError(
            f"the images must have one shape, got {before.shape}, {after.shape} and, of the mask, "
            f"{where.shape}"
        )
    found = np.zeros(4, np.int64)  # edges before, of these kept; edges after, of these old
    for first, second, inside in _slices(before, after, where):
        one, other = _edges(first, inside), _edges(second, inside)
        near_one, near_other = (ndimage.binary_dilation(e, np.ones((3, 3))) for e in (one, other))
        found += (one.sum(), (one & near_other).sum(), other.sum(), (other & near_one).sum())
    return Structure(
        edges_kept=float(found[1] / found[0]) if found[0] and found[2] else None,
        edges_new=float(1 - found[3] / found[2]) if found[0] and found[2] else None,
        tissue_dice=_tissue_dice(before, after, where),
    )


def _slices(*images: NDArray[Any]) -> Iterator[tuple[NDArray[Any], ...]]:
    """The slices of some images that show something inside the last one, a mask."""
    count = images[0].shape[2] if images[0].ndim == 3 else 1
    for number in range(count):
        cut = tuple(image[..., number] if image.ndim == 3 else image for image in images)
        if cut[-1].sum() >= _FEWEST:
            yield cut


def _edges(image: NDArray[Any], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Thin edges of a slice inside a mask."""
    smooth = ndimage.gaussian_filter(image.astype(np.float32), SMOOTHING)
    slopes = np.gradient(smooth)
    size = np.hypot(*slopes)
    # Largest among its neighbours across the edge, along the axis that is nearest to the gradient.
    steeper = np.abs(slopes[0]) >= np.abs(slopes[1])
    maxima = np.zeros_like(inside)
    for axis, chosen in ((0, steeper), (1, ~steeper)):
        footprint = np.ones((3, 1) if axis == 0 else (1, 3))
        maxima |= chosen & (size >= ndimage.maximum_filter(size, footprint=footprint))
    threshold = np.quantile(size[inside], 1 - EDGE_SHARE)
    # Rounding gives flat images slopes, too.
    trivial = 1e-5 * float(np.abs(smooth).max())
    result: NDArray[np.bool_] = maxima & inside & (size >= threshold) & (size > trivial)
    return result


def _tissue_dice(
    before: NDArray[Any], after: NDArray[Any], where: NDArray[np.bool_]
) -> float | None:
    """Overlap of the classes of two images, matched as well as possible."""
    found = [_thresholds(image, where) for image in (before, after)]
    limits = [limit for limit in found if limit is not None]
    if len(limits) < 2:
        return None
    together = np.zeros((CLASSES, CLASSES), np.int64)
    for first, second, inside in _slices(before, after, where):
        one, other = (
            np.searchsorted(limit, image[inside])
            for limit, image in zip(limits, (first, second), strict=True)
        )
        together += np.bincount(one * CLASSES + other, minlength=CLASSES**2).reshape(-1, CLASSES)
    sizes = together.sum(1)[:, None] + together.sum(0)[None]
    dice = 2 * together / np.maximum(sizes, 1)
    pairs = linear_sum_assignment(dice, maximize=True)
    return float(dice[pairs].mean())


def _thresholds(image: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[Any] | None:
    """Values that part an image's voxels into classes; None if they have too few values."""
    cuts = list(_slices(image, where))
    if not cuts:
        return None
    low = min(float(values[inside].min()) for values, inside in cuts)
    high = max(float(values[inside].max()) for values, inside in cuts)
    if not high > low:
        return None
    edges = np.linspace(low, high, _BINS + 1)
    counts = sum(np.histogram(values[inside], edges)[0] for values, inside in cuts)
    if np.count_nonzero(counts) < CLASSES:
        return None
    centres = (edges[1:] + edges[:-1]) / 2
    found: NDArray[Any] = threshold_multiotsu(hist=(counts, centres), classes=CLASSES)
    return found
