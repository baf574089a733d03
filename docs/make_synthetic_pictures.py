"""Make the pictures of synthetic images in docs/images again, from the models that are shipped.

Everything shown is generated and not selected: the first images of seed 0. No real image is used.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

import medgen
from medgen.report.contact_sheet import BACKGROUND
from medgen.tasks.synthesize_files import draw_sheet

IMAGES = Path(__file__).parent / "images"
MODELS = {
    "colon-histology": ("cancer", "benign"),
    "chest-xray": ("pneumonia", "no_finding"),
    "brain-mr-annotated": ("lesion:flair", "stroke:t2"),
    "hippocampus-3d": ("small", "large"),
}
COLUMNS = 440, 760  # pixels: plain images, and images beside their labels


def fitted(sheet: Image.Image, width: int) -> Image.Image:
    """The sheet at another width."""
    return sheet.resize((width, round(sheet.height * width / sheet.width)))


def overview(path: Path) -> None:
    """Eight images of every model, in two columns."""
    sheets = []
    for model, conditions in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            sheet = Path(folder) / "sheet.png"
            made = medgen.synthesize(model, conditions=conditions, n=8, device="cpu")
            draw_sheet(made, sheet)
            sheets.append(Image.open(sheet).convert("RGB"))
    left = [fitted(sheet, COLUMNS[0]) for sheet in sheets[:2]]
    right = [fitted(sheet, COLUMNS[1]) for sheet in sheets[2:]]
    height = max(sum(sheet.height for sheet in column) for column in (left, right))
    picture = Image.new("RGB", (sum(COLUMNS), height), BACKGROUND)
    for start, column in ((0, left), (COLUMNS[0], right)):
        top = 0
        for sheet in column:
            picture.paste(sheet, (start, top))
            top += sheet.height
    picture.save(path, quality=55, method=6)


if __name__ == "__main__":
    overview(IMAGES / "synthetic.webp")
