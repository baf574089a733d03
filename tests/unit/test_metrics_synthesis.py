"""Metrics of synthetic sets against independent references: closed forms, scipy, naive loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg, stats
from sklearn.neighbors import NearestNeighbors

from medgen.errors import InputError
from medgen.metrics import synthesis
from medgen.metrics.paired import WEIGHTS, scales
from medgen.metrics.similarity import ms_ssim


def sets(seed: int, n: int = 30, m: int = 24, d: int = 4, shift: float = 0.5):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)), shift + 1.3 * random.normal(size=(m, d))


seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(1, 6))
def test_frechet_distance_is_the_formula_with_scipys_matrix_root(seed, d):
    a, b = sets(seed, d=d)
    first, second = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    root = linalg.sqrtm(first @ second).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second - 2 * root)
    assert synthesis.frechet_distance(a, b) == pytest.approx(expected, abs=1e-8)


def test_frechet_distance_of_known_gaussians():
    """Diagonal covariances commute, so the distance is a sum over dimensions."""
    one, two = np.array([1.0, 4.0, 0.0]), np.array([9.0, 1.0, 0.0])
    found = synthesis.frechet_of_gaussians([0, 0, 1], np.diag(one), [3, 0, 1], np.diag(two))
    assert found == pytest.approx(9 + (1 - 3) ** 2 + (2 - 1) ** 2)


@given(seeds)
def test_frechet_distance_is_zero_symmetric_and_turns_with_the_features(seed):
    a, b = sets(seed)
    turn = stats.ortho_group.rvs(4, random_state=seed % 1000)
    value = synthesis.frechet_distance(a, b)
    assert synthesis.frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert synthesis.frechet_distance(b, a) == pytest.approx(value)
    assert synthesis.frechet_distance(a @ turn, b @ turn) == pytest.approx(value)


def test_frechet_distance_survives_fewer_images_than_dimensions():
    a, b = sets(0, n=5, m=6, d=40)
    assert np.isfinite(synthesis.frechet_distance(a, b))
    assert synthesis.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


@given(seeds)
def test_kernel_distance_is_the_double_loop(seed):
    a, b = sets(seed, n=7, m=6, d=3)

    def kernel(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    def within(x):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
        return np.mean([kernel(x[i], x[j]) for i, j in pairs])

    between = np.mean([kernel(x, y) for x in a for y in b])
    expected = within(a) + within(b) - 2 * between
    assert synthesis.kernel_distance(a, b) == pytest.approx(expected, abs=1e-9)


def test_kernel_distance_is_unbiased_and_its_interval_covers_zero():
    """Over many pairs of sets of one distribution its mean is 0, at any size."""
    random = np.random.default_rng(1)
    covered = []
    values = []
    for _ in range(60):
        a, b = random.normal(size=(2, 20, 3))
        values.append(synthesis.kernel_distance(a, b))
        interval = synthesis.kernel_distance_interval(a, b, resamples=60)
        covered.append(interval.low <= 0 <= interval.high)
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert np.mean(covered) > 0.8


@given(seeds, st.integers(1, 5))
def test_coverage_is_that_of_scikit_learns_neighbours(seed, k):
    a, b = sets(seed, n=20, m=15, d=3)

    def radius(x):
        return NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, k]

    inside_real = np.linalg.norm(a[:, None] - b[None], axis=2) <= radius(a)[:, None]
    inside_fake = np.linalg.norm(a[:, None] - b[None], axis=2) <= radius(b)[None]
    found = synthesis.coverage(a, b, neighbours=k)
    assert found.precision == pytest.approx(inside_real.any(0).mean())
    assert found.recall == pytest.approx(inside_fake.any(1).mean())
    assert found.density == pytest.approx(inside_real.sum() / (k * len(b)))
    assert found.coverage == pytest.approx(inside_real.any(1).mean())


def test_coverage_knows_collapse_from_noise():
    random = np.random.default_rng(0)
    real = random.normal(size=(200, 4))
    collapsed = real[:1] + 0.01 * random.normal(size=(200, 4))
    far = 20 + random.normal(size=(200, 4))
    one, other = synthesis.coverage(real, collapsed), synthesis.coverage(real, far)
    assert one.precision > 0.9 and one.recall < 0.1 and one.coverage < 0.1
    assert other.precision == 0 and other.density == 0


@given(seeds, st.booleans())
def test_halves_are_equal_disjoint_and_keep_groups_together(seed, grouped):
    random = np.random.default_rng(seed)
    groups = random.integers(0, 6, 40).astype(str) if grouped else None
    one, other = synthesis.group_halves(40, groups, random)
    assert len(one) == len(other) > 0
    assert not set(one) & set(other)
    if grouped:
        assert not set(groups[one]) & set(groups[other])


def test_one_group_cannot_be_halved():
    with pytest.raises(InputError, match="one group"):
        synthesis.group_halves(4, ["a"] * 4, np.random.default_rng(0))


def test_copy_rate_of_unseen_images_is_the_quantile_and_of_copies_is_one():
    random = np.random.default_rng(0)
    real = random.gamma(5, size=400)
    honest = synthesis.copy_rate(random.gamma(5, size=400), real, quantile=0.05)
    assert honest.held_out_rate == pytest.approx(0.05, abs=0.003)
    assert honest.interval[0] <= 0.05 <= honest.interval[1]
    assert honest.nearer == pytest.approx(0.5, abs=0.05)
    copied = synthesis.copy_rate(1e-3 * random.random(100), real)
    assert copied.rate == 1 and copied.nearer == 1 and copied.p_value < 1e-9


@given(seeds)
def test_nearer_is_the_share_of_pairs(seed):
    random = np.random.default_rng(seed)
    fake, real = random.integers(0, 5, 25).astype(float), random.integers(0, 5, 30).astype(float)
    pairs = (fake[:, None] < real[None]).mean() + 0.5 * (fake[:, None] == real[None]).mean()
    assert synthesis.copy_rate(fake, real, resamples=2).nearer == pytest.approx(pairs)


def test_nearest_is_brute_force():
    a, b = sets(3)
    distance, index = synthesis.nearest(a, b)
    every = np.linalg.norm(a[:, None] - b[None], axis=2)
    assert distance == pytest.approx(every.min(1))
    assert (index == every.argmin(1)).all()


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "at least 2"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "different extractors"),
        (np.zeros(5), np.zeros((5, 4)), r"\(N, D\)"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "NaN"),
    ],
)
def test_wrong_features_are_refused(real, fake, message):
    with pytest.raises(InputError, match=message):
        synthesis.frechet_distance(real, fake)


def test_too_few_images_are_told_the_minimum():
    with pytest.raises(InputError, match="at least 20 are needed, got 19"):
        synthesis.copy_rate(np.ones(19), np.ones(40))
    with pytest.raises(InputError, match="at least 6"):
        synthesis.coverage(np.zeros((5, 2)), np.zeros((9, 2)))


def pictures(dims: int, size: int, channels: int = 1):
    torch.manual_seed(0)
    a = torch.rand(3, channels, *[size] * dims) * 2 - 1
    return a, (0.7 * a + 0.3 * (torch.rand_like(a) * 2 - 1)).clamp(-1, 1)


@pytest.mark.parametrize(("dims", "size", "channels"), [(2, 64, 1), (2, 180, 3), (3, 32, 1)])
def test_ms_ssim_is_monais(dims, size, channels):
    from monai.metrics import MultiScaleSSIMMetric

    a, b = pictures(dims, size, channels)
    weights = np.array(WEIGHTS[: scales(a.shape[2:])])
    reference = MultiScaleSSIMMetric(
        spatial_dims=dims, data_range=2.0, kernel_size=11, weights=list(weights / weights.sum())
    )
    assert ms_ssim(a, b).numpy() == pytest.approx(reference(a, b).numpy().ravel(), abs=1e-4)


def test_ms_ssim_of_equal_images_is_one_and_of_too_small_ones_an_error():
    a, b = pictures(2, 48)
    assert ms_ssim(a, a).numpy() == pytest.approx(1, abs=1e-5)
    assert ms_ssim(a, b).numpy() == pytest.approx(ms_ssim(b, a).numpy(), abs=1e-5)
    assert [scales((n, n)) for n in (11, 22, 64, 128, 200)] == [1, 2, 3, 4, 5]
    with pytest.raises(InputError, match="at least 11"):
        scales((10, 64))
