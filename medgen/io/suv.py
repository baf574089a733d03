"""Standardised uptake values of PET, by the pseudo-code that the vendors agreed on.

Reading PET gives what is stored, usually Bq/ml; SUV by body weight (g/ml) is made only when it is
asked for, with :func:`to_suvbw` or ``medgen.io.read(..., units="SUVbw")``. It needs the dose, the
body weight, and the moment to which the scanner corrected decay. Nothing is guessed: a tag that is
missing is named.

Reference: QIBA, "Standard uptake value (SUV): vendor-neutral pseudo-code", 2012 (the SUVbw part);
PS3.3 C.8.9.1 (PET series), C.8.9.2 (isotope).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.valuerep import DA, DT, TM

from medgen.errors import InputError
from medgen.io.dicom_archive import Zips
from medgen.io.dicom_files import UNREADABLE, number, quiet, text
from medgen.io.walk import Location
from medgen.volume import Volume

_KEYWORDS = [
    "Modality", "Units", "SUVType", "CorrectedImage", "DecayCorrection", "DecayCorrected",
    "DecayCorrectionDateTime", "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime",
    "FrameReferenceTime", "ActualFrameDuration", "PatientWeight", "TimezoneOffsetFromUTC",
    "RadiopharmaceuticalInformationSequence",
]  # fmt: skip
# Private elements and the creators that give them a meaning.
_GE_SCAN_TIME = (0x0009100D, "GEMS_PETD_01")
_PHILIPS_SUV = (0x70531000, "Philips PET Private Group")
_PHILIPS_ACTIVITY = (0x70531009, "Philips PET Private Group")
_PRIVATE = (_GE_SCAN_TIME, _PHILIPS_SUV, _PHILIPS_ACTIVITY)
# A dose below a tenth of a megabecquerel is no PET dose, but one stated in another unit.
_SMALLEST_DOSE_BQ = 1e5
_MOST_HALF_LIVES = 10


@dataclass(frozen=True)
class SuvFactor:
    """What turns read values into SUVbw.

    Attributes:
        factor: g/ml per unit of the values.
        basis: How it was found, in words for a record.
    """

    factor: float
    basis: str


def to_suvbw(volume: Volume) -> Volume:
    """Turn a PET volume, read from DICOM, into SUV by body weight (g/ml).

    Args:
        volume: From :func:`medgen.io.read`, in the units of its DICOM objects, which must still be
            where they were.

    Returns:
        The same grid; ``provenance.units`` is ``SUVbw`` and ``details["dicom"]["suv"]`` says how.

    Raises:
        InputError: It is no PET in DICOM, or a tag that is needed is missing or cannot be.
    """
    details = volume.provenance.details.get("dicom")
    if details is None or not details.get("locations"):
        raise InputError("SUV needs PET that was read from DICOM", "Name the DICOM series.")
    if volume.provenance.units == "SUVbw":
        return volume
    found = suvbw_factor(_headers(details["locations"]))
    provenance = replace(
        volume.provenance,
        units="SUVbw",
        window=None,
        details={**volume.provenance.details, "dicom": {**details, "suv": found}},
    )
    voxels = volume.voxels * np.float32(found.factor)
    return replace(volume, voxels=voxels, provenance=provenance)


def _headers(locations: Sequence[Location]) -> list[Dataset]:
    """The tags that matter, of each object once."""
    tags: list[Any] = [*_KEYWORDS]
    for tag, _ in _PRIVATE:
        tags += [Tag(tag), Tag(tag >> 16, 0x0010)]
    headers: list[Dataset] = []
    try:
        with Zips() as zips, quiet():
            for location in dict.fromkeys(locations):
                with zips.open(location) as stream:
                    headers.append(
                        pydicom.dcmread(
                            stream, stop_before_pixels=True, force=True, specific_tags=tags
                        )
                    )
    except UNREADABLE as error:
        raise InputError(
            "the DICOM objects of the series are not where they were read from",
            "Read the series again.",
        ) from error
    return headers


def suvbw_factor(headers: Sequence[Dataset]) -> SuvFactor:
    """The factor from a series' headers.

    Args:
        headers: Of all objects of one PET series: its earliest acquisition matters.

    Raises:
        InputError: Names the tag that is missing or cannot be.
    """
    first = headers[0]
    if first.get("Modality") != "PT":
        raise InputError(f"SUV is for PET, and this is {first.get('Modality') or 'unknown'}", None)
    units = text(first, "Units")
    if units == "GML":
        if text(first, "SUVType") not in (None, "BW"):
            raise _refused("SUVType", f"is {first.SUVType}, not BW (body weight)")
        return SuvFactor(1.0, "stored as SUVbw")
    if units == "CNTS":
        suv = _private(first, _PHILIPS_SUV)
        if suv:
            return SuvFactor(suv, "the vendor's SUV scale factor (7053,1000)")
        activity = _private(first, _PHILIPS_ACTIVITY)
        if not activity:
            raise _refused("Units", "is CNTS, without the vendor's scale factor (7053,1000)")
        per_bq, basis = _per_becquerel(headers)
        return SuvFactor(activity * per_bq, f"activity scale factor (7053,1009), {basis}")
    if units != "BQML":
        raise _refused("Units", f"is {units}, which is no activity" if units else "is missing")
    return SuvFactor(*_per_becquerel(headers))


def _per_becquerel(headers: Sequence[Dataset]) -> tuple[float, str]:
    """g/ml per Bq/ml, and how it was found."""
    first = headers[0]
    corrections = first.get("CorrectedImage")
    if corrections is not None:
        listed = [corrections] if isinstance(corrections, str) else list(corrections)
        if "ATTN" not in listed:
            raise _refused("CorrectedImage", "does not list ATTN: attenuation is not corrected")
    weight = _needed(first, "PatientWeight")
    tracers = first.get("RadiopharmaceuticalInformationSequence") or []
    if len(tracers) != 1:
        raise _refused(
            "RadiopharmaceuticalInformationSequence",
            "is missing" if not tracers else "lists several injections",
        )
    dose = _needed(tracers[0], "RadionuclideTotalDose")
    if dose < _SMALLEST_DOSE_BQ:
        raise _refused("RadionuclideTotalDose", f"is {dose:g}, which cannot be in Bq")
    correction = text(first, "DecayCorrection")
    if correction == "ADMIN":
        return weight * 1000 / dose, "decay corrected to the administration"
    moment, basis = _decay_reference(headers, correction, tracers[0])
    half_life = _needed(tracers[0], "RadionuclideHalfLife")
    elapsed = (moment - _administered(first, tracers[0], moment)).total_seconds()
    if not 0 <= elapsed <= _MOST_HALF_LIVES * half_life:
        raise _refused(
            "RadiopharmaceuticalStartTime",
            f"lies {elapsed:.0f} s before the scan, which cannot be for a half-life of "
            f"{half_life:g} s",
        )
    decayed = dose * 2 ** (-elapsed / half_life)
    return weight * 1000 / decayed, f"{basis}, {elapsed:.0f} s after the injection"


def _decay_reference(
    headers: Sequence[Dataset], correction: str | None, tracer: Dataset
) -> tuple[datetime, str]:
    """The moment to which decay was corrected."""
    first = headers[0]
    if correction is None and first.get("DecayCorrected") == "YES":  # enhanced PET
        stated = _datetime(first, "DecayCorrectionDateTime")
        if stated is None:
            raise _refused("DecayCorrectionDateTime", "is missing")
        return stated, "decay corrected to the stated moment"
    if correction != "START":
        raise _refused(
            "DecayCorrection", f"is {correction}: START or ADMIN is needed" if correction
            else "is missing",
        )  # fmt: skip
    corrections = first.get("CorrectedImage")
    if corrections is not None and "DECY" not in corrections:
        raise _refused("CorrectedImage", "does not list DECY, but DecayCorrection is START")
    series = _moment(first, "SeriesDate", "SeriesTime")
    if series is None:
        raise _refused("SeriesTime", "or SeriesDate is missing")
    acquired = [
        (moment, header)
        for header in headers
        if (moment := _moment(header, "AcquisitionDate", "AcquisitionTime")) is not None
    ]
    if not acquired:
        raise _refused("AcquisitionTime", "or AcquisitionDate is missing")
    earliest, header = min(acquired, key=lambda entry: entry[0])
    if series <= earliest:
        return series, "decay corrected to the series' time"
    # The series was made later, by post-processing: its time says nothing about the scan.
    scan = _private_datetime(first, _GE_SCAN_TIME)
    if scan is not None:
        return scan, "decay corrected to the vendor's scan time (0009,100D)"
    half_life = _needed(tracer, "RadionuclideHalfLife")
    reference = number(header, "FrameReferenceTime")
    duration = number(header, "ActualFrameDuration")
    if reference is None or duration is None or duration <= 0:
        keyword = "FrameReferenceTime" if reference is None else "ActualFrameDuration"
        raise _refused(keyword, "is missing, and SeriesTime is later than the acquisition")
    constant = math.log(2) / half_life
    decay = constant * duration / 1000
    # When within the frame the rate equals its average.
    within = math.log(decay / (1 - math.exp(-decay))) / constant
    return (
        earliest + timedelta(seconds=within - reference / 1000),
        "decay corrected to the start of the scan, found from its frames",
    )


def _administered(header: Dataset, tracer: Dataset, scan: datetime) -> datetime:
    """When the tracer was given; a time without a date was within a day before the scan."""
    stated = _datetime(tracer, "RadiopharmaceuticalStartDateTime", header)
    if stated is not None:
        return stated
    time = text(tracer, "RadiopharmaceuticalStartTime")
    if time is None:
        raise _refused("RadiopharmaceuticalStartTime", "is missing")
    try:
        clock = TM(time)
        assert clock is not None
        given = datetime.combine(scan.date(), clock)
    except (ValueError, AssertionError, TypeError) as error:
        raise _refused("RadiopharmaceuticalStartTime", "is damaged") from error
    return given if given <= scan else given - timedelta(days=1)


def _needed(header: Dataset, keyword: str) -> float:
    value = number(header, keyword)
    if value is None or not math.isfinite(value) or value <= 0:
        raise _refused(keyword, "is missing" if value is None else f"is {value:g}")
    return value


def _refused(keyword: str, what: str) -> InputError:
    return InputError(
        f"SUV cannot be computed: {keyword} {what}",
        "Export the series again with all its tags, or use the stored units.",
    )


def _moment(header: Dataset, date: str, time: str) -> datetime | None:
    """A date and a time; None if either is missing or damaged."""
    try:
        day, clock = DA(text(header, date) or ""), TM(text(header, time) or "")
        return datetime.combine(day, clock) if day and clock is not None else None
    except (ValueError, TypeError):
        return None


def _datetime(header: Dataset, keyword: str, local: Dataset | None = None) -> datetime | None:
    """A date-time, in the local time of the object."""
    return _local(text(header, keyword), local if local is not None else header)


def _local(stated: str | None, header: Dataset) -> datetime | None:
    try:
        moment: datetime | None = DT(stated or "")
        if moment is None:
            return None
        offset = text(header, "TimezoneOffsetFromUTC")
        if moment.tzinfo is not None and offset:
            zone = DT("20000101000000" + offset)
            moment = moment.astimezone(zone.tzinfo if zone else None)
        return moment.replace(tzinfo=None)
    except (ValueError, TypeError):
        return None


def _private_value(header: Dataset, private: tuple[int, str]) -> Any:
    tag, creator = private
    owner = header.get((tag >> 16, 0x0010))
    if owner is None or str(owner.value).strip() != creator:
        return None
    element = header.get(tag)
    value = None if element is None else element.value
    return value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else value


def _private(header: Dataset, private: tuple[int, str]) -> float | None:
    try:
        return float(_private_value(header, private))
    except (TypeError, ValueError):
        return None


def _private_datetime(header: Dataset, private: tuple[int, str]) -> datetime | None:
    value = _private_value(header, private)
    return None if value in (None, "") else _local(str(value), header)
