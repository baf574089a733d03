"""Reading the few wanted elements of a plain DICOM header quickly.

pydicom takes about a millisecond for the header of a slice; archives hold hundreds of thousands.
Here the elements of a little-endian object are stepped over (PS3.5 7.1), the wanted ones kept, and
values that many objects share are converted once. Whatever is out of the ordinary (big endian,
deflated, a wanted sequence, anything malformed) is left to pydicom.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydicom.charset import convert_encodings
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian

_FIRST_BYTES, _MORE_BYTES, _MOST_BYTES = 16 * 1024, 1024 * 1024, 4 * 1024 * 1024
_LARGE_BYTES, _MOST_INFLATION = 64 * 1024 * 1024, 250
_MOST_ELEMENTS = 20_000
_MOST_NESTED = 16
_CACHE_ENTRIES, _CACHED_BYTES = 20_000, 128
# Value representations with a length of 32 bits after two reserved bytes (PS3.5 7.1.2).
_LONG = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UR", b"UT", b"UN", b"SV", b"UV"}
_SHORT = {
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN",
    b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US",
}  # fmt: skip
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = 0x7FE00008  # the first of the elements that hold pixels (PS3.3 C.7.6.3)
_CHARACTER_SET = 0x00080005
_TRANSFER_SYNTAX, _MEDIA_CLASS, _SOP_CLASS = 0x00020010, 0x00020002, 0x00080016

_cache: dict[tuple[int, bytes | None, bytes, bytes], DataElement | None] = {}


class _OddError(Exception):
    """The header is not plain; pydicom may still read it."""


class _DeflatedError(Exception):
    """All behind the meta header is deflated."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start


@dataclass(frozen=True)
class Wanted:
    """Which elements are read.

    Attributes:
        tags: All of them.
        sequences: Those that are sequences.
        integers: Those whose value must be one whole number.
    """

    tags: frozenset[int]
    sequences: frozenset[int]
    integers: frozenset[int]


_META = Wanted(frozenset({_TRANSFER_SYNTAX, _MEDIA_CLASS}), frozenset(), frozenset())


@dataclass(frozen=True)
class PlainHeader:
    """What was found.

    Attributes:
        header: The wanted elements.
        transfer_syntax: UID.
        pixels_at: Where the element of the pixels begins, or the end of the object.
        has_pixels: Whether there is one.
    """

    header: Dataset
    transfer_syntax: str
    pixels_at: int
    has_pixels: bool


def read_plain_header(stream: BinaryIO, wanted: Wanted) -> PlainHeader | None:
    """The wanted elements of an object with a preamble; None if pydicom must read it.

    Args:
        stream: At its start.
        wanted: What to keep.

    Raises:
        EOFError: The object is cut off.
        ValueError: It is deflated, and would inflate to far more than an image does.
    """
    data = stream.read(_FIRST_BYTES)
    complete = len(data) < _FIRST_BYTES
    while True:
        try:
            return _read(data, wanted, complete)
        except _OddError:
            return None
        except _DeflatedError as deflated:
            _refuse_bomb(data[deflated.start :] + stream.read())
            return None
        except (struct.error, IndexError):  # the header is longer
            if len(data) > _MOST_BYTES:
                return None
            if complete:
                raise EOFError("the object ends within an element") from None
            more = stream.read(_MORE_BYTES)
            complete = len(more) < _MORE_BYTES
            data += more


def _read(data: bytes, wanted: Wanted, complete: bool) -> PlainHeader:
    if data[128:132] != b"DICM":
        raise _OddError
    meta: dict[int, tuple[bytes | None, bytes]] = {}
    start = _elements(data, 132, True, _META, meta, last=0x00030000)
    syntax = _uid(meta.get(_TRANSFER_SYNTAX))
    if syntax is None or not UID(syntax).is_transfer_syntax or syntax == ExplicitVRBigEndian:
        raise _OddError
    if UID(syntax).is_deflated:
        raise _DeflatedError(start)
    found: dict[int, tuple[bytes | None, bytes]] = {}
    at = _elements(data, start, syntax != ImplicitVRLittleEndian, wanted, found, last=_PIXELS)
    if at >= len(data) and not complete:
        raise IndexError
    if _SOP_CLASS not in found and _MEDIA_CLASS in meta:
        found[_SOP_CLASS] = meta[_MEDIA_CLASS]
    header = Dataset(_converted(found, wanted))
    return PlainHeader(header, syntax, at, data[at : at + 2] == b"\xe0\x7f")


def _refuse_bomb(packed: bytes) -> None:
    """Raise if inflating gives more than images do; no more than a part is ever in memory."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total, rest = 0, packed
    while rest:
        total += len(inflater.decompress(rest, _MORE_BYTES))
        rest = inflater.unconsumed_tail
        if total > _LARGE_BYTES and total > _MOST_INFLATION * len(packed):
            raise ValueError("it inflates to far more than an image does")


def _uid(raw: tuple[bytes | None, bytes] | None) -> str | None:
    return None if raw is None else raw[1].rstrip(b"\0 ").decode("latin-1")


def _elements(
    data: bytes,
    at: int,
    explicit: bool,
    wanted: Wanted,
    found: dict[int, tuple[bytes | None, bytes]],
    last: int,
) -> int:
    """Step over elements up to the tag ``last``; keep the wanted ones; return where it stopped."""
    two, four, size = struct.Struct("<H").unpack_from, struct.Struct("<I").unpack_from, len(data)
    kind: bytes | None = None
    for _ in range(_MOST_ELEMENTS):
        if at <= size < at + 8:  # the end, or what was added to fill a block
            return size
        tag = (two(data, at)[0] << 16) | two(data, at + 2)[0]
        if tag >= last:
            return at
        if explicit:
            kind = data[at + 4 : at + 6]
            if kind in _SHORT:
                length, value = two(data, at + 6)[0], at + 8
            elif kind in _LONG:
                length, value = four(data, at + 8)[0], at + 12
            else:
                raise _OddError
        else:
            length, value = four(data, at + 4)[0], at + 8
        if length == _UNDEFINED:
            if tag in wanted.tags or kind not in (None, b"SQ"):
                raise _OddError
            at = _after_items(data, value, explicit, 0)
            continue
        at = value + length
        if tag in wanted.tags:
            # The meaning of private elements without a type depends on their creators.
            private = tag & 0x10000 and kind in (None, b"UN")
            if private or (length and tag in wanted.sequences):
                raise _OddError
            if at > size:
                raise IndexError
            found[tag] = (kind, data[value:at])
        elif at > size:
            raise IndexError
    raise _OddError


def _after_items(data: bytes, at: int, explicit: bool, depth: int) -> int:
    """The end of a sequence of undefined length (PS3.5 7.5)."""
    if depth > _MOST_NESTED:
        raise _OddError
    four = struct.Struct("<HHI").unpack_from
    while True:
        group, element, length = four(data, at)
        tag, at = (group << 16) | element, at + 8
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise _OddError
        at = at + length if length != _UNDEFINED else _after_item(data, at, explicit, depth + 1)


def _after_item(data: bytes, at: int, explicit: bool, depth: int) -> int:
    """The end of an item of undefined length."""
    while True:
        group, element, length = struct.unpack_from("<HHI", data, at)
        tag, value = (group << 16) | element, at + 8
        if tag == _ITEM_END:
            return value
        kind = data[at + 4 : at + 6] if explicit else None
        if kind in _SHORT:
            length = length >> 16
        elif kind in _LONG:
            (length,) = struct.unpack_from("<I", data, value)
            value += 4
        elif explicit:
            raise _OddError
        if length != _UNDEFINED:
            at = value + length
        elif kind in (None, b"SQ"):
            at = _after_items(data, value, explicit, depth)
        else:
            raise _OddError


def _converted(
    found: dict[int, tuple[bytes | None, bytes]], wanted: Wanted
) -> dict[BaseTag, DataElement | RawDataElement]:
    """Elements with their values, those that cannot be converted left out."""
    charset = found.get(_CHARACTER_SET, (None, b""))[1]
    elements: dict[BaseTag, DataElement | RawDataElement] = {}
    for tag, (kind, raw) in found.items():
        key = (tag, kind, raw, charset)
        try:
            element = _cache[key]
        except KeyError:
            element = _element(tag, kind, raw, charset, tag in wanted.integers)
            if len(_cache) >= _CACHE_ENTRIES:
                _cache.clear()
            if len(raw) <= _CACHED_BYTES:
                _cache[key] = element
        if element is not None:
            elements[BaseTag(tag)] = element
    return elements


def _element(
    tag: int, kind: bytes | None, raw: bytes, charset: bytes, integer: bool
) -> DataElement | None:
    """One converted element; None if it is damaged."""
    names = charset.decode("latin-1").strip("\0 ").split("\\")
    try:
        encodings: Any = convert_encodings(names if names != [""] else "iso8859")
        element = convert_raw_data_element(
            RawDataElement(
                BaseTag(tag), kind.decode() if kind else None, len(raw), raw, 0, kind is None, True
            ),
            encoding=encodings,
        )
        if integer and element.value is not None:
            int(element.value)
        return element
    except Exception:  # whatever pydicom raises for a value, it is damaged
        return None
