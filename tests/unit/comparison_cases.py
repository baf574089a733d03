"""Restorations to draw, made from arrays: the report needs no model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.manifest import Manifest
from medgen.tasks.restoration import Restoration
from medgen.volume import Geometry, Provenance, Volume

MANIFEST = Manifest.model_validate(
    {
        "name": "tiny",
        "version": "1.0.0",
        "task": "denoise",
        "method": "dncnn",
        "contract": {"spatial_dims": [2, 3]},
        "intended_use": "tests",
        "training_data": [{"name": "phantoms", "licence": "Apache-2.0", "cases": 3}],
        "restoration": {
            "spread": {"factor": 1.2, "coverage": 0.913, "data": "held-out drawn brains"}
        },
    }
)


def head(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A grey ellipsoid with a bright rim and darker insides."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    waves = np.sin(9 * axes[0]) * np.cos(7 * axes[1] + 3 * axes[-1])
    scan = np.where(radius < 0.9, 400 + 120 * waves, 0.0)
    return np.where((radius > 0.82) & (radius < 0.9), 800, scan).astype(np.float32)


def restoration(
    verb: str = "denoise",
    shape: tuple[int, ...] = (40, 48, 36),
    affine: NDArray[Any] | None = None,
    **changes: Any,
) -> Restoration:
    """A noisy head denoised, or with a hole filled, or on a grid twice as fine, or turned dark.

    Keyword arguments replace attributes; ``source`` and ``format`` describe the scan's file.
    """
    provenance = Provenance(
        sources=(changes.pop("source", "scan.nii.gz"),), format=changes.pop("format", "nifti")
    )
    clean = head(shape)
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    before, output, hole = clean + 60 * noise * (clean > 0), clean, None
    if verb == "inpaint":
        hole = np.zeros(shape, bool)
        hole[tuple(slice(n // 4, n // 2) for n in shape)] = True
        before, output = np.where(hole, 0, clean), clean
    if verb == "translate":
        output = (900 - clean) * (clean > 0) * 3
    geometry = Geometry(shape, np.eye(4) if affine is None else affine)
    scan = Volume(before[None], geometry, provenance)
    if verb == "super-resolve":
        coarse = before[tuple(slice(None, None, 2) for _ in shape)]
        wide = geometry.affine @ np.diag([2.0, 2, 2, 1])
        scan = Volume(coarse[None], Geometry(coarse.shape, wide), provenance)
    values: dict[str, Any] = {
        "verb": verb,
        "kind": "t2" if verb == "translate" else f"{verb}d",
        "volume": scan,
        "output": output,
        "geometry": geometry,
        "before": before,
        "uncertainty": np.abs(noise) * 30 * (clean > 0 if hole is None else hole),
        "level": 0.9,
        "invented": hole,
        "model": MANIFEST,
        "model_sha256": "0123456789abcdef" * 4,
        "measures": {"seam_ratio": 1.07, "data consistency": "within 0.1 %"},
        "notes": ("resampled to 1.5 mm",),
        "timings": {"predict": 1.25},
        "seed": 7,
    }
    return Restoration(**{**values, **changes})
