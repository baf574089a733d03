"""What a derived object takes over from its source: patient, study, and nothing that is damaged.

A PACS files an object by these values, so they are copied, not invented. Those that break the
rules of their type (PS3.5 6.2) are repaired where the meaning is plain and else left empty; the
numbers by which a patient or an order is known are never shortened.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset

from medgen.io.dicom_files import UNREADABLE

# Attributes that every object must have, empty if need be (type 2): PS3.3 C.7.1.1 and C.7.2.1.
_REQUIRED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
# Others of the patient, the study and the trial (PS3.3 C.7.1, C.7.2), and of the equipment that
# made the source (it is cited as contributing equipment, C.12.1).
_OPTIONAL = (
    "IssuerOfPatientID", "TypeOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod",
    "PatientComments", "StudyDescription", "PatientAge", "PatientSize", "PatientWeight",
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID", "Manufacturer",
    "ManufacturerModelName", "TimezoneOffsetFromUTC",
)  # fmt: skip
_CODED = ("DeidentificationMethodCodeSequence",)
# How a classic MR or CT picture was acquired; true of a picture derived from it as well.
_ACQUISITION = (
    "BodyPartExamined", "ProtocolName", "PatientPosition", "MRAcquisitionType", "EchoTime",
    "RepetitionTime", "InversionTime", "EchoTrainLength", "MagneticFieldStrength", "FlipAngle",
    "KVP", "ConvolutionKernel",
)  # fmt: skip
# The values that the standard allows (PS3.3 C.8.3.1); several may stand side by side.
_SEQUENCES = {
    "ScanningSequence": ("SE", "IR", "GR", "EP", "RM"),
    "SequenceVariant": ("SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "TOF", "NONE"),
}
_LENGTHS = {"LO": 64, "SH": 16, "ST": 1024, "LT": 10240}
# Shortening one of these would make it another patient's, or another order's.
_IDENTIFIERS = {"PatientID", "IssuerOfPatientID", "AccessionNumber"}


def patient_and_study(header: Dataset) -> Dataset:
    """The clean patient and study attributes of a source object, all text in Unicode.

    Args:
        header: Of the source object, in whatever character set.

    Returns:
        Attributes in UTF-8 (``ISO_IR 192``), those that must be there empty if unknown.
    """
    copied = Dataset()
    copied.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _REQUIRED:
        setattr(copied, keyword, clean(header, keyword) or "")
    for keyword in _OPTIONAL:
        value = clean(header, keyword)
        if value is not None:
            setattr(copied, keyword, value)
    for keyword in _CODED:
        items = _codes(header, keyword)
        if items:
            setattr(copied, keyword, items)
    if copied.PatientSex not in ("", "M", "F", "O"):
        copied.PatientSex = ""
    if copied.get("PatientIdentityRemoved") not in (None, "YES", "NO"):
        del copied.PatientIdentityRemoved
    if copied.get("PatientIdentityRemoved") == "YES" and not any(
        keyword in copied for keyword in ("DeidentificationMethod", *_CODED)
    ):
        copied.DeidentificationMethod = "not stated by the source"  # type 1C (C.7.1.1)
    return copied


def acquisition(header: Dataset) -> Dataset:
    """How a source object was acquired: what of it is well-formed, and nothing else."""
    copied = Dataset()
    for keyword in _ACQUISITION:
        value = clean(header, keyword)
        if value is not None:
            setattr(copied, keyword, value)
    for keyword, allowed in _SEQUENCES.items():
        try:
            given = header.get(keyword) or ()
            words = [given] if isinstance(given, str) else [str(word) for word in given]
        except UNREADABLE:
            continue
        if words and all(word in allowed for word in words):
            setattr(copied, keyword, words)
    return copied


def clean(header: Dataset, keyword: str) -> Any:
    """A value that may stand in a new object; None if it is missing or beyond repair."""
    try:
        value = header.get(keyword)
        if value is None or value == "":
            return None
        vr = dictionary_VR(keyword)
        # A backslash inside a text looks like several values.
        text = str(value) if isinstance(value, str) else _joined(value)
        cleaned = _CLEANERS.get(vr, _text)(text)
    except UNREADABLE:
        return None
    if keyword not in _IDENTIFIERS and isinstance(cleaned, str):
        cleaned = cleaned[: _LENGTHS.get(vr, len(cleaned))].strip()
    return cleaned if cleaned != "" else None


def _joined(value: Any) -> str:
    several = hasattr(value, "__iter__") and not hasattr(value, "family_name")
    return "/".join(str(part) for part in value) if several else str(value)


def _text(value: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f\\]+", " ", value).strip()


def _person(value: str) -> str:
    """At most three ways to write the name, each of at most five parts (PS3.5 6.2.1)."""
    groups = []
    for group in _text(value).split("=")[:3]:
        *parts, last = group.split("^", 4)
        groups.append("^".join([*parts, last.replace("^", " ")])[:64].strip())
    name = "=".join(groups)
    return name if name.strip("^= ") else ""


def _date(value: str) -> str:
    """``YYYYMMDD``; the dots of the standard's predecessor are dropped."""
    return datetime.strptime(re.sub(r"[.\-/ ]", "", value), "%Y%m%d").strftime("%Y%m%d")


def _time(value: str) -> str:
    found = re.fullmatch(r"(\d\d):?(\d\d)?:?(\d\d)?(\.\d{1,6})?", value.strip())
    if found is None:
        return ""
    hours, minutes, seconds, fraction = found.groups()
    if int(hours) > 23 or int(minutes or 0) > 59 or int(seconds or 0) > 59:
        return ""
    whole = hours + (minutes or "") + (seconds or "" if minutes else "")
    return whole + (fraction or "" if seconds else "")


def _code_string(value: str) -> str:
    value = value.strip().upper()
    return value if re.fullmatch(r"[A-Z0-9 _]{1,16}", value) else ""


def _age(value: str) -> str:
    return value if re.fullmatch(r"\d{3}[DWMY]", value) else ""


def _decimal(value: str) -> float | None:
    number = float(value)
    return float(f"{number:.6g}") if 0 <= number < 1e6 else None


_CLEANERS: dict[str, Callable[[str], Any]] = {
    "PN": _person, "DA": _date, "TM": _time, "CS": _code_string, "AS": _age, "DS": _decimal,
}  # fmt: skip


def _codes(header: Dataset, keyword: str) -> list[Dataset]:
    """Coded values, each with the three parts that a code must have (PS3.3 8.8)."""
    items = []
    try:
        for old in header.get(keyword) or ():
            new = Dataset()
            for part in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"):
                setattr(new, part, clean(old, part) or "")
            if all(element.value for element in new):
                items.append(new)
    except UNREADABLE:
        return []
    return items
