"""What an archive holds, from headers alone: images to work on, and what is set aside and why."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgen.errors import InputError
from medgen.io.dicom import facts_of
from medgen.io.dicom_archive import Search, Zips, instances
from medgen.io.dicom_files import number, text
from medgen.io.dicom_group import Series, group
from medgen.io.dicom_slices import Slice, slices_of
from medgen.io.walk import Location


@dataclass(frozen=True)
class ImageSeries:
    """One image: a series, or one of its parts.

    Attributes:
        locations: Where its objects lie; ``medgen.io.read`` takes them.
        patient_key: A digest of the patient's number, for grouping and never for showing; "" if
            the objects hold none.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        part: 1, or more where one SeriesInstanceUID holds several images.
        number: SeriesNumber.
        description: SeriesDescription.
        header: What rules choose by; nothing that identifies a person.
        facts: As :func:`medgen.io.describe` gives them.
    """

    locations: tuple[Location, ...]
    patient_key: str
    study_uid: str
    series_uid: str
    part: int
    number: str
    description: str
    header: dict[str, Any]
    facts: dict[str, Any]


@dataclass(frozen=True)
class SetAside:
    """Objects that are not worked on.

    Attributes:
        reason: In a few words.
        objects: How many.
        modality: Their modality, if they say.
        study_uid: StudyInstanceUID, or "".
        series_uid: SeriesInstanceUID, or "".
        number: SeriesNumber, or "".
        description: SeriesDescription, or "".
        patient_key: As of :class:`ImageSeries`.
        locations: Where they lie; empty for what could not be opened.
    """

    reason: str
    objects: int
    modality: str | None
    study_uid: str
    series_uid: str
    number: str
    description: str
    patient_key: str = ""
    locations: tuple[Location, ...] = ()


@dataclass(frozen=True)
class Archive:
    """What a folder, zip, DICOMDIR or file holds.

    Attributes:
        images: Every image or 4-D image, sorted by study, series number and part. One that cannot
            be read (slices are missing) says so in ``facts["blocking"]``.
        set_aside: Everything else that is DICOM.
        files: Files and members of zips looked at.
        foreign: Those that are not DICOM.
        unreadable: Folders that could not be opened; callers count them.
    """

    images: list[ImageSeries]
    set_aside: list[SetAside]
    files: int
    foreign: int
    unreadable: list[Path]


def index_dicom(
    path: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None
) -> Archive:
    """Look at every file of an archive, by its header.

    Args:
        path: A folder, a zip, a DICOMDIR or a file.
        progress: Called now and then with the number of files looked at so far.

    Raises:
        InputError: The path is missing, or is a zip that is hostile, damaged or encrypted.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no file or folder {path}", "Check the path.")
    search = Search(progress=progress)
    with Zips() as zips:
        images, aside = group(instances(path, zips, search))
        found = [_image(series, str(path)) for series in images]
    if progress is not None:
        progress(search.files)
    others = [_aside(series) for series in aside]
    for count, reason in [
        (search.damaged, "damaged"),
        (search.missing, "listed in the DICOMDIR but not there"),
        *((1, f"a zip that {reason}") for reason in search.refused_zips),
    ]:
        if count:
            others.append(SetAside(reason, count, None, "", "", "", ""))
    return Archive(found, others, search.files, search.foreign, search.unreadable)


def _aside(series: Series) -> SetAside:
    return SetAside(
        series.aside.reason if series.aside else "",
        len(series.instances),
        text(series.first, "Modality"),
        series.study_uid,
        series.uid,
        series.number,
        series.description,
        series.patient_key,
        tuple(instance.location for instance in series.instances),
    )


def _image(series: Series, named: str) -> ImageSeries:
    return ImageSeries(
        tuple(instance.location for instance in series.instances),
        series.patient_key,
        series.study_uid,
        series.uid,
        series.part,
        series.number,
        series.description,
        _header(series),
        facts_of(series, named),
    )


# Where enhanced objects keep what classic ones have in their header (PS3.3 C.8.13.5).
_GROUPED = {
    "RepetitionTime": ("MRTimingAndRelatedParametersSequence", "RepetitionTime"),
    "InversionTime": ("MRModifierSequence", "InversionTimes"),
    "SliceThickness": ("PixelMeasuresSequence", "SliceThickness"),
}


def _grouped(one: Slice, keyword: str, sequence: str, inside: str) -> float | None:
    """A number of a classic header, or of a frame's functional groups."""
    for groups in one.groups:
        items = groups.get(sequence)
        found = number(items[0], inside) if items else None
        if found is not None:
            return found
    return number(one.instance.header, keyword)


def _header(series: Series) -> dict[str, Any]:
    """What rules choose a series by."""
    first = series.first

    def listed(keyword: str) -> list[str]:
        value = first.get(keyword)
        values = [value] if isinstance(value, str) else list(value or [])
        return [str(item) for item in values if str(item)]

    traits: dict[str, Any] = {}
    grouped: dict[str, float | None] = {}
    try:
        one = slices_of(series.instances[:1])[0]
    except InputError:
        one = None
    if one is not None:
        traits = one.traits
        grouped = {keyword: _grouped(one, keyword, *names) for keyword, names in _GROUPED.items()}
    return {
        "modality": text(first, "Modality"),
        "body_part": text(first, "BodyPartExamined"),
        "image_type": listed("ImageType"),
        "protocol": text(first, "ProtocolName"),
        "description": text(first, "SeriesDescription"),
        "scanning_sequence": "\\".join(listed("ScanningSequence")) or None,
        "echo_time_ms": traits.get("echo_time"),
        "repetition_time_ms": grouped.get("RepetitionTime"),
        "inversion_time_ms": grouped.get("InversionTime"),
        "b_value": traits.get("b_value"),
        "contrast_agent": text(first, "ContrastBolusAgent"),
        "manufacturer": text(first, "Manufacturer"),
        "model_name": text(first, "ManufacturerModelName"),
        "field_strength_t": number(first, "MagneticFieldStrength"),
        "slice_thickness_mm": grouped.get("SliceThickness"),
        "sop_class": text(first, "SOPClassUID"),
        "patient_position": text(first, "PatientPosition"),
    }
