"""Where the brain is: the foreground of a scan, and skull-stripped scans recognised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medgen.volume import Geometry, Volume

# A scan counts as having a constant background if at least this part of it is one exact value.
LEAST_BACKGROUND = 0.02
# The largest brains with all fluid around them stay below (the ICBM 152 template has 1.9 l in its
# own space), the smallest adult heads above.
LARGEST_BRAIN_ML = 2250.0
# A brain ends inside the field of view; a head's neck is cut by it.
LARGEST_CUT = 0.1


def why_skull_stripped(foreground: NDArray[np.bool_], geometry: Geometry) -> str | None:
    """Why a foreground is a brain without its skull, or None if it is not.

    Args:
        foreground: ``(X, Y, Z)``, holes filled.
        geometry: Its grid.

    Returns:
        The reason in words: its volume is a brain's, and the field of view does not cut it.
    """
    volume_ml = float(foreground.sum()) * geometry.voxel_volume_mm3 / 1000
    faces = [np.take(foreground, end, axis=axis) for axis in range(3) for end in (0, -1)]
    cut = max(float(face.mean()) for face in faces)
    if volume_ml > LARGEST_BRAIN_ML or cut > LARGEST_CUT:
        return None
    return f"{volume_ml:.0f} ml, inside the field of view"


def find_foreground(volume: Volume) -> tuple[NDArray[np.bool_], float | None]:
    """Everything that is not the constant background, with holes filled.

    Args:
        volume: ``(C, X, Y[, Z])``.

    Returns:
        The foreground ``(X, Y[, Z])`` and the background's part of the scan (0..1); when there
        is no constant background, everything and None.
    """
    foreground = np.zeros(volume.geometry.shape, dtype=bool)
    for channel in volume.voxels:
        constant = _rim_value(channel)
        # Interpolation after skull stripping leaves traces around the brain: below 1/500 of the
        # range they are still background.
        trace = 0.002 * float(np.ptp(channel.astype(np.float32, copy=False)))
        foreground |= np.abs(channel.astype(np.float32) - constant) > trace
    background = 1.0 - float(foreground.mean())
    if background < LEAST_BACKGROUND or not foreground.any():
        return np.ones_like(foreground), None
    return fill_holes(_without_specks(foreground)), background


def fill_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and everything it encloses (background that does not touch the border)."""
    from scipy import ndimage

    # One pass of labelling is many times faster than scipy's binary_fill_holes on a volume.
    padded = np.pad(mask, 1)
    parts, _ = ndimage.label(~padded)
    return (parts != parts.flat[0])[(slice(1, -1),) * mask.ndim]


def _rim_value(channel: NDArray[Any]) -> float:
    """The most frequent value on the outer faces of ``(X, Y[, Z])``."""
    faces = [np.take(channel, (0, -1), axis=axis).ravel() for axis in range(channel.ndim)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(values[counts.argmax()])


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Only connected parts of at least 2 % of the largest one."""
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    return (sizes >= 0.02 * sizes.max())[parts] & mask
