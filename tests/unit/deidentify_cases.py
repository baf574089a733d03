"""DICOM objects in which every attribute that could name somebody holds a secret."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import numpy as np
import pydicom
from pydicom import config
from pydicom.datadict import DicomDictionary, dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medgen.io.deidentify.table import rows

SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}
TEXT_VRS = ("PN", "LO", "SH", "ST", "LT", "UT", "UC", "CS", "AE", "UR")
KEPT_TEXT = {"CodingSchemeURL", "CodingSchemeName", "CodingSchemeExternalID",
             "CodingSchemeResponsibleOrganization"}  # fmt: skip
# Left out of the planting: what makes the object an object, or a structure of its own.
_STRUCTURE = {0x00020003, 0x00080018, 0x0020000D, 0x0020000E, 0x00100020, 0x00080016}


@dataclass
class Planted:
    """An object with secrets.

    Attributes:
        data: The file.
        secrets: What is hidden where: (tag, level) to the bytes to look for. Level 0 is the
            object itself, 1 an item of a sequence that the profile keeps.
    """

    data: bytes
    secrets: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def left(self, data: bytes) -> list[tuple[int, int]]:
        """Where the secrets come from that occur in a file made from this one."""
        text = searchable(data)
        return [where for where, secret in self.secrets.items() if secret in text]


def image(patient: str = "P1", instance: int = 1, **changes: Any) -> FileDataset:
    """A small CT slice with little in its header."""
    dataset = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.Modality = CTImageStorage, "CT"
    dataset.SOPInstanceUID = f"1.2.3.{instance}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.4", "1.2.5"
    dataset.FrameOfReferenceUID, dataset.SeriesNumber = "1.2.6", 3
    dataset.PatientName, dataset.PatientID = "Doe^Jane", patient
    dataset.InstanceNumber, dataset.ImageType = instance, ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows = dataset.Columns = 32
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    pixels = np.random.default_rng(instance).integers(0, 4000, (32, 32), dtype=np.uint16)
    dataset.PixelData = pixels.tobytes()
    for name, value in changes.items():
        setattr(dataset, name, value)
    return dataset


def encoded(dataset: FileDataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The file of an object."""
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, np.uint16).byteswap().tobytes()
    buffer = io.BytesIO()
    with config.disable_value_validation():
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def decoded(data: bytes) -> FileDataset:
    return pydicom.dcmread(io.BytesIO(data))


def searchable(data: bytes) -> bytes:
    """The bytes of a file, unpacked if it is deflated."""
    dataset = decoded(data)
    if dataset.file_meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
        return data
    return encoded(dataset, ExplicitVRLittleEndian)


def planted(syntax: str = ExplicitVRLittleEndian) -> Planted:
    """A secret in every attribute of the table and in all of their kin, at two levels."""
    case = Planted(b"")
    dataset = image()
    with config.disable_value_validation():
        for level, target in enumerate((dataset, Dataset())):
            _plant(target, level, case.secrets)
            if level == 1:
                # A sequence that is not in the table, so what is in it must be looked at.
                dataset.DerivationImageSequence = Sequence([target])
        _plant_private(dataset, case.secrets)
        dataset.file_meta.SourceApplicationEntityTitle = "METASECRET"
        dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
        dataset.file_meta.PrivateInformation = b"METASECRET"
        dataset.preamble = b"METASECRET".ljust(128, b"\0")
        case.secrets[0x00020016, 0] = b"METASECRET"
        case.data = encoded(dataset, syntax)
    return case


def _plant(dataset: Dataset, level: int, secrets: dict[tuple[int, int], bytes]) -> None:
    listed = {int(tag, 16) for tag in rows() if "x" not in tag}
    kin = {
        tag for tag, (vr, _, _, _, keyword) in DicomDictionary.items()
        if vr in ("PN", "DA", "DT", "TM", "LT", "ST", "UT", "UR") and keyword not in KEPT_TEXT
    }  # fmt: skip
    for number, tag in enumerate(sorted(listed | kin)):
        group = tag >> 16
        if group <= 4 or (level == 0 and tag in _STRUCTURE) or group in (0xFFFA, 0xFFFC):
            continue
        vr = dictionary_VR(tag) if dictionary_has_tag(tag) else "LO"
        days = sum(len(other) == 8 and other.isdigit() for other in secrets.values())
        value, secret = _secret(vr, days if vr == "DA" else number + 2000 * level)
        if secret:
            dataset.add_new(tag, vr, value)
            secrets[tag, level] = secret
    for group in (0x6000, 0x6002, 0x5000):  # repeating groups
        for element, vr in ((0x0022, "LO"), (0x3000, "OB"), (0x4000, "LT")):
            tag = group << 16 | element
            value, secret = _secret(vr, tag % 9973 + 100_000 + level)
            dataset.add_new(tag, vr, value)
            secrets[tag, level] = secret


def _plant_private(dataset: Dataset, secrets: dict[tuple[int, int], bytes]) -> None:
    block = dataset.private_block(0x0009, "SECRETCREATOR", create=True)
    block.add_new(1, "LO", "PRIVATESECRET")
    item = Dataset()
    item.PatientName = "PRIVATE^NESTED"
    block.add_new(2, "SQ", Sequence([item]))
    # On the list of safe ones, but no number.
    known = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    known.add_new(0x0C, "UN", b"1234SECRET")
    dataset.add_new(0x0018FFF0, "LO", "UNKNOWNSECRET")  # in no dictionary
    secrets |= {
        (0x00090010, 0): b"SECRETCREATOR", (0x00091001, 0): b"PRIVATESECRET",
        (0x00091002, 0): b"PRIVATE^NESTED", (0x0019100C, 0): b"1234SECRET",
        (0x0018FFF0, 0): b"UNKNOWNSECRET",
    }  # fmt: skip


def _secret(vr: str, number: int) -> tuple[Any, bytes]:
    """A value that occurs nowhere else, and its bytes."""
    if vr in TEXT_VRS:
        text = f"SEC{number:06d}"
        return text, text.encode()
    if vr == "DA":
        # All within one year, so that none is another one shifted.
        text = (date(1100, 1, 1) + timedelta(days=number)).strftime("%Y%m%d")
        return text, text.encode()
    if vr == "DT":
        text = f"20201105123456.{number:06d}"
        return text, text.encode()
    if vr == "TM":
        text = f"123456.{number:06d}"
        return text, text.encode()
    if vr == "UI":
        text = f"1.2.826.77.{number}.9"
        return text, text.encode()
    if vr in ("DS", "IS"):
        return str(880_000_000 + number), str(880_000_000 + number).encode()
    if vr in ("OB", "UN"):
        return f"BIN{number:07d}".encode(), f"BIN{number:07d}".encode()
    if vr == "SQ":
        item = Dataset()
        item.PatientComments = f"SEQ{number:06d}"
        return Sequence([item]), f"SEQ{number:06d}".encode()
    return None, b""
