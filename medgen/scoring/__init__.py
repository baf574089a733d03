"""From the outputs of a method to a score map, findings, and a calibrated meaning.

``maps`` makes one score map out of what a method predicted; ``findings`` cuts it into connected
findings; ``calibration`` says, from scans of healthy people, what a threshold and a scan score
mean; ``explanation`` says what drove a finding. Nothing here samples: the same input gives the
same output.
"""

from __future__ import annotations

from medgen.scoring.calibration import Calibration, scan_score
from medgen.scoring.explanation import Explanation, explain
from medgen.scoring.findings import Finding, find, find_regions
from medgen.scoring.maps import Scoring, equalised, evidence_map, median_in_mask, score_map

__all__ = [
    "Calibration",
    "Explanation",
    "Finding",
    "Scoring",
    "equalised",
    "evidence_map",
    "explain",
    "find",
    "find_regions",
    "median_in_mask",
    "scan_score",
    "score_map",
]
