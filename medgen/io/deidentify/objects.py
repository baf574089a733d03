"""One DICOM object in, its de-identified bytes out, or the reason why it is set aside."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    PYDICOM_IMPLEMENTATION_UID,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medgen.io.deidentify import burned_in
from medgen.io.deidentify.attributes import Attributes
from medgen.io.deidentify.keys import KeyedMap
from medgen.io.deidentify.profile import EDITION, PIXEL_CODES, Profile
from medgen.io.dicom_files import quiet

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Objects whose content may name the patient in ways no table of attributes covers, or that are
# no pictures. Clean Structured Content (E.3.3) and Clean Graphics (E.3.4) are not implemented.
_REFUSED = {
    f"{_STORAGE}88.59": "key object selection",
    f"{_STORAGE}88.": "structured report: its content may name the patient",
    f"{_STORAGE}104.": "encapsulated document: its content may name the patient",
    f"{_STORAGE}11.": "presentation state: its graphics may name the patient",
    f"{_STORAGE}9.": "waveform",
    f"{_STORAGE}66": "raw data or registration, no picture",
    f"{_STORAGE}77.1.1.1": "video",
    f"{_STORAGE}77.1.2.1": "video",
    f"{_STORAGE}77.1.4.1": "video",
    "1.2.840.10008.1.3.10": "directory of a medium (DICOMDIR): name its folder instead",
}
_SEGMENTATION = (f"{_STORAGE}66.4", f"{_STORAGE}66.7")  # binary or fractional, label map
_PARAMETRIC_MAP = f"{_STORAGE}30"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


class Refused(Exception):
    """An object that is set aside.

    Attributes:
        reason: Why; quotes no value of any attribute.
        modality: Modality, if it is a known kind of word.
        damaged: Whether it could not be read, rather than was knowingly left out.
    """

    def __init__(self, reason: str, modality: str = "", *, damaged: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.modality = modality
        self.damaged = damaged


class NotDicom(Exception):
    """A file of another format."""


@dataclass(frozen=True)
class Treated:
    """A de-identified object.

    Attributes:
        data: The whole file.
        pseudonym: Of the patient.
        study: Hash of the study for a folder's name.
        series: Number and hash of the series for a folder's name.
        name: Of the file; unique for the instance.
        uid: SOPInstanceUID, the new one.
        done: (attribute, what was done) to how often.
        warning: Why the header or pixels made burned-in text likely, if it was allowed.
    """

    data: bytes
    pseudonym: str
    study: str
    series: str
    name: str
    uid: str
    done: Counter[tuple[str, str]]
    warning: str | None


def treat(stream: BinaryIO, profile: Profile, keyed: KeyedMap) -> Treated:
    """De-identify one object (PS3.15 Annex E); pixels are copied bit for bit.

    Args:
        stream: The file, at its start.
        profile: What to keep.
        keyed: New UIDs and pseudonyms.

    Raises:
        Refused: The object is set aside. No other error comes from the object itself.
        NotDicom: The file has another format.
    """
    try:
        with quiet():
            return _treat(_parse(stream), profile, keyed)
    except (Refused, NotDicom):
        raise
    except Exception as error:  # a damaged file makes a parser raise anything; text may be quoted
        raise Refused(f"damaged ({type(error).__name__})", damaged=True) from None


def _parse(stream: BinaryIO) -> Dataset:
    data = stream.read()
    marked = data[128:132] == b"DICM"
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=not marked)
    except Exception:
        if marked:
            raise
        raise NotDicom from None
    if not marked and "SOPClassUID" not in dataset and "Rows" not in dataset:
        raise NotDicom
    return dataset


def _treat(dataset: Dataset, profile: Profile, keyed: KeyedMap) -> Treated:
    modality = _word(dataset, "Modality")
    warning = None
    try:
        _complete_meta(dataset)
        _refuse_kind(dataset)
        _refuse_incomplete(dataset)
        warning = _text_in_pixels(dataset)
        if warning and not profile.allow_burned_in:
            raise Refused(warning)
    except Refused as refused:
        refused.modality = modality
        raise
    identity = _identity(dataset)
    pseudonym = keyed.pseudonym(identity)
    old = {name: str(dataset.get(name)) for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    instance = str(dataset.SOPInstanceUID)
    series = _number(dataset, "SeriesNumber", 4) + keyed.label(
        "series", f"{old['StudyInstanceUID']}|{old['SeriesInstanceUID']}"
    )
    name = _number(dataset, "InstanceNumber", 5) + keyed.label("instance", instance, 12)
    earlier = _earlier_codes(dataset)
    attributes = Attributes(profile, keyed, pseudonym, keyed.shift_days(identity))
    attributes.treat(dataset)
    _state(dataset, profile, pseudonym, earlier)
    dataset.file_meta = _meta(dataset)
    dataset.preamble = b"\0" * 128
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return Treated(
        data=buffer.getvalue(), pseudonym=pseudonym,
        study=keyed.label("study", old["StudyInstanceUID"]), series=series, name=f"{name}.dcm",
        uid=str(dataset.SOPInstanceUID), done=attributes.done, warning=warning,
    )  # fmt: skip


def _complete_meta(dataset: Dataset) -> None:
    """What the file says at one place only, said at both."""
    for name in ("SOPClassUID", "SOPInstanceUID"):
        stated = dataset.file_meta.get(f"MediaStorage{name}")
        if stated and not _text(dataset, name):
            setattr(dataset, name, stated)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        dataset.file_meta.TransferSyntaxUID = _syntax(dataset)


def _refuse_kind(dataset: Dataset) -> None:
    sop_class = _text(dataset, "SOPClassUID")
    for prefix, reason in _REFUSED.items():
        matches = sop_class == prefix or sop_class.startswith(prefix.rstrip(".") + ".")
        if matches and sop_class not in _SEGMENTATION:
            raise Refused(reason)
    if not any(name in dataset for name in _PIXELS):
        if not sop_class or "Image Storage" in UID(sop_class).name:
            raise Refused("damaged: an image without pixels", damaged=True)
        raise Refused("no picture")
    if burned_in.hidden_overlay(dataset):
        raise Refused("an overlay is stored within the pixels, where it cannot be removed")


def _refuse_incomplete(dataset: Dataset) -> None:
    for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not _text(dataset, name) or not isinstance(dataset[name].value, str):
            raise Refused(f"{name} is missing, or there are several", damaged=True)
    if not UID(str(dataset.SOPClassUID)).is_valid:
        raise Refused("SOPClassUID is not a UID", damaged=True)
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    if not (syntax.is_valid and syntax.is_transfer_syntax and not syntax.is_private):
        raise Refused("private or unknown transfer syntax", damaged=True)
    if "PixelData" in dataset and not syntax.is_encapsulated:
        from pydicom.pixels.utils import get_expected_length

        if len(dataset.PixelData) < get_expected_length(dataset):
            raise Refused("damaged: pixels are missing at the end", damaged=True)


def _text_in_pixels(dataset: Dataset) -> str | None:
    """Why text may be in the pixels; None if nothing speaks for it."""
    reason = burned_in.suspicion(dataset)
    if reason:
        return reason
    if str(dataset.SOPClassUID) in (*_SEGMENTATION, _PARAMETRIC_MAP):
        return None  # made from numbers by a program, not drawn
    try:
        text = burned_in.shows_text(dataset)
    except Exception:  # no decoder, or a damaged codestream: what is in it is not known
        return "the pixels cannot be decoded, so text in them cannot be ruled out"
    return "burned-in annotation: the pixels seem to show text" if text else None


def _identity(dataset: Dataset) -> str:
    """What the pseudonym is made of: number and issuer; else name and birth date; else study."""
    number, issuer = _text(dataset, "PatientID"), _text(dataset, "IssuerOfPatientID")
    if number:
        return f"id|{number}|{issuer}"
    name = _text(dataset, "PatientName")
    if name:
        return f"name|{name.upper()}|{_text(dataset, 'PatientBirthDate')}"
    return f"study|{_text(dataset, 'StudyInstanceUID')}"


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def _word(dataset: Dataset, keyword: str) -> str:
    """A code, only if it looks like one: it goes into the report."""
    value = _text(dataset, keyword)
    plain = value.isascii() and value.isalpha() and value.isupper() and len(value) <= 8
    return value if plain else ""


def _number(dataset: Dataset, keyword: str, digits: int) -> str:
    """A number for the name of a file or folder, so that they sort; empty if it is none."""
    try:
        value = int(dataset.get(keyword))
    except (TypeError, ValueError):
        return ""
    return f"{value:0{digits}d}-" if 0 <= value < 10**9 else ""


def _earlier_codes(dataset: Dataset) -> list[tuple[str, str]]:
    """Earlier treatment of the pixels, which this run leaves as they are."""
    codes = dataset.get("DeidentificationMethodCodeSequence") or ()
    stated = {str(code.get("CodeValue")) for code in codes}
    return [code for value, code in PIXEL_CODES.items() if value in stated]


def _state(
    dataset: Dataset, profile: Profile, pseudonym: str, earlier: list[tuple[str, str]]
) -> None:
    """Say in the object what was done to it (PS3.3 C.7.1.1, C.12.1.1.1; PS3.15 E.1.1)."""
    dataset.PatientName = pseudonym
    dataset.PatientID = pseudonym
    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = profile.temporal_information
    dataset.DeidentificationMethod = [
        f"medgen {version('medgen')}"[:64], f"DICOM PS3.15 {EDITION} Annex E"
    ]  # fmt: skip
    items = []
    for value, meaning in [*profile.codes, *earlier]:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        items.append(item)
    dataset.DeidentificationMethodCodeSequence = items


def _meta(dataset: Dataset) -> FileMetaDataset:
    """File meta information from nothing but what must be in it (PS3.10 7.1)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    meta.ImplementationVersionName = f"MEDGEN {version('medgen')}"[:16]
    return meta


def _syntax(dataset: Dataset) -> UID:
    """Transfer syntax of a file that does not say."""
    implicit, little = dataset.original_encoding
    if not little:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
