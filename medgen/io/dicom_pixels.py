"""The voxels of a stack: stored values decoded, cut to their stored bits, and made real ones.

Uncompressed pictures are read straight from their place in the file into the volume; everything
else goes through pydicom's decoders. Objects are read by a few threads at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, iter_pixels
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medgen.errors import InputError
from medgen.io.dicom_decoders import decode, lacking
from medgen.io.dicom_files import UNREADABLE, Instance, pixels_of, quiet
from medgen.io.dicom_slices import Slice
from medgen.io.dicom_values import real_values, stored_values

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
# Enough to keep a disk and a decoder busy; more only costs memory.
_THREADS = 4
_EXPORT_AGAIN = "Copy or export the series again."


@dataclass(frozen=True)
class Voxels:
    """The real-world values of one stack.

    Attributes:
        array: ``(C, columns, rows, slices)``, float32.
        padding: Where nothing was measured (``PixelPaddingValue`` of CT), without C; None if
            something was everywhere.
        limits: The smallest and the largest value.
    """

    array: NDArray[np.float32]
    padding: NDArray[np.bool_] | None
    limits: tuple[float, float]


def voxels_of(slices: Sequence[Slice], named: str) -> Voxels:
    """Read and decode one stack.

    Args:
        slices: In the order of the last axis, all of one size.
        named: What errors call the source.

    Raises:
        InputError: Pixels that are missing, damaged or cannot be decoded.
    """
    size = slices[0].size
    # Slice by slice in memory, so that each picture is written in one piece.
    shape = (_channels(slices[0], named), len(slices), size[1], size[0])
    try:
        pictures = np.empty(shape, np.float32)
        padding = np.zeros(shape[1:], bool) if _may_be_padded(slices) else None
    except MemoryError as error:
        raise InputError(
            f"{named} needs {4 * np.prod(shape, dtype=float) / 2**30:.1f} GiB of memory, more than "
            "there is", "Use a machine with more memory.",
        ) from error  # fmt: skip
    limits = np.empty((len(slices), 2))
    # Slices of one object are decoded one after the other, objects at the same time.
    objects: dict[Instance, list[int]] = {}
    for place, item in enumerate(slices):
        objects.setdefault(item.instance, []).append(place)

    def fill(instance: Instance, places: list[int]) -> None:
        with _explained(instance, named):
            stored = _stored(instance, [slices[place] for place in places], named)
            for place, (picture, header) in zip(places, stored, strict=True):
                out = pictures[:, place]
                if picture.ndim == 3:
                    out[...] = picture.transpose(2, 0, 1)
                else:
                    missing = real_values(picture, slices[place], header, out[0])
                    if padding is not None and missing is not None:
                        padding[place] = missing
                limits[place] = out.min(), out.max()

    with quiet(), ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        for done in [threads.submit(fill, *entry) for entry in objects.items()]:
            done.result()
    return Voxels(
        pictures.transpose(0, 3, 2, 1),
        padding.T if padding is not None and padding.any() else None,
        (float(limits[:, 0].min()), float(limits[:, 1].max())),
    )


def _channels(item: Slice, named: str) -> int:
    """1 for grey values, 3 for colour: of a first picture, which also proves its size."""
    with quiet(), _explained(item.instance, named):
        picture, _ = next(_stored(item.instance, [item], named))
    return 1 if picture.ndim == 2 else int(picture.shape[2])


def _may_be_padded(slices: Sequence[Slice]) -> bool:
    return any(
        s.instance.header.get("Modality") == "CT" and "PixelPaddingValue" in s.instance.header
        for s in slices
    )


@contextmanager
def _explained(instance: Instance, named: str) -> Iterator[None]:
    """What a decoder raises, as an error about the object."""
    try:
        yield
    except UNREADABLE as error:
        raise _broken(named, instance) from error


def _stored(
    instance: Instance, items: Sequence[Slice], named: str
) -> Iterator[tuple[NDArray[Any], Dataset]]:
    """Stored values of each slice, or colours ``(rows, columns, 3)``; and what explains them."""
    if not instance.has_pixels:
        raise without_pixels(instance, named)
    plain = _plain(instance)
    if plain is None:
        yield from _decoded(instance, items, named)
        return
    for stored in _read_plain(instance, items, plain):
        yield stored_values(stored, instance.header), instance.header


def _plain(instance: Instance) -> tuple[int, np.dtype[Any]] | None:
    """Where uncompressed grey values begin in the object, and their type; None for all others."""
    header, syntax = instance.header, instance.transfer_syntax
    bits = int(header.get("BitsAllocated") or 0)
    grey = str(header.get("PhotometricInterpretation") or "").startswith("MONOCHROME")
    samples = int(header.get("SamplesPerPixel") or 1)
    if syntax not in _PLAIN or instance.pixels_at is None or bits not in (8, 16, 32) or not grey:
        return None
    if samples != 1 or (bits == 8 and syntax == ExplicitVRBigEndian):
        return None
    kind = ("i" if header.get("PixelRepresentation") else "u") + str(bits // 8)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    return (8 if syntax == ImplicitVRLittleEndian else 12), np.dtype(order + kind)


def _read_plain(
    instance: Instance, items: Sequence[Slice], plain: tuple[int, np.dtype[Any]]
) -> Iterator[NDArray[Any]]:
    """Stored values of uncompressed frames, read from their place.

    Raises:
        ValueError: The pixels are of another kind, or end early.
    """
    head, kind = plain
    rows, columns = int(instance.header.Rows), int(instance.header.Columns)
    assert instance.pixels_at is not None
    with instance.open() as stream:
        stream.seek(instance.pixels_at)
        start = stream.read(head)
        big = kind.byteorder == ">"
        tag = b"\x7f\xe0\0\x10" if big else b"\xe0\x7f\x10\0"
        length = int.from_bytes(start[-4:], "big" if big else "little")
        size = rows * columns * kind.itemsize
        if start[:4] != tag or (head == 12 and start[4:6] not in (b"OW", b"OB")):
            raise ValueError("pixels of another kind")
        if length != 0xFFFFFFFF and length < size * instance.frames:
            raise ValueError("fewer pixels than rows and columns")
        whole: tuple[int, NDArray[Any]] | None = None
        for item in items:
            if whole is None or whole[0] != item.number:
                stream.seek(instance.pixels_at + head + size * item.number)
                data = stream.read(size)
                if len(data) < size:
                    raise ValueError("pixels end early")
                whole = item.number, np.frombuffer(data, kind).reshape(rows, columns)
            yield _tile(whole[1], item)


def _tile(picture: NDArray[Any], item: Slice) -> NDArray[Any]:
    """The part of a frame that a slice is: all of it, but in a mosaic."""
    row, column = item.tile
    return picture[row : row + item.size[1], column : column + item.size[0]]


def _decoded(
    instance: Instance, items: Sequence[Slice], named: str
) -> Iterator[tuple[NDArray[Any], Dataset]]:
    """Frames that pydicom decodes."""
    dataset = pixels_of(instance)
    if not any(keyword in dataset for keyword in _PIXELS):
        raise without_pixels(instance, named)
    palette = str(dataset.get("PhotometricInterpretation", "")) == "PALETTE COLOR"
    syntax = UID(instance.transfer_syntax)
    native = not (syntax.is_transfer_syntax and syntax.is_compressed)
    indices = sorted({item.number for item in items})
    decoded = iter_pixels(dataset, indices=indices) if native else decode(dataset, indices)
    frames = dict(zip(indices, decoded, strict=True))
    for item in items:
        stored = _tile(frames[item.number], item)
        if palette:
            stored = apply_color_lut(stored, dataset)
        elif native and stored.ndim == 2:  # decoders of compressed pixels know which bits count
            stored = stored_values(stored, dataset)
        yield stored, dataset


def without_pixels(instance: Instance, named: str) -> InputError:
    """The error for an object that is a header only."""
    return InputError(
        f"{named}: {instance} has no pixel data", "Export the series again, with its images."
    )


def _broken(named: str, instance: Instance) -> InputError:
    """The error for pixels that cannot be decoded; says what each decoder lacks."""
    syntax = UID(instance.transfer_syntax)
    if not syntax.is_transfer_syntax or not syntax.is_compressed:
        return InputError(
            f"{named}: the pixel data of {instance} is damaged or incomplete", _EXPORT_AGAIN
        )
    absent = lacking(syntax)
    if absent:
        return InputError(
            f"{named}: the pixel data of {instance} cannot be decoded: no decoder is installed for "
            f"{syntax.name} ({absent}), or it is damaged",
            'Add decoders: pip install "medgen[codecs]"; or export the series again, uncompressed.',
        )
    return InputError(
        f"{named}: the pixel data of {instance} cannot be decoded: it is damaged, or of a kind of "
        f"{syntax.name} that no decoder knows",
        "Export the series again, uncompressed.",
    )
