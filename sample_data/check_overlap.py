"""Say whether a known lesion was found: `python sample_data/check_overlap.py RESULT TRUE_MASK`.

RESULT is the folder that `medgen detect-anomalies` wrote. Prints where the report is, the overlap
(Dice) and the fraction of the lesion that was found; exits with 1 if the lesion was missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from medgen.io import read
from medgen.metrics import dice

# "Found" means: at least this much of the lesion is marked, and marks do not cover the brain.
LEAST_FRACTION_FOUND = 0.3
LEAST_DICE = 0.3


def main() -> int:
    """Compare, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("true_mask", type=Path)
    arguments = parser.parse_args()

    masks = sorted(arguments.result.glob("*_desc-anomaly_mask.nii.gz"))
    if len(masks) != 1:
        print(f"expected one anomaly mask in {arguments.result}, got {masks}", file=sys.stderr)
        return 1
    # A mask without any finding is constant, and that is an answer too.
    found, truth = read(masks[0], allow_constant=True), read(arguments.true_mask)
    if not found.geometry.same_grid_as(truth.geometry):
        print("the mask is not on the grid of the input", file=sys.stderr)
        return 1
    marked, lesion = found.voxels[0] > 0, truth.voxels[0] > 0
    overlap = float(dice(marked, lesion))
    fraction = float((marked & lesion).sum() / lesion.sum())
    millilitre = truth.geometry.voxel_volume_mm3 / 1000

    findings = json.loads((arguments.result / "findings.json").read_text(encoding="utf-8"))
    count = len(findings["findings"])
    print(f"report    {arguments.result / 'report.html'}")
    print(f"lesion    {lesion.sum() * millilitre:.2f} ml planted")
    print(f"marked    {marked.sum() * millilitre:.2f} ml in {count} finding(s)")
    print(f"overlap   Dice {overlap:.2f}; {fraction:.0%} of the lesion found")
    outside = (marked & ~lesion).sum() * millilitre
    print(f"elsewhere {outside:.2f} ml marked outside the lesion")
    success = overlap >= LEAST_DICE and fraction >= LEAST_FRACTION_FOUND
    print("The known lesion was found." if success else "The known lesion was NOT found.")
    return 0 if success else 1


if __name__ == "__main__":
    sys.exit(main())
