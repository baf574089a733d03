"""A scan that was changed, as a DICOM series of its own beside the one it was made from.

Single-frame objects, one per slice of the result's grid, which may be finer than the source's. MR
and CT become MR and CT Image objects (PS3.3 A.4, A.3), whatever their source was; everything else
becomes Secondary Capture with its place (A.8). All say that they are derived, from what, and how.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from medgen.errors import GeometryError
from medgen.io.dicom_out.common import (
    Identity,
    Producer,
    cite,
    code,
    discreet,
    finish,
    reference_item,
    software_versions,
)
from medgen.io.dicom_out.source import Plane, Source
from medgen.io.files import atomic_folder
from medgen.volume import Geometry

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_CLASSES = {"MR": MRImageStorage, "CT": CTImageStorage}
# Steps between the lowest and the highest number of 16 bits.
_STEPS = 65535


@dataclass(frozen=True)
class Derivation:
    """What was done to the source.

    Attributes:
        name: Of the result, for SeriesDescription: ``inpainted``, ``synthetic t2``.
        number: Distinguishes the series of each kind beside that of the source, 1..99.
        text: What was done and with what, at most 1024 characters.
        codes: Coded values of DICOM for it: value, scheme, meaning.
        synthetic: Whether content was made and not acquired (Synthetic Data (0008,001C)).
        modality: Of the result; None if it is the source's.
        units: Of the voxel values, such as ``HU``; None if they are the source's own.
        acquired: Whether the source's echo time, voltage and so on hold for the result.
    """

    name: str
    number: int
    text: str
    codes: tuple[tuple[str, str, str], ...] = ()
    synthetic: bool = False
    modality: str | None = None
    units: str | None = None
    acquired: bool = True


class WrittenSeries(NamedTuple):
    """A series that was written.

    Attributes:
        paths: In the order of the last axis.
        series_uid: SeriesInstanceUID.
        largest_error: Largest difference between a value and what is read back, in its unit.
    """

    paths: list[Path]
    series_uid: str
    largest_error: float


class _Stored(NamedTuple):
    """One slice as integers: ``value = slope * stored + intercept``."""

    pixels: NDArray[np.integer[Any]]
    slope: float
    intercept: float


def write_derived_series(
    folder: str | os.PathLike[str],
    source: Source,
    producer: Producer,
    derivation: Derivation,
    values: NDArray[Any],
    geometry: Geometry,
    *,
    kept: NDArray[np.bool_] | None = None,
    overwrite: bool = False,
) -> WrittenSeries:
    """Write one object per slice of the last axis.

    Values are stored with 16 bits. Whole numbers are stored as they are; anything else is spread
    over all 65536 steps, so that the largest error is half a step. With ``kept`` a slice is stored
    with the steps of its source slice if these give every kept value back exactly.

    Args:
        folder: Where ``slice_0001.dcm`` and so on go.
        source: The series, from :func:`~medgen.io.dicom_out.open_source`.
        producer: What made the result.
        derivation: What was done.
        values: ``(X, Y, Z)`` or ``(X, Y)``, finite.
        geometry: Their grid, in the frame of reference of the source.
        kept: Voxels that were not changed, of the same shape; the grid is then the source's.
        overwrite: Whether files of the same names may be replaced.

    Returns:
        The files, the series' UID, and how exactly the values were kept.

    Raises:
        GeometryError: The grid is sheared.
        InputError: Files exist or cannot be written.
    """
    if values.shape != geometry.shape or not np.isfinite(values).all():
        msg = f"expected finite values of shape {geometry.shape}, got {values.shape}"
        raise ValueError(msg)
    placed = _Placed(source, geometry)
    own = _identity(source, producer, derivation, values, geometry)
    planes = values[..., None] if values.ndim == 2 else values
    unchanged = kept[..., None] if kept is not None and kept.ndim == 2 else kept
    spread = _spread(values) if kept is None else None
    names, largest = [], 0.0
    with discreet(), atomic_folder(folder, overwrite) as temporary:
        common = _common(source, producer, derivation, own, placed)
        common.WindowCenter, common.WindowWidth = _window(values)
        for place in range(planes.shape[2]):
            plane = planes[..., place].astype(np.float64)
            if spread is not None:
                stored = _as_integers(plane, *spread)
            else:
                assert unchanged is not None
                stored = _like_source(plane, unchanged[..., place], placed.steps(place))
            back = (stored.pixels * stored.slope + stored.intercept).astype(np.float32)
            largest = max(largest, float(np.abs(back - plane).max()))
            names.append(f"slice_{place + 1:04d}.dcm")
            dataset = _slice(common, own, placed, place, stored)
            dataset.save_as(temporary / names[-1], enforce_file_format=True)
    return WrittenSeries([Path(folder) / name for name in names], own.series_uid, largest)


# --- where --------------------------------------------------------------------------------------


class _Placed:
    """Where the slices of a result lie, and which source pictures each of them comes from."""

    def __init__(self, source: Source, geometry: Geometry) -> None:
        self.source, self.geometry = source, geometry
        lps = _RAS_TO_LPS @ geometry.affine[:3]
        self.spacing = np.linalg.norm(lps[:, :3], axis=0)
        self.cosines = lps[:, :3] / self.spacing
        if np.abs(self.cosines.T @ self.cosines - np.eye(3)).max() > 1e-4:
            raise GeometryError("a DICOM series cannot hold a sheared grid", "Write NIfTI.")
        self._origin, self._step = lps[:, 3], lps[:, 2]
        volume = source.volume
        straightened = volume.provenance.details["dicom"].get("slices") is not None
        # Then every slice of the result is a source picture, whose own position is better known.
        self.same = geometry.same_grid_as(volume.geometry) and not straightened
        normal = np.cross(*(_RAS_TO_LPS @ volume.affine[:3, :2]).T)
        self._normal = normal / np.linalg.norm(normal)
        self._heights = np.array([plane.position @ self._normal for plane in source.planes])
        gaps = np.diff(np.sort(self._heights))
        self._reach = 0.999 * (float(gaps.max()) if len(gaps) else source.thickness_mm)

    @property
    def thickness_mm(self) -> float:
        """Of a slice of the result."""
        return self.source.thickness_mm if self.same else float(self.spacing[2])

    def position(self, place: int) -> NDArray[np.float64]:
        """Centre of the first pixel of a slice, LPS mm."""
        if self.same:
            return self.source.planes[place].position
        return np.asarray(self._origin + self._step * place)

    def cited(self, place: int) -> Sequence[Plane]:
        """The source pictures between which a slice lies."""
        if self.same:
            return self.source.planes[place : place + 1]
        sides = [(0, n - 1) for n in self.geometry.shape[:2]]
        corners = np.array(np.meshgrid(*sides)).reshape(2, -1)
        across = (self.cosines[:, :2] * self.spacing[:2]) @ corners
        heights = (self.position(place)[:, None] + across).T @ self._normal
        low, high = heights.min() - self._reach, heights.max() + self._reach
        near = (self._heights > low) & (self._heights < high)
        near[np.abs(self._heights - heights.mean()).argmin()] = True
        return [plane for plane, is_near in zip(self.source.planes, near, strict=True) if is_near]

    def steps(self, place: int) -> tuple[float, float] | None:
        """Slope and intercept of the source picture that a slice is."""
        return self.source.planes[place].rescale if self.same else None


# --- numbers ------------------------------------------------------------------------------------


def _spread(values: NDArray[Any]) -> tuple[float, float]:
    """Slope and intercept that hold all values with the smallest error."""
    low, high = float(values.min()), float(values.max())
    if _fits(low, high) and np.array_equal(values, np.rint(values)):
        return 1.0, 0.0
    # The text of a DICOM number has 16 characters: use the very numbers that will be read.
    slope = float(_decimal((high - low) / _STEPS or 1.0))
    return slope, float(_decimal(low))


def _like_source(
    plane: NDArray[np.float64], kept: NDArray[np.bool_], steps: tuple[float, float] | None
) -> _Stored:
    """A slice in steps that give its kept values back exactly, if there are such steps."""
    for slope, intercept in [(1.0, 0.0), *([steps] if steps else [])]:
        numbers = (plane - intercept) / slope
        if float(_decimal(slope)) != slope or float(_decimal(intercept)) != intercept:
            continue
        if not _fits(float(np.rint(numbers).min()), float(np.rint(numbers).max())):
            continue
        back = (np.rint(numbers) * slope + intercept).astype(np.float32)
        if np.array_equal(back[kept], plane.astype(np.float32)[kept]):
            return _as_integers(plane, slope, intercept)
    return _as_integers(plane, *_spread(plane))


def _fits(low: float, high: float) -> bool:
    """Whether whole numbers fit into 16 bits, with or without a sign."""
    return (low >= 0 and high <= _STEPS) or (low >= -32768 and high <= 32767)


def _as_integers(plane: NDArray[np.float64], slope: float, intercept: float) -> _Stored:
    numbers = np.rint((plane - intercept) / slope)
    kind = np.int16 if numbers.min() < 0 and numbers.max() <= 32767 else np.uint16
    limits = np.iinfo(kind)
    return _Stored(np.clip(numbers, limits.min, limits.max).astype(kind), slope, intercept)


def _decimal(value: float) -> str:
    """A number as DICOM text: at most 16 characters, as many digits as fit."""
    digits = next(n for n in range(17, 0, -1) if len(f"{value:.{n}g}") <= 16)
    return f"{value:.{digits}g}"


def _window(values: NDArray[Any]) -> tuple[str, str]:
    low, high = np.percentile(values, (0.5, 99.5))
    return _decimal(float(low + high) / 2), _decimal(max(float(high - low), 1e-6))


# --- objects ------------------------------------------------------------------------------------


def _identity(
    source: Source, producer: Producer, derivation: Derivation, values: NDArray[Any], grid: Geometry
) -> Identity:
    """UIDs that depend on nothing but the source, the model and the result."""
    content = hashlib.sha256(np.ascontiguousarray(values).tobytes())
    content.update(grid.affine.tobytes())
    entropy = (
        source.series_uid, "".join(f"{uid}:{frame};" for _, uid, frame in source.references),
        producer.sha256, producer.software, derivation.name, content.hexdigest(),
    )  # fmt: skip
    number = source.series_number * 100 if 0 < source.series_number < 10**6 else 0
    return Identity(
        kind=derivation.name,
        series_uid=str(generate_uid(entropy_srcs=[*entropy, "series"])),
        series_number=number + derivation.number,
        instance_uid="",  # each slice has its own
        entropy=entropy,
    )


def _common(
    source: Source, producer: Producer, derivation: Derivation, own: Identity, placed: _Placed
) -> Dataset:
    """What all objects of the series share."""
    now = datetime.now()
    d = Dataset()
    d.update(source.patient)
    d.update(source.lossy)
    d.pop("TimezoneOffsetFromUTC", None)  # the dates here are this machine's
    acquired = source.acquisition if derivation.acquired else Dataset()
    for keyword in ("BodyPartExamined", "PatientPosition"):
        if keyword in source.acquisition:
            setattr(d, keyword, source.acquisition.get(keyword))
    d.update(acquired)
    d.Modality = derivation.modality or source.modality
    d.SOPClassUID = _CLASSES.get(d.Modality, SecondaryCaptureImageStorage)
    if source.frame_of_reference_uid is None:
        d.SOPClassUID = SecondaryCaptureImageStorage  # the other classes need a place
    _class_attributes(d, acquired, derivation.units)
    d.StudyInstanceUID, d.SeriesInstanceUID = source.study_uid, own.series_uid
    d.SeriesNumber = own.series_number
    d.SeriesDescription = f"medgen {derivation.name} (research)"[:64]
    d.Manufacturer = d.ManufacturerModelName = "medgen"
    d.SoftwareVersions = list(software_versions(producer))
    d.DeviceSerialNumber = producer.sha256
    d.DerivationDescription = derivation.text[:1024]
    if derivation.codes:
        d.DerivationCodeSequence = [code(*each) for each in derivation.codes]
    d.ContributingEquipmentSequence = _equipment(source, producer, derivation)
    d.SeriesDate = d.InstanceCreationDate = d.ContentDate = now.strftime("%Y%m%d")
    d.SeriesTime = d.InstanceCreationTime = d.ContentTime = now.strftime("%H%M%S")
    if source.laterality or "BodyPartExamined" not in d:
        d.Laterality = source.laterality  # empty means unknown; a head has none (C.7.3.1)
    d.BurnedInAnnotation = source.burned_in or "NO"
    if source.recognisable is not None:
        d.RecognizableVisualFeatures = source.recognisable
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated = d.BitsStored = 16
    d.HighBit = 15
    d.Columns, d.Rows = placed.geometry.shape[:2]
    if source.frame_of_reference_uid is not None:
        d.FrameOfReferenceUID = source.frame_of_reference_uid
        d.PositionReferenceIndicator = ""
        cosines = (*placed.cosines[:, 0], *placed.cosines[:, 1])
        d.ImageOrientationPatient = [_decimal(value) for value in cosines]
        d.SliceThickness = _decimal(placed.thickness_mm)
        d.SpacingBetweenSlices = _decimal(placed.spacing[2])
    if d.SOPClassUID == SecondaryCaptureImageStorage:
        d.PatientOrientation = ""
    if source.frame_of_reference_uid is not None or source.spacing_known:
        d.PixelSpacing = [_decimal(placed.spacing[1]), _decimal(placed.spacing[0])]
    cite(d, source)
    finish(d, source, own)
    if derivation.synthetic:
        d.SyntheticData = "YES"
    return d


def _class_attributes(d: Dataset, acquired: Dataset, units: str | None) -> None:
    """What the class demands (PS3.3 C.8.3.1, C.8.2.1, C.8.6.1), empty if it is not known."""
    d.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    if d.SOPClassUID in _CLASSES.values() and "PatientPosition" not in d:
        d.PatientPosition = ""
    d.RescaleType = units if units == "HU" else "US"  # unspecified
    if d.SOPClassUID == MRImageStorage:
        for keyword in ("EchoTime", "RepetitionTime", "EchoTrainLength", "MRAcquisitionType"):
            setattr(d, keyword, acquired.get(keyword))
        d.ScanningSequence = acquired.get("ScanningSequence", "RM")  # research mode
        d.SequenceVariant = acquired.get("SequenceVariant", "NONE")
        d.ScanOptions = ""
        if "IR" in d.ScanningSequence and "InversionTime" not in d:
            d.InversionTime = None
    elif d.SOPClassUID == CTImageStorage:
        d.ImageType[2] = "AXIAL"
        d.KVP = acquired.get("KVP")
        d.AcquisitionNumber = None
    else:
        d.ConversionType = "WSD"  # made on a workstation


def _equipment(source: Source, producer: Producer, derivation: Derivation) -> list[Dataset]:
    """What took part, besides the program that wrote the objects (PS3.3 C.12.1)."""
    made = Dataset()
    made.PurposeOfReferenceCodeSequence = [code("109102", "DCM", "Processing Equipment")]
    made.Manufacturer = made.ManufacturerModelName = "medgen"
    made.SoftwareVersions = list(software_versions(producer))
    made.DeviceSerialNumber = producer.sha256
    made.ContributionDateTime = datetime.now().strftime("%Y%m%d%H%M%S")
    made.ContributionDescription = derivation.text[:1024]
    if not source.patient.get("Manufacturer"):
        return [made]
    scanner = Dataset()
    scanner.PurposeOfReferenceCodeSequence = [code("109101", "DCM", "Acquisition Equipment")]
    scanner.Manufacturer = source.patient.Manufacturer
    if source.patient.get("ManufacturerModelName"):
        scanner.ManufacturerModelName = source.patient.ManufacturerModelName
    return [made, scanner]


def _slice(common: Dataset, own: Identity, placed: _Placed, place: int, stored: _Stored) -> Dataset:
    """The object of one slice."""
    d = Dataset()
    d.update(common)
    d.SOPInstanceUID = own.uid(f"slice {place}")
    d.InstanceNumber = place + 1
    if "FrameOfReferenceUID" in d:
        d.ImagePositionPatient = [_decimal(float(value)) for value in placed.position(place)]
    d.SourceImageSequence = [
        reference_item(plane.reference, same_pixels=placed.same and plane.same_pixels)
        for plane in placed.cited(place)
    ]
    if d.SOPClassUID == CTImageStorage or (stored.slope, stored.intercept) != (1.0, 0.0):
        # The standard's plain MR image has none.
        d.RescaleSlope, d.RescaleIntercept = _decimal(stored.slope), _decimal(stored.intercept)
    else:
        del d.RescaleType
    d.PixelRepresentation = int(stored.pixels.dtype == np.int16)
    # DICOM counts rows downwards first, then columns: the array's axes the other way round.
    d.PixelData = np.ascontiguousarray(stored.pixels.T).tobytes()
    if len(d.PixelData) % 2:
        d.PixelData += b"\0"
    d.file_meta = FileMetaDataset()
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return d
