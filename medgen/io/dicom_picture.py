"""Write a picture that a model made as DICOM Secondary Capture, grey or colour (PS3.3 A.8.1).

It says that it is made up in the same ways as :mod:`medgen.io.dicom_series`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from medgen.errors import InputError
from medgen.io.files import atomic_path


def write_dicom_picture(
    path: str | os.PathLike[str],
    pixels: NDArray[np.uint8],
    *,
    seed: str,
    number: int = 1,
    comment: str = "",
    modality: str = "OT",
    body_part: str = "",
    spacing_mm: Sequence[float] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one picture as one object.

    Args:
        path: The file.
        pixels: ``(C, X, Y)`` with 1 or 3 channels, 0..255.
        seed: Any text; pictures of one seed share patient, study and series, and the same seed
            and number give the same UIDs.
        number: InstanceNumber.
        comment: What made it, at most 10240 characters.
        modality: Modality that it looks like.
        body_part: Body part that it looks like.
        spacing_mm: Pixel size along X and Y, if known.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The path.

    Raises:
        InputError: It is no picture, or the file exists or cannot be written.
    """
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or pixels.dtype != np.uint8:
        msg = f"a picture has 1 or 3 channels of 8 bits, got {pixels.shape} {pixels.dtype}"
        raise InputError(msg)
    d = _header(seed, number, comment, modality, body_part)
    rows = np.ascontiguousarray(pixels.transpose(2, 1, 0))
    d.Rows, d.Columns, d.SamplesPerPixel = rows.shape
    d.PhotometricInterpretation = "RGB" if d.SamplesPerPixel == 3 else "MONOCHROME2"
    if d.SamplesPerPixel == 3:
        d.PlanarConfiguration = 0
    d.BitsAllocated = d.BitsStored = 8
    d.HighBit, d.PixelRepresentation = 7, 0
    if spacing_mm is not None:
        # DICOM gives the distance between rows first, and says how the size is known.
        d.PixelSpacing = [f"{spacing_mm[1]:.6g}", f"{spacing_mm[0]:.6g}"]
        d.PixelSpacingCalibrationType = "GEOMETRY"
        d.PixelSpacingCalibrationDescription = "as the model's training images"
    content = rows.tobytes()
    d.PixelData = content + b"\0" * (len(content) % 2)
    with atomic_path(path, overwrite) as temporary:
        d.save_as(temporary, enforce_file_format=True)
    return Path(path)


def _header(seed: str, number: int, comment: str, modality: str, body_part: str) -> Any:
    """Everything but the pixels."""
    d = Dataset()
    d.SpecificCharacterSet = "ISO_IR 192"
    d.SyntheticData = "YES"
    d.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    d.SOPClassUID = SecondaryCaptureImageStorage
    d.SOPInstanceUID = generate_uid(entropy_srcs=[seed, str(number), "picture"])
    d.StudyInstanceUID = generate_uid(entropy_srcs=[seed, "study"])
    d.SeriesInstanceUID = generate_uid(entropy_srcs=[seed, "pictures"])
    d.StudyDate = d.SeriesDate = d.ContentDate = d.DateOfSecondaryCapture = "20000101"
    d.StudyTime = d.SeriesTime = d.ContentTime = d.TimeOfSecondaryCapture = "000000"
    d.AccessionNumber = d.ReferringPhysicianName = ""
    d.Modality, d.ConversionType = modality, "SYN"  # synthetic image
    d.Manufacturer = d.ManufacturerModelName = "medgen"
    d.StudyDescription, d.SeriesDescription = "Synthetic data", "SYNTHETIC images"
    d.PatientName, d.PatientID = "Synthetic^Medgen", "SYNTHETIC"
    d.PatientBirthDate = d.PatientSex = ""
    d.StudyID, d.SeriesNumber, d.InstanceNumber = "1", 1, number
    d.PatientOrientation = ""
    if body_part:
        d.BodyPartExamined = body_part
    else:
        d.Laterality = ""  # unknown, as the body part is (C.7.3.1)
    d.BurnedInAnnotation = "NO"
    d.ImageComments = comment[:10240]
    d.file_meta = FileMetaDataset()
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return d
