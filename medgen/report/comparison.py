"""The report of a restoration: before and after in one HTML file that never asks the network.

Scan, result, uncertainty and hole travel inside the file as 8-bit mosaics
(:mod:`medgen.report.mosaic`). Of a volume too large for that, the page also holds three slices of
full resolution, those through the point it opens at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.report import words
from medgen.report.comparison_picture import comparison_overview
from medgen.report.comparison_scene import (
    Comparison,
    RestorationLike,
    build_comparison,
    grids,
    made,
    measures,
    methods_paragraph,
    title,
    uncertainty_meaning,
)
from medgen.report.frame import cut
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
from medgen.report.picture import data_uri, grey, inferno

__all__ = ["comparison_overview", "write_comparison"]

# From good to just good enough; the first whose pictures stay below the limit is taken.
QUALITIES = (94, 86, 75, 60)
MOST_CHARACTERS = 5_500_000


def write_comparison(restoration: RestorationLike, path: str | Path) -> Path:
    """Write the report.

    Args:
        restoration: Any object with the attributes of ``RestorationLike``.
        path: Where to write; an existing file is replaced.

    Returns:
        The path written.
    """
    scene = build_comparison(restoration)
    data = _viewer_data(scene)
    text = render(
        "comparison.html",
        page={
            "title": title(restoration),
            "name": words.scan_name(restoration),
            "disclaimer": words.DISCLAIMER,
            "made": made(restoration),
            "uncertainty": uncertainty_meaning(restoration),
            "convention": words.convention(scene),
            "methods": methods_paragraph(restoration, scene),
            "planes": scene.planes,
            "anatomical": scene.anatomical,
            "has_uncertainty": scene.uncertainty is not None,
            "has_hole": scene.invented is not None,
            "same_unit": scene.same_unit,
            "reduced": max(data["factors"]) > 1,
            "notes": [*restoration.notes, *restoration.fallbacks],
            "measures": measures(restoration),
        },
        provenance={
            **words.provenance(restoration, grids(restoration, scene)),
            "Seed": str(restoration.seed),
        },
        timings={name: f"{seconds:.2f} s" for name, seconds in restoration.timings.items()},
        viewer_data=script_json(data),
    )
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def _viewer_data(scene: Comparison) -> dict[str, Any]:
    """Everything the viewer draws, ready for JSON."""
    factors = reduction(scene)
    low, high = embedded_range(scene.before, scene.before_window)
    after_range = _same_bytes((low, high), scene.before_window, scene.after_window)
    volumes = {
        "scan": mosaic(grey(block_mean(scene.before, factors), low, high)),
        "restored": mosaic(grey(block_mean(scene.after, factors), *after_range)),
    }
    if scene.uncertainty is not None:
        top = scene.uncertainty_maximum
        volumes["map"] = mosaic(grey(block_mean(scene.uncertainty, factors), 0, top))
    if scene.invented is not None:
        volumes["mask"] = mosaic(block_peak(scene.invented, factors))
    details = []
    if max(factors) > 1:
        details = [_detail(scene, plane, (low, high), after_range) for plane in scene.planes]
    return {
        **grid_data(scene, factors),
        "colour": False,
        "range": [low, high],
        "afterRange": list(after_range),
        "window": list(scene.before_window),
        "mapMaximum": scene.uncertainty_maximum,
        "threshold": scene.uncertainty_maximum,  # the colours fade in from 0 to the maximum
        "hasMap": scene.uncertainty is not None,
        "hasMask": scene.invented is not None,
        "sameUnit": scene.same_unit,
        "colours": inferno().tolist(),
        "start": reduced(scene.focus(), factors),
        "layers": _encoded(volumes),
        "details": details,
    }


def _same_bytes(
    scan: tuple[float, float], window: tuple[float, float], other: tuple[float, float]
) -> tuple[float, float]:
    """Values of the result that become 0 and 255, so that one grey window serves both images."""
    scale = (other[1] - other[0]) / (window[1] - window[0])
    low, high = (other[0] + (value - window[0]) * scale for value in scan)
    return low, high


def _encoded(volumes: dict[str, NDArray[Any]]) -> dict[str, str]:
    """Mosaics as data URIs: masks without loss, the rest as well as the file's size allows."""
    layers: dict[str, str] = {}
    for quality in QUALITIES:
        layers = {
            name: data_uri(pixels, "png")
            if pixels.dtype == np.bool_
            else data_uri(pixels, "jpeg", quality)
            for name, pixels in volumes.items()
        }
        if sum(map(len, layers.values())) <= MOST_CHARACTERS:
            break
    return layers


def _detail(
    scene: Comparison, plane: Any, scan: tuple[float, float], after: tuple[float, float]
) -> dict[str, Any]:
    """One slice of full resolution, as a volume of one slice whose axes are across and down."""
    index = scene.focus()[plane.normal]
    volumes = {
        "scan": grey(cut(scene.before, plane, index), *scan),
        "restored": grey(cut(scene.after, plane, index), *after),
    }
    if scene.uncertainty is not None:
        values = cut(scene.uncertainty, plane, index)
        volumes["map"] = grey(values, 0, scene.uncertainty_maximum)
    layers = {name: data_uri(pixels, "jpeg", QUALITIES[0]) for name, pixels in volumes.items()}
    if scene.invented is not None:
        layers["mask"] = data_uri(cut(scene.invented, plane, index), "png")
    shape = [scene.shape[plane.across], scene.shape[plane.down], 1]
    return {"shape": shape, "columns": 1, "layers": layers}
