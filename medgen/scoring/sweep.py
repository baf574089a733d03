"""Every threshold at once: how many findings a map has, from its highest value down.

Voxels join in the order of their value and connected ones merge (union-find), so the counts are
exact at every threshold, not at a chosen few. The count is not monotone: findings are born, grow
and merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgen.scoring.maps import as_mask, bounding_box

# Voxels taken at a time from the sorted list, so that an early stop costs little.
CHUNK = 1 << 14


@dataclass(frozen=True)
class Sweep:
    """Findings of one map at every threshold that the sweep visited.

    Attributes:
        levels: Thresholds ``(K,)``, the map's distinct values from high to low.
        false_findings: Findings that touch no true lesion at each of them, ``(K,)``.
        false_voxels: Voxels in these findings, ``(K,)``.
        detected_at: For each true lesion, the highest threshold at which a finding touches it
            (minus infinity if none did), ``(L,)``.
        complete: False if the sweep stopped at its limit, at the last level.
    """

    levels: NDArray[np.float64]
    false_findings: NDArray[np.int64]
    false_voxels: NDArray[np.int64]
    detected_at: NDArray[np.float64]
    complete: bool

    def at(self, thresholds: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """False findings and their voxels at these thresholds (none lower than visited)."""
        position = np.searchsorted(-self.levels, -thresholds, side="right")
        findings = np.concatenate([[0], self.false_findings])
        voxels = np.concatenate([[0], self.false_voxels])
        return findings[position], voxels[position]


def sweep(
    scores: ArrayLike,
    mask: ArrayLike,
    *,
    minimum_voxels: float = 1.0,
    lesions: ArrayLike | None = None,
    most_findings: float = np.inf,
    most_voxels: float = np.inf,
) -> Sweep:
    """Count the findings of a map at every threshold, from the highest value down.

    Args:
        scores: Score map ``(X, Y[, Z])``.
        mask: Where findings may be.
        minimum_voxels: Smaller connected regions (26 or 8 neighbours) are no findings.
        lesions: True lesions, labelled from 1 on, 0 elsewhere; a finding that touches one is not
            false.
        most_findings: Stop after the first level with more false findings than this.
        most_voxels: Stop after the first level with more voxels in false findings than this.

    Returns:
        Exact counts for the rule ``score >= level``.
    """
    values = np.asarray(scores, dtype=np.float64)
    inside = as_mask(mask, values.shape)
    truth = np.zeros(values.shape, dtype=np.int64) if lesions is None else np.asarray(lesions)
    lesion_count = int(truth.max(initial=0))  # also those that the mask leaves out
    box = bounding_box(inside) if inside.any() else (slice(0),) * inside.ndim
    # A rim of one voxel keeps every neighbour inside the array.
    values, inside, truth = (np.pad(part[box], 1) for part in (values, inside, truth))
    voxels = np.flatnonzero(inside)
    voxels = voxels[np.argsort(-values.ravel()[voxels], kind="stable")]
    levels = values.ravel()[voxels]
    last_of_level = np.append(levels[1:] != levels[:-1], True) if levels.size else levels

    forest = _Forest(values.shape, minimum_voxels, lesion_count)
    counts: list[tuple[float, int, int]] = []
    for start in range(0, len(voxels), CHUNK):
        part = slice(start, start + CHUNK)
        columns = (voxels[part], truth.ravel()[voxels[part]], levels[part], last_of_level[part])
        for voxel, lesion, level, last in zip(*(c.tolist() for c in columns), strict=True):
            forest.add(voxel, lesion, level)
            if last:
                counts.append((level, forest.findings, forest.voxels))
                if forest.findings > most_findings or forest.voxels > most_voxels:
                    return _as_sweep(counts, forest, complete=False)
    return _as_sweep(counts, forest, complete=True)


class _Forest:
    """Connected regions that grow voxel by voxel, and what is known of each at its root."""

    def __init__(self, shape: tuple[int, ...], minimum_voxels: float, lesions: int) -> None:
        strides = np.cumprod((1, *shape[:0:-1]))[::-1].tolist()
        steps = product((-1, 0, 1), repeat=len(shape))
        self.neighbours = [
            sum(step * stride for step, stride in zip(move, strides, strict=True))
            for move in steps
            if any(move)
        ]
        # A voxel volume is a rounded product: 10 mm3 of 0.1 mm3 voxels must not need 101 voxels.
        self.minimum = max(minimum_voxels * (1 - 1e-9), 1)
        self.parent = [-1] * int(np.prod(shape))
        self.size: dict[int, int] = {}
        self.touched: dict[int, set[int]] = {}
        self.detected_at = [-np.inf] * lesions
        self.findings = 0
        self.voxels = 0

    def add(self, voxel: int, lesion: int, level: float) -> None:
        """Let a voxel in and merge the regions it connects."""
        parent, size, root = self.parent, self.size, voxel
        parent[voxel] = voxel
        size[voxel] = 1
        if lesion:
            self.touched[voxel] = {lesion}
        for step in self.neighbours:
            region = voxel + step
            if parent[region] < 0:
                continue
            while parent[region] != region:  # written out here: this runs millions of times
                parent[region] = region = parent[parent[region]]
            if region == root:
                continue
            self._count(region, -1)
            if size[region] > size[root]:
                root, region = region, root
            parent[region] = root
            size[root] += size.pop(region)
            if region in self.touched:
                self.touched.setdefault(root, set()).update(self.touched.pop(region))
        self._count(root, +1)
        if self.size[root] >= self.minimum:
            for number in self.touched.get(root, ()):
                self.detected_at[number - 1] = max(self.detected_at[number - 1], level)

    def _count(self, root: int, sign: int) -> None:
        """Add or take away a region from the false findings, if it is one."""
        if self.size[root] >= self.minimum and root not in self.touched:
            self.findings += sign
            self.voxels += sign * self.size[root]


def _as_sweep(counts: list[tuple[float, int, int]], forest: _Forest, *, complete: bool) -> Sweep:
    levels, findings, voxels = np.array(counts, dtype=np.float64).reshape(-1, 3).T
    return Sweep(
        levels=levels,
        false_findings=findings.astype(np.int64),
        false_voxels=voxels.astype(np.int64),
        detected_at=np.array(forest.detected_at, dtype=np.float64),
        complete=complete,
    )
