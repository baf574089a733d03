"""Whether text that names somebody may be burned into the pixels.

Two questions. What does the header say: some kinds of objects are pictures of a screen, or carry
text as a rule (PS3.15 E.3.1). And do the pixels look as if text were drawn on them: small, thin
shapes of one extreme value, of the same height, side by side. The second is a heuristic that finds
what a scanner or a workstation draws, not handwriting, and not text over structures as bright as
itself; docs/how-to/deidentify.md has its measured hit and false alarm rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.dataset import Dataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # the family: single, multi-frame bit, byte, word
# Text is usual on these, unless the object says NO.
_WITH_TEXT = ("US", "IVUS", "XA", "RF", "ES", "XC", "GM", "OP", "OPT", "EC", "SC", "OT", "DOC")
_SCREEN_WORDS = ("SCREEN", "SCREEN SAVE", "SCREENSHOT", "SECONDARY CAPTURE", "REPORT", "DOSE_INFO")
MAX_FRAMES = 16  # looked at in an object, spread evenly; text drawn on one is usually on all
_BORDER = 0.35  # text is looked for in this outer part of each side
_STROKE = 9  # pixels; strokes are thinner
_CONTRAST = 0.25  # of the frame's range, from text to what is around it
_ABOVE_NOISE = 6.0  # standard deviations, estimated from the median absolute deviation
_FLAT = 0.05  # of the frame's range, within one text
_HEIGHT = (5, 48)  # of a character in pixels
_FEWEST = 4  # characters in a line; with 3, one real slice in 200 raises an alarm
_MOST_SHAPES = 20_000  # more is noise


def suspicion(dataset: Dataset) -> str | None:
    """Why the header makes burned-in text likely; None if it does not."""
    stated = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
    if stated == "YES":
        return "burned-in annotation: the object says so"
    sop_class = str(dataset.get("SOPClassUID") or "")
    if sop_class == _SECONDARY_CAPTURE or sop_class.startswith(_SECONDARY_CAPTURE + "."):
        return "burned-in annotation possible: secondary capture"
    kind = dataset.get("ImageType") or ()
    kind = [kind] if isinstance(kind, str) else kind
    if any(str(word).strip().upper() in _SCREEN_WORDS for word in kind):
        return "burned-in annotation possible: picture of a screen"
    modality = str(dataset.get("Modality") or "").strip().upper()
    if modality in _WITH_TEXT and stated != "NO":
        known = modality if modality in _WITH_TEXT else "this modality"
        return f"burned-in annotation possible: usual for {known}"
    return None


def hidden_overlay(dataset: Dataset) -> bool:
    """Whether an overlay is stored in unused bits of the pixels (PS3.5 8.1.2, retired)."""
    for group in range(0x6000, 0x6020, 2):
        position = dataset.get((group, 0x0102))
        if position is not None and int(position.value or 0) and (group, 0x3000) not in dataset:
            return True
    return False


def shows_text(dataset: Dataset) -> bool:
    """Whether any frame looked at seems to carry text.

    Raises:
        Exception: Whatever pydicom raises if the pixels cannot be decoded.
    """
    from pydicom.pixels import pixel_array

    frames = int(dataset.get("NumberOfFrames") or 1)
    for index in sorted({round(i) for i in np.linspace(0, frames - 1, min(frames, MAX_FRAMES))}):
        options: dict[str, Any] = {"raw": True}
        if frames > 1:
            options["index"] = index
        if looks_like_text(pixel_array(dataset, **options)):
            return True
    return False


def looks_like_text(frame: NDArray[Any]) -> bool:
    """Whether small thin shapes of one extreme value stand in a line near the border.

    Args:
        frame: Pixels ``(rows, columns)`` or, in colour, ``(rows, columns, samples)``.
    """
    if frame.ndim == 3:
        frame = frame.max(axis=-1)
    if min(frame.shape) < 32:
        return False
    values = frame.astype(np.float32)
    return _bright_text(values) or _bright_text(-values)


def _bright_text(values: NDArray[np.float32]) -> bool:
    """Text brighter than what is around it."""
    span = float(values.max() - values.min())
    if span <= 0:
        return False
    # What is narrower than a stroke can be stands out from an opening (white top-hat).
    height = values - _running(_running(values, np.minimum), np.maximum)
    sample = height[::3, ::3]
    usual = float(np.median(sample))
    noise = 1.4826 * float(np.median(np.abs(sample - usual)))
    mask = height > max(_CONTRAST * span, usual + _ABOVE_NOISE * noise)
    rows, columns = (int(_BORDER * size) for size in mask.shape)
    mask[rows:-rows, columns:-columns] = False
    boxes, level = _characters(mask, values, _FLAT * span)
    return _has_line(boxes, level, _FLAT * span)


def _running(values: NDArray[np.float32], extreme: np.ufunc) -> NDArray[np.float32]:
    """The extreme of a square of :data:`_STROKE` pixels around each pixel, by doubling widths."""
    for axis in (0, 1):
        around = [(_STROKE // 2, _STROKE // 2) if a == axis else (0, 0) for a in (0, 1)]
        window = np.moveaxis(np.pad(values, around, mode="edge"), axis, 0)
        width = 1
        while width < _STROKE:
            step = min(width, _STROKE - width)
            window = extreme(window[:-step], window[step:])
            width += step
        values = np.moveaxis(window, 0, axis)
    return values


def _characters(
    mask: NDArray[np.bool_], values: NDArray[np.float32], tolerance: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Thin flat shapes: boxes ``(n, 4)`` (first row, column, last row + 1, column + 1), values."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if not _FEWEST <= count <= _MOST_SHAPES:
        return np.empty((0, 4), np.int64), np.empty(0, np.float32)
    found = ndimage.find_objects(labels)
    boxes = np.array([[r.start, c.start, r.stop, c.stop] for r, c in found])
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    numbers = np.arange(1, count + 1)
    level = ndimage.maximum(values, labels, numbers)
    area = ndimage.sum_labels(mask, labels, numbers)
    top = np.concatenate([[np.inf], level])[labels]
    flat = ndimage.sum_labels(values >= top - tolerance, labels, numbers)
    good = (height >= _HEIGHT[0]) & (height <= _HEIGHT[1]) & (width <= _HEIGHT[1])
    good &= (flat >= 0.25 * area) & (area <= 0.75 * height * width + height)
    return boxes[good], np.asarray(level)[good]


def _has_line(boxes: NDArray[np.int64], level: NDArray[np.float32], tolerance: float) -> bool:
    """Whether at least four boxes of one height and brightness stand side by side on one line."""
    order = np.argsort(boxes[:, 1], kind="stable")
    boxes, level = boxes[order], level[order]
    for first, (top, _, bottom, end) in enumerate(boxes):
        size, length = bottom - top, 1
        for other, (_, left, floor, right) in enumerate(boxes[first + 1 :], first + 1):
            if left - end > 1.5 * size:
                break
            alike = 0.65 * size <= floor - boxes[other, 0] <= 1.5 * size
            alike &= abs(floor - bottom) <= max(1, 0.15 * size) and left - end >= -1
            if alike and abs(level[other] - level[first]) <= tolerance:
                length, end = length + 1, right
                if length >= _FEWEST:
                    return True
    return False
