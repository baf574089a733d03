"""The interactive report: one HTML file that opens from disk and never asks the network.

The scan, the anomaly map, the mask and the restored scan travel inside the file as 8-bit mosaics:
one picture that holds all axial slices side by side. The browser cuts them apart again and draws
any plane from them, so three planes cost no more than one.
"""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.report import words
from medgen.report.picture import data_uri, grey, inferno, thumbnail
from medgen.report.scene import DetectionLike, FindingLike, Scene, build_scene

# Browsers on tablets refuse pictures above 16.7 million pixels, and a file should mail well.
MAX_VOXELS = 8_000_000
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
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("medgen.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scene = build_scene(detection)
    text = environment.get_template("report.html").render(
        page=_page(detection, scene),
        findings=[_finding_row(finding, detection, scene) for finding in detection.findings],
        provenance=_provenance(detection, scene),
        timings={name: f"{seconds:.2f} s" for name, seconds in detection.timings.items()},
        viewer_data=script_json(_viewer_data(detection, scene)),
    )
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


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
    factors = _reduction(scene)
    low, high = _embedded_range(scene)
    layers = {
        "scan": data_uri(mosaic(grey(_mean(scene.scan, factors), low, high)), "jpeg", 86),
        "map": data_uri(mosaic(grey(_peak(scene.map, factors), 0, scene.map_maximum)), "jpeg", 86),
        "mask": data_uri(mosaic(_peak(scene.mask, factors)), "png"),
    }
    if scene.restored is not None:
        restored = grey(_mean(scene.restored, factors), low, high)
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


def _reduction(scene: Scene) -> tuple[int, int, int]:
    """Whole-number reduction along each axis that keeps the embedded volume within bounds."""
    factors, shape = [1, 1, 1], scene.map.shape
    spacing = np.array(scene.spacing_mm)
    while math.prod(math.ceil(n / f) for n, f in zip(shape, factors, strict=True)) > MAX_VOXELS:
        # The finest axis loses least; an axis of one slice has nothing to give.
        cost = np.where(np.array(shape) > np.array(factors), spacing * factors, np.inf)
        factors[int(np.argmin(cost))] += 1
    return factors[0], factors[1], factors[2]


def _blocks(array: NDArray[Any], factors: tuple[int, ...]) -> NDArray[Any]:
    """``(X, Y, Z[, 3])`` cut into blocks ``(x, fx, y, fy, z, fz[, 3])``; the edge repeats."""
    lacking = [(0, -n % f) for n, f in zip(array.shape, factors, strict=False)]
    padded = np.pad(array, lacking + [(0, 0)] * (array.ndim - 3), mode="edge")
    shape: list[int] = []
    for n, f in zip(padded.shape, factors, strict=False):
        shape += [n // f, f]
    return padded.reshape(*shape, *array.shape[3:])


def _mean(array: NDArray[Any], factors: tuple[int, ...]) -> NDArray[Any]:
    if max(factors) == 1:
        return array
    return np.asarray(_blocks(array, factors).mean(axis=(1, 3, 5), dtype=np.float32))


def _peak(array: NDArray[Any], factors: tuple[int, ...]) -> NDArray[Any]:
    """The largest value of each block, so that nothing small is lost."""
    return array if max(factors) == 1 else np.asarray(_blocks(array, factors).max(axis=(1, 3, 5)))


def mosaic_columns(slices: int) -> int:
    """How many slices stand side by side in a mosaic."""
    return math.ceil(math.sqrt(slices))


def mosaic(volume: NDArray[Any]) -> NDArray[Any]:
    """All axial slices of ``(X, Y, Z[, 3])`` as one picture, row by row."""
    x, y, z = volume.shape[:3]
    columns = mosaic_columns(z)
    rows = math.ceil(z / columns)
    picture = np.zeros((rows * y, columns * x, *volume.shape[3:]), dtype=volume.dtype)
    for index in range(z):
        row, column = divmod(index, columns)
        tile = volume[:, :, index].swapaxes(0, 1)
        picture[row * y : (row + 1) * y, column * x : (column + 1) * x] = tile
    return picture
