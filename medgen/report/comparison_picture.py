"""One picture of a restoration: three planes, before, after, and what is not known."""

from __future__ import annotations

import textwrap
from pathlib import Path

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
from medgen.report.comparison_scene import (
    Comparison,
    RestorationLike,
    build_comparison,
    made,
    measures,
    title,
    uncertainty_meaning,
)
from medgen.report.frame import Plane, cut
from medgen.report.picture import (
    Pixels,
    grey,
    grey_picture,
    inferno,
    outlined,
    picture_size,
    resize,
)

HEADER, FOOTER, SIDEBAR = 112, 56, 400
LINE = 56  # characters of a line in the side bar
LISTED = 12  # measures shown


def comparison_overview(restoration: RestorationLike, path: str | Path) -> Path:
    """Write the overview as a PNG.

    Rows are the anatomical planes through the place where most was invented (through the centre if
    everything was computed), at one physical scale; columns are the scan, the result and, if it is
    known, the uncertainty. The right side says what was made, and what was measured.

    Args:
        restoration: Any object with the attributes of ``RestorationLike``.
        path: Where to write; an existing file is replaced.

    Returns:
        The path written.
    """
    scene = build_comparison(restoration)
    scale = pixels_per_mm(scene)
    sizes = [picture_size(scene, plane, scale) for plane in scene.planes]
    titles = ["Before", "After"] + ["Uncertainty"] * (scene.uncertainty is not None)
    column = max(240, *(width for width, _ in sizes))
    rows = sum(height for _, height in sizes) + GAP * (len(sizes) - 1)
    left = MARGIN + len(titles) * (column + GAP) + MARGIN - GAP
    canvas = new_canvas(left + SIDEBAR + MARGIN, HEADER + max(rows, 480) + FOOTER)
    canvas.text(MARGIN, 26, title(restoration), 26, weight="bold")
    name = textwrap.shorten(words.scan_name(restoration), 80, placeholder="…")
    canvas.text(MARGIN, 62, name, 14, color=MUTED)
    for index, text in enumerate(titles):
        x = MARGIN + index * (column + GAP) + column / 2
        canvas.text(x, HEADER - 8, text, 14, ha="center", va="bottom", color=MUTED)
    _draw_planes(canvas, scene, sizes, column)
    _draw_sidebar(canvas, restoration, scene, left)
    note = f"{words.convention(scene)}  {words.DISCLAIMER}"
    canvas.text(MARGIN, canvas.height - 18, note, 12, color=MUTED, va="bottom")
    model = f"{restoration.model.name} {restoration.model.version}"
    right = canvas.width - MARGIN
    canvas.text(right, canvas.height - 18, model, 12, color=MUTED, va="bottom", ha="right")
    return canvas.save(path)


def _draw_planes(
    canvas: Canvas, scene: Comparison, sizes: list[tuple[int, int]], column: int
) -> None:
    at, y = scene.focus(), HEADER
    for plane, size in zip(scene.planes, sizes, strict=True):
        index = at[plane.normal]
        for number, pixels in enumerate(_pictures(scene, plane, index, size)):
            x = MARGIN + number * (column + GAP) + (column - size[0]) / 2
            canvas.picture(pixels, x, y)
            if scene.anatomical:
                draw_letters(canvas, plane.letters, x, y, size)
        if len(scene.planes) > 1:
            label = f"{plane.name}, slice {scene.source_index(plane.normal, index)}"
            middle = y + size[1] / 2
            canvas.text(16, middle, label, 12, color=MUTED, rotation=90, va="center", ha="center")
        y += size[1] + GAP


def _pictures(scene: Comparison, plane: Plane, index: int, size: tuple[int, int]) -> list[Pixels]:
    """Before, after and uncertainty, the hole outlined in all of them."""
    pictures = [
        grey_picture(cut(scene.before, plane, index), scene.before_window, size),
        grey_picture(cut(scene.after, plane, index), scene.after_window, size),
    ]
    if scene.uncertainty is not None:
        values = grey(cut(scene.uncertainty, plane, index), 0.0, scene.uncertainty_maximum)
        pictures.append(inferno()[resize(values, size, smooth=False)])
    if scene.invented is None:
        return pictures
    return [outlined(picture, cut(scene.invented, plane, index)) for picture in pictures]


def _draw_sidebar(
    canvas: Canvas, restoration: RestorationLike, scene: Comparison, left: float
) -> None:
    y = 28.0
    for heading, text in (("WHAT WAS MADE", made(restoration)),
                          ("UNCERTAINTY", uncertainty_meaning(restoration))):  # fmt: skip
        filled = textwrap.fill(text, LINE)
        canvas.text(left, y, heading, 11, color=MUTED, weight="bold")
        canvas.text(left, y + 18, filled, 13)
        y += 46 + 18 * (filled.count("\n") + 1)
    if scene.uncertainty is not None:
        import numpy as np

        bar = inferno()[np.linspace(0, 255, SIDEBAR - 20).astype(int)]
        canvas.picture(np.repeat(bar[None], 10, axis=0), left, y)
        top = words.number(scene.uncertainty_maximum, 3)
        canvas.text(left, y + 14, "0", 11, color=MUTED)
        canvas.text(left + SIDEBAR - 20, y + 14, top, 11, color=MUTED, ha="right")
        y += 52
    found = measures(restoration)
    if found:
        canvas.text(left, y, "MEASURED", 11, color=MUTED, weight="bold")
        y += 20
    for name, value in found[:LISTED]:
        filled = textwrap.fill(f"{name}: {value}", LINE)
        canvas.text(left, y, filled, 13)
        y += 6 + 18 * (filled.count("\n") + 1)
    if len(found) > LISTED:
        canvas.text(left, y, f"and {len(found) - LISTED} more in the report", 13, color=ACCENT)
