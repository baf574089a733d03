"""What drove a finding: shares that can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medgen.report.words import reason
from medgen.scoring import Scoring, evidence_map, explain, find, find_regions, score_map
from medgen.volume import Geometry

SHAPE = (12, 12, 12)
GRID = Geometry(SHAPE, np.eye(4))
MASK = np.ones(SHAPE, dtype=bool)


def two_spots() -> tuple[np.ndarray, np.ndarray]:
    """Evidence 0.1, and 0.8 in two spots; a scan of 1, and 3 in the first and 0.5 in the second."""
    evidence, scan = np.full(SHAPE, 0.1, np.float32), np.ones(SHAPE, np.float32)
    evidence[2:4, 2:4, 2:4] = evidence[8:10, 8:10, 8:10] = 0.8
    scan[2:4, 2:4, 2:4], scan[8:10, 8:10, 8:10] = 3.0, 0.5
    return evidence, scan


def test_without_a_prior_the_evidence_is_all() -> None:
    evidence, scan = two_spots()
    labels, findings = find_regions(evidence, GRID, 0.5, MASK)
    restored = np.ones(SHAPE, np.float32)
    found = explain(
        findings, labels, evidence, MASK, scan, evidence="probability", restored=restored
    )
    assert [one.label for one in found] == [1, 2]
    assert [one.evidence_share for one in found] == [1.0, 1.0]
    assert found[0].evidence_mean == pytest.approx(0.8)
    assert {round(one.difference or 0, 3) for one in found} == {2.0, -0.5}
    bright = next(one for one in found if (one.difference or 0) > 0)
    dark = next(one for one in found if (one.difference or 0) < 0)
    assert bright.brightness == pytest.approx(1 - 8 / 12**3)
    assert dark.brightness == 0
    assert reason(bright) == "probability 0.80; brighter than restored by 2; brighter than 100 % " \
        "of what was looked at"  # fmt: skip
    assert "darker than restored by 0.5" in reason(dark)


def test_a_prior_takes_its_share_of_the_height() -> None:
    evidence, scan = two_spots()
    scores = evidence * np.where(scan > 2, 1.0, 0.25).astype(np.float32)
    labels, findings = find_regions(scores, GRID, 0.15, MASK)
    found = explain(
        findings, labels, scores, MASK, scan, evidence="probability", evidence_scores=evidence
    )
    height = [np.log(mean / scores.mean(dtype=np.float64)) for mean in (0.8, 0.2)]
    own = np.log(0.8 / evidence.mean(dtype=np.float64))
    assert [one.evidence_share for one in found] == pytest.approx([own / h for h in height])
    assert 0 < (found[0].evidence_share or 0) < 1
    assert reason(found[0]).startswith("probability (")
    assert "and intensity prior (" in reason(found[0])
    assert found[1].evidence_share == pytest.approx(own / height[1])
    assert found[0].difference is None


def test_a_prior_that_does_it_all_is_named_first() -> None:
    scan = np.ones(SHAPE, np.float32)
    scan[2:4, 2:4, 2:4] = 3.0
    flat = np.full(SHAPE, 0.5, np.float32)
    scores = flat * scan / 3
    labels, findings = find_regions(scores, GRID, 0.4, MASK)
    (found,) = explain(findings, labels, scores, MASK, scan, evidence="score", evidence_scores=flat)
    assert found.evidence_share == pytest.approx(0, abs=1e-6)
    assert reason(found).startswith("intensity prior (100 %) and score (0 %)")
    held = scores.copy()
    held[2:4, 2:4, 2:4] *= 0.5
    (low,) = explain(findings, labels, scores, MASK, scan, evidence="score",
                     evidence_scores=np.where(scan > 2, 0.9, 0.05))  # fmt: skip
    assert (low.evidence_share or 0) > 1
    assert "held down by the intensity prior" in reason(low)


def test_no_finding_no_explanation() -> None:
    labels = np.zeros(SHAPE, np.int32)
    empty = np.zeros(SHAPE, bool)
    assert explain([], labels, labels, empty, labels, evidence="score") == []


@given(st.integers(0, 2**32 - 1))
def test_labels_are_the_findings(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = ndimage.gaussian_filter(generator.random((9, 8, 7)), 1).astype(np.float32)
    grid = Geometry(scores.shape, np.diag([2.0, 1, 1, 1]))
    level = float(np.quantile(scores, 0.8))
    labels, findings = find_regions(scores, grid, level, minimum_volume_mm3=6)
    mask, same = find(scores, grid, level, minimum_volume_mm3=6)
    assert same == findings
    np.testing.assert_array_equal(labels > 0, mask)
    assert labels.max(initial=0) == len(findings)
    for finding in findings:
        region = labels == finding.label
        assert region.sum() * grid.voxel_volume_mm3 == pytest.approx(finding.volume_mm3)
        assert scores[region].max() == np.float32(finding.peak)


def test_the_evidence_is_the_map_without_priors() -> None:
    generator = np.random.default_rng(3)
    image = generator.random((1, *SHAPE)).astype(np.float32)
    outputs = {"log_odds": generator.normal(size=(1, *SHAPE)).astype(np.float32)}
    plain = Scoring(evidence="probability")
    prior = Scoring(evidence="probability", intensity_prior=1.0, median=3)
    np.testing.assert_array_equal(
        evidence_map(image, outputs, MASK, prior), score_map(image, outputs, MASK, plain)
    )
    assert prior.has_prior
    assert not plain.has_prior
    assert "prior for bright voxels (weight 1)" in prior.in_words
    assert "percentile 90" in Scoring(hyperintensity_percentile=90).in_words
