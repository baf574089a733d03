"""The files of one detection: maps on the scan's grid, findings, provenance, pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medgen.run_record import fingerprint, run_record, timed
from medgen.tasks.detect_dicom import dicom_names, write_dicom_outputs
from medgen.tasks.output_folder import cannot_write

if TYPE_CHECKING:
    from medgen.scoring import Explanation, Finding
    from medgen.tasks.detect import Detection

IMAGE_ENDINGS = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
AXES = "xyz"
WHY = ("evidence", "evidence_mean", "evidence_share", "difference", "brightness")


def output_names(
    sources: Sequence[str],
    *,
    report: bool = True,
    dicom: Sequence[str] = (),
    bids: bool = False,
) -> dict[str, str]:
    """File name of each output, after the input's name.

    With ``bids``, names are those of a BIDS derivative (the entities of the input, then ``desc``,
    then a suffix), so that the outputs of several images can share a folder.
    """
    stem = output_stem(sources)
    names = {
        "map": f"{stem}_desc-anomaly_map.nii.gz",
        "mask": f"{stem}_desc-anomaly_mask.nii.gz",
        "restored": f"{stem}_desc-restored.nii.gz",
        "findings": "findings.json",
        "findings_table": "findings.tsv",
        "run": "run.json",
    }
    if report:
        names |= {"overview": "overview.png", "report": "report.html"}
    names |= dicom_names(stem, dicom)
    return {kind: _bids_name(stem, name) for kind, name in names.items()} if bids else names


def _bids_name(stem: str, name: str) -> str:
    """``sub-1_FLAIR`` and ``..._desc-anomaly_map.nii.gz`` to ``sub-1_desc-anomalyFLAIR_map...``."""
    entities, _, suffix = stem.rpartition("_")
    own = name.removeprefix(f"{stem}_").removeprefix("desc-anomaly_")
    if own.startswith("desc-restored"):  # an image of the kind it was restored from
        return f"{entities}_desc-restored_{suffix}{own.removeprefix('desc-restored')}"
    return f"{entities}_desc-anomaly{suffix}_{own}"


def output_stem(sources: Sequence[str]) -> str:
    """The input's name without its ending; ``scan`` for DICOM, whose names may name a patient."""
    if len(sources) != 1:
        return "scan"
    name = Path(sources[0]).name
    ending = next((end for end in IMAGE_ENDINGS if name.lower().endswith(end)), None)
    return name[: -len(ending)] or "scan" if ending else "scan"


def write_files(
    detection: Detection,
    folder: Path,
    *,
    report: bool = True,
    dicom: Sequence[str] = (),
    bids: bool = False,
    command: str = "detect-anomalies",
) -> list[str]:
    """Write every output into an existing folder.

    Args:
        detection: The result.
        folder: Where to write; :func:`~medgen.tasks.output_folder.output_folder` gives one.
        report: Also draw the pictures.
        dicom: DICOM objects to write too, of :data:`~medgen.tasks.detect_dicom.DICOM_KINDS`.
        bids: Name files as BIDS derivatives, as :func:`output_names` does.
        command: What to record in ``run.json``; without paths.

    Returns:
        The kinds of output written, as named by :func:`output_names`.

    Raises:
        InputError: The disk is full, the folder cannot be written, or DICOM objects are wanted of a
            scan that is not DICOM.
    """
    names = output_names(detection.volume.provenance.sources, report=report, dicom=dicom, bids=bids)
    try:
        return _write(detection, folder, names, dicom, command)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _write(
    detection: Detection, folder: Path, names: dict[str, str], dicom: Sequence[str], command: str
) -> list[str]:
    from medgen.io import write_nifti

    if detection.restored is None:
        del names["restored"]
    timings = dict(detection.timings)
    grid, scan = detection.volume.geometry, detection.volume
    # zlib leaves the interpreter free, so the maps compress while the pictures are drawn.
    with timed(timings, "write"), ThreadPoolExecutor() as pool:
        inputs = [pool.submit(input_fingerprint, source) for source in scan.provenance.sources]

        def submit(name: str, array: Any, kind: Literal["image", "map", "label"]) -> Future[Path]:
            return pool.submit(write_nifti, folder / name, array, grid, like=scan, kind=kind)

        jobs = [submit(names["map"], detection.map, "map")]
        if detection.restored is not None:
            jobs.append(submit(names["restored"], detection.restored, "image"))
        jobs.append(submit(names["mask"], detection.mask, "label"))
        write_json(folder / names["findings"], findings_summary(detection))
        table = findings_table(detection.findings, detection.explanations)
        (folder / names["findings_table"]).write_text(table, encoding="utf-8")
        if "report" in names:
            _draw(detection, folder, names)
        write_dicom_outputs(detection, folder, dicom, overview=names.get("overview"))
        for job in jobs:
            job.result()
    record = run_record(
        command,
        inputs=[job.result() for job in inputs],
        outputs=[folder / name for kind, name in names.items() if kind != "run"],
        timings=timings,
        model={
            "name": detection.model.name,
            "version": detection.model.version,
            "sha256": detection.model_sha256,
        },
        device=detection.device,
        seed=detection.seed,
        estimated_memory_gb=round(detection.estimated_memory_gb, 3),
        fallbacks=list(detection.fallbacks),
        notes=list(detection.notes),
    )
    write_json(folder / names["run"], record)
    return list(names)


def _draw(detection: Any, folder: Path, names: dict[str, str]) -> None:
    from medgen.report.figures import overview
    from medgen.report.html import write_report

    overview(detection, folder / names["overview"])
    write_report(detection, folder / names["report"])


def input_fingerprint(source: str) -> dict[str, Any]:
    """Hash of an input; a DICOM file's or folder's own name is left out (see output_stem)."""
    found = fingerprint(Path(source))
    if output_stem([source]) == "scan":
        found["name"] = "scan"
    return found


def findings_summary(detection: Detection) -> dict[str, Any]:
    """The contents of ``findings.json``, which ``--json`` also prints."""
    return {
        "scan_score": detection.score,
        "p_value": detection.p_value,
        "p_value_meaning": "part of the healthy reference scans that score this high or higher",
        "threshold": detection.threshold,
        "threshold_meaning": detection.threshold_meaning,
        "model": f"{detection.model.name} {detection.model.version}",
        "map": detection.evidence,
        "coordinates": "voxel indices from 0; mm are RAS+ (x to the right, y front, z head)",
        "findings": [
            asdict(finding) | _why(detection.explanations, finding.label)
            for finding in detection.findings
        ],
        "disclaimer": "Not a medical device. Research use only.",
    }


def _why(explanations: Sequence[Explanation], label: int) -> dict[str, Any]:
    """What drove a finding, if that is known."""
    found = {one.label: asdict(one) for one in explanations}.get(label)
    return {} if found is None else {"why": {k: v for k, v in found.items() if k != "label"}}


def findings_table(findings: Sequence[Finding], explanations: Sequence[Explanation] = ()) -> str:
    """Tab-separated findings, one a line, with units in the column names.

    What is not known (the difference from a restored scan, of a model that restores none) is empty.
    """
    dims = len(findings[0].extent_mm) if findings else 3
    columns = [
        "label", "volume_mm3", "peak", "mean",
        *(f"centroid_{axis}_mm" for axis in AXES),
        *(f"centroid_voxel_{n}" for n in range(dims)),
        *(f"extent_{n}_mm" for n in range(dims)),
        *(f"slice_{n}" for n in range(dims)),
        *WHY,
    ]  # fmt: skip
    rows = [
        [
            finding.label, finding.volume_mm3, finding.peak, finding.mean,
            *finding.centroid_mm, *finding.centroid_voxel, *finding.extent_mm,
            *(finding.slice_index[axis] for axis in range(dims)),
            *(_why(explanations, finding.label).get("why", {}).get(name) for name in WHY),
        ]
        for finding in findings
    ]  # fmt: skip
    lines = [columns, *([_cell(value) for value in row] for row in rows)]
    return "".join("\t".join(line) + "\n" for line in lines)


def _cell(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def write_json(path: Path, values: Any) -> None:
    """Write indented JSON; NaN is refused, as other readers refuse it."""
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
