"""A result at a glance: one small picture for the list of cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medgen.io.files import atomic_path
from medgen.report.comparison_scene import RestorationLike, build_comparison
from medgen.report.frame import Array, Frame, cut
from medgen.report.picture import Pixels, grey_picture, outlined, picture_size
from medgen.report.scene import DetectionLike, build_scene

PIXELS = 160
COLOURS = 96  # a palette this small keeps the file at a few kB


def write_thumbnail(path: Path, detection: DetectionLike) -> Path:
    """Write the slice with the largest finding, outlined, as a small PNG.

    Args:
        path: Where to write; an existing file is replaced.
        detection: Any object with the attributes of ``DetectionLike``.

    Returns:
        The path written.

    Raises:
        InputError: The folder cannot be written.
    """
    return _write(path, thumbnail(detection))


def write_restoration_thumbnail(path: Path, restoration: RestorationLike) -> Path:
    """Write the middle slice of a restored scan, or the one where most was invented.

    Args:
        path: Where to write; an existing file is replaced.
        restoration: Any object with the attributes of ``RestorationLike``.

    Returns:
        The path written.

    Raises:
        InputError: The folder cannot be written.
    """
    scene = build_comparison(restoration)
    at = scene.focus()
    return _write(path, _square(scene, scene.after, scene.after_window, scene.invented, at))


def thumbnail(detection: DetectionLike) -> Pixels:
    """The first plane (axial, if there are three) through the largest finding or the middle.

    In radiological view and at its physical proportions, centred on black.

    Returns:
        Square colour picture ``(PIXELS, PIXELS, 3)``.
    """
    scene = build_scene(detection)
    largest = max(detection.findings, key=lambda finding: finding.volume_mm3, default=None)
    return _square(scene, scene.scan, scene.window, scene.mask, scene.focus(largest))


def _square(
    frame: Frame,
    image: Array,
    window: tuple[float, float],
    mask: Array | None,
    at: Sequence[int],
) -> Pixels:
    """The first plane of an image through a voxel, a mask outlined."""
    plane = frame.planes[0]
    longest = max(frame.shape[axis] * frame.spacing_mm[axis] for axis in (plane.across, plane.down))
    width, height = picture_size(frame, plane, PIXELS / longest)
    index = at[plane.normal]
    picture = grey_picture(cut(image, plane, index), window, (width, height))
    if mask is not None:
        picture = outlined(picture, cut(mask, plane, index), width=2)
    square = np.zeros((PIXELS, PIXELS, 3), dtype=np.uint8)
    top, left = (PIXELS - height) // 2, (PIXELS - width) // 2
    square[top : top + height, left : left + width] = picture
    return square


def _write(path: Path, pixels: Pixels) -> Path:
    from PIL import Image

    # Of the ways to choose a palette, this one keeps the few pixels of an outline in colour.
    picture = Image.fromarray(pixels).quantize(
        COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    with atomic_path(path, overwrite=True) as temporary:
        picture.save(temporary, "PNG", optimize=True)
    return Path(path)
