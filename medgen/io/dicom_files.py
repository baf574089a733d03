"""One DICOM object: its header, read cheaply and once, and how to reach its pixels.

Only the tags listed here are read. The patient's number is turned into a key at once and dropped,
and no other tag names a patient, so nothing that identifies one can reach an error, a log or a
result.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medgen.io.dicom_header import Wanted, read_plain_header
from medgen.io.walk import Location

# What the first bytes of a file must show before anything else of it is read.
PREAMBLE_BYTES = 132
# Private elements, each with the creator that gives it a meaning (PS3.5 7.8.1).
PRIVATE_TAGS = {
    "mosaic_images": (0x0019100A, "SIEMENS MR HEADER"),
    "siemens_b_value": (0x0019100C, "SIEMENS MR HEADER"),
    "siemens_csa": (0x00291010, "SIEMENS CSA HEADER"),
    "ge_b_value": (0x00431039, "GEMS_PARM_01"),
    "philips_b_value": (0x20011003, "Philips Imaging DD 001"),
}
# Everything a reader may look at before the pixels.
HEADER_KEYWORDS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber",
    "SeriesDescription", "ProtocolName", "BodyPartExamined", "FrameOfReferenceUID", "Modality",
    "ImageType", "InstanceNumber", "AcquisitionNumber", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PhotometricInterpretation", "PixelSpacing", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "ImagePositionPatient", "ImageOrientationPatient", "PatientPosition", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "RealWorldValueMappingSequence",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "Units", "WindowCenter", "WindowWidth",
    "VOILUTFunction",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "GridFrameOffsetVector",
    "DetectorInformationSequence", "EchoNumbers", "EchoTime", "RepetitionTime", "InversionTime",
    "DiffusionBValue", "TemporalPositionIdentifier", "TriggerTime", "ComplexImageComponent",
    "ScanningSequence", "ContrastBolusAgent", "Manufacturer", "ManufacturerModelName",
    "MagneticFieldStrength", "PatientID", "IssuerOfPatientID",
]  # fmt: skip
_INTEGERS = {
    "SeriesNumber", "InstanceNumber", "AcquisitionNumber", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
}  # fmt: skip
_TAGS: list[BaseTag] = [Tag(tag_for_keyword(word) or 0) for word in HEADER_KEYWORDS]
_TAGS += [Tag(tag) for tag, _ in PRIVATE_TAGS.values()]
_TAGS += [Tag(tag >> 16, 0x0010) for tag, _ in PRIVATE_TAGS.values()]
_WANTED = Wanted(
    frozenset([*map(int, _TAGS), int(Tag("SpecificCharacterSet"))]),
    frozenset(int(tag) for tag in _TAGS if not tag.is_private and dictionary_VR(tag) == "SQ"),
    frozenset(tag_for_keyword(word) or 0 for word in _INTEGERS),
)
# What a damaged file makes the parser raise.
UNREADABLE = (
    InvalidDicomError, BytesLengthException, OSError, EOFError, ValueError, TypeError,
    AttributeError, KeyError, IndexError, NotImplementedError, RuntimeError, OverflowError,
    MemoryError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Instance:
    """One DICOM object: its header, without pixels, and how to open it again.

    Attributes:
        header: Tags of :data:`HEADER_KEYWORDS` but the patient's.
        location: The file or the member of a zip that holds it.
        open: Opens the whole object for reading.
        transfer_syntax: UID of how values and pixels are stored.
        has_pixels: Whether pixels follow the header.
        pixels_at: Byte at which the element of the pixels begins; None in a deflated object.
        patient_key: A digest of the patient's number, for telling patients apart; "" without one.
    """

    header: Dataset
    location: Location
    open: Callable[[], BinaryIO]
    transfer_syntax: str
    has_pixels: bool
    pixels_at: int | None
    patient_key: str

    @property
    def frames(self) -> int:
        """Pictures in the object, as its header claims."""
        return int(self.header.get("NumberOfFrames") or 1)

    def private(self, name: str) -> Any:
        """A value of :data:`PRIVATE_TAGS`, or None if it is missing or another maker's."""
        tag, creator = PRIVATE_TAGS[name]
        owner = self.header.get((tag >> 16, 0x0010))
        if owner is None or str(owner.value).strip() != creator:
            return None
        element = self.header.get(tag)
        return None if element is None else element.value

    def __str__(self) -> str:
        """Names the object without the file name, which may hold a patient's."""
        number = self.header.get("InstanceNumber")
        if number is not None:
            return f"the object with InstanceNumber {number}"
        return f"the object {self.header.get('SOPInstanceUID', 'without a UID')}"


_quiet_blocks = 0
_quiet_lock = threading.Lock()
_loud_warnings = warnings.catch_warnings()
for _name in ("pydicom", "pydicom.pixels.decoders.base"):  # filters are not inherited
    logging.getLogger(_name).addFilter(lambda record: _quiet_blocks == 0)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings, which may quote the values of tags, out of logs.

    Filters of warnings belong to the process and not to a thread: the first block to begin sets
    them and the last to end takes them back, so that no thread ends the silence of another.
    """
    global _quiet_blocks, _loud_warnings
    with _quiet_lock:
        _quiet_blocks += 1
        if _quiet_blocks == 1:
            _loud_warnings = warnings.catch_warnings()
            _loud_warnings.__enter__()
            warnings.simplefilter("ignore")
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_blocks -= 1
            if _quiet_blocks == 0:
                _loud_warnings.__exit__(None, None, None)


def looks_like_dicom(start: bytes) -> bool:
    """Whether the first :data:`PREAMBLE_BYTES` of a file may be DICOM.

    Besides the mark after the preamble (PS3.10 7.1), objects without preamble are recognised by
    a first element of group 2 or 8, explicit or implicit, in either byte order.
    """
    if start[128:132] == b"DICM":
        return True
    if start[:2] not in (b"\x02\0", b"\x08\0", b"\0\x02", b"\0\x08") or len(start) < 8:
        return False
    order = "<" if start[0] else ">"
    element, length = struct.unpack(order + "xxHI", start[:8])
    named = start[4:6].isalpha() and start[4:6].isupper()
    return bool(element < 0x3000 and (named or length < 0x10000))


def parse(location: Location, opener: Callable[[], BinaryIO]) -> Instance | None:
    """The header of an object that :func:`looks_like_dicom`, or None if it cannot be read."""
    try:
        with quiet(), opener() as stream:
            plain = read_plain_header(stream, _WANTED)
            if plain is not None:
                if "SOPClassUID" not in plain.header and "Rows" not in plain.header:
                    return None
                _forget_csa(plain.header)
                return Instance(
                    plain.header, location, opener, plain.transfer_syntax, plain.has_pixels,
                    plain.pixels_at, _patient_key(plain.header),
                )  # fmt: skip
            stream.seek(0)
            marked = stream.read(PREAMBLE_BYTES)[128:] == b"DICM"
            stream.seek(0)
            header = pydicom.dcmread(
                stream, stop_before_pixels=True, force=not marked, specific_tags=list(_TAGS)
            )
            _complete(header)
            if "SOPClassUID" not in header and "Rows" not in header:
                return None
            pixels_at = stream.tell()
            rest = stream.read(4)
            _load(header)
            _forget_csa(header)
    except UNREADABLE:
        return None
    # A deflated object is unpacked as a whole, so what follows the header cannot be seen from here.
    syntax = str(header.file_meta.TransferSyntaxUID)
    deflated = syntax == DeflatedExplicitVRLittleEndian
    return Instance(
        header, location, opener, syntax,
        has_pixels=deflated or rest[:2] in (b"\xe0\x7f", b"\x7f\xe0"),
        pixels_at=None if deflated else pixels_at,
        patient_key=_patient_key(header),
    )  # fmt: skip


def _complete(header: FileDataset) -> None:
    """Say in the usual places what the meta header says elsewhere, or not at all."""
    meta = header.file_meta
    if "SOPClassUID" not in header and "MediaStorageSOPClassUID" in meta:
        header.SOPClassUID = meta.MediaStorageSOPClassUID
    if not meta.get("TransferSyntaxUID"):  # then the parser found it out, or guessed it
        implicit, little = header.original_encoding
        if not little:
            meta.TransferSyntaxUID = ExplicitVRBigEndian
        else:
            meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _load(header: Dataset) -> None:
    """Convert every value now, and drop damaged ones: a missing tag is dealt with, a wrong not."""
    for tag in list(header.keys()):
        try:
            element = header[Tag(tag)]
            if element.keyword in _INTEGERS and element.value is not None:
                int(element.value)
        except UNREADABLE:
            del header[tag]


def _forget_csa(header: Dataset) -> None:
    """Drop what only a mosaic needs and fills the memory of an archive."""
    tag = PRIVATE_TAGS["siemens_csa"][0]
    if tag in header and "MOSAIC" not in (header.get("ImageType") or []):
        del header[tag]


def _patient_key(header: Dataset) -> str:
    """A digest that tells patients apart; the number itself leaves the header."""
    number = str(header.get("PatientID") or "").strip()
    issuer = str(header.get("IssuerOfPatientID") or "").strip()
    for keyword in ("PatientID", "IssuerOfPatientID"):
        if keyword in header:
            del header[keyword]
    return hashlib.sha256(f"{number}|{issuer}".encode()).hexdigest() if number else ""


def pixels_of(instance: Instance) -> Dataset:
    """The whole object, pixels included (not yet decoded)."""
    with instance.open() as stream:
        dataset = pydicom.dcmread(stream, force=True)
        _complete(dataset)
        return dataset


def text(header: Dataset, keyword: str) -> str | None:
    """A tag as text, or None if it is missing or empty."""
    value: Any = header.get(keyword)
    return str(value) if value not in (None, "") else None


def number(header: Dataset, keyword: str) -> float | None:
    """A tag as a number (the first of several), or None if it is missing or none."""
    value: Any = header.get(keyword)
    try:
        if isinstance(value, (list, tuple)) or hasattr(value, "append"):
            value = value[0] if len(value) else None
        return None if value in (None, "") else float(value)
    except UNREADABLE:
        return None
