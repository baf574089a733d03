"""A detection turned towards the reader: anatomical planes, grey windows, physical sizes.

Pictures follow the radiological convention: the reader looks at the patient from the front
(coronal), from the feet (axial) and from the left (sagittal), so the patient's left is on the
right of the picture. Arrays are therefore turned to the *screen frame*, whose axes run to the
patient's left, back and feet: every plane is then drawn as it lies in memory, first axis across,
second axis down, with no further flips. Nothing is resampled; an oblique scan keeps its own planes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medgen.volume import Geometry, Volume

SCREEN_FRAME = "LPI"
PICTURE_FORMATS = frozenset({"png", "jpeg", "jpg", "tiff", "tif", "bmp", "raster"})

Array = NDArray[Any]


class FindingLike(Protocol):
    """What a report needs to know about one finding (see ``medgen.scoring.Finding``)."""

    label: int
    volume_mm3: float
    peak: float
    mean: float
    centroid_voxel: Sequence[float]
    centroid_mm: Sequence[float]
    extent_mm: Sequence[float]
    slice_index: Mapping[int, int]
    bbox_voxel: Sequence[tuple[int, int]]


class DetectionLike(Protocol):
    """What a report needs to know about a detection (see ``medgen.tasks.detect.Detection``)."""

    volume: Volume
    map: Array
    mask: Array
    restored: Array | None
    brain_mask: Array
    findings: Sequence[FindingLike]
    score: float
    p_value: float | None
    threshold: float
    threshold_meaning: str
    model: Any
    model_sha256: str
    notes: Sequence[str]
    timings: Mapping[str, float]
    device: str


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
class Scene:
    """What is shown, in the screen frame and cropped to what is not empty.

    Attributes:
        scan: ``(X, Y, Z)`` or, in colour, ``(X, Y, Z, 3)``, in the scan's own units.
        restored: The healthy image, like `scan`; None if there is none or the scan is in colour.
        map: Anomaly score ``(X, Y, Z)``.
        mask: Voxels that belong to a finding ``(X, Y, Z)``, bool.
        geometry: The cropped grid; its affine leads from screen indices to RAS+ mm.
        planes: The planes worth showing: three for a volume, one for a picture.
        window: Scan values shown as black and as white.
        map_maximum: Anomaly score shown in the brightest colour; 0 is the darkest.
        source_axes: For each screen axis, the array axis of the input it came from.
        source_flipped: For each screen axis, whether it runs against the input's axis.
        source_start: Input voxel (along the source axis) of screen index 0.
        anatomical: False for a picture whose left and right mean nothing.
    """

    scan: Array
    restored: Array | None
    map: Array
    mask: Array
    geometry: Geometry
    planes: tuple[Plane, ...]
    window: tuple[float, float]
    map_maximum: float
    source_axes: tuple[int, int, int]
    source_flipped: tuple[bool, bool, bool]
    source_start: tuple[int, int, int]
    anatomical: bool

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along the screen axes in mm."""
        x, y, z = self.geometry.spacing_mm
        return x, y, z

    def to_screen(self, voxel: Sequence[float]) -> tuple[float, float, float]:
        """An input voxel index (2 or 3 numbers) as a screen index, clipped to the crop."""
        full = [float(v) for v in voxel] + [0.0] * (3 - len(voxel))
        index = []
        for axis, source in enumerate(self.source_axes):
            step = full[source] - self.source_start[axis]
            step = -step if self.source_flipped[axis] else step
            index.append(min(max(step, 0.0), self.map.shape[axis] - 1.0))
        return index[0], index[1], index[2]

    def source_index(self, axis: int, index: int) -> int:
        """The input's own slice number for a screen index along a screen axis."""
        step = -index if self.source_flipped[axis] else index
        return self.source_start[axis] + step

    def focus(self, finding: FindingLike | None) -> tuple[int, int, int]:
        """Screen voxel to look at: the finding's largest cross-sections, or the centre."""
        if finding is None:
            x, y, z = (size // 2 for size in self.map.shape)
            return x, y, z
        x, y, z = self.to_screen([finding.slice_index.get(axis, 0) for axis in range(3)])
        return round(x), round(y), round(z)

    def box_corners(self, finding: FindingLike) -> tuple[list[int], list[int]]:
        """First and last screen voxel (both inside) of the finding's bounding box."""
        low = [first for first, _ in finding.bbox_voxel]
        high = [end - 1 for _, end in finding.bbox_voxel]
        ends = np.array([self.to_screen(low), self.to_screen(high)])
        first, last = np.rint(ends.min(axis=0)), np.rint(ends.max(axis=0))
        return first.astype(int).tolist(), last.astype(int).tolist()


def cut(array: Array, plane: Plane, index: int) -> Array:
    """One slice as picture rows ``(down, across[, 3])``."""
    where: list[Any] = [slice(None)] * 3
    where[plane.normal] = index
    return array[tuple(where)].swapaxes(0, 1)


def build_scene(detection: DetectionLike, margin_mm: float = 4.0) -> Scene:
    """Turn a detection to the screen frame and crop away what is empty.

    Args:
        detection: Any object with the attributes of :class:`DetectionLike`.
        margin_mm: Empty border kept around the scan.
    """
    volume = detection.volume
    source = volume.geometry
    spatial = Geometry((*source.shape, 1)[:3], source.affine)
    axes, flipped = _turn(spatial.axis_codes)
    voxels = _three_spatial(np.asarray(volume.voxels), source.shape)
    scan = _colour_or_first(voxels, source, axes, flipped)
    score = _single(detection.map, source, axes, flipped)
    mask = _single(detection.mask, source, axes, flipped) > 0
    brain = _single(detection.brain_mask, source, axes, flipped) > 0
    restored = None
    if detection.restored is not None and scan.ndim == 3:  # it is grey: nothing beside colour
        restored = _single(detection.restored, source, axes, flipped)
    window = _window(scan, brain)
    margins = [math.ceil(margin_mm / spatial.spacing_mm[axis]) for axis in axes]
    box = _content(scan, brain | mask, window, margins)
    map_maximum = _map_maximum(score, brain, mask, detection.threshold)
    start = tuple(
        spatial.shape[axis] - 1 - part.start if flip else part.start
        for axis, flip, part in zip(axes, flipped, box, strict=True)
    )
    shape = tuple(part.stop - part.start for part in box)
    return Scene(
        scan=scan[box],
        restored=None if restored is None else restored[box],
        map=score[box],
        mask=mask[box],
        geometry=Geometry(shape, _screen_affine(spatial.affine, axes, flipped, start)),
        planes=_planes(shape),
        window=window,
        map_maximum=map_maximum,
        source_axes=axes,
        source_flipped=flipped,
        source_start=(start[0], start[1], start[2]),
        anatomical=volume.provenance.format.lower() not in PICTURE_FORMATS,
    )


def _turn(codes: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which array axis becomes each screen axis, and whether it must be reversed."""
    axes, flipped = [], []
    for pair, wanted in zip(("LR", "AP", "IS"), SCREEN_FRAME, strict=True):
        axis = next(i for i, code in enumerate(codes) if code in pair)
        axes.append(axis)
        flipped.append(codes[axis] != wanted)
    return (axes[0], axes[1], axes[2]), (flipped[0], flipped[1], flipped[2])


def _three_spatial(array: Array, shape: tuple[int, ...]) -> Array:
    """``([C,] X, Y[, Z])`` as ``(C, X, Y, Z)``, a view."""
    return array.reshape(-1, *(*shape, 1)[:3])


def _colour_or_first(voxels: Array, source: Geometry, axes: Any, flipped: Any) -> Array:
    """A colour picture as ``(X, Y, Z, 3)``; of anything else the first channel ``(X, Y, Z)``."""
    channels = [_oriented(channel, axes, flipped) for channel in voxels]
    if len(channels) == 3 and source.spatial_dims == 2:
        return np.stack(channels, axis=-1)
    return channels[0]


def _single(array: Array, source: Geometry, axes: Any, flipped: Any) -> Array:
    return _oriented(_three_spatial(np.asarray(array), source.shape)[0], axes, flipped)


def _oriented(array: Array, axes: tuple[int, ...], flipped: tuple[bool, ...]) -> Array:
    """The array in the screen frame, a view."""
    return array.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flipped)]


def _screen_affine(affine: Array, axes: Any, flipped: Any, start: Any) -> Array:
    """Screen indices of the crop to RAS+ mm."""
    turn = np.zeros((4, 4))
    turn[3, 3] = 1.0
    for screen, (axis, flip, first) in enumerate(zip(axes, flipped, start, strict=True)):
        turn[axis, screen] = -1.0 if flip else 1.0
        turn[axis, 3] = first
    return np.asarray(affine @ turn)


def _planes(shape: tuple[int, ...]) -> tuple[Plane, ...]:
    """Planes with an extent in both directions; a one-slice scan has only one."""
    useful = [p for p in PLANES if shape[p.across] > 1 and shape[p.down] > 1]
    return tuple(useful) or PLANES[:1]


def _sample(array: Array) -> Array:
    """Every few voxels of a large array: enough for a percentile."""
    step = max(1, round((array.size / 1e6) ** (1 / 3)))
    return array[::step, ::step, ::step]


def _window(scan: Array, brain: Array) -> tuple[float, float]:
    """Grey window: almost the full range of the values inside the brain (or body) mask."""
    values, inside = _sample(scan), _sample(brain)
    values = values[inside] if inside.any() else values.ravel()
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, (0.2, 99.8)) if values.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1.0


def _map_maximum(score: Array, brain: Array, mask: Array, threshold: float) -> float:
    """Top of the colour scale: above the threshold, nearly every voxel, and most of a finding."""
    values = score[brain] if brain.any() else score.ravel()
    top = max(float(np.percentile(values, 99.9)), 1.5 * threshold, 1e-6)
    return max(top, float(np.percentile(score[mask], 95))) if mask.any() else top


def _content(
    scan: Array, keep: Array, window: tuple[float, float], margins: list[int]
) -> tuple[slice, ...]:
    """Bounding box of what is not background, plus a margin in voxels."""
    grey = scan.max(axis=-1) if scan.ndim == 4 else scan
    lowest = min(float(np.nanmin(grey)), window[0])
    content = (grey > lowest + 0.05 * (window[1] - lowest)) | keep
    box = []
    for axis, margin in enumerate(margins):
        others = tuple(other for other in range(3) if other != axis)
        used = np.flatnonzero(content.any(axis=others))
        first, last = (int(used[0]), int(used[-1])) if used.size else (0, content.shape[axis] - 1)
        box.append(slice(max(0, first - margin), min(content.shape[axis], last + 1 + margin)))
    return tuple(box)
