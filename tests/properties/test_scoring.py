"""What must hold for every map: orientation, order and scale do not change what is found."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medgen.scoring import Calibration, equalised, find, median_in_mask, scan_score
from medgen.scoring.sweep import sweep
from medgen.volume import Geometry

TURNS = list(product(permutations(range(3)), product((False, True), repeat=3)))


@st.composite
def maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A smooth map with ties and a ragged mask that is not empty."""
    shape = tuple(draw(st.integers(1, 9)) for _ in range(draw(st.integers(2, 3))))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = ndimage.gaussian_filter(generator.random(shape), draw(st.sampled_from([0, 1])))
    scores = np.round(scores * draw(st.sampled_from([5, 50, 1000]))).astype(np.float32)
    mask = generator.random(shape) < 0.8
    mask.flat[0] = True
    return scores, mask


@given(maps(), st.sampled_from([1, 3]))
def test_the_sweep_agrees_with_labelling_at_every_level(case, minimum):
    scores, mask = case
    result = sweep(scores, mask, minimum_voxels=minimum)
    assert result.complete
    np.testing.assert_array_equal(result.levels, np.unique(scores[mask])[::-1])
    for level, findings, voxels in zip(
        result.levels, result.false_findings, result.false_voxels, strict=True
    ):
        labels, _ = ndimage.label((scores >= level) & mask, np.ones((3,) * scores.ndim))
        sizes = np.bincount(labels.ravel())[1:]
        assert findings == (sizes >= minimum).sum()
        assert voxels == sizes[sizes >= minimum].sum()


@given(maps(), st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.sampled_from([0.0, 8.0]))
def test_calibration_keeps_its_target_and_no_lower_threshold_does(case, target, volume):
    scores, mask = case
    normals = [(scores, mask, 2.0), (scores[::-1] * np.float32(0.9), mask, 2.0)]
    calibration = Calibration.from_normals(
        normals, target, volume, target_false_volume_mm3_per_scan=60
    )
    geometry = Geometry(scores.shape, np.diag([2.0, 1, 1, 1]))

    def per_scan(threshold: float) -> tuple[float, float]:
        found = [find(m, geometry, threshold, inside, volume)[1] for m, inside, _ in normals]
        return (
            float(np.mean([len(f) for f in found])),
            float(np.mean([sum(x.volume_mm3 for x in f) for f in found])),
        )

    findings, total = per_scan(calibration.threshold)
    assert findings <= target
    assert total <= 60
    assert calibration.expected_false_findings_per_scan == findings
    assert calibration.expected_false_volume_mm3_per_scan == pytest.approx(total)
    lower = np.unique(np.concatenate([m[inside] for m, inside, _ in normals]))
    lower = lower[lower < calibration.threshold]
    if lower.size:  # the next lower score breaks a target
        findings, total = per_scan(float(lower[-1]))
        assert findings > target or total > 60


@given(maps(), st.sampled_from(TURNS), st.integers(0, 1000))
def test_turning_the_array_does_not_move_the_findings(case, turn, threshold):
    scores, mask = case
    if scores.ndim == 2:
        scores, mask = scores[..., None], mask[..., None]
    affine = np.array([[2, 0.3, 0, 5], [0, 1.5, 0, -3], [0.2, 0, 3, 1], [0, 0, 0, 1]])
    level = np.quantile(scores, threshold / 1000)
    axes, flips = turn
    step = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    turned = np.zeros((4, 4))  # from indices of the turned array to those of the plain one
    turned[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        turned[old, new] = -1 if flip else 1
        turned[old, 3] = scores.shape[old] - 1 if flip else 0

    plain = find(scores, Geometry(scores.shape, affine), level, mask)[1]
    other_scores = scores.transpose(axes)[step]
    other = find(
        other_scores,
        Geometry(other_scores.shape, affine @ turned),
        level,
        mask.transpose(axes)[step],
    )[1]

    def facts(findings: list) -> np.ndarray:
        rows = [[f.peak, f.volume_mm3, f.mean, *f.centroid_mm] for f in findings]
        return np.array(sorted(np.round(rows, 6).tolist()))

    np.testing.assert_allclose(facts(plain), facts(other), atol=2e-6)


@given(maps(), st.integers(0, 1000))
def test_findings_fill_their_mask_exactly(case, threshold):
    scores, mask = case
    level = np.quantile(scores, threshold / 1000)
    geometry = Geometry(scores.shape, np.diag([1.0, 2, 3, 1]))
    found, findings = find(scores, geometry, level, mask)
    np.testing.assert_array_equal(found, (scores >= level) & mask)
    assert sum(f.volume_mm3 for f in findings) == pytest.approx(6 * found.sum())
    assert [f.peak for f in findings] == sorted((f.peak for f in findings), reverse=True)
    for finding in findings:
        assert level <= finding.mean <= finding.peak
        for axis, (first, stop) in enumerate(finding.bbox_voxel):
            assert first <= finding.slice_index[axis] < stop
            assert first <= finding.centroid_voxel[axis] <= stop - 1


@given(maps(), st.sampled_from([3, 5]), st.floats(0.1, 10), st.floats(-5, 5))
def test_the_median_commutes_with_any_rising_map_and_never_leaves_the_range(case, width, a, b):
    scores, mask = case
    filtered = median_in_mask(scores, mask, width)
    moved = median_in_mask(a * scores + b, mask, width)
    np.testing.assert_allclose(moved[mask], a * filtered[mask] + b, rtol=1e-4, atol=1e-4)
    assert scores[mask].min() <= filtered[mask].min()
    assert filtered[mask].max() <= scores[mask].max()


@given(maps(), st.floats(0.1, 10), st.floats(-5, 5))
def test_equalising_forgets_brightness_and_contrast(case, a, b):
    scores, mask = case
    ranks = equalised(scores, mask)
    np.testing.assert_array_equal(equalised(np.float64(a) * scores + b, mask), ranks)
    assert ranks[mask].mean() == pytest.approx(0.5, abs=1e-6)
    assert ranks[mask].min() > 0
    assert ranks[mask].max() < 1


@given(maps(), st.floats(0.1, 2000))
def test_the_scan_score_lies_in_the_range_and_grows_with_the_map(case, voxel_volume):
    scores, mask = case
    score = scan_score(scores, mask, voxel_volume)
    assert scores[mask].mean() - 1e-6 <= score <= scores[mask].max()
    assert scan_score(scores + 1, mask, voxel_volume) == pytest.approx(score + 1)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_conformal_p_values_are_valid(scores):
    """Each scan against the others: at most a share p of them may have a p-value of p or less."""
    values = [float(s) for s in scores] * 2
    p = np.array(
        [
            Calibration(
                scan_scores=tuple(sorted(values[:i] + values[i + 1 :])),
                threshold=0,
                target_false_findings_per_scan=0,
                target_false_volume_mm3_per_scan=0,
                minimum_volume_mm3=0,
                expected_false_findings_per_scan=0,
                expected_false_volume_mm3_per_scan=0,
            ).p_value(value)
            for i, value in enumerate(values)
        ]
    )
    for level in np.unique(p):
        assert (p <= level).mean() <= level + 1e-12
