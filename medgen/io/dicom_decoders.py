"""Decoding compressed pictures without letting a damaged one end the process.

pydicom's decoders come first, but not its GDCM plugin: GDCM's Python binding aborts the whole
process on some damaged streams. What is left (lossless JPEG, JPEG of 12 bits) is decoded by the
GDCM inside SimpleITK, which raises instead; it sees the pixels and nothing else of an object.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder, iter_pixels
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from medgen.io.dicom_codestream import refuse_false_sizes
from medgen.io.dicom_files import UNREADABLE

_SIMPLEITK = (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEG2000, JPEG2000Lossless)
# Grey, and colours that are RGB once decoded (PS3.5 8.2.4).
_CONVERTED = ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_RCT", "YBR_ICT")
_PIXEL_KEYWORDS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip


def decode(dataset: Dataset, indices: Sequence[int]) -> list[NDArray[Any]]:
    """Frames of an object with encapsulated pixels.

    Args:
        dataset: The object.
        indices: Which frames, from 0, ascending.

    Returns:
        ``(rows, columns)`` each, or ``(rows, columns, 3)`` in RGB.

    Raises:
        ValueError: No decoder for the transfer syntax, or the pixels are damaged.
        RuntimeError: The same, as decoders say it.
    """
    refuse_false_sizes(dataset, indices)
    syntax = dataset.file_meta.TransferSyntaxUID
    failure: Exception = ValueError("no decoder")
    for plugin in safe_plugins(syntax):
        try:
            return list(iter_pixels(dataset, indices=indices, decoding_plugin=plugin))
        except UNREADABLE as error:
            failure = error
    if syntax in _SIMPLEITK:
        return list(_with_simpleitk(dataset, set(indices)))
    raise failure


def safe_plugins(syntax: UID) -> list[str]:
    """Pydicom's decoders that are installed and survive damage."""
    try:
        return [name for name in get_decoder(syntax).available_plugins if name != "gdcm"]
    except NotImplementedError:
        return []


def lacking(syntax: UID) -> str:
    """What the decoders of a transfer syntax lack, if none of them is there."""
    if safe_plugins(syntax) or syntax in _SIMPLEITK:
        return ""
    try:
        return "; ".join(get_decoder(syntax).missing_dependencies) or "pydicom knows none"
    except NotImplementedError:
        return "pydicom knows none"


def _with_simpleitk(dataset: Dataset, indices: set[int]) -> Iterator[NDArray[Any]]:
    """The same by SimpleITK, which reads files: one with a single frame and nothing about a person.

    Raises:
        ValueError: Colours that it would not convert.
    """
    import SimpleITK as sitk

    if dataset.PhotometricInterpretation not in _CONVERTED:
        raise ValueError("colours of a kind that is not converted")
    frames = int(dataset.get("NumberOfFrames") or 1)
    reader = sitk.ImageFileReader()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.dcm"
        reader.SetFileName(str(path))
        reader.SetImageIO("GDCMImageIO")
        for index, stream in enumerate(generate_frames(dataset.PixelData, number_of_frames=frames)):
            if index in indices:
                _bare(dataset, stream).save_as(path, enforce_file_format=True)
                yield np.asarray(sitk.GetArrayFromImage(reader.Execute())[0])


def _bare(dataset: Dataset, stream: bytes) -> Dataset:
    """An object of one frame that holds pixels only."""
    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    bare.file_meta.MediaStorageSOPClassUID = bare.SOPClassUID = SecondaryCaptureImageStorage
    bare.file_meta.MediaStorageSOPInstanceUID = bare.SOPInstanceUID = generate_uid()
    for keyword in _PIXEL_KEYWORDS:
        if keyword in dataset:
            setattr(bare, keyword, dataset[keyword].value)
    if bare.PhotometricInterpretation == "MONOCHROME1":  # turned round later, by us
        bare.PhotometricInterpretation = "MONOCHROME2"
    bare.PixelData = encapsulate([stream])
    bare["PixelData"].is_undefined_length = True
    return bare
