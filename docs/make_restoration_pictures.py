"""Make docs/images/restored.webp again: what the four restoration commands do to the average brain.

Above, what each is given, below, what the models that come with medgen make of it. Nothing is
selected: one slice of the one brain in sample_data, damaged by known means.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import medgen
from medgen.corruption.resolution import downsample, sampling_for
from medgen.volume import Volume

HERE = Path(__file__).parent
SAMPLES = HERE.parent / "sample_data"
SLICE = 77  # axial, through the middle of the planted lesion
NOISE = 0.12  # of the brightest value
THICK = 4  # how many voxels of 1.5 mm a thick coronal slice takes
TILE = 240  # pixels; the height follows
BACKGROUND, INK = (12, 15, 19), (225, 230, 235)

Plane = NDArray[np.floating]


def axial(voxels: NDArray[np.generic]) -> Plane:
    """The slice to show, front up."""
    return np.asarray(voxels, dtype=np.float64)[:, :, SLICE].T[::-1]


def noisy(scan: Volume) -> Volume:
    """The scan with Rician noise inside the brain."""
    rng = np.random.default_rng(0)
    clean, deviation = scan.voxels.astype(np.float64), NOISE * float(scan.voxels.max())
    real, imaginary = (rng.normal(0, deviation, clean.shape) for _ in range(2))
    made = np.hypot(clean + real, imaginary) * (clean > 0)
    return Volume(made.astype(np.float32), scan.geometry, scan.provenance)


def thick(scan: Volume) -> tuple[Volume, tuple[int, int]]:
    """The scan in thick coronal slices, and the rows of the finer grid that they cover."""
    rows = scan.voxels.shape[2] // THICK * THICK
    voxels = torch.from_numpy(scan.voxels[0, :, :rows].astype(np.float32))
    coarse = downsample(voxels, [None, sampling_for(rows, THICK), None]).numpy()
    affine = scan.affine.copy()
    affine[:3, 1] *= THICK
    affine[:3, 3] = scan.geometry.to_world((0, (THICK - 1) / 2, 0))
    return Volume.from_array(coarse, affine, scan.provenance), (0, rows)


def pairs() -> list[tuple[str, Plane, Plane]]:
    """Caption, input and result of each command."""
    healthy = medgen.read(SAMPLES / "icbm152_t1.nii.gz")
    sick = SAMPLES / "icbm152_t1_lesion.nii.gz"
    mask = SAMPLES / "icbm152_lesion_mask.nii.gz"
    filled = medgen.inpaint(sick, mask=mask, grow_mm=3.0, device="cpu")
    quiet = medgen.denoise(noisy(healthy), device="cpu")
    coarse, _ = thick(healthy)
    fine = medgen.super_resolve(coarse, spacing_mm=1.5, device="cpu")
    flair = medgen.translate(SAMPLES / "icbm152_t1.nii.gz", to="flair", device="cpu")
    blocks = np.repeat(coarse.voxels[0], THICK, axis=1)
    return [
        ("inpaint", axial(filled.before), axial(filled.output)),
        ("super-resolve", axial(blocks), axial(fine.output)),
        ("denoise", axial(quiet.before), axial(quiet.output)),
        ("translate --to flair", axial(flair.before), axial(flair.output)),
    ]


def tile(plane: Plane, scale: Plane) -> Image.Image:
    """A slice as a picture, black and white where ``scale`` has its extremes."""
    low, high = 0.0, float(np.percentile(scale[scale > 0], 99.5))
    grey = (255 * ((plane - low) / (high - low)).clip(0, 1)).astype(np.uint8)
    height = round(TILE * plane.shape[0] / plane.shape[1])
    return Image.fromarray(grey).resize((TILE, height), Image.Resampling.BICUBIC)


def main() -> None:
    """Draw the picture."""
    columns = []
    for caption, before, after in pairs():
        own = after if caption.startswith(("translate", "denoise")) else before
        columns.append((caption, tile(before, before), tile(after, own)))
    height = min(picture.height for _, *both in columns for picture in both)
    sheet = Image.new("RGB", (TILE * len(columns), 2 * height + 24), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for number, (caption, before, after) in enumerate(columns):
        pen.text((number * TILE + 8, 6), caption, fill=INK, font_size=13)
        sheet.paste(before, (number * TILE, 24))
        sheet.paste(after, (number * TILE, 24 + height))
    sheet.save(HERE / "images" / "restored.webp", quality=68, method=6)


if __name__ == "__main__":
    main()
