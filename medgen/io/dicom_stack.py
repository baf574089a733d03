"""From slices to images: sorted along their normal, one stack for each time, echo or b-value.

What is decided here, and told in the notes: copies of a slice are dropped; a gap where slices are
missing is refused; distances that differ are kept up to :data:`EVEN_FRACTION` of a distance, and
beyond it resampled to even ones; a stack that leans (a tilted gantry) is straightened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import GeometryError
from medgen.io.dicom_files import UNREADABLE, Instance
from medgen.io.dicom_mosaic import is_mosaic, mosaic_normal
from medgen.io.dicom_slices import Slice
from medgen.io.slice_grid import SliceGrid
from medgen.volume import Geometry

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Slices nearer than this part of their thickness, or nearer than a micrometre, share a position.
_SAME_POSITION_FRACTION, _SAME_POSITION_MM = 0.01, 1e-3
# A slice may lie this far from its place in an even stack, as a part of the slice distance.
EVEN_FRACTION = 0.05
# The stack may lean this much; the affine carries the lean, so nothing is misplaced.
MAX_TILT_DEGREES = 0.1
# A gap this many times the usual one is a hole, unless the slices beside it are as thick.
_HOLE = 1.5
_EXPORT_AGAIN = "Copy or export the series again."
# Traits, most telling first, and how a label says them.
_TRAITS: dict[str, Callable[[Any], str]] = {
    "component": str,
    "echo": lambda value: f"echo {value:g}",
    "echo_time": lambda value: f"TE {value:g} ms",
    "b_value": lambda value: f"b {value:g}",
    "time": lambda value: f"time {value:g}",
    "acquisition": lambda value: f"acquisition {value:g}",
    "trigger_time": lambda value: f"trigger {value:g} ms",
}


@dataclass(frozen=True, eq=False)
class Stack:
    """All images of one series part.

    Attributes:
        frames: Slices of each image, along the normal.
        labels: What each image is, such as ``echo 2 (TE 4.6 ms)``; empty if there is one only.
        geometry: Their common grid.
        grid: How the grid was made from the slices, or None if its planes are the slices.
        notes: What a person should know, as sentences.
    """

    frames: list[list[Slice]]
    labels: list[str]
    geometry: Geometry
    grid: SliceGrid | None
    notes: list[str] = field(default_factory=list)


class MissingSlicesError(GeometryError):
    """Slices are missing within the stack.

    Attributes:
        missing: How many.
    """

    def __init__(self, message: str, hint: str, missing: int) -> None:
        super().__init__(message, hint)
        self.missing = missing


def arrange(slices: Sequence[Slice]) -> Stack:
    """Sort slices into stacks along the normal.

    Raises:
        GeometryError: The slices do not make stacks of equal pictures, or some are missing.
    """
    _refuse_mixed(slices)
    notes = _mosaic_notes(slices)
    first = slices[0]
    if first.position is None or first.axes is None:
        return _flat(slices, notes)
    normal = np.cross(first.axes[0], first.axes[1])
    levels = _levels(slices, normal)
    dropped = _drop_copies(levels)
    if dropped:
        notes.append(f"{dropped} {'copy' if dropped == 1 else 'copies'} of slices left out")
    frames, labels = _frames(levels)
    origins = np.array([s.position for s in frames[0]], dtype=np.float64)
    geometry, grid = _grid(frames[0], origins, notes)
    return Stack(frames, labels, geometry, grid, notes)


def _flat(slices: Sequence[Slice], notes: list[str]) -> Stack:
    """Pictures without a place: each is a frame of its own, laid out as io/raster.py explains."""
    first = slices[0]
    between_rows, between_columns = first.spacing or (1.0, 1.0)
    affine = np.diag([-between_columns, -between_rows, 1.0, 1.0])
    frames = [[s] for s in sorted(slices, key=lambda s: s.order)]
    labels = [f"image {n + 1}" for n in range(len(frames))] if len(frames) > 1 else []
    return Stack(frames, labels, Geometry(first.size, affine), None, notes)


def _mosaic_notes(slices: Sequence[Slice]) -> list[str]:
    mosaic = is_mosaic(slices[0].instance)
    if mosaic and mosaic_normal(slices[0].instance) is None:
        return [
            "the mosaic does not say in which direction its slices follow each other; "
            "that of its pixels' normal is taken"
        ]
    return []


def _refuse_mixed(slices: Sequence[Slice]) -> None:
    """Raise unless all slices have one size, pixel spacing and direction."""
    hint = "Choose fewer files: a folder with one image of the series."
    sizes = {s.size[::-1] for s in slices}
    if len(sizes) > 1:
        raise GeometryError(f"the slices have different sizes {sorted(sizes)}", hint)
    placed = [s for s in slices if s.position is not None]
    if placed and len(placed) < len(slices):
        raise GeometryError(
            f"{len(slices) - len(placed)} of {len(slices)} slices have no position", hint
        )
    if not placed:
        return
    axes = np.array([s.axes for s in placed])
    spacing = np.array([s.spacing for s in placed])
    if np.abs(axes - axes[0]).max() > 1e-3:
        kinds = len(np.unique(axes.round(2), axis=0))
        raise GeometryError(
            f"the slices point in {kinds} directions (a localiser?); one is needed", hint
        )
    if np.abs(spacing - spacing[0]).max() > 1e-3 * spacing.min():
        raise GeometryError("the slices have different pixel spacings", hint)
    if np.abs(axes[0] @ axes[0].T - np.eye(2)).max() > 1e-2:
        raise GeometryError(
            "the image orientation is damaged: its two axes are not at right angles",
            "Export the series again.",
        )


def _levels(slices: Sequence[Slice], normal: NDArray[np.float64]) -> list[list[Slice]]:
    """Slices grouped by place along the normal, each group in the order of time.

    Raises:
        GeometryError: Slices at one height are shifted against each other in their plane.
    """
    heights = np.array([float(normal @ np.asarray(s.position)) for s in slices])
    order = np.argsort(heights, kind="stable")
    near = max(_SAME_POSITION_MM, _SAME_POSITION_FRACTION * (slices[0].thickness or 0.0))
    levels: list[list[Slice]] = []
    last = -np.inf
    for index in order:
        if heights[index] - last > near:
            levels.append([])
            last = heights[index]
        levels[-1].append(slices[index])
    pixel = min(slices[0].spacing or (1.0, 1.0))
    for level in levels:
        places = np.array([s.position for s in level])
        if np.linalg.norm(places - places[0], axis=1).max() > max(near, 0.1 * pixel):
            raise GeometryError(
                "slices at one height are shifted against each other in their plane",
                "Choose fewer files: a folder with one image of the series.",
            )
    return [sorted(level, key=lambda s: s.order) for level in levels]


def _drop_copies(levels: list[list[Slice]]) -> int:
    """Leave one of each slice that is there twice; return how many went.

    A copy has the place, the traits and the pixels of another slice, and its instance UID or its
    number: slices that agree in all of it can only be one slice exported twice.
    """
    dropped = 0
    digests: dict[Instance, bytes] = {}

    def digest(instance: Instance) -> bytes:
        if instance not in digests:
            digests[instance] = _pixel_digest(instance)
        return digests[instance]

    for level in levels:
        kept: list[Slice] = []
        for item in level:
            twin = next((k for k in kept if _may_be_copies(k, item)), None)
            if twin is not None and digest(twin.instance) == digest(item.instance):
                dropped += 1
            else:
                kept.append(item)
        level[:] = kept
    return dropped


def _may_be_copies(one: Slice, other: Slice) -> bool:
    """Whether two slices at one place say the same of themselves."""
    if one.instance is other.instance or (one.number, one.tile) != (other.number, other.tile):
        return False
    uids = {str(s.instance.header.get("SOPInstanceUID") or s) for s in (one, other)}
    return len(uids) == 1 or (one.order == other.order and one.traits == other.traits)


def _pixel_digest(instance: Instance) -> bytes:
    """Of the stored pixels, not decoded."""
    try:
        with instance.open() as stream:
            stream.seek(instance.pixels_at or 0)
            return hashlib.sha256(stream.read()).digest()
    except UNREADABLE:
        return b""


def _frames(levels: list[list[Slice]]) -> tuple[list[list[Slice]], list[str]]:
    """One list of slices along the normal for each image, in the order of acquisition.

    Raises:
        GeometryError: Not every place holds as many slices.
    """
    counts = {len(level) for level in levels}
    if len(counts) > 1:
        raise GeometryError(
            f"{len(levels)} slice positions hold between {min(counts)} and {max(counts)} "
            "images each; every position must have as many",
            "Export the series again: images are missing or doubled.",
        )
    height = {id(s): place for place, level in enumerate(levels) for s in level}
    groups: dict[tuple[Any, ...], list[Slice]] = {(): [s for level in levels for s in level]}
    used: list[str] = []
    for trait in _TRAITS:
        finer: dict[tuple[Any, ...], list[Slice]] = {}
        for key, members in groups.items():
            for s in members:
                finer.setdefault((*key, s.traits.get(trait)), []).append(s)
        if len(finer) > len(groups) and all(_even(m, height, len(levels)) for m in finer.values()):
            groups = finer
            used.append(trait)
    found: list[tuple[list[Slice], str]] = []
    for key, members in groups.items():
        rows: list[list[Slice]] = [[] for _ in levels]
        for s in members:
            rows[height[id(s)]].append(s)
        traits = dict(zip(used, key, strict=True))
        if "echo" in traits:  # its number says less than its time
            traits["echo_time"] = members[0].traits.get("echo_time")
        label = _label(traits)
        found += [(list(frame), label) for frame in zip(*rows, strict=True)]
    found.sort(key=lambda entry: min(s.order for s in entry[0]))
    if len(found) == 1:
        return [found[0][0]], []
    return [frame for frame, _ in found], _numbered([label for _, label in found])


def _even(members: list[Slice], height: dict[int, int], levels: int) -> bool:
    """Whether slices are there equally often at every place."""
    counts = np.bincount([height[id(s)] for s in members], minlength=levels)
    return bool(counts.min() == counts.max())


def _label(traits: dict[str, Any]) -> str:
    said = {name: _TRAITS[name](value) for name, value in traits.items() if value is not None}
    if "echo" in said and "echo_time" in said:
        said["echo"] += f" ({said.pop('echo_time')})"
    return ", ".join(said.values())


def _numbered(labels: list[str]) -> list[str]:
    """Labels that nothing tells apart get a number."""
    seen: dict[str, int] = {}
    numbered = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        repeated = labels.count(label) > 1 if len(labels) < 1000 else True
        name = f"image {seen[label]}" if repeated else ""
        numbered.append(", ".join(part for part in (label, name) if part))
    return numbered


def _grid(
    frame: list[Slice], origins: NDArray[np.float64], notes: list[str]
) -> tuple[Geometry, SliceGrid | None]:
    """The grid of a stack, from the places of its slices, and how it was made of them.

    Raises:
        MissingSlicesError: A gap is a hole.
    """
    first = frame[0]
    assert first.axes is not None
    normal = np.cross(first.axes[0], first.axes[1])
    between_rows, between_columns = first.spacing or (1.0, 1.0)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = first.axes[0] * between_columns, first.axes[1] * between_rows
    lps[:3, 3] = origins[0]
    if len(origins) == 1:
        lps[:3, 2] = normal * (first.thickness or 1.0)
        return Geometry(first.size, _LPS_TO_RAS @ lps), None
    gaps = np.diff(origins @ normal)
    _refuse_holes(frame, gaps, origins)
    step = (origins[-1] - origins[0]) / (len(origins) - 1)
    even = origins[0] + np.arange(len(origins))[:, None] * step
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
    wrong = float(np.linalg.norm(origins - even, axis=1).max())
    if wrong <= EVEN_FRACTION * gaps.min() and tilt <= MAX_TILT_DEGREES:
        lps[:3, 2] = step
        return Geometry((*first.size, len(frame)), _LPS_TO_RAS @ lps), None
    heights = np.concatenate([[0.0], np.cumsum(gaps)])
    drift = np.abs(heights - np.arange(len(heights)) * gaps.mean()).max()
    uneven = bool(drift > EVEN_FRACTION * gaps.min())
    # Two slices that nearly coincide would ask for far too many planes.
    usual = float(np.median(gaps))
    nearest = gaps.min() if gaps.min() >= usual / 2 else usual
    distance = float(nearest if uneven else gaps.mean())
    grid = SliceGrid.from_slices(
        origins, first.axes, (between_columns, between_rows), first.size, distance
    )
    if tilt > MAX_TILT_DEGREES:
        notes.append(
            f"the slices are stacked at {tilt:.1f} degrees to their normal (a tilted gantry): "
            "straightened onto a regular grid by shifting each slice in its plane"
        )
    if uneven:
        notes.append(
            f"the distance between slices varies from {gaps.min():.3f} to {gaps.max():.3f} mm: "
            f"resampled to {distance:.3f} mm"
        )
    if tilt <= MAX_TILT_DEGREES and not uneven:
        notes.append("the slices are shifted against each other: resampled onto a regular grid")
    return grid.geometry, grid


def _refuse_holes(
    frame: list[Slice], gaps: NDArray[np.float64], origins: NDArray[np.float64]
) -> None:
    """Raise if slices are missing: a gap is wider than usual, and nothing is thick enough for it.

    The usual gap is the lower median. Where slices themselves get thicker (as in older head CT,
    thin below and thick above), wide gaps are no holes.
    """
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    holes = []
    for place, gap in enumerate(gaps):
        thick = [s.thickness for s in frame[place : place + 2] if s.thickness is not None]
        filled = len(thick) == 2 and sum(thick) / 2 > 0.8 * gap
        if gap > _HOLE * usual and not filled:
            holes.append((place, float(gap), max(round(float(gap) / usual) - 1, 1)))
    if not holes:
        return
    place, gap, _ = holes[0]
    missing = sum(count for _, _, count in holes)
    where = " and ".join(_place(origins[n]) for n in (place, place + 1))
    more = f"; {len(holes) - 1} more gaps like it" if len(holes) > 1 else ""
    raise MissingSlicesError(
        f"{missing} {'slice is' if missing == 1 else 'slices are'} missing: between slices "
        f"{place + 1} and {place + 2} of {len(frame)}, at {where}, are {gap:.4g} mm instead of "
        f"{usual:.4g}{more}",
        "Export all slices of the series.",
        missing,
    )


def _place(origin: NDArray[np.float64]) -> str:
    """A position in DICOM's own numbers, as viewers show it."""
    return f"({', '.join(f'{value:.4g}' for value in origin)})"
