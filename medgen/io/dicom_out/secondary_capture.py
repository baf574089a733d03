"""A picture of the result that every PACS can show: a Secondary Capture (PS3.3 A.8.1)."""

from __future__ import annotations

import os
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medgen.errors import InputError
from medgen.io.dicom_out.common import (
    RESEARCH_ONLY,
    Identity,
    Producer,
    Written,
    cite,
    code,
    description,
    discreet,
    finish,
    identity,
    reference_item,
    save,
    software_versions,
)
from medgen.io.dicom_out.source import Reference, Source


def write_secondary_capture(
    path: str | os.PathLike[str],
    source: Source,
    producer: Producer,
    picture: NDArray[np.uint8],
    *,
    overwrite: bool = False,
) -> Written:
    """Write one colour picture.

    It has text, but neither name nor date, so BurnedInAnnotation is NO (C.7.6.1.1.1), unless the
    source itself is marked as showing them.

    Args:
        path: The file to write.
        source: The series, from :func:`~medgen.io.dicom_out.open_source`.
        producer: What made the result.
        picture: Red, green and blue ``(rows, columns, 3)``, 0..255.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The object's UIDs.

    Raises:
        InputError: The picture is not one, or the file exists or cannot be written.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        msg = f"a picture must be (rows, columns, 3) of uint8, got {picture.shape} {picture.dtype}"
        raise InputError(msg)
    pixels = np.ascontiguousarray(picture).tobytes()
    own = identity(source, producer, "sc", pixels)
    with discreet():
        dataset = _header(source, producer, own)
        dataset.Rows, dataset.Columns = picture.shape[:2]
        dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
        finish(dataset, source, own)
        return save(dataset, path, own, overwrite=overwrite)


def _header(source: Source, producer: Producer, own: Identity) -> Dataset:
    """Everything but the pixels."""
    now = datetime.now()
    d = Dataset()
    d.update(source.patient)
    d.update(source.lossy)
    d.pop("TimezoneOffsetFromUTC", None)  # the dates here are this machine's
    d.SOPClassUID, d.SOPInstanceUID = SecondaryCaptureImageStorage, own.instance_uid
    d.StudyInstanceUID, d.SeriesInstanceUID = source.study_uid, own.series_uid
    d.SeriesNumber, d.InstanceNumber = own.series_number, 1
    d.SeriesDescription = description(own.kind)
    d.Modality = "OT"
    d.ConversionType = "WSD"  # made on a workstation
    d.Manufacturer = d.ManufacturerModelName = "medgen"
    d.SoftwareVersions = list(software_versions(producer))
    d.DeviceSerialNumber = producer.sha256
    d.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    d.DerivationDescription = f"Scan, anomaly map and findings. {RESEARCH_ONLY}"
    d.DerivationCodeSequence = [code("113091", "DCM", "Pixel by pixel mask")]
    d.ImageComments = RESEARCH_ONLY
    d.InstanceCreationDate = d.ContentDate = d.DateOfSecondaryCapture = now.strftime("%Y%m%d")
    d.InstanceCreationTime = d.ContentTime = d.TimeOfSecondaryCapture = now.strftime("%H%M%S")
    d.PatientOrientation = ""
    d.Laterality = source.laterality
    d.BurnedInAnnotation = source.burned_in or "NO"
    if source.recognisable is not None:
        d.RecognizableVisualFeatures = source.recognisable
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PlanarConfiguration = 3, "RGB", 0
    d.BitsAllocated = d.BitsStored = 8
    d.HighBit, d.PixelRepresentation = 7, 0
    cite(d, source)
    d.SourceImageSequence = [
        reference_item(Reference(class_uid, uid, None), same_pixels=False)
        for uid, class_uid in source.instances.items()
    ]
    d.file_meta = FileMetaDataset()
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return d
