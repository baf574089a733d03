"""How good is an anomaly map? Each metric with its definition, exact at every threshold.

Voxel metrics treat the voxels of the mask as one list; the rule is always ``score >= threshold``
and equal scores enter together, so no result depends on the order of voxels. A metric that is
undefined (no abnormal voxel, or nothing else) is an error, never a silent 0 or 1.

Lesion metrics count connected regions (26 neighbours in 3-D, 8 in 2-D). A lesion is detected if a
finding touches it; a finding is false if it touches no lesion. A finding that covers the whole
brain would detect everything, so false volume belongs beside every sensitivity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgen.errors import InputError
from medgen.scoring.findings import large_components
from medgen.scoring.maps import as_mask
from medgen.scoring.sweep import Sweep, sweep

# Lesion volumes (mm3) that part small, middle and large in multiple sclerosis studies.
SIZE_EDGES_MM3 = (100.0, 1000.0)


class AveragePrecision(NamedTuple):
    """Area under the precision-recall curve, and what a random map would reach."""

    value: float
    prevalence: float


class BestDice(NamedTuple):
    """Highest Dice over all thresholds: optimistic, as the truth chose the threshold."""

    value: float
    threshold: float


class FalsePositives(NamedTuple):
    """Findings that touch no lesion, and their volume."""

    findings: int
    volume_mm3: float


class Interval(NamedTuple):
    """A statistic and its bootstrap percentile interval."""

    estimate: float
    low: float
    high: float


class Counts(NamedTuple):
    """True and false positives at every threshold of ``levels``, from the highest down, ``(K,)``.

    All that a metric of a ranking needs; both classes are in it, or the metric is undefined.
    """

    true: NDArray[np.int64]
    false: NDArray[np.int64]
    levels: NDArray[Any]

    def average_precision(self) -> AveragePrecision:
        """See :func:`average_precision`."""
        self._require_abnormal()
        true, false = self.true, self.false
        gain = np.diff(true, prepend=0) / true[-1]
        value = float(np.sum(gain * true / (true + false)))
        return AveragePrecision(value, float(true[-1] / (true[-1] + false[-1])))

    def auroc(self) -> float:
        """See :func:`auroc`."""
        self._require_abnormal()
        true, false = self.true, self.false
        if not false[-1]:
            msg = "the truth holds no normal voxel inside the mask: the AUROC is undefined"
            raise InputError(msg)
        higher = np.concatenate([[0], true[:-1]])
        pairs = np.sum(np.diff(false, prepend=0) * (higher + true) / 2)
        return float(pairs / (true[-1] * false[-1]))

    def best_dice(self) -> BestDice:
        """See :func:`best_dice`."""
        self._require_abnormal()
        values = 2 * self.true / (self.true + self.false + self.true[-1])
        best = int(values.argmax())
        return BestDice(float(values[best]), float(self.levels[best]))

    def dice_at(self, threshold: float) -> float:
        """Dice of what reaches a threshold; 1 if both it and the truth are empty."""
        above = int(np.searchsorted(-self.levels, -threshold, side="right"))
        true = int(self.true[above - 1]) if above else 0
        false = int(self.false[above - 1]) if above else 0
        total = true + false + int(self.true[-1])
        return 2 * true / total if total else 1.0

    def _require_abnormal(self) -> None:
        if not self.true.size or not self.true[-1]:
            msg = "the truth holds no abnormal voxel inside the mask: this metric is undefined"
            raise InputError(msg, "Leave healthy scans out, or count false positives on them.")


def count(scores: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> Counts:
    """True and false positives at each distinct score; equal scores enter together.

    Args:
        scores: Higher is more abnormal, any shape.
        truth: True where abnormal, same shape.
        mask: Which voxels count; all if none is given.

    Raises:
        InputError: If shapes differ or a score is NaN.
    """
    values, abnormal = _inside(scores, truth, mask)
    order = np.argsort(values, kind="stable")[::-1]
    values, abnormal = values[order], abnormal[order]
    last = np.append(np.flatnonzero(values[1:] != values[:-1]), values.size - 1)
    last = last[last >= 0]
    true = np.cumsum(abnormal, dtype=np.int64)[last]
    return Counts(true, last + 1 - true, values[last])


def _inside(
    scores: ArrayLike, truth: ArrayLike, mask: ArrayLike | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Scores and truth as two lists of the mask's voxels."""
    values = np.asarray(scores)
    abnormal = as_mask(truth, values.shape)
    inside = np.ones(values.shape, bool) if mask is None else as_mask(mask, values.shape)
    values = values[inside]
    if values.dtype.kind == "f" and np.isnan(values).any():
        msg = "the scores hold NaN inside the mask"
        raise InputError(msg)
    return values, abnormal[inside]


def average_precision(
    scores: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None
) -> AveragePrecision:
    """AUPRC as average precision: the sum over thresholds of (gain in recall) x precision.

    A map of noise scores the prevalence (the share of abnormal voxels), which is returned with it.

    Args:
        scores: Higher is more abnormal, any shape.
        truth: True where abnormal, same shape.
        mask: Which voxels count; all if none is given.

    Raises:
        InputError: If no voxel is abnormal, shapes differ, or a score is NaN.
    """
    return count(scores, truth, mask).average_precision()


def auroc(scores: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Chance that an abnormal voxel (or scan) outscores a normal one, a tie counting one half.

    Arguments and errors as for :func:`average_precision`; also undefined if nothing is normal.
    """
    return count(scores, truth, mask).auroc()


def dice(prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Twice the overlap over the sum of both volumes; 1 if both are empty (nothing to find, nothing
    found).

    Args:
        prediction: True where a finding is, such as ``scores >= threshold``.
        truth: True where abnormal, same shape.
        mask: Which voxels count; all if none is given.
    """
    found, abnormal = _inside(np.asarray(prediction).astype(bool), truth, mask)
    total = int(found.sum()) + int(abnormal.sum())
    return 2 * int((found & abnormal).sum()) / total if total else 1.0


def best_dice(scores: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> BestDice:
    """Highest Dice over all thresholds and the (highest) threshold that reaches it.

    The truth picks the threshold, so this is an upper bound for any real use: label it as such.
    Arguments and errors as for :func:`average_precision`.
    """
    return count(scores, truth, mask).best_dice()


def false_positives(
    prediction: ArrayLike,
    truth: ArrayLike | None,
    voxel_volume_mm3: float,
    minimum_volume_mm3: float = 0.0,
) -> FalsePositives:
    """Connected findings that touch no lesion: their number and volume.

    Args:
        prediction: Findings, ``(X, Y[, Z])``.
        truth: Lesions, same shape; none on a healthy scan.
        voxel_volume_mm3: Volume of one voxel.
        minimum_volume_mm3: Smaller regions are no findings.
    """
    found = np.asarray(prediction).astype(bool)
    labels, count = large_components(found, minimum_volume_mm3 / voxel_volume_mm3)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    if truth is not None:
        sizes[np.unique(labels[as_mask(truth, found.shape)])] = 0
    return FalsePositives(int((sizes > 0).sum()), float(sizes.sum() * voxel_volume_mm3))


@dataclass(frozen=True, eq=False)
class ScoredScan:
    """A map with its truth: ``scores``, ``truth`` and ``mask`` ``(X, Y[, Z])``."""

    scores: ArrayLike
    truth: ArrayLike
    mask: ArrayLike
    voxel_volume_mm3: float


@dataclass(frozen=True, eq=False)
class Froc:
    """Free-response curve: how many lesions are found for how many false findings.

    Attributes:
        thresholds: From high to low, ``(K,)``.
        false_positives_per_scan: Mean number of false findings at each of them, ``(K,)``.
        detected_at: For each lesion, the highest threshold at which it is detected (minus
            infinity: below the curve's end), ``(L,)``.
        lesion_volumes_mm3: Volume of each lesion, ``(L,)``.
    """

    thresholds: NDArray[np.float64]
    false_positives_per_scan: NDArray[np.float64]
    detected_at: NDArray[np.float64]
    lesion_volumes_mm3: NDArray[np.float64]

    def threshold_at(self, false_positives_per_scan: float) -> float:
        """The lowest threshold that keeps to this many, it and every higher one (else infinity)."""
        broken = np.flatnonzero(self.false_positives_per_scan > false_positives_per_scan)
        allowed = self.thresholds[: broken[0]] if broken.size else self.thresholds
        return float(allowed[-1]) if allowed.size else float("inf")

    def sensitivity_at(
        self,
        false_positives_per_scan: float,
        volume_range_mm3: tuple[float, float] = (0.0, float("inf")),
    ) -> float:
        """Share of the lesions with low <= volume < high that are detected; NaN without any."""
        low, high = volume_range_mm3
        chosen = (self.lesion_volumes_mm3 >= low) & (self.lesion_volumes_mm3 < high)
        if not chosen.any():
            return float("nan")
        return float(
            (self.detected_at[chosen] >= self.threshold_at(false_positives_per_scan)).mean()
        )

    def by_size(
        self, false_positives_per_scan: float, edges_mm3: Sequence[float] = SIZE_EDGES_MM3
    ) -> dict[tuple[float, float], tuple[float, int]]:
        """Sensitivity and number of lesions in each range of volumes that the edges part."""
        edges = [0.0, *edges_mm3, float("inf")]
        strata = {}
        for low, high in pairwise(edges):
            volumes = self.lesion_volumes_mm3
            count = int(((volumes >= low) & (volumes < high)).sum())
            sensitivity = self.sensitivity_at(false_positives_per_scan, (low, high))
            strata[low, high] = (sensitivity, count)
        return strata


class LesionSweep(NamedTuple):
    """One scan's part of a free-response curve: its findings at every threshold, and its lesions.

    Attributes:
        sweep: Findings that touch no lesion, and when each lesion is detected.
        lesion_volumes_mm3: Volume of each lesion, ``(L,)``.
    """

    sweep: Sweep
    lesion_volumes_mm3: NDArray[np.float64]


def lesion_sweep(
    scan: ScoredScan,
    *,
    minimum_volume_mm3: float = 0.0,
    most_findings: float = np.inf,
    most_voxels: float = np.inf,
) -> LesionSweep:
    """Find the lesions of one scan at every threshold; it stops beyond so many false findings.

    Args:
        scan: Its map with the truth.
        minimum_volume_mm3: Smaller findings are dropped before they can detect or be false.
        most_findings: Stop after more false findings than this.
        most_voxels: Stop after more voxels in false findings than this.
    """
    lesions, number = large_components(as_mask(scan.truth, np.shape(scan.scores)), 1)
    sizes = np.bincount(lesions.ravel(), minlength=number + 1)[1:]
    found = sweep(
        scan.scores,
        scan.mask,
        minimum_voxels=minimum_volume_mm3 / scan.voxel_volume_mm3,
        lesions=lesions,
        most_findings=most_findings,
        most_voxels=most_voxels,
    )
    return LesionSweep(found, np.asarray(sizes * scan.voxel_volume_mm3, dtype=np.float64))


def froc_of(scans: Sequence[LesionSweep]) -> Froc:
    """The curve of scans that were swept one after the other, with the limits of all together.

    Raises:
        InputError: Without a lesion in any of them.
    """
    if not any(scan.lesion_volumes_mm3.size for scan in scans):
        msg = f"no lesion in {len(scans)} scans: lesion sensitivity is undefined"
        raise InputError(msg, "Count false positives on healthy scans instead.")
    sweeps = [scan.sweep for scan in scans]
    stop = max((s.levels[-1] for s in sweeps if not s.complete), default=-np.inf)
    thresholds = np.unique(np.concatenate([s.levels for s in sweeps]))[::-1]
    thresholds = thresholds[thresholds >= stop]
    return Froc(
        thresholds=thresholds,
        false_positives_per_scan=np.mean([s.at(thresholds)[0] for s in sweeps], axis=0),
        detected_at=np.concatenate([s.detected_at for s in sweeps]),
        lesion_volumes_mm3=np.concatenate([scan.lesion_volumes_mm3 for scan in scans]),
    )


def froc(
    scans: Sequence[ScoredScan],
    *,
    minimum_volume_mm3: float = 0.0,
    most_false_positives_per_scan: float = 10.0,
) -> Froc:
    """Lesion sensitivity against false findings per scan, exact at every threshold.

    Every connected region of the truth is a lesion, also where it leaves the mask (findings do
    not, so a lesion wholly outside is missed).

    Args:
        scans: Maps with their truth, pooled: one threshold for all.
        minimum_volume_mm3: Smaller findings are dropped before they can detect or be false.
        most_false_positives_per_scan: The curve ends just beyond this number.

    Raises:
        InputError: Without scans or without a lesion in any of them.
    """
    most = most_false_positives_per_scan * len(scans)
    return froc_of(
        [
            lesion_sweep(scan, minimum_volume_mm3=minimum_volume_mm3, most_findings=most)
            for scan in scans
        ]
    )


def bootstrap_interval(
    values: ArrayLike,
    *,
    subjects: Sequence[Any] | None = None,
    statistic: Callable[[NDArray[Any]], float] = np.mean,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic, drawing whole subjects with replacement.

    Args:
        values: One row per measurement, ``(N, ...)``.
        subjects: Who each row belongs to ``(N,)``; rows of one subject stay together. Every row is
            its own subject if none is given.
        statistic: From rows ``(M, ...)`` to a number.
        confidence: Share of resamples inside the interval.
        resamples: How many are drawn.
        seed: Same seed, same interval.

    Raises:
        InputError: With fewer than two subjects: nothing can be said about others.
    """
    rows = np.asarray(values)
    names = np.arange(len(rows)) if subjects is None else np.asarray(subjects)
    if len(names) != len(rows):
        msg = f"every row needs a subject: {len(rows)} rows, {len(names)} subjects"
        raise InputError(msg)
    _, owner = np.unique(names, return_inverse=True)
    groups = [np.flatnonzero(owner == number) for number in range(owner.max(initial=-1) + 1)]
    if len(groups) < 2:
        msg = f"a bootstrap interval needs at least two subjects, got {len(groups)}"
        raise InputError(msg)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(groups), size=(resamples, len(groups)))
    estimates = [statistic(rows[np.concatenate([groups[i] for i in draw])]) for draw in drawn]
    tail = (1 - confidence) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return Interval(float(statistic(rows)), float(low), float(high))
