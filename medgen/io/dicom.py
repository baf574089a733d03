"""DICOM in: a file, a folder, a zip, a DICOMDIR or the objects of one image, to one volume.

The path: objects are found and their headers read (dicom_archive, dicom_files), grouped into images
(dicom_group, dicom_kinds), cut into slices (dicom_slices), sorted into stacks on a grid
(dicom_stack, slice_grid) and decoded (dicom_pixels, dicom_values). Classic series, enhanced
multi-frame objects and mosaics take one path. DICOM counts millimetres towards the patient's left,
back and head (LPS); the affine here is RAS+.

pydicom decodes the pixels: highdicom, otherwise our choice for multi-frame objects, refuses real
ones whose dimension index points to a private tag.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID

from medgen.errors import InputError
from medgen.io.dicom_archive import Search, Zips, instances
from medgen.io.dicom_files import text
from medgen.io.dicom_group import Series, choose_series, group, reasons
from medgen.io.dicom_pixels import voxels_of, without_pixels
from medgen.io.dicom_slices import Slice, slices_of
from medgen.io.dicom_stack import MissingSlicesError, Stack, arrange
from medgen.io.dicom_values import window
from medgen.io.suv import to_suvbw
from medgen.io.values import blocking, choose_frame, refuse_unusable
from medgen.io.walk import Location
from medgen.volume import Provenance, Volume

Source = Path | Sequence[Location]


def read_dicom(
    source: Source,
    *,
    frame: int | None = None,
    series: str | None = None,
    units: str | None = None,
    allow_constant: bool = False,
) -> Volume:
    """Read one image.

    Args:
        source: A DICOM file, a folder, a zip or a DICOMDIR; or where the objects of one image lie.
        frame: Which volume of a 4-D series, counted from 0.
        series: Series number or UID, needed if there are several.
        units: ``SUVbw`` turns PET into SUV by body weight; None keeps the units of the objects.
        allow_constant: Whether an image of one value only is fine (masks).

    Returns:
        Voxels ``(1, X, Y, Z)`` float32 with the rescale slope and intercept applied; ``(1, X, Y)``
        for a single slice; ``(3, ...)`` for colour. ``X`` runs along a row, ``Y`` down a column,
        ``Z`` along their normal. MONOCHROME1 is inverted, so that bright is high. Padding of CT
        that would be brighter than all of the image takes its smallest value.

    Raises:
        InputError: No image, several series, missing or damaged pixels, NaN or constant voxels.
        GeometryError: Slices that are missing or in several directions.
    """
    named = _named(source)
    with Zips() as zips:
        chosen = _chosen(source, zips, series)
        with _about(named):
            _refuse_unsupported(chosen)
            stack = arrange(slices_of(chosen.instances))
        index = choose_frame(named, len(stack.frames), frame)
        read = voxels_of(stack.frames[index], named)
    refuse_unusable(read.array, named, allow_constant=allow_constant, limits=read.limits)
    if read.padding is not None:
        _darken(read.array, read.padding)
    volume = Volume(
        _gridded(read.array, stack), stack.geometry, _provenance(source, chosen, stack, index)
    )
    if units is None:
        return volume
    with _about(named):
        return to_suvbw(volume)


def describe_dicom(source: Source) -> list[dict[str, Any]]:
    """Header facts of every image (see :func:`medgen.io.describe`)."""
    with Zips() as zips:
        images, aside = find_series(source, zips)
        images = images or [s for s in aside if s.aside and s.aside.picture]
        return [facts_of(series, _named(source)) for series in images]


def describe_series(source: Source, series: str | None) -> dict[str, Any]:
    """Header facts of the image that :func:`read_dicom` would choose."""
    with Zips() as zips:
        return facts_of(_chosen(source, zips, series), _named(source))


def find_series(
    source: Source, zips: Zips, search: Search | None = None
) -> tuple[list[Series], list[Series]]:
    """All images of a source, and what is set aside.

    Raises:
        InputError: Nothing that can be read as a picture, or a hostile zip.
    """
    search = search or Search()
    images, aside = group(instances(source, zips, search))
    if not isinstance(source, Path) and search.damaged + search.foreign:
        raise InputError(
            f"{search.damaged + search.foreign} of the {search.files} objects of the series cannot "
            "be read: they are gone or damaged", "Look for the series again.",
        )  # fmt: skip
    if search.damaged:
        for series in images:
            series.notes.append(f"{_damaged(search.damaged)}")
    if images or any(s.aside and s.aside.picture for s in aside):
        return images, aside
    named = _named(source)
    if aside:
        raise InputError(
            f"{named} holds DICOM, but no image: only {reasons(aside)}",
            "Name the folder of the images themselves.",
        )
    raise _nothing_found(source)


def _damaged(count: int) -> str:
    return f"{count} damaged DICOM {'file is' if count == 1 else 'files are'} left out"


def _chosen(source: Source, zips: Zips, wanted: str | None) -> Series:
    images, aside = find_series(source, zips)
    return choose_series(images, aside, wanted, _named(source))


def _named(source: Source) -> str:
    """What errors call the source."""
    return str(source) if isinstance(source, Path) else "the series"


@contextmanager
def _about(named: str) -> Iterator[None]:
    """Say of which source an error speaks."""
    try:
        yield
    except InputError as error:
        error.message = f"{named}: {error.message}"
        error.args = (error.message,)
        raise


def _nothing_found(source: Source) -> InputError:
    named = _named(source)
    if isinstance(source, Path) and source.is_dir():
        other = [
            p for p in source.iterdir() if p.name.endswith((".nii", ".nii.gz", ".png", ".jpg"))
        ]
        hint = "Name one of the files in it." if other else "Name a folder of DICOM files."
        what = f"; it does hold {len(other)} NIfTI or picture files" if other else ""
        return InputError(f"the folder {named} holds no readable DICOM image{what}", hint)
    return InputError(
        f"{named} holds no readable DICOM image", "Check that the file was copied completely."
    )


def facts_of(series: Series, named: str) -> dict[str, Any]:
    """Header facts of one image (see :func:`medgen.io.describe`)."""
    header = series.first
    bits, signed = int(header.get("BitsAllocated") or 0), header.get("PixelRepresentation")
    syntaxes = {i.transfer_syntax for i in series.instances}
    facts: dict[str, Any] = {
        "path": named, "kind": "dicom", "modality": text(header, "Modality"),
        "shape": (int(header.Columns), int(header.Rows)),
        "channels": 1 if str(header.get("PhotometricInterpretation", "")).startswith("MONO") else 3,
        "frames": series.images, "frame_labels": [],
        "dtype": f"{'' if signed else 'u'}int{bits}" if bits else None,
        "spacing_mm": None, "orientation": None, "body_part": text(header, "BodyPartExamined"),
        "study_uid": series.study_uid or None, "series_number": series.number or None,
        "series_uid": series.uid or None, "part": series.part,
        "series_description": text(header, "SeriesDescription"),
        "transfer_syntax": ", ".join(sorted(UID(syntax).name for syntax in syntaxes)) or None,
        "missing_slices": 0,
    }  # fmt: skip
    problems = [f"set aside in archives: {series.aside.reason}"] if series.aside else []
    stopped = None
    try:
        with _about(named):
            _refuse_unsupported(series)
            _refuse_without_pixels(series)
            stack = arrange(slices_of(series.instances))
        facts |= _facts_of_stack(stack)
        if stack.frames[0][0].position is None:
            problems.append("no position in the patient: each image is read as a flat picture")
        problems += [*series.notes, *stack.notes]
    except InputError as error:
        if isinstance(error, MissingSlicesError):
            facts["missing_slices"] = error.missing
        problems.append(error.message)
        stopped = blocking(error)
    return facts | {"problems": problems, "blocking": stopped}


def _facts_of_stack(stack: Stack) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "shape": stack.geometry.shape, "frames": len(stack.frames), "frame_labels": stack.labels,
    }  # fmt: skip
    first = stack.frames[0][0]
    if first.position is not None:
        facts["orientation"] = stack.geometry.axis_codes
    if first.spacing is not None:
        facts["spacing_mm"] = stack.geometry.spacing_mm
    return facts


def _refuse_unsupported(series: Series) -> None:
    """Raise for objects whose pixels do not mean what they seem to."""
    if "DetectorInformationSequence" in series.first and series.images > len(series.instances):
        raise InputError(
            "a nuclear medicine object of many frames, which is not supported",
            "Convert it with dcm2niix, and use the NIfTI file.",
        )


def _refuse_without_pixels(series: Series) -> None:
    """Raise for objects that hold a header only."""
    for instance in series.instances:
        if not instance.has_pixels:
            error = without_pixels(instance, "")
            raise InputError(error.message.removeprefix(": "), error.hint)


def _darken(voxels: NDArray[np.float32], padding: NDArray[np.bool_]) -> None:
    """Give padding that would outshine every measured value the smallest of them instead.

    Padding below the measured values stays as it is stored, as in other readers; and a padding
    value that lies among them is no padding: headers state 0 where 0 is water.
    """
    if padding.all():
        return
    measured = voxels[:, ~padding]
    if voxels[:, padding].min() > measured.max():
        voxels[:, padding] = measured.min()


def _gridded(voxels: NDArray[np.float32], stack: Stack) -> NDArray[np.float32]:
    """The voxels on the stack's grid: as they are, or resampled."""
    if stack.geometry.spatial_dims == 2:
        return voxels[..., 0]
    if stack.grid is None:
        return voxels
    return np.stack([stack.grid.from_source(channel) for channel in voxels])


def _provenance(source: Source, series: Series, stack: Stack, index: int) -> Provenance:
    """UIDs that a DICOM writer cites later; nothing that identifies the patient."""
    header, slices = series.first, stack.frames[index]
    modality = text(header, "Modality")
    units = text(header, "Units") or text(header, "RescaleType")
    units = None if units == "US" else units  # "unspecified"
    if isinstance(source, Path):
        sources: tuple[str, ...] = (str(source),)
    else:
        sources = tuple(dict.fromkeys(str(location.file) for location in source))
    details = {
        "study_uid": series.study_uid or None,
        "series_uid": series.uid,
        "frame_of_reference_uid": text(header, "FrameOfReferenceUID"),
        # (class UID, instance UID, frame number from 1) of each source slice
        "references": tuple(_reference(item) for item in slices),
        "locations": tuple(item.instance.location for item in slices),
        # How the grid was made from the source slices; None if its planes are these slices.
        "slices": stack.grid,
        "frame_label": stack.labels[index] if stack.labels else None,
        "notes": (*series.notes, *stack.notes),
        "spacing_known": slices[0].spacing is not None,
    }
    return Provenance(
        sources=sources,
        format="dicom",
        modality=modality,
        units=units or ("HU" if modality == "CT" else None),
        window=window(header),
        details={"dicom": details},
    )


def _reference(item: Slice) -> tuple[str, str, int]:
    header = item.instance.header
    return (
        str(header.get("SOPClassUID")), str(header.get("SOPInstanceUID")), item.number + 1,
    )  # fmt: skip
