"""Plain pictures: PNG, JPEG and TIFF; grey, RGB, 8 and 16 bit.

A picture says nothing about the patient. It is laid out as a radiologist sees an axial slice:
array axis 0 runs along the picture from left to right, which is the patient's left (L), axis 1
from top to bottom, which is the patient's back (P), and a pixel is 1 mm. So ``voxels[c, x, y]`` is
the pixel in column ``x`` and row ``y``, and results saved as NIfTI look like the picture in a
viewer that follows the radiological convention. ``details["raster"]["spacing_known"]`` is False.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError, MedgenError
from medgen.io.values import blocking, choose_frame, refuse_unusable
from medgen.volume import Geometry, Provenance, Volume

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 2**27  # 134 million: 11600 x 11600; a small file can hide a far larger picture
PICTURE_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"II*\0": "tiff", b"MM\0*": "tiff",
    b"II+\0": "tiff", b"MM\0+": "tiff",
}  # fmt: skip
_DTYPES = {"1": "uint8", "L": "uint8", "P": "uint8", "I;16": "uint16", "I": "int32", "F": "float32"}


def raster_format(start: bytes) -> str | None:
    """``png``, ``jpeg`` or ``tiff`` by the first bytes of a file, else None."""
    return next((kind for mark, kind in _SIGNATURES.items() if start.startswith(mark)), None)


def read_raster(path: Path, *, frame: int | None = None, allow_constant: bool = False) -> Volume:
    """Read one picture.

    Args:
        path: A PNG, JPEG or TIFF file.
        frame: Which page of a TIFF of several, counted from 0.
        allow_constant: Whether a picture of one value only is fine (masks).

    Returns:
        Voxels ``(1, X, Y)`` or, for colour, ``(3, X, Y)`` in the stored type (uint8, uint16,
        float32, ...). Transparency is dropped; a palette becomes the colours it stands for.

    Raises:
        InputError: Damaged, huge, of several pages without ``frame``, CMYK, or constant.
    """
    with _opened(path) as image:
        pages = int(getattr(image, "n_frames", 1))
        chosen = choose_frame(path, pages, frame)
        if chosen:
            image.seek(chosen)
        _refuse_huge(image, path)
        if _is_deep_colour(path, image):
            pixels = _deep_colour(path, chosen)
        else:
            pixels = _pixels(image, path)
        kind = str(image.format).lower()
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    # (rows, columns, C) to (C, X, Y)
    voxels = np.ascontiguousarray(pixels.transpose(2, 1, 0))
    refuse_unusable(voxels, path, allow_constant=allow_constant)
    details = {"raster": {"spacing_known": False}}
    provenance = Provenance(sources=(str(path),), format=kind, details=details)
    return Volume(voxels, Geometry(voxels.shape[1:], PICTURE_AFFINE), provenance)


def describe_raster(path: Path) -> dict[str, Any]:
    """Header facts without decoding pixels (see :func:`medgen.io.describe`)."""
    problems: list[str] = []
    stopped = None
    with _opened(path) as image:
        deep = _is_deep_colour(path, image)
        try:
            _refuse_huge(image, path)
        except InputError as error:
            problems.append(error.message)
            stopped = blocking(error)
        colour = deep or image.mode not in ("1", "L", "LA", "I", "F", "I;16", "I;16B")
        return {
            "path": str(path), "kind": str(image.format).lower(), "modality": None,
            "shape": _upright(image), "channels": 3 if colour else 1,
            "frames": int(getattr(image, "n_frames", 1)),
            "dtype": "uint16" if deep else _DTYPES.get(image.mode, "uint8"),
            "spacing_mm": None, "orientation": None, "series_number": None, "series_uid": None,
            "transfer_syntax": None, "problems": problems, "blocking": stopped,
        }  # fmt: skip


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """The picture, header read only; damage becomes an InputError."""
    import PIL.Image

    try:
        with warnings.catch_warnings():
            # Our own limit says the same with advice, and as an error.
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
                yield image
    except MedgenError:
        raise
    except PIL.Image.DecompressionBombError as error:
        raise InputError(f"{path} is too large: {error}", _HUGE_HINT) from error
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is damaged or incomplete: {error}", "Copy or export the picture again."
        ) from error


_HUGE_HINT = "Cut it into tiles, or save it smaller."


def _refuse_huge(image: Image, path: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"{path} is too large: {image.width} x {image.height} pixels; "
            f"at most {MAX_PIXELS / 1e6:.0f} million are read",
            _HUGE_HINT,
        )


def _upright(image: Image) -> tuple[int, int]:
    """(width, height) as displayed: cameras store a quarter turn as a note only."""
    turned = image.getexif().get(0x0112, 1) >= 5
    return (image.height, image.width) if turned else (image.width, image.height)


def _pixels(image: Image, path: Path) -> NDArray[Any]:
    """``(rows, columns)`` or ``(rows, columns, 3)``, the right way up."""
    import PIL.ImageOps

    image = PIL.ImageOps.exif_transpose(image)
    if image.mode in ("P", "PA"):
        image = image.convert("RGB")
        pixels = np.asarray(image)
        grey = (pixels == pixels[..., :1]).all()
        return pixels[..., 0] if grey else pixels
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in ("LA", "RGBA", "RGBX"):
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if image.mode not in ("L", "I", "F", "RGB") and not image.mode.startswith("I;16"):
        raise InputError(
            f"{path} must be grey or RGB, but its colours are {image.mode}",
            "Save it as grey or RGB, and try again.",
        )
    pixels = np.asarray(image)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _is_deep_colour(path: Path, image: Image) -> bool:
    """True for colour with 16 bits a channel, which Pillow would quietly cut to 8."""
    if image.format == "PNG":
        with path.open("rb") as file:
            header = file.read(26)
        return header[24] == 16 and header[25] in (2, 6)
    bits = image.tag_v2.get(258, (8,)) if image.format == "TIFF" else (8,)  # type: ignore[attr-defined]
    return image.mode.startswith("RGB") and max(bits) > 8


def _deep_colour(path: Path, page: int) -> NDArray[Any]:
    """``(rows, columns, 3)`` uint16, read with SimpleITK."""
    import SimpleITK as sitk

    try:
        pixels = np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))[..., :3]
        return pixels[page] if pixels.ndim == 4 else pixels
    except RuntimeError as error:
        raise InputError(
            f"{path} is damaged or incomplete", "Copy or export the picture again."
        ) from error
