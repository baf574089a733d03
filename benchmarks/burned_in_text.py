"""How well `medgen deidentify` sees text in pixels, and how often where there is none.

    python benchmarks/burned_in_text.py --data DIR > benchmarks/results/burned_in_text.md

Names are drawn with Pillow on slices of phantom heads. Pictures without text are phantoms, noise
and, where DIR has them, real heads, chest radiographs and stained tissue.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medgen.io.deidentify.burned_in import looks_like_text
from medgen.phantoms import brain

TEXTS = ("DOE^JANE 1961-04-12", "Smith, John", "mueller anna", "ID 4711-0815")
SIZES = (10, 12, 16, 20, 28)
KINDS = (
    "corner", "corner, as bright as the head", "corner, dark on bright", "corner, colour",
    "corner, JPEG of quality 60", "over the head", "five characters", "shrunk to half",
)  # fmt: skip


def slices() -> Iterator[NDArray[Any]]:
    """Slices of phantom heads, 0 to 1."""
    for seed in range(6):
        volume = brain((96, 112, 80), spacing_mm=1.5, seed=seed, skull=bool(seed % 2)).image
        for axis in range(3):
            plane = np.take(volume.voxels[0], volume.voxels.shape[axis + 1] // 2, axis)
            yield plane.T / volume.voxels.max()


def picture(plane: NDArray[Any], size: int, seed: int) -> NDArray[np.uint8]:
    """Larger, with noise; the head's brightest is 200 of 255."""
    large = Image.fromarray(plane.astype(np.float32)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    noise = np.random.default_rng(seed).normal(0, 4, (size, size))
    return np.clip(np.asarray(large) * 200 + noise, 0, 255).astype(np.uint8)


def drawn(plain: NDArray[np.uint8], kind: str, size: int, number: int) -> NDArray[Any]:
    """The picture with a name on it."""
    image = Image.fromarray(plain)
    if "colour" in kind:
        image = image.convert("RGB")
    fill: Any = (255, 255, 0) if "colour" in kind else 200 if "as bright" in kind else 255
    text = TEXTS[number % len(TEXTS)]
    side, font = plain.shape[0], ImageFont.load_default(size)
    place = (side * 0.2, side * 0.3) if kind == "over the head" else (4, 4)
    draw = ImageDraw.Draw(image)
    draw.text(place, text[:5] if "five" in kind else text, fill=fill, font=font)
    if "JPEG" in kind:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=60)
        image = Image.open(stream)
    if "half" in kind:
        image = image.resize((side // 2, side // 2), Image.Resampling.BILINEAR)
    values = np.asarray(image)
    return 255 - values if "dark" in kind else values


def without_text(data: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Kind and picture."""
    for number, plane in enumerate(slices()):
        for size in (256, 512):
            yield "phantom heads", picture(plane, size, number)
    rng = np.random.default_rng(0)
    for _ in range(100):
        yield "noise", rng.normal(1000, 50, (512, 512)).astype(np.uint16)
    for path in sorted((data / "brain" / "heads").glob("*.nii*")):
        volume = np.asarray(nib.load(path).dataobj)
        volume = volume if volume.ndim == 3 else volume[..., 0]
        for axis in range(3):
            for index in range(volume.shape[axis]):
                yield "real heads", np.take(volume, index, axis)
    for name in ("chest_xray", "histology"):
        for path in sorted((data / name).glob("*/*.*g")):
            yield name.replace("_", " "), np.asarray(Image.open(path))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds brain/heads")
    data = parser.parse_args().data
    planes = list(slices())
    print("# Text burned into pixels\n")
    print("`python benchmarks/burned_in_text.py --data DIR`: where text is seen.\n")
    print(f"Names drawn on {2 * len(planes)} pictures of phantom heads (256 and 512 pixels).\n")
    print("| text | " + " | ".join(f"{size} points" for size in SIZES) + " |")
    print("|---" * (len(SIZES) + 1) + "|")
    for kind in KINDS:
        cells = []
        for size in SIZES:
            hits = [
                looks_like_text(drawn(picture(plane, side, number), kind, size, number))
                for number, plane in enumerate(planes)
                for side in (256, 512)
            ]
            cells.append(f"{100 * np.mean(hits):.0f} %")
        print(f"| {kind} | " + " | ".join(cells) + " |")
    print("\n| no text | pictures | alarms | ms each |\n|---|---|---|---|")
    found: dict[str, list[tuple[bool, float]]] = {}
    for kind, values in without_text(data):
        start = time.perf_counter()
        alarm = looks_like_text(values)
        found.setdefault(kind, []).append((alarm, time.perf_counter() - start))
    for kind, results in found.items():
        alarms, seconds = zip(*results, strict=True)
        print(f"| {kind} | {len(alarms)} | {sum(alarms)} | {1000 * np.mean(seconds):.1f} |")


if __name__ == "__main__":
    main()
