"""Tallies: pooled metrics equal those of the scans side by side, however they are added up."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medgen import metrics
from medgen.errors import InputError
from medgen.metrics.tally import (
    COARSE,
    Tally,
    draws,
    interval,
    resample,
    resampled_dice,
)
from medgen.tasks.anomaly_cell import _thinned


@st.composite
def scans(draw: st.DrawFn, count: int = 3) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Maps with ties (whole numbers, which rounding keeps), with some abnormal voxels in each."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.integers(2, 9))
    found = []
    for _ in range(draw(st.integers(1, count))):
        shape = tuple(generator.integers(3, 7, size=draw(st.sampled_from((2, 3)))))
        truth = generator.random(shape) < 0.3
        truth.flat[:2] = True, False
        scores = generator.integers(0, levels, shape).astype(np.float32)
        mask = generator.random(shape) < 0.8
        mask.flat[:2] = True
        found.append((scores, truth, mask))
    return found


def flat(cases):
    """All voxels of the masks as one list of scores and one of truths."""
    return (
        np.concatenate([scores[mask] for scores, _, mask in cases]),
        np.concatenate([truth[mask] for _, truth, mask in cases]),
    )


@given(scans())
def test_added_tallies_rank_all_voxels_together(cases):
    whole = Tally.total([Tally.of(*case) for case in cases])
    scores, truth = flat(cases)
    counts = whole.counts()
    assert counts.average_precision() == pytest.approx(metrics.average_precision(scores, truth))
    assert counts.auroc() == pytest.approx(metrics.auroc(scores, truth))
    assert counts.best_dice() == pytest.approx(metrics.best_dice(scores, truth))
    for level in (*np.unique(scores), scores.max() + 1, scores.min() - 1):
        assert counts.dice_at(level) == pytest.approx(metrics.dice(scores >= level, truth))


def reference_aupro(cases, limit):
    """Threshold by threshold and lesion by lesion, then the trapezoids under the limit."""
    scores, truth = flat(cases)
    curve = [(0.0, 0.0)]
    for level in np.unique(scores)[::-1]:
        shares = []
        for own, abnormal, mask in cases:
            labels, number = ndimage.label(abnormal & mask, np.ones((3,) * own.ndim))
            shares += [(own[labels == n] >= level).mean() for n in range(1, number + 1)]
        curve.append((float((scores[~truth] >= level).mean()), float(np.mean(shares))))
    area = 0.0
    for (x, y), (right, top) in pairwise(curve):
        if x >= limit or right == x:
            continue
        end = min(right, limit)
        height = y + (top - y) * (end - x) / (right - x)
        area += (end - x) * (y + height) / 2
    return area / limit


@given(scans(), st.sampled_from((0.3, 0.1, 1.0)))
def test_aupro_is_what_its_definition_says(cases, limit):
    _, truth = flat(cases)
    whole = Tally.total([Tally.of(*case) for case in cases])
    if truth.all():
        with pytest.raises(InputError, match="AUPRO is undefined"):
            whole.aupro()
        return
    expected = reference_aupro(cases, limit)
    assert whole.aupro(limit) == pytest.approx(expected)
    exact = metrics.aupro([metrics.ScoredScan(*case, 1.0) for case in cases], limit)
    assert exact == pytest.approx(expected)


def test_aupro_of_perfect_and_of_random_maps():
    generator = np.random.default_rng(0)
    truth = np.zeros((40, 40), bool)
    truth[5:9, 5:9] = truth[20:24, 30:33] = True
    assert Tally.of(truth.astype(float), truth).aupro() == pytest.approx(1)
    noise = [Tally.of(generator.random(truth.shape), truth).aupro() for _ in range(40)]
    assert np.mean(noise) == pytest.approx(0.15, abs=0.03)


@given(st.integers(0, 2**32 - 1))
def test_rounding_keeps_the_order_and_nearly_the_metric(seed):
    generator = np.random.default_rng(seed)
    truth = generator.random(2000) < 0.05
    scores = (generator.normal(size=2000) + 1.5 * truth).astype(np.float32)
    rounded = Tally.of(scores, truth).counts()
    assert np.all(np.diff(rounded.levels) < 0)
    exact = metrics.average_precision(scores, truth)
    assert rounded.average_precision() == pytest.approx(exact, abs=2e-3)
    ranks = (np.argsort(np.argsort(scores)) / len(scores)).astype(np.float32)
    near = Tally.of(ranks, truth).counts().average_precision()
    assert near == pytest.approx(exact, abs=2e-3)


def test_a_tally_of_nothing_adds_nothing_and_has_no_metric():
    some = Tally.of(np.array([1.0, 2.0]), np.array([False, True]))
    both = Tally.total([Tally.empty(), some])
    assert both.counts().average_precision().value == 1
    for metric in (Tally.empty().counts().average_precision, Tally.empty().aupro):
        with pytest.raises(InputError, match="undefined"):
            metric()
    with pytest.raises(InputError, match="not finite"):
        Tally.of(np.array([np.nan]), np.array([True]))


def test_a_draw_of_everyone_once_is_the_pooled_metric():
    generator = np.random.default_rng(1)
    tallies = []
    for _ in range(5):
        truth = generator.random(4000) < 0.1
        tallies.append(Tally.of(generator.normal(size=4000) + truth, truth))
    whole = Tally.total(tallies).counts()
    drawn = resample(tallies, np.ones((1, 5)))
    assert sum(t.levels.size for t in tallies) > COARSE
    assert drawn.average_precision[0] == pytest.approx(whole.average_precision().value, abs=2e-3)
    assert drawn.auroc[0] == pytest.approx(whole.auroc(), abs=1e-3)
    assert drawn.best_dice[0] == pytest.approx(whole.best_dice().value, abs=2e-3)
    # Drawing one subject only is that subject's metric.
    alone = resample(tallies, np.eye(5)[:1]).average_precision[0]
    assert alone == pytest.approx(tallies[0].counts().average_precision().value, abs=2e-3)


def test_intervals_hold_the_estimate_repeat_and_narrow_with_subjects():
    generator = np.random.default_rng(2)

    def width(subjects):
        tallies = []
        for _ in range(subjects):
            truth = generator.random(500) < 0.2
            shift = generator.normal(1, 0.5)
            tallies.append(Tally.of(generator.normal(size=500) + shift * truth, truth))
        samples = resample(tallies, draws(subjects, 500, 0)).average_precision
        assert np.array_equal(samples, resample(tallies, draws(subjects, 500, 0)).average_precision)
        low, high = interval(samples)
        estimate = Tally.total(tallies).counts().average_precision().value
        assert low < estimate < high
        return high - low

    assert width(64) < width(4)


def test_draws_without_an_abnormal_voxel_are_left_out():
    normal = Tally.of(np.array([0.5, 0.2]), np.zeros(2, bool))
    ill = Tally.of(np.array([0.9, 0.1]), np.array([True, False]))
    drawn = resample([normal, ill], np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]))
    assert np.isnan(drawn.average_precision[0])
    assert drawn.average_precision[1:].tolist() == [1, 1]
    assert interval(drawn.average_precision) == (1, 1)
    assert interval(np.full(5, np.nan)) is None
    parts = np.array([[0, 1, 0], [1, 0, 1]])
    assert resampled_dice(parts, np.array([[1.0, 1.0]]))[0] == pytest.approx(2 / 3)


@given(scans(), st.integers(0, 5))
def test_curves_of_thinned_sweeps_find_the_same_lesions(cases, most):
    scored = [metrics.ScoredScan(*case, 2.0) for case in cases]
    full = metrics.froc(scored)
    swept = [metrics.lesion_sweep(scan, most_findings=10 * len(scored)) for scan in scored]
    thin = metrics.froc_of([one._replace(sweep=_thinned(one.sweep)) for one in swept])
    assert thin.sensitivity_at(most) == pytest.approx(full.sensitivity_at(most))
    edges = (2.0, 6.0)
    assert [n for _, n in thin.by_size(most, edges).values()] == [
        n for _, n in full.by_size(most, edges).values()
    ]
