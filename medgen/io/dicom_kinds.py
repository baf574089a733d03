"""What kind of object a DICOM header describes: a picture to work on, or something to set aside.

The rule for derived images: a value of ImageType (PS3.3 C.7.6.1.1.2) with a known meaning (an ADC
map, a projection, a subtraction, ...) sets the image aside. DERIVED alone does not: programs that
filter, resample or anonymise images write it, and those images are as good as their originals. A
secondary capture is set aside unless it says where it lies in the patient, because converters
write whole scans as that class.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID

from medgen.io.dicom_files import text

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Objects that are no pictures, by the beginning of their SOP class (PS3.4 B.5); longest first.
_NO_PICTURES = {
    "88.59": "key object selection", "88.67": "dose report", "88.68": "dose report",
    "88.69": "dose report", "88.73": "dose report", "88.": "structured report",
    "11.": "presentation state", "66.4": "segmentation", "66.5": "segmentation",
    "66.7": "segmentation", "66.1": "registration", "66.3": "registration", "66.2": "fiducials",
    "66.6": "tractography", "66": "raw data", "67": "real world value mapping",
    "68.": "surface scan", "481.": "radiotherapy object", "9.": "waveform",
    "104.": "encapsulated document", "30": "parametric map", "4.2": "spectroscopy",
    "40": "raw data", "77.1.6": "whole slide image", "78.": "eye measurement",
    "79.": "eye measurement", "80.": "eye measurement", "81.": "eye measurement",
}  # fmt: skip
# The same by modality, for classes that are private or missing.
_NO_PICTURE_MODALITIES = {
    "SEG": "segmentation", "RTDOSE": "radiotherapy object", "RTSTRUCT": "radiotherapy object",
    "RTPLAN": "radiotherapy object", "RTRECORD": "radiotherapy object",
    "SR": "structured report", "PR": "presentation state", "KO": "key object selection",
    "REG": "registration", "ECG": "waveform", "HD": "waveform", "EPS": "waveform",
    "DOC": "encapsulated document", "SM": "whole slide image",
}  # fmt: skip
_RT_NAMES = {"481.2": "dose", "481.3": "structure set", "481.5": "plan", "481.8": "plan"}
_LOCALISERS = {"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM", "SURVEY", "TOPO"}
# Not every scanner says it in ImageType; this is what technologists and protocols call them.
_LOCALISER_NAME = re.compile(
    r"(?<![a-z])(locali[sz]er|scout|topogram|surview|survey|3.?plane.?loc)(?![a-z])", re.IGNORECASE
)
_PROJECTIONS = {
    "MIP", "MAX_IP", "MINIP", "MIN_IP", "MNIP", "MEAN_IP", "MIP_SAG", "MIP_COR", "MIP_TRA",
    "PROJECTION IMAGE", "MAXIMUM_PROJECTION", "MINIMUM_PROJECTION", "VOLUME RENDERED", "VRT",
    "3D RENDERED", "SSD",
}  # fmt: skip
# Only with DERIVED before them.
_DERIVED = {
    "ADC": "ADC map", "ADC_UNSPECIFIED": "ADC map", "EADC": "exponential ADC map",
    "EXP": "exponential ADC map", "FA": "fractional anisotropy map",
    "FRACTIONAL_ANISO": "fractional anisotropy map",
    "FRACTIONAL_ANISOTROPY": "fractional anisotropy map",
    "COLFA": "fractional anisotropy map", "TENSOR": "tensor", "TENSOR_B0": "tensor",
    "VOLUME_RATIO": "tensor", "TRACE": "trace-weighted image", "TRACEW": "trace-weighted image",
    "TRACE_UNSPECIFIED": "trace-weighted image", "MPR": "reformatted image",
    "MPR_THICK": "reformatted image", "REFORMATTED": "reformatted image",
    "CURVED": "reformatted image", "SUBTRACTION": "subtraction", "SUBTRACT": "subtraction",
    "SUB": "subtraction", "CBF": "perfusion map", "CBV": "perfusion map", "MTT": "perfusion map",
    "TTP": "perfusion map", "TMAX": "perfusion map", "RCBF": "perfusion map",
    "RCBV": "perfusion map", "RELCBF": "perfusion map", "RELCBV": "perfusion map",
    "RELMTT": "perfusion map", "PBP": "perfusion map", "GBP": "perfusion map",
    "PERFUSION_ASL": "perfusion map", "T1_MAP": "T1 map", "T1 MAP": "T1 map",
    "T2_MAP": "T2 map", "T2 MAP": "T2 map", "T2_STAR MAP": "T2* map", "T2_STAR_MAP": "T2* map",
    "R2_MAP": "R2 map", "R2 MAP": "R2 map", "R2_STAR MAP": "R2* map", "R2_STAR_MAP": "R2* map",
    "T_MAP": "statistical map", "T-MAP": "statistical map", "FMRI": "statistical map",
}  # fmt: skip
_SCREENS = {"SCREEN SAVE", "SCREEN_SAVE", "SCREENSAVE", "SCREENSHOT", "SCREEN CAPTURE"}
_DOSE = {"CT_SOM5 PROT", "DOSE", "DOSE_INFO", "DOSE REPORT", "PATIENT PROTOCOL", "PROTOCOL"}


@dataclass(frozen=True)
class Aside:
    """Why an object is not worked on.

    Attributes:
        reason: In a few words, such as ``derived: ADC map``.
        picture: Whether it is a picture all the same, which is read if it is asked for.
    """

    reason: str
    picture: bool


def set_aside(header: Dataset) -> Aside | None:
    """Why an object is set aside, or None for a picture to work on."""
    uid = str(header.get("SOPClassUID") or "")
    modality = str(header.get("Modality") or "")
    reason = _no_picture(uid) or _NO_PICTURE_MODALITIES.get(modality)
    if reason:
        return Aside(reason, picture=False)
    if not (header.get("Rows") and header.get("Columns")):
        return Aside("no pixels", picture=False)
    kinds = [str(kind).strip().upper() for kind in _listed(header.get("ImageType"))]
    for reason, known in (
        ("localiser", _LOCALISERS),
        ("screen save", _SCREENS),
        ("derived: projection", _PROJECTIONS),
    ):
        if known & set(kinds):
            return Aside(reason, picture=True)
    if _LOCALISER_NAME.search(text(header, "SeriesDescription") or ""):
        return Aside("localiser by its name", picture=True)
    if "SECONDARY" in kinds and _DOSE & set(kinds):
        return Aside("dose report", picture=True)
    if kinds[:1] == ["DERIVED"]:
        for kind in kinds[1:]:
            if kind in _DERIVED:
                return Aside(f"derived: {_DERIVED[kind]}", picture=True)
    # Secondary Capture, single-frame and multi-frame (PS3.3 A.8)
    captured = uid == _STORAGE + "7" or uid.startswith(_STORAGE + "7.")
    if captured and "ImagePositionPatient" not in header and not _groups(header):
        dose = "dose" in (text(header, "SeriesDescription") or "").casefold()
        return Aside("dose report" if dose else "secondary capture", picture=True)
    return None


def _no_picture(uid: str) -> str | None:
    if uid == "1.2.840.10008.1.3.10":
        return "directory"
    if not uid.startswith(_STORAGE):
        # Templates and palettes; a private class may be anything, and what follows decides.
        known = UID(uid).is_valid and UID(uid).name != uid
        return "not an image" if known and "Image" not in UID(uid).name else None
    kind = uid.removeprefix(_STORAGE)
    for start in sorted(_NO_PICTURES, key=len, reverse=True):
        if kind == start or (kind.startswith(start) and start.endswith(".")):
            if kind == "481.1":  # RT Image: a radiograph
                return None
            name = _RT_NAMES.get(kind)
            return f"radiotherapy {name}" if name else _NO_PICTURES[start]
    return None


def _listed(value: object) -> list[object]:
    if value is None or isinstance(value, str):
        return [value] if value else []
    return list(value)  # type: ignore[call-overload]


def _groups(header: Dataset) -> bool:
    """Whether functional groups say where the frames lie."""
    items = header.get("PerFrameFunctionalGroupsSequence") or []
    return bool(items) and "PlanePositionSequence" in items[0]
