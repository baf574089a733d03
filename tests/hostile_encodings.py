"""Hostile archives: how objects are stored, damaged, packed and named, and what lies among them."""

from __future__ import annotations

import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from hostile_objects import (
    Hostile,
    Stack,
    Who,
    classic,
    head,
    pixels,
    save,
    save_all,
    stack,
    truth,
)  # fmt: skip
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

MANY_FOREIGN = 2000


def _scan(seed: int) -> tuple[Stack, list[Dataset]]:
    planes = stack(head(seed), axes=np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]))
    return planes, classic(planes, Who(seed))


# --- storage ---------------------------------------------------------------------------------


def compressed(syntax: str) -> Callable[[Path, int], Hostile]:
    """Lossless compression."""

    def make(folder: Path, seed: int) -> Hostile:
        planes, objects = _scan(seed)
        for path in save_all(objects, folder):
            if syntax in _GDCM:
                _with_gdcm(path, _GDCM[syntax])
                continue
            d = dcmread(path)
            d.compress(syntax, generate_instance_uid=False)
            d.save_as(path)
        return Hostile(folder, images=(truth(planes),))

    return make


# pydicom has no encoder of its own for these.
_GDCM = {JPEG2000Lossless: "JPEG2000Lossless", JPEGLosslessSV1: "JPEGLosslessProcess14_1"}


def _with_gdcm(path: Path, syntax: str) -> None:
    import gdcm

    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()


def deflated(folder: Path, seed: int) -> Hostile:
    """The whole object is deflated (PS3.5 A.5)."""
    planes, objects = _scan(seed)
    for number, d in enumerate(objects):
        save(d, folder / f"{number}", DeflatedExplicitVRLittleEndian)
    return Hostile(folder, images=(truth(planes),))


def big_endian(folder: Path, seed: int) -> Hostile:
    """Retired, and still in archives (PS3.5 A.3)."""
    planes, objects = _scan(seed)
    for number, d in enumerate(objects):
        d.PixelData = np.frombuffer(d.PixelData, "<u2").astype(">u2").tobytes()
        d["PixelData"].VR = "OW"
        save(d, folder / f"{number}", ExplicitVRBigEndian)
    return Hostile(folder, images=(truth(planes),))


def bare(folder: Path, seed: int) -> Hostile:
    """Implicit little endian without preamble and meta header, as old nodes dump it."""
    planes, objects = _scan(seed)
    for number, d in enumerate(objects):
        dcmwrite(
            folder / f"{number:02d}.dcm", d, implicit_vr=True, little_endian=True,
            enforce_file_format=False,
        )  # fmt: skip
    return Hostile(folder, images=(truth(planes),))


def signed(folder: Path, seed: int) -> Hostile:
    """Signed numbers in 12 of 16 bits, the unused bits 0 even for negative numbers."""
    planes = stack(head(seed) - 1000)
    save_all(classic(planes, Who(seed), modality="CT", bits=12, signed=True), folder)
    return Hostile(folder, images=(truth(planes, intercept=-1024, modality="CT"),))


def rescaled(folder: Path, seed: int) -> Hostile:
    """Another rescale slope and intercept in every slice."""
    planes, objects = _scan(seed)
    slopes, intercepts = [0.5 + 0.25 * n for n in range(12)], [-10.0 * n for n in range(12)]
    for d, slope, intercept in zip(objects, slopes, intercepts, strict=True):
        d.RescaleSlope, d.RescaleIntercept, d.RescaleType = f"{slope:g}", f"{intercept:g}", "US"
    save_all(objects, folder)
    return Hostile(folder, images=(truth(planes, slope=slopes, intercept=intercepts),))


def dicomdir(folder: Path, seed: int) -> Hostile:
    """A medium with a DICOMDIR; the file itself is named."""
    planes, objects = _scan(seed)
    files = FileSet()
    for d in objects:
        save(d, folder / "draft")
        files.add(dcmread(folder / "draft"))
    files.write(folder / "medium")
    (folder / "draft").unlink()
    return Hostile(folder / "medium" / "DICOMDIR", images=(truth(planes),))


# --- damage ----------------------------------------------------------------------------------


def short_pixels(folder: Path, seed: int) -> Hostile:
    """The last object ends in the middle of its pixels."""
    _, objects = _scan(seed)
    path = save_all(objects, folder)[-1]
    path.write_bytes(path.read_bytes()[:-500])
    return Hostile(folder, "refused", "damaged or incomplete", needs_pixels=True)


def short_header(folder: Path, seed: int) -> Hostile:
    """One object ends in the middle of its header: a slice is missing, and the reader says so."""
    _, objects = _scan(seed)
    path = save_all(objects, folder)[5]
    path.write_bytes(path.read_bytes()[:700])
    return Hostile(folder, "refused", "missing|damaged")


def garbage(folder: Path, seed: int) -> Hostile:
    """Noise, text and nothing under the names of DICOM, and no image at all."""
    _rubbish(folder, seed)
    return Hostile(folder, "refused", "no readable DICOM", foreign=5)


def garbage_beside(folder: Path, seed: int) -> Hostile:
    """The same beside a scan."""
    planes, objects = _scan(seed)
    save_all(objects, folder)
    _rubbish(folder, seed)
    return Hostile(folder, images=(truth(planes),), aside={"damaged": 1}, foreign=4)


def _rubbish(folder: Path, seed: int) -> None:
    noise = np.random.default_rng(seed).bytes(5000)
    (folder / "noise.dcm").write_bytes(noise)
    (folder / "posing.dcm").write_bytes(bytes(128) + b"DICM" + noise)
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "zeros.dcm").write_bytes(bytes(4000))
    (folder / "text.ima").write_text("hello " * 100)


def two_sizes(folder: Path, seed: int) -> Hostile:
    """A slice of another matrix in the same series: not one image, so two."""
    planes, objects = _scan(seed)
    odd = stack(head(seed, (24, 20, 12))[..., :1])
    d = classic(odd, Who(seed), key="odd", start=50)[0]
    save_all([*objects, d], folder)
    return Hostile(folder, images=(truth(planes), truth(odd)))


# --- names -----------------------------------------------------------------------------------


def path_like_tags(folder: Path, seed: int) -> Hostile:
    """Tags whose values are paths, drives, and the end of a terminal's colour."""
    planes, objects = _scan(seed)
    for d in objects:
        d.PatientID = d.PatientName = "../../../../tmp/x"
        d.SeriesDescription, d.StudyID = "/etc/passwd", "..\\..\\x"
        d.StudyDescription = "C:\\x\x1b[31m"
        d.ProtocolName, d.AccessionNumber = "../" * 10, "a/b"
        d.SeriesInstanceUID = "../../../evil"
    save_all(objects, folder)
    return Hostile(folder, images=(truth(planes, description="/etc/passwd"),))


def odd_names(folder: Path, seed: int) -> Hostile:
    """Spaces, accents, newlines, brackets and a leading minus in names."""
    planes, objects = _scan(seed)
    for number, d in enumerate(objects):
        save(d, folder / "série\nn° 1" / "[b] ünï" / f"-{number} élève\n{number}.dcm")
    return Hostile(folder, images=(truth(planes),))


def loops(folder: Path, seed: int) -> Hostile:
    """Links that lead up, to themselves, to each other and to nowhere."""
    planes, objects = _scan(seed)
    save_all(objects, folder / "a" / "b")
    (folder / "a" / "b" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "a" / "again").symlink_to(folder / "a" / "b", target_is_directory=True)
    (folder / "self").symlink_to(folder / "self")
    (folder / "nowhere").symlink_to(folder / "absent")
    return Hostile(folder, images=(truth(planes),))


def unreadable(folder: Path, seed: int) -> Hostile:
    """A folder that cannot be opened: its path is too long, which stops even root."""
    planes, objects = _scan(seed)
    save_all(objects, folder / "a")
    here = os.open(folder, os.O_RDONLY)
    for _ in range(17):  # 17 x 251 > 4096 characters
        os.mkdir("x" * 250, dir_fd=here)
        there = os.open("x" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)
    return Hostile(folder, images=(truth(planes),))


def among_many(folder: Path, seed: int) -> Hostile:
    """A scan among thousands of other files."""
    planes, objects = _scan(seed)
    save_all(objects, folder / "deep" / "er")
    endings = (".txt", "", ".nii", ".json", ".py", ".dcm", ".jpg", ".log")
    for number in range(MANY_FOREIGN):
        place = folder / f"d{number % 20}"
        place.mkdir(exist_ok=True)
        (place / f"{number}{endings[number % len(endings)]}").write_text(f"file {number}\n")
    return Hostile(folder, images=(truth(planes),), foreign=MANY_FOREIGN)


# --- zip -------------------------------------------------------------------------------------


def _zip(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def _packed(folder: Path, seed: int, prefix: str) -> Hostile:
    planes, objects = _scan(seed)
    paths = save_all(objects, folder / "draft")
    path = _zip(folder / "scan.zip", [(prefix + p.name, p.read_bytes()) for p in paths])
    for p in paths:
        p.unlink()
    (folder / "draft").rmdir()
    return Hostile(path, images=(truth(planes),))


def zipped(folder: Path, seed: int) -> Hostile:
    """A zip of a study."""
    return _packed(folder, seed, "study/series/")


def zip_slip(folder: Path, seed: int) -> Hostile:
    """A zip whose names lead outside."""
    return _packed(folder, seed, "../../../../slip/")


def zip_in_a_folder(folder: Path, seed: int) -> Hostile:
    """A zipped study in a folder, as patients bring it."""
    return replace(_packed(folder / "from a disc", seed, "study/"), folder=folder)


def zip_with_one_name(folder: Path, seed: int) -> Hostile:
    """A zip whose members all have the same name."""
    planes, objects = _scan(seed)
    paths = save_all(objects, folder / "draft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = _zip(folder / "scan.zip", [("IM.dcm", p.read_bytes()) for p in paths])
    return Hostile(path, images=(truth(planes),))


def zip_bomb(folder: Path, seed: int) -> Hostile:
    """A small zip that says it would unpack to 12 GiB."""
    path = _zip(folder / "bomb.zip", [(f"{n}.dcm", bytes(1000)) for n in range(3)])
    data = bytearray(path.read_bytes())
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        struct.pack_into("<I", data, at + 24, 2**32 - 2)  # the uncompressed size
    path.write_bytes(data)
    return Hostile(path, "refused", "would unpack to")


def zip_of_zeros(folder: Path, seed: int) -> Hostile:
    """A zip that unpacks to a thousand times its size and is no DICOM."""
    path = _zip(folder / "zeros.zip", [("a.dcm", bytes(30_000_000))])
    return Hostile(path, "refused", "no readable", foreign=1)


def sixteen_bits(folder: Path, seed: int) -> Hostile:
    """Numbers that 12 bits cannot hold: 16 bits, all of them used."""
    values = head(seed) * 20
    planes = stack(values)
    objects = classic(planes, Who(seed))
    for d, plane in zip(objects, range(12), strict=True):
        pixels(d, values[..., plane], bits=16)
    save_all(objects, folder)
    return Hostile(folder, images=(truth(planes),))


KINDS: dict[str, Callable[[Path, int], Hostile]] = {
    "RLE": compressed(RLELossless),
    "JPEG-LS": compressed(JPEGLSLossless),
    "JPEG 2000": compressed(JPEG2000Lossless),
    "JPEG Lossless": compressed(JPEGLosslessSV1),
    "deflated": deflated,
    "big endian": big_endian,
    "no preamble": bare,
    "signed 12 bits": signed,
    "16 bits": sixteen_bits,
    "rescale per slice": rescaled,
    "DICOMDIR": dicomdir,
    "truncated pixels": short_pixels,
    "truncated header": short_header,
    "garbage": garbage,
    "garbage beside a scan": garbage_beside,
    "two sizes": two_sizes,
    "path-like tags": path_like_tags,
    "odd names": odd_names,
    "symlink loops": loops,
    "unreadable folder": unreadable,
    "many foreign files": among_many,
    "zip": zipped,
    "zip-slip": zip_slip,
    "zip in a folder": zip_in_a_folder,
    "zip with one name": zip_with_one_name,
    "zip bomb": zip_bomb,
    "zip of zeros": zip_of_zeros,
}
