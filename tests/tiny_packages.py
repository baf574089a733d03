"""Small real model packages for tests: real methods, real preparation, untrained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from medgen.package import ModelPackage, save_package
from medgen.phantoms import Phantom, brain
from medgen.scoring import Calibration

# The fixture `cli`: the words of a command line in, exit_code, stdout and stderr out.
Cli = Callable[..., Any]

SHAPE = (24, 28, 20)
SPACING_MM = 6.0


def phantom(seed: int = 0, lesion_radius_mm: float | None = 12.0) -> Phantom:
    """A head of 24 x 28 x 20 voxels, 6 mm wide."""
    return brain(
        SHAPE, spacing_mm=SPACING_MM, seed=seed, contrast="flair", lesion_radius_mm=lesion_radius_mm
    )


def calibration() -> Calibration:
    """A calibration with round numbers, as if 9 normal scans had been measured."""
    return Calibration(
        scan_scores=tuple(n / 10 for n in range(1, 10)),
        threshold=0.97,
        target_false_findings_per_scan=1.0,
        target_false_volume_mm3_per_scan=1000.0,
        minimum_volume_mm3=10.0,
        expected_false_findings_per_scan=0.5,
        expected_false_volume_mm3_per_scan=200.0,
    )


def save_intensity(folder: Path, **changes: Any) -> ModelPackage:
    """The baseline without weights, calibrated."""
    from medgen.methods import build

    values: dict[str, Any] = {
        "name": folder.name, "version": "1.0.0", "summary": "bright is abnormal",
        "preparation": {"spacing_mm": SPACING_MM, "normalisation": "equalise"},
        "inference": {"mode": "2d"}, "scoring": {"evidence": "score"},
        "contract": {"spatial_dims": [2, 3]}, "intended_use": "tests",
    }  # fmt: skip
    return save_package(
        folder, build("intensity", {"spatial_dims": 2}), card="# Intensity\n",
        golden=phantom().image, calibration=calibration(), **{**values, **changes},
    )  # fmt: skip


def save_restore(folder: Path, *, half_precision: bool = False, **changes: Any) -> ModelPackage:
    """A tiny untrained restoration network in 3-D, not calibrated."""
    import torch

    from medgen.methods import build

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build("restore", {"spatial_dims": 3, "features": (4, 4, 4, 4, 4)})
    values: dict[str, Any] = {
        "name": folder.name, "version": "0.1.0", "preparation": {"spacing_mm": SPACING_MM},
        "inference": {"mode": "3d"}, "contract": {"spatial_dims": [3]}, "intended_use": "tests",
    }  # fmt: skip
    return save_package(
        folder, network, card="# Restore\n", golden=phantom().image,
        half_precision=half_precision, **{**values, **changes},
    )  # fmt: skip
