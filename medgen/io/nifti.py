"""NIfTI-1 and NIfTI-2, single file, gzipped or not.

The affine is the sform if its code is set, else the qform, in millimetres. A file in which both
codes are 0 does not say where its voxels are and is refused: assuming an identity affine would
silently mirror or misplace every result.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import IOBase
from pathlib import Path
from typing import Any, Literal, cast

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike, NDArray

from medgen.errors import GeometryError, InputError, MedgenError
from medgen.io.files import atomic_path
from medgen.io.values import blocking, choose_frame, refuse_unusable
from medgen.volume import GRID_TOLERANCE_MM, Geometry, Provenance, Volume

# Deflate cannot shrink data by more than this; a header that promises more is damaged or hostile.
_MAX_GZIP_RATIO = 1032
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, metre, millimetre, micrometre
_UNIT_CODE = {1000.0: 1, 1.0: 2, 0.001: 3}
_INTENTS = {"image": "none", "map": "estimate", "label": "label"}  # codes 0, 1001, 1002
_DAMAGED = (
    OSError, EOFError, ValueError, TypeError, OverflowError, zlib.error, HeaderDataError,
    ImageFileError,
)  # fmt: skip
_REPAIR = "Repair the header with the tool that wrote the file, or convert the scan again."


def is_nifti(start: bytes) -> bool:
    """True if the first 348 bytes (not gzipped) are those of a single-file NIfTI-1 or -2."""
    return start[344:348] == b"n+1\0" or start[4:8] == b"n+2\0"


def read_nifti(path: Path, *, frame: int | None = None, allow_constant: bool = False) -> Volume:
    """Read one image.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file; the content decides, not the ending.
        frame: Which volume of a 4-D file, counted from 0.
        allow_constant: Whether an image of one value only is fine (masks).

    Returns:
        Voxels ``(1, X, Y, Z)``, or ``(1, X, Y)`` for a single slice, ``(3, ...)`` for RGB; float32,
        or the stored integer type if the file has no scale factor.

    Raises:
        InputError: Damaged file, 4-D without ``frame``, NaN, infinite or constant voxels.
        GeometryError: No affine, or one that is singular.
    """
    with _opened(path) as (image, stream):
        sizes = _sizes(image, path)
        affine, details = _affine(image, len(sizes.space), path)
        geometry = Geometry(sizes.space, affine)
        _refuse_short(image, path)
        chosen = choose_frame(path, sizes.frames, frame)
        voxels = _voxels(image, sizes.stored, chosen)
        if sizes.frames == 1:
            # The checksum stands at the end: only now do we know that the bytes are the right ones.
            stream.read(1 << 20)
    if voxels.dtype.names:  # RGB(A) triplets become channels
        voxels = np.stack([voxels[name] for name in voxels.dtype.names[:3]])
    else:
        voxels = voxels[None]
    voxels = np.ascontiguousarray(voxels.reshape(voxels.shape[0], *sizes.space))
    refuse_unusable(voxels, path, allow_constant=allow_constant)
    details["stored_shape"] = sizes.stored[:3]
    details["frame"] = chosen
    provenance = Provenance(sources=(str(path),), format="nifti", details={"nifti": details})
    return Volume(voxels, geometry, provenance)


def describe_nifti(path: Path) -> dict[str, Any]:
    """Header facts without reading voxels (see :func:`medgen.io.describe`)."""
    problems: list[str] = []
    stopped = None
    with _opened(path) as (image, _):
        sizes = _sizes(image, path)
        facts: dict[str, Any] = {
            "path": str(path), "kind": "nifti", "modality": None, "shape": sizes.space,
            "channels": 3 if image.get_data_dtype().names else 1, "frames": sizes.frames,
            "dtype": str(image.get_data_dtype()), "spacing_mm": None, "orientation": None,
            "series_number": None, "series_uid": None, "transfer_syntax": None,
        }  # fmt: skip
        try:
            affine, details = _affine(image, len(sizes.space), path)
            geometry = Geometry(sizes.space, affine)
            facts["spacing_mm"] = geometry.spacing_mm
            facts["orientation"] = geometry.axis_codes
            problems += _form_problems(image, geometry, details)
            _refuse_short(image, path)
        except InputError as error:
            problems.append(error.message)
            stopped = blocking(error)
    return facts | {"problems": problems, "blocking": stopped}


def write_nifti(
    path: str | Path,
    array: ArrayLike,
    geometry: Geometry,
    *,
    like: Volume | None = None,
    kind: Literal["image", "map", "label"] = "image",
    description: str = "",
    overwrite: bool = False,
) -> Path:
    """Write one array on a grid, and check by reading the header again that it lies there.

    Both sform and qform are written, with the codes of ``like``. The qform cannot hold shear, and
    holds some rotations with less precision than 1e-4 mm; then its code is 0, which tells readers
    to use the sform.

    Args:
        path: File ending in ``.nii`` or ``.nii.gz``.
        array: ``(X, Y, Z)`` or ``(X, Y)``, the shape of ``geometry``.
        geometry: Where the voxels are.
        like: The input it belongs to; form codes, unit and a trailing axis of size 1 are kept.
        kind: ``map`` is stored as float32 with intent 1001 (estimate), ``label`` as the smallest
            unsigned integer with intent 1002, ``image`` keeps integers and is otherwise float32.
        description: Of at most 79 bytes, for the header.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The path.

    Raises:
        GeometryError: If the array does not fit the grid, or the file would misplace a voxel.
        InputError: If the file exists or cannot be written.
    """
    target = Path(path)
    if not target.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"a NIfTI file must end in .nii or .nii.gz, got {target.name}")
    voxels = _storable(np.asarray(array), kind)
    if voxels.shape != geometry.shape:
        raise GeometryError(f"the array {voxels.shape} does not fit the grid {geometry.shape}")
    details = dict(like.provenance.details.get("nifti", {})) if like is not None else {}
    if len(details.get("stored_shape", ())) == 3 and voxels.ndim == 2:
        voxels = voxels[..., None]
    scale = details.get("mm_per_unit", 1.0)
    affine = geometry.affine.copy()
    affine[:3] /= scale
    image = _new_image(voxels, affine)
    image.header.set_xyzt_units(_UNIT_CODE[scale])
    image.header.set_intent(_INTENTS[kind])
    image.header["descrip"] = description.encode()[:79]
    sform, qform = details.get("codes", (1, 1) if like is not None else (2, 2))
    image.set_sform(affine, code=sform or qform)
    image.set_qform(affine, code=qform or sform, strip_shears=True)
    if not _near(geometry, image.get_qform() * _rows(scale)):
        image.header["qform_code"] = 0
    with atomic_path(target, overwrite) as temporary:
        nib.save(image, temporary)
        with _opened(temporary) as (written, _):
            again = written.affine * _rows(scale)
            if written.shape != voxels.shape or not _near(geometry, again):
                raise GeometryError(
                    f"{target} would misplace voxels: the grid is\n{geometry.affine}\n"
                    f"but NIfTI can only store\n{again}",
                    "Move the origin nearer to the scan: NIfTI stores about seven digits.",
                )
    return target


def write_changed(
    path: str | Path,
    array: NDArray[Any],
    changed: NDArray[np.bool_],
    geometry: Geometry,
    *,
    like: Volume,
    description: str = "",
) -> Path:
    """Write a scan of which some voxels were changed; the others are stored as in its own file.

    Reading rounds float64 and scaled integers to float32. Here such voxels are taken from the file
    again, and the scan's number type and scale factor are kept: every program reads the same
    values from both files. If the file is not what was read, or needs no such care, the array is
    written as :func:`write_nifti` does.

    Args:
        path: File ending in ``.nii`` or ``.nii.gz``.
        array: ``(X, Y, Z)`` or ``(X, Y)``, the shape of ``geometry``.
        changed: Where it differs from ``like``, of the same shape.
        geometry: Where the voxels are.
        like: The scan as read.
        description: Of at most 79 bytes, for the header.
    """
    target = write_nifti(path, array, geometry, like=like, description=description)
    exact = _as_stored(array, changed, like)
    if exact is None:
        return target
    stored, slope, intercept = exact
    with _opened(target) as (image, _):
        header = image.header.copy()
    header.set_data_dtype(stored.dtype)
    again = _new_image(stored.reshape(header.get_data_shape()), header.get_best_affine(), header)
    again.header.set_slope_inter(slope, intercept)
    with atomic_path(target, True) as temporary:
        nib.save(again, temporary)
    return target


def _as_stored(
    array: NDArray[Any], changed: NDArray[np.bool_], like: Volume
) -> tuple[NDArray[Any], float, float] | None:
    """The numbers of the scan's file with the changed ones replaced, slope and intercept."""
    frame = like.provenance.details.get("nifti", {}).get("frame")
    scan = like.voxels[0]
    if frame is None or len(like.provenance.sources) != 1 or array.shape != scan.shape:
        return None
    if not np.array_equal(array[~changed], scan[~changed]):  # more than the filling was changed
        return None
    try:
        with _opened(Path(like.provenance.sources[0])) as (image, _):
            dtype, slope, intercept = (
                image.get_data_dtype(), image.dataobj.slope, image.dataobj.inter,
            )  # fmt: skip
            plain = (slope, intercept) == (1, 0)
            if dtype.kind not in "iuf" or (plain and dtype != np.float64):
                return None
            sizes = _sizes(image, Path(like.provenance.sources[0]))
            read = _voxels(image, sizes.stored, frame).reshape(sizes.space)
            if not np.array_equal(read, scan):
                return None
            pick = (..., frame) if len(sizes.stored) == 4 else ...
            stored = image.dataobj.get_unscaled().reshape(sizes.stored)[pick]
    except InputError:  # it is gone
        return None
    stored = np.array(stored.reshape(sizes.space), dtype=dtype.newbyteorder("="))
    values = (array[changed].astype(np.float64) - intercept) / slope
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.rint(values).clip(limits.min, limits.max)
    stored[changed] = values.astype(stored.dtype)
    return stored, float(slope), float(intercept)


class _Sizes:
    """What the sizes in a header mean.

    Attributes:
        stored: Sizes as stored, without trailing ones beyond the third.
        space: Spatial sizes, two of them if the file holds one slice.
        frames: Volumes in the file.
    """

    def __init__(self, stored: tuple[int, ...]) -> None:
        while len(stored) > 3 and stored[-1] == 1:
            stored = stored[:-1]
        self.stored = stored
        space = stored[:3]
        self.space = space[:2] if len(space) == 3 and space[2] == 1 else space
        self.frames = stored[3] if len(stored) == 4 else 1


def _sizes(image: Any, path: Path) -> _Sizes:
    stored = tuple(int(size) for size in image.shape)
    if len(stored) < 2 or min(stored) < 1:
        raise InputError(f"{path} must hold a 2-D, 3-D or 4-D image, but its shape is {stored}")
    sizes = _Sizes(stored)
    if len(sizes.stored) > 4:
        raise InputError(
            f"{path} has {len(sizes.stored)} dimensions {sizes.stored}; "
            "at most four (three of space, one of time) can be read",
            "Extract one image from it, for example with nibabel or fslroi.",
        )
    return sizes


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, IOBase]]:
    """The image (voxels not yet read) and its stream; damage becomes an InputError."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = cast(IOBase, gzip.GzipFile(fileobj=raw) if zipped else raw)
            start = stream.read(540)
            if not is_nifti(start):
                raise InputError(f"{path} is not a NIfTI file")
            stream.seek(0)
            kind = nib.Nifti1Image if start[344:348] == b"n+1\0" else nib.Nifti2Image
            yield kind.from_stream(stream), stream
    except MedgenError:
        raise
    except _DAMAGED as error:
        raise InputError(
            f"{path} is damaged or incomplete: {_first_line(error)}",
            "Copy or download it again, or convert the scan again.",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _refuse_short(image: Any, path: Path) -> None:
    """Raise if the file is too small for what its header promises, before memory is taken."""
    header = image.header
    needed = int(np.prod(image.shape, dtype=np.float64)) * header.get_data_dtype().itemsize
    with path.open("rb") as raw:
        ratio = _MAX_GZIP_RATIO if raw.read(2) == b"\x1f\x8b" else 1
    have = path.stat().st_size * ratio - (int(header["vox_offset"]) if ratio == 1 else 0)
    if needed > have:
        raise InputError(
            f"{path} is damaged or incomplete: its header promises {needed} bytes of voxels "
            f"{image.shape}, and the file has only {path.stat().st_size}",
            "Copy or download it again, or convert the scan again.",
        )


def _voxels(image: Any, stored: tuple[int, ...], frame: int) -> NDArray[Any]:
    """One volume as stored integers, float32, or RGB triplets."""
    dtype = image.get_data_dtype()
    if dtype.kind == "c":
        raise InputError("complex voxels cannot be read", "Save the magnitude, and use that.")
    proxy = image.dataobj
    pick = (..., frame, *(0,) * (len(image.shape) - 4)) if len(stored) == 4 else ...
    slope, intercept = proxy.slope, proxy.inter
    if dtype.names or (dtype.kind in "iu" and (slope, intercept) == (1, 0)):
        voxels = np.asanyarray(proxy.get_unscaled() if pick is ... else proxy[pick])
        return voxels.astype(dtype.newbyteorder("="), copy=False)
    # float32 holds the values well enough, but slope x value is rounded only once, at the end.
    return np.asarray(proxy[pick], dtype=np.float32)


def _affine(image: Any, dims: int, path: Path) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Voxel to RAS+ mm, and what a writer needs to write the same header."""
    header = image.header
    codes = (int(header["sform_code"]), int(header["qform_code"]))
    if codes == (0, 0):
        raise GeometryError(
            f"{path} does not say where its voxels are: its sform and qform codes are both 0",
            "Set one with the tool that wrote the file (or nibabel's set_sform), then try again.",
        )
    scale = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    affine = np.array(header.get_best_affine(), dtype=np.float64) * _rows(scale)
    if dims == 2 and np.isfinite(affine).all():
        affine = _with_normal(affine)
    return affine, {"codes": codes, "mm_per_unit": scale}


def _with_normal(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """A flat image often leaves its third axis empty; let it be the plane's normal, 1 mm long."""
    if np.linalg.norm(affine[:3, 2]) > 0:
        return affine
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    length = np.linalg.norm(normal)
    affine = affine.copy()
    affine[:3, 2] = normal / length if length else 0
    return affine


def _form_problems(image: Any, geometry: Geometry, details: dict[str, Any]) -> list[str]:
    """Things to know about a readable header."""
    problems = []
    if all(details["codes"]):
        # Tools differ in which one they believe; more than a tenth of a voxel matters.
        qform = image.get_qform() * _rows(details["mm_per_unit"])
        qform[:3, 2] = geometry.affine[:3, 2] if geometry.spatial_dims == 2 else qform[:3, 2]
        distance = _distance(geometry, qform)
        if distance > 0.1 * min(geometry.spacing_mm):
            problems.append(
                f"sform and qform disagree by up to {distance:.2g} mm; the sform is used"
            )
    return problems


def _rows(scale: float) -> NDArray[np.float64]:
    """Multiplies the first three rows of an affine by ``scale``."""
    return np.array([[scale]] * 3 + [[1.0]])


def _distance(geometry: Geometry, affine: NDArray[np.float64]) -> float:
    """Largest difference (mm) of any voxel's position under the two affines."""
    if not np.isfinite(affine).all():
        return float("inf")
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in geometry.shape])).reshape(
        geometry.spatial_dims, -1
    )
    change = affine[:3] - geometry.affine[:3]
    moved = change[:, : geometry.spatial_dims] @ corners + change[:, 3:]
    return float(np.abs(moved).max())


def _near(geometry: Geometry, affine: NDArray[np.float64]) -> bool:
    """Same grid within the tolerance, or within what float32 can say so far from the origin."""
    far = np.abs(geometry.affine[:3]).max() + np.abs(geometry.to_world(geometry.shape)).max()
    return _distance(geometry, affine) <= max(GRID_TOLERANCE_MM, np.finfo(np.float32).eps * far)


def _storable(voxels: NDArray[Any], kind: str) -> NDArray[Any]:
    """The array in the type in which its kind is stored."""
    if kind not in _INTENTS:
        raise ValueError(f"kind must be image, map or label, got {kind!r}")
    if kind == "label":
        if voxels.size and voxels.min() < 0:
            raise ValueError("labels must not be negative")
        smallest = np.min_scalar_type(int(voxels.max(initial=0)))
        return voxels.astype(smallest)
    if kind == "map" or voxels.dtype.kind not in "iu":
        voxels = voxels.astype(np.float32)
        wrong = int((~np.isfinite(voxels)).sum())
        if wrong:
            raise MedgenError(f"the result holds {wrong} voxels that are not numbers")
        return voxels
    # Widely read types only: many programs refuse 64-bit integers.
    return voxels.astype(np.int32) if voxels.dtype.itemsize > 4 else voxels


def _new_image(voxels: NDArray[Any], affine: NDArray[np.float64], header: Any = None) -> Any:
    """NIfTI-1, or NIfTI-2 for an axis longer than 32767 voxels."""
    kind = nib.Nifti1Image if max(voxels.shape) <= np.iinfo(np.int16).max else nib.Nifti2Image
    return kind(voxels, affine, header, dtype=voxels.dtype)
