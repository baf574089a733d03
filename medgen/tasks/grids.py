"""Where the axes of a made image point, and the grid its file lies on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.manifest import Manifest
from medgen.volume import Geometry

# Columns of a picture run to the patient's left, rows to the back (medgen.io.raster).
PICTURE = ("L", "P")
_OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "S": "I", "I": "S"}
_DIRECTION = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def axes_of(manifest: Manifest) -> tuple[str, ...]:
    """Where the axes of a model's images point."""
    assert manifest.synthesis is not None
    dims = len(manifest.config["image_size"])
    return tuple(manifest.synthesis.orientation or ("LP" if dims == 2 else "RAS"))


def grid_of(manifest: Manifest, size: Sequence[int]) -> Geometry:
    """The grid of a model's images; the world's origin is their centre."""
    assert manifest.synthesis is not None
    spacing = manifest.synthesis.spacing_mm or (1.0,) * len(size)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1.0
    for axis, (code, mm) in enumerate(zip(axes_of(manifest), spacing, strict=True)):
        row, sign = _DIRECTION[code]
        affine[row, axis] = sign * mm
        affine[row, 3] = -sign * mm * (size[axis] - 1) / 2
    if len(size) == 2:
        # The slice's normal completes a right-handed frame, pointing where no axis does.
        affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] /= np.linalg.norm(affine[:3, 2])
    return Geometry(tuple(size), affine)


def turned(array: NDArray[Any], source: Sequence[str], target: Sequence[str]) -> NDArray[Any]:
    """The last axes of an array exchanged and flipped from one orientation to another.

    Raises:
        InputError: They show other planes.
    """
    source = source[: len(target)]
    lead = array.ndim - len(target)
    order = []
    for code in target:
        matching = [n for n, other in enumerate(source) if other in (code, _OPPOSITE[code])]
        if not matching:
            msg = f"the image's axes point to {''.join(source)}, the model's to {''.join(target)}"
            raise InputError(msg, "Give an image of the same plane.")
        order.append(matching[0])
    moved = array.transpose(*range(lead), *(lead + n for n in order))
    places = zip(target, order, strict=True)
    flips = tuple(lead + n for n, (code, at) in enumerate(places) if source[at] != code)
    return np.flip(moved, flips) if flips else moved


def as_picture(array: NDArray[Any], manifest: Manifest) -> NDArray[Any]:
    """``(..., X, Y)`` as a picture shows it; of a volume the middle slice of the last axis."""
    axes = axes_of(manifest)
    if len(axes) == 3:
        array, axes = array[..., array.shape[-1] // 2], axes[:2]
    return turned(array, axes, PICTURE) if set("".join(axes)) <= set("LRAP") else array
