"""The voxels of a stack: stored values decoded, cut to their stored bits, and made real ones.

Uncompressed pictures are read straight from their place in the file into the volume; everything
else goes through pydicom's decoders. Objects are read by a few threads at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels import apply_color_lut, iter_pixels
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medgen.errors import InputError
from medgen.io.dicom_files import UNREADABLE, Instance, pixels_of, quiet
from medgen.io.dicom_slices import Slice
from medgen.io.dicom_values import real_values, stored_values

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
# Enough to keep a disk and a decoder busy; more only costs memory.
_THREADS = 4
_EXPORT_AGAIN = "Copy or export the series again."


def voxels_of(
    slices: Sequence[Slice], named: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Real-world values of one stack.

    Args:
        slices: In the order of the last axis, all of one size.
        named: What errors call the source.

    Returns:
        Voxels ``(C, columns, rows, slices)``, and where there are none (``PixelPaddingValue`` of
        CT), of the same shape without C, or None.

    Raises:
        InputError: Pixels that are missing, damaged or cannot be decoded.
    """
    first = slices[0]
    stack: dict[str, NDArray[Any]] = {}
    # Slices of one object are decoded one after the other, objects at the same time.
    objects: dict[Instance, list[int]] = {}
    for place, item in enumerate(slices):
        objects.setdefault(item.instance, []).append(place)

    def channels(count: int) -> NDArray[np.float32]:
        # Slice by slice in memory, so that each picture is written in one piece.
        shape = (count, len(slices), first.size[1], first.size[0])
        return np.empty(shape, np.float32).transpose(0, 3, 2, 1)

    def fill(instance: Instance, places: list[int]) -> None:
        items = [slices[place] for place in places]
        for place, (picture, padding) in zip(
            places, _pictures(instance, items, named), strict=True
        ):
            if picture.ndim == 2:
                stack["voxels"][0, :, :, place] = picture.T
            else:
                stack["voxels"][..., place] = picture.transpose(2, 1, 0)
            if padding is not None:
                stack["padding"][..., place] = padding.T

    work = iter(objects.items())
    instance, places = next(work)
    colours = _channels(instance, [slices[place] for place in places[:1]], named)
    stack["voxels"] = channels(colours)
    if _may_be_padded(slices):
        stack["padding"] = np.zeros(stack["voxels"].shape[1:], bool, order="F")
    fill(instance, places)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        for done in [threads.submit(fill, *entry) for entry in work]:
            done.result()
    padding = stack.get("padding")
    return stack["voxels"], padding if padding is not None and padding.any() else None


def _channels(instance: Instance, items: list[Slice], named: str) -> int:
    """1 for grey values, 3 for colour."""
    if int(instance.header.get("SamplesPerPixel") or 1) == 1 and _plain(instance) is not None:
        return 1
    picture, _ = next(_pictures(instance, items, named))
    return 1 if picture.ndim == 2 else int(picture.shape[2])


def _may_be_padded(slices: Sequence[Slice]) -> bool:
    return any(
        s.instance.header.get("Modality") == "CT" and "PixelPaddingValue" in s.instance.header
        for s in slices
    )


Picture = tuple[NDArray[Any], NDArray[np.bool_] | None]


def _pictures(instance: Instance, items: Sequence[Slice], named: str) -> Iterator[Picture]:
    """Each slice ``(rows, columns)`` or ``(rows, columns, 3)`` in real units, and its padding."""
    if not instance.has_pixels:
        raise without_pixels(instance, named)
    plain = _plain(instance)
    try:
        if plain is not None:
            for item, stored in zip(items, _read_plain(instance, items, plain), strict=True):
                yield real_values(stored_values(stored, instance.header), item, instance.header)
            return
        with quiet():
            yield from _decoded(instance, items, named)
    except UNREADABLE as error:
        raise _broken(named, instance) from error


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


def _decoded(instance: Instance, items: Sequence[Slice], named: str) -> Iterator[Picture]:
    """Frames that pydicom decodes."""
    dataset = pixels_of(instance)
    if not any(keyword in dataset for keyword in _PIXELS):
        raise without_pixels(instance, named)
    colour = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    encapsulated = UID(instance.transfer_syntax or "")
    native = not (encapsulated.is_transfer_syntax and encapsulated.is_compressed)
    indices = sorted({item.number for item in items})
    frames = dict(zip(indices, iter_pixels(dataset, indices=indices), strict=True))
    for item in items:
        stored = _tile(frames[item.number], item)
        if colour == "PALETTE COLOR":
            stored = apply_color_lut(stored, dataset)
        if stored.ndim == 3:
            yield stored, None
            continue
        if native:
            stored = stored_values(stored, dataset)
        yield real_values(stored, item, dataset)


def without_pixels(instance: Instance, named: str) -> InputError:
    """The error for an object that is a header only."""
    return InputError(
        f"{named}: {instance} has no pixel data", "Export the series again, with its images."
    )


def _broken(named: str, instance: Instance) -> InputError:
    """The error for pixels that cannot be decoded; says what each decoder lacks."""
    syntax = UID(instance.transfer_syntax or "")
    if not syntax.is_transfer_syntax or not syntax.is_compressed:
        return InputError(
            f"{named}: the pixel data of {instance} is damaged or incomplete", _EXPORT_AGAIN
        )
    lacking = _lacking(syntax)
    if lacking:
        return InputError(
            f"{named}: the pixel data of {instance} cannot be decoded: no decoder is installed for "
            f"{syntax.name} ({lacking}), or it is damaged",
            'Add decoders: pip install "medgen[codecs]"; or export the series again, uncompressed.',
        )
    return InputError(
        f"{named}: the pixel data of {instance} cannot be decoded: it is damaged, or of a kind of "
        f"{syntax.name} that no decoder knows",
        "Export the series again, uncompressed.",
    )


def _lacking(syntax: UID) -> str:
    """What the decoders of a transfer syntax lack, if none of them is there."""
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return "pydicom knows none"
    return "" if decoder.is_available else "; ".join(decoder.missing_dependencies)
