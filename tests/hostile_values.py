"""Hostile archives: attributes that are wrong, missing, contradictory or meant to exhaust."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hostile_multiframe import enhanced
from hostile_objects import (
    Hostile,
    Stack,
    Who,
    classic,
    head,
    save,
    save_all,
    stack,
    truth,
    with_waves,
)
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

TILT = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])


def _scan(seed: int) -> tuple[Stack, list[Dataset]]:
    planes = stack(head(seed), axes=TILT)
    return planes, classic(planes, Who(seed))


# --- identity --------------------------------------------------------------------------------


def one_object_uid(folder: Path, seed: int) -> Hostile:
    """All slices carry one SOPInstanceUID, as careless copies do; none may be dropped."""
    planes, objects = _scan(seed)
    for d in objects:
        d.SOPInstanceUID = objects[0].SOPInstanceUID
    save_all(objects, folder)
    return Hostile(folder, images=(truth(planes),))


def without_uids(folder: Path, seed: int) -> Hostile:
    """No study, series or frame of reference."""
    planes, objects = _scan(seed)
    for d in objects:
        del d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID
    save_all(objects, folder)
    return Hostile(folder, images=(truth(planes),))


def damaged_numbers(folder: Path, seed: int) -> Hostile:
    """Numbers that are none, where the image does not depend on them; an unknown character set."""
    planes, objects = _scan(seed)
    for d in objects:
        d.SpecificCharacterSet = "ISO_IR 999"
        # As text, because pydicom would not write such numbers as numbers.
        for keyword, value in (
            ("SeriesNumber", "one"), ("AcquisitionNumber", "1.5"), ("InstanceNumber", "x"),
            ("EchoTime", "n/a"), ("RepetitionTime", ""), ("StudyDate", "2020-13-45"),
        ):  # fmt: skip
            d[keyword] = DataElement(tag_for_keyword(keyword), "LO", value)
    save_all(objects, folder)
    return Hostile(folder, images=(truth(planes),))


# --- geometry --------------------------------------------------------------------------------


def rounded(folder: Path, seed: int) -> Hostile:
    """Directions and positions written with few digits, differently in every slice."""
    planes, objects = _scan(seed)
    rng = np.random.default_rng(seed)
    for d in objects:
        wrong = np.array(d.ImageOrientationPatient, float) + rng.uniform(-4e-5, 4e-5, 6)
        d.ImageOrientationPatient = [f"{v:.4f}" for v in wrong]
        d.ImagePositionPatient = [f"{float(v):.2f}" for v in d.ImagePositionPatient]
    save_all(objects, folder)
    return Hostile(folder, images=(truth(planes),))


def overlapping(folder: Path, seed: int) -> Hostile:
    """Slices twice as thick as they are apart."""
    planes = stack(head(seed), axes=TILT, spacing=(6, 5.5, 3))
    objects = classic(planes, Who(seed))
    for d in objects:
        d.SliceThickness = "6"
    save_all(objects, folder)
    return Hostile(folder, images=(truth(planes),))


def taken_again(folder: Path, seed: int) -> Hostile:
    """One slice was taken again: two images at one place, one at the others."""
    _, objects = _scan(seed)
    again = classic(stack(head(seed + 1), axes=TILT), Who(seed), key="again", start=20)[4]
    save_all([*objects, again], folder)
    return Hostile(folder, "refused", "between 1 and 2 images")


def missing_in_time(folder: Path, seed: int) -> Hostile:
    """Three points in time, and one slice of the second is missing."""
    objects = []
    for time in range(3):
        for d in classic(stack(head(seed + time)), Who(seed), key=time, start=1 + 12 * time):
            d.TemporalPositionIdentifier = time + 1
            objects.append(d)
    del objects[17]
    save_all(objects, folder)
    return Hostile(folder, "refused", "missing|between 2 and 3 images")


def not_a_number(folder: Path, seed: int) -> Hostile:
    """A position that is no number."""
    _, objects = _scan(seed)
    objects[3].ImagePositionPatient = ["0", "nan", "12"]
    save_all(objects, folder)
    return Hostile(folder, "refused", "damaged|no position|not a number|missing")


def enhanced_gap(folder: Path, seed: int) -> Hostile:
    """An enhanced object that lacks a slice."""
    planes = stack(head(seed)[..., :11], places=[0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11])
    save(enhanced([planes], Who(seed)), folder / "e")
    return Hostile(folder, "refused", "missing")


def enhanced_tilted(folder: Path, seed: int) -> Hostile:
    """An enhanced CT with a tilted gantry."""
    planes = with_waves(stack(head(seed), lean=(0, 2.0, 0)))
    save(enhanced([planes], Who(seed), modality="CT"), folder / "e")
    image = truth(planes, intercept=-1024, resampled=True, tolerance=25, modality="CT", seed=seed)
    return Hostile(folder, images=(image,))


# --- pixels ----------------------------------------------------------------------------------


def wide_pixels(bits: int) -> Callable[[Path, int], Hostile]:
    """8 or 32 bits per pixel."""

    def make(folder: Path, seed: int) -> Hostile:
        values = head(seed) % 256 if bits == 8 else head(seed) * 1000
        planes = stack(values, axes=TILT)
        objects = classic(planes, Who(seed))
        for d, plane in zip(objects, range(12), strict=True):
            d.BitsAllocated, d.BitsStored, d.HighBit = bits, bits, bits - 1
            d.PixelData = (
                np.ascontiguousarray(values[..., plane].T).astype(f"<u{bits // 8}").tobytes()
            )
            d["PixelData"].VR = "OW"
        save_all(objects, folder)
        tolerance = 1e-3 if bits == 8 else 1e-6  # float32 holds 24 bits
        return Hostile(folder, images=(truth(planes, tolerance=tolerance),))

    return make


def complex_parts(folder: Path, seed: int) -> Hostile:
    """Magnitude and phase in one series, as the scanners of two makers store them."""
    frames = [stack(head(seed + n), axes=TILT) for n in range(2)]
    objects = []
    for number, letter in enumerate("MP"):
        for d in classic(frames[number], Who(seed), key=letter, start=1 + 12 * number):
            d.ImageType = ["ORIGINAL", "PRIMARY", letter, "ND"]
            objects.append(d)
    save_all(objects, folder)
    return Hostile(folder, images=tuple(truth(planes) for planes in frames))


# --- exhaustion ------------------------------------------------------------------------------


def claims_to_be_huge(folder: Path, seed: int) -> Hostile:
    """A few bytes that claim to be 65535 x 65535 pixels."""
    _, objects = _scan(seed)
    for d in objects:
        d.Rows = d.Columns = 65535
    save_all(objects, folder)
    return Hostile(folder, "refused", "damaged or incomplete", needs_pixels=True)


def claims_many_frames(folder: Path, seed: int) -> Hostile:
    """A few bytes that claim to be two billion frames."""
    _, objects = _scan(seed)
    objects[0].NumberOfFrames = "2000000000"
    save(objects[0], folder / "d")
    return Hostile(folder, "refused", "frames")


def nested(folder: Path, seed: int) -> Hostile:
    """Sequences in sequences, 3,000 deep, in one object beside a scan."""
    planes, objects = _scan(seed)
    save_all(objects, folder)
    # An item of undefined length holds a sequence of undefined length that holds an item ...
    opening = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    plain = (folder / "IM0000").read_bytes()
    mark = b"\x08\0\x60\0CS"  # Modality comes next after (0008,1140) has been put before it
    at = plain.index(mark)
    deep = plain[:at] + opening * 3000 + closing * 3000 + plain[at:]
    (folder / "deep").write_bytes(deep)
    return Hostile(folder, images=(truth(planes),), aside={"damaged": 1})


def deflate_bomb(folder: Path, seed: int, size: int = 2**27) -> Hostile:
    """130 kB that inflate to 128 MiB, beside a scan."""
    planes, objects = _scan(seed)
    save_all(objects, folder)
    d = classic(stack(head(seed)[..., :1]), Who(seed, series="bomb", number=2))[0]
    path = save(d, folder / "bomb", DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")  # what follows the meta header
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    content = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    at = content.index(b"\xe0\x7f\x10\0OW")
    bomb = deflater.compress(content[: at + 8] + size.to_bytes(4, "little"))
    for _ in range(size // 2**20):
        bomb += deflater.compress(bytes(2**20))
    path.write_bytes(data[:start] + bomb + deflater.flush())
    return Hostile(folder, images=(truth(planes),), aside={"damaged|inflate": 1})


def pipes(folder: Path, seed: int) -> Hostile:
    """A pipe among the files, which a reader that opens it waits for without end."""
    planes, objects = _scan(seed)
    save_all(objects, folder)
    os.mkfifo(folder / "IM9999")
    return Hostile(folder, images=(truth(planes),))


KINDS: dict[str, Callable[[Path, int], Hostile]] = {
    "one object UID": one_object_uid,
    "no UIDs": without_uids,
    "damaged numbers": damaged_numbers,
    "rounded": rounded,
    "overlapping": overlapping,
    "a slice taken again": taken_again,
    "missing in time": missing_in_time,
    "not a number": not_a_number,
    "enhanced gap": enhanced_gap,
    "enhanced tilted": enhanced_tilted,
    "8 bits": wide_pixels(8),
    "32 bits": wide_pixels(32),
    "magnitude and phase": complex_parts,
    "claims to be huge": claims_to_be_huge,
    "claims many frames": claims_many_frames,
    "nested sequences": nested,
    "deflate bomb": deflate_bomb,
    "pipes": pipes,
}
