"""DICOM in: a file, a folder or a zip to one volume.

Classic series (one slice per object) and enhanced multi-frame objects take one path: every slice
becomes a :class:`Slice` with its position, slices are grouped by position along their common
normal, and slices that share positions are the frames of a 4-D image. DICOM counts millimetres
towards the patient's left, back and head (LPS); the affine here is RAS+.

pydicom decodes the pixels: highdicom, otherwise our choice for multi-frame objects, refuses real
ones whose dimension index points to a private tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
from pydicom.uid import UID

from medgen.errors import GeometryError, InputError
from medgen.io.dicom_files import (
    UNREADABLE,
    Instance,
    Series,
    choose_series,
    find_series,
    pixels_of,
    quiet,
    text,
)
from medgen.io.values import blocking, choose_frame, refuse_unusable
from medgen.volume import Geometry, Provenance, Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Two slices nearer than this share a position.
_SAME_POSITION_MM = 1e-3
# A slice may lie this far from its place in an even stack, as a part of the slice distance.
_EVEN_FRACTION = 0.05
# The stack may lean this much; the affine carries the lean, so nothing is misplaced.
_MAX_TILT_DEGREES = 0.1
# More than any cine holds; a damaged count would otherwise take all memory.
_MAX_FRAMES = 100_000
_EXPORT_AGAIN = "Copy or export the series again."


@dataclass(frozen=True)
class Slice:
    """One picture and where it lies.

    Attributes:
        instance: The object that holds it.
        number: Its place in that object, from 0.
        spacing: mm between rows, mm between columns; None if not stated.
        thickness: Slice thickness in mm; None if not stated.
        position: Centre of the first pixel, LPS mm ``(3,)``; None if not stated.
        axes: Unit vectors of increasing column and row index, LPS ``(2, 3)``; None if not stated.
        order: Sorts the slices that share one position: by time, echo, ...
        groups: Functional groups of the frame (enhanced objects), or the header itself.
    """

    instance: Instance
    number: int
    spacing: tuple[float, float] | None
    thickness: float | None
    position: NDArray[np.float64] | None
    axes: NDArray[np.float64] | None
    order: tuple[int, ...]
    groups: tuple[Dataset, ...]


def read_dicom(
    path: Path, *, frame: int | None = None, series: str | None = None, allow_constant: bool = False
) -> Volume:
    """Read one series.

    Args:
        path: A DICOM file, a folder or a zip.
        frame: Which volume of a 4-D series, counted from 0.
        series: Series number or UID, needed if there are several.
        allow_constant: Whether an image of one value only is fine (masks).

    Returns:
        Voxels ``(1, X, Y, Z)`` float32 with the rescale slope and intercept applied; ``(1, X, Y)``
        for a single slice; ``(3, ...)`` for colour. ``X`` runs along a row, ``Y`` down a column,
        ``Z`` along their normal. MONOCHROME1 is inverted, so that bright is high.

    Raises:
        InputError: No image, several series, missing or damaged pixels, NaN or constant voxels.
        GeometryError: Slices at uneven distances, tilted, missing, or in several directions.
    """
    chosen = choose_series(find_series(path), series, path)
    _refuse_unsupported(chosen, path)
    stacks, geometry = _arrange(_slices(chosen), path)
    picked = stacks[choose_frame(path, len(stacks), frame)]
    voxels = _decode(picked, geometry.shape, path)
    refuse_unusable(voxels, path, allow_constant=allow_constant)
    return Volume(voxels, geometry, _provenance(path, chosen, picked))


def describe_dicom(path: Path) -> list[dict[str, Any]]:
    """Header facts of every image series (see :func:`medgen.io.describe`)."""
    return [_describe(series, path) for series in find_series(path)]


def describe_series(path: Path, series: str | None) -> dict[str, Any]:
    """Header facts of the series that :func:`read_dicom` would choose."""
    return _describe(choose_series(find_series(path), series, path), path)


def _describe(series: Series, path: Path) -> dict[str, Any]:
    header = series.first
    bits, signed = int(header.get("BitsAllocated") or 0), header.get("PixelRepresentation")
    syntaxes = {i.transfer_syntax for i in series.instances if i.transfer_syntax}
    facts: dict[str, Any] = {
        "path": str(path), "kind": "dicom", "modality": text(header, "Modality"),
        "shape": (int(header.Columns), int(header.Rows)),
        "channels": 1 if str(header.get("PhotometricInterpretation", "")).startswith("MONO") else 3,
        "frames": series.images, "dtype": f"{'' if signed else 'u'}int{bits}" if bits else None,
        "spacing_mm": None, "orientation": None, "series_number": series.number or None,
        "series_uid": series.uid or None, "series_description": text(header, "SeriesDescription"),
        "transfer_syntax": ", ".join(sorted(UID(syntax).name for syntax in syntaxes)) or None,
    }  # fmt: skip
    problems: list[str] = []
    stopped = None
    try:
        _refuse_unsupported(series, path)
        _refuse_without_pixels(series, path)
        stacks, geometry = _arrange(_slices(series), path)
        facts |= {"shape": geometry.shape, "frames": len(stacks)}
        if stacks[0][0].position is None:
            problems.append("no position in the patient: each image is read as a flat picture")
        else:
            facts["orientation"] = geometry.axis_codes
        if stacks[0][0].spacing is not None:
            facts["spacing_mm"] = geometry.spacing_mm
    except InputError as error:
        problems.append(error.message)
        stopped = blocking(error)
    return facts | {"problems": problems, "blocking": stopped}


def _refuse_unsupported(series: Series, path: Path) -> None:
    """Raise for objects whose pixels do not mean what they seem to."""
    kinds = series.first.get("ImageType") or []
    if "MOSAIC" in kinds:
        raise InputError(
            f"{path} is a Siemens mosaic: many slices in one picture",
            "Convert it with dcm2niix, and use the NIfTI file.",
        )
    if "DetectorInformationSequence" in series.first and series.images > len(series.instances):
        raise InputError(
            f"{path} is a nuclear medicine object of many frames, which is not supported",
            "Convert it with dcm2niix, and use the NIfTI file.",
        )


def _refuse_without_pixels(series: Series, path: Path) -> None:
    """Raise for objects that hold a header only."""
    missing = [instance for instance in series.instances if not instance.has_pixels]
    if missing:
        raise _without_pixels(missing[0], path)


def _slices(series: Series) -> list[Slice]:
    """Every picture of the series."""
    slices = []
    for instance in series.instances:
        header = instance.header
        when = (_integer(header, "AcquisitionNumber"), _integer(header, "InstanceNumber"))
        per_frame = header.get("PerFrameFunctionalGroupsSequence")
        if per_frame:
            shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
            for number, own in enumerate(per_frame):
                content = (own.get("FrameContentSequence") or [Dataset()])[0]
                index = content.get("DimensionIndexValues") or ()
                index = (index,) if isinstance(index, int) else tuple(index)
                order = (*when, *(int(value) for value in index), number)
                slices.append(_slice(instance, number, (own, shared), order))
        else:
            frames = int(header.get("NumberOfFrames") or 1)
            if not 1 <= frames <= _MAX_FRAMES:
                raise InputError(f"{instance} claims to hold {frames} frames", _EXPORT_AGAIN)
            for number in range(frames):
                slices.append(_slice(instance, number, (header,), (*when, number)))
    return slices


def _integer(header: Dataset, keyword: str) -> int:
    value = header.get(keyword)
    return int(value) if value is not None else 0


def _slice(
    instance: Instance, number: int, groups: tuple[Dataset, ...], order: tuple[int, ...]
) -> Slice:
    position = _numbers(groups, "PlanePositionSequence", "ImagePositionPatient", 3)
    cosines = _numbers(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _numbers(groups, "PixelMeasuresSequence", "PixelSpacing", 2)
    for keyword in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = _numbers((instance.header,), "", keyword, 2) if spacing is None else spacing
    thickness = _numbers(groups, "PixelMeasuresSequence", "SliceThickness", 1)
    # Many frames with one position for all of them: the header does not say where each lies.
    alone = len(groups) > 1 or int(instance.header.get("NumberOfFrames") or 1) == 1
    placed = position is not None and cosines is not None and spacing is not None and alone
    return Slice(
        instance=instance,
        number=number,
        spacing=None if spacing is None or min(spacing) <= 0 else (spacing[0], spacing[1]),
        thickness=None if thickness is None or thickness[0] <= 0 else float(thickness[0]),
        position=position if placed else None,
        axes=cosines.reshape(2, 3) if placed and cosines is not None else None,
        order=order,
        groups=groups,
    )


def _numbers(
    groups: Sequence[Dataset], sequence: str, keyword: str, count: int
) -> NDArray[np.float64] | None:
    """A tag's numbers, from its functional group or from the header itself; None if not stated."""
    for group in groups:
        items = group.get(sequence) if sequence else None
        value = (items[0] if items else group).get(keyword)
        if value is None or value == "":
            continue
        try:
            numbers = np.atleast_1d(np.array(value, dtype=np.float64))
        except (ValueError, TypeError):
            numbers = np.empty(0)
        if numbers.shape != (count,) or not np.isfinite(numbers).all():
            raise GeometryError(f"{keyword} is damaged: it must be {count} numbers", _EXPORT_AGAIN)
        return numbers
    return None


def _arrange(slices: list[Slice], path: Path) -> tuple[list[list[Slice]], Geometry]:
    """Sort slices into stacks: one list of slices per frame, each along the normal.

    Raises:
        GeometryError: The slices do not make an even stack of equal pictures.
    """
    _refuse_mixed(slices, path)
    first = slices[0]
    size = (int(first.instance.header.Columns), int(first.instance.header.Rows))
    if first.position is None or first.axes is None:
        # Pictures without a place: each is a frame of its own, laid out as io/raster.py explains.
        between_rows, between_columns = first.spacing or (1.0, 1.0)
        affine = np.diag([-between_columns, -between_rows, 1.0, 1.0])
        return [[s] for s in sorted(slices, key=lambda s: s.order)], Geometry(size, affine)
    normal = np.cross(first.axes[0], first.axes[1])
    levels = _levels(slices, normal)
    counts = {len(level) for level in levels}
    if len(counts) > 1:
        raise GeometryError(
            f"{path}: {len(levels)} slice positions hold between {min(counts)} and {max(counts)} "
            "images each; every position must have as many",
            "Export the series again: images are missing or doubled.",
        )
    stacks = [list(stack) for stack in zip(*levels, strict=True)]
    origins = np.array([s.position for s in stacks[0]], dtype=np.float64)
    step = _even_step(origins, normal, path)
    if step is None:
        step = normal * (first.thickness or 1.0)
    spacing = first.spacing or (1.0, 1.0)
    lps = np.eye(4)
    lps[:3, 0] = first.axes[0] * spacing[1]
    lps[:3, 1] = first.axes[1] * spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = origins[0]
    shape = (*size, len(levels)) if len(levels) > 1 else size
    return stacks, Geometry(shape, _LPS_TO_RAS @ lps)


def _refuse_mixed(slices: list[Slice], path: Path) -> None:
    """Raise unless all slices have one size, pixel spacing and direction."""
    hint = "Choose fewer files: a folder with one image of the series."
    sizes = {(int(s.instance.header.Rows), int(s.instance.header.Columns)) for s in slices}
    if len(sizes) > 1:
        raise GeometryError(f"{path}: the slices have different sizes {sorted(sizes)}", hint)
    placed = [s for s in slices if s.position is not None]
    if placed and len(placed) < len(slices):
        raise GeometryError(
            f"{path}: {len(slices) - len(placed)} of {len(slices)} slices have no position", hint
        )
    if not placed:
        return
    axes = np.array([s.axes for s in placed])
    spacing = np.array([s.spacing for s in placed])
    if np.abs(axes - axes[0]).max() > 1e-3:
        kinds = len(np.unique(axes.round(2), axis=0))
        raise GeometryError(
            f"{path}: the slices point in {kinds} directions (a localiser?); one is needed", hint
        )
    if np.abs(spacing - spacing[0]).max() > 1e-3 * spacing.min():
        raise GeometryError(f"{path}: the slices have different pixel spacings", hint)
    if np.abs(axes[0] @ axes[0].T - np.eye(2)).max() > 1e-2:
        raise GeometryError(
            f"{path}: the image orientation is damaged: its two axes are not at right angles",
            "Export the series again.",
        )


def _levels(slices: list[Slice], normal: NDArray[np.float64]) -> list[list[Slice]]:
    """Slices grouped by place along the normal, each group in the order of time."""
    heights = np.array([float(normal @ np.asarray(s.position)) for s in slices])
    order = np.argsort(heights, kind="stable")
    levels: list[list[Slice]] = []
    last = -np.inf
    for index in order:
        if heights[index] - last > _SAME_POSITION_MM:
            levels.append([])
            last = heights[index]
        levels[-1].append(slices[index])
    return [sorted(level, key=lambda s: s.order) for level in levels]


def _even_step(
    origins: NDArray[np.float64], normal: NDArray[np.float64], path: Path
) -> NDArray[np.float64] | None:
    """LPS vector from one slice to the next; None for a single slice.

    Raises:
        GeometryError: Uneven distances or a tilted stack.
    """
    if len(origins) == 1:
        return None
    step = (origins[-1] - origins[0]) / (len(origins) - 1)
    distance = float(np.linalg.norm(step))
    gaps = np.diff(origins @ normal)
    even = origins[0] + np.arange(len(origins))[:, None] * step
    if np.linalg.norm(origins - even, axis=1).max() > _EVEN_FRACTION * gaps.min():
        wide = int((gaps > 1.5 * np.median(gaps)).sum())
        reason = f"{wide} gaps are wider, as if slices were missing" if wide else "it must be even"
        raise GeometryError(
            f"{path}: the distance between slices varies from {gaps.min():.3f} to "
            f"{gaps.max():.3f} mm; {reason}",
            "Export all slices of the series, or resample it to even slices first.",
        )
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal / distance, -1, 1))))
    if tilt > _MAX_TILT_DEGREES:
        raise GeometryError(
            f"{path}: the slices are stacked at {tilt:.1f} degrees to their normal "
            "(a tilted gantry), which is not supported yet",
            "Convert it with dcm2niix, which straightens the stack, and use the NIfTI file.",
        )
    return step


def _decode(slices: list[Slice], shape: tuple[int, ...], path: Path) -> NDArray[np.float32]:
    """Voxels ``(C, *shape)`` of one stack."""
    voxels: NDArray[np.float32] | None = None
    opened: tuple[Instance, Dataset] | None = None
    for place, item in enumerate(slices):
        if opened is None or opened[0] is not item.instance:
            opened = item.instance, _with_pixels(item.instance, path)
        picture = _picture(opened[1], item, path)  # (rows, columns, C)
        if voxels is None:
            voxels = np.empty((picture.shape[2], *shape[:2], len(slices)), np.float32)
        voxels[..., place] = picture.transpose(2, 1, 0)
    assert voxels is not None
    return voxels if len(shape) == 3 else voxels[..., 0]


def _with_pixels(instance: Instance, path: Path) -> Dataset:
    try:
        dataset = pixels_of(instance)
        if any(keyword in dataset for keyword in _PIXELS):
            return dataset
    except UNREADABLE as error:
        raise _broken(path, instance) from error
    raise _without_pixels(instance, path)


def _without_pixels(instance: Instance, path: Path) -> InputError:
    return InputError(
        f"{path}: {instance} has no pixel data", "Export the series again, with its images."
    )


_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def _picture(dataset: Dataset, item: Slice, path: Path) -> NDArray[Any]:
    """One decoded slice ``(rows, columns, C)`` in real-world units."""
    try:
        with quiet():
            kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
            stored = pixel_array(dataset, index=item.number)
            if kind == "PALETTE COLOR":
                stored = apply_color_lut(stored, dataset)
            if stored.ndim == 3:
                return stored
            if kind == "MONOCHROME1":
                stored = _inverted(stored, dataset)
            return _rescaled(stored, item, dataset)[..., None]
    except UNREADABLE as error:
        raise _broken(path, item.instance) from error


def _broken(path: Path, instance: Instance) -> InputError:
    """The error for pixels that cannot be decoded."""
    syntax = UID(instance.transfer_syntax or "")
    if not syntax.is_transfer_syntax or not syntax.is_compressed:
        return InputError(
            f"{path}: the pixel data of {instance} is damaged or incomplete",
            _EXPORT_AGAIN,
        )
    return InputError(
        f"{path}: the pixel data of {instance} cannot be decoded: it is damaged, or no decoder is "
        f"installed for this kind of {syntax.name}",
        'Export the series again, uncompressed, or add decoders: pip install "medgen[codecs]".',
    )


def _inverted(stored: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """MONOCHROME1 shows low values bright; turn it round within the range of the stored bits."""
    bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    total = -1 if dataset.get("PixelRepresentation") else 2**bits - 1  # sum of both ends
    return (total - stored.astype(np.int64)).astype(np.int32)


def _rescaled(stored: NDArray[Any], item: Slice, dataset: Dataset) -> NDArray[Any]:
    """Stored values to real ones: the modality table, or slope and intercept of this frame."""
    if len(item.groups) == 1:
        return apply_modality_lut(stored, dataset)
    for group in item.groups:
        transformation = group.get("PixelValueTransformationSequence")
        if transformation:
            slope = float(transformation[0].get("RescaleSlope") or 1.0)
            return stored * slope + float(transformation[0].get("RescaleIntercept") or 0.0)
    return stored


def _provenance(path: Path, series: Series, slices: list[Slice]) -> Provenance:
    """UIDs that a DICOM writer cites later; nothing that identifies the patient."""
    header = series.first
    modality = text(header, "Modality")
    units = text(header, "Units") or text(header, "RescaleType")
    units = None if units == "US" else units  # "unspecified"
    references = tuple(
        (str(s.instance.header.get("SOPClassUID")), str(s.instance.header.get("SOPInstanceUID")),
         s.number + 1)
        for s in slices
    )  # fmt: skip
    details = {
        "study_uid": text(header, "StudyInstanceUID"),
        "series_uid": series.uid,
        "frame_of_reference_uid": text(header, "FrameOfReferenceUID"),
        # (class UID, instance UID, frame number from 1) of each slice along the last axis
        "references": references,
        "spacing_known": slices[0].spacing is not None,
    }
    return Provenance(
        sources=(str(path),),
        format="dicom",
        modality=modality,
        units=units or ("HU" if modality == "CT" else None),
        details={"dicom": details},
    )
