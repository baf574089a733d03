"""From stored numbers to real ones (PS3.3 C.7.6.3, C.11.1, C.7.6.16.2.9, C.7.6.16.2.11)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels import apply_modality_lut

from medgen.io.dicom_slices import Slice


def stored_values(values: NDArray[Any], header: Dataset) -> NDArray[Any]:
    """Cut allocated bits to the stored ones: what lies beyond them may be an overlay (PS3.5 8.1).

    Args:
        values: As they stand in the file, integers of any size.
        header: Says which bits count.
    """
    allocated = values.dtype.itemsize * 8
    stored = int(header.get("BitsStored") or allocated)
    high = header.get("HighBit")
    high = stored - 1 if high is None else int(high)
    if values.dtype.kind not in "iu" or not 0 < stored < allocated or not stored <= high + 1:
        return values
    if high >= allocated:
        return values
    left = np.array(allocated - 1 - high, dtype=values.dtype)
    right = np.array(allocated - stored, dtype=values.dtype)
    # Shifted up and down again: the sign, if there is one, spreads.
    return (values << left) >> right


def real_values(
    stored: NDArray[Any], item: Slice, header: Dataset, out: NDArray[np.float32]
) -> NDArray[np.bool_] | None:
    """Write real-world values; return where there are none.

    The modality table or the rescale slope and intercept of the frame; where there is neither, its
    real world value map. MONOCHROME1 is turned round first, so that bright is high.

    Args:
        stored: ``(rows, columns)``.
        item: The slice.
        header: Of the object, with a modality table if it has one.
        out: Receives the values, ``(rows, columns)``.
    """
    padding = _padding(stored, header)
    if str(header.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        stored = _inverted(stored, header)
    if "ModalityLUTSequence" in header:
        out[...] = apply_modality_lut(stored, header)
        return padding
    for group in item.groups:
        items = group.get("PixelValueTransformationSequence")
        found = items[0] if items else group
        if found.get("RescaleSlope") not in (None, ""):
            _line(stored, found.RescaleSlope, found.get("RescaleIntercept"), out)
            return padding
    if header.get("RescaleSlope") not in (None, ""):
        _line(stored, header.RescaleSlope, header.get("RescaleIntercept"), out)
        return padding
    for group in (*item.groups, header):
        maps = group.get("RealWorldValueMappingSequence")
        if maps:
            _mapped(stored, maps[0], out)
            return padding
    out[...] = stored
    return padding


def window(header: Dataset) -> tuple[float, float] | None:
    """The real values that a picture's header asks to be shown black and white.

    The first of its windows (PS3.3 C.11.2.1.2), as the values of :func:`real_values` have it; of a
    sigmoid the straight part. None without a window, or where a table or a map, of which a window
    knows nothing, makes the real values.
    """
    try:
        centre, width = (
            float(value[0] if isinstance(value, MultiValue) else value)
            for value in (header.WindowCenter, header.WindowWidth)
        )
        slope, intercept = (
            float(header[name].value) if header.get(name) not in (None, "") else usual
            for name, usual in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
    except (AttributeError, IndexError, TypeError, ValueError):
        return None
    plain = header.get("RescaleSlope") not in (None, "")
    mapped = not plain and "RealWorldValueMappingSequence" in header
    if "ModalityLUTSequence" in header or mapped:
        return None
    if not width >= 1 or not np.isfinite([centre, width]).all():
        return None
    if header.get("VOILUTFunction", "LINEAR") == "LINEAR":  # black and white are half a grey nearer
        centre, width = centre - 0.5, width - 1
    low, high = centre - width / 2, centre + width / 2
    if str(header.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        ends = slope * _ends(header) + 2 * intercept
        low, high = ends - high, ends - low
    return (low, high) if high > low else None


def _line(stored: NDArray[Any], slope: Any, intercept: Any, out: NDArray[np.float32]) -> None:
    a, b = float(slope), float(intercept or 0.0)
    if (a, b) == (1.0, 0.0):
        out[...] = stored
    elif a == 1 and b.is_integer() and abs(b) < 2**23 and stored.dtype.itemsize <= 2:
        np.add(stored, np.float32(b), dtype=np.float32, out=out)  # exact, and fast
    else:
        out[...] = stored * np.float64(a) + b


def _mapped(stored: NDArray[Any], mapping: Dataset, out: NDArray[np.float32]) -> None:
    """A real world value map: a line or a table."""
    table = mapping.get("RealWorldValueLUTData")
    if table is not None and len(table):
        first = int(mapping.get("RealWorldValueFirstValueMapped") or 0)
        place = np.clip(stored.astype(np.int64) - first, 0, len(table) - 1)
        out[...] = np.asarray(table, dtype=np.float64)[place]
        return
    slope = mapping.get("RealWorldValueSlope")
    slope = 1.0 if slope in (None, "") else slope
    _line(stored, slope, mapping.get("RealWorldValueIntercept"), out)


def _inverted(stored: NDArray[Any], header: Dataset) -> NDArray[Any]:
    """MONOCHROME1 shows low values bright; turn it round within the range of the stored bits."""
    return (_ends(header) - stored.astype(np.int64)).astype(np.int32)


def _ends(header: Dataset) -> int:
    """The least and the largest value that the stored bits can hold, added."""
    bits = int(header.get("BitsStored") or header.BitsAllocated)
    return -1 if header.get("PixelRepresentation") else 2**bits - 1


def _padding(stored: NDArray[Any], header: Dataset) -> NDArray[np.bool_] | None:
    """Where CT holds the value that means "nothing measured here" (PS3.3 C.7.5.1.1.2)."""
    value = _like_pixels(header, "PixelPaddingValue")
    if header.get("Modality") != "CT" or value is None:
        return None
    limit = _like_pixels(header, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    if low == high:
        return np.asarray(stored == low)
    return np.asarray((stored >= low) & (stored <= high))


def _like_pixels(header: Dataset, keyword: str) -> int | None:
    """A value of the pixels' type, which implicit objects leave open and writers get wrong."""
    value = header.get(keyword)
    signed = bool(header.get("PixelRepresentation"))
    if isinstance(value, bytes):
        value = int.from_bytes(value[:2], "little") if len(value) >= 2 else None
    if not isinstance(value, int):
        return None
    bits = int(header.get("BitsAllocated") or 16)
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value
