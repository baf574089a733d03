"""The interactive report: one HTML file that opens from disk and never asks the network.

The scan, the anomaly map, the mask and the restored scan travel inside the file as 8-bit mosaics
(:mod:`medgen.report.mosaic`).
"""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from medgen.report import words
from medgen.report.mosaic import block_mean, block_peak, mosaic, mosaic_columns, reduction
from medgen.report.pages import render, script_json
from medgen.report.picture import data_uri, grey, inferno, thumbnail
from medgen.report.scene import DetectionLike, FindingLike, Scene, build_scene

# The embedded grey values reach this many window widths beyond the window, on either side.
WINDOW_REACH = 0.75
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
        findings=[_finding_row(finding, detection, scene) for finding in detection.findings],
        provenance=_provenance(detection, scene),
        timings={name: f"{seconds:.2f} s" for name, seconds in detection.timings.items()},
        viewer_data=script_json(_viewer_data(detection, scene)),
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
        "methods": words.methods_paragraph(detection, scene),
        "disclaimer": words.DISCLAIMER,
        "planes": scene.planes,
        "anatomical": scene.anatomical,
        "restored": scene.restored is not None,
        "notes": list(detection.notes),
    }


def _finding_row(finding: FindingLike, detection: DetectionLike, scene: Scene) -> dict[str, str]:
    return {
        "label": str(finding.label),
        "size": words.size(finding, detection, scene),
        "peak": words.score(finding.peak),
        "mean": words.score(finding.mean),
        "position": words.position(finding, scene),
        "extent": " × ".join(f"{mm:.0f}" for mm in finding.extent_mm),
        "thumbnail": data_uri(thumbnail(scene, finding, THUMBNAIL), "jpeg", 88),
    }


def _provenance(detection: DetectionLike, scene: Scene) -> dict[str, str]:
    """What was computed, from what, with what."""
    model = detection.model
    facts = {
        "Scan": words.scan_name(detection),
        "Grid": words.grid(detection, scene),
        "Model": f"{model.name} {model.version} ({model.method})",
        "Model hash": f"sha256 {detection.model_sha256}",
        "Training data": "; ".join(map(words.training_set, model.training_data)) or "none",
        "Intended use": model.intended_use,
        "Device": detection.device,
        "Versions": ", ".join(f"{name} {version}" for name, version in words.versions().items()),
        "Report written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    return {name: text for name, text in facts.items() if text}


def _viewer_data(detection: DetectionLike, scene: Scene) -> dict[str, Any]:
    """Everything the viewer draws, ready for JSON."""
    factors = reduction(scene)
    low, high = _embedded_range(scene)
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
    shape = [math.ceil(n / f) for n, f in zip(scene.map.shape, factors, strict=True)]
    # Reduced voxel i covers factor voxels, so its centre lies half a block further.
    scale = np.diag([*factors, 1.0])
    scale[:3, 3] = (np.array(factors) - 1) / 2
    return {
        "shape": shape,
        "columns": mosaic_columns(shape[2]),
        "factors": list(factors),
        "spacing": [mm * f for mm, f in zip(scene.spacing_mm, factors, strict=True)],
        "affine": (scene.geometry.affine @ scale).round(4).tolist(),
        "anatomical": scene.anatomical,
        "planes": [vars(plane) for plane in scene.planes],
        "sourceStart": list(scene.source_start),
        "sourceStep": [-1 if flipped else 1 for flipped in scene.source_flipped],
        "colour": scene.scan.ndim == 4,
        "range": [low, high],
        "window": list(scene.window),
        "mapMaximum": scene.map_maximum,
        "threshold": float(detection.threshold),
        "colours": inferno().tolist(),
        "start": _reduced(scene.focus(None), factors),
        "findings": [_target(finding, scene, factors) for finding in detection.findings],
        "layers": layers,
    }


def _target(finding: FindingLike, scene: Scene, factors: tuple[int, ...]) -> dict[str, Any]:
    first, last = scene.box_corners(finding)
    return {
        "label": str(finding.label),
        "at": _reduced(scene.focus(finding), factors),
        "box": [_reduced(first, factors), _reduced(last, factors)],
    }


def _reduced(voxel: Any, factors: tuple[int, ...]) -> list[int]:
    return [int(v) // f for v, f in zip(voxel, factors, strict=True)]


def _embedded_range(scene: Scene) -> tuple[float, float]:
    """Scan values that become 0 and 255: the window, with room to widen it."""
    low, high = scene.window
    reach = WINDOW_REACH * (high - low)
    least, most = float(np.nanmin(scene.scan)), float(np.nanmax(scene.scan))
    return max(low - reach, min(least, low)), min(high + reach, max(most, high))
