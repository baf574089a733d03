"""The series that results belong to: opened again for what a volume does not carry.

A :class:`~medgen.volume.Volume` never holds a patient's name. The objects it was read from do, so
they are opened once more when something is to be filed beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    MRImageStorage,
    RawDataStorage,
    generate_uid,
)

from medgen.errors import InputError
from medgen.io.dicom_archive import Zips
from medgen.io.dicom_files import UNREADABLE, quiet
from medgen.io.dicom_out.patient import acquisition, clean, patient_and_study
from medgen.io.walk import Location
from medgen.volume import Volume

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# A slice's own position is believed if it lies this near to its place on the grid.
_NEAR_MM = 0.5
_HINT = "Write NIfTI instead, or repair the series and read it again."


class Reference(NamedTuple):
    """One source picture: ``frame`` counts from 1, and is None if its object holds only one."""

    class_uid: str
    instance_uid: str
    frame: int | None


@dataclass(frozen=True, eq=False)
class Plane:
    """Where a source picture lies.

    Attributes:
        reference: The picture.
        position: Centre of its first pixel, LPS mm ``(3,)``.
        same_pixels: Whether results lie on its very pixels.
        rescale: Slope and intercept of its stored numbers; None if they are none or unreadable.
    """

    reference: Reference
    position: NDArray[np.float64]
    same_pixels: bool
    rescale: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """What results need to know of the series they come from.

    Attributes:
        volume: What was read from it.
        patient: Clean patient and study attributes.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        series_number: SeriesNumber, or 0.
        modality: Modality, or ``OT`` (other).
        laterality: ``L``, ``R`` or empty.
        frame_of_reference_uid: Of the source; made from its series UID if it has positions but no
            such UID; None if it has no positions at all.
        synthetic: Whether the source is marked as Synthetic Data (0008,001C).
        burned_in: The source's BurnedInAnnotation, if it says.
        recognisable: The source's RecognizableVisualFeatures, if it says.
        lossy: LossyImageCompression and its ratio and method.
        acquisition: How the source was acquired, as far as its header says so outside of groups of
            frames; clean.
        planes: The source pictures, in the order of the last axis.
        thickness_mm: Slice thickness.
    """

    volume: Volume
    patient: Dataset
    study_uid: str
    series_uid: str
    series_number: int
    modality: str
    laterality: str
    frame_of_reference_uid: str | None
    synthetic: bool
    burned_in: str | None
    recognisable: str | None
    lossy: Dataset
    acquisition: Dataset
    planes: tuple[Plane, ...]
    thickness_mm: float

    @property
    def references(self) -> tuple[Reference, ...]:
        """The source pictures, in the order of the last axis."""
        return tuple(plane.reference for plane in self.planes)

    @cached_property
    def instances(self) -> dict[str, str]:
        """Class UID of each source object by its instance UID, in order, once each."""
        return {r.instance_uid: r.class_uid for r in self.references}

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of a source picture."""
        return _size(self.volume)

    @property
    def spacing_known(self) -> bool:
        """Whether the size of a pixel in mm is known."""
        return bool(self.volume.provenance.details["dicom"].get("spacing_known", True))

    def on_planes(self, array: NDArray[Any], order: int) -> NDArray[Any]:
        """A map on the volume's grid as pictures on the source's planes.

        Args:
            array: ``(X, Y[, Z])``.
            order: 0 takes the nearest voxel (masks), 1 interpolates (maps); used only where the
                volume was resampled from its slices.

        Returns:
            ``(planes, rows, columns)``.
        """
        slices = self.volume.provenance.details["dicom"].get("slices")
        if slices is not None:
            array = slices.to_slices(array, order=order)
        if array.ndim == 2:
            array = array[..., None]
        return np.ascontiguousarray(array.transpose(2, 1, 0))

    def stand_ins(self) -> list[Dataset]:
        """A plain single-frame header for each source picture, with nothing in it but what counts.

        highdicom copies from its source images whatever the object to be made needs. Real headers
        are too often damaged, private or of unknown class for that. Each stand-in is told apart by
        its place in the list, ``2.25.N``; the true references are put in afterwards.
        """
        placed = self.frame_of_reference_uid is not None
        column, row = (_RAS_TO_LPS @ self.volume.affine)[:3, :2].T
        between_columns, between_rows = np.linalg.norm(column), np.linalg.norm(row)
        made = []
        for place, plane in enumerate(self.planes):
            d = Dataset()
            d.update(self.patient)
            d.update(self.lossy)
            # The classes stand for "in a frame of reference" and "a picture without a place".
            d.SOPClassUID = MRImageStorage if placed else ComputedRadiographyImageStorage
            d.SOPInstanceUID = f"2.25.{place + 1}"
            d.StudyInstanceUID, d.SeriesInstanceUID = self.study_uid, self.series_uid
            d.Modality = self.modality
            d.Columns, d.Rows = self.size
            if placed:
                d.FrameOfReferenceUID = self.frame_of_reference_uid
                d.PositionReferenceIndicator = ""
                d.ImagePositionPatient = plane.position.tolist()
                cosines = (*column / between_columns, *row / between_rows)
                d.ImageOrientationPatient = [float(value) for value in cosines]
            if placed or self.spacing_known:
                d.PixelSpacing = [float(between_rows), float(between_columns)]
                d.SliceThickness = self.thickness_mm
            made.append(d)
        return made


def refuse_other_format(name: str) -> None:
    """Raise unless a scan comes from DICOM.

    Args:
        name: The format, as in :class:`~medgen.volume.Provenance` or ``describe``.

    Raises:
        InputError: It is another.
    """
    if name != "dicom":
        raise InputError(
            f"DICOM results belong beside a DICOM series, but the scan comes from {name}",
            "Give the DICOM series itself, or leave out --dicom-out.",
        )


def check_source(volume: Volume) -> None:
    """Refuse a volume beside which nothing can be filed, before anything is computed.

    Raises:
        InputError: It was not read from DICOM, or its objects lack the UIDs that identify them.
    """
    details = _details(volume)
    for keyword in ("study_uid", "series_uid"):
        if not _is_uid(details.get(keyword)):
            name = "StudyInstanceUID" if keyword == "study_uid" else "SeriesInstanceUID"
            raise InputError(f"the series has no valid {name}, so nothing can cite it", _HINT)
    for _, instance_uid, _ in details["references"]:
        if not _is_uid(instance_uid):
            msg = "an object of the series has no valid SOPInstanceUID, so it cannot be cited"
            raise InputError(msg, _HINT)


def open_source(volume: Volume) -> Source:
    """Open the series a volume was read from once more, headers only.

    Raises:
        InputError: The volume was not read from DICOM, its files are gone or changed, or they lack
            the UIDs that a citation needs.
    """
    check_source(volume)
    details = _details(volume)
    headers = _headers(details)
    first = headers[details["references"][0][1]]
    series_uid = details["series_uid"]
    planes, placed = _planes(volume, details, headers)
    frame_of_reference = None
    if placed:
        frame_of_reference = details.get("frame_of_reference_uid")
        if not _is_uid(frame_of_reference):
            frame_of_reference = generate_uid(entropy_srcs=[series_uid, "frame of reference"])
    return Source(
        volume=volume,
        patient=patient_and_study(first),
        study_uid=details["study_uid"],
        series_uid=series_uid,
        series_number=_number(first, "SeriesNumber", 0),
        modality=clean(first, "Modality") or "OT",
        laterality=_laterality(first),
        frame_of_reference_uid=frame_of_reference,
        synthetic=any(clean(h, "SyntheticData") == "YES" for h in headers.values()),
        burned_in=_yes_no(headers.values(), "BurnedInAnnotation"),
        recognisable=_yes_no(headers.values(), "RecognizableVisualFeatures"),
        lossy=_lossy(first),
        acquisition=acquisition(first),
        planes=planes,
        thickness_mm=_thickness(volume, first, details["references"][0][2]),
    )


def _details(volume: Volume) -> Mapping[str, Any]:
    refuse_other_format(volume.provenance.format)
    details: Mapping[str, Any] = volume.provenance.details["dicom"]
    return details


def _is_uid(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9][0-9.]{0,63}", value) is not None


def _headers(details: Mapping[str, Any]) -> dict[str, Dataset]:
    """The header of each cited object by its SOPInstanceUID."""
    headers: dict[str, Dataset] = {}
    wanted = [uid for _, uid, _ in details["references"]]
    with Zips() as zips:
        for uid, location in zip(wanted, details["locations"], strict=True):
            if uid not in headers:
                headers[uid] = _header(zips, location)
                if str(headers[uid].get("SOPInstanceUID")) != uid:
                    raise _changed()
    return headers


def _header(zips: Zips, location: Location) -> Dataset:
    try:
        with quiet(), zips.open(location) as stream:
            return pydicom.dcmread(stream, stop_before_pixels=True, force=True)
    except UNREADABLE as error:
        raise _changed() from error


def _changed() -> InputError:
    return InputError(
        "the DICOM files changed, or are gone, since the scan was read",
        "Keep the series where it is until the results are written.",
    )


def _planes(
    volume: Volume, details: Mapping[str, Any], headers: Mapping[str, Dataset]
) -> tuple[tuple[Plane, ...], bool]:
    """The source pictures, and whether the source says where they lie."""
    slices = details.get("slices")
    references = details["references"]
    if slices is None:
        steps = np.arange(len(references))[:, None] * volume.affine[:3, 2]
        origins = volume.affine[:3, 3] + steps
    else:
        origins = np.asarray(slices.affines)[:, :3, 3]
    origins = origins @ _RAS_TO_LPS[:3, :3]
    placed = volume.spatial_dims == 3
    planes = []
    for (class_uid, uid, number), origin in zip(references, origins, strict=True):
        header = headers[uid]
        own = _position(header, number)
        near = own is not None and float(np.linalg.norm(own - origin)) < _NEAR_MM
        placed = placed or (near and bool(details.get("spacing_known", True)))
        same = (_number(header, "Columns", 0), _number(header, "Rows", 0)) == _size(volume)
        # The grid is the even stack nearest to the slices; the object says where this one is. A
        # mosaic's own position is that of the whole sheet, far from its tiles.
        if own is not None and near and same:
            origin = own
        frame = number if _is_multiframe(header) else None
        reference = Reference(_class(class_uid, header), uid, frame)
        planes.append(Plane(reference, origin, same, _rescale(header, number)))
    return tuple(planes), placed


def _size(volume: Volume) -> tuple[int, int]:
    """Columns and rows of a source picture; a resampled volume may be larger."""
    slices = volume.provenance.details["dicom"].get("slices")
    columns, rows = volume.geometry.shape[:2] if slices is None else slices.size
    return int(columns), int(rows)


def _is_multiframe(header: Dataset) -> bool:
    """Whether a citation must say which frame; a classic object may state that it has one."""
    enhanced = "PerFrameFunctionalGroupsSequence" in header
    return enhanced or _number(header, "NumberOfFrames", 1) > 1


def _class(class_uid: str, header: Dataset) -> str:
    """The object's SOP class; raw data if not even its file says what it is."""
    if _is_uid(class_uid):
        return class_uid
    meta = getattr(header, "file_meta", Dataset()).get("MediaStorageSOPClassUID")
    return str(meta) if _is_uid(str(meta)) else str(RawDataStorage)


def _groups(header: Dataset, number: int, sequence: str) -> Sequence[Dataset]:
    """Items of a functional group of a frame, or the header itself (PS3.3 C.7.6.16)."""
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        return (header,)
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    return [*(frames[number - 1].get(sequence) or ()), *(shared.get(sequence) or ())]


def _position(header: Dataset, number: int) -> NDArray[np.float64] | None:
    """The picture's own ImagePositionPatient, LPS mm; None if it is missing or damaged.

    One position for several frames, or without an orientation, places none of them.
    """
    try:
        enhanced = "PerFrameFunctionalGroupsSequence" in header
        if not enhanced and _number(header, "NumberOfFrames", 1) > 1:
            return None
        directions = _groups(header, number, "PlaneOrientationSequence")
        if not any("ImageOrientationPatient" in group for group in directions):
            return None
        for group in _groups(header, number, "PlanePositionSequence"):
            position = np.array(group.get("ImagePositionPatient"), dtype=np.float64)
            if position.shape == (3,) and np.isfinite(position).all():
                return position
    except UNREADABLE:
        pass
    return None


def _rescale(header: Dataset, number: int) -> tuple[float, float] | None:
    """Slope and intercept of a picture's stored numbers."""
    try:
        for group in _groups(header, number, "PixelValueTransformationSequence"):
            slope = float(group.get("RescaleSlope") or 0)
            if slope > 0:
                return slope, float(group.get("RescaleIntercept") or 0)
    except UNREADABLE:
        pass
    return None


def _thickness(volume: Volume, header: Dataset, number: int) -> float:
    """SliceThickness of the source, or else the distance between slices, in mm."""
    try:
        for group in _groups(header, number, "PixelMeasuresSequence"):
            thickness = float(group.get("SliceThickness") or 0)
            if 0 < thickness < 1e3:
                return thickness
    except UNREADABLE:
        pass
    return float(np.linalg.norm(volume.affine[:3, 2]))


def _lossy(header: Dataset) -> Dataset:
    """What must stay known of lossy compression (PS3.3 C.7.6.1.1.5)."""
    lossy = Dataset()
    if clean(header, "LossyImageCompression") == "01":
        lossy.LossyImageCompression = "01"
    return lossy


def _yes_no(headers: Any, keyword: str) -> str | None:
    """``YES`` if any object says so, ``NO`` if all do, else None."""
    said = {clean(header, keyword) for header in headers}
    if "YES" in said:
        return "YES"
    return "NO" if said == {"NO"} else None


def _laterality(header: Dataset) -> str:
    said = clean(header, "Laterality") or clean(header, "ImageLaterality")
    return said if said in ("L", "R") else ""


def _number(header: Dataset, keyword: str, otherwise: int) -> int:
    try:
        return int(header.get(keyword) or otherwise)
    except UNREADABLE:
        return otherwise
