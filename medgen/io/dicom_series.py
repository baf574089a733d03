"""Write synthetic slices as a classic DICOM MR series: for samples, examples and tests.

Every object says that it is made up: Synthetic Data (0008,001C) is YES, the image type is DERIVED,
and the patient is called Synthetic.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medgen.errors import GeometryError, InputError
from medgen.io.files import atomic_folder
from medgen.volume import Volume

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_HIGHEST = 4095  # twelve bits, as most scanners store


def write_dicom_series(
    folder: str | os.PathLike[str],
    volume: Volume,
    *,
    seed: str,
    series_number: int = 1,
    description: str = "synthetic",
    overwrite: bool = False,
) -> list[Path]:
    """Write one object per slice of the last axis.

    Integers from 0 to 65535 are stored as they are. Anything else is spread over twelve bits, with
    the rescale slope and intercept that lead back to it.

    Args:
        folder: Where ``slice_0001.dcm`` and so on go.
        volume: One channel, ``(1, X, Y, Z)``, not sheared.
        seed: Any text; the same text, description and number give the same UIDs. Series of one
            seed share patient and study.
        series_number: SeriesNumber.
        description: SeriesDescription.
        overwrite: Whether files of the same names may be replaced.

    Returns:
        The files, in the order of the slices.

    Raises:
        GeometryError: If the volume is flat, in colour or sheared, which this kind cannot hold.
        InputError: If files exist or cannot be written.
    """
    if volume.spatial_dims != 3 or volume.voxels.shape[0] != 1:
        raise GeometryError(
            f"a DICOM series needs one channel in 3-D, got voxels {volume.voxels.shape}"
        )
    lps = _RAS_TO_LPS @ volume.affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    cosines = lps[:, :3] / spacing
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > 1e-4:
        raise GeometryError("a DICOM series cannot hold a sheared grid", "Resample it first.")
    stored, slope, intercept = _stored(volume.voxels[0])
    common = _common(seed, series_number, description, spacing, cosines)
    common.Rows, common.Columns = stored.shape[1], stored.shape[0]
    if (slope, intercept) != (1.0, 0.0):  # the standard's plain MR image has none
        common.RescaleSlope, common.RescaleIntercept = _decimal(slope), _decimal(intercept)
        common.RescaleType = "US"  # unspecified
    common.WindowCenter, common.WindowWidth = _window(volume.voxels[0])
    names = []
    with atomic_folder(folder, overwrite) as temporary:
        for place in range(stored.shape[2]):
            dataset = _slice(common, place, lps[:, 3] + lps[:, 2] * place)
            # DICOM counts rows downwards first, then columns: the array's axes the other way round.
            dataset.PixelData = np.ascontiguousarray(stored[..., place].T).tobytes()
            names.append(f"slice_{place + 1:04d}.dcm")
            dataset.save_as(temporary / names[-1], enforce_file_format=True)
    return [Path(folder) / name for name in names]


def _stored(voxels: NDArray[Any]) -> tuple[NDArray[np.uint16], float, float]:
    """Unsigned integers, and the slope and intercept that give the values back."""
    low, high = float(voxels.min()), float(voxels.max())
    if not np.isfinite([low, high]).all():
        raise InputError("voxels to be written as DICOM must be numbers")
    if voxels.dtype.kind in "iub" and low >= 0 and high <= 65535:
        return voxels.astype(np.uint16), 1.0, 0.0
    # The text of a DICOM number has 16 characters: use the very slope that will be read.
    slope = float(_decimal((high - low) / _HIGHEST or 1.0))
    intercept = float(_decimal(low))
    scaled = np.round((voxels.astype(np.float64) - intercept) / slope)
    return np.clip(scaled, 0, 65535).astype(np.uint16), slope, intercept


def _decimal(value: float) -> str:
    """A number as DICOM text: at most 16 characters, as many digits as fit."""
    digits = next(n for n in range(16, 0, -1) if len(f"{value:.{n}g}") <= 16)
    return f"{value:.{digits}g}"


def _window(voxels: NDArray[Any]) -> tuple[str, str]:
    low, high = float(voxels.min()), float(np.percentile(voxels, 99.5))
    return _decimal((low + high) / 2), _decimal(max(high - low, 1.0))


def _common(
    seed: str,
    series_number: int,
    description: str,
    spacing: NDArray[np.float64],
    cosines: NDArray[np.float64],
) -> Dataset:
    """What all objects of the series share."""
    series_uid = generate_uid(entropy_srcs=[seed, description, str(series_number), "series"])
    d = Dataset()
    d.SpecificCharacterSet = "ISO_IR 192"
    d.SyntheticData = "YES"
    d.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    d.SOPClassUID = MRImageStorage
    d.StudyDate = d.SeriesDate = d.ContentDate = "20000101"
    d.StudyTime = d.SeriesTime = d.ContentTime = "000000"
    d.AccessionNumber = ""
    d.Modality = "MR"
    d.Manufacturer = "medgen"
    d.ReferringPhysicianName = ""
    d.StudyDescription = "Synthetic data"
    d.SeriesDescription = description
    d.PatientName, d.PatientID = "Synthetic^Medgen", "SYNTHETIC"
    d.PatientBirthDate = d.PatientSex = ""
    d.ScanningSequence, d.SequenceVariant = "RM", "NONE"
    d.ScanOptions, d.MRAcquisitionType = "", "3D"
    d.EchoTime = d.RepetitionTime = d.EchoTrainLength = None
    d.SliceThickness = d.SpacingBetweenSlices = _decimal(spacing[2])
    d.StudyInstanceUID = generate_uid(entropy_srcs=[seed, "study"])
    d.SeriesInstanceUID = series_uid
    d.StudyID, d.SeriesNumber, d.AcquisitionNumber = "1", series_number, 1
    d.Laterality = d.PatientPosition = ""
    d.FrameOfReferenceUID = generate_uid(entropy_srcs=[seed, "frame of reference"])
    d.PositionReferenceIndicator = ""
    d.ImageOrientationPatient = [_decimal(v) for v in (*cosines[:, 0], *cosines[:, 1])]
    d.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated = d.BitsStored = 16
    d.HighBit, d.PixelRepresentation = 15, 0
    return d


def _slice(common: Dataset, place: int, position: NDArray[np.float64]) -> Dataset:
    """The object of one slice, without its pixels."""
    dataset = Dataset()
    dataset.update(common)
    dataset.SOPInstanceUID = generate_uid(
        entropy_srcs=[common.SeriesInstanceUID, str(place), "slice"]
    )
    dataset.InstanceNumber = place + 1
    dataset.ImagePositionPatient = [_decimal(value) for value in position]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset
