"""Slices to 8-bit pictures at their physical proportions: grey, colour scale, outlines."""

from __future__ import annotations

import io
from base64 import b64encode
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medgen.report.frame import Frame, Plane, cut
from medgen.report.scene import FindingLike, Scene

Pixels = NDArray[np.uint8]

# The perceptually uniform "inferno" scale (van der Walt & Smith 2015) at eleven steps.
INFERNO = (
    (0, 0, 4), (22, 11, 57), (66, 10, 104), (106, 23, 110), (147, 38, 103), (188, 55, 84),
    (221, 81, 58), (243, 120, 25), (252, 165, 10), (246, 215, 70), (252, 255, 164),
)  # fmt: skip
OUTLINE = (64, 224, 208)
# Of a signed difference, as in the interactive viewers; safe for the colour-blind.
BRIGHTER, DARKER = (255, 140, 26), (38, 140, 255)


def inferno() -> Pixels:
    """The colour scale as 256 colours ``(256, 3)``."""
    steps = np.linspace(0, 255, len(INFERNO))
    channels = [np.interp(np.arange(256), steps, column) for column in zip(*INFERNO, strict=True)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def grey(values: NDArray[Any], low: float, high: float) -> Pixels:
    """Values to 0..255, with `low` black and `high` white."""
    scaled = np.subtract(values, low, dtype=np.float32)
    scaled *= np.float32(255.0 / (high - low))
    np.fmax(scaled, 0.0, out=scaled)  # unlike maximum, also turns NaN into 0
    np.fmin(scaled, 255.0, out=scaled)
    scaled += np.float32(0.5)
    return scaled.astype(np.uint8)


def resize(pixels: Pixels, size: tuple[int, int], smooth: bool = True) -> Pixels:
    """Picture rows resampled to ``(width, height)``."""
    from PIL import Image

    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, how))


def picture_size(frame: Frame, plane: Plane, pixels_per_mm: float) -> tuple[int, int]:
    """Width and height in pixels at which a plane has its physical proportions."""
    shape, spacing = frame.shape, frame.spacing_mm
    across, down = (
        max(1, round(shape[axis] * spacing[axis] * pixels_per_mm))
        for axis in (plane.across, plane.down)
    )
    return across, down


def scan_picture(scene: Scene, plane: Plane, index: int, size: tuple[int, int]) -> Pixels:
    """The scan's slice in its grey window ``(height, width, 3)``."""
    return grey_picture(cut(scene.scan, plane, index), scene.window, size)


def grey_picture(
    values: NDArray[Any], window: tuple[float, float], size: tuple[int, int]
) -> Pixels:
    """A slice ``(down, across[, 3])`` in a grey window ``(height, width, 3)``."""
    pixels = resize(grey(values, *window), size)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def difference_picture(
    values: NDArray[Any], reach: float, size: tuple[int, int], ground: Pixels
) -> Pixels:
    """A signed difference over a dim slice: orange where it is positive, blue where negative.

    Args:
        values: Slice of the difference ``(down, across)``.
        reach: Difference of full colour.
        size: Width and height of the picture.
        ground: The scan's picture ``(height, width, 3)``.
    """
    strength = [resize(grey(sign * values, 0.0, reach), size, smooth=False) for sign in (1, -1)]
    tints = (np.array(BRIGHTER), np.array(DARKER))
    colour = sum(s[..., None] / 255 * tint for s, tint in zip(strength, tints, strict=True))
    return np.clip(0.25 * ground + colour, 0, 255).astype(np.uint8)


def map_picture(scene: Scene, plane: Plane, index: int, size: tuple[int, int]) -> Pixels:
    """The anomaly map's slice in the inferno scale ``(height, width, 3)``."""
    values = grey(cut(scene.map, plane, index), 0.0, scene.map_maximum)
    return inferno()[resize(values, size, smooth=False)]


def outlined(picture: Pixels, mask: NDArray[np.bool_], width: int = 2) -> Pixels:
    """The picture with a smooth line around the mask (both in picture rows)."""
    if not mask.any():
        return picture
    from PIL import Image, ImageFilter

    height, across = picture.shape[:2]
    # Twice the size, then halved: the line comes out smooth.
    large = resize(mask.astype(np.uint8) * 255, (across * 2, height * 2), smooth=False)
    inside = large > 127
    near = Image.fromarray(inside.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(width))
    ring = ((np.asarray(near) > 0) & ~inside).astype(np.uint8) * 255
    alpha = resize(ring, (across, height), smooth=False)[..., None] / 255.0
    return np.rint(picture * (1 - alpha) + np.array(OUTLINE) * alpha).astype(np.uint8)


def thumbnail(scene: Scene, finding: FindingLike, pixels: int = 96) -> Pixels:
    """A square close-up ``(pixels, pixels, 3)`` of a finding in the first plane, outlined."""
    plane = scene.planes[0]
    at = scene.focus(finding)
    first, last = scene.box_corners(finding)
    spacing = scene.spacing_mm
    longest = max((last[a] - first[a] + 1) * spacing[a] for a in (plane.across, plane.down))
    # Enough surroundings to recognise the place, and never so close that voxels turn to mush.
    field = max(1.8 * longest, 45.0 if scene.anatomical else 24 * spacing[plane.across])
    index = at[plane.normal]
    scan, mask = cut(scene.scan, plane, index), cut(scene.mask, plane, index)
    rows = _around((first[plane.down] + last[plane.down]) / 2, field / spacing[plane.down])
    columns = _around((first[plane.across] + last[plane.across]) / 2, field / spacing[plane.across])
    scan_crop = _crop(scan, rows, columns, scene.window[0])
    mask_crop = _crop(mask, rows, columns, 0)
    picture = resize(grey(scan_crop, *scene.window), (pixels, pixels))
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=-1)
    return outlined(picture, mask_crop.astype(bool), width=3)


def _around(centre: float, length: float) -> tuple[int, int]:
    first = round(centre + 0.5 - length / 2)
    return first, first + max(2, round(length))


def _crop(rows: NDArray[Any], down: tuple[int, int], across: tuple[int, int], fill: float) -> Any:
    """Part of a slice; what lies beyond its edge is filled."""
    height, width = rows.shape[:2]
    out_shape = (down[1] - down[0], across[1] - across[0], *rows.shape[2:])
    out = np.full(out_shape, fill, dtype=rows.dtype)
    top, bottom = max(down[0], 0), min(down[1], height)
    left, right = max(across[0], 0), min(across[1], width)
    out[top - down[0] : bottom - down[0], left - across[0] : right - across[0]] = rows[
        top:bottom, left:right
    ]
    return out


def data_uri(pixels: NDArray[Any], kind: Literal["jpeg", "png"], quality: int = 85) -> str:
    """A picture (``uint8`` rows, or bool for a lossless mask) as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if kind == "jpeg":
        image.save(buffer, "JPEG", quality=quality)
    else:
        image.save(buffer, "PNG", compress_level=6)
    return f"data:image/{kind};base64,{b64encode(buffer.getvalue()).decode('ascii')}"
