"""A voxel grid turned towards the reader: anatomical planes and physical sizes.

Pictures follow the radiological convention: the reader looks at the patient from the front
(coronal), from the feet (axial) and from the left (sagittal), so the patient's left is on the
right of the picture. Arrays are therefore turned to the *screen frame*, whose axes run to the
patient's left, back and feet: every plane is then drawn as it lies in memory, first axis across,
second axis down, with no further flips. Nothing is resampled; an oblique scan keeps its own planes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.volume import Geometry, Provenance

SCREEN_FRAME = "LPI"
PICTURE_FORMATS = frozenset({"png", "jpeg", "jpg", "tiff", "tif", "bmp", "raster"})

Array = NDArray[Any]


@dataclass(frozen=True)
class Plane:
    """One of the three ways to cut the screen frame.

    Attributes:
        name: ``axial``, ``coronal`` or ``sagittal``.
        normal: Screen axis that is cut.
        across: Screen axis shown from left to right.
        down: Screen axis shown from top to bottom.
        letters: Patient directions at the left, right, top and bottom edge.
    """

    name: str
    normal: int
    across: int
    down: int
    letters: tuple[str, str, str, str]


PLANES = (
    Plane("axial", 2, 0, 1, ("R", "L", "A", "P")),
    Plane("coronal", 1, 0, 2, ("R", "L", "S", "I")),
    Plane("sagittal", 0, 1, 2, ("A", "P", "S", "I")),
)


@dataclass(frozen=True, eq=False)
class Frame:
    """How arrays on a grid get to the screen frame, cropped to what is not empty.

    Attributes:
        geometry: The cropped grid; its affine leads from screen indices to RAS+ mm.
        source_axes: For each screen axis, the array axis of the input it came from.
        source_flipped: For each screen axis, whether it runs against the input's axis.
        source_start: Input voxel (along the source axis) of screen index 0.
        anatomical: False for a picture whose left and right mean nothing.
    """

    geometry: Geometry
    source_axes: tuple[int, int, int]
    source_flipped: tuple[bool, bool, bool]
    source_start: tuple[int, int, int]
    anatomical: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the screen axes."""
        x, y, z = self.geometry.shape
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along the screen axes in mm."""
        x, y, z = self.geometry.spacing_mm
        return x, y, z

    @cached_property
    def planes(self) -> tuple[Plane, ...]:
        """Planes with an extent in both directions; a one-slice scan has only one."""
        shape = self.shape
        useful = [p for p in PLANES if shape[p.across] > 1 and shape[p.down] > 1]
        return tuple(useful) or PLANES[:1]

    def place(self, array: Array) -> Array:
        """An array on the input's grid ``(X, Y[, Z])`` in this frame ``(X, Y, Z)``, a view."""
        turned = array.reshape((*array.shape, 1)[:3]).transpose(self.source_axes)
        parts = []
        for start, size, flip in zip(
            self.source_start, self.shape, self.source_flipped, strict=True
        ):
            end = start - size if flip else start + size
            parts.append(slice(start, end if end >= 0 else None, -1 if flip else 1))
        return turned[tuple(parts)]

    def to_screen(self, voxel: Sequence[float]) -> tuple[float, float, float]:
        """An input voxel index (2 or 3 numbers) as a screen index, clipped to the crop."""
        full = [float(v) for v in voxel] + [0.0] * (3 - len(voxel))
        index = []
        for axis, source in enumerate(self.source_axes):
            step = full[source] - self.source_start[axis]
            step = -step if self.source_flipped[axis] else step
            index.append(min(max(step, 0.0), self.shape[axis] - 1.0))
        return index[0], index[1], index[2]

    def source_index(self, axis: int, index: int) -> int:
        """The input's own slice number for a screen index along a screen axis."""
        step = -index if self.source_flipped[axis] else index
        return self.source_start[axis] + step

    def cropped(self, box: tuple[slice, ...]) -> Frame:
        """Part of this frame, given in its own indices."""
        first = [part.start for part in box]
        shape = tuple(part.stop - part.start for part in box)
        affine = self.geometry.affine.copy()
        affine[:3, 3] = self.geometry.to_world(first)
        x, y, z = (self.source_index(axis, first[axis]) for axis in range(3))
        return Frame(
            Geometry(shape, affine), self.source_axes, self.source_flipped, (x, y, z),
            self.anatomical,
        )  # fmt: skip


def build_frame(geometry: Geometry, provenance: Provenance) -> Frame:
    """The frame that shows all of a grid."""
    spatial = Geometry((*geometry.shape, 1)[:3], geometry.affine)
    axes, flipped = _turn(spatial.axis_codes)
    x, y, z = (
        spatial.shape[axis] - 1 if flip else 0 for axis, flip in zip(axes, flipped, strict=True)
    )
    turn = np.zeros((4, 4))
    turn[3, 3] = 1.0
    for screen, (axis, flip, first) in enumerate(zip(axes, flipped, (x, y, z), strict=True)):
        turn[axis, screen] = -1.0 if flip else 1.0
        turn[axis, 3] = first
    shape = tuple(spatial.shape[axis] for axis in axes)
    anatomical = is_anatomical(provenance)
    return Frame(Geometry(shape, spatial.affine @ turn), axes, flipped, (x, y, z), anatomical)


def is_anatomical(provenance: Provenance) -> bool:
    """Whether an image says where in the patient it lies; a picture file does not."""
    return provenance.format.lower() not in PICTURE_FORMATS


def _turn(codes: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which array axis becomes each screen axis, and whether it must be reversed."""
    axes, flipped = [], []
    for pair, wanted in zip(("LR", "AP", "IS"), SCREEN_FRAME, strict=True):
        axis = next(i for i, code in enumerate(codes) if code in pair)
        axes.append(axis)
        flipped.append(codes[axis] != wanted)
    return (axes[0], axes[1], axes[2]), (flipped[0], flipped[1], flipped[2])


def cut(array: Array, plane: Plane, index: int) -> Array:
    """One slice as picture rows ``(down, across[, 3])``."""
    where: list[Any] = [slice(None)] * 3
    where[plane.normal] = index
    return array[tuple(where)].swapaxes(0, 1)


def grey_window(scan: Array, inside: Array | None = None) -> tuple[float, float]:
    """Values shown as black and white: almost the full range of those inside a mask."""
    values = _sample(scan)
    if inside is not None and (chosen := _sample(inside)).any():
        values = values[chosen]
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, (0.2, 99.8)) if values.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1.0


def _sample(array: Array) -> Array:
    """Every few voxels of a large array: enough for a percentile."""
    step = max(1, round((array.size / 1e6) ** (1 / 3)))
    return array[::step, ::step, ::step]


def content_box(
    scan: Array, keep: Array | None, window: tuple[float, float], frame: Frame, margin_mm: float
) -> tuple[slice, ...]:
    """Bounding box of what is not background, in a frame's indices.

    Args:
        scan: Values in the frame, ``(X, Y, Z)`` or in colour ``(X, Y, Z, 3)``.
        keep: What must be inside in any case ``(X, Y, Z)`` bool.
        window: Values shown as black and white.
        frame: Where the scan lies.
        margin_mm: Empty border around the content.
    """
    grey = scan.max(axis=-1) if scan.ndim == 4 else scan
    lowest = min(float(np.nanmin(grey)), window[0])
    content = grey > lowest + 0.05 * (window[1] - lowest)
    if keep is not None:
        content |= keep
    box = []
    for axis, spacing in enumerate(frame.spacing_mm):
        margin = math.ceil(margin_mm / spacing)
        others = tuple(other for other in range(3) if other != axis)
        used = np.flatnonzero(content.any(axis=others))
        first, last = (int(used[0]), int(used[-1])) if used.size else (0, content.shape[axis] - 1)
        box.append(slice(max(0, first - margin), min(content.shape[axis], last + 1 + margin)))
    return tuple(box)
