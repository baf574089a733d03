"""Hostile DICOM archives with known truth: ``build(kind, folder)`` writes one of :data:`KINDS`.

What a kind holds is a :class:`hostile_objects.Hostile`: whether it must be read, refused or set
aside, and for every image that must come out its voxels, its affine, and points in the world with
their values, so that any reader can be tested.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hostile_encodings
import hostile_series
import hostile_values
import numpy as np
from hostile_objects import Array, Hostile, Stack, Who, classic, head, save_all, stack, truth
from hostile_objects import with_waves as waves_on
from pydicom import config

Maker = Callable[[Path, int], Hostile]


def build(kind: str, folder: Path, seed: int = 0) -> Hostile:
    """Write an archive.

    Args:
        kind: A key of :data:`KINDS`.
        folder: Where it goes; it need not exist.
        seed: Chooses the head and the identifiers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with config.disable_value_validation():
        return KINDS[kind](folder, seed)


def rotations() -> list[Array]:
    """The 24 ways to lay a right-handed frame along the patient's axes, LPS."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[order, range(3)] = signs
            if np.linalg.det(matrix) > 0:
                found.append(matrix)
    return found


def oblique() -> Array:
    """A rotation about all three axes, LPS."""
    matrix = np.eye(3)
    for axis, degrees in enumerate((17.0, -23.0, 38.0)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn[first, first] = turn[second, second] = c
        turn[first, second], turn[second, first] = -s, s
        matrix = matrix @ turn
    return matrix


def write_stack(folder: Path, planes: Stack, seed: int, modality: str = "MR") -> None:
    """One plain series."""
    save_all(classic(planes, Who(seed), modality=modality), folder)


# --- geometry --------------------------------------------------------------------------------


def orientation(number: int, descending: bool, folder: Path, seed: int) -> Hostile:
    """One of the 24 orientations, with the first object at either end."""
    planes = stack(head(seed), axes=rotations()[number])
    if descending:
        planes = Stack(
            planes.values[..., ::-1], planes.row, planes.column, planes.spacing,
            planes.origins[::-1], planes.thickness,
        )  # fmt: skip
    write_stack(folder, planes, seed)
    return Hostile(folder, images=(truth(planes, seed=seed),))


def slanted(folder: Path, seed: int) -> Hostile:
    """Oblique to all three axes."""
    planes = stack(head(seed), axes=oblique())
    write_stack(folder, planes, seed)
    return Hostile(folder, images=(truth(planes, seed=seed),))


def anisotropic(folder: Path, seed: int) -> Hostile:
    """Three voxel sizes far apart, and a thickness that is not the distance of the slices."""
    planes = stack(head(seed), axes=oblique(), spacing=(0.7, 1.9, 8.25))
    objects = classic(planes, Who(seed))
    for d in objects:
        d.SliceThickness, d.SpacingBetweenSlices = "5", "5"
    save_all(objects, folder)
    return Hostile(folder, images=(truth(planes, seed=seed),))


def tilted(folder: Path, seed: int, degrees: float = 18.0) -> Hostile:
    """CT with a tilted gantry: the table moves along z, the planes lean."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    axes = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    table = np.array([0, 0, 7.0 / c])  # 7 mm between planes, measured along the normal
    planes = waves_on(stack(head(seed), axes=axes, lean=table - 7.0 * axes[:, 2]))
    objects = classic(planes, Who(seed), modality="CT", signed=True)
    for d in objects:
        d.GantryDetectorTilt = f"{-degrees:g}"
    save_all(objects, folder)
    image = truth(planes, intercept=-1024, resampled=True, tolerance=25, modality="CT", seed=seed)
    return Hostile(folder, images=(image,))


def gap(folder: Path, seed: int) -> Hostile:
    """One slice in the middle is missing."""
    planes = stack(head(seed))
    objects = classic(planes, Who(seed))
    save_all(objects[:5] + objects[6:], folder)
    return Hostile(folder, "refused", "missing")


def uneven(folder: Path, seed: int) -> Hostile:
    """Slices get wider apart towards the head, none more than half a slice off."""
    places = [n + 0.02 * n * n for n in range(12)]
    planes = waves_on(stack(head(seed), places=places))
    write_stack(folder, planes, seed)
    return Hostile(folder, images=(truth(planes, resampled=True, tolerance=25, seed=seed),))


def nearly_even(folder: Path, seed: int) -> Hostile:
    """Rounding in the scanner: places wrong by a hundredth of a slice."""
    rng = np.random.default_rng(seed)
    even = stack(head(seed))
    planes = stack(head(seed), places=np.arange(12) + rng.uniform(-0.001, 0.001, 12))
    write_stack(folder, planes, seed)
    return Hostile(folder, images=(truth(even, seed=seed),))


def one_slice(folder: Path, seed: int) -> Hostile:
    """A single plane: flat, but placed."""
    planes = stack(head(seed)[..., 4:5], axes=oblique())
    write_stack(folder, planes, seed)
    return Hostile(folder, images=(truth(planes, seed=seed),))


GEOMETRY: dict[str, Maker] = {
    **{
        f"orientation {number:02d} {'down' if down else 'up'}": partial(orientation, number, down)
        for number in range(24)
        for down in (False, True)
    },
    "oblique": slanted,
    "anisotropic": anisotropic,
    "tilted gantry": tilted,
    "gap": gap,
    "uneven": uneven,
    "nearly even": nearly_even,
    "one slice": one_slice,
}

KINDS: dict[str, Maker] = {
    **GEOMETRY, **hostile_series.KINDS, **hostile_encodings.KINDS, **hostile_values.KINDS,
}  # fmt: skip

REFUSED = {
    "gap", "mosaic without its header", "PET NONE", "PET without weight", "PET without dose",
    "PET without half-life", "truncated pixels", "truncated header", "garbage", "zip bomb",
    "zip of zeros", "a slice taken again", "missing in time", "not a number", "enhanced gap",
    "claims to be huge", "claims many frames",
}  # fmt: skip
SET_ASIDE = {"only a localiser", "only a report", "only a secondary capture"}
# What must happen to each kind, known before it is written.
EXPECTED = {
    kind: "refused" if kind in REFUSED else "set aside" if kind in SET_ASIDE else "read"
    for kind in KINDS
}
