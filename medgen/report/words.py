"""The sentences of a report: plain words for numbers, and a paragraph to cite."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import PurePath
from typing import Any, Protocol

from medgen.report.frame import Frame, is_anatomical
from medgen.report.scene import DetectionLike, ExplanationLike, FindingLike
from medgen.volume import Geometry, Volume

EVIDENCE = {
    "probability": "probability",
    "score": "score",
    "residual_positive": "residual (brighter)",
    "residual_negative": "residual (darker)",
    "residual_absolute": "residual",
}
DISCLAIMER = "Not a medical device. Research use only."
RADIOLOGICAL = "Radiological convention: the patient's left is on the right of the picture."


class ResultLike(Protocol):
    """What was computed, from what, with what: a detection or a restoration."""

    @property
    def volume(self) -> Volume: ...  # noqa: D102
    @property
    def model(self) -> Any: ...  # noqa: D102
    @property
    def model_sha256(self) -> str: ...  # noqa: D102
    @property
    def device(self) -> str: ...  # noqa: D102


def scan_name(result: ResultLike) -> str:
    """A name for the heading: the file's own name, never its folders.

    DICOM files and folders are often named after the patient, so they are only counted.
    """
    provenance = result.volume.provenance
    if provenance.format == "dicom":
        return f"DICOM {provenance.modality or ''} series".replace("  ", " ")
    if not provenance.sources:
        return "scan in memory"
    return PurePath(provenance.sources[0]).name


def verdict(p_value: float | None) -> str:
    """How unusual the scan score is, in a few words."""
    if p_value is None:
        return "Not calibrated"
    if p_value <= 0.05:
        return "Unusual"
    return "Somewhat unusual" if p_value <= 0.2 else "Within the usual range"


def score_meaning(p_value: float | None) -> str:
    """What the scan score says, as a natural frequency."""
    if p_value is None:
        return (
            "This model was not calibrated on healthy scans of this kind, so the score has no "
            "scale of its own: compare it only with scores of the same model."
        )
    if p_value < 0.1:
        how_many = f"About 1 in {float(f'{1 / p_value:.2g}'):.0f} healthy reference scans scores"
    else:
        how_many = f"About {round(100 * p_value)} in 100 healthy reference scans score"
    meaning = f"{how_many} this high or higher."
    if p_value > 0.2:
        meaning += " A usual score does not rule out disease."
    return meaning


def number(value: float, digits: int = 2) -> str:
    """A number with a few significant digits and no exponent for everyday sizes."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        text = f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
        return text if "e" not in text else f"{value:.{digits + 2}f}"
    return f"{value:.1e}"


def score(value: float) -> str:
    """An anomaly score: two decimals where that says something."""
    return f"{value:.2f}" if 0.01 <= abs(value) < 100 else number(value)


def threshold(detection: DetectionLike) -> str:
    """The threshold and what it promises."""
    meaning = detection.threshold_meaning.strip().rstrip(".")
    if meaning[:1].isdigit():  # it names the threshold itself
        return f"Threshold {meaning}."
    return f"Threshold {score(detection.threshold)}" + (f": {meaning}." if meaning else ".")


def size(finding: FindingLike, volume: Volume) -> str:
    """Volume (of an image of one plane: area) of a finding with its unit."""
    geometry = volume.geometry
    if not is_anatomical(volume.provenance):
        return f"{round(finding.volume_mm3 / geometry.voxel_volume_mm3)} px"
    if geometry.spatial_dims == 2:
        x, y = geometry.spacing_mm
        return f"{number(finding.volume_mm3 / geometry.voxel_volume_mm3 * x * y)} mm²"
    if finding.volume_mm3 < 100:
        return f"{number(finding.volume_mm3)} mm³"
    return f"{finding.volume_mm3 / 1000:.1f} ml"


def position(finding: FindingLike, volume: Volume) -> str:
    """Where a finding is: RAS+ mm, or pixels of a picture.

    Signed numbers, not "left" and "right": a scan's origin need not lie in the midline.
    """
    anatomical = is_anatomical(volume.provenance)
    numbers = finding.centroid_mm if anatomical else finding.centroid_voxel
    return ", ".join(f"{round(value)}".replace("-", "−") for value in numbers)


def reason(explanation: ExplanationLike) -> str:
    """What drove a finding, in a sentence's part."""
    name = EVIDENCE.get(explanation.evidence, explanation.evidence)
    parts = [f"{name} {score(explanation.evidence_mean)}"]
    share = explanation.evidence_share
    if share is not None and share < 0.995:
        own = round(100 * max(share, 0.0))  # below 0, the prior lifted what the method did not see
        drivers = [(own, name), (100 - own, "intensity prior")]
        drivers.sort(key=lambda driver: -driver[0])
        parts = [" and ".join(f"{driver} ({percent} %)" for percent, driver in drivers)]
    elif share is not None and share > 1.005:
        parts = [f"{name}, held down by the intensity prior"]
    if explanation.difference is not None:
        way = "brighter" if explanation.difference > 0 else "darker"
        parts.append(f"{way} than restored by {number(abs(explanation.difference), 3)}")
    parts.append(f"brighter than {round(100 * explanation.brightness)} % of what was looked at")
    return "; ".join(parts)


def findings_sentence(count: int) -> str:
    """How many findings there are."""
    if count == 0:
        return "No finding above the threshold"
    return f"{count} finding{'s' if count > 1 else ''} above the threshold"


def convention(frame: Frame) -> str:
    """How left and right are shown."""
    if not frame.anatomical:
        return "Shown as stored; a picture file does not say where the patient's left is."
    return RADIOLOGICAL


def versions() -> dict[str, str]:
    """Versions of what computed the result, found without importing any of it."""
    found = {"Python": platform.python_version()}
    for name in ("medgen", "torch", "monai", "numpy", "scipy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def grid(geometry: Geometry, anatomical: bool) -> str:
    """Size of an image; pixel sizes only where the file knows them."""
    unit = "voxels" if geometry.spatial_dims == 3 else "pixels"
    text = " × ".join(map(str, geometry.shape)) + f" {unit}"
    if not anatomical:
        return text
    return f"{text} of {' × '.join(f'{mm:.3g}' for mm in geometry.spacing_mm)} mm"


def provenance(result: ResultLike, grids: dict[str, str]) -> dict[str, str]:
    """What was computed, from what, with what; without what is not known."""
    model = result.model
    facts = {
        "Scan": scan_name(result),
        **grids,
        "Model": f"{model.name} {model.version} ({model.method})",
        "Model hash": f"sha256 {result.model_sha256}" if result.model_sha256 else "",
        "Training data": "; ".join(map(training_set, model.training_data)) or "none",
        "Intended use": model.intended_use,
        "Device": result.device,
        "Versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "Report written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    return {name: text for name, text in facts.items() if text}


def methods_paragraph(detection: DetectionLike) -> str:
    """A methods paragraph to paste into a paper."""
    model, volume, count = detection.model, detection.volume, len(detection.findings)
    sentences = [
        f"Anomalies were detected with medgen {versions().get('medgen', '')}".rstrip()
        + f" and its model {model.name} (version {model.version}, method {model.method}, "
        f"sha256 {detection.model_sha256[:12]})",
        training_sentence(model.training_data),
        f"The scan had {grid(volume.geometry, is_anatomical(volume.provenance))}",
        *(note.rstrip(".").strip() for note in detection.notes),
        f"The anomaly score is {detection.evidence}" if detection.evidence else "",
        f"Voxels with an anomaly score above {score(detection.threshold)}"
        + (f" ({detection.threshold_meaning.rstrip('.')})" if detection.threshold_meaning else "")
        + " were grouped into connected findings",
        f"{count or 'No'} finding{'' if count == 1 else 's'} resulted",
        f"The scan score was {score(detection.score)}{_p_value_clause(detection.p_value)}",
    ]
    return " ".join(f"{s[0].upper()}{s[1:]}." for s in sentences if s)


def _p_value_clause(p_value: float | None) -> str:
    if p_value is None:
        return " (not calibrated)"
    return f" (conformal p-value against held-out healthy reference scans {number(p_value)})"


def training_sentence(training_data: Sequence[Any]) -> str:
    """What the model learned from, or nothing if it did not learn."""
    names = [training_set(entry) for entry in training_data]
    return f"The model was trained on {' and '.join(names)}" if names else ""


def training_set(entry: Any) -> str:
    """One training data set: its name, number of cases and licence."""
    return f"{entry.name} ({entry.cases} cases, {entry.licence})"
