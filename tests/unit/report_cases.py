"""Detections to draw, made from arrays: the report needs no model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.manifest import Manifest
from medgen.scoring import find
from medgen.tasks.detect import Detection
from medgen.volume import Geometry, Provenance, Volume

MANIFEST = Manifest.model_validate(
    {
        "name": "tiny",
        "version": "1.0.0",
        "method": "restore",
        "contract": {"spatial_dims": [2, 3]},
        "intended_use": "tests",
        "training_data": [{"name": "phantoms", "licence": "Apache-2.0", "cases": 3}],
    }
)


def detection(
    voxels: NDArray[Any],
    scores: NDArray[Any],
    affine: NDArray[Any] | None = None,
    *,
    threshold: float = 0.5,
    **changes: Any,
) -> Detection:
    """A detection in voxels ``(C, X, Y[, Z])`` whose findings are where the scores say so.

    Keyword arguments replace attributes; ``source`` and ``format`` describe the scan's file.
    """
    provenance = Provenance(
        sources=(changes.pop("source", "scan.nii.gz"),), format=changes.pop("format", "nifti")
    )
    geometry = Geometry(voxels.shape[1:], np.eye(4) if affine is None else affine)
    mask, findings = find(scores, geometry, threshold)
    values: dict[str, Any] = {
        "volume": Volume(voxels, geometry, provenance),
        "map": scores.astype(np.float32),
        "mask": mask,
        "restored": None,
        "brain_mask": np.ones(geometry.shape, dtype=bool),
        "findings": findings,
        "score": 0.61,
        "p_value": 0.02,
        "threshold": threshold,
        "threshold_meaning": "one false finding expected in ten healthy scans",
        "model": MANIFEST,
        "model_sha256": "0123456789abcdef" * 4,
        "notes": ("resampled to 1.5 mm",),
        "fallbacks": (),
        "timings": {"predict": 1.25},
    }
    return Detection(**{**values, **changes})


def lesion_scan(shape: tuple[int, ...] = (40, 48, 36), count: int = 1, **changes: Any) -> Detection:
    """A grey ellipsoid with `count` bright blobs of 27 (in 2-D 9) voxels in it."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.9
    scan = np.where(inside, 400 + 100 * axes[0], 0).astype(np.float32)
    scores = np.zeros(shape, dtype=np.float32)
    middle = np.argwhere(sum(axis**2 for axis in axes) < 0.5)
    spots = middle[np.all(middle % 5 == 2, axis=1)]  # far enough apart not to touch
    for rank, place in enumerate(spots[np.linspace(0, len(spots) - 1, count).astype(int)]):
        blob = tuple(slice(p - 1, p + 2) for p in place)
        scan[blob] = 900
        scores[blob] = 0.95 - 0.3 * rank / max(1, count)
    return detection(scan[None], scores, **{"brain_mask": inside, **changes})
