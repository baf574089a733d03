"""A contact sheet: many made images in one picture that says that they are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

BACKGROUND, TEXT, MUTED, ACCENT = (11, 15, 20), (238, 242, 246), (147, 161, 176), (255, 176, 59)
MARGIN, GAP, HEADER, CAPTION = 28, 8, 84, 22
TILE = 128  # pixels of the height, at least
MOST_TILES = 64


@dataclass(frozen=True, eq=False)
class Tile:
    """One image of the sheet.

    Attributes:
        picture: ``(rows, columns)`` or ``(rows, columns, 3)`` uint8.
        caption: Below it; may be empty.
    """

    picture: NDArray[np.uint8]
    caption: str = ""


def contact_sheet(
    tiles: Sequence[Tile],
    path: str | Path | Any,
    *,
    title: str,
    subtitle: str = "",
    columns: int | None = None,
) -> None:
    """Write the sheet as PNG.

    Args:
        tiles: At most ``MOST_TILES`` are shown unless ``columns`` is given.
        path: File, or something to write to; an existing file is replaced.
        title: Beside the word SYNTHETIC.
        subtitle: Below it.
        columns: Tiles side by side; by default as many as make a landscape picture.
    """
    import PIL.Image
    import PIL.ImageDraw

    tiles = tiles if columns else tiles[:MOST_TILES]
    height, width = tiles[0].picture.shape[:2]
    scale = max(1, math.ceil(TILE / height))
    across = columns or max(1, min(len(tiles), math.ceil(math.sqrt(len(tiles) * 1.6))))
    down = math.ceil(len(tiles) / across)
    below = CAPTION if any(tile.caption for tile in tiles) else 0
    step_x, step_y = width * scale + GAP, height * scale + below + GAP
    needed = max(across * step_x - GAP, 560) + 2 * MARGIN
    sheet = PIL.Image.new("RGB", (needed, HEADER + down * step_y - GAP + MARGIN), BACKGROUND)
    draw = PIL.ImageDraw.Draw(sheet)
    _header(draw, needed, title, subtitle)
    font = _font(12)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, across)
        x, y = MARGIN + column * step_x, HEADER + row * step_y
        image = PIL.Image.fromarray(tile.picture).convert("RGB")
        size = (tile.picture.shape[1] * scale, tile.picture.shape[0] * scale)
        sheet.paste(image.resize(size, PIL.Image.Resampling.BICUBIC), (x, y))
        draw.text((x, y + size[1] + 4), _fit(draw, tile.caption, font, size[0]), MUTED, font)
    sheet.save(path, format="PNG")


def _header(draw: Any, width: int, title: str, subtitle: str) -> None:
    font, small = _font(20), _font(13)
    badge = "SYNTHETIC"
    length = draw.textlength(badge, font)
    draw.rounded_rectangle((MARGIN, 18, MARGIN + length + 20, 48), 6, fill=ACCENT)
    draw.text((MARGIN + 10, 20), badge, BACKGROUND, font)
    left = MARGIN + length + 34
    draw.text((left, 20), _fit(draw, title, font, width - MARGIN - left), TEXT, font)
    draw.text((MARGIN, 56), _fit(draw, subtitle, small, width - 2 * MARGIN), MUTED, small)


def _fit(draw: Any, text: str, font: Any, width: float) -> str:
    """As much of a text as has room."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "...", font) > width:
        text = text[:-1]
    return text.rstrip() + "..." if text else ""


def _font(size: int) -> FreeTypeFont | ImageFont:
    import PIL.ImageFont

    return PIL.ImageFont.load_default(size)


def overlay(
    picture: NDArray[np.uint8],
    labels: NDArray[np.integer[Any]],
    colours: Sequence[tuple[int, int, int]],
    opacity: float = 0.55,
) -> NDArray[np.uint8]:
    """A picture ``(rows, columns[, 3])`` with its labels in colours; label 0 is left clear."""
    colour = np.asarray(colours, dtype=np.float32)[labels]
    base = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    weight = np.where(labels > 0, opacity, 0.0)[..., None]
    return np.round(base * (1 - weight) + colour * weight).astype(np.uint8)
