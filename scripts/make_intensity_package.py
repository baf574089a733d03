"""Make `medgen/models/intensity`, the baseline that ships: bright is abnormal, nothing is learned.

python scripts/make_intensity_package.py
"""

from __future__ import annotations

from pathlib import Path

from medgen.methods import build
from medgen.package import save_package
from medgen.phantoms import brain

FOLDER = Path(__file__).resolve().parents[1] / "medgen" / "models" / "intensity"
CARD = """\
# intensity

The baseline that needs no training: the brighter a voxel is among the voxels of the brain, the
more abnormal it counts. The anomaly map is the share of the brain that is darker (0 to 1), after a
median filter of 4.5 mm.

**Use it** on FLAIR, where most lesions are bright, and as the row that a trained model has to beat.

**Do not use it** on T1, where most lesions are dark. It marks every bright structure, healthy or
not (fat, vessels, the rim of the brain on T2).

The threshold is the brightest 2 % of the brain: something is marked in *every* scan. It is not
calibrated, because a rank says nothing about how normal the whole scan is; so there is no p-value.

Meissen, Kaissis, Rueckert: Challenging current semi-supervised anomaly segmentation methods for
brain MRI (2021).
"""


def main() -> None:
    """Write the package, replacing an earlier one."""
    save_package(
        FOLDER,
        build("intensity", {"spatial_dims": 2}),
        card=CARD,
        golden=brain((24, 28, 20), spacing_mm=6.0, contrast="flair", lesion_radius_mm=12).image,
        overwrite=True,
        name="intensity",
        version="1.0.0",
        summary="Baseline: bright is abnormal. For FLAIR; nothing is learned",
        preparation={"spacing_mm": 1.5, "normalisation": "equalise"},
        inference={"mode": "2d"},
        scoring={"evidence": "score", "median": 3},
        contract={"spatial_dims": [2, 3], "spacing_mm": 1.5, "value_range": [0.0, 1.0]},
        default_threshold=0.98,
        intended_use="Research: the untrained baseline for bright lesions on FLAIR.",
    )


if __name__ == "__main__":
    main()
