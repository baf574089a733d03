"""How well, and how fast, brains are extracted from heads with skull.

    python benchmarks/brain_extraction.py --data DATA [--heads 1 2 3] [--reference-mask MASK]

DATA/brain/label_maps holds whole-head label maps. From each, a T1-, a T2- and a FLAIR-like head
are drawn (one intensity per tissue, uneven soft tissue, shading, noise), and the extraction is
compared with the brain of the labels. The atlas is built anew without that head, so no head
helps to find its own brain. DATA/brain/heads/t1_with_skull is real and has no manual truth:
MASK is another program's result for it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import make_head_atlas as tool  # noqa: E402

from medgen.brain import Atlas, extract_brain, unpack_atlas  # noqa: E402
from medgen.errors import InputError  # noqa: E402
from medgen.volume import Volume  # noqa: E402

# Typical intensities of white, grey, brain stem, fluid and ventricle, bone, marrow, soft tissue,
# skin, vessels, mucosa, eyes.
CONTRASTS = {
    "T1": (110, 80, 100, 28, 15, 70, 85, 120, 55, 70, 35),
    "T2": (60, 85, 65, 195, 12, 70, 75, 90, 40, 120, 180),
    "FLAIR": (70, 92, 75, 16, 12, 55, 85, 100, 35, 90, 30),
}
TISSUES = (
    (2, 41, 25, 57),
    (3, 42, 8, 47, 17, 18, 53, 54, 10, 11, 12, 13, 26, 49, 50, 51, 52, 58),
    (7, 46, 16, 28, 60, 85, 512),
    (24, 4, 5, 14, 15, 43, 44, 72, 30, 62, 163, 164, 136, 137),
    (515,),
    (516,),
    (507, 508, 506),
    (511,),
    (514,),
    (509,),
    (502, 530),
)
UNEVEN = (515, 516, 507, 508, 506)


def draw_head(labels: NDArray[np.int16], contrast: str, seed: int) -> NDArray[np.float32]:
    """A head of one contrast ``(X, Y, Z)`` with shading up to 25 % and noise of about 4 %."""
    rng = np.random.default_rng([seed, list(CONTRASTS).index(contrast)])
    image = np.zeros(labels.shape, dtype=np.float32)
    for known, value in zip(TISSUES, CONTRASTS[contrast], strict=True):
        image[np.isin(labels, known)] = value * (1 + 0.04 * rng.standard_normal())
    texture = ndimage.gaussian_filter(rng.standard_normal(labels.shape), 3)
    uneven = np.isin(labels, UNEVEN)
    image[uneven] *= np.clip(1 + 0.35 * texture[uneven] / texture.std(), 0.3, 2)
    image = ndimage.gaussian_filter(image, 0.45)
    shading = ndimage.gaussian_filter(rng.standard_normal((5, 5, 5)), 0.8)
    zoomed = ndimage.zoom(shading / np.abs(shading).max(), np.array(labels.shape) / 5, order=2)
    image *= np.exp(0.25 * zoomed)
    noise = 4 * rng.standard_normal((2, *labels.shape))
    return np.hypot(image + noise[0], noise[1]).astype(np.float32)


def true_brain(labels: NDArray[np.int16], spacing_mm: float) -> NDArray[np.bool_]:
    """Brain and ventricles, sulci up to 12 mm wide closed, holes filled."""
    brain = np.pad((labels > 0) & (labels < 500) & (labels != 24), 6)
    grown = ndimage.distance_transform_edt(~brain) * spacing_mm <= 6
    closed = ndimage.distance_transform_edt(grown) * spacing_mm > 6
    return ndimage.binary_fill_holes(closed)[6:-6, 6:-6, 6:-6]


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Dice overlap, 0..1."""
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def row(name: str, volume: Volume, truth: NDArray[np.bool_] | None, atlas: Atlas | None) -> str:
    """One line of the table."""
    wall, processor = time.perf_counter(), time.process_time()
    try:
        found = extract_brain(volume, atlas)
    except InputError as error:
        return (
            f"| {name} | refused | | | | {time.process_time() - processor:.1f} | {error.message} |"
        )
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    overlap = "no truth" if truth is None else f"{dice(found.mask, truth):.3f}"
    unit = volume.geometry.voxel_volume_mm3 / 1000
    expected = "" if truth is None else f"{truth.sum() * unit:.0f}"
    return (
        f"| {name} | {overlap} | {found.volume_ml:.0f} | {expected} | {found.information:.2f} "
        f"| {processor:.1f} | {wall:.1f} |"
    )


def rows(data: Path, heads: list[int], reference: Path | None) -> Iterator[str]:
    """The lines of the table, one by one."""
    folder = data / "brain" / "label_maps"
    aligned = tool.align(folder)
    paths = sorted(folder.glob("*.nii.gz"))
    for number in heads:
        others = [head for place, head in enumerate(aligned, 1) if place != number]
        atlas = unpack_atlas(tool.average(others), tool.grid_affine())
        labels, _, affine = tool.read_classes(paths[number - 1])
        truth = true_brain(labels, 1.5)
        for contrast in CONTRASTS:
            volume = Volume.from_array(draw_head(labels, contrast, number), affine)
            yield row(f"label map {number}, {contrast}", volume, truth, atlas)
    image = nib.load(data / "brain" / "heads" / "t1_with_skull.nii.gz")
    volume = Volume.from_array(np.asarray(image.dataobj, dtype=np.float32), image.affine)
    other = None if reference is None else np.asarray(nib.load(reference).dataobj) > 0
    yield row("real T1 (188 x 256 x 190), against the other program", volume, other, None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--heads", type=int, nargs="*", default=list(range(1, 15)))
    parser.add_argument("--reference-mask", type=Path)
    arguments = parser.parse_args()
    print("| head | Dice | ml found | ml true | information (nats) | processor s | wall s |")
    print("|---|---|---|---|---|---|---|")
    for line in rows(arguments.data, arguments.heads, arguments.reference_mask):
        print(line, flush=True)
