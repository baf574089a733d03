"""From objects to slices: each picture with its place, and with what tells it from its neighbours.

Classic objects hold one slice, enhanced ones many (functional groups, PS3.3 C.7.6.16), a Siemens
mosaic as many as it has tiles. Positions are DICOM's: mm towards the patient's left, back and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medgen.errors import GeometryError, InputError
from medgen.io.dicom_files import UNREADABLE, Instance, number, text
from medgen.io.dicom_mosaic import is_mosaic, mosaic_b_value, mosaic_positions, mosaic_tiles

# More than any cine holds; a damaged count would otherwise take all memory.
MAX_FRAMES = 100_000
_EXPORT_AGAIN = "Copy or export the series again."
_COMPONENTS = {"M": "magnitude", "P": "phase", "R": "real", "I": "imaginary"}
_COMPONENTS |= {name.upper(): name for name in _COMPONENTS.values()}
# GE adds this to a b-value that is not meant to be shown.
_GE_B_VALUE_MARK = 100_000


@dataclass(frozen=True, eq=False)
class Slice:
    """One picture and where it lies.

    Attributes:
        instance: The object that holds it.
        number: Its frame in that object, from 0.
        size: Columns and rows.
        tile: First row and column of it in the frame; not (0, 0) in a mosaic only.
        spacing: mm between rows, mm between columns; None if not stated.
        thickness: Slice thickness in mm; None if not stated.
        position: Centre of the first pixel, LPS mm ``(3,)``; None if not stated.
        axes: Unit vectors of increasing column and row index, LPS ``(2, 3)``; None if not stated.
        order: Sorts slices by acquisition and number.
        traits: What may tell it from other slices at its place, see :func:`_traits`.
        groups: Functional groups of the frame (enhanced objects), or the header itself.
    """

    instance: Instance
    number: int
    size: tuple[int, int]
    tile: tuple[int, int]
    spacing: tuple[float, float] | None
    thickness: float | None
    position: NDArray[np.float64] | None
    axes: NDArray[np.float64] | None
    order: tuple[int, ...]
    traits: dict[str, Any]
    groups: tuple[Dataset, ...]


def slices_of(instances: Sequence[Instance]) -> list[Slice]:
    """Every picture of the objects.

    Raises:
        InputError: A count of frames that cannot be.
        GeometryError: Places that are damaged.
    """
    slices: list[Slice] = []
    for instance in instances:
        try:
            slices += _slices_of(instance)
        except UNREADABLE as error:  # values of types that the Standard does not allow there
            raise InputError(f"the header of {instance} is damaged", _EXPORT_AGAIN) from error
    return slices


def _slices_of(instance: Instance) -> list[Slice]:
    header = instance.header
    when = (_integer(header, "AcquisitionNumber"), _integer(header, "InstanceNumber"))
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    if per_frame:
        shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        return [
            _slice(instance, place, (own, shared), (*when, *_dimensions(own), place))
            for place, own in enumerate(per_frame)
        ]
    if is_mosaic(instance):
        return _mosaic(instance, when)
    if not 1 <= instance.frames <= MAX_FRAMES:
        raise InputError(f"{instance} claims to hold {instance.frames} frames", _EXPORT_AGAIN)
    return [_slice(instance, n, (header,), (*when, n)) for n in range(instance.frames)]


def _dimensions(own: Dataset) -> tuple[int, ...]:
    """The dimension index of a frame (PS3.3 C.7.6.17)."""
    content = (own.get("FrameContentSequence") or [Dataset()])[0]
    index = content.get("DimensionIndexValues") or ()
    index = (index,) if isinstance(index, int) else index
    return tuple(int(value) for value in index)


def _slice(
    instance: Instance, place: int, groups: tuple[Dataset, ...], order: tuple[int, ...]
) -> Slice:
    position = numbers(groups, "PlanePositionSequence", "ImagePositionPatient", 3)
    cosines = numbers(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = numbers(groups, "PixelMeasuresSequence", "PixelSpacing", 2)
    for keyword in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = numbers((instance.header,), "", keyword, 2) if spacing is None else spacing
    thickness = numbers(groups, "PixelMeasuresSequence", "SliceThickness", 1)
    # Many frames with one position for all of them: the header does not say where each lies.
    alone = len(groups) > 1 or instance.frames == 1
    placed = position is not None and cosines is not None and spacing is not None and alone
    return Slice(
        instance=instance,
        number=place,
        size=(int(instance.header.Columns), int(instance.header.Rows)),
        tile=(0, 0),
        spacing=None if spacing is None or min(spacing) <= 0 else (spacing[0], spacing[1]),
        thickness=None if thickness is None or thickness[0] <= 0 else float(thickness[0]),
        position=position if placed else None,
        axes=cosines.reshape(2, 3) if placed and cosines is not None else None,
        order=order,
        traits=_traits(instance, groups),
        groups=groups,
    )


def _mosaic(instance: Instance, when: tuple[int, ...]) -> list[Slice]:
    """The slices of a mosaic."""
    whole = _slice(instance, 0, (instance.header,), when)
    places, (rows, columns) = mosaic_tiles(instance)
    if whole.position is None or whole.axes is None or whole.spacing is None:
        raise GeometryError("a Siemens mosaic does not say where it lies", _EXPORT_AGAIN)
    positions = mosaic_positions(instance, whole.position, whole.axes, whole.spacing)
    return [
        Slice(
            instance=instance, number=0, size=(columns, rows), tile=tile, spacing=whole.spacing,
            thickness=whole.thickness, position=position, axes=whole.axes,
            order=(*when, place), traits=whole.traits, groups=whole.groups,
        )
        for place, (tile, position) in enumerate(zip(places, positions, strict=True))
    ]  # fmt: skip


def _integer(header: Dataset, keyword: str) -> int:
    value = header.get(keyword)
    return int(value) if value is not None else 0


def numbers(
    groups: Sequence[Dataset], sequence: str, keyword: str, count: int
) -> NDArray[np.float64] | None:
    """A tag's numbers, from its functional group or from the header itself; None if not stated.

    Raises:
        GeometryError: They are not ``count`` finite numbers.
    """
    for group in groups:
        items = group.get(sequence) if sequence else None
        value = (items[0] if items else group).get(keyword)
        if value is None or value == "":
            continue
        try:
            found = np.atleast_1d(np.array(value, dtype=np.float64))
        except (ValueError, TypeError):
            found = np.empty(0)
        if found.shape != (count,) or not np.isfinite(found).all():
            raise GeometryError(f"{keyword} is damaged: it must be {count} numbers", _EXPORT_AGAIN)
        return found
    return None


def component(header: Dataset) -> str | None:
    """``magnitude``, ``phase``, ``real`` or ``imaginary``, if the header says which it is."""
    stated = text(header, "ComplexImageComponent")
    if stated and stated.upper() in _COMPONENTS:
        return _COMPONENTS[stated.upper()]
    kinds = header.get("ImageType") or header.get("FrameType") or []
    for kind in kinds[2:] if not isinstance(kinds, str) else []:
        name = _COMPONENTS.get(str(kind).upper())
        if name:
            return name
    return None


def _traits(instance: Instance, groups: tuple[Dataset, ...]) -> dict[str, Any]:
    """What may tell slices at one place apart, most telling first; missing ones are None."""
    header = instance.header

    def grouped(sequence: str, keyword: str) -> Any:
        for group in groups[: 2 if len(groups) > 1 else 0]:
            items = group.get(sequence)
            if items and items[0].get(keyword) not in (None, ""):
                return items[0].get(keyword)
        return None

    def either(sequence: str, inside: str, keyword: str) -> float | None:
        value = grouped(sequence, inside)
        return number(header, keyword) if value is None else float(value)

    kind = None
    for group in groups if len(groups) > 1 else ():
        for sequence in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence"):
            items = group.get(sequence)
            kind = kind or (_frame_kind(items[0]) if items else None)
    echo_time = either("MREchoSequence", "EffectiveEchoTime", "EchoTime")
    return {
        "component": kind or component(header),
        "echo": number(header, "EchoNumbers"),
        "echo_time": None if echo_time is None else round(echo_time, 3),
        "b_value": _b_value(instance, grouped("MRDiffusionSequence", "DiffusionBValue")),
        "time": either(
            "FrameContentSequence", "TemporalPositionIndex", "TemporalPositionIdentifier"
        ),
        "acquisition": either(
            "FrameContentSequence", "FrameAcquisitionNumber", "AcquisitionNumber"
        ),
        "trigger_time": either(
            "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", "TriggerTime"
        ),
    }  # fmt: skip


def _frame_kind(group: Dataset) -> str | None:
    """The component of a frame, or, where that is none, the last value of its type."""
    kinds = [str(kind) for kind in group.get("FrameType") or []]
    name = component(group)
    if name in (None, "magnitude") and len(kinds) > 3 and kinds[3] not in ("NONE", "M"):
        return kinds[3].lower()  # such as Philips' B0 map
    return name


def _b_value(instance: Instance, stated: Any) -> float | None:
    """Diffusion weighting in s/mm2: the Standard's element, or the vendors' own."""
    if stated is None:
        stated = number(instance.header, "DiffusionBValue")
    for name in ("siemens_b_value", "ge_b_value", "philips_b_value"):
        if stated is None:
            stated = instance.private(name)
    if stated is None and is_mosaic(instance):
        stated = mosaic_b_value(instance)
    try:
        if isinstance(stated, bytes):
            stated = stated.decode("ascii").split("\\")[0]
        if hasattr(stated, "__len__") and not isinstance(stated, str):
            stated = stated[0] if len(stated) else None
        return None if stated in (None, "") else float(stated) % _GE_B_VALUE_MARK
    except (TypeError, ValueError):
        return None
