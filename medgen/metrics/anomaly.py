"""How good is an anomaly map? Each metric with its definition, exact at every threshold.

Voxel metrics treat the voxels of the mask as one list; the rule is always ``score >= threshold``
and equal scores enter together, so no result depends on the order of voxels. A metric that is
undefined (no abnormal voxel, or nothing else) is an error, never a silent 0 or 1.

Lesion metrics count connected regions (26 neighbours in 3-D, 8 in 2-D). A finding that touches
lesions finds them if at least a tenth of its voxels is in lesions, and is false otherwise: one
that covers the whole brain finds nothing. (Baumgartner et al., "nnDetection", MICCAI 2021, ask for
a tenth too, there of intersection over union.) A level that the whole region reaches says nothing
of any place, so it marks none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgen.errors import InputError
from medgen.scoring.findings import large_components
from medgen.scoring.maps import as_mask
from medgen.scoring.sweep import Sweep, sweep

# Share of a finding that must be in lesions.
TRUE_SHARE = 0.1
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
    """False findings, and their volume."""

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
    """Connected findings of which less than a tenth is in lesions: their number and volume.

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
        inside = np.bincount(labels[as_mask(truth, found.shape)], minlength=count + 1)
        sizes[(inside > 0) & (inside >= TRUE_SHARE * sizes)] = 0
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
        changed_at: Thresholds at which a lesion is found or lost again, ``(E,)``.
        changed: Which lesion, ``(E,)``.
        steps: 1 where it is found, -1 where it is lost, ``(E,)``.
        lesion_volumes_mm3: Volume of each lesion, ``(L,)``.
    """

    thresholds: NDArray[np.float64]
    false_positives_per_scan: NDArray[np.float64]
    changed_at: NDArray[np.float64]
    changed: NDArray[np.int64]
    steps: NDArray[np.int64]
    lesion_volumes_mm3: NDArray[np.float64]

    def found_at(self, threshold: float) -> NDArray[np.bool_]:
        """Which lesions are found at a threshold, ``(L,)``."""
        reached, number = self.changed_at >= threshold, len(self.lesion_volumes_mm3)
        found: NDArray[np.bool_] = (
            np.bincount(self.changed[reached], self.steps[reached], minlength=number) > 0
        )
        return found

    @cached_property
    def found(self) -> NDArray[np.int64]:
        """How many lesions are found at each threshold, ``(K,)``."""
        falling = np.argsort(-self.changed_at)
        total = np.append(0, np.cumsum(self.steps[falling]))
        return total[np.searchsorted(-self.changed_at[falling], -self.thresholds, side="right")]

    def threshold_at(self, false_positives_per_scan: float) -> float:
        """Where most lesions are found with at most so many false findings (else infinity).

        Only thresholds down to the first with more false findings are looked at; of equal ones the
        highest is taken.
        """
        broken = np.flatnonzero(self.false_positives_per_scan > false_positives_per_scan)
        allowed = broken[0] if broken.size else len(self.thresholds)
        if not allowed:
            return float("inf")
        return float(self.thresholds[self.found[:allowed].argmax()])

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
        return float(self.found_at(self.threshold_at(false_positives_per_scan))[chosen].mean())

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
        sweep: False findings, and when each lesion is found.
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
    scores = np.asarray(scan.scores)
    lesions, number = large_components(as_mask(scan.truth, scores.shape), 1)
    sizes = np.bincount(lesions.ravel(), minlength=number + 1)[1:]
    inside = as_mask(scan.mask, scores.shape)
    found = sweep(
        scores,
        inside & (scores > scores[inside].min(initial=np.inf)),
        minimum_voxels=minimum_volume_mm3 / scan.voxel_volume_mm3,
        lesions=lesions,
        true_share=TRUE_SHARE,
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
    first = np.cumsum([0, *(one.lesions for one in sweeps)])
    stop = max((s.levels[-1] for s in sweeps if not s.complete), default=-np.inf)
    thresholds = np.unique(np.concatenate([s.levels for s in sweeps]))[::-1]
    thresholds = thresholds[thresholds >= stop]
    return Froc(
        thresholds=thresholds,
        false_positives_per_scan=np.mean([s.at(thresholds)[0] for s in sweeps], axis=0),
        changed_at=np.concatenate([one.changed_at for one in sweeps]),
        changed=np.concatenate([one.changed + n for n, one in zip(first, sweeps, strict=False)]),
        steps=np.concatenate([one.steps for one in sweeps]),
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
