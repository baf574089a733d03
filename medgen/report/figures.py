"""One picture that tells the result: three planes through the top finding, and the findings."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from medgen.report import words
from medgen.report.canvas import (
    ACCENT,
    GAP,
    MARGIN,
    MUTED,
    Canvas,
    draw_letters,
    new_canvas,
    pixels_per_mm,
)
from medgen.report.frame import Plane, cut
from medgen.report.picture import (
    OUTLINE,
    difference_picture,
    grey_picture,
    inferno,
    map_picture,
    outlined,
    picture_size,
    scan_picture,
    thumbnail,
)
from medgen.report.scene import DetectionLike, Scene, build_scene

HEADER, FOOTER, SIDEBAR = 112, 88, 400
COLUMNS_WIDTH = 1140  # pixels of all columns together
TITLES = ("Scan", "Anomaly map", "Findings outlined")
TITLES_RESTORED = (*TITLES, "Restored", "Scan minus restored")
STRIP = 6  # findings shown
THUMBNAIL = 112


def overview(detection: DetectionLike, path: str | Path) -> Path:
    """Write the overview as a PNG.

    Rows are the anatomical planes through the first finding (through the centre if there is
    none), at one common physical scale; columns are the scan, the anomaly map, the scan with the
    findings outlined and, if the model restores, the restored scan and the signed difference. The
    right side holds the scan score and the first findings.

    Args:
        detection: Any object with the attributes of ``DetectionLike``.
        path: Where to write; an existing file is replaced.

    Returns:
        The path written.
    """
    scene = build_scene(detection)
    titles = TITLES if scene.restored is None else TITLES_RESTORED
    scale = pixels_per_mm(scene, COLUMNS_WIDTH // len(titles))
    sizes = [picture_size(scene, plane, scale) for plane in scene.planes]
    narrowest = 240 if scene.restored is None else 200
    column = max(narrowest, *(width for width, _ in sizes))
    rows = sum(height for _, height in sizes) + GAP * (len(sizes) - 1)
    least = 430 + (THUMBNAIL + 14) * min(STRIP, len(detection.findings)) - HEADER - FOOTER
    left = 2 * MARGIN + len(titles) * column + (len(titles) - 1) * GAP
    width = left + MARGIN + SIDEBAR
    height = HEADER + max(rows, least, 300) + FOOTER
    canvas = new_canvas(width, height)
    _draw_header(canvas, detection, titles, column)
    _draw_planes(canvas, detection, scene, sizes, column)
    _draw_sidebar(canvas, detection, scene, left)
    _draw_footer(canvas, detection, scene, column)
    return canvas.save(path)


def _draw_header(
    canvas: Canvas, detection: DetectionLike, titles: tuple[str, ...], column: int
) -> None:
    canvas.text(MARGIN, 26, "Anomaly overview", 26, weight="bold")
    name = textwrap.shorten(words.scan_name(detection), 80, placeholder="…")
    canvas.text(MARGIN, 62, name, 14, color=MUTED)
    for index, title in enumerate(titles):
        x = MARGIN + index * (column + GAP) + column / 2
        canvas.text(x, HEADER - 8, title, 14, ha="center", va="bottom", color=MUTED)


def _draw_planes(
    canvas: Canvas,
    detection: DetectionLike,
    scene: Scene,
    sizes: list[tuple[int, int]],
    column: int,
) -> None:
    at = scene.focus(detection.findings[0] if detection.findings else None)
    y = HEADER
    for plane, size in zip(scene.planes, sizes, strict=True):
        index = at[plane.normal]
        pictures = _pictures(scene, plane, index, size)
        for number, pixels in enumerate(pictures):
            x = MARGIN + number * (column + GAP) + (column - size[0]) / 2
            canvas.picture(pixels, x, y)
            if scene.anatomical:
                draw_letters(canvas, plane.letters, x, y, size)
        if len(scene.planes) > 1:
            label = f"{plane.name}, slice {scene.source_index(plane.normal, index)}"
            middle = y + size[1] / 2
            canvas.text(16, middle, label, 12, color=MUTED, rotation=90, va="center", ha="center")
        left = MARGIN + 2 * (column + GAP) + (column - size[0]) / 2
        _draw_numbers(canvas, detection, scene, plane, index, (left, y, *size))
        y += size[1] + GAP


def _pictures(scene: Scene, plane: Plane, index: int, size: tuple[int, int]) -> list[Any]:
    """One slice as the columns show it."""
    scan = scan_picture(scene, plane, index, size)
    pictures = [
        scan,
        map_picture(scene, plane, index, size),
        outlined(scan, cut(scene.mask, plane, index), width=3),
    ]
    if scene.restored is not None:
        values = cut(scene.restored, plane, index)
        # A third of the grey window has the full colour, as in the viewer.
        reach = (scene.window[1] - scene.window[0]) / 3
        difference = cut(scene.scan, plane, index) - values
        pictures += [
            grey_picture(values, scene.window, size),
            difference_picture(difference, reach, size, scan),
        ]
    return pictures


def _draw_numbers(
    canvas: Canvas,
    detection: DetectionLike,
    scene: Scene,
    plane: Plane,
    index: int,
    box: tuple[float, float, float, float],
) -> None:
    """The listed findings' numbers beside their outlines in this slice."""
    from matplotlib.patheffects import withStroke

    left, top, width, height = box
    shadow = [withStroke(linewidth=2.5, foreground="black")]
    style: dict[str, Any] = {"weight": "bold", "va": "bottom", "path_effects": shadow}
    for finding in detection.findings[:STRIP]:
        first, last = scene.box_corners(finding)
        rows = slice(first[plane.down], last[plane.down] + 1)
        columns = slice(first[plane.across], last[plane.across] + 1)
        if first[plane.normal] <= index <= last[plane.normal]:
            part = cut(scene.mask, plane, index)[rows, columns]
            if not part.any():
                continue
            # At the right end of the outline's topmost row.
            row = int(part.any(axis=1).argmax())
            column = columns.start + int(part[row].nonzero()[0][-1]) + 1.5
            x = left + column / scene.map.shape[plane.across] * width
            y = top + (rows.start + row) / scene.map.shape[plane.down] * height
            canvas.text(x, y + 4, str(finding.label), 14, **style)


def _draw_sidebar(canvas: Canvas, detection: DetectionLike, scene: Scene, left: float) -> None:
    canvas.text(left, 28, "SCAN SCORE", 11, color=MUTED, weight="bold")
    canvas.text(left, 44, words.score(detection.score), 40, weight="bold")
    canvas.text(left, 104, words.verdict(detection.p_value), 16, color=ACCENT, weight="bold")
    meaning = textwrap.fill(words.score_meaning(detection.p_value), 54)
    canvas.text(left, 130, meaning, 13)
    y = 150 + 18 * (meaning.count("\n") + 1)
    canvas.text(left, y, words.findings_sentence(len(detection.findings)), 16, weight="bold")
    y += 26
    threshold = textwrap.fill(words.threshold(detection), 58)
    canvas.text(left, y, threshold, 12, color=MUTED)
    y += 18 + 17 * (threshold.count("\n") + 1)
    unit = "mm (RAS)" if scene.anatomical else "px"
    reasons = {one.label: words.reason(one) for one in detection.explanations}
    for finding in detection.findings[:STRIP]:
        canvas.picture(thumbnail(scene, finding, THUMBNAIL), left, y)
        x = left + THUMBNAIL + 16
        size = words.size(finding, detection.volume)
        canvas.text(x, y + 8, f"{finding.label}", 13, color=ACCENT, weight="bold")
        canvas.text(x + 30, y + 6, size, 17, weight="bold")
        canvas.text(
            x,
            y + 38,
            f"peak score {words.score(finding.peak)}, mean {words.score(finding.mean)}\n"
            + f"centre {words.position(finding, detection.volume)} {unit}",
            12.5,
            color=MUTED,
        )
        why = "\n".join(reasons.get(finding.label, "").split("; ")[:2])
        canvas.text(x, y + 78, why, 12, color=MUTED)
        y += THUMBNAIL + 14
    more = len(detection.findings) - STRIP
    if more > 0:
        canvas.text(left, y, f"and {more} more with lower peaks", 13, color=MUTED)


def _draw_footer(canvas: Canvas, detection: DetectionLike, scene: Scene, column: int) -> None:
    import numpy as np

    y = canvas.height - FOOTER + 16
    x, width = MARGIN + column + GAP + 20, column - 40
    bar = np.repeat(inferno()[np.linspace(0, 255, width).astype(int)][None], 10, axis=0)
    mark = round(width * min(detection.threshold / scene.map_maximum, 1.0))
    bar[:, max(0, mark - 1) : mark + 1] = OUTLINE
    canvas.picture(bar, x, y)
    canvas.text(x, y + 14, "0", 11, color=MUTED)
    top = words.score(scene.map_maximum)
    canvas.text(x + width, y + 14, top, 11, color=MUTED, ha="right")
    label = f"threshold {words.score(detection.threshold)}"
    # Above the bar: 0 and the top of the scale are below.
    canvas.text(x + mark, y - 15, label, 11, color=ACCENT, ha="center")
    note = f"{words.convention(scene)}  {words.DISCLAIMER}"
    canvas.text(MARGIN, canvas.height - 18, note, 12, color=MUTED, va="bottom")
    model = f"{detection.model.name} {detection.model.version}"
    right = canvas.width - MARGIN
    canvas.text(right, canvas.height - 18, model, 12, color=MUTED, va="bottom", ha="right")
