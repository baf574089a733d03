"""Figures addressed in pixels: pictures at their own size, text, patient directions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.report.frame import Frame
from medgen.report.picture import Pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font

DPI = 100
BACKGROUND, TEXT, MUTED, ACCENT = "#0b0f14", "#eef2f6", "#93a1b0", "#40e0d0"
MARGIN, GAP = 36, 10
COLUMN, ROWS_TOTAL = 380, 960  # pixels available for a column, and for all rows together


@dataclass
class Canvas:
    """A figure addressed in pixels from its top left corner."""

    figure: Figure
    width: int
    height: int

    def save(self, path: str | Path) -> Path:
        """Write a PNG; an existing file is replaced."""
        self.figure.savefig(path, dpi=DPI, format="png", pil_kwargs={"compress_level": 4})
        return Path(path)

    def picture(self, pixels: Pixels, x: float, y: float) -> None:
        """Place a picture at its own size, pixel by pixel."""
        self.figure.figimage(pixels, round(x), round(self.height - y - pixels.shape[0]))

    def text(self, x: float, y: float, text: str, size: float = 14, **style: Any) -> None:
        """Text whose top left corner (or as `ha`, `va` say) is at a pixel; size in pixels."""
        style = {"color": TEXT, "ha": "left", "va": "top", **style}
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            _drawable(text).replace("$", r"\$"),
            fontsize=size * 72 / DPI,
            linespacing=1.35,
            **style,
        )


def _drawable(text: str) -> str:
    """Text with a square for each character that the font cannot draw, as a file name may hold."""
    font = _font()
    return "".join(
        c if c == "\n" or font.get_char_index(ord(c)) else "\N{WHITE SQUARE}" for c in text
    )


@cache
def _font() -> FT2Font:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties()))


def new_canvas(width: int, height: int) -> Canvas:
    """An empty dark figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    return Canvas(figure, width, height)


def pixels_per_mm(frame: Frame, column: int = COLUMN) -> float:
    """One scale for all planes, so that a centimetre is equally long in each of them."""
    mm = [size * step for size, step in zip(frame.shape, frame.spacing_mm, strict=True)]
    widest = max(mm[plane.across] for plane in frame.planes)
    tallest = sum(mm[plane.down] for plane in frame.planes)
    return min(column / widest, ROWS_TOTAL / tallest)


def draw_letters(
    canvas: Canvas, letters: tuple[str, str, str, str], x: float, y: float, size: tuple[int, int]
) -> None:
    """Patient directions at the edges of a picture."""
    left, right, top, bottom = letters
    width, height = size
    style: dict[str, Any] = {"size": 12, "weight": "bold", "color": "#d7e0ea"}
    canvas.text(x + 5, y + height / 2, left, ha="left", va="center", **style)
    canvas.text(x + width - 5, y + height / 2, right, ha="right", va="center", **style)
    canvas.text(x + width / 2, y + 3, top, ha="center", va="top", **style)
    canvas.text(x + width / 2, y + height - 4, bottom, ha="center", va="bottom", **style)
