"""Forty healthy heads give a model their reference; does its promise hold on forty others?

The untrained baseline is calibrated so that at most one in ten healthy people shows a finding. Then
two batches are compared with the reference: healthy heads, which must not drift, and heads with a
lesion. Run it with the name of the picture to save: `python examples/calibrate_a_site.py out.png`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from medgen.io import write_nifti
from medgen.methods import build
from medgen.package import save_package
from medgen.phantoms import brain
from medgen.tasks.calibrate import calibrate
from medgen.tasks.drift import drift_check

SPACING_MM, RATE = 6.0, 0.1


def heads(folder: Path, seeds: range, lesion_radius_mm: float | None = None) -> Path:
    """Small FLAIR-like heads as files."""
    for seed in seeds:
        image = brain(
            (24, 28, 20), spacing_mm=SPACING_MM, seed=seed, contrast="flair",
            lesion_radius_mm=lesion_radius_mm,
        ).image  # fmt: skip
        write_nifti(folder / f"head{seed}.nii.gz", image.voxels[0], image.geometry)
    return folder


def main(picture: str) -> None:
    """Calibrate, check the promise, see drift where there is some."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = save_package(
            work / "baseline", build("intensity", {"spatial_dims": 2}), card="# Baseline\n",
            golden=brain((24, 28, 20), spacing_mm=SPACING_MM).image, name="baseline",
            version="1.0.0", preparation={"spacing_mm": SPACING_MM, "normalisation": "equalise"},
            inference={"mode": "2d"}, scoring={"evidence": "score", "median": 3},
            contract={"spatial_dims": [3]}, intended_use="this example",
        )  # fmt: skip
        controls = heads(work / "controls", range(40))
        site = calibrate(controls, model, work / "baseline-our-site", false_positive_rate=RATE)
        print(site.calibration.threshold_rule)

        healthy = drift_check(heads(work / "healthy", range(100, 140)), site.package)
        share = healthy.people_with_findings / len(healthy.rows)
        print(f"people with a finding: {share:.2f} of 40 new healthy ones, promised {RATE}")
        print(healthy.sentence)
        assert share <= 0.25  # of 40 people, more than a tenth may show one by chance
        assert healthy.drift.verdict == "no drift seen"

        ill = drift_check(heads(work / "ill", range(200, 220), 14.0), site.package)
        print(ill.sentence)
        assert ill.drift.verdict == "drift"
        healthy.save(work / "drift")
        shutil.copy(work / "drift" / "drift.png", picture)


if __name__ == "__main__":
    main(sys.argv[1])
