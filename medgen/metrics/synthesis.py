"""How alike are real and synthetic images? Distances between two sets of feature vectors.

All functions take features ``(N, D)``, one row per image, of one and the same extractor: numbers
of different extractors say nothing about each other. Small sets make most of these numbers
look worse than they are (the Frechet distance grows as N falls), so a number means little without
that of two sets of *real* images of the same size beside it; :mod:`medgen.tasks.evaluate_synthesis`
computes both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgen.errors import InputError
from medgen.metrics.anomaly import Interval

Floats = NDArray[np.float64]

# Below this even two halves of one set differ by more than most generators do.
FEWEST_IMAGES = 20
# Neighbours that make a ball around an image (Naeem et al. 2020 use 5).
NEIGHBOURS = 5
# Share of held-out real images that count as "near a training image", by construction.
COPY_QUANTILE = 0.05


class Coverage(NamedTuple):
    """Fidelity (precision, density) and diversity (recall, coverage) of a synthetic set."""

    precision: float
    recall: float
    density: float
    coverage: float


class CopyRate(NamedTuple):
    """How many synthetic images lie suspiciously near a training image.

    Attributes:
        rate: Share of synthetic images nearer to a training image than ``threshold``.
        held_out_rate: The same share of held-out real images; at most the quantile asked for.
        threshold: Distance in the feature space.
        interval: 95 % bootstrap interval of ``rate``, both sets redrawn by group.
        nearer: Chance that a synthetic image is nearer to training than a held-out real one, a tie
            counting one half: 0.5 if they are alike.
        p_value: One-sided Mann-Whitney test of "nearer"; takes images to be independent.
    """

    rate: float
    held_out_rate: float
    threshold: float
    interval: tuple[float, float]
    nearer: float
    p_value: float


def as_features(values: ArrayLike, name: str, fewest: int = 2) -> Floats:
    """Features as float64 ``(N, D)``.

    Raises:
        InputError: Wrong shape, a value that is not finite, or fewer than ``fewest`` images.
    """
    features = np.asarray(values, dtype=np.float64)
    if features.ndim != 2:
        raise InputError(f"features of {name} must be (N, D), got shape {features.shape}")
    if not np.isfinite(features).all():
        raise InputError(f"features of {name} hold NaN or infinity")
    require_images(len(features), name, fewest)
    return features


def require_images(count: int, name: str, fewest: int = FEWEST_IMAGES) -> None:
    """Refuse a set that is too small.

    Raises:
        InputError: Says the minimum.
    """
    if count < fewest:
        msg = f"too few {name} images: at least {fewest} are needed, got {count}"
        raise InputError(msg, "Give more images; below that the number would be mostly chance.")


def _pair(real: ArrayLike, fake: ArrayLike, fewest: int = 2) -> tuple[Floats, Floats]:
    a, b = as_features(real, "real", fewest), as_features(fake, "synthetic", fewest)
    if a.shape[1] != b.shape[1]:
        msg = f"features have {a.shape[1]} and {b.shape[1]} dimensions: two different extractors?"
        raise InputError(msg)
    return a, b


def frechet_distance(real: ArrayLike, fake: ArrayLike) -> float:
    """FID: squared 2-Wasserstein distance of two Gaussians fitted to the features.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` (Heusel et al. 2017), in squared units of the
    features, 0 and up, with unbiased covariances. Biased upwards for small N (Chong and Forsyth
    2020).
    """
    a, b = _pair(real, fake)
    covariances = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    return frechet_of_gaussians(a.mean(0), next(covariances), b.mean(0), next(covariances))


def frechet_of_gaussians(
    mean1: ArrayLike, covariance1: ArrayLike, mean2: ArrayLike, covariance2: ArrayLike
) -> float:
    """The same from means ``(D,)`` and covariances ``(D, D)``.

    The trace of ``(C1 C2)^(1/2)`` is the sum of the square roots of the eigenvalues of the
    symmetric ``C1^(1/2) C2 C1^(1/2)``: real, never negative but for rounding, and safe for
    singular covariances, where a matrix square root is not.
    """
    first, second = np.asarray(covariance1, np.float64), np.asarray(covariance2, np.float64)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root @ second @ root
    cross = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    shift = np.asarray(mean1, np.float64) - np.asarray(mean2, np.float64)
    # Rounding can leave a distance of -1e-15 between equal Gaussians.
    return max(0.0, float(shift @ shift + np.trace(first) + np.trace(second) - 2 * cross))


def kernel_distance(real: ArrayLike, fake: ArrayLike) -> float:
    """KID: unbiased squared maximum mean discrepancy with the kernel ``(x.y / D + 1)^3``.

    Binkowski et al. 2018. Its expectation does not depend on N and is 0 for equal distributions,
    so it may come out slightly negative. In units of the kernel, 0 for a perfect match.
    """
    a, b = _pair(real, fake)
    return _discrepancy(_kernel(a, a), _kernel(b, b), _kernel(a, b))


def _kernel(a: Floats, b: Floats) -> Floats:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def _discrepancy(within_a: Floats, within_b: Floats, between: Floats) -> float:
    """Mean kernel of different images within each set, less twice that between the sets."""

    def different(kernel: Floats) -> float:
        n = len(kernel)
        return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))

    return different(within_a) + different(within_b) - 2 * float(between.mean())


def kernel_distance_interval(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    groups: Sequence[Any] | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> Interval:
    """KID of all images with a 95 % interval from random halves of both sets.

    Halves drawn without replacement spread as much as the estimate itself (delete-half jackknife,
    Shao and Wu 1989). Drawing with replacement would put equal images into one set, which the
    estimator must not see. Groups of real images stay together.
    """
    a, b = _pair(real, fake, 4)
    kernels = _kernel(a, a), _kernel(b, b), _kernel(a, b)
    estimate = _discrepancy(*kernels)
    random = np.random.default_rng(seed)
    spread = []
    for _ in range(resamples):
        i = group_halves(len(a), groups, random)[0]
        j = random.permutation(len(b))[: len(b) // 2]
        spread.append(
            _discrepancy(kernels[0][np.ix_(i, i)], kernels[1][np.ix_(j, j)], kernels[2][i][:, j])
        )
    half_width = 1.96 * float(np.std(spread))
    return Interval(estimate, estimate - half_width, estimate + half_width)


def group_halves(
    count: int, groups: Sequence[Any] | None, random: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of two equally large random parts of a set that share no group.

    Groups are dealt in random order to the part that is smaller so far; what the larger part then
    has too many is left out.

    Raises:
        InputError: All images are of one group.
    """
    if groups is None:
        order = random.permutation(count)
        return order[: count // 2], order[count // 2 : 2 * (count // 2)]
    _, owner = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(owner == number) for number in range(owner.max(initial=-1) + 1)]
    if len(members) < 2:
        raise InputError("the real images are all of one group (patient): they cannot be halved")
    parts: tuple[list[Any], list[Any]] = ([], [])
    sizes = [0, 0]
    for number in random.permutation(len(members)):
        smaller = int(sizes[1] < sizes[0])
        parts[smaller].append(members[number])
        sizes[smaller] += len(members[number])
    a, b = (random.permutation(np.concatenate(part))[: min(sizes)] for part in parts)
    return a, b


def coverage(real: ArrayLike, fake: ArrayLike, *, neighbours: int = NEIGHBOURS) -> Coverage:
    """Precision, recall, density and coverage with balls that reach the k-th nearest neighbour.

    Precision: share of synthetic images inside the ball of any real image; recall: the same with
    the roles exchanged (Kynkaanniemi et al. 2019). Density: mean number of real balls around a
    synthetic image, divided by k (it may exceed 1); coverage: share of real images with a synthetic
    one in their ball (Naeem et al. 2020).

    Raises:
        InputError: Not more images than neighbours.
    """
    from scipy.spatial.distance import cdist

    a, b = _pair(real, fake, neighbours + 1)
    radius_a, radius_b = (np.sort(cdist(x, x), axis=1)[:, neighbours] for x in (a, b))
    between = cdist(a, b)
    in_real_ball = between <= radius_a[:, None]
    in_fake_ball = between <= radius_b[None]
    return Coverage(
        precision=float(in_real_ball.any(0).mean()),
        recall=float(in_fake_ball.any(1).mean()),
        density=float(in_real_ball.sum(0).mean() / neighbours),
        coverage=float(in_real_ball.any(1).mean()),
    )


def nearest(queries: ArrayLike, references: ArrayLike) -> tuple[Floats, NDArray[np.intp]]:
    """Euclidean distance of each row to its nearest reference, and which that is."""
    from scipy.spatial import KDTree

    a, b = as_features(queries, "compared", 1), as_features(references, "training", 1)
    distance, index = KDTree(b).query(a)
    return np.asarray(distance), np.asarray(index)


def copy_rate(
    fake: ArrayLike,
    real: ArrayLike,
    *,
    groups: Sequence[Any] | None = None,
    quantile: float = COPY_QUANTILE,
    resamples: int = 500,
    seed: int = 0,
) -> CopyRate:
    """Are synthetic images nearer to training images than unseen real ones are?

    The threshold is the given quantile of the held-out real images' distances, so that real images
    that cannot be copies have a known rate.

    Args:
        fake: Distance of each synthetic image to its nearest training image, ``(N,)``.
        real: The same for held-out real images, ``(M,)``.
        groups: Whose each held-out image is; images of one group are redrawn together.
        quantile: Share of held-out images below the threshold.
        resamples: Of the bootstrap.
        seed: Same seed, same interval.
    """
    from scipy.stats import mannwhitneyu

    near, reference = np.asarray(fake, np.float64), np.asarray(real, np.float64)
    require_images(len(near), "synthetic")
    require_images(len(reference), "held-out real")

    def rate(some: Floats, others: Floats) -> float:
        return float((some < np.quantile(others, quantile)).mean())

    names = np.arange(len(reference)) if groups is None else np.asarray(groups)
    _, owner = np.unique(names, return_inverse=True)
    members = [np.flatnonzero(owner == number) for number in range(owner.max() + 1)]
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = [members[i] for i in random.integers(len(members), size=len(members))]
        again = reference[np.concatenate(chosen)]
        drawn.append(rate(near[random.integers(len(near), size=len(near))], again))
    low, high = np.quantile(drawn, [0.025, 0.975])
    test = mannwhitneyu(near, reference, alternative="less")
    return CopyRate(
        rate=rate(near, reference),
        held_out_rate=rate(reference, reference),
        threshold=float(np.quantile(reference, quantile)),
        interval=(float(low), float(high)),
        nearer=1 - float(test.statistic) / (len(near) * len(reference)),
        p_value=float(test.pvalue),
    )
