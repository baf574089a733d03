"""Detect anomalies: where, how much and how surely a scan departs from normal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medgen.devices import check_device_name, resolve_device
from medgen.manifest import Manifest
from medgen.package import ModelPackage, ScanMaps, load_package, require_task, run_model
from medgen.run_record import timed
from medgen.tasks.detect_dicom import check_dicom_format, check_dicom_source, dicom_kinds
from medgen.tasks.limits import check_memory, check_scan, default_memory_gb, plan
from medgen.tasks.running import Progress, importing, on_device
from medgen.tasks.scan_units import in_scan_units
from medgen.volume import Volume

if TYPE_CHECKING:
    from medgen.inference import Predicts
    from medgen.scoring import Explanation, Finding

DEFAULT_MODEL = "brain-mr"


@dataclass(frozen=True, eq=False)
class Detection:
    """What a model found in one scan. All arrays lie on the scan's own grid.

    Attributes:
        volume: The scan.
        map: Anomaly map ``(X, Y[, Z])`` float32; larger is more abnormal, 0 outside the brain.
        mask: Voxels of the findings ``(X, Y[, Z])`` bool.
        restored: The scan as the model would expect it if healthy, ``(X, Y[, Z])`` float32 in the
            scan's own values, and equal to it outside the brain; None if it restores nothing.
        brain_mask: Where the model looked ``(X, Y[, Z])`` bool.
        findings: Connected regions above the threshold, the highest peak first.
        score: Scan score; larger is more abnormal.
        p_value: Part of healthy scans that score this high or higher (conformal), 0..1; None if
            the model was not calibrated, or on volumes and the scan is a slice (or the other way
            round), whose score is another quantity.
        threshold: Map value above which a voxel counts.
        threshold_meaning: What that value stands for.
        model: The manifest of the model.
        model_sha256: Hash that identifies the model and all its files.
        explanations: Of each finding, what drove it.
        evidence: What the map is made of, in words.
        notes: What was found and done on the way, for people.
        fallbacks: What could not be done as wished, and what was done instead.
        timings: Seconds of each step.
        device: Where the network ran.
        seed: Seed of the run.
        estimated_memory_gb: Estimated peak memory, in GB.
    """

    volume: Volume
    map: NDArray[np.float32]
    mask: NDArray[np.bool_]
    restored: NDArray[np.float32] | None
    brain_mask: NDArray[np.bool_]
    findings: list[Finding]
    score: float
    p_value: float | None
    threshold: float
    threshold_meaning: str
    model: Manifest
    model_sha256: str
    explanations: tuple[Explanation, ...] = ()
    evidence: str = ""
    notes: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    device: str = "cpu"
    seed: int = 0
    estimated_memory_gb: float = 0.0

    def save(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        report: bool = True,
        dicom_out: str | Sequence[str] = (),
    ) -> dict[str, Path]:
        """Write maps, findings, ``run.json`` and the report into a folder, all or nothing.

        Args:
            folder: Made if absent; other files in it are left alone.
            overwrite: Replace the outputs of an earlier run.
            report: Also draw ``overview.png`` and ``report.html``.
            dicom_out: DICOM objects to write too: ``seg``, ``pmap``, ``sr``, ``sc``.

        Returns:
            The path of each output by what it is (``map``, ``mask``, ``restored``, ...).

        Raises:
            InputError: An output exists, the folder cannot be written, or DICOM objects are wanted
                of a scan that was not read from DICOM.
        """
        from medgen.tasks.detect_files import output_names, write_files
        from medgen.tasks.output_folder import output_folder

        folder = Path(folder)
        objects = dicom_kinds(dicom_out)
        check_dicom_source(self.volume, objects)
        names = output_names(self.volume.provenance.sources, report=report, dicom=objects)
        with output_folder(folder, list(names.values()), overwrite=overwrite) as draft:
            kinds = write_files(self, draft, report=report, dicom=objects)
        return {kind: folder / names[kind] for kind in kinds}


def detect_anomalies(
    source: str | Path | Volume,
    model: str | Path | ModelPackage = DEFAULT_MODEL,
    *,
    method: Predicts | None = None,
    device: str = "auto",
    seed: int = 0,
    max_memory_gb: float | None = None,
    threshold: float | None = None,
    frame: int | None = None,
    series: str | None = None,
    dicom_out: str | Sequence[str] = (),
    progress: Progress | None = None,
) -> Detection:
    """Find where a scan departs from what a model learned to be normal.

    Args:
        source: A file, a DICOM folder, or a volume in memory.
        model: Name or folder of a model package, or one that is loaded.
        method: The package's network, if it is loaded: many scans then share it.
        device: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda[:N]`` or ``mps``.
        seed: Seeds torch; prediction draws no random numbers, so results do not depend on it.
        max_memory_gb: Refuse scans that would need more (default: 80 % of the free memory, at
            most 16 GB).
        threshold: Map value above which a voxel counts, instead of the calibrated one.
        frame: Which image of a 4-D file, from 0.
        series: Which DICOM series of a folder.
        dicom_out: The DICOM objects that will be written of the result; refused now if the scan is
            not DICOM.
        progress: Called with (done, total) as the network works through the scan.

    Returns:
        The detection, on the scan's own grid.

    Raises:
        InputError: The scan, the model or the device cannot be used; says why and what to do.
    """
    check_device_name(device)
    objects = dicom_kinds(dicom_out)
    package = model if isinstance(model, ModelPackage) else load_package(model)
    require_task(package, "detect-anomalies")
    limit = default_memory_gb() if max_memory_gb is None else max_memory_gb
    timings: dict[str, float] = {}
    if isinstance(source, Volume):
        volume = source
    else:
        wanted = _Wanted(frame, series, bool(objects))
        volume = _read(Path(source), package.manifest, limit, wanted, timings)
    check_dicom_source(volume, objects)
    check_scan(volume, package.manifest)
    need = check_memory(
        volume.geometry.shape, volume.voxels.shape[0], limit,
        spacing_mm=volume.geometry.spacing_mm, manifest=package.manifest,
    )  # fmt: skip
    where = resolve_device(device)
    import torch

    torch.manual_seed(seed)

    def run(on: str) -> ScanMaps:
        return run_model(
            package, volume, method=method, device=on, max_memory_gb=limit - need,
            explain=True, progress=progress, timings=timings,
        )  # fmt: skip

    result, where, fallbacks = on_device(run, where, device)
    with timed(timings, "findings"):
        detection = _detection(package, volume, result, threshold)
    return replace(
        detection,
        notes=(*detection.notes, *fallbacks),
        fallbacks=fallbacks,
        timings=timings,
        device=where,
        seed=seed,
        estimated_memory_gb=need + result.memory_gb,
    )


class _Wanted(NamedTuple):
    """Which image of a file or folder, and whether it must be DICOM."""

    frame: int | None
    series: str | None
    dicom: bool


def _read(
    path: Path, manifest: Manifest, limit: float, wanted: _Wanted, timings: dict[str, float]
) -> Volume:
    """Read the scan, after a look at its header, while torch is imported on another thread."""
    from medgen import io

    with timed(timings, "read and import"):
        facts = plan(path, manifest, limit, frame=wanted.frame, series=wanted.series)
        if wanted.dicom:
            check_dicom_format(facts["kind"])
        with importing("torch", "monai.data"):
            return io.read(path, frame=wanted.frame, series=wanted.series)


def _detection(
    package: ModelPackage,
    volume: Volume,
    result: ScanMaps,
    threshold: float | None,
) -> Detection:
    """Look for connected findings and say what the scan score means."""
    from medgen.scoring import explain, find_regions

    level, meaning = _threshold(package, threshold, volume.spatial_dims)
    labels, findings = find_regions(
        result.map, volume.geometry, level, result.brain_mask, package.scoring.minimum_volume_mm3
    )
    calibration = package.calibration
    if calibration is not None and calibration.spatial_dims != volume.spatial_dims:
        calibration = None
    restored = result.restored
    if restored is not None:
        restored = in_scan_units(restored, volume.voxels[0], result.map, result.brain_mask)
    explanations = explain(
        findings, labels, result.map, result.brain_mask, volume.voxels.mean(axis=0),
        evidence=package.scoring.evidence, evidence_scores=result.evidence, restored=restored,
    )  # fmt: skip
    return Detection(
        volume=volume,
        map=result.map,
        mask=labels > 0,
        restored=restored,
        brain_mask=result.brain_mask,
        findings=findings,
        score=result.score,
        p_value=None if calibration is None else calibration.p_value(result.score),
        threshold=level,
        threshold_meaning=meaning,
        model=package.manifest,
        model_sha256=package.sha256,
        explanations=tuple(explanations),
        evidence=package.scoring.in_words,
        notes=result.notes,
    )


def _threshold(package: ModelPackage, chosen: float | None, dims: int) -> tuple[float, str]:
    """The threshold in use and what it stands for."""
    if chosen is not None:
        return chosen, "chosen by the user; no error rate is known for it"
    calibration = package.calibration
    if calibration is None:
        meaning = "the model's default; it was not calibrated, so no error rate is known for it"
        return package.manifest.default_threshold, meaning
    if dims != calibration.spatial_dims:
        kinds = {2: "a single slice", 3: "a 3-D scan"}
        made_on = {2: "slices", 3: "3-D scans"}[calibration.spatial_dims]
        meaning = f"calibrated on {made_on}; no error rate is known for {kinds[dims]}"
        return calibration.threshold, meaning
    return calibration.threshold, calibration.threshold_rule
