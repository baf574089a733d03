"""Finding DICOM objects in a file, a folder, a zip or a DICOMDIR, by content and never by name.

A zip is never unpacked to disk: members are read one by one, and their names are never used as
paths. A DICOMDIR is a list of files: only those inside its own folder are read.
"""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.uid import MediaStorageDirectoryStorage

from medgen.errors import InputError
from medgen.io.dicom_files import (
    PREAMBLE_BYTES,
    UNREADABLE,
    Instance,
    looks_like_dicom,
    parse,
    quiet,
)
from medgen.io.walk import Location, walk, zip_members

MAX_ZIP_BYTES = 8 * 2**30  # unpacked; a small zip can hold a far larger one
MAX_ZIP_MEMBERS = 100_000
# Images shrink to a half or a tenth; only made-up data shrinks to a 250th of a large size.
MAX_ZIP_RATIO = 250
_RATIO_MATTERS_BYTES = 64 * 2**20
# The header of nearly every object in a zip is found in this much of it.
_HEADER_BYTES = 64 * 1024


@dataclass
class Search:
    """What was met while looking for objects.

    Attributes:
        files: Files (and members of zips) looked at.
        foreign: Those that are not DICOM.
        unreadable: Folders that could not be opened.
        damaged: DICOM files whose header cannot be read.
        refused_zips: Why zips inside a folder were left alone, one reason each.
        missing: Files that a DICOMDIR lists and that are not there.
        progress: Told the number of files now and then.
    """

    files: int = 0
    foreign: int = 0
    unreadable: list[Path] = field(default_factory=list)
    damaged: int = 0
    refused_zips: list[str] = field(default_factory=list)
    missing: int = 0
    progress: Callable[[int], None] | None = None

    def count(self) -> None:
        """One more file."""
        self.files += 1
        if self.progress is not None and self.files % 50 == 0:
            self.progress(self.files)


class Zips:
    """Open zips, each opened once and shared by its members; close when done."""

    def __init__(self) -> None:
        self._open: dict[Path, zipfile.ZipFile] = {}
        self._members: dict[Path, dict[str, zipfile.ZipInfo]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Zips:
        return self

    def __exit__(self, *_: object) -> None:
        for archive in self._open.values():
            archive.close()
        self._open.clear()
        self._members.clear()

    def members(self, path: Path) -> dict[str, zipfile.ZipInfo]:
        """The files in the zip at a path, see :func:`medgen.io.walk.zip_members`.

        Raises:
            InputError: It is damaged, encrypted, or would unpack to too much.
        """
        with self._lock:
            if path not in self._open:
                self._open[path] = _checked_zip(path)
                self._members[path] = zip_members(self._open[path])
            return self._members[path]

    def open(self, location: Location, size: int | None = None) -> BinaryIO:
        """A file or a member of a zip, from its start; of a member at most ``size`` bytes."""
        if location.member is None:
            return location.file.open("rb")
        member = self.members(location.file)[location.member]
        with self._open[location.file].open(member) as stream:
            # The size in the directory is checked; a member that lies about it is cut there.
            return io.BytesIO(stream.read(min(member.file_size, size or member.file_size)))


def instances(
    source: Path | Sequence[Location], zips: Zips, search: Search | None = None
) -> Iterator[Instance]:
    """Every DICOM object, in the order of the names.

    Args:
        source: A file, folder, zip or DICOMDIR, or the places of objects.
        zips: Keeps zips open; must outlive the instances.
        search: Receives the counts.

    Raises:
        InputError: The source itself is a zip that is hostile, damaged or encrypted.
    """
    search = search or Search()
    if not isinstance(source, Path):
        for location in source:
            try:
                yield from _instance(location, zips, search)
            except InputError:  # its zip is gone, or has become another
                search.damaged += 1
    elif source.is_dir():
        yield from _in_folder(source, zips, search)
    elif (_start(source) or b"")[:4] == b"PK\x03\x04":
        yield from _in_zip(source, zips, search)
    else:
        for instance in _instance(Location(source), zips, search):
            if not _is_directory(instance):
                yield instance
                continue
            for file in _listed(source, search):
                yield from _without_directories(_instance(Location(file), zips, search))


def _is_directory(instance: Instance) -> bool:
    return bool(instance.header.get("SOPClassUID") == MediaStorageDirectoryStorage)


def _without_directories(found: Iterator[Instance]) -> Iterator[Instance]:
    """A DICOMDIR among other files adds nothing to them."""
    return (instance for instance in found if not _is_directory(instance))


def _start(file: Path) -> bytes | None:
    """The first bytes of a file; None if it cannot be read."""
    try:
        with file.open("rb", buffering=0) as stream:
            return stream.read(PREAMBLE_BYTES)
    except OSError:
        return None


def _in_folder(folder: Path, zips: Zips, search: Search) -> Iterator[Instance]:
    for file in walk(folder, search.unreadable):
        start = _start(file)
        if start is not None and start[:4] == b"PK\x03\x04":
            try:
                yield from _in_zip(file, zips, search)
            except InputError as error:
                search.count()
                search.refused_zips.append(error.message.removeprefix(str(file)).strip())
        else:
            yield from _without_directories(_instance(Location(file), zips, search, start))


def _in_zip(path: Path, zips: Zips, search: Search) -> Iterator[Instance]:
    for name in sorted(zips.members(path)):
        last = name.rsplit("/", 1)[-1]
        if last and not last.startswith(".") and "__MACOSX" not in name:
            yield from _without_directories(_instance(Location(path, name), zips, search))


def _instance(
    location: Location, zips: Zips, search: Search, start: bytes | None = None
) -> Iterator[Instance]:
    """The object at a place, if there is one."""
    search.count()
    try:
        if start is None:
            with zips.open(location, PREAMBLE_BYTES) as stream:
                start = stream.read(PREAMBLE_BYTES)
    except UNREADABLE:
        search.damaged += 1
        return
    if not looks_like_dicom(start):
        search.foreign += 1
        return
    instance = _parsed(location, zips)
    if instance is None:
        if start[128:132] == b"DICM":
            search.damaged += 1
        else:
            search.foreign += 1
        return
    yield instance


def _parsed(location: Location, zips: Zips) -> Instance | None:
    """The header; of a zipped object from its beginning alone, where that suffices."""

    def whole() -> BinaryIO:
        return zips.open(location)

    if location.member is not None:
        # A header that is cut off ends where the bytes end.
        instance = parse(location, lambda: zips.open(location, _HEADER_BYTES))
        at = instance.pixels_at if instance else None
        if instance is not None and at is not None and at < _HEADER_BYTES - 4:
            return replace(instance, open=whole)
    return parse(location, whole)


def _checked_zip(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise InputError(
            f"{path} holds no readable DICOM image: it is a damaged zip",
            "Copy or download it again.",
        ) from error
    members = [m for m in archive.infolist() if not m.is_dir()]
    size = sum(member.file_size for member in members)
    packed = max(path.stat().st_size, 1)
    try:
        if size > MAX_ZIP_BYTES or len(members) > MAX_ZIP_MEMBERS:
            raise InputError(
                f"{path} would unpack to {size / 2**30:.1f} GiB in {len(members)} files; at most "
                f"{MAX_ZIP_BYTES / 2**30:.0f} GiB in {MAX_ZIP_MEMBERS} files are read from a zip",
                "If you trust it, unpack it and name the folder.",
            )
        if size > _RATIO_MATTERS_BYTES and size > MAX_ZIP_RATIO * packed:
            raise InputError(
                f"{path} would unpack to {size / packed:.0f} times its size, as no images do",
                "If you trust it, unpack it and name the folder.",
            )
        if any(member.flag_bits & 1 for member in members):
            raise InputError(
                f"{path} is encrypted", "Unpack it with its password, name the folder."
            )
    except InputError:
        archive.close()
        raise
    return archive


def _listed(path: Path, search: Search) -> Iterator[Path]:
    """The files that a DICOMDIR lists (PS3.3 F.3), if they lie in its folder.

    ReferencedFileID comes from outside and is not trusted: no part of it may be a path, and what
    it leads to, links followed, must be inside.
    """
    folder = path.resolve().parent
    try:
        with quiet():
            records = pydicom.dcmread(path, force=True).get("DirectoryRecordSequence") or []
            listed = [record.get("ReferencedFileID") for record in records]
    except UNREADABLE:
        return
    for entry in listed:
        parts = [entry] if isinstance(entry, str) else list(entry or [])
        if not parts:
            continue
        plain = all(
            p not in ("", ".", "..") and not set("/\\:\0") & set(p) for p in map(str, parts)
        )
        try:
            file = folder.joinpath(*map(str, parts)).resolve() if plain else None
            if file is not None and file.is_relative_to(folder) and file.is_file():
                yield file
                continue
        except (OSError, ValueError):
            pass
        search.missing += 1
