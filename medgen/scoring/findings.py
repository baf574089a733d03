"""Connected findings: where the map stays above a threshold, how large, and where to look."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medgen.errors import InputError
from medgen.scoring.maps import as_mask, bounding_box
from medgen.volume import Geometry


@dataclass(frozen=True)
class Finding:
    """One connected region above the threshold. All numbers are plain Python numbers.

    Attributes:
        label: 1 for the finding with the highest peak, then 2, ...
        volume_mm3: Voxels times the volume of a voxel.
        peak: Highest map value in the finding.
        mean: Mean map value in the finding.
        centroid_voxel: Mean voxel index, one per axis (may lie outside a curved finding).
        centroid_mm: The same point in RAS+ mm ``(x, y, z)``.
        extent_mm: Edges of the bounding box along the array axes.
        slice_index: For each array axis, the slice with the largest cross-section (the first of
            equals): the slice to look at.
        bbox_voxel: Bounding box, ``(first, last + 1)`` per array axis.
    """

    label: int
    volume_mm3: float
    peak: float
    mean: float
    centroid_voxel: tuple[float, ...]
    centroid_mm: tuple[float, float, float]
    extent_mm: tuple[float, ...]
    slice_index: dict[int, int]
    bbox_voxel: tuple[tuple[int, int], ...]


def find(
    scores: ArrayLike,
    geometry: Geometry,
    threshold: float,
    mask: ArrayLike | None = None,
    minimum_volume_mm3: float = 0.0,
) -> tuple[NDArray[np.bool_], list[Finding]]:
    """The mask of all findings, and the findings; see :func:`find_regions`."""
    labels, findings = find_regions(scores, geometry, threshold, mask, minimum_volume_mm3)
    return labels > 0, findings


def find_regions(
    scores: ArrayLike,
    geometry: Geometry,
    threshold: float,
    mask: ArrayLike | None = None,
    minimum_volume_mm3: float = 0.0,
) -> tuple[NDArray[np.int32], list[Finding]]:
    """Connected regions (26 neighbours in 3-D, 8 in 2-D) where the map reaches the threshold.

    Args:
        scores: Score map ``(X, Y[, Z])``.
        geometry: The map's grid.
        threshold: A voxel belongs to a finding if its score is at least this.
        mask: Where findings may be; everywhere if none is given.
        minimum_volume_mm3: Smaller regions are dropped.

    Returns:
        The label of each voxel's finding, 0 where there is none; and the findings: highest peak
        first, then largest volume, then position in the array.

    Raises:
        InputError: If the map does not fit the grid or the mask, or the threshold is not a number.
    """
    values = np.asarray(scores)
    if values.shape != geometry.shape:
        msg = f"the map must have the grid's shape {geometry.shape}, got {values.shape}"
        raise InputError(msg)
    if np.isnan(threshold):
        msg = "the threshold must be a number, got NaN"
        raise InputError(msg)
    above = values >= threshold
    if mask is not None:
        above &= as_mask(mask, values.shape)
    found = np.zeros(values.shape, dtype=np.int32)
    if not above.any():
        return found, []
    box = bounding_box(above)
    labels, kept = large_components(above[box], minimum_volume_mm3 / geometry.voxel_volume_mm3)
    offset = np.array([edge.start for edge in box])
    regions = ndimage.find_objects(labels)
    findings = [
        replace(
            _measure(
                labels[regions[i]] == i + 1, values[box][regions[i]], regions[i], offset, geometry
            ),
            label=i + 1,
        )
        for i in range(kept)
    ]
    findings.sort(key=lambda finding: (-finding.peak, -finding.volume_mm3))
    ranks = np.zeros(kept + 1, dtype=np.int32)
    ranks[[finding.label for finding in findings]] = np.arange(1, kept + 1)
    found[box] = ranks[labels]
    return found, [replace(finding, label=rank) for rank, finding in enumerate(findings, start=1)]


def large_components(
    above: NDArray[np.bool_], minimum_voxels: float
) -> tuple[NDArray[np.int32], int]:
    """Label the fully connected components of at least ``minimum_voxels`` voxels from 1 on.

    Returns:
        Labels ``(X, Y[, Z])`` in array order, 0 elsewhere, and how many there are.
    """
    labels, count = ndimage.label(above, structure=np.ones((3,) * above.ndim, dtype=bool))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    # A voxel volume is a rounded product: 10 mm3 of 0.1 mm3 voxels must not need 101 voxels.
    keep = sizes >= minimum_voxels * (1 - 1e-9)
    keep[0] = False
    renumbered = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return renumbered[labels], int(keep.sum())


def _measure(
    region: NDArray[np.bool_],
    values: NDArray[np.floating],
    box: tuple[slice, ...],
    offset: NDArray[np.int_],
    geometry: Geometry,
) -> Finding:
    """Measure one finding inside its bounding box, which starts at ``offset`` plus ``box``."""
    start = offset + [edge.start for edge in box]
    stop = start + region.shape
    voxels = np.argwhere(region)
    centroid = start + voxels.mean(axis=0)
    inside = values[region].astype(np.float64)
    areas = [np.bincount(voxels[:, axis]) for axis in range(region.ndim)]
    x, y, z = geometry.to_world(centroid).tolist()
    return Finding(
        label=0,
        volume_mm3=len(voxels) * geometry.voxel_volume_mm3,
        peak=float(inside.max()),
        mean=float(inside.mean()),
        centroid_voxel=tuple(centroid.tolist()),
        centroid_mm=(x, y, z),
        extent_mm=tuple((np.array(region.shape) * geometry.spacing_mm).tolist()),
        slice_index={axis: int(start[axis] + area.argmax()) for axis, area in enumerate(areas)},
        bbox_voxel=tuple(zip(start.tolist(), stop.tolist(), strict=True)),
    )
