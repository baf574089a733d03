"""Every threshold at once: how many findings a map has, from its highest value down.

Voxels join in the order of their value and connected ones merge (union-find), so the counts are
exact at every threshold, not at a chosen few. No count is monotone: findings are born, grow and
merge, and a lesion that was found is lost when its finding has grown far beyond it.
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
        false_findings: False findings at each of them, ``(K,)``.
        false_voxels: Voxels in these findings, ``(K,)``.
        changed_at: Levels at which a true lesion is found or lost again, falling, ``(E,)``.
        changed: Which lesion, from 0 on, ``(E,)``.
        steps: 1 where it is found, -1 where it is lost, ``(E,)``.
        lesions: How many there are.
        complete: False if the sweep stopped at its limit, at the last level.
    """

    levels: NDArray[np.float64]
    false_findings: NDArray[np.int64]
    false_voxels: NDArray[np.int64]
    changed_at: NDArray[np.float64]
    changed: NDArray[np.int64]
    steps: NDArray[np.int64]
    lesions: int
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
    true_share: float = 0.0,
    most_findings: float = np.inf,
    most_voxels: float = np.inf,
) -> Sweep:
    """Count the findings of a map at every threshold, from the highest value down.

    Args:
        scores: Score map ``(X, Y[, Z])``.
        mask: Where findings may be.
        minimum_voxels: Smaller connected regions (26 or 8 neighbours) are no findings.
        lesions: True lesions, labelled from 1 on, 0 elsewhere.
        true_share: A finding that touches lesions finds them if at least this share of its voxels
            is in lesions; otherwise it is false, like one that touches none.
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

    forest = _Forest(values.shape, minimum_voxels, lesion_count, true_share)
    counts: list[tuple[float, int, int]] = []
    for start in range(0, len(voxels), CHUNK):
        part = slice(start, start + CHUNK)
        columns = (voxels[part], truth.ravel()[voxels[part]], levels[part], last_of_level[part])
        for voxel, lesion, level, last in zip(*(c.tolist() for c in columns), strict=True):
            forest.add(voxel, lesion)
            if last:
                forest.close(level)
                counts.append((level, forest.findings, forest.voxels))
                if forest.findings > most_findings or forest.voxels > most_voxels:
                    return _as_sweep(counts, forest, complete=False)
    return _as_sweep(counts, forest, complete=True)


class _Forest:
    """Connected regions that grow voxel by voxel, and what is known of each at its root."""

    def __init__(
        self, shape: tuple[int, ...], minimum_voxels: float, lesions: int, true_share: float
    ) -> None:
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
        self.true_share = true_share
        # By root, of regions that touch a lesion: voxels in lesions, which, and which are found.
        self.true: dict[int, int] = {}
        self.touched: dict[int, set[int]] = {}
        self.found: dict[int, set[int]] = {}
        self.finders = [0] * lesions
        self.seen = [False] * lesions
        self.moved: set[int] = set()  # regions that touch a lesion and grew in this level
        self.stirred: set[int] = set()  # lesions whose finders changed in it
        self.changes: list[tuple[float, int, int]] = []
        self.findings = 0
        self.voxels = 0

    def add(self, voxel: int, lesion: int) -> None:
        """Let a voxel in and merge the regions it connects."""
        parent, size, root = self.parent, self.size, voxel
        parent[voxel] = voxel
        size[voxel] = 1
        if lesion:
            self.touched[voxel] = {lesion - 1}
            self.true[voxel] = 1
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
                self.true[root] = self.true.get(root, 0) + self.true.pop(region)
                self._release(region)
        self._count(root, +1)
        if root in self.touched:
            self.moved.add(root)

    def close(self, level: float) -> None:
        """All voxels of a level are in: see which lesions are found now, and which no more."""
        for root in self.moved:
            if self.parent[root] != root:
                continue  # it is part of another region by now, which has moved too
            touched = self.touched[root] if self._finds(root) else set()
            if len(self.found.get(root, ())) != len(touched):
                self._release(root)
                if touched:
                    self.found[root] = set(touched)
                    for lesion in touched:
                        self.finders[lesion] += 1
                    self.stirred |= touched
        self.moved.clear()
        for lesion in sorted(self.stirred):
            seen = self.finders[lesion] > 0
            if seen != self.seen[lesion]:
                self.seen[lesion] = seen
                self.changes.append((level, lesion, 1 if seen else -1))
        self.stirred.clear()

    def _release(self, root: int) -> None:
        """A region finds nothing any more."""
        lesions = self.found.pop(root, set())
        for lesion in lesions:
            self.finders[lesion] -= 1
        self.stirred |= lesions

    def _finds(self, root: int) -> bool:
        """Whether a region that touches lesions is a finding, and a true one."""
        size = self.size[root]
        return size >= self.minimum and self.true[root] >= self.true_share * size

    def _count(self, root: int, sign: int) -> None:
        """Add or take away a region from the false findings, if it is one."""
        size = self.size[root]
        if size < self.minimum or (root in self.touched and self._finds(root)):
            return
        self.findings += sign
        self.voxels += sign * size


def _as_sweep(counts: list[tuple[float, int, int]], forest: _Forest, *, complete: bool) -> Sweep:
    levels, findings, voxels = np.array(counts, dtype=np.float64).reshape(-1, 3).T
    changed_at, changed, steps = np.array(forest.changes, dtype=np.float64).reshape(-1, 3).T
    return Sweep(
        levels=levels,
        false_findings=findings.astype(np.int64),
        false_voxels=voxels.astype(np.int64),
        changed_at=changed_at,
        changed=changed.astype(np.int64),
        steps=steps.astype(np.int64),
        lesions=len(forest.seen),
        complete=complete,
    )
