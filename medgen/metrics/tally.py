"""Metrics of many scans together, with one scan in memory at a time.

A :class:`Tally` holds what a ranking of voxels is made of: at each level of the score, how many
normal and how many abnormal voxels lie there. Tallies add up, so that the voxels of any number of
scans can be ranked together after each scan was seen once. Pooled scores are rounded to 14
significant bits (relative error below 1e-4; a tenth of a per mille of the range near 1), which
bounds a tally to about a megabyte; metrics of one scan alone need no rounding.

Intervals come from a bootstrap that draws whole subjects with replacement. For them alone the
levels are merged into at most :data:`COARSE` bins that hold equally many voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgen.errors import InputError
from medgen.metrics.anomaly import Counts, ScoredScan
from medgen.scoring.findings import large_components
from medgen.scoring.maps import as_mask

# Bits of a float32's mantissa that pooled scores lose.
LOST_BITS = 10
# False-positive rate up to which AUPRO integrates (Bergmann et al. 2021).
PRO_LIMIT = 0.3
# Levels of a tally for the bootstrap.
COARSE = 2000
RESAMPLES_AT_A_TIME = 250

Samples = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tally:
    """How many voxels have which score.

    Attributes:
        levels: Distinct scores, from high to low, ``(K,)`` float32.
        true: Abnormal voxels at each, ``(K,)``.
        false: Normal voxels at each, ``(K,)``.
        overlap: Sum over lesions of the share of the lesion at each level, ``(K,)``.
        lesions: Number of lesions; regions of connected abnormal voxels.
    """

    levels: NDArray[np.float32]
    true: NDArray[np.int64]
    false: NDArray[np.int64]
    overlap: NDArray[np.float64]
    lesions: int

    @classmethod
    def empty(cls) -> Tally:
        """No voxels."""
        none = np.zeros(0, np.int64)
        return cls(np.zeros(0, np.float32), none, none, np.zeros(0), 0)

    @classmethod
    def of(
        cls,
        scores: ArrayLike,
        truth: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        rounded: bool = True,
    ) -> Tally:
        """Count the voxels of one scan.

        Args:
            scores: Higher is more abnormal, ``(X, Y[, Z])``.
            truth: True where abnormal, same shape.
            mask: Which voxels count, and within which lesions are regions; all if none is given.
            rounded: Round the scores, so that tallies stay small.

        Raises:
            InputError: If shapes differ or a score is not finite.
        """
        values = np.asarray(scores, dtype=np.float32)
        abnormal = as_mask(truth, values.shape)
        inside = np.ones(values.shape, bool) if mask is None else as_mask(mask, values.shape)
        labels, lesions = large_components(abnormal & inside, 1)
        region = labels[inside]
        values = values[inside]
        if not np.isfinite(values).all():
            raise InputError("the scores hold values inside the mask that are not finite")
        if rounded:
            values = _rounded(values)
        sizes = np.bincount(region, minlength=lesions + 1)
        share = np.zeros(lesions + 1)
        share[1:] = 1 / sizes[1:]
        levels, place = np.unique(-values, return_inverse=True)
        count = levels.size
        normal = region == 0
        return cls(
            levels=-levels,
            true=np.bincount(place[~normal], minlength=count).astype(np.int64),
            false=np.bincount(place[normal], minlength=count).astype(np.int64),
            overlap=_summed(place, [share[region]], count),
            lesions=lesions,
        )

    @classmethod
    def total(cls, tallies: Sequence[Tally]) -> Tally:
        """All scans together."""
        levels, place = np.unique(-np.concatenate([t.levels for t in tallies]), return_inverse=True)
        return cls(
            levels=-levels,
            true=_summed(place, [t.true for t in tallies], levels.size).astype(np.int64),
            false=_summed(place, [t.false for t in tallies], levels.size).astype(np.int64),
            overlap=_summed(place, [t.overlap for t in tallies], levels.size),
            lesions=sum(t.lesions for t in tallies),
        )

    def counts(self) -> Counts:
        """What ranks: see :class:`~medgen.metrics.anomaly.Counts`."""
        return Counts(np.cumsum(self.true), np.cumsum(self.false), self.levels)

    def aupro(self, limit: float = PRO_LIMIT) -> float:
        """Area under the per-region overlap curve up to a false-positive rate, divided by it.

        At each threshold, the share of every lesion that is found, averaged over lesions, so that
        small ones count as much as large ones (Bergmann et al., The MVTec Anomaly Detection
        Dataset, IJCV 2021). A perfect map has 1; one of noise about ``limit / 2``.

        Raises:
            InputError: Without a lesion, or without a normal voxel.
        """
        if not self.lesions or not self.false.sum():
            msg = "the truth holds no lesion inside the mask, or nothing else: AUPRO is undefined"
            raise InputError(msg)
        rate = np.concatenate([[0.0], np.cumsum(self.false) / self.false.sum()])
        overlap = np.concatenate([[0.0], np.cumsum(self.overlap) / self.lesions])
        ends = float(np.interp(limit, rate, overlap))
        within = rate < limit
        rate, overlap = np.append(rate[within], limit), np.append(overlap[within], ends)
        return float((np.diff(rate) * (overlap[1:] + overlap[:-1]) / 2).sum() / limit)


def aupro(scans: Sequence[ScoredScan], limit: float = PRO_LIMIT) -> float:
    """Area under the per-region overlap curve of scans in memory, exact; see :meth:`Tally.aupro`.

    Raises:
        InputError: Without a lesion, or without a normal voxel.
    """
    tallies = [Tally.of(s.scores, s.truth, s.mask, rounded=False) for s in scans]
    return Tally.total(tallies).aupro(limit)


def _summed(
    place: NDArray[np.int64], parts: Sequence[NDArray[Any]], count: int
) -> NDArray[np.float64]:
    """Values added up by their place."""
    found = np.bincount(place, weights=np.concatenate(parts), minlength=count)
    return np.asarray(found, dtype=np.float64)


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Towards 0, to 14 significant bits; keeps the order."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    kept = np.uint32(0xFFFFFFFF << LOST_BITS & 0xFFFFFFFF)
    # Adding 0 turns -0 into 0, which is the same score.
    return (bits & kept).view(np.float32) + np.float32(0)


@dataclass(frozen=True, eq=False)
class Resampled:
    """Metrics of many draws of subjects ``(R,)``; NaN where a draw leaves one undefined."""

    average_precision: Samples
    auroc: Samples
    best_dice: Samples


def draws(subjects: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each subject is drawn, ``(R, subjects)``: one table for all that is compared."""
    chance = np.full(subjects, 1 / subjects)
    return np.random.default_rng(seed).multinomial(subjects, chance, resamples).astype(np.float64)


def resample(tallies: Sequence[Tally], weights: NDArray[np.float64]) -> Resampled:
    """Metrics of the pooled voxels of drawn subjects.

    Args:
        tallies: Of each subject.
        weights: As :func:`draws` gives them, ``(R, len(tallies))``.
    """
    true, false = _coarse(tallies)
    parts = [
        _metrics(weights[first : first + RESAMPLES_AT_A_TIME], true, false)
        for first in range(0, len(weights), RESAMPLES_AT_A_TIME)
    ]
    return Resampled(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _metrics(
    weights: NDArray[np.float64], true: NDArray[np.float64], false: NDArray[np.float64]
) -> tuple[Samples, Samples, Samples]:
    """AUPRC, AUROC and best Dice of each draw."""
    gain, loss = weights @ true, weights @ false
    found, wrong = np.cumsum(gain, axis=1), np.cumsum(loss, axis=1)
    abnormal, normal = found[:, -1], wrong[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(found + wrong > 0, found / (found + wrong), 0)
        average = (gain * precision).sum(axis=1) / abnormal
        area = (loss * (found - gain / 2)).sum(axis=1) / (abnormal * normal)
        dice = (2 * found / (found + wrong + abnormal[:, None])).max(axis=1)
    undefined = abnormal == 0
    average[undefined] = area[undefined] = dice[undefined] = np.nan
    area[normal == 0] = np.nan
    return average, area, dice


def _coarse(tallies: Sequence[Tally]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Abnormal and normal voxels of each subject in common bins ``(subjects, bins)``."""
    whole = Tally.total(tallies)
    mass = whole.true / max(whole.true.sum(), 1) + whole.false / max(whole.false.sum(), 1)
    share = np.cumsum(mass) - mass / 2
    bins = np.minimum(share / max(mass.sum(), 1e-12) * COARSE, COARSE - 1).astype(np.int64)
    if whole.levels.size <= COARSE:
        bins = np.arange(whole.levels.size)
    count = int(bins.max(initial=0)) + 1
    true, false = np.zeros((2, len(tallies), count))
    for number, tally in enumerate(tallies):
        place = bins[np.searchsorted(-whole.levels, -tally.levels)]
        true[number] = np.bincount(place, weights=tally.true, minlength=count)
        false[number] = np.bincount(place, weights=tally.false, minlength=count)
    return true, false


def resampled_dice(parts: NDArray[np.int64], weights: NDArray[np.float64]) -> Samples:
    """Dice of drawn subjects at a fixed threshold.

    Args:
        parts: True positives, false positives and abnormal voxels of each subject,
            ``(subjects, 3)``.
        weights: As :func:`draws` gives them.
    """
    true, false, abnormal = (weights @ parts).T
    total = true + false + abnormal
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, 2 * true / total, np.nan)


def interval(samples: Samples, confidence: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval; None if the statistic is undefined in more than half of the draws."""
    known = samples[~np.isnan(samples)]
    if known.size < samples.size / 2 or not known.size:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def defined(metric: Callable[[], float]) -> tuple[float | None, str]:
    """A metric, or None and why it is undefined."""
    try:
        return metric(), ""
    except InputError as error:
        return None, error.message
