"""Calibration: thresholds whose answer is known, p-values, and the text that explains them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from medgen.errors import InputError
from medgen.scoring import Calibration, scan_score

MASK = np.ones((12, 12, 12), bool)


def spots(*values: float) -> np.ndarray:
    """A map of separate single-voxel spots of these heights."""
    scores = np.zeros(MASK.shape, np.float32)
    for i, value in enumerate(values):
        scores[2 * (i % 6), 2 * (i // 6), 0] = value
    return scores


def just_above(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


def test_the_smallest_threshold_that_meets_the_target():
    normals = [(spots(0.9, 0.5, 0.3), MASK, 2.0), (spots(0.8, 0.4), MASK, 2.0)]
    calibration = Calibration.from_normals(normals, 1.0)
    # At 0.5 there would be three findings in two scans.
    assert calibration.threshold == just_above(0.5)
    assert calibration.expected_false_findings_per_scan == 1
    assert calibration.expected_false_volume_mm3_per_scan == 2


def test_small_spots_do_not_count():
    blob = spots(0.9, 0.8)
    blob[8:10, 8:10, 8] = 0.6
    calibration = Calibration.from_normals([(blob, MASK, 1.0)], 0.0, minimum_volume_mm3=4)
    assert calibration.threshold == just_above(0.6)


def test_no_false_finding_allowed_and_the_left_out_scan_tells_the_truth():
    normals = [(spots(0.9), MASK, 1.0), (spots(0.8), MASK, 1.0)]
    calibration = Calibration.from_normals(normals, 0.0)
    assert calibration.threshold == just_above(0.9)
    assert calibration.expected_false_findings_per_scan == 0
    # The threshold of the second scan alone would have let the first scan's spot through.
    assert calibration.left_out_false_findings_per_scan == 0.5


def test_merged_findings_do_not_pass_for_few():
    """Below 0.2 every spot melts into one finding: a count of one, and a useless threshold."""
    scores = np.maximum(spots(0.9, 0.8, 0.7, 0.6), np.float32(0.2))
    calibration = Calibration.from_normals([(scores, MASK, 1.0)], 2.0)
    assert calibration.threshold == just_above(0.7)


def test_one_growing_finding_is_stopped_by_its_volume():
    distance = np.linalg.norm(np.indices(MASK.shape) - 6, axis=0)
    scores = (1 / (1 + distance)).astype(np.float32)
    calibration = Calibration.from_normals(
        [(scores, MASK, 1.0)], 1.0, target_false_volume_mm3_per_scan=100
    )
    assert 50 < calibration.expected_false_volume_mm3_per_scan <= 100
    assert calibration.left_out_false_findings_per_scan is None


def test_a_threshold_nothing_breaks_is_the_lowest_score():
    calibration = Calibration.from_normals(
        [(np.full(MASK.shape, 0.25), MASK, 1.0)], 1.0, target_false_volume_mm3_per_scan=1e9
    )
    assert calibration.threshold == 0.25


def test_scan_score_is_the_mean_of_the_highest_millilitre():
    generator = np.random.default_rng(0)
    scores, mask = generator.random((20, 20, 20)), generator.random((20, 20, 20)) < 0.7
    top = np.sort(scores[mask])[-500:]
    assert scan_score(scores, mask, 2.0) == pytest.approx(top.mean(), rel=1e-12)
    assert scan_score(scores, mask, 0.001) == pytest.approx(scores[mask].mean(), rel=1e-12)
    assert scan_score(scores, mask, 5000.0) == scores[mask].max()
    assert scan_score(scores, mask, 2.0, "mean") == pytest.approx(scores[mask].mean(), rel=1e-12)
    top = np.sort(scores[mask])[-round(0.01 * mask.sum()) :]
    assert scan_score(scores, mask, 2.0, "highest") == pytest.approx(top.mean(), rel=1e-12)


def test_the_kind_of_scan_score_reaches_the_reference():
    generator = np.random.default_rng(1)
    normals = [(generator.random(MASK.shape), MASK, 1.0) for _ in range(20)]
    means = sorted(float(scores[MASK].mean()) for scores, _, _ in normals)
    by_count = Calibration.from_normals(normals, 1.0, kind="mean")
    by_rate = Calibration.with_false_positive_rate(normals, 0.1, kind="mean")
    assert by_count.scan_scores == pytest.approx(means)
    assert by_rate.scan_scores == pytest.approx(means)


@pytest.fixture
def calibration() -> Calibration:
    normals = [(spots(value), MASK, 1.0) for value in (0.3, 0.1, 0.2, 0.2)]
    return Calibration.from_normals(normals, 0.25)


def test_p_values_count_the_normals_that_score_as_high(calibration):
    scores = calibration.scan_scores
    assert list(scores) == sorted(scores)
    assert calibration.p_value(10) == 1 / 5
    assert calibration.p_value(-1) == 1
    assert calibration.p_value(scores[1]) == 4 / 5  # ties count against the scan
    assert calibration.p_value(scores[3]) == 2 / 5


def test_the_rule_says_how_much_it_knows(calibration):
    rule = calibration.threshold_rule
    limit = stats.chi2.ppf(0.95, 2 * 1 + 2) / 2 / 4
    assert calibration.expected_false_findings_per_scan == 0.25
    for words in ("On 4 normal scans it gave 1 ", f"below {limit:.2g} per scan", "1/5 = 0.2"):
        assert words in rule


def test_json_round_trip(calibration):
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration


def test_wrong_input_is_refused(calibration):
    with pytest.raises(InputError, match="at least one"):
        Calibration.from_normals([], 1.0)
    with pytest.raises(InputError, match="mask is empty"):
        Calibration.from_normals([(spots(1), np.zeros_like(MASK), 1.0)], 1.0)
    with pytest.raises(InputError, match="a subject for each of 1 scans, got 2"):
        Calibration.from_normals([(spots(1), MASK, 1.0)], 1.0, subjects=["a", "b"])
    with pytest.raises(ValidationError, match="cannot show 9 subjects"):
        Calibration(**(calibration.model_dump() | {"subjects": 9}))
    with pytest.raises(ValidationError, match="sorted"):
        Calibration(**(calibration.model_dump() | {"scan_scores": (2.0, 1.0)}))


def test_scans_of_one_person_are_left_out_together():
    """Two scans of one odd person: judged by the others' threshold, both show findings."""
    quiet, odd = np.zeros((3, 9, 9, 9), dtype=np.float32)[:2]
    odd = odd.copy()
    odd[2:6, 2:6, 2:6] = 1.0
    mask = np.ones((9, 9, 9), dtype=bool)
    normals = [(odd, mask, 1.0), (odd, mask, 1.0), (quiet, mask, 1.0), (quiet, mask, 1.0)]
    alone = Calibration.from_normals(normals, 0.5)
    together = Calibration.from_normals(normals, 0.5, subjects=["a", "a", "b", "c"])
    assert together.subjects == 3
    assert alone.subjects == 4
    assert together.left_out_false_findings_per_scan >= alone.left_out_false_findings_per_scan
    assert Calibration.from_normals(normals, 0.5, subjects=list("aaaa")).subjects == 1


def test_the_left_out_count_goes_by_subject():
    normals = [(spots(value), MASK, 1.0) for value in (0.9, 0.9, 0.8)]
    alone = Calibration.from_normals(normals, 0.0)
    together = Calibration.from_normals(normals, 0.0, subjects=["a", "a", "b"])
    # Left out alone, each of the two equal scans has a twin that chooses its threshold.
    assert alone.left_out_false_findings_per_scan == 0
    assert together.left_out_false_findings_per_scan == pytest.approx(2 / 3)
    assert together.threshold == alone.threshold
    one = Calibration.from_normals(normals, 0.0, subjects=["a"] * 3)
    assert one.left_out_false_findings_per_scan is None


def test_the_rule_names_the_brains_where_they_are_fewer_than_the_scans():
    normals = [(spots(value), MASK, 1.0) for value in (0.9, 0.9, 0.8)]
    rule = Calibration.from_normals(normals, 0.0, subjects=["a", "a", "b"]).threshold_rule
    assert "On 3 scans of 2 brains" in rule
    assert "chosen on the other brains" in rule
    assert "exchangeable, which scans of 2 brains are only roughly" in rule
    alone = Calibration.from_normals(normals, 0.0)
    assert "On 3 normal scans" in alone.threshold_rule
    assert "brains" not in alone.threshold_rule
    old = Calibration.model_validate(alone.model_dump(exclude={"subjects"}))
    assert old.threshold_rule == alone.threshold_rule


def test_the_rule_says_what_a_cubic_millimetre_of_a_picture_is():
    of_scans = Calibration.from_normals([(spots(0.9), MASK, 1.0)] * 3, 0.0, minimum_volume_mm3=2)
    assert "pixel" not in of_scans.threshold_rule
    of_pictures = of_scans.model_copy(update={"spatial_dims": 2})
    assert "2 mm3 (a pixel without a size counts as 1) or more" in of_pictures.threshold_rule


def test_the_how_to_quotes_what_the_program_prints():
    example = Calibration(
        scan_scores=tuple(n / 100 for n in range(30)),
        threshold=0.62,
        target_false_findings_per_scan=0.5,
        target_false_volume_mm3_per_scan=1000.0,
        minimum_volume_mm3=20.0,
        expected_false_findings_per_scan=0.5,
        expected_false_volume_mm3_per_scan=160.0,
        left_out_false_findings_per_scan=0.6,
        subjects=3,
    )
    page = Path(__file__).resolve().parents[2] / "docs/how-to/read-a-calibration.md"
    quoted = [line[2:] for line in page.read_text(encoding="utf-8").split("\n") if line[:2] == "> "]
    assert " ".join(quoted) == example.threshold_rule
