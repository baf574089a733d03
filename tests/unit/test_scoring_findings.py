"""Findings: known regions in a known world, and refusal of what does not fit."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from medgen.errors import InputError
from medgen.scoring import find
from medgen.volume import Geometry

# Left-handed, permuted, anisotropic: x' = 5 - 2 j, y' = 3 i, z' = -7 + 1.5 k.
AFFINE = np.array([[0, -2.0, 0, 5], [3.0, 0, 0, 0], [0, 0, 1.5, -7], [0, 0, 0, 1]])
GEOMETRY = Geometry((10, 12, 14), AFFINE)


@pytest.fixture
def scores() -> np.ndarray:
    scores = np.zeros(GEOMETRY.shape, np.float32)
    scores[2:5, 3:6, 4] = 0.6  # nine voxels in one plane
    scores[3, 4, 5] = 0.9  # and one above its middle
    scores[8, 10, 12] = 0.95  # one voxel
    scores[6, 6, 9] = scores[7, 7, 10] = 0.7  # two that touch by a corner
    return scores


def test_findings_are_measured_in_voxels_and_in_the_world(scores):
    mask, findings = find(scores, GEOMETRY, 0.5)
    np.testing.assert_array_equal(mask, scores >= 0.5)
    assert [f.peak for f in findings] == pytest.approx([0.95, 0.9, 0.7])
    assert [f.volume_mm3 for f in findings] == pytest.approx([9, 90, 18])
    assert [f.label for f in findings] == [1, 2, 3]
    middle = findings[1]
    assert middle.mean == pytest.approx((9 * 0.6 + 0.9) / 10)
    assert middle.centroid_voxel == pytest.approx((3, 4, 4.1))
    assert middle.centroid_mm == pytest.approx((5 - 8, 9, -7 + 1.5 * 4.1))
    assert middle.extent_mm == pytest.approx((9, 6, 3))
    assert middle.bbox_voxel == ((2, 5), (3, 6), (4, 6))
    assert middle.slice_index == {0: 3, 1: 4, 2: 4}
    json.dumps([asdict(f) for f in findings])


def test_small_findings_leave_the_mask_too(scores):
    mask, findings = find(scores, GEOMETRY, 0.5, minimum_volume_mm3=18)
    assert [f.volume_mm3 for f in findings] == pytest.approx([90, 18])
    assert mask.sum() == 12
    assert not mask[8, 10, 12]


def test_the_threshold_belongs_to_the_finding(scores):
    assert find(scores, GEOMETRY, float(np.float32(0.95)))[0].sum() == 1
    assert find(scores, GEOMETRY, 0.951) == (pytest.approx(np.zeros(GEOMETRY.shape)), [])


def test_only_the_mask_is_searched(scores):
    inside = np.zeros(GEOMETRY.shape, bool)
    inside[6:] = True
    assert [f.volume_mm3 for f in find(scores, GEOMETRY, 0.5, inside)[1]] == pytest.approx([9, 18])


def test_equal_peaks_are_sorted_by_volume():
    scores = np.zeros((8, 8))
    scores[0, 0] = scores[5:7, 5:7] = 1
    findings = find(scores, Geometry((8, 8), np.eye(4)), 1)[1]
    assert [f.volume_mm3 for f in findings] == [4, 1]
    assert findings[0].centroid_mm == (5.5, 5.5, 0)
    assert findings[0].slice_index == {0: 5, 1: 5}


def test_a_volume_limit_of_whole_voxels_is_not_lost_to_rounding():
    geometry = Geometry((20, 20, 20), np.diag([0.1, 0.1, 0.1, 1]))
    scores = np.zeros(geometry.shape)
    scores[:10, 0, 0] = 1
    assert len(find(scores, geometry, 1, minimum_volume_mm3=10 * 0.001)[1]) == 1
    assert len(find(scores, geometry, 1, minimum_volume_mm3=11 * 0.001)[1]) == 0


def test_what_does_not_fit_is_refused(scores):
    with pytest.raises(InputError, match="grid's shape"):
        find(scores[1:], GEOMETRY, 0.5)
    with pytest.raises(InputError, match="mask must have"):
        find(scores, GEOMETRY, 0.5, np.ones((2, 2, 2)))
    with pytest.raises(InputError, match="NaN"):
        find(scores, GEOMETRY, float("nan"))
