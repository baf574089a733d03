"""Finding DICOM objects in a file, a folder or a zip, and sorting them into series.

Only the tags listed here are read, none of which names a patient, so nothing that identifies one
can reach an error, a log or a result. A zip is never unpacked to disk: members are read one by one.
"""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medgen.errors import InputError

MAX_ZIP_BYTES = 8 * 2**30  # unpacked; a small zip can hold a far larger one
MAX_ZIP_MEMBERS = 100_000

# Everything a reader may look at before the pixels.
HEADER_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber",
    "SeriesDescription", "FrameOfReferenceUID", "Modality", "ImageType", "InstanceNumber",
    "AcquisitionNumber", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated",
    "PixelRepresentation", "PhotometricInterpretation", "PixelSpacing", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing", "SliceThickness", "ImagePositionPatient",
    "ImageOrientationPatient", "RescaleType", "Units", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "GridFrameOffsetVector", "DetectorInformationSequence",
]  # fmt: skip
_INTEGERS = {
    "SeriesNumber", "InstanceNumber", "AcquisitionNumber", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "BitsAllocated", "PixelRepresentation",
}  # fmt: skip
_NOT_PICTURES = {"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG", "ECG", "DOC"}
# What a damaged file makes the parser raise.
UNREADABLE = (
    InvalidDicomError, BytesLengthException, OSError, EOFError, ValueError, TypeError,
    AttributeError, KeyError, IndexError, NotImplementedError, RuntimeError, OverflowError,
    struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class Instance:
    """One DICOM object: its header, without pixels, and how to open it again.

    Attributes:
        header: Tags of :data:`HEADER_TAGS` and the file meta information.
        open: Opens the whole object for reading.
        has_pixels: Whether pixels follow the header.
    """

    header: Dataset
    open: Callable[[], BinaryIO]
    has_pixels: bool

    @property
    def transfer_syntax(self) -> str | None:
        """UID of how pixels are stored, if the file says."""
        uid = getattr(self.header, "file_meta", Dataset()).get("TransferSyntaxUID")
        return str(uid) if uid else None

    def __str__(self) -> str:
        """Names the object without the file name, which may hold a patient's."""
        number = self.header.get("InstanceNumber")
        if number is not None:
            return f"the object with InstanceNumber {number}"
        return f"the object {self.header.get('SOPInstanceUID', 'without a UID')}"


@dataclass
class Series:
    """The image objects of one series.

    Attributes:
        uid: SeriesInstanceUID.
        instances: In the order found.
    """

    uid: str
    instances: list[Instance] = field(default_factory=list)

    @property
    def first(self) -> Dataset:
        """Header of the first object."""
        return self.instances[0].header

    @property
    def number(self) -> str:
        """SeriesNumber, or an empty string."""
        number = self.first.get("SeriesNumber")
        return "" if number is None else str(number)

    @property
    def description(self) -> str:
        """SeriesDescription, or an empty string."""
        return str(self.first.get("SeriesDescription") or "")

    @property
    def images(self) -> int:
        """Pictures in all objects."""
        return sum(int(i.header.get("NumberOfFrames") or 1) for i in self.instances)


def find_series(path: Path) -> list[Series]:
    """All image series in a file, folder (searched to its depth) or zip, by number.

    Raises:
        InputError: Nothing readable, no image among the objects, or a hostile zip.
    """
    series: dict[str, Series] = {}
    others: set[str] = set()
    for instance in _instances(path):
        header = instance.header
        modality = str(header.get("Modality") or "")
        if modality in _NOT_PICTURES or not (header.get("Rows") and header.get("Columns")):
            others.add(modality or "unknown")
            continue
        uid = str(header.get("SeriesInstanceUID") or "")
        series.setdefault(uid, Series(uid)).instances.append(instance)
    if not series:
        if others:
            raise InputError(
                f"{path} holds DICOM, but no image: only {', '.join(sorted(others))} objects",
                "Name the folder of the images themselves.",
            )
        raise _nothing_found(path)
    return sorted(series.values(), key=lambda s: (int(s.first.get("SeriesNumber") or 0), s.uid))


def choose_series(found: Sequence[Series], wanted: str | None, path: Path) -> Series:
    """The one series, or the one with the wanted number, UID (its last digits suffice) or name.

    Raises:
        InputError: Lists the series if none or several fit.
    """
    if wanted is None:
        if len(found) == 1:
            return found[0]
        raise InputError(
            f"{path} holds {len(found)} series, and one is needed:\n{_listing(found)}",
            "Choose one with --series and its number, UID or description.",
        )
    fitting = [s for s in found if wanted in (s.number, s.uid)]
    fitting = fitting or [s for s in found if len(wanted) > 3 and s.uid.endswith(wanted)]
    fitting = fitting or [s for s in found if wanted.casefold() == s.description.casefold()]
    if len(fitting) == 1:
        return fitting[0]
    problem = "has no series" if not fitting else f"has {len(fitting)} series called"
    raise InputError(
        f"{path} {problem} {wanted!r}; it holds:\n{_listing(found)}",
        "Choose one with --series and its number, UID or description.",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings, which may quote the values of tags, out of logs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _listing(found: Sequence[Series]) -> str:
    lines = []
    for s in found:
        images = f"{s.images} image{'s' if s.images != 1 else ''}"
        lines.append(
            f"  {s.number or '-':>4}  {s.first.get('Modality', '?')}  {images:>11}  "
            f"{s.description or 'no description'}  (UID {s.uid or 'missing'})"
        )
    return "\n".join(lines)


def _nothing_found(path: Path) -> InputError:
    if path.is_dir():
        other = [p for p in path.iterdir() if p.name.endswith((".nii", ".nii.gz", ".png", ".jpg"))]
        hint = "Name one of the files in it." if other else "Name a folder of DICOM files."
        what = f"; it does hold {len(other)} NIfTI or picture files" if other else ""
        return InputError(f"the folder {path} holds no readable DICOM image{what}", hint)
    return InputError(
        f"{path} holds no readable DICOM image", "Check that the file was copied completely."
    )


def _instances(path: Path) -> Iterator[Instance]:
    """Every DICOM object, in the order of the file names."""
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            if file.name != "DICOMDIR" and not file.name.startswith("."):
                instance = _parse(_opener(file), bare=file.suffix.lower() in (".dcm", ".ima", ""))
                if instance is not None:
                    yield instance
        return
    if zipfile.is_zipfile(path):
        yield from _zipped(path)
        return
    instance = _parse(_opener(path), bare=True)
    if instance is not None:
        yield instance


def _opener(file: Path) -> Callable[[], BinaryIO]:
    return lambda: file.open("rb")


def _zipped(path: Path) -> Iterator[Instance]:
    """The objects of a zip. Names in it are never used as paths, so none can lead outside."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
    except UNREADABLE as error:
        raise InputError(f"{path} is a damaged zip", "Copy or download it again.") from error
    size = sum(member.file_size for member in members)
    if size > MAX_ZIP_BYTES or len(members) > MAX_ZIP_MEMBERS:
        raise InputError(
            f"{path} would unpack to {size / 2**30:.1f} GiB in {len(members)} files; at most "
            f"{MAX_ZIP_BYTES / 2**30:.0f} GiB in {MAX_ZIP_MEMBERS} files are read from a zip",
            "If you trust it, unpack it and name the folder.",
        )
    if any(member.flag_bits & 1 for member in members):
        raise InputError(f"{path} is encrypted", "Unpack it with its password, name the folder.")
    for member in sorted(members, key=lambda m: m.filename):
        name = member.filename.rsplit("/", 1)[-1]
        if name != "DICOMDIR" and not name.startswith(".") and "__MACOSX" not in member.filename:
            bare = "." not in name or name.lower().endswith((".dcm", ".ima"))
            instance = _parse(_member_opener(path, member), bare=bare)
            if instance is not None:
                yield instance


def _member_opener(path: Path, member: zipfile.ZipInfo) -> Callable[[], BinaryIO]:
    def read() -> BinaryIO:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            # The size in the directory is checked; a member that lies about it is cut there.
            return io.BytesIO(stream.read(member.file_size))

    return read


def _parse(opener: Callable[[], BinaryIO], *, bare: bool) -> Instance | None:
    """The header, or None if this is not DICOM.

    Args:
        opener: Opens the file.
        bare: Whether a file without the DICM preamble may be DICOM nevertheless.
    """
    try:
        with quiet(), opener() as stream:
            preamble = stream.read(132)
            if preamble[128:] != b"DICM" and not bare:
                return None
            stream.seek(0)
            header = pydicom.dcmread(
                stream, stop_before_pixels=True, force=bare, specific_tags=[*HEADER_TAGS]
            )
            if "SOPClassUID" not in header and "Rows" not in header:
                return None
            rest = stream.read(4)
            _load(header)
    except UNREADABLE:
        return None
    # A deflated object is unpacked as a whole, so what follows the header cannot be seen from here.
    syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    deflated = syntax == DeflatedExplicitVRLittleEndian
    return Instance(header, opener, deflated or rest[:2] in (b"\xe0\x7f", b"\x7f\xe0"))


def _load(header: Dataset) -> None:
    """Convert every value now, and drop damaged ones: a missing tag is dealt with, a wrong not."""
    for tag in list(header.keys()):
        try:
            element = header[Tag(tag)]
            if element.keyword in _INTEGERS and element.value is not None:
                int(element.value)
        except UNREADABLE:
            del header[tag]


def pixels_of(instance: Instance) -> Dataset:
    """The whole object, pixels included (not yet decoded)."""
    with quiet(), instance.open() as stream:
        return pydicom.dcmread(stream, force=True)


def text(header: Dataset, keyword: str) -> str | None:
    """A tag as text, or None if it is missing or empty."""
    value: Any = header.get(keyword)
    return str(value) if value not in (None, "") else None
