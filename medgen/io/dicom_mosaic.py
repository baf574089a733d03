"""Siemens mosaics: all slices of a volume as tiles of one picture (syngo VA to VE).

How many tiles hold a slice, and which way they are stacked, stands in private elements only: the
number of images (0019,100A), and the "CSA header" (0029,1010), a table of named values whose layout
nibabel's documentation describes. It is read as data, with every length checked.
"""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from medgen.errors import GeometryError
from medgen.io.dicom_files import Instance, number

_EXPORT_AGAIN = "Copy or export the series again, with the private elements of the vendor."
_MAX_TAGS, _MAX_ITEMS, _MAX_ITEM_BYTES = 512, 512, 1 << 20


def is_mosaic(instance: Instance) -> bool:
    """Whether the picture is a mosaic."""
    return "MOSAIC" in (instance.header.get("ImageType") or [])


def mosaic_tiles(instance: Instance) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """First ``(row, column)`` of each tile that holds a slice, and a tile's rows and columns.

    Raises:
        GeometryError: The number of slices is missing, or does not fit the picture.
    """
    count = instance.private("mosaic_images")
    if count is None:
        count = _first(_csa(instance).get("NumberOfImagesInMosaic"))
    rows, columns = int(instance.header.Rows), int(instance.header.Columns)
    try:
        slices = int(count)
    except (TypeError, ValueError):
        slices = 0
    side = math.ceil(math.sqrt(slices))
    if slices < 1 or rows % side or columns % side:
        raise GeometryError(
            "a Siemens mosaic (many slices in one picture) does not say how many slices it holds, "
            f"or they do not fit: {slices or 'unknown'} slices in {columns} x {rows} pixels",
            _EXPORT_AGAIN,
        )
    height, width = rows // side, columns // side
    places = [(i // side * height, i % side * width) for i in range(slices)]
    return places, (height, width)


def mosaic_positions(
    instance: Instance,
    position: NDArray[np.float64],
    axes: NDArray[np.float64],
    spacing: tuple[float, float],
) -> NDArray[np.float64]:
    """Where the first pixel of every tile's slice lies, LPS mm ``(slices, 3)``.

    ImagePositionPatient of a mosaic is that of a picture of the whole mosaic's size around the
    centre of the first slice, so half of the difference in size leads to the slice's own corner.

    Args:
        instance: The mosaic.
        position: Its ImagePositionPatient.
        axes: Unit vectors of increasing column and row index ``(2, 3)``.
        spacing: mm between rows, mm between columns.

    Raises:
        GeometryError: The slice distance is missing, or the normal contradicts the axes.
    """
    places, (height, width) = mosaic_tiles(instance)
    rows, columns = int(instance.header.Rows), int(instance.header.Columns)
    distance = number(instance.header, "SpacingBetweenSlices")
    if distance is None or distance <= 0:
        distance = number(instance.header, "SliceThickness")
    if distance is None or distance <= 0:
        raise GeometryError("a Siemens mosaic does not say how far its slices are apart", None)
    corner = (
        position
        + axes[0] * spacing[1] * (columns - width) / 2
        + axes[1] * spacing[0] * (rows - height) / 2
    )
    normal = np.cross(axes[0], axes[1])
    stated = mosaic_normal(instance)
    if stated is not None:
        if abs(abs(float(stated @ normal)) - 1) > 1e-3:
            raise GeometryError(
                "the slice normal of a Siemens mosaic contradicts its orientation", _EXPORT_AGAIN
            )
        normal = stated
    steps = np.arange(len(places))[:, None] * distance
    return np.asarray(corner + steps * normal, dtype=np.float64)


def mosaic_normal(instance: Instance) -> NDArray[np.float64] | None:
    """Direction from the first slice to the last, LPS ``(3,)``; None if it is not stated."""
    values = _csa(instance).get("SliceNormalVector") or []
    try:
        normal = np.array([float(value) for value in values[:3]])
    except ValueError:
        return None
    length = float(np.linalg.norm(normal)) if normal.shape == (3,) else 0.0
    return normal / length if np.isfinite(length) and length > 0.5 else None


def mosaic_b_value(instance: Instance) -> str | None:
    """Diffusion weighting in s/mm2, as text; None if it is not stated."""
    return _first(_csa(instance).get("B_value"))


def _first(values: list[str] | None) -> str | None:
    return values[0] if values else None


def _csa(instance: Instance) -> dict[str, list[str]]:
    """The CSA image header, or nothing if it is missing or damaged."""
    raw = instance.private("siemens_csa")
    if not isinstance(raw, bytes):
        return {}
    try:
        return parse_csa(raw)
    except (struct.error, ValueError):
        return {}


def parse_csa(raw: bytes) -> dict[str, list[str]]:
    """Names and texts of a CSA header, both of its versions.

    Raises:
        ValueError: Counts or lengths that no header has.
        struct.error: It is cut off.
    """
    version_2 = raw[:4] == b"SV10"
    at = 8 if version_2 else 0
    (count,) = struct.unpack_from("<I", raw, at)
    at += 8
    if not 1 <= count <= _MAX_TAGS:
        raise ValueError("not a CSA header")
    found: dict[str, list[str]] = {}
    for _ in range(count):
        name, _multiplicity, _vr, _type, items, _check = struct.unpack_from("<64si4siii", raw, at)
        at += 84
        if not 0 <= items <= _MAX_ITEMS:
            raise ValueError("a CSA header with too many items")
        values = []
        for _ in range(items):
            first, second, _, _ = struct.unpack_from("<iiii", raw, at)
            at += 16
            length = second if version_2 else first  # version 1 keeps it in another place
            if not 0 <= length <= min(_MAX_ITEM_BYTES, len(raw) - at):
                if version_2:
                    raise ValueError("a CSA item that is longer than its header")
                length = 0
            text = raw[at : at + length].split(b"\0", 1)[0].decode("latin-1").strip()
            if text:
                values.append(text)
            at += (length + 3) // 4 * 4
        found[name.split(b"\0", 1)[0].decode("latin-1")] = values
    return found
