"""Looking at compressed pictures before they are decoded: damaged ones make decoders hang.

A JPEG, JPEG-LS or JPEG 2000 stream states its own size. Where that is not the size in the header,
decoders allocate and compute for what damage claims; such streams are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import RLELossless

_JP2 = b"\x00\x00\x00\x0cjP  "
_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"
# Markers that begin a frame: SOF0 to SOF15 without DHT, JPG and DAC; SOF55 of JPEG-LS.
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def refuse_false_sizes(dataset: Dataset, indices: Sequence[int]) -> None:
    """Raise if a picture is not as large as the header says.

    Args:
        dataset: With encapsulated pixels.
        indices: Frames that are going to be decoded.

    Raises:
        ValueError: Its size is another, or cannot be found out.
    """
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        return
    expected = (int(dataset.Rows), int(dataset.Columns))
    frames = int(dataset.get("NumberOfFrames") or 1)
    wanted = set(indices)
    for index, frame in enumerate(generate_frames(dataset.PixelData, number_of_frames=frames)):
        if index in wanted and _size(frame) != expected:
            raise ValueError("a compressed picture of another size than its header says")


def _size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns that a stream states; None if it is of no known kind."""
    if stream.startswith(_JP2):
        stream = stream[_codestream_at(stream) :]
    if stream.startswith(_JPEG_2000):
        right, bottom, left, top = (
            int.from_bytes(stream[at : at + 4], "big") for at in (8, 12, 16, 20)
        )
        return bottom - top, right - left
    if not stream.startswith(_JPEG):
        return None
    at = 2
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker in _FRAME_MARKERS:
            return (
                int.from_bytes(stream[at + 5 : at + 7], "big"),
                int.from_bytes(stream[at + 7 : at + 9], "big"),
            )
        if marker == 0xFF:  # padding between markers
            at += 1
            continue
        at += 2 + max(int.from_bytes(stream[at + 2 : at + 4], "big"), 2)
    return None


def _codestream_at(stream: bytes) -> int:
    """Where the picture begins in a JP2 file: behind the head of its box of that name."""
    at = 12
    while at + 8 <= len(stream):
        if stream[at + 4 : at + 8] == b"jp2c":
            return at + 8
        length = int.from_bytes(stream[at : at + 4], "big")
        if length < 8:  # the last box; pydicom would step over it for ever
            break
        at += length
    return len(stream)
