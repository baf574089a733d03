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
WIDTH = 1200  # pixels


def overview(path: Path) -> None:
    """Eight images of every model, in two columns."""
    sheets = []
    for model, conditions in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            sheet = Path(folder) / "sheet.png"
            made = medgen.synthesize(model, conditions=conditions, n=8, device="cpu")
            draw_sheet(made, sheet)
            sheets.append(Image.open(sheet).convert("RGB"))
    sheets = [s.resize((WIDTH // 2, round(s.height * WIDTH / 2 / s.width))) for s in sheets]
    columns = sheets[:2], sheets[2:]
    height = max(sum(sheet.height for sheet in column) for column in columns)
    picture = Image.new("RGB", (WIDTH, height), BACKGROUND)
    for number, column in enumerate(columns):
        top = 0
        for sheet in column:
            picture.paste(sheet, (number * WIDTH // 2, top))
            top += sheet.height
    picture.save(path, quality=82)


if __name__ == "__main__":
    overview(IMAGES / "synthetic.jpg")
