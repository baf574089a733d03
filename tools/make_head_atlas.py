"""Make medgen/data/head_atlas.npz: the average head behind the brain extraction.

    python tools/make_head_atlas.py LABEL_MAPS medgen/data/head_atlas.npz

LABEL_MAPS is a folder of whole-head label maps in NIfTI (FreeSurfer numbers, 500 and above for
what is outside the brain), axes to the right, front and head. Each is mapped to the average by
the affine that fits the centres of its structures and the extent of its brain; then the classes
are averaged. What is stored are frequencies over all heads, not any one head.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# The order of medgen.brain.CLASSES.
CLASSES = {
    "air": (0,),
    "bone": (515,),
    "marrow": (516,),
    "soft": (502, 506, 507, 508, 509, 511, 512, 514, 530),
    "fluid": (24,),
    "grey": (
        *(3, 42, 8, 47, 17, 18, 53, 54, 10, 11, 12, 13, 26, 49, 50, 51, 52, 58),
        *(136, 137, 163, 164),
    ),
    "white": (2, 41, 7, 46, 16, 28, 60, 85, 25, 57, 30, 62),
    "ventricle": (4, 5, 14, 15, 43, 44, 72),
}
# Structures whose centres are matched between heads.
LANDMARKS = (
    *(10, 11, 12, 13, 17, 18, 49, 50, 51, 52, 53, 54, 16, 4, 43, 7, 46, 8, 47, 2, 41, 3, 42),
    *(15, 14, 28, 60),
)
# How much each landmark counts: the five extremes of the brain four times.
WEIGHTS = np.array([1.0] * len(LANDMARKS) + [4.0] * 5)
SHAPE, SPACING_MM, ORIGIN_MM = (51, 65, 50), 4.0, (-100.0, -128.0, -100.0)


def read_classes(path: Path) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.float64]]:
    """Labels, classes (both ``(X, Y, Z)``) and affine of a label map."""
    image = nib.load(path)
    labels = np.asarray(image.dataobj)
    table = np.full(labels.max() + 1, 255, dtype=np.uint8)
    for number, known in enumerate(CLASSES.values()):
        table[[label for label in known if label < len(table)]] = number
    classes = table[labels]
    if (classes == 255).any():
        raise SystemExit(f"{path.name}: no class for labels {np.unique(labels[classes == 255])}")
    return labels, classes, image.affine


def landmarks(
    labels: NDArray[np.int16], classes: NDArray[np.uint8], affine: NDArray[np.float64]
) -> NDArray[np.float64]:
    """World positions ``(N, 3)`` in mm of the landmarks of one head."""
    centres = ndimage.center_of_mass(np.ones_like(labels), labels, LANDMARKS)
    brain = np.argwhere(classes >= 5)
    # The lower brain is cut off in some heads: extents are those of the upper part.
    brain = brain[brain[:, 2] > np.median(brain[:, 2]) - 10]
    extremes = np.tile(brain.mean(axis=0), (5, 1))
    for row, (axis, percent) in enumerate([(0, 0.5), (0, 99.5), (1, 0.5), (1, 99.5), (2, 99.5)]):
        extremes[row, axis] = np.percentile(brain[:, axis], percent)
    return np.vstack([centres, extremes]) @ affine[:3, :3].T + affine[:3, 3]


def fit_to_average(heads: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The 4x4 affine of each head to the average of all, whose size is the average size."""
    centred = [points - np.average(points, axis=0, weights=WEIGHTS) for points in heads]
    size = np.mean([np.sqrt(np.mean(points**2)) for points in centred])
    average = np.mean(centred, axis=0)
    root = np.sqrt(WEIGHTS)[:, None]
    for _ in range(5):
        ones = [np.c_[points, np.ones(len(points))] for points in heads]
        fits = [np.linalg.lstsq(p * root, average * root, rcond=None)[0] for p in ones]
        average = np.mean([p @ fit for p, fit in zip(ones, fits, strict=True)], axis=0)
        average *= size / np.sqrt(np.mean(average**2))
    return [np.vstack([fit.T, [0, 0, 0, 1]]) for fit in fits]


def frequencies(
    classes: NDArray[np.uint8], affine: NDArray[np.float64], to_average: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Class memberships ``(8, *SHAPE)`` of one head on the atlas's grid, and where it is known."""
    step = np.linalg.inv(to_average @ affine) @ grid_affine()
    voxels = np.indices(SHAPE).reshape(3, -1)
    voxels = step[:3, :3] @ voxels + step[:3, 3:]
    last = np.array(classes.shape)[:, None] - 0.5
    known = ((voxels > -0.5) & (voxels < last)).all(axis=0)
    members = np.stack(
        [
            ndimage.map_coordinates(
                ndimage.gaussian_filter((classes == number).astype(np.float32), 0.9),
                voxels,
                order=1,
                mode="nearest",
            )
            for number in range(len(CLASSES))
        ]
    )
    above = voxels[2] >= last[2]  # no head is cut at its top, so there is air
    members[:, above] = 0
    members[0, above] = 1
    return members.reshape(-1, *SHAPE), (known | above).reshape(SHAPE)


def grid_affine() -> NDArray[np.float64]:
    """Affine of the atlas: mm from the centre of the average brain, to the right, front, head."""
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = ORIGIN_MM
    return affine


def average(heads: list[tuple[NDArray[np.float32], NDArray[np.bool_]]]) -> NDArray[np.uint8]:
    """Stored form of the atlas: all classes but air ``(7, *SHAPE)``, 31 for certainty."""
    count = sum(known.astype(int) for _, known in heads)
    total = sum(members * known for members, known in heads) / np.maximum(count, 1)
    total[:, count < 2] = 0
    return np.round(total[1:] * 31).astype(np.uint8)


def align(folder: Path) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Every head of a folder on the atlas's grid."""
    heads = [read_classes(path) for path in sorted(folder.glob("*.nii.gz"))]
    if len(heads) < 2:
        raise SystemExit(f"{folder} holds {len(heads)} label maps (*.nii.gz); at least 2 needed")
    fits = fit_to_average([landmarks(*head) for head in heads])
    return [frequencies(head[1], head[2], fit) for head, fit in zip(heads, fits, strict=True)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    np.savez_compressed(
        arguments.output, priors=average(align(arguments.label_maps)), affine=grid_affine()
    )
