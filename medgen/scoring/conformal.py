"""What n normal scans can promise about the next one, whatever the distribution of their scores.

Split conformal prediction (Vovk, Gammerman and Shafer 2005; for outliers: Bates et al. 2023). If
the next normal score is exchangeable with the n measured ones, its rank among them is uniform, so

    p = (1 + #{normals that score as high}) / (n + 1)    has    P(p <= a) <= a

and the k-th lowest of them, k = ceil((1 - a) (n + 1)), is exceeded with a probability of at most
``a``. That needs k <= n, so at least ceil(1 / a) - 1 normals. Both hold on average over draws of
the normals. For the ones at hand the true rate varies: it follows a Beta distribution with
parameters n + 1 - k and k (Vovk 2012), of which the upper limit is given.

Several scans of a person are not exchangeable with those of others. The highest score of each
person is, and a single scan of the next person scores at most as high as his highest would.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from medgen.errors import InputError

# 1 / 0.05 is not exactly 20 in binary: a share that is a hair off must not cost a scan.
SLACK = 1e-9
DRIFT_LEVEL = 0.01


def p_values(normals: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Conformal p-value of each score: ``(1 + normals that score as high) / (n + 1)``, 0..1.

    Args:
        normals: Scores of normal scans ``(n,)``.
        scores: ``(m,)``.
    """
    ordered = np.sort(np.asarray(normals, dtype=np.float64))
    below = np.searchsorted(ordered, np.asarray(scores, dtype=np.float64), side="left")
    return (1 + ordered.size - below) / (ordered.size + 1)


def highest_per_person(scores: ArrayLike, people: Sequence[Hashable]) -> NDArray[np.float64]:
    """The highest score of each person, in the order of their first scans."""
    highest: dict[Hashable, float] = {}
    for person, score in zip(people, np.asarray(scores, dtype=np.float64).tolist(), strict=True):
        highest[person] = max(score, highest.get(person, -np.inf))
    return np.array(list(highest.values()))


def first_per_person(scores: ArrayLike, people: Sequence[Hashable]) -> NDArray[np.float64]:
    """The first score of each person: comparable with people of whom there is one scan."""
    first: dict[Hashable, float] = {}
    for person, score in zip(people, np.asarray(scores, dtype=np.float64).tolist(), strict=True):
        first.setdefault(person, score)
    return np.array(list(first.values()))


def fewest_normals(rate: float) -> int:
    """How many normals it takes to promise a rate: ``ceil(1 / rate) - 1``.

    Raises:
        InputError: If the rate is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise InputError(f"a false-positive rate lies between 0 and 1, got {rate:g}")
    return ceil(1 / rate - SLACK) - 1


def rounded_up(value: float) -> float:
    """A positive number to two digits, never below itself: what can be promised."""
    step = 10.0 ** (floor(log10(value)) - 1)
    return float(f"{ceil(value / step - SLACK) * step:.2g}")


def rank_of_limit(count: int, rate: float) -> int:
    """``k``: the k-th lowest of ``count`` normal scores is exceeded by at most ``rate`` of others.

    Raises:
        InputError: If there are too few of them to promise that.
    """
    fewest = fewest_normals(rate)
    if count < fewest:
        raise InputError(
            f"a false-positive rate of {rate:g} takes at least {fewest} normal people, "
            f"there {'are' if count != 1 else 'is'} {count}",
            f"Add normal scans, or ask for a rate of {rounded_up(1 / (count + 1)):g} or more.",
        )
    return ceil((1 - rate) * (count + 1) - SLACK)


def rate_of_this_draw(count: int, rank: int, confidence: float = 0.95) -> float:
    """Upper limit of the share of normals that exceed the ``rank``-th lowest of ``count`` scores.

    The promise is one of the average over draws of the normals; this one bounds the share for the
    normals at hand (Vovk 2012), 0..1.
    """
    return float(special.betaincinv(count + 1 - rank, rank, confidence))


@dataclass(frozen=True)
class Drift:
    """How the scan scores of a batch differ from those of the normal scans.

    Attributes:
        reference: Number of normal people, ``n``.
        batch: Number of people in the batch, ``m``.
        distance: Kolmogorov-Smirnov distance of the two distributions, 0..1; but for the steps of
            1 / (n + 1) it is that of the batch's conformal p-values from the uniform one.
        distance_p: Its exact p-value.
        smallest_p: The smallest ``p_value`` that so few scores can give.
        auroc: Probability that a score of the batch is higher than a normal one, ties as half;
            0.5 if they are alike. The size of the difference, and its direction.
        rate: What counts as an alarm: a conformal p-value of at most this.
        alarms: How many of the batch raise one.
        alarms_p: Probability of as many or more if the batch were normal (beta-binomial); None if
            n is too small for an alarm at this rate.
        level: Chance of calling drift where there is none.
    """

    reference: int
    batch: int
    distance: float
    distance_p: float
    smallest_p: float
    auroc: float
    rate: float
    alarms: int
    alarms_p: float | None
    level: float

    @property
    def p_value(self) -> float:
        """The smaller p-value of the two tests, times their number (Bonferroni)."""
        return _bonferroni(self.distance_p, self.alarms_p)

    @property
    def verdict(self) -> str:
        """``drift``, ``no drift seen``, or ``too few scans to tell``."""
        if self.p_value <= self.level:
            return "drift"
        # A test that could not have called drift whatever the scans were has seen nothing.
        return "too few scans to tell" if self.smallest_p > self.level else "no drift seen"


def drift(
    normals: ArrayLike, batch: ArrayLike, *, rate: float = 0.05, level: float = DRIFT_LEVEL
) -> Drift:
    """Compare a batch with the normals, one score for each person.

    Two tests, exact for exchangeable scores: Kolmogorov-Smirnov's of the whole distribution, and
    one of the number of alarms, which sees a few high scores better. Nothing is drawn.

    Args:
        normals: Scores of the normals ``(n,)``.
        batch: Scores of the batch ``(m,)``.
        rate: Conformal p-value that is an alarm.
        level: Chance of calling drift where there is none.

    Raises:
        InputError: If one of them is empty, or a score is not finite.
    """
    from scipy.stats import betabinom, ks_2samp, mannwhitneyu

    n, m = (np.asarray(values, dtype=np.float64) for values in (normals, batch))
    if not (n.size and m.size):
        raise InputError("there are no scan scores to compare", "Give at least one scan.")
    if not (np.isfinite(n).all() and np.isfinite(m).all()):
        raise InputError("a scan score is not finite", "Check the scan with 'medgen check'.")
    test = ks_2samp(n, m)
    greater = mannwhitneyu(m, n, method="asymptotic").statistic
    alarms = int((p_values(n, m) <= rate + SLACK).sum())
    chance = least = None
    if steps := floor(rate * (n.size + 1) + SLACK):
        # An alarm is a score above the `steps` highest normals, whose share of others is Beta.
        others = betabinom(m.size, steps, n.size + 1 - steps)
        odds = others.pmf(np.arange(m.size + 1))
        chance, least = min(1.0, float(odds[alarms:].sum())), float(odds[-1])
    # Of all orders of n + m scores, two keep the sets apart as far as can be.
    apart = 2 * float(np.exp(special.betaln(m.size + 1, n.size + 1))) * (n.size + m.size + 1)
    return Drift(
        reference=n.size,
        batch=m.size,
        distance=float(test.statistic),
        distance_p=float(test.pvalue),
        smallest_p=_bonferroni(apart, least),
        auroc=float(greater) / (n.size * m.size),
        rate=rate,
        alarms=alarms,
        alarms_p=chance,
        level=level,
    )


def _bonferroni(first: float, second: float | None) -> float:
    return min(1.0, first if second is None else 2 * min(first, second))
