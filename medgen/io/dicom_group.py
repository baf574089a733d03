"""Sorting DICOM objects into images: by patient, study and series, and within a series by kind.

One SeriesInstanceUID may hold several images: scanners put magnitude and phase, or three planes of
a localiser, into one. Each part has one matrix, pixel spacing, orientation and kind, so that it can
be one grid; the volumes on that grid (times, echoes, b-values) stay together.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medgen.errors import GeometryError, InputError
from medgen.io.dicom_files import UNREADABLE, Instance, number
from medgen.io.dicom_kinds import Aside, set_aside
from medgen.io.dicom_slices import component, numbers

# Directions further apart than this are planes of their own, as a localiser has.
_PLANES_APART_DEGREES = 45
_MOST_LOCALISER_IMAGES = 90
_CHOOSE = "Choose one with --series and its number, UID or description."


@dataclass
class Series:
    """The objects of one image (a part of a series), or objects set aside for one reason.

    Attributes:
        uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID.
        patient_key: See :class:`~medgen.io.dicom_files.Instance`.
        part: 1, or more where one SeriesInstanceUID holds several images.
        parts: How many there are with that SeriesInstanceUID.
        aside: Why it is set aside, or None.
        instances: In the order found.
        notes: What a person should know, as sentences.
    """

    uid: str
    study_uid: str = ""
    patient_key: str = ""
    part: int = 1
    parts: int = 1
    aside: Aside | None = None
    instances: list[Instance] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def first(self) -> Dataset:
        """Header of the first object."""
        return self.instances[0].header

    @property
    def number(self) -> str:
        """SeriesNumber, or an empty string."""
        found = self.first.get("SeriesNumber")
        return "" if found is None else str(found)

    @property
    def description(self) -> str:
        """SeriesDescription, or an empty string."""
        return str(self.first.get("SeriesDescription") or "")

    @property
    def images(self) -> int:
        """Pictures in all objects."""
        return sum(instance.frames for instance in self.instances)


def group(instances: Iterable[Instance]) -> tuple[list[Series], list[Series]]:
    """Images, and what is set aside, each sorted by study, number, UID and part."""
    together: dict[tuple[str, ...], list[Instance]] = {}
    aside: dict[tuple[Any, ...], Series] = {}
    for instance in instances:
        try:
            key = _series_key(instance)
            reason = set_aside(instance.header)
            if reason is None:
                _kind(instance)
        except UNREADABLE:  # values of types that the Standard does not allow there
            key, reason = ("",), Aside("damaged", picture=False)
        if reason is None:
            together.setdefault(key, []).append(instance)
        else:
            _add(aside, (*key, reason), instance, reason)
    images: list[Series] = []
    for members in together.values():
        if not any(instance.has_pixels for instance in members):
            reason = Aside("no pixels", picture=False)
            for instance in members:
                _add(aside, (*_series_key(instance), reason), instance, reason)
            continue
        parts = _parts(members)
        if _three_planes(parts):
            reason = Aside("localiser: three planes", picture=True)
            for part in parts:
                part.aside = reason
                aside[(id(part),)] = part
        else:
            images += parts
    images.sort(key=_order)
    others = sorted(aside.values(), key=_order)
    _number([*images, *(s for s in others if s.aside and s.aside.picture)])
    return images, others


def _series_key(instance: Instance) -> tuple[str, ...]:
    header = instance.header
    uid = str(header.get("SeriesInstanceUID") or "")
    # Without a UID, number and description are all there is.
    rest = () if uid else (str(header.get("SeriesNumber")), str(header.get("SeriesDescription")))
    return (instance.patient_key, str(header.get("StudyInstanceUID") or ""), uid, *rest)


def _add(
    found: dict[tuple[Any, ...], Series], key: tuple[Any, ...], instance: Instance, aside: Aside
) -> None:
    if key not in found:
        found[key] = _new(instance, aside)
    found[key].instances.append(instance)


def _new(instance: Instance, aside: Aside | None = None) -> Series:
    header = instance.header
    return Series(
        str(header.get("SeriesInstanceUID") or ""),
        str(header.get("StudyInstanceUID") or ""),
        instance.patient_key,
        aside=aside,
    )


def _order(series: Series) -> tuple[Any, ...]:
    first = series.first
    return (
        series.study_uid, series.patient_key, number(first, "SeriesNumber") or 0, series.uid,
        min(number(i.header, "InstanceNumber") or 0 for i in series.instances),
        str(first.get("SOPInstanceUID")),
    )  # fmt: skip


def _number(found: Sequence[Series]) -> None:
    """Number the parts of each SeriesInstanceUID, so that UID and part name one image."""
    total: dict[str, int] = {}
    for series in found:
        total[series.uid] = total.get(series.uid, 0) + 1
        series.part = total[series.uid]
    for series in found:
        series.parts = total[series.uid]


def _parts(members: Sequence[Instance]) -> list[Series]:
    """The images of one series: objects of one kind and direction each."""
    kinds: dict[tuple[Any, ...], list[tuple[np.ndarray | None, Series]]] = {}
    frames_of_reference = {str(i.header.get("FrameOfReferenceUID")) for i in members}
    # Where every object has its own, an anonymiser made them, and they tell nothing.
    telling = len(frames_of_reference) <= max(len(members) / 2, 1)
    for instance in members:
        axes = _axes(instance)
        frame_of_reference = str(instance.header.get("FrameOfReferenceUID")) if telling else ""
        known = kinds.setdefault((*_kind(instance), frame_of_reference), [])
        for other, series in known:
            if axes is None or other is None:
                same = axes is other
            else:
                same = bool(np.abs(axes - other).max() <= 1e-3)
            if same:
                series.instances.append(instance)
                break
        else:
            known.append((axes, _new(instance)))
            known[-1][1].instances.append(instance)
    found = [series for known in kinds.values() for _, series in known]
    return [part for series in found for part in _acquisitions(series)]


def _acquisitions(series: Series) -> list[Series]:
    """A series whose acquisitions overlap in space (head, then neck): each by itself.

    Acquisitions at mostly the same places are points in time, and stay together.
    """
    split: dict[Any, list[Instance]] = {}
    for instance in series.instances:
        split.setdefault(instance.header.get("AcquisitionNumber"), []).append(instance)
    if len(split) < 2 or _evenly_placed(series.instances):
        return [series]
    places = [{_place(instance) for instance in members} for members in split.values()]
    apart = all(
        len(one & other) <= min(len(one), len(other)) / 2
        for one, other in itertools.combinations(places, 2)
    )
    if not apart or not all(_evenly_placed(members) for members in split.values()):
        return [series]
    return [replace(series, instances=members, notes=[]) for members in split.values()]


def _evenly_placed(instances: Sequence[Instance]) -> bool:
    """Whether every place holds as many slices as any other."""
    return len(set(Counter(map(_place, instances)).values())) == 1


def _place(instance: Instance) -> tuple[str, ...]:
    return tuple(str(value) for value in instance.header.get("ImagePositionPatient") or ())


def _kind(instance: Instance) -> tuple[Any, ...]:
    """What all slices of one grid share, beside their direction."""
    header = instance.header
    enhanced = "PerFrameFunctionalGroupsSequence" in header
    spacing = None
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = spacing or header.get(keyword)
    try:
        spacing = tuple(round(float(value), 4) for value in spacing or ())
    except (TypeError, ValueError):
        spacing = ()
    return (
        int(header.get("Rows") or 0), int(header.get("Columns") or 0),
        int(header.get("SamplesPerPixel") or 1), spacing,
        None if enhanced else component(header),
        "MOSAIC" in (header.get("ImageType") or []),
        str(header.get("SOPClassUID") or ""),
    )  # fmt: skip


def _axes(instance: Instance) -> np.ndarray | None:
    try:
        found = numbers((instance.header,), "", "ImageOrientationPatient", 6)
    except GeometryError:
        return None
    return None if found is None else found.reshape(2, 3)


def _three_planes(parts: Sequence[Series]) -> bool:
    """Whether a series is a few slices in each of three planes."""
    if sum(series.images for series in parts) > _MOST_LOCALISER_IMAGES:
        return False
    normals: list[np.ndarray] = []
    for series in parts:
        for axes in _directions(series.instances):
            normal = np.cross(axes[0], axes[1])
            apart = [np.degrees(np.arccos(min(abs(float(normal @ n)), 1.0))) for n in normals]
            if all(angle > _PLANES_APART_DEGREES for angle in apart):
                normals.append(normal)
    return len(normals) >= 3


def _directions(instances: Sequence[Instance]) -> list[np.ndarray]:
    """Image axes of classic objects (the first speaks for all), or of every enhanced frame."""
    found = []
    for instance in instances:
        frames = instance.header.get("PerFrameFunctionalGroupsSequence")
        for own in frames or ():
            try:
                axes = numbers((own,), "PlaneOrientationSequence", "ImageOrientationPatient", 6)
            except GeometryError:
                continue
            if axes is not None:
                found.append(axes.reshape(2, 3))
    first = _axes(instances[0])
    return found or ([] if first is None else [first])


def choose_series(
    images: Sequence[Series], aside: Sequence[Series], wanted: str | None, named: str
) -> Series:
    """The one image, or the one that is wanted.

    Without a wish, pictures that were set aside are taken only where there is nothing else.

    Args:
        images: From :func:`group`.
        aside: From :func:`group`.
        wanted: A series number, a UID or its last digits, or a description; ``/2`` after it
            chooses the second part of a series that holds several images.
        named: What errors call the source.

    Raises:
        InputError: Lists the series if none or several fit.
    """
    pictures = [s for s in aside if s.aside and s.aside.picture]
    if wanted is None:
        found = list(images) or pictures
        if len(found) == 1:
            return found[0]
        raise InputError(
            f"{named} holds {len(found)} series, and one is needed:\n{_listing(found, aside)}",
            _CHOOSE,
        )
    everything = [*images, *pictures]
    fitting = _fitting(everything, wanted)
    head, slash, part = wanted.rpartition("/")
    if not fitting and slash and part.isdigit():
        fitting = [s for s in _fitting(everything, head) if s.part == int(part)]
    if len(fitting) == 1:
        return fitting[0]
    problem = "has no series" if not fitting else f"has {len(fitting)} series called"
    hint = _CHOOSE
    if len({s.uid for s in fitting}) > 1:
        hint = "Choose one with --series and its UID, or the last digits of it."
    elif len({s.part for s in fitting}) > 1:
        hint = f"Add the part after a slash: --series {wanted}/{fitting[0].part}."
    raise InputError(f"{named} {problem} {wanted!r}; it holds:\n{_listing(everything, ())}", hint)


def _fitting(found: Sequence[Series], wanted: str) -> list[Series]:
    fitting = [s for s in found if wanted in (s.number or "-", s.uid)]  # "-" as it is listed
    fitting = fitting or [s for s in found if len(wanted) > 3 and s.uid.endswith(wanted)]
    return fitting or [s for s in found if wanted.casefold() == s.description.casefold()]


def _listing(found: Sequence[Series], aside: Sequence[Series]) -> str:
    lines = []
    for s in found:
        images = f"{s.images} image{'s' if s.images != 1 else ''}"
        part = f"/{s.part}" if s.parts > 1 else ""
        why = f", {s.aside.reason}" if s.aside else ""
        lines.append(
            f"  {(s.number or '-') + part:>4}  {s.first.get('Modality', '?')}  {images:>11}  "
            f"{s.description or 'no description'}  (UID {s.uid or 'missing'}{why})"
        )
    others = [s for s in aside if s not in found]
    if others:
        lines.append(f"  set aside: {reasons(others)}")
    return "\n".join(lines)


def reasons(aside: Sequence[Series]) -> str:
    """Counted reasons for which objects were set aside."""
    counted: dict[str, int] = {}
    for series in aside:
        assert series.aside is not None
        counted[series.aside.reason] = counted.get(series.aside.reason, 0) + len(series.instances)
    return ", ".join(f"{count} x {reason}" for reason, count in sorted(counted.items()))
