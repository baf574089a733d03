"""Metrics against scikit-learn, scikit-image and scipy, with ties, and where they are undefined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage import measure
from sklearn import metrics as reference

from medgen import metrics
from medgen.errors import InputError


@st.composite
def ranked(draw: st.DrawFn, levels: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and a truth that holds both classes."""
    size = draw(st.integers(2, 60))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, draw(st.integers(1, levels)), size).astype(np.float32)
    truth = generator.random(size) < 0.3
    truth[:2] = True, False
    return scores, truth


@given(ranked())
def test_auprc_and_auroc_are_scikit_learns(case):
    scores, truth = case
    result = metrics.average_precision(scores, truth)
    assert result.value == pytest.approx(reference.average_precision_score(truth, scores))
    assert result.prevalence == pytest.approx(truth.mean())
    assert metrics.auroc(scores, truth) == pytest.approx(reference.roc_auc_score(truth, scores))


@given(ranked())
def test_best_dice_is_the_best_of_all_thresholds(case):
    scores, truth = case
    best = metrics.best_dice(scores, truth)
    tried = [reference.f1_score(truth, scores >= level) for level in np.unique(scores)]
    assert best.value == pytest.approx(max(tried))
    assert metrics.dice(scores >= best.threshold, truth) == pytest.approx(best.value)


@given(ranked(), st.integers(0, 1000))
def test_the_order_of_voxels_and_a_monotone_map_change_nothing(case, seed):
    scores, truth = case
    order = np.random.default_rng(seed).permutation(scores.size)
    for other, labels in ((scores[order], truth[order]), (np.exp(scores) - 5, truth)):
        assert metrics.average_precision(other, labels) == pytest.approx(
            metrics.average_precision(scores, truth)
        )
        assert metrics.auroc(other, labels) == pytest.approx(metrics.auroc(scores, truth))


def test_only_the_mask_counts():
    generator = np.random.default_rng(0)
    scores, truth, mask = generator.random((3, 6, 7, 8))
    truth, mask = truth > 0.8, mask > 0.4
    inside = reference.average_precision_score(truth[mask], scores[mask])
    assert metrics.average_precision(scores, truth, mask).value == pytest.approx(inside)
    assert metrics.dice(scores > 0.5, truth, mask) == pytest.approx(
        reference.f1_score(truth[mask], scores[mask] > 0.5)
    )


def test_dice_of_empty_masks():
    empty, full = np.zeros(5, bool), np.ones(5, bool)
    assert metrics.dice(empty, empty) == 1
    assert metrics.dice(empty, full) == metrics.dice(full, empty) == 0


def test_what_is_undefined_is_an_error():
    scores = np.arange(4.0)
    nothing = np.zeros(4, bool)
    for metric in (
        metrics.average_precision,
        metrics.auroc,
        metrics.best_dice,
    ):
        with pytest.raises(InputError, match="no abnormal voxel"):
            metric(scores, nothing)
    with pytest.raises(InputError, match="no normal voxel"):
        metrics.auroc(scores, ~nothing)
    with pytest.raises(InputError, match="NaN"):
        metrics.average_precision(np.array([1, np.nan]), np.array([1, 0]))
    with pytest.raises(InputError, match="shape"):
        metrics.dice(scores > 1, np.zeros(3))


def random_scan(seed: int, shape: tuple[int, ...] = (14, 13, 12)) -> metrics.ScoredScan:
    generator = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(generator.random(shape), 1)
    truth = ndimage.gaussian_filter(generator.random(shape), 1.5)
    truth = truth > np.quantile(truth, 0.95)
    levels = np.round((smooth + 0.02 * truth) * 300).astype(np.float32)
    return metrics.ScoredScan(levels, truth, generator.random(shape) < 0.9, 2.0)


def brute_force(
    scans: list[metrics.ScoredScan], threshold: float, minimum_voxels: int
) -> tuple[float, float]:
    """False findings per scan and lesion sensitivity at one threshold, by scikit-image labels."""
    false, detected, lesions = 0, 0, 0
    for scan in scans:
        labels = measure.label((scan.scores >= threshold) & scan.mask)
        regions = [r.coords for r in measure.regionprops(labels) if r.area >= minimum_voxels]
        kept = np.zeros(labels.shape, bool)
        for coords in regions:
            share = scan.truth[tuple(coords.T)].mean()
            if share == 0 or share < metrics.TRUE_SHARE:
                false += 1
            else:
                kept[tuple(coords.T)] = True
        truth = measure.label(scan.truth)
        lesions += truth.max()
        detected += len(set(truth[kept].tolist()) - {0})
    return false / len(scans), detected / lesions


@pytest.mark.parametrize("minimum_voxels", [1, 5])
@pytest.mark.parametrize("shape", [(14, 13, 12), (30, 31)])
def test_froc_agrees_with_labelling_at_every_threshold(minimum_voxels, shape):
    scans = [random_scan(seed, shape) for seed in range(3)]
    curve = metrics.froc(
        scans, minimum_volume_mm3=2.0 * minimum_voxels, most_false_positives_per_scan=1e9
    )
    expected = [brute_force(scans, t, minimum_voxels) for t in curve.thresholds]
    np.testing.assert_allclose(curve.false_positives_per_scan, [false for false, _ in expected])
    found = [found for _, found in expected]
    np.testing.assert_allclose([curve.found_at(t).mean() for t in curve.thresholds], found)
    np.testing.assert_allclose(curve.found / len(curve.lesion_volumes_mm3), found)
    assert (np.diff(found) < 0).any()  # findings outgrow their lesions
    assert len(expected) > 10

    short = metrics.froc(
        scans, minimum_volume_mm3=2.0 * minimum_voxels, most_false_positives_per_scan=2
    )
    assert minimum_voxels > 1 or len(short.thresholds) < len(curve.thresholds)
    for allowed in (0, 0.4, 1, 2):
        assert short.sensitivity_at(allowed) == curve.sensitivity_at(allowed)
        within = 0.0
        for false, found in expected:
            if false > allowed:
                break
            within = max(within, found)
        assert curve.sensitivity_at(allowed) == pytest.approx(within)


def test_size_strata_part_all_lesions():
    scans = [random_scan(seed) for seed in range(3)]
    curve = metrics.froc(scans)
    strata = curve.by_size(2, edges_mm3=(20, 100, 1e6))
    lesions = curve.lesion_volumes_mm3.size
    assert sum(count for _, count in strata.values()) == lesions
    found = sum(share * count for share, count in strata.values() if count)
    assert found / lesions == pytest.approx(curve.sensitivity_at(2))
    assert np.isnan(strata[1e6, np.inf][0])


def test_a_lesion_that_the_mask_leaves_out_is_missed():
    scores, truth, mask = np.zeros((3, 6, 6, 6))
    truth[1, 1, 1] = truth[4:, 4, 4] = 1  # the second, with the highest label, is outside
    mask[:3, :3, :3] = 1
    scores[1, 1, 1] = 1
    curve = metrics.froc([metrics.ScoredScan(scores, truth, mask > 0, 1.0)])
    assert curve.thresholds.tolist() == [1]
    assert curve.found_at(1).tolist() == [True, False]
    assert curve.lesion_volumes_mm3.tolist() == [1, 2]
    assert curve.sensitivity_at(1.0, (1.5, 3.0)) == 0


def test_froc_without_a_lesion_is_an_error():
    scan = random_scan(0)
    healthy = metrics.ScoredScan(scan.scores, np.zeros(scan.truth.shape), scan.mask, 1.0)
    with pytest.raises(InputError, match="no lesion in 1 scans"):
        metrics.froc([healthy])


@pytest.mark.parametrize("background", [0.0, 0.7])
def test_a_map_that_says_nothing_finds_nothing(background):
    truth = np.zeros((12, 12), bool)
    truth[2:8, 2:8] = True
    inside = np.ones(truth.shape, bool)
    constant = metrics.ScoredScan(np.full(truth.shape, background), truth, inside, 1.0)
    # High everywhere but in the lesion, which only the lowest level of all reaches.
    inverted = metrics.ScoredScan(np.where(truth, background, 1.0), truth, inside, 1.0)
    for scan in (constant, inverted):
        assert metrics.froc([scan, scan]).sensitivity_at(5) == 0


def test_a_finding_far_larger_than_its_lesion_is_false():
    truth, scores = np.zeros((2, 20, 20))
    truth[10, 10:12] = 1
    scores[10, 10:14] = 2  # half of it is lesion
    scores[8:13, 8:15] = np.maximum(scores[8:13, 8:15], 1)  # 2 of 35
    scan = metrics.ScoredScan(scores, truth, np.ones(truth.shape), 1.0)
    curve = metrics.froc([scan])
    assert curve.thresholds.tolist() == [2, 1]
    assert curve.found.tolist() == [1, 0]
    assert curve.false_positives_per_scan.tolist() == [0, 1]
    assert curve.sensitivity_at(1) == 1
    assert metrics.false_positives(scores >= 2, truth, 1.0) == (0, 0.0)
    assert metrics.false_positives(scores >= 1, truth, 1.0) == (1, 35.0)


def test_false_positives_are_what_touches_no_lesion():
    prediction, truth = np.zeros((2, 8, 8, 8), bool)
    prediction[0:2, 0, 0] = truth[1:4, 0, 0] = True  # touches its lesion
    prediction[4:7, 4, 4] = True
    prediction[0, 7, 7] = True
    assert metrics.false_positives(prediction, truth, 2.0) == (2, 8.0)
    assert metrics.false_positives(prediction, truth, 2.0, minimum_volume_mm3=4) == (1, 6.0)
    assert metrics.false_positives(prediction, None, 2.0) == (3, 12.0)
    assert metrics.false_positives(truth & False, truth, 2.0) == (0, 0.0)


def test_the_bootstrap_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    samples = generator.normal(1.0, 2.0, (200, 30))
    intervals = [metrics.bootstrap_interval(row, resamples=300) for row in samples]
    covered = np.mean([i.low <= 1.0 <= i.high for i in intervals])
    assert 0.88 <= covered <= 0.99  # percentile intervals of 30 are a little short of 0.95


def test_the_bootstrap_draws_subjects_not_rows():
    subjects = ["a"] * 50 + ["b"] * 50
    values = np.array([0.0] * 50 + [1.0] * 50)
    by_subject = metrics.bootstrap_interval(values, subjects=subjects)
    by_row = metrics.bootstrap_interval(values)
    assert (by_subject.low, by_subject.high) == (0, 1)
    assert by_row.high - by_row.low < 0.25
    assert by_subject == metrics.bootstrap_interval(values, subjects=subjects)


def test_the_bootstrap_needs_two_subjects():
    with pytest.raises(InputError, match="at least two subjects, got 1"):
        metrics.bootstrap_interval([1.0, 2.0], subjects=["a", "a"])
    with pytest.raises(InputError, match="every row needs a subject"):
        metrics.bootstrap_interval([1.0, 2.0], subjects=["a"])
