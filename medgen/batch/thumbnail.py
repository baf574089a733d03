"""A detection at a glance: one small picture for the list of cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medgen.io.files import atomic_path
from medgen.report.frame import cut
from medgen.report.picture import Pixels, outlined, picture_size, scan_picture
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
    from PIL import Image

    # Of the ways to choose a palette, this one keeps the few pixels of an outline in colour.
    picture = Image.fromarray(thumbnail(detection)).quantize(
        COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    with atomic_path(path, overwrite=True) as temporary:
        picture.save(temporary, "PNG", optimize=True)
    return Path(path)


def thumbnail(detection: DetectionLike, pixels: int = PIXELS) -> Pixels:
    """The first plane (axial, if there are three) through the largest finding or the middle.

    In radiological view and at its physical proportions, centred on black.

    Returns:
        Square colour picture ``(pixels, pixels, 3)``.
    """
    scene = build_scene(detection)
    largest = max(detection.findings, key=lambda finding: finding.volume_mm3, default=None)
    plane = scene.planes[0]
    longest = max(
        scene.map.shape[axis] * scene.spacing_mm[axis] for axis in (plane.across, plane.down)
    )
    width, height = picture_size(scene, plane, pixels / longest)
    index = scene.focus(largest)[plane.normal]
    picture = scan_picture(scene, plane, index, (width, height))
    picture = outlined(picture, cut(scene.mask, plane, index), width=2)
    square = np.zeros((pixels, pixels, 3), dtype=np.uint8)
    top, left = (pixels - height) // 2, (pixels - width) // 2
    square[top : top + height, left : left + width] = picture
    return square
