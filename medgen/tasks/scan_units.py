"""From the scale a model works in back to the values of the scan."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def in_scan_units(
    restored: NDArray[Any], scan: NDArray[Any], scores: NDArray[Any], brain: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """The restored image in the scan's own values, so that the two can be subtracted.

    Scale and offset are the least-squares fit over the half of the brain that looks most normal.
    Outside the brain the model restored nothing, so the scan itself is returned there.

    Args:
        restored: Healthy image ``(X, Y[, Z])`` in the model's prepared scale.
        scan: The scan ``(X, Y[, Z])``.
        scores: Anomaly map ``(X, Y[, Z])``; larger is more abnormal.
        brain: Where the model looked ``(X, Y[, Z])``.
    """
    slope, offset = _fit(*(_sample(array) for array in (restored, scan, scores, brain)))
    inside = restored * np.float32(slope) + np.float32(offset)
    return np.where(brain, inside, scan).astype(np.float32, copy=False)


def _fit(
    restored: NDArray[Any], scan: NDArray[Any], scores: NDArray[Any], brain: NDArray[np.bool_]
) -> tuple[float, float]:
    """Slope and offset that lead from the restored values to the scan's."""
    if not brain.any():
        return 1.0, 0.0
    normal = brain & (scores <= np.median(scores[brain]))
    x = restored[normal].astype(np.float64)
    y = scan[normal].astype(np.float64)
    spread = float(x.var())
    slope = float(np.mean((x - x.mean()) * (y - y.mean()))) / spread if spread > 0 else 0.0
    if slope > 0:
        return slope, float(y.mean()) - slope * float(x.mean())
    # Nothing in common with the scan: 0..1 spans it from darkest to brightest.
    low, high = np.percentile(scan[brain], (0.2, 99.8))
    return float(high - low), float(low)


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    """Every few voxels of a large array: enough for a fit."""
    step = max(1, round((array.size / 1e6) ** (1 / array.ndim)))
    return array[(slice(None, None, step),) * array.ndim]
