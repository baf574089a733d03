"""The only room that knows file formats: NIfTI, DICOM and plain pictures in, NIfTI out.

Examples:
    >>> volume = medgen.io.read("scan.nii.gz")
    >>> medgen.io.write_nifti("map.nii.gz", array, volume.geometry, like=volume, kind="map")
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medgen.errors import InputError
from medgen.io.files import atomic_folder, atomic_path, refuse_existing
from medgen.io.values import choose_frame
from medgen.io.walk import Location
from medgen.volume import Geometry, Volume

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from medgen.io.dicom_index import Archive

__all__ = [
    "Location", "atomic_folder", "atomic_path", "choose_frame", "describe", "index_dicom",
    "preview", "read", "refuse_existing", "write_changed", "write_dicom_series", "write_nifti",
]  # fmt: skip

_FORMATS = "NIfTI (.nii, .nii.gz), DICOM (a file, a folder or a .zip), PNG, JPEG or TIFF"


def read(
    source: str | os.PathLike[str] | Sequence[Location],
    *,
    frame: int | None = None,
    series: str | None = None,
    units: Literal["SUVbw"] | None = None,
    allow_constant: bool = False,
) -> Volume:
    """Read one image, whatever its format; the content decides, not the name.

    Args:
        source: A file, or a folder, zip or DICOMDIR of DICOM files; or where the DICOM objects of
            one image lie, as in :attr:`medgen.io.dicom_index.ImageSeries.locations`.
        frame: Which volume of a 4-D image (or page of a TIFF), counted from 0.
        series: Which DICOM series: its number or UID. Needed only if there are several.
        units: ``SUVbw`` turns PET in DICOM into standardised uptake values by body weight; None
            keeps the stored units (see :mod:`medgen.io.suv`).
        allow_constant: Whether an image of one value only is fine, as for a mask.

    Returns:
        The voxels ``(C, X, Y, Z)`` or, for a single slice or picture, ``(C, X, Y)``.

    Raises:
        InputError: The file is missing, damaged, of another format, ambiguous, or without contrast.
        GeometryError: Where the voxels are is not known.
    """
    if units not in (None, "SUVbw"):
        raise InputError(f"units can be SUVbw or left out, not {units!r}", "Leave it out.")
    if not isinstance(source, (str, os.PathLike)):
        from medgen.io.dicom import read_dicom

        return read_dicom(
            list(source), frame=frame, series=series, units=units, allow_constant=allow_constant
        )
    path = _existing(source)
    kind = _kind(path)
    if kind != "dicom":
        _refuse_series(path, series)
        if units is not None:
            raise InputError(f"SUV needs DICOM, but {path} is not", "Name the DICOM series.")
    if kind == "nifti":
        from medgen.io.nifti import read_nifti

        return read_nifti(path, frame=frame, allow_constant=allow_constant)
    if kind == "raster":
        from medgen.io.raster import read_raster

        return read_raster(path, frame=frame, allow_constant=allow_constant)
    from medgen.io.dicom import read_dicom

    return read_dicom(path, frame=frame, series=series, units=units, allow_constant=allow_constant)


def describe(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What is in a file or DICOM folder, from headers alone.

    Args:
        path: As for :func:`read`.

    Returns:
        One plain dictionary per image (DICOM: per series): ``path``; ``kind`` (``nifti``,
        ``dicom``, ``png``, ``jpeg``, ``tiff``); ``modality`` or None; ``shape`` in space;
        ``channels``; ``frames``; ``dtype`` as stored; ``spacing_mm`` and ``orientation`` (such as
        ``RAS``), or None if unknown; ``series_number``, ``series_uid`` and ``transfer_syntax``, or
        None outside DICOM; for DICOM also ``frame_labels`` (what each of several frames is),
        ``study_uid``, ``body_part``, ``series_description``, ``part`` (1, or more if one series
        holds several images) and ``missing_slices`` (how many, if that stops reading);
        ``problems``: what would stop :func:`read`, or is worth knowing, as sentences;
        ``blocking``: the ``error`` and ``hint`` with which :func:`read` would stop whatever frame
        is chosen, or None.

    Raises:
        InputError: The path is missing, or nothing in it can be described.
    """
    path = _existing(path)
    kind = _kind(path)
    if kind == "nifti":
        from medgen.io.nifti import describe_nifti

        return [describe_nifti(path)]
    if kind == "raster":
        from medgen.io.raster import describe_raster

        return [describe_raster(path)]
    from medgen.io.dicom import describe_dicom

    return describe_dicom(path)


def preview(
    path: str | os.PathLike[str], *, frame: int | None = None, series: str | None = None
) -> dict[str, Any]:
    """Header facts (see :func:`describe`) of the image that :func:`read` would give.

    Args:
        path: As for :func:`read`.
        frame: As for :func:`read`.
        series: As for :func:`read`.

    Raises:
        InputError: What :func:`read` would raise, as far as headers tell.
    """
    path = _existing(path)
    if _kind(path) == "dicom":
        from medgen.io.dicom import describe_series

        facts = describe_series(path, series)
    else:
        _refuse_series(path, series)
        facts = describe(path)[0]
    if facts["blocking"]:
        raise InputError(facts["blocking"]["error"], facts["blocking"]["hint"])
    choose_frame(path, facts["frames"], frame)
    return facts


def index_dicom(
    path: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None
) -> Archive:
    """What an archive holds, by header; see :func:`medgen.io.dicom_index.index_dicom`."""
    from medgen.io import dicom_index

    return dicom_index.index_dicom(path, progress=progress)


def write_changed(
    path: str | os.PathLike[str],
    array: NDArray[Any],
    changed: NDArray[np.bool_],
    geometry: Geometry,
    *,
    like: Volume,
    description: str = "",
) -> Path:
    """Write a scan of which some voxels changed; see :func:`medgen.io.nifti.write_changed`."""
    from medgen.io import nifti

    return nifti.write_changed(
        Path(path), array, changed, geometry, like=like, description=description
    )


def write_nifti(
    path: str | os.PathLike[str],
    array: ArrayLike,
    geometry: Geometry,
    *,
    like: Volume | None = None,
    kind: Literal["image", "map", "label"] = "image",
    description: str = "",
    overwrite: bool = False,
) -> Path:
    """Write an array on a grid; see :func:`medgen.io.nifti.write_nifti`."""
    from medgen.io import nifti

    return nifti.write_nifti(
        Path(path), array, geometry, like=like, kind=kind, description=description,
        overwrite=overwrite,
    )  # fmt: skip


def write_dicom_series(
    folder: str | os.PathLike[str], volume: Volume, **options: Any
) -> list[Path]:
    """Write synthetic slices as DICOM; see :func:`medgen.io.dicom_series.write_dicom_series`."""
    from medgen.io import dicom_series

    return dicom_series.write_dicom_series(folder, volume, **options)


def _refuse_series(path: Path, series: str | None) -> None:
    if series is not None:
        raise InputError(f"--series chooses in DICOM, but {path} is not DICOM", "Leave it out.")


def _existing(path: str | os.PathLike[str]) -> Path:
    """The path, which is there, readable, and not empty."""
    path = Path(path)
    try:
        if path.is_dir():
            return path
        if not path.exists():
            raise InputError(f"there is no file or folder {path}", "Check the path.")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes)", "Copy or download it again.")
        with path.open("rb"):
            return path
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "Check the path.") from error


def _kind(path: Path) -> Literal["nifti", "raster", "dicom"]:
    """Which room reads it."""
    from medgen.io.dicom_files import looks_like_dicom
    from medgen.io.nifti import is_nifti
    from medgen.io.raster import raster_format

    if path.is_dir():
        return "dicom"
    with path.open("rb") as file:
        start = file.read(540)
    # DICOM comes first: its free first 128 bytes may pose as a TIFF.
    if start[128:132] == b"DICM" or start[:4] == b"PK\x03\x04":
        return "dicom"
    if raster_format(start):
        return "raster"
    zipped = start[:2] == b"\x1f\x8b"
    if is_nifti(_unzipped_start(path) if zipped else start):
        return "nifti"
    if path.suffix.lower() in (".dcm", ".ima") or looks_like_dicom(start):
        return "dicom"
    named = path.name.lower()
    if named.endswith((".nii", ".nii.gz")):
        raise InputError(
            f"{path} is named like NIfTI, but holds {_looks_like(start, zipped)}",
            "Copy, download or convert it again.",
        )
    raise InputError(
        f"{path} is not an image that can be read; expected {_FORMATS}",
        "Convert it to NIfTI first.",
    )


def _unzipped_start(path: Path) -> bytes:
    try:
        with gzip.open(path) as stream:
            return stream.read(540)
    except (OSError, EOFError, zlib.error):
        return b""


def _looks_like(start: bytes, zipped: bool) -> str:
    if zipped:
        return "gzipped data without a NIfTI header"
    if start.lstrip()[:1] == b"<":
        return "a web page or XML (a failed download?)"
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)
    return "text" if printable > 0.95 * len(start) else "something else"
