"""DICOM objects for hostile archives, written with pydicom alone.

medgen's own reader and writer are not used here, and where a voxel lies is computed from the
attributes' definitions (PS3.3 C.7.6.2.1.1), so what these modules say is an independent truth.
DICOM counts millimetres towards left, back and head (LPS); truths are given in RAS+.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import config, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)

from medgen import phantoms

SHAPE = (32, 28, 12)  # columns, rows, planes
SPACING = (6.0, 5.5, 7.0)  # mm between columns, between rows, between planes
NAME, PATIENT_ID, BIRTH = "Doe^Jane", "ID-4711-0815", "19700102"  # may never reach an output
RAS = np.array([-1.0, -1.0, 1.0])

Array = NDArray[Any]
Point = tuple[tuple[float, float, float], float]  # (RAS+ mm, the value there)


@dataclass(frozen=True, eq=False)
class Stack:
    """Stored numbers and where their planes lie.

    Attributes:
        values: ``(columns, rows, planes)``.
        row, column: LPS unit vectors along which the column and the row number increase.
        spacing: mm between columns, mm between rows.
        origins: Centre of the first pixel of each plane, LPS mm ``(planes, 3)``.
        thickness: mm.
    """

    values: Array
    row: Array
    column: Array
    spacing: tuple[float, float]
    origins: Array
    thickness: float

    @property
    def normal(self) -> Array:
        """LPS unit vector that the planes share."""
        return np.cross(self.row, self.column)

    def world(self, column: float, row: float, plane: int) -> Array:
        """RAS+ mm of a pixel's centre."""
        across = self.row * self.spacing[0] * column + self.column * self.spacing[1] * row
        return RAS * (self.origins[plane] + across)

    @property
    def affine(self) -> Array:
        """Voxel indices to RAS+ mm, for planes at even distances."""
        affine = np.eye(4)
        affine[:3, 0] = RAS * self.row * self.spacing[0]
        affine[:3, 1] = RAS * self.column * self.spacing[1]
        count = len(self.origins)
        step = (self.origins[-1] - self.origins[0]) / max(count - 1, 1)
        affine[:3, 2] = RAS * (step if count > 1 else self.normal * self.thickness)
        affine[:3, 3] = RAS * self.origins[0]
        return affine


def stack(
    values: Array,
    *,
    axes: Array | None = None,
    spacing: Sequence[float] = SPACING,
    places: Sequence[float] | None = None,
    lean: Sequence[float] = (0, 0, 0),
) -> Stack:
    """Planes around a centre that is not the origin.

    Args:
        values: ``(columns, rows, planes)``.
        axes: Row direction, column direction and normal as columns of a rotation, LPS.
        spacing: mm between columns, rows and planes.
        places: Of each plane along the normal, in units of the plane distance.
        lean: LPS mm that each plane is moved further than the one before, besides the normal.
    """
    axes = np.eye(3) if axes is None else np.asarray(axes, float)
    steps = np.arange(values.shape[2], dtype=float) if places is None else np.array(places, float)
    first = np.array([11.0, -7.0, 23.0])  # no symmetry, so that a flip is seen
    for axis, (n, size) in enumerate(zip(values.shape, spacing, strict=True)):
        first = first - axes[:, axis] * size * (n - 1) / 2
    step = axes[:, 2] * spacing[2] + np.asarray(lean, float)
    return Stack(
        values=values, row=axes[:, 0], column=axes[:, 1], spacing=(spacing[0], spacing[1]),
        origins=np.array([[_kept(v) for v in first + step * place] for place in steps]),
        thickness=float(spacing[2]),
    )  # fmt: skip


def head(seed: int = 0, shape: Sequence[int] = SHAPE) -> Array:
    """A phantom head on a ramp, 0 to about 2700: no two corners and few voxels are alike."""
    return _head(seed, tuple(shape)).copy()


@lru_cache(maxsize=64)
def _head(seed: int, shape: tuple[int, ...]) -> Array:
    drawn = phantoms.brain(shape, spacing_mm=6.0, seed=seed, contrast="flair", skull=True)
    column, row, plane = np.indices(shape)
    return np.clip(drawn.image.voxels[0], 0, 1500).round().astype(np.int64) + (
        7 * column + 11 * row + 60 * plane
    )


def waves(points: Array) -> Array:
    """A field so smooth that a reader may resample it: 200 to 1800 at RAS+ mm ``(..., 3)``."""
    x, y, z = np.moveaxis(points, -1, 0)
    field = np.sin(x / 31 + 0.4) + np.sin(y / 37 - 0.8 + z / 90) + np.sin(z / 34 + 1.1 - x / 80)
    return 1000 + 800 * field / 3


def with_waves(planes: Stack) -> Stack:
    """The same planes, showing :func:`waves`."""
    size = planes.values.shape
    values = np.empty(size, np.int64)
    for plane in range(size[2]):
        column, row = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
        places = planes.world(0, 0, plane) + (
            column[..., None] * (RAS * planes.row * planes.spacing[0])
            + row[..., None] * (RAS * planes.column * planes.spacing[1])
        )
        values[..., plane] = waves(places).round()
    return Stack(
        values, planes.row, planes.column, planes.spacing, planes.origins, planes.thickness
    )


# --- what a reader should find ---------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Image:
    """One image that must come out of an archive.

    Attributes:
        frames: One array per frame, ``(X, Y, Z)``: X along a row, Y down a column, Z along the
            normal, that is row direction x column direction; real-world values. Empty where a
            reader must resample.
        affine: Of those voxel indices, RAS+ mm; None where a reader must resample.
        points: Per frame, places in the world and the value there.
        tolerance: Of a value.
        modality: DICOM's letters.
        labels: Words that tell the frames apart, one per frame; empty if there is one.
        description: SeriesDescription.
    """

    frames: tuple[Array, ...]
    affine: Array | None
    points: tuple[tuple[Point, ...], ...]
    tolerance: float = 1e-3
    modality: str = "MR"
    labels: tuple[str, ...] = ()
    description: str = "head"


@dataclass(frozen=True, eq=False)
class Hostile:
    """What was written, and what a reader should make of it.

    Attributes:
        folder: What to give to the reader: a folder, or a zip or another file in it.
        expect: ``read``, ``refused`` or ``set aside`` (nothing in it is an image to work on).
        reason: Regular expression of why it is refused or set aside.
        images: What must come out, if it is read.
        aside: Regular expression of the reason, and number of objects, of what lies beside it.
        foreign: Files that are no DICOM.
        needs_pixels: Whether headers alone do not show the damage.
        units: To be asked for when reading; None for those in the objects.
    """

    folder: Path
    expect: Literal["read", "refused", "set aside"] = "read"
    reason: str = ""
    images: tuple[Image, ...] = ()
    aside: dict[str, int] = field(default_factory=dict)
    foreign: int = 0
    needs_pixels: bool = False
    units: Literal["SUVbw"] | None = None

    @property
    def volumes(self) -> tuple[Array, ...]:
        """Voxels of every frame of every image."""
        return tuple(frame for image in self.images for frame in image.frames)

    @property
    def affine(self) -> Array | None:
        """Of the first image."""
        return self.images[0].affine

    @property
    def points(self) -> tuple[Point, ...]:
        """Of the first frame of the first image."""
        return self.images[0].points[0]


def truth(
    *frames: Stack,
    slope: float | Sequence[float] = 1.0,
    intercept: float | Sequence[float] = 0.0,
    resampled: bool = False,
    seed: int = 0,
    **options: Any,
) -> Image:
    """The image that planes show, with planes that descend turned round."""
    slopes, intercepts = (np.broadcast_to(v, frames[0].values.shape[2]) for v in (slope, intercept))
    arrays, points = [], []
    for planes in frames:
        real = planes.values * slopes + intercepts
        size = planes.values.shape
        corners = [(c, r, p) for c in (0, size[0] - 1) for r in (0, size[1] - 1)
                   for p in sorted({0, size[2] - 1})]  # fmt: skip
        chosen = np.random.default_rng(seed).integers(0, size, (16, 3)).tolist()
        if resampled:  # a slanted stack has no value beyond its slanted edge
            corners = []
            chosen = [(4 + c % (size[0] - 8), 4 + r % (size[1] - 8), p) for c, r, p in chosen]
        places = [(planes.world(*voxel), float(real[tuple(voxel)])) for voxel in corners + chosen]
        points.append(tuple(((float(x), float(y), float(z)), v) for (x, y, z), v in places))
        arrays.append(real)
    first = frames[0]
    affine = first.affine
    if len(first.origins) > 1 and (first.origins[-1] - first.origins[0]) @ first.normal < 0:
        affine[:3, 3] += affine[:3, 2] * (first.values.shape[2] - 1)
        affine[:3, 2] *= -1
        arrays = [array[..., ::-1] for array in arrays]
    return Image(
        frames=() if resampled else tuple(arrays), affine=None if resampled else affine,
        points=tuple(points), **options,
    )  # fmt: skip


# --- objects ---------------------------------------------------------------------------------

CLASSES = {
    "MR": MRImageStorage, "CT": CTImageStorage, "PT": PositronEmissionTomographyImageStorage,
}  # fmt: skip


@dataclass(frozen=True)
class Who:
    """Whose scan it is: each word becomes a UID or an identifier."""

    seed: int = 0
    patient: str = PATIENT_ID
    study: str = "study"
    series: str = "series"
    number: int = 1
    description: str = "head"

    def uid(self, *words: object) -> str:
        """Always the same for the same words."""
        return generate_uid(entropy_srcs=["hostile", str(self.seed), *(str(w) for w in words)])

    @property
    def study_uid(self) -> str:
        """StudyInstanceUID."""
        return self.uid(self.study, "study")

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID."""
        return self.uid(self.study, self.series, "series")


def header(who: Who, modality: str, sop_class: str, key: object) -> Dataset:
    """Patient, study, series and general equipment of any object."""
    d = Dataset()
    d.SpecificCharacterSet = "ISO_IR 192"
    d.SyntheticData = "YES"
    d.SOPClassUID, d.SOPInstanceUID = sop_class, who.uid(who.study, who.series, who.patient, key)
    d.StudyDate = d.SeriesDate = d.AcquisitionDate = d.ContentDate = "20200102"
    d.StudyTime = d.SeriesTime = d.AcquisitionTime = d.ContentTime = "101500"
    d.AccessionNumber, d.Modality, d.Manufacturer = "A-99", modality, "medgen tests"
    d.ManufacturerModelName, d.SoftwareVersions = "phantom", "1"
    d.DeviceSerialNumber = "1"
    d.ReferringPhysicianName, d.InstitutionName = "Who^Doctor", "Secret Hospital"
    d.StudyDescription, d.SeriesDescription = "synthetic", who.description
    d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = NAME, who.patient, BIRTH, "O"
    d.StudyInstanceUID, d.SeriesInstanceUID = who.study_uid, who.series_uid
    d.StudyID, d.SeriesNumber, d.InstanceNumber = "1", who.number, 1
    return d


def pixels(d: Dataset, values: Array, *, bits: int = 16, signed: bool = False) -> None:
    """Image pixel module for ``(columns, rows)`` or ``(columns, rows, frames)`` numbers."""
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.Columns, d.Rows = values.shape[:2]
    d.BitsAllocated, d.BitsStored, d.HighBit = 16, bits, bits - 1
    d.PixelRepresentation = int(signed)
    numbers = values.T.astype(np.int64) & (2**bits - 1)  # unused bits are 0, even of a negative
    d.PixelData = np.ascontiguousarray(numbers).astype("<u2").tobytes()


def classic(
    planes: Stack,
    who: Who,
    *,
    modality: str = "MR",
    key: object = "",
    start: int = 1,
    **pixel_options: Any,
) -> list[Dataset]:
    """One object per plane.

    Args:
        planes: What and where.
        who: Identity.
        modality: MR, CT or PT.
        key: Tells the objects of one series apart, if it holds several stacks.
        start: InstanceNumber of the first.
        pixel_options: For :func:`pixels`.
    """
    objects = []
    for plane, origin in enumerate(planes.origins):
        d = header(who, modality, CLASSES[modality], (key, plane))
        d.ImageType = ["ORIGINAL", "PRIMARY", "M" if modality == "MR" else "AXIAL"]
        d.InstanceNumber, d.AcquisitionNumber = start + plane, 1
        d.FrameOfReferenceUID = who.uid(who.study, "frame of reference")
        d.PositionReferenceIndicator = d.Laterality = ""
        d.PatientPosition = "HFS"
        d.PixelSpacing = [_text(planes.spacing[1]), _text(planes.spacing[0])]
        d.SliceThickness = _text(planes.thickness)
        d.ImageOrientationPatient = [_text(v) for v in (*planes.row, *planes.column)]
        d.ImagePositionPatient = [_text(v) for v in origin]
        pixels(d, planes.values[..., plane], **pixel_options)
        _MODULES[modality](d, plane, len(planes.origins))
        objects.append(d)
    return objects


def _mr(d: Dataset, plane: int, planes: int) -> None:
    d.ScanningSequence, d.SequenceVariant, d.ScanOptions = "SE", "NONE", ""
    d.MRAcquisitionType, d.RepetitionTime, d.EchoTime = "2D", "9000", "90"
    d.EchoTrainLength, d.MagneticFieldStrength = 1, "3"


def _ct(d: Dataset, plane: int, planes: int) -> None:
    d.KVP, d.RescaleIntercept, d.RescaleSlope, d.RescaleType = "120", "-1024", "1", "HU"


def _pet(d: Dataset, plane: int, planes: int) -> None:
    """PET series, isotope and image modules (PS3.3 C.8.9); SUV needs what stands here."""
    d.Units, d.CountsSource, d.SeriesType = "BQML", "EMISSION", ["WHOLE BODY", "IMAGE"]
    d.NumberOfSlices, d.CorrectedImage = planes, ["ATTN", "DECY", "SCAT"]
    d.DecayCorrection, d.CollimatorType = "START", "NONE"
    d.RandomsCorrectionMethod, d.DecayFactor = "DLYD", "1.0"
    d.RescaleIntercept, d.RescaleSlope = "0", "1"
    d.FrameReferenceTime, d.ActualFrameDuration = "60000", "120000"
    d.ImageIndex, d.PatientWeight, d.PatientSize = plane + 1, "80", "1.8"
    tracer, nuclide = Dataset(), Dataset()
    nuclide.CodeValue, nuclide.CodingSchemeDesignator = "C-111A1", "SRT"
    nuclide.CodeMeaning = "^18^Fluorine"
    tracer.RadionuclideCodeSequence = [nuclide]
    tracer.Radiopharmaceutical = "FDG"
    tracer.RadiopharmaceuticalStartTime = "091500"
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = "400000000", "6586.2"
    d.RadiopharmaceuticalInformationSequence = [tracer]
    d.PatientOrientationCodeSequence = d.PatientGantryRelationshipCodeSequence = []
    del d.PatientPosition  # the codes stand for it


_MODULES = {"MR": _mr, "CT": _ct, "PT": _pet}


def _text(value: float) -> str:
    """A decimal string: at most 16 characters."""
    digits = next(n for n in range(12, 0, -1) if len(f"{value:.{n}g}") <= 16)
    return f"{value:.{digits}g}"


def _kept(value: float) -> float:
    """The number that a decimal string keeps of another."""
    return float(_text(value))


# --- files -----------------------------------------------------------------------------------


def save(d: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write one object, whatever nonsense its values are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        save_to(d, stream, syntax)
    return path


def save_to(d: Dataset, stream: BinaryIO, syntax: str = ExplicitVRLittleEndian) -> None:
    """The same into an open file."""
    d.file_meta = FileMetaDataset()
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
    d.file_meta.TransferSyntaxUID = syntax
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcmwrite(stream, d, enforce_file_format=True)


def save_all(objects: Iterable[Dataset], folder: Path, prefix: str = "IM") -> list[Path]:
    """Write objects as IM0000 and so on, without an ending, as scanners do."""
    return [save(d, folder / f"{prefix}{number:04d}") for number, d in enumerate(objects)]
