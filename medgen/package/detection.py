"""From a scan to its anomaly map: the one path for use, calibration and verification alike."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medgen.package.files import ModelPackage
from medgen.run_record import timed
from medgen.volume import Volume

if TYPE_CHECKING:
    from medgen.inference import Predicts

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ScanMaps:
    """What a model says about one scan, on the scan's own grid.

    Attributes:
        map: Anomaly map ``(X, Y[, Z])`` float32, 0 outside the brain.
        evidence: The method's own evidence ``(X, Y[, Z])`` float32, before priors and filters; None
            if there is no prior, or nobody asked for it.
        restored: Healthy image ``(X, Y[, Z])`` float32 in the prepared scale, or None.
        brain_mask: Where the model looked ``(X, Y[, Z])`` bool.
        score: Scan score; larger is more abnormal.
        notes: What the preparation found and did.
        memory_gb: What prediction was estimated to need, in GB.
    """

    map: NDArray[np.float32]
    evidence: NDArray[np.float32] | None
    restored: NDArray[np.float32] | None
    brain_mask: NDArray[np.bool_]
    score: float
    notes: tuple[str, ...]
    memory_gb: float


def run_model(
    package: ModelPackage,
    volume: Volume,
    *,
    method: Predicts | None = None,
    device: str = "cpu",
    max_memory_gb: float | None = None,
    brain_mask: NDArray[np.bool_] | None = None,
    explain: bool = False,
    progress: Callable[[int, int], None] | None = None,
    timings: dict[str, float] | None = None,
) -> ScanMaps:
    """The one path from a scan to its anomaly map, for use, calibration and verification alike.

    Args:
        package: The model.
        volume: The scan, ``(C, X, Y[, Z])``.
        method: The package's network, if it is already loaded.
        device: A torch device.
        max_memory_gb: Refuse if prediction would need more than this.
        brain_mask: Brain on the scan's grid, if known; otherwise it is found.
        explain: Also give the evidence behind the map.
        progress: Called with (done, total) parts of the scan.
        timings: Receives the seconds of each step.

    Raises:
        InputError: The scan cannot be prepared, or needs too much memory.
        PackageError: The package does not fit its method.
    """
    from medgen.inference import estimate_memory_gb, predict_volume
    from medgen.scoring import evidence_map, scan_score, score_map

    timings = {} if timings is None else timings
    with timed(timings, "load model"):
        method = method or package.method()
    with timed(timings, "prepare"):
        prepared = package.preparation.apply(volume, brain_mask)
    inference = package.inference
    if prepared.grid.axis_codes[0] not in "LR":
        # A slice that does not show left and right has no mirror image to average with.
        inference = inference.model_copy(update={"flips": False})
    need = estimate_memory_gb(method, tuple(prepared.image.shape), inference)
    if max_memory_gb is not None:
        need = min(need, max_memory_gb)  # prediction shrinks its batches to fit, or refuses
    log.debug("Prediction needs about %.2f GB of memory.", need)
    with timed(timings, "predict"):
        outputs = predict_volume(
            method, prepared.image, prepared.mask, inference,
            device=device, max_memory_gb=max_memory_gb, progress=progress,
        )  # fmt: skip
    with timed(timings, "score"):
        arrays = {name: np.asarray(value) for name, value in outputs.items()}
        anomaly = score_map(
            np.asarray(prepared.image), arrays, np.asarray(prepared.mask), package.scoring,
            spacing_mm=prepared.grid.spacing_mm,
        )  # fmt: skip
        evidence = None
        if explain and package.scoring.has_prior:
            evidence = evidence_map(
                np.asarray(prepared.image), arrays, np.asarray(prepared.mask), package.scoring
            )
    with timed(timings, "back to the scan's grid"):
        inside = prepared.source_mask

        def back(values: NDArray[np.float32]) -> NDArray[np.float32]:
            # Interpolation reaches half a voxel beyond the brain; scores are defined inside it.
            return np.where(inside, prepared.to_source(values[None])[0], np.float32(0))

        on_scan = back(anomaly)
        evidence = None if evidence is None else back(evidence)
        restored = prepared.to_source(arrays["restored"])[0] if "restored" in arrays else None
        score = scan_score(
            on_scan, inside, volume.geometry.voxel_volume_mm3, package.scoring.scan_score
        )
    return ScanMaps(on_scan, evidence, restored, inside, score, prepared.notes, need)
