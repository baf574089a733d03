"""The interactive report: one HTML file that opens from disk and never asks the network.

The scan, the anomaly map, the mask and the restored scan travel inside the file as 8-bit mosaics
(:mod:`medgen.report.mosaic`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medgen.report import words
from medgen.report.mosaic import (
    block_mean,
    block_peak,
    embedded_range,
    grid_data,
    mosaic,
    reduced,
    reduction,
)
from medgen.report.pages import render, script_json
from medgen.report.picture import data_uri, grey, inferno, thumbnail
from medgen.report.scene import DetectionLike, FindingLike, Scene, build_scene

THUMBNAIL = 112


def write_report(detection: DetectionLike, path: str | Path) -> Path:
    """Write the report.

    Args:
        detection: Any object with the attributes of ``DetectionLike``.
        path: Where to write; an existing file is replaced.

    Returns:
        The path written.
    """
    scene = build_scene(detection)
    text = render(
        "report.html",
        page=_page(detection, scene),
        findings=finding_rows(detection, scene),
        provenance=words.provenance(
            detection, {"Grid": words.grid(detection.volume.geometry, scene.anatomical)}
        ),
        timings={name: f"{seconds:.2f} s" for name, seconds in detection.timings.items()},
        viewer_data=script_json([viewer_data(detection, scene)]),
    )
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def _page(detection: DetectionLike, scene: Scene) -> dict[str, Any]:
    """The sentences and numbers of the page."""
    p_value = detection.p_value
    return {
        "name": words.scan_name(detection),
        "score": words.score(detection.score),
        "verdict": words.verdict(p_value),
        "meaning": words.score_meaning(p_value),
        "p_value": None if p_value is None else words.number(p_value),
        # A rank among healthy scans, 0 (lowest score) to 100.
        "rank": None if p_value is None else round(100 * (1 - min(max(p_value, 0.0), 1.0)), 1),
        "unusual": p_value is not None and p_value <= 0.05,
        "findings": words.findings_sentence(len(detection.findings)),
        "threshold": words.threshold(detection),
        "convention": words.convention(scene),
        "methods": words.methods_paragraph(detection),
        "disclaimer": words.DISCLAIMER,
        "planes": scene.planes,
        "anatomical": scene.anatomical,
        "restored": scene.restored is not None,
        "evidence": detection.evidence,
        "notes": list(detection.notes),
    }


def finding_rows(detection: DetectionLike, scene: Scene) -> list[dict[str, str]]:
    """What the list of findings says of each."""
    reasons = {one.label: words.reason(one) for one in detection.explanations}
    return [
        {**_finding_row(finding, detection, scene), "reason": reasons.get(finding.label, "")}
        for finding in detection.findings
    ]


def _finding_row(finding: FindingLike, detection: DetectionLike, scene: Scene) -> dict[str, str]:
    return {
        "label": str(finding.label),
        "size": words.size(finding, detection.volume),
        "peak": words.score(finding.peak),
        "mean": words.score(finding.mean),
        "position": words.position(finding, detection.volume),
        "extent": " × ".join(f"{mm:.0f}" for mm in finding.extent_mm),
        "thumbnail": data_uri(thumbnail(scene, finding, THUMBNAIL), "jpeg", 88),
    }


def viewer_data(detection: DetectionLike, scene: Scene) -> dict[str, Any]:
    """Everything the viewer draws, ready for JSON."""
    factors = reduction(scene)
    low, high = embedded_range(scene.scan, scene.window)
    layers = {
        "scan": data_uri(mosaic(grey(block_mean(scene.scan, factors), low, high)), "jpeg", 86),
        "map": data_uri(
            mosaic(grey(block_peak(scene.map, factors), 0, scene.map_maximum)), "jpeg", 86
        ),
        "mask": data_uri(mosaic(block_peak(scene.mask, factors)), "png"),
    }
    if scene.restored is not None:
        restored = grey(block_mean(scene.restored, factors), low, high)
        layers["restored"] = data_uri(mosaic(restored), "jpeg", 86)
    return {
        **grid_data(scene, factors),
        "colour": scene.scan.ndim == 4,
        "range": [low, high],
        "window": list(scene.window),
        "mapMaximum": scene.map_maximum,
        "threshold": float(detection.threshold),
        "colours": inferno().tolist(),
        "start": reduced(scene.focus(None), factors),
        "findings": [_target(finding, scene, factors) for finding in detection.findings],
        "layers": layers,
    }


def _target(finding: FindingLike, scene: Scene, factors: tuple[int, ...]) -> dict[str, Any]:
    first, last = scene.box_corners(finding)
    return {
        "label": str(finding.label),
        "at": reduced(scene.focus(finding), factors),
        "box": [reduced(first, factors), reduced(last, factors)],
    }
